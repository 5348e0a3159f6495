"""A finished sweep as the value that it was run from, so that its choice can be made again by another rule."""

from collections.abc import Mapping
from typing import Any

from kdray.choice.rule import Choose
from kdray.errors import StorageError
from kdray.search.claim import ledger_in, settings_in
from kdray.stages.choosing import Asked
from kdray.storage.paths import SweepPaths, shown
from kdray.sweep import Sweep
from kdray.tracking.settings import Tracking
from kdray.tracking.spool import Target


def finished(paths: SweepPaths, place: SweepPaths, tracking_uri: str | None = None) -> Sweep:
    """The sweep whose records lie in `paths`, with as many trials as it has; `place` is what it is called.

    It is tracked where it was, or at another address. Raises StorageError where there is no sweep, or one that has not
    ended; SpecError where that address had a secret, which was not written down.
    """
    identity = settings_in(paths)
    records = ledger_in(paths).records()
    running = sum(record.state == "running" for record in records)
    if running or not paths.choice.exists():
        why = f"{running} of its trials have not ended" if running else "nothing was chosen so far"
        raise StorageError(f"{shown(place.root)}: {why}. Let the sweep end first: run it again as it was run.")
    asked, target = Asked.read(paths), Target.read(paths)
    return Sweep.identified(
        identity,
        search={**identity["search"], "trials": len(records)},
        choose=asked.choose,
        confirm=asked.confirm,
        tracking=target.tracking_at(tracking_uri) if target else Tracking(enabled=False),
    )


def ruled(rule: Choose, changes: Mapping[str, Any]) -> Choose:
    """The rule with these changes; whoever asks for limits or the knee asks anew.

    So does who asks for the smallest of something where nothing was to be smallest: it keeps what a rule of that kind
    keeps by itself.
    """
    if changes.keys() & {"at_most", "knee"}:
        return Choose(**{"otherwise": rule.otherwise, **changes})
    anew = "smallest" in changes and rule.smallest is None and rule.retention is None
    kept = rule.model_dump(exclude={"retention"} if anew else None) | ({"knee": False} if "smallest" in changes else {})
    return Choose(**{**kept, **changes})
