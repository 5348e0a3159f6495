"""A finished sweep as the value that it was run from, so that another rule can choose from it."""

from collections.abc import Mapping
from typing import Any

from kdray.choice.decision import Decision
from kdray.choice.rule import Choose
from kdray.errors import StorageError
from kdray.search.claim import read_ledger, read_settings
from kdray.storage.paths import SweepPaths, display_path
from kdray.storage.records import read_record
from kdray.sweep import Sweep
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import TrackingTarget


def read_finished_sweep(paths: SweepPaths, place: SweepPaths, tracking_uri: str | None = None) -> Sweep:
    """The sweep whose records lie in `paths`, with as many trials as it has; `place` is where a person sees it.

    It is tracked where it was, or at `tracking_uri`. Raises StorageError where there is no sweep, or one that has not
    ended; SpecError where the remembered address had a secret, which was not written down.
    """
    identity = read_settings(paths)
    records = read_ledger(paths).records()
    running = sum(record.state == "running" for record in records)
    decision = read_record(Decision, paths.choice)
    if running or decision is None:
        why = f"{running} of its trials have not ended" if running else "nothing was chosen so far"
        raise StorageError(f"{display_path(place.root)}: {why}. Let the sweep end first: run it again as it was run.")
    target = TrackingTarget.read(paths)
    return Sweep.from_identity(
        identity,
        search={**identity["search"], "trials": len(records)},
        choose=decision.asked.choose,
        confirm=decision.asked.confirm,
        tracking=target.tracking_at(tracking_uri) if target else Tracking(enabled=False),
    )


def change_rule(rule: Choose, changes: Mapping[str, Any]) -> Choose:
    """The rule with these changes.

    Limits (`at_most`) and the knee are another question than the smallest student, so a rule that asks for one of them
    keeps nothing of the old rule but `otherwise`. A rule that newly asks for the smallest of something gets the share
    of the teacher's quality that such rules keep by default.
    """
    if changes.keys() & {"at_most", "knee"}:
        return Choose(**{"otherwise": rule.otherwise, **changes})
    newly_smallest = "smallest" in changes and rule.smallest is None and rule.retention is None
    kept = rule.model_dump(exclude={"retention"} if newly_smallest else None)
    if "smallest" in changes:
        kept["knee"] = False
    return Choose(**{**kept, **changes})
