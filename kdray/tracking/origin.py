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

_OWN_SCOPES = ("local", "worktree")
"""The scopes of Git's settings that come from the repository itself; the others belong to the user and the machine."""


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result may depend on, as tags."""
    packages = ("kdray", "ray", "torch", "transformers", "datasets", "optuna", "mlflow")
    return {
        "version.python": platform.python_version(),
        **{f"version.{name}": metadata.version(name) for name in packages},
    }


def git_commit(folder: Path) -> str | None:
    """The commit of this folder's working tree, with `-dirty` if files differ from it; None outside a repository.

    A repository may be a stranger's unpacked folder, whose own configuration names programs that Git runs when it
    compares files. Such a program is not run: the monitor of files is switched off, and in a repository with filters
    of its own the files are not compared.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    filters = _git(folder, "config", "--show-scope", "--includes", "--name-only", "--get-regexp", r"^filter\.") or ""
    if commit is None or any(line.startswith(_OWN_SCOPES) for line in filters.splitlines()):
        return commit
    # Without the submodules: each of them has a configuration of its own.
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return f"{commit}-dirty" if changed else commit


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


def _git(folder: Path, *arguments: str) -> str | None:
    """What a Git command prints, without its last line feed; None if it fails or does not end within 10 s."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(  # noqa: S603 - a list of words, no shell
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
