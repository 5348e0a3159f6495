"""Where a result comes from: the user, the command, the versions and the commit."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from kdray.safe_text.secrets import mask_command
from kdray.storage.owner import user_name


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result may depend on, as tags."""
    packages = ("kdray", "ray", "torch", "transformers", "datasets", "optuna", "mlflow")
    return {
        "version.python": platform.python_version(),
        **{f"version.{name}": metadata.version(name) for name in packages},
    }


def git_commit(folder: Path) -> str | None:
    """The commit of this folder's working tree, with `-dirty` if files differ from it; None outside a repository."""
    # --exclude=* ignores all tags, so the answer is always the hash.
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(  # noqa: S603 - a list of words, no shell
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def command_line(arguments: Sequence[str]) -> str:
    """The command that a user types to start a process with these arguments (`sys.argv`)."""
    program = Path(arguments[0])
    command = ["python", arguments[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*command, *arguments[1:]])


def describe_origin() -> dict[str, str]:
    """The command of this process, the commit of the working directory, and the versions."""
    commit = git_commit(Path.cwd())
    origin = {"command": command_line(mask_command(sys.argv))} | ({"commit": commit} if commit else {})
    return origin | {name.removeprefix("version."): version for name, version in versions().items()}


def source_tags() -> dict[str, str]:
    """The user and the script, in the tags that MLflow's user interface shows."""
    return {
        "mlflow.user": user_name(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
    }
