"""Reads a finished sweep as a Sweep value from its files, so that another rule can choose from it."""

from collections.abc import Mapping
from typing import Any

from kdray.choice.decision import Decision
from kdray.choice.rule import Choose
from kdray.errors import StorageError
from kdray.search.claim import read_ledger, read_settings
from kdray.stages.reading import unreadable_settings
from kdray.storage.paths import SweepPaths, display_path
from kdray.storage.records import read_record
from kdray.sweep import Sweep
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import TrackingTarget


def read_finished_sweep(paths: SweepPaths, original: SweepPaths, tracking_uri: str | None = None) -> Sweep:
    """The sweep whose records are in `paths`. Its budget is the number of trials that it has: no trial is added.

    `paths` may be a copy of a sweep in a bucket; messages show `original`, the sweep's own paths. The sweep is tracked
    where it was tracked before, or at `tracking_uri`. Raises StorageError if there is no sweep, or if it has not ended;
    SpecError if the address of its MLflow server contains a secret, because secrets are not stored.
    """
    identity = read_settings(paths)
    records = read_ledger(paths).records()
    running = sum(record.state == "running" for record in records)
    decision = read_record(Decision, paths.choice)
    if running or decision is None:
        reason = f"{running} of its trials have not ended" if running else "it has made no choice yet"
        raise StorageError(
            f"{display_path(original.root)}: {reason}. Let the sweep end first: run the same command again."
        )
    target = TrackingTarget.read(paths)
    return _sweep_of(
        identity,
        paths,
        search={**identity["search"], "trials": len(records)},
        choose=decision.asked.choose,
        confirm=decision.asked.confirm,
        tracking=target.tracking_at(tracking_uri, original) if target else Tracking(enabled=False),
    )


def _sweep_of(identity: Mapping[str, Any], paths: SweepPaths, **fields: Any) -> Sweep:
    """The sweep with this identity, which was read from sweep.json. Raises StorageError if it is none."""
    try:
        return Sweep.from_identity(identity, **fields)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise unreadable_settings(paths, error) from error


def change_rule(rule: Choose, changes: Mapping[str, Any]) -> Choose:
    """The rule with these changes.

    A rule by limits (`at_most`) or by the knee answers another question than a rule for the smallest student. So it
    keeps only `otherwise` of the old rule. A rule that gets `smallest` for the first time, and had no `retention`, gets
    the default retention of such rules.
    """
    if changes.keys() & {"at_most", "knee"}:
        return Choose(**{"otherwise": rule.otherwise, **changes})
    newly_smallest = "smallest" in changes and rule.smallest is None and rule.retention is None
    former = rule.model_dump(exclude={"retention"} if newly_smallest else None)
    if "smallest" in changes:
        former["knee"] = False
    return Choose(**{**former, **changes})
