"""What the ledger knows about the sweep in MLflow: the key in a tag of all its runs, their ids, and the quality."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from kdray.search.ledger import Ledger
from kdray.tracking.tracker import RunNumber

_KEY, _RUN = "mlflow_key", "mlflow_run"


@dataclass(frozen=True)
class TrackedSweep:
    """A sweep, as a tracker knows it."""

    key: str
    """The value of a tag that all runs of the sweep have."""
    quality: str
    """The name of the metric that the trials are compared by."""


def tracked_sweep(ledger: Ledger) -> TrackedSweep:
    """The sweep of this ledger. Early stopping compares its trials by the first objective."""
    return TrackedSweep(key=sweep_key(ledger), quality=ledger.objectives[0])


def sweep_key(ledger: Ledger) -> str:
    """The key of this sweep's runs, the same in all its sessions; creates it at the first call."""
    if ledger.attr(_KEY) is None:
        ledger.set_attr(_KEY, uuid.uuid4().hex)
    return str(ledger.attr(_KEY))


def sweep_run_id(ledger: Ledger) -> str | None:
    """The id of the sweep's own run; None while it is not known."""
    run_id: str | None = ledger.attr(_RUN)
    return run_id


def save_run_ids(ledger: Ledger, run_ids: Mapping[RunNumber, str]) -> None:
    """Write the known run ids into the ledger."""
    for number, run_id in run_ids.items():
        if number is None:
            if sweep_run_id(ledger) != run_id:
                ledger.set_attr(_RUN, run_id)
        # Larger numbers are runs outside the search (controls and confirmation), which the ledger does not know.
        elif number < len(ledger) and ledger[number].run_id != run_id:
            ledger.set_run_id(number, run_id)
