"""The sweep that made a teacher or a checkpoint: its records, if the model is the folder `chosen` of a sweep.

The settings and records of that sweep are read as text and numbers; no file that they name is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.choice.decision import Decision
from kdray.data.rows import TEST
from kdray.data.splits import Data, Splits
from kdray.data.tokens import TokenSet
from kdray.errors import KDRayError, first_line
from kdray.evaluation.measuring import COST_METRICS
from kdray.models.fresh import FreshTransformer
from kdray.models.lineage import EarlierSweep, Lineage
from kdray.search.claim import read_settings
from kdray.stages.reading import TASK, SweepRecords
from kdray.storage.files import fingerprint
from kdray.storage.paths import SweepPaths
from kdray.storage.records import read_record
from kdray.tasks.task import Task


def measured_rows(task: Task, splits: Splits, tokens: TokenSet) -> str:
    """A fingerprint of the test rows, as far as figures of two sweeps need to have it in common to be compared.

    Where figures depend on how a text is read, as perplexities do, the tokenizer and the masks are part of it.
    """
    content = splits.content(TEST)
    if not task.comparability:
        return content
    return fingerprint(content, tokens.tokenizer_key, task.max_length, *task.cache_key)


def earlier_sweep(model: str | FreshTransformer, test_rows: str) -> tuple[EarlierSweep | None, str | None]:
    """The sweep in whose folder this teacher is `chosen`, and a sentence about what was found; None for other models.

    `test_rows` is the fingerprint of the test rows of the sweep that is running.
    """
    found, problem = _records_beside(model)
    if found is None:
        return None, problem
    earlier = found.sweep(test_rows)
    return (
        earlier,
        f"The teacher {model} is the student of the sweep {earlier.name}, whose teacher was {earlier.teacher}.",
    )


def sweep_of_checkpoint(
    name: str, splits: Splits, read_from: str, test_rows: str
) -> tuple[EarlierSweep | None, list[str]]:
    """The sweep in whose folder this checkpoint of students is `chosen`, and notes; None for other checkpoints.

    `splits` are the rows of the sweep that is running, `read_from` says where they come from (`data_name`), and
    `test_rows` is the fingerprint of its `measured_rows`.
    """
    found, problem = _records_beside(name)
    if found is None:
        return None, [] if problem is None else [problem]
    try:
        settings = read_settings(found.paths)
    except KDRayError as error:
        return None, [_unreadable(found.paths.chosen, error)]
    data, task = settings.get("data"), settings.get("task")
    earlier = found.sweep(test_rows).model_copy(
        update={
            "task": _task_name(task),
            "teacher_weights": found.lineage.teacher_weights,
            "data": found.lineage.data,
            "read_from": data_name(data) if isinstance(data, Mapping) else "",
        }
    )
    return earlier, [_describe_checkpoint(name, earlier), *_common_rows(earlier, splits, read_from)]


def data_name(data: Data | Mapping[str, Any]) -> str:
    """Where rows come from: the name of the data, or the kind of generated rows; of settings or of their JSON."""
    source = data.get("source") if isinstance(data, Mapping) else data.source
    if isinstance(source, str):
        return source
    kind = source.get("kind") if isinstance(source, Mapping) else getattr(source, "kind", None)
    return f"generated rows ({kind})"


@dataclass(frozen=True)
class _Found:
    """The records of the sweep that chose a model."""

    paths: SweepPaths
    lineage: Lineage
    records: SweepRecords

    def sweep(self, test_rows: str) -> EarlierSweep:
        """The sweep, compared with the test rows of the sweep that is running."""
        on_test, metric = _on_test(self.records.decision, self.records.teacher)
        return EarlierSweep(
            name=self.paths.name,
            teacher=self.lineage.teacher,
            metric=metric,
            is_on_same_rows=self.lineage.test_rows == test_rows,
            on_test=on_test,
            figures=self.records.teacher,
            measured=self.records.conditions,
            earlier=_again(self.lineage, test_rows),
        )


def _records_beside(model: str | FreshTransformer) -> tuple[_Found | None, str | None]:
    """The records of the sweep in whose folder this model is `chosen`, or why they cannot be read; None for others."""
    folder = Path(model).expanduser().absolute() if isinstance(model, str) else Path()
    paths = SweepPaths(folder.parent.parent, folder.parent.name)
    if folder != paths.chosen or not folder.is_dir() or not paths.lineage.is_file():
        return None, None
    try:
        lineage, records = read_record(Lineage, paths.lineage), SweepRecords.read(paths)
    except (KDRayError, OSError, ValueError) as error:
        return None, _unreadable(folder, error)
    return (None if lineage is None else _Found(paths, lineage, records)), None


def _unreadable(folder: Path, error: Exception) -> str:
    return f"{folder}: the records of its sweep cannot be read, so its teacher is not shown ({first_line(error)})."


def _task_name(settings: Any) -> str:
    """The name of the task with these settings, which are those of another sweep; empty if no task has them."""
    try:
        return TASK.validate_python(settings or {}).name
    except (KDRayError, ValueError, TypeError):
        return ""


def _describe_checkpoint(name: str, earlier: EarlierSweep) -> str:
    task = f" ({earlier.task})" if earlier.task else ""
    return (
        f"The checkpoint {name} is the student of the sweep {earlier.name}{task}, whose teacher was {earlier.teacher}."
    )


def _common_rows(earlier: EarlierSweep, splits: Splits, read_from: str) -> list[str]:
    """That test rows of this sweep may have been text of the earlier one, as far as names and fingerprints show it."""
    if earlier.is_on_same_rows or earlier.data == splits.key or earlier.read_from != read_from:
        return []
    return [
        f"The sweep {earlier.name} read {earlier.read_from}, too, and its test rows were other ones: its student may "
        "have been trained on texts of this sweep's test rows. Give both sweeps the same data.test."
    ]


def _on_test(decision: Decision, teacher: dict[str, float]) -> tuple[dict[str, float], str]:
    """The figures of teacher and student on the test rows, and the metric that they are values of."""
    verdict = decision.confirmation
    if verdict is not None:
        winner = {} if verdict.winner is None else {"student": verdict.winner.metrics[verdict.metric]}
        return {"teacher": verdict.teacher.estimate, **winner}, verdict.metric
    metric = next((name for name in teacher if name not in COST_METRICS), "")
    test = (decision.measured or {}).get("test", {})
    return ({"student": test[metric]} if metric in test else {}), metric


def _again(lineage: Lineage, test_rows: str) -> EarlierSweep | None:
    """The sweep before the sweep with this lineage, compared with other test rows than that sweep had."""
    if len(lineage.models) != 1 or lineage.models[0].earlier is None:
        return None
    # What is recorded there is whether the rows were those of that sweep; so both steps must have kept them.
    is_same = lineage.test_rows == test_rows
    return _with_rows(lineage.models[0].earlier, is_same)


def _with_rows(sweep: EarlierSweep, is_same: bool) -> EarlierSweep:
    earlier = None if sweep.earlier is None else _with_rows(sweep.earlier, is_same)
    return sweep.model_copy(update={"is_on_same_rows": is_same and sweep.is_on_same_rows, "earlier": earlier})
