"""Registers the chosen student as a version of a registered model in MLflow, and makes it champion if it is better.

Only a confirmed student is registered. It becomes champion only if it satisfies its sweep's rule, or by request.
`choice.champion` compares two students; `tracking.registry` calls MLflow.
"""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdray.choice.champion import ChampionComparison, RegisteredFigures
from kdray.choice.rule import Choose
from kdray.errors import StorageError, TrackingError
from kdray.evaluation.measuring import COST_METRICS
from kdray.export.shipped import Shipped, read_shipped
from kdray.report.figures import Figures
from kdray.safe_text.escaping import markdown_text
from kdray.search.claim import read_ledger
from kdray.search.ledger import Ledger
from kdray.stages.reading import read_figures
from kdray.stages.session import Session
from kdray.stages.shipping import Results
from kdray.storage.bucket_copies import sync_with_bucket
from kdray.storage.files import scratch_folder
from kdray.storage.mirror import fetch
from kdray.storage.owner import own_sweep
from kdray.storage.paths import SweepPaths, display_path
from kdray.tracking.ids import sweep_run_id
from kdray.tracking.mlflow_model import write_mlflow_model
from kdray.tracking.registry import Registry, Version
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import TrackingTarget
from kdray.tracking.sync import send_spool

log = logging.getLogger(__name__)


def register_chosen(session: Session, results: Results) -> str | None:
    """Register the student of a sweep that has just ended. Returns the outcome in words, also if MLflow refuses it.

    None if no student was chosen, or if `tracking` does not request registration.
    """
    tracking, paths = session.sweep.tracking, session.paths
    if not (tracking.enabled and tracking.registry) or results.student is None:
        return None
    session.screen.stage("Registry")
    # A sweep that has ended does not fail because of the registry: its student can be registered later.
    try:
        return _register(tracking, results.student, results.figures, session.ledger, replace=False)
    except TrackingError as error:
        log.warning("%s", error)
        return f"{error} Register it later with: {_register_command(paths)}"
    except StorageError as error:
        return str(error)


def register_finished(
    paths: SweepPaths, uri: str | None, model: str | None, replace: bool, note: Callable[[str], None]
) -> str:
    """Register the student of a finished sweep, after sending the sweep's unsent changes to MLflow.

    `replace` makes the student champion, whatever the rule says. Returns the outcome in words. Raises StorageError if
    there is no confirmed student, or if the sweep is running; SpecError if the address of the MLflow server is not
    known; TrackingError if MLflow does not register the student.
    """
    try:
        send_spool(paths, uri, note, lambda done, count: None)
    except TrackingError as error:
        note(str(error))
    with own_sweep(paths.owner, note), sync_with_bucket(paths, note):
        if (target := TrackingTarget.read(paths)) is None:
            raise StorageError(
                f"{display_path(paths.root)}: the sweep was not tracked, so MLflow has no run whose student could be "
                "registered. Run it again with --set tracking.enabled=true."
            )
        tracking = target.tracking_at(uri, paths)
        tracking = tracking.with_dotted({"model": model or tracking.model})
        fetch(paths.chosen)
        try:
            return _register(tracking, read_shipped(paths), read_figures(paths), read_ledger(paths), replace)
        except TrackingError as error:
            raise TrackingError(f"{error} Run the same command again when the problem is solved.") from None


def _register(tracking: Tracking, student: Shipped, figures: Figures, ledger: Ledger, replace: bool) -> str:
    """Register a student, with retries while MLflow does not answer. Returns the outcome in words."""
    entry = _registry_entry(student, figures)
    # If changes are unsent, the end of the sweep has just waited for the server in vain, so it is not waited for again.
    if student.paths.spool.exists():
        tracking = tracking.model_copy(update={"patience_s": 0.0})
    registry = Registry(tracking.model or student.paths.name, tracking, student.paths)
    run_id = sweep_run_id(ledger)
    if run_id is None:
        raise TrackingError(f"MLflow at {registry.uri} has no run of this sweep yet, so no student can be registered.")
    with scratch_folder() as scratch:
        return registry.retry(lambda: _register_once(registry, entry, run_id, replace, scratch))


