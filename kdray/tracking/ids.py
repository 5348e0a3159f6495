"""What the ledger knows of MLflow: the key that all runs of the sweep bear, and their ids."""

import uuid
from collections.abc import Mapping

from kdray.search.ledger import Ledger

_KEY, _RUN = "mlflow_key", "mlflow_run"


def sweep_key(ledger: Ledger) -> str:
    """The key of this sweep's runs, the same in all its sessions."""
    if ledger.attr(_KEY) is None:
        ledger.set_attr(_KEY, uuid.uuid4().hex)
    return str(ledger.attr(_KEY))


def sweep_run_id(ledger: Ledger) -> str | None:
    """The id of the sweep's own run, where it is known."""
    run_id: str | None = ledger.attr(_RUN)
    return run_id


def save_run_ids(ledger: Ledger, run_ids: Mapping[int | None, str]) -> None:
    """Write the ids of the runs that are known by now into the ledger: trial number -> id, None -> the sweep's."""
    for number, run_id in run_ids.items():
        if number is None:
            if sweep_run_id(ledger) != run_id:
                ledger.set_attr(_RUN, run_id)
        elif number < len(ledger) and ledger[number].run_id != run_id:  # others are no trials of the search
            ledger.set_run_id(number, run_id)
