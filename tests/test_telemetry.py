"""The libraries report nothing about their use and download no programs, unless the user has said otherwise."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import kdray, huggingface_hub.constants, mlflow.environment_variables
print(huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY, mlflow.environment_variables.MLFLOW_DISABLE_TELEMETRY.get())
"""
KERNELS = """
import kdray
from transformers.integrations import hub_kernels
print(hub_kernels._TRANSFORMERS_USE_HUB_KERNELS)
"""
VARIABLES = ("HF_HUB_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "True True"), ({"HF_HUB_DISABLE_TELEMETRY": "0", "MLFLOW_DISABLE_TELEMETRY": "false"}, "False False")],
)
def test_hugging_face_and_mlflow_report_nothing_unless_the_user_says_so(
    settings: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | settings
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(("settings", "expected"), [({}, "OFF"), ({"USE_HUB_KERNELS": "YES"}, "YES")])
def test_transformers_downloads_no_kernels_unless_the_user_says_so(settings: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "USE_HUB_KERNELS"} | settings
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == expected
