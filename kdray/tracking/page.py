"""What a person sees of a sweep in MLflow's user interface: its command, its page, the columns of the runs table."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from kdray.evaluation.formatting import settings_in_order
from kdray.evaluation.trial_record import TrialRecord
from kdray.storage.paths import StoragePaths
from kdray.tracking.settings import default_uri

_SHOWN_METRICS = ("accuracy", "retention", "latency_ms", "speedup", "parameters")


def ui_command(storage: Path, port: int = 5000) -> list[str]:
    """The command line that opens MLflow's UI on this storage, for this machine only."""
    paths = StoragePaths(storage.absolute())
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        default_uri(paths),
        "--default-artifact-root",
        paths.tracking_artifacts.as_uri(),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]


def page_of(experiment_id: str, sweep: str) -> str:
    """The part of an address, behind the server's, that shows the trials of this sweep side by side."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={quote(sweep)}&workflowType=machine_learning"


def columns_of(record: TrialRecord) -> tuple[str, ...]:
    """A column for each searched setting and each number worth comparing that this trial has."""
    metrics = record.metrics
    on_cpu = ("cpu_latency_ms",) if metrics.get("cpu_latency_ms") != metrics.get("latency_ms") else ()
    shown = [name for name in (*_SHOWN_METRICS, *on_cpu) if name in metrics]
    return (
        *_column("metrics", shown),
        *_column("params", settings_in_order(record.params)),
        *_column("tags", ["kdray.status"]),
    )


def shared_view(sweep: str, columns: Sequence[str]) -> tuple[str, str]:
    """The experiment's tag, and its value, that the UI's own Share button would store: the trials of this sweep with
    these columns, the best first. In order of time the UI would show the sweep's own run alone, with all folded below.
    """
    order = ["0", "attributes.`Run Name`", "runDateAndNestInfo", "duration", *columns]
    widths = {name: 40 + 8 * len(name.split("`")[1]) for name in columns}  # pixels: the heading can be read in full
    state = {
        "columnOrder": order,
        "columnWidths": {"0": 50, "attributes.`Run Name`": 220, "runDateAndNestInfo": 140, "duration": 90, **widths},
        "searchFilter": f"tags.`kdray.sweep` = '{sweep}' and tags.`kdray.role` = 'search'",
        "orderByKey": "metrics.`retention`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
    }
    return f"mlflow.sharedViewState.{sweep}", json.dumps(state)


def _column(kind: str, names: Iterable[str]) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]
