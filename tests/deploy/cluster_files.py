"""The files of the clusters, as the tests of each of them read them; and stand-ins for the programs that they call."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("KDRAY_SHARED_DATA", ROOT.parent / "shared" / "data"))
"""Data that does not travel with the project: beside it, or where the variable says."""
RAYJOB = "deploy/kuberay-rayjob.yaml"
MINE = "203.0.113.7/32"
"""The network that a user gives: one of those that documents may use."""


def text(name: str) -> str:
    return (ROOT / name).read_text()


def loaded(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(text(name))
    return config


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text(name)))


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / name), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def program(path: Path, *lines: str) -> None:
    """A stand-in for a program that a script calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


def rayjob() -> dict[str, Any]:
    """The RayJob among the documents of its file."""
    return documents(RAYJOB)[0]


def pins() -> dict[str, str]:
    """The version of each package that nodes install."""
    lines = [line for line in text("deploy/constraints.txt").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def assert_shell(script: str) -> None:
    """Bash can read it; nothing is run."""
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10, check=False)
    assert not checked.returncode, f"{script}\n{checked.stderr}"