@dataclass(frozen=True)
class RegistryEntry:
    """A confirmed student with everything that is registered with it."""

    student: Shipped
    figures: RegisteredFigures
    rule: Choose
    tags: dict[str, str]
    description: str

    def write(self, scratch: Path) -> Path:
        """Write the student as an MLflow model into a new folder below `scratch`. Returns that folder."""
        # A retry writes again, so each attempt has a folder of its own.
        folder = scratch / f"model-{len(list(scratch.iterdir()))}"
        write_mlflow_model(self.student.model, self.student.task, self.student.paths.name, folder)
        return folder


def _registry_entry(student: Shipped, figures: Figures) -> RegistryEntry:
    """The registry entry of this student. Raises StorageError for a student that was not confirmed."""
    paths, lineage, rule = student.paths, student.lineage, student.decision.asked.choose
    verdict = student.decision.confirmation
    if lineage is None or verdict is None or (winner := verdict.winner) is None:
        raise StorageError(
            f"{display_path(paths.root)}: its choice was not confirmed, and only a confirmed student is registered. "
            "Run the same sweep again with --set confirm.candidates=3."
        )
    teacher_costs = {name: figures.teacher[name] for name in COST_METRICS if name in figures.teacher}
    registered = RegisteredFigures(
        metric=verdict.metric,
        student={**figures.records[winner.trial].costs, **winner.metrics},
        teacher={**teacher_costs, verdict.metric: verdict.teacher.estimate},
        teacher_weights=lineage.teacher_weights,
        test_rows=lineage.test_rows,
        measured=figures.conditions,
    )
    tags = {
        "kdray.sweep": paths.name,
        "kdray.trial": str(figures.chosen),
        "kdray.task": student.task.name,
        "kdray.teacher": lineage.teacher,
        "kdray.data": lineage.data,
        "kdray.rule": rule.model_dump_json(),
        **registered.tags(),
    }
    return RegistryEntry(
        student=student,
        figures=registered,
        rule=rule,
        tags=tags,
        description="\n\n".join(map(markdown_text, figures.sentences)),
    )


def _register_once(registry: Registry, entry: RegistryEntry, run_id: str, replace: bool, scratch: Path) -> str:
    """Register the student, and make it champion unless there is an objection. Returns the outcome in words.

    A second call with the same student finds the version of the first call.
    """
    weights = entry.student.model.key
    version = registry.find_or_create_version(
        weights, run_id, entry.tags, entry.description, lambda: entry.write(scratch)
    )
    champion = registry.champion()
    is_champion = champion is not None and champion.number == version.number
    objection = None if replace or is_champion else _objection(entry, champion)
    if objection is None:
        if not is_champion:
            registry.make_champion(version)
        former = f", in place of version {champion.number}" if champion and not is_champion else ""
        return f"models:/{registry.model}@champion (version {version.number}{former})"
    consequence = f"version {champion.number} stays champion" if champion else "it does not become champion"
    options = ("--replace", *(("--model", registry.model) if registry.model != entry.student.paths.name else ()))
    return (
        f"models:/{registry.model}/{version.number}; {consequence}: {objection}. To make it champion anyway: "
        f"{_register_command(entry.student.paths, *options)}"
    )


def _objection(entry: RegistryEntry, champion: Version | None) -> str | None:
    """Why the student does not become champion, in words; None if it does."""
    if misses := entry.rule.misses(entry.figures.student):
        return f"the new student {' and '.join(misses)}"
    if champion is None:
        return None
    return ChampionComparison(entry.rule, entry.figures, RegisteredFigures.read(champion.tags)).objection()


def _register_command(paths: SweepPaths, *options: str) -> str:
    return shlex.join(["kdray", "register", display_path(paths.root), *options])
