"""Libraries send nothing about their use, and MLflow's server runs no jobs, unless the user wants them to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY, MLFLOW_SERVER_ENABLE_JOB_EXECUTION

from kdray.tracking.page import ui_environment
from tests.cli.test_cli import kdray


def environment_after_import(**variables: str) -> dict[str, str]:
    """The environment of a new process with these variables that has imported kdray."""
    own = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    script = "import json, os, kdray; print(json.dumps(dict(os.environ)))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**own, **variables})
    environment: dict[str, str] = json.loads(done.stdout)
    return environment


def test_the_libraries_see_that_telemetry_is_off() -> None:
    assert MLFLOW_DISABLE_TELEMETRY.get() is True
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY is True


def test_the_choice_of_the_user_stays() -> None:
    environment = environment_after_import(MLFLOW_DISABLE_TELEMETRY="false")
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert environment_after_import(HF_HUB_DISABLE_TELEMETRY="0")["HF_HUB_DISABLE_TELEMETRY"] == "0"


def test_mlflows_server_runs_no_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = tmp_path / "environment.json"
    script = f"import json, os, pathlib; pathlib.Path({str(seen)!r}).write_text(json.dumps(dict(os.environ)))"
    monkeypatch.setattr("kdray.cli.viewing.ui_command", lambda storage, port: [sys.executable, "-c", script])
    assert kdray("ui", tmp_path).code == 0
    name = MLFLOW_SERVER_ENABLE_JOB_EXECUTION.name
    assert MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get() is True  # MLflow's own default
    monkeypatch.setenv(name, json.loads(seen.read_text())[name])
    assert MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get() is False
    monkeypatch.setenv(name, "true")
    assert ui_environment()[name] == "true"


def test_the_user_interface_opens_no_database_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mlflow.db").symlink_to(tmp_path / "mail.db")
    done = kdray("ui", tmp_path / "storage")
    assert done.code == 2
    assert "is a link to" in done.err
