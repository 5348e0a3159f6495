"""What every benchmark says in the same way: the machine it ran on, and its one JSON line."""

import json
import os
import platform
import time
from importlib import metadata
from typing import Any

import torch

from kdray.evaluation.measuring import hardware_name

VERSIONS = ("kdray", "ray", "torch", "transformers", "optuna", "mlflow")


def machine() -> dict[str, Any]:
    """Processor (or GPU), cores, torch threads of this process, versions; a `load` near the cores spoils any figure."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "processor": hardware_name(device),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
        "date": time.strftime("%Y-%m-%d"),
    }


def say(claim: str, ratio: float, figures: dict[str, Any], on: dict[str, Any]) -> None:
    """Print the one line. `on` is `machine()` as it was before the measuring began."""
    print(json.dumps({"claim": claim, "ratio": round(ratio, 4), **_rounded(figures), "machine": on}), flush=True)


def _rounded(value: Any) -> Any:
    """Floats with five digits that count."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {name: _rounded(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
    return value
