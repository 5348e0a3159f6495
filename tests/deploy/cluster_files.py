"""Helpers for the tests of the cluster files: read the files, run their scripts, and write stand-ins for programs."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("KDRAY_SHARED_DATA", ROOT.parent / "shared" / "data"))
"""Data that is not part of the project: beside it, or in the folder that the variable names."""
RAYJOB = "deploy/kuberay-rayjob.yaml"
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


def rayjob() -> dict[str, Any]:
    """The RayJob among the documents of its file."""
    return load_documents(RAYJOB)[0]


def pinned_versions() -> dict[str, str]:
    """The version of each package that nodes install."""
    lines = [line for line in read_text("deploy/constraints.txt").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def assert_is_shell(script: str) -> None:
    """Check that Bash can parse the script. The script is not run."""
    parsed = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10, check=False)
    assert not parsed.returncode, f"{script}\n{parsed.stderr}"
