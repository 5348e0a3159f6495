"""MLflow's user interface: the command that starts it, the page of a sweep, and the columns of the runs table."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from kdray.evaluation.formatting import settings_in_order
from kdray.evaluation.pareto import direction
from kdray.evaluation.trial_record import TrialRecord
from kdray.forms.metrics import FORM_SPEEDUPS
from kdray.storage.paths import StoragePaths
from kdray.tracking.settings import default_uri

_OTHER_METRICS = ("retention", "latency_ms", "speedup", *FORM_SPEEDUPS.values(), *FORM_SPEEDUPS, "parameters")
"""The metrics with a column, in this order, behind the metric that the trials are compared by."""


def ui_command(storage: Path, port: int = 5000) -> list[str]:
    """The command line that starts MLflow's server on this storage, on the loopback interface only."""
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


def ui_environment() -> dict[str, str]:
    """The environment of MLflow's server: this process's, without MLflow's jobs unless the user has asked for them.

    Otherwise the server starts processes that wait for jobs, and everybody who can reach the port can send some.
    """
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}


def page_path(experiment_id: str, sweep: str) -> str:
    """The path and query of the page that compares the trials of this sweep, without the server's address."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={quote(sweep)}&workflowType=machine_learning"


def columns_of(record: TrialRecord, quality: str) -> tuple[str, ...]:
    """The columns that this trial has values for: the metrics to compare, the searched settings, the status.

    `quality` is the name of the metric that the trials are compared by.
    """
    metrics = record.metrics
    # On a CPU slot both latencies are the same number, which needs one column only.
    on_cpu = ("cpu_latency_ms",) if metrics.get("cpu_latency_ms") != metrics.get("latency_ms") else ()
    names = [name for name in dict.fromkeys((quality, *_OTHER_METRICS, *on_cpu)) if name in metrics]
    return (
        *_columns("metrics", names),
        *_columns("params", settings_in_order(record.params)),
        *_columns("tags", ["kdray.status"]),
    )


def shared_view(sweep: str, columns: Sequence[str], quality: str) -> tuple[str, str]:
    """Name and value of the experiment's tag that defines the view: the trials of this sweep, the best quality first.

    It has the format that the Share button of MLflow's UI stores. Without it the UI sorts by time and shows only the
    sweep's own run, with the trials folded below it.
    """
    order = ["0", "attributes.`Run Name`", "runDateAndNestInfo", "duration", *columns]
    widths = {name: 40 + 8 * len(name.split("`")[1]) for name in columns}  # pixels; fits the heading
    state = {
        "columnOrder": order,
        "columnWidths": {"0": 50, "attributes.`Run Name`": 220, "runDateAndNestInfo": 140, "duration": 90, **widths},
        "searchFilter": f"tags.`kdray.sweep` = '{sweep}' and tags.`kdray.role` = 'search'",
        "orderByKey": f"metrics.`{quality}`",
        "orderByAsc": direction(quality) == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
    }
    return f"mlflow.sharedViewState.{sweep}", json.dumps(state)


def _columns(kind: str, names: Iterable[str]) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]
