"""Helpers for the tests of the cluster files: read the files, run their scripts, and write stand-ins for programs."""

import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("KDRAY_SHARED_DATA", ROOT.parent / "shared" / "data"))
"""Data that is not part of the project: beside it, or in the folder that the variable names."""
RAYJOB = "deploy/kuberay-rayjob.yaml"
AWS_REGION = "eu-central-1"
USER_NETWORK = "203.0.113.7/32"
"""The network of the user, from the addresses that are reserved for documentation."""


def read_text(name: str) -> str:
    """The text of a file of the project."""
    return (ROOT / name).read_text()


def load_yaml(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(read_text(name))
    return config


def load_documents(name: str) -> list[dict[str, Any]]:
    """The documents of a YAML file with several documents."""
    return list(yaml.safe_load_all(read_text(name)))


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / name), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def write_program(path: Path, *lines: str) -> None:
    """Write a stand-in for a program that a script calls, as a Bash script with these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


def make_account(capsys: pytest.CaptureFixture[str], ssh_from: str = USER_NETWORK) -> list[str]:
    """Make the resources that cluster.yaml refers to. Returns the lines that the script prints for cluster.yaml."""
    run_account_script("--region", AWS_REGION, "--ssh-from", ssh_from, "--bucket", "mine")
    return capsys.readouterr().out.splitlines()[1:]


def account_script() -> dict[str, Any]:
    """The functions of deploy/aws_account.py, which is no module of a package."""
    return runpy.run_path(str(ROOT / "deploy" / "aws_account.py"))


def run_account_script(*arguments: str) -> None:
    """Run deploy/aws_account.py with these arguments."""
    account_script()["main"](list(arguments))


def fill_in(lines: list[str]) -> dict[str, Any]:
    """cluster.yaml with these lines instead of the lines that are marked EDIT."""
    remaining = iter(lines)
    filled = [next(remaining) if "# EDIT" in line else line for line in read_text("cluster.yaml").splitlines()]
    config: dict[str, Any] = yaml.safe_load("\n".join(filled))
    return config


def rayjob() -> dict[str, Any]:
    """The RayJob among the documents of its file."""
    return load_documents(RAYJOB)[0]


def pinned_versions(name: str = "deploy/constraints.txt") -> dict[str, str]:
    """The version of each package in a file with the packages of nodes, or of the MLflow server."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)", read_text(name), re.MULTILINE))


def assert_is_shell(script: str) -> None:
    """Check that Bash can parse the script. The script is not run."""
    parsed = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10, check=False)
    assert not parsed.returncode, f"{script}\n{parsed.stderr}"
