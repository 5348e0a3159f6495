"""Registering the chosen student: a version of a registered model that says where it comes from, and maybe champion.

Only a confirmed student is registered, and only one that satisfies its sweep's rule becomes champion by itself. Whether
it is the better one is `champion`'s to say, how MLflow is told `tracking`'s.
"""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.choice.champion import Contest, Standing
from kdray.choice.rule import Choose
from kdray.errors import StorageError, TrackingError
from kdray.evaluation.measuring import COSTS
from kdray.export.shipped import Shipped, shipped
from kdray.report.figures import Figures
from kdray.report.screen import Screen
from kdray.search.claim import ledger_in
from kdray.search.ledger import Ledger
from kdray.stages.choosing import Asked, figures_of
from kdray.storage.bucket_copies import kept_in_bucket
from kdray.storage.files import read_json, scratch_folder
from kdray.storage.mirror import fetched
from kdray.storage.owner import owned
from kdray.storage.paths import SweepPaths, shown
from kdray.tracking.ids import sweep_run
from kdray.tracking.mlflow_model import write_mlflow_model
from kdray.tracking.registry import Registry, Version
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import Target
from kdray.tracking.sync import sync

log = logging.getLogger(__name__)


def registered(tracking: Tracking, paths: SweepPaths, ledger: Ledger, screen: Screen) -> str | None:
    """Register the student of a sweep that has just ended, and say what came of it; a registry that refuses is said.

    None where no student was chosen, and where `tracking` does not ask for it.
    """
    if not (tracking.enabled and tracking.registry) or figures_of(paths).chosen is None:
        return None
    screen.stage("Registry")
    try:
        return _registered(tracking, paths, ledger, replace=False)
    except TrackingError as error:
        log.warning("%s", error)
        return f"{error} Register it later with: {_command(paths)}"
    except StorageError as error:
        return str(error)


def register(paths: SweepPaths, uri: str | None, model: str | None, replace: bool, say: Callable[[str], None]) -> str:
    """Register the student of a finished sweep, and say what came of it; what MLflow has missed is sent before.

    `replace` makes it champion whatever the rule says. Raises StorageError where there is no confirmed student, or the
    sweep runs; SpecError when the store's address is not known; TrackingError when the store does not take it.
    """
    try:
        sync(paths, uri, say, lambda done, of: None)
    except TrackingError as error:
        say(str(error))
    with owned(paths.owner, say), kept_in_bucket(paths, say):
        if (target := Target.read(paths)) is None:
            raise StorageError(
                f"{shown(paths.root)}: the sweep was not tracked, so MLflow has no run whose student could be "
                "registered. Run it again with --set tracking.enabled=true."
            )
        tracking = target.tracking_at(uri)
        named = tracking.with_dotted({"model": model or tracking.model})
        try:
            return _registered(named, paths, ledger_in(paths), replace)
        except TrackingError as error:
            raise TrackingError(f"{error} Run the same command again when that is mended.") from None


def _registered(tracking: Tracking, paths: SweepPaths, ledger: Ledger, replace: bool) -> str:
    fetched(paths.chosen)
    entry = _entry(paths)
    if paths.spool.exists():  # the store has just been waited for
        tracking = tracking.model_copy(update={"patience_s": 0.0})
    registry = Registry(tracking.model or paths.name, tracking, paths)
    run_id = sweep_run(ledger)
    if run_id is None:
        raise TrackingError(f"MLflow at {registry.uri} has no run of this sweep yet to register a student of.")
    with scratch_folder() as scratch:
        return registry.insisting(lambda: _placed(registry, entry, run_id, replace, scratch))


@dataclass(frozen=True)
class Entry:
    """A confirmed student, to be registered."""

    student: Shipped
    standing: Standing
    rule: Choose
    tags: dict[str, str]
    description: str

    def written(self, scratch: Path) -> Path:
        """The student as an MLflow model, in a folder of its own below `scratch`."""
        folder = scratch / f"model-{len(list(scratch.iterdir()))}"
        write_mlflow_model(self.student.model, self.student.task, self.student.paths.name, folder)
        return folder


def _entry(paths: SweepPaths) -> Entry:
    """What is registered of this sweep. Raises StorageError where there is no confirmed student."""
    student, figures = shipped(paths), figures_of(paths)
    lineage, rule = read_json(paths.lineage), Asked.read(paths).choose
    standing = _standing(paths, figures, lineage)
    tags = {
        "kdray.sweep": paths.name,
        "kdray.trial": str(figures.chosen),
        "kdray.teacher": lineage["teacher"],
        "kdray.data": lineage["data"],
        "kdray.rule": rule.model_dump_json(),
        **standing.tags(),
    }
    return Entry(student, standing, rule, tags, "\n\n".join(figures.sentences))


def _standing(paths: SweepPaths, figures: Figures, lineage: dict[str, Any]) -> Standing:
    verdict = figures.verdict
    if verdict is None or (winner := verdict.winner) is None:
        raise StorageError(
            f"{shown(paths.root)}: its choice was not confirmed, and only a confirmed student is registered. Run the "
            "same sweep again with --set confirm.candidates=3."
        )
    taught = {name: figures.teacher[name] for name in COSTS if name in figures.teacher}
    return Standing(
        metric=verdict.metric,
        student={**figures.records[winner.trial].costs, **winner.metrics},
        teacher={**taught, verdict.metric: verdict.teacher.estimate},
        teacher_weights=lineage["teacher_weights"],
        test_rows=lineage["test_rows"],
        measured=figures.conditions,
    )


def _placed(registry: Registry, entry: Entry, run_id: str, replace: bool, scratch: Path) -> str:
    """Register it, let it be champion where it ought to be, and say so."""
    weights = entry.student.model.key
    version = registry.version(weights, run_id, entry.tags, entry.description, lambda: entry.written(scratch))
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


def _objection(entry: Entry, champion: Version | None) -> str | None:
    if misses := entry.rule.misses(entry.standing.student):
        return f"this one {' and '.join(misses)}"
    if champion is None:
        return None
    return Contest(entry.rule, entry.standing, Standing.read(champion.tags)).objection()


def _command(paths: SweepPaths, *options: str) -> str:
    return shlex.join(["kdray", "register", shown(paths.root), *options])
