"""Where a result comes from: who ran what, with which versions, from which commit."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from kdray.storage.owner import user_name
from kdray.tracking.settings import mask_secrets


def versions() -> dict[str, str]:
    """What a result may depend on, as tags: the Python and the packages."""
    packages = ("kdray", "ray", "torch", "transformers", "datasets", "optuna", "mlflow")
    return {
        "version.python": platform.python_version(),
        **{f"version.{name}": metadata.version(name) for name in packages},
    }


def git_commit(folder: Path) -> str | None:
    """The commit checked out in this folder, with `-dirty` where files differ from it; None outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def command_line(arguments: Sequence[str]) -> str:
    """What a person types for a process with these arguments."""
    program = Path(arguments[0])
    said = ["python", arguments[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*said, *arguments[1:]])


def describe_origin() -> dict[str, str]:
    """The command, the commit and the versions, for the record."""
    commit = git_commit(Path.cwd())
    known = {"command": mask_secrets(command_line(sys.argv))} | ({"commit": commit} if commit else {})
    return known | {name.removeprefix("version."): version for name, version in versions().items()}


def source_tags() -> dict[str, str]:
    """The user and the script, as MLflow's page shows them."""
    return {
        "mlflow.user": user_name(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
    }
