"""Registering the chosen student: a version of a registered model that says where it comes from, and maybe champion.

Only a confirmed student is registered, and only one that satisfies its sweep's rule becomes champion by itself. `champion`
says which of two students is the better one, `tracking` how MLflow is told.
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
    """Register the student of a sweep that has just ended; the outcome in words, also when the registry refuses it.

    None where no student was chosen, and where `tracking` does not ask for it.
    """
    tracking, paths = session.sweep.tracking, session.paths
    if not (tracking.enabled and tracking.registry) or results.student is None:
        return None
    session.screen.stage("Registry")
    try:
        return _register(tracking, results.student, results.figures, session.ledger, replace=False)
    except TrackingError as error:
        log.warning("%s", error)
        return f"{error} Register it later with: {_command(paths)}"
    except StorageError as error:
        return str(error)


def register_finished(
    paths: SweepPaths, uri: str | None, model: str | None, replace: bool, note: Callable[[str], None]
) -> str:
    """Register the student of a finished sweep; the outcome in words. What MLflow has missed is sent first.

    `replace` makes it champion whatever the rule says. Raises StorageError where there is no confirmed student, or the
    sweep runs; SpecError when the store's address is not known; TrackingError when the store does not take it.
    """
    try:
        send_spool(paths, uri, note, lambda done, of: None)
    except TrackingError as error:
        note(str(error))
    with own_sweep(paths.owner, note), sync_with_bucket(paths, note):
        if (target := TrackingTarget.read(paths)) is None:
            raise StorageError(
                f"{display_path(paths.root)}: the sweep was not tracked, so MLflow has no run whose student could be "
                "registered. Run it again with --set tracking.enabled=true."
            )
        tracking = target.tracking_at(uri)
        renamed = tracking.with_dotted({"model": model or tracking.model})
        fetch(paths.chosen)
        try:
            return _register(renamed, read_shipped(paths), read_figures(paths), read_ledger(paths), replace)
        except TrackingError as error:
            raise TrackingError(f"{error} Run the same command again when that is mended.") from None


def _register(tracking: Tracking, student: Shipped, figures: Figures, ledger: Ledger, replace: bool) -> str:
    entry = _entry(student, figures)
    if student.paths.spool.exists():  # the end of the sweep has just waited for the store
        tracking = tracking.model_copy(update={"patience_s": 0.0})
    registry = Registry(tracking.model or student.paths.name, tracking, student.paths)
    run_id = sweep_run_id(ledger)
    if run_id is None:
        raise TrackingError(f"MLflow at {registry.uri} has no run of this sweep yet to register a student of.")
    with scratch_folder() as scratch:
        return registry.insisting(lambda: _place(registry, entry, run_id, replace, scratch))


@dataclass(frozen=True)
class RegistryEntry:
    """A confirmed student, to be registered."""

    student: Shipped
    figures: RegisteredFigures
    rule: Choose
    tags: dict[str, str]
    description: str

    def write(self, scratch: Path) -> Path:
        """Write the student as an MLflow model into a new folder below `scratch`; that folder."""
        folder = scratch / f"model-{len(list(scratch.iterdir()))}"
        write_mlflow_model(self.student.model, self.student.task, self.student.paths.name, folder)
        return folder


def _entry(student: Shipped, figures: Figures) -> RegistryEntry:
    """What is registered of this student. Raises StorageError for a student that was not confirmed."""
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
        "kdray.teacher": lineage.teacher,
        "kdray.data": lineage.data,
        "kdray.rule": rule.model_dump_json(),
        **registered.tags(),
    }
    return RegistryEntry(student, registered, rule, tags, "\n\n".join(figures.sentences))


def _place(registry: Registry, entry: RegistryEntry, run_id: str, replace: bool, scratch: Path) -> str:
    """Register it, let it be champion where it ought to be, and say so."""
    weights = entry.student.model.key
    version = registry.version(weights, run_id, entry.tags, entry.description, lambda: entry.write(scratch))
    champion = registry.champion()
    is_champion = champion is not None and champion.number == version.number
    why = None if replace or is_champion else _objection(entry, champion)
    if why is None:
        if not is_champion:
            registry.crown(version)
        before = f", in the place of version {champion.number}" if champion and not is_champion else ""
        return f"models:/{registry.model}@champion (version {version.number}{before})"
    stays = f"version {champion.number} stays champion" if champion else "it is no champion"
    options = ("--replace", *(("--model", registry.model) if registry.model != entry.student.paths.name else ()))
    return (
        f"models:/{registry.model}/{version.number}; {stays}: {why}. To make it champion all the same: "
        f"{_command(entry.student.paths, *options)}"
    )


def _objection(entry: RegistryEntry, champion: Version | None) -> str | None:
    if misses := entry.rule.misses(entry.figures.student):
        return f"this one {' and '.join(misses)}"
    if champion is None:
        return None
    return ChampionComparison(entry.rule, entry.figures, RegisteredFigures.read(champion.tags)).objection()


def _command(paths: SweepPaths, *options: str) -> str:
    return shlex.join(["kdray", "register", display_path(paths.root), *options])
