"""The sweep that made a teacher: its records, if the teacher is the folder `chosen` of a sweep."""

from pathlib import Path

from kdray.choice.decision import Decision
from kdray.errors import KDRayError, first_line
from kdray.evaluation.measuring import COST_METRICS
from kdray.models.fresh import FreshTransformer
from kdray.models.lineage import EarlierSweep, Lineage
from kdray.stages.reading import SweepRecords
from kdray.storage.paths import SweepPaths
from kdray.storage.records import read_record


def earlier_sweep(model: str | FreshTransformer, test_rows: str) -> tuple[EarlierSweep | None, str | None]:
    """The sweep in whose folder this model is `chosen`, and a sentence about what was found; None for other models.

    `test_rows` is the fingerprint of the test rows of the sweep that is running.
    """
    folder = Path(model).expanduser().absolute() if isinstance(model, str) else Path()
    paths = SweepPaths(folder.parent.parent, folder.parent.name)
    if folder != paths.chosen or not folder.is_dir() or not paths.lineage.is_file():
        return None, None
    try:
        lineage, records = read_record(Lineage, paths.lineage), SweepRecords.read(paths)
    except (KDRayError, OSError, ValueError) as error:
        return (
            None,
            f"{folder}: the records of its sweep cannot be read, so its teacher is not shown ({first_line(error)}).",
        )
    if lineage is None:
        return None, None
    on_test, metric = _on_test(records.decision, records.teacher)
    earlier = EarlierSweep(
        name=paths.name,
        teacher=lineage.teacher,
        metric=metric,
        is_on_same_rows=lineage.test_rows == test_rows,
        on_test=on_test,
        figures=records.teacher,
        measured=records.conditions,
        earlier=_again(lineage, test_rows),
    )
    return (
        earlier,
        f"The teacher {model} is the student of the sweep {paths.name}, whose teacher was {lineage.teacher}.",
    )


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
