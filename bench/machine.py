"""What all benchmarks print in the same form: the machine that they ran on, and one line of JSON."""

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
    """The processor (or GPU), its cores, the torch threads of this process, and versions.

    A `load` near the number of cores makes every figure useless.
    """
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


def print_result(claim: str, ratio: float, figures: dict[str, Any], on: dict[str, Any]) -> None:
    """Print the line of JSON. `on` is what `machine()` returned before the first measurement."""
    print(json.dumps({"claim": claim, "ratio": round(ratio, 4), **_rounded(figures), "machine": on}), flush=True)


def _rounded(value: Any) -> Any:
    """The value with its floats rounded to five significant digits."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {name: _rounded(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
    return value
