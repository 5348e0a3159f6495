"""Where a result comes from: the user, the command, the versions and the commit."""

import os
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
_NO_TRANSPORT = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"}
"""Git gets no object from elsewhere: a repository that lacks one may name a program as the way to get it."""


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
    compares files. Such a program is not run: the monitor of files is switched off, no missing object is fetched, and
    in a repository with filters of its own the files are not compared.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    # Without a pattern: Git has settings in each repository, so no output means that it could not read them.
    settings = _git(folder, "config", "--show-scope", "--includes", "--name-only", "--list")
    if commit is None or settings is None or any(_is_own_filter(line) for line in settings.splitlines()):
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


def _is_own_filter(setting: str) -> bool:
    """Whether a line with the scope and the name of a setting is that of a filter which the repository defines."""
    scope, _, name = setting.partition("\t")
    return scope.startswith(_OWN_SCOPES) and name.startswith("filter.")


def _git(folder: Path, *arguments: str) -> str | None:
    """What a Git command prints, without its last line feed; None if it fails or does not end within 10 s."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(  # noqa: S603 - a list of words, no shell
            command, capture_output=True, timeout=10, check=True, env={**os.environ, **_NO_TRANSPORT}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Names in a repository are bytes, which need not be valid text.
    return result.stdout.decode(errors="replace").strip() or None
