"""What protects a Ray that kdray starts on this machine: token mode, a token of its own, and a private folder.

Ray's servers listen on all network interfaces, and no setting of Ray limits them to the loopback interface. Without
token mode, everyone who reaches such a port can run programs as this user. Ray's own default writes the token for all
users of the machine to read, and gives its folder, where logs, sockets and spilled objects are, the mode 0777.
"""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdray.slots.ray_internals import refresh_authentication
from kdray.storage.files import scratch_folder

AUTH_MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""The environment variables by which Ray's processes learn whether requests need a token, and which one."""

USAGE_STATS = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Ray reports nothing about its use, unless the user has set this variable."""

MOST_ROOT_BYTES = 14
"""The longest path below which a private folder is made.

The path of a Unix socket has at most 107 bytes on Linux and 103 on macOS. `/kdray-scratch-????????/r` has 25 of them,
and Ray adds up to 64: `/session_2026-11-27_11-00-00_000000_4194304/sockets/plasma_store`.
"""

USERS_TOKEN = Path(".ray") / "auth_token"
"""The user's token for clusters, below the home folder."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder for Ray's own files that only this user can enter, with Ray's token mode set for the block.

    A token of its own is in the folder, so that the user's token for clusters is neither made nor used here. Variables
    that the user has set count: RAY_AUTH_MODE=disabled gives a Ray without a token, and RAY_AUTH_TOKEN or
    RAY_AUTH_TOKEN_PATH give another token. After the block, the environment is as before, and the folder is deleted.
    """
    with scratch_folder(_root()) as folder:
        settings = {AUTH_MODE: "token"}
        if TOKEN not in os.environ and TOKEN_PATH not in os.environ:
            settings[TOKEN_PATH] = str(_write_token(folder / "token"))
        with _defaults_in_environment(settings):
            # Ray gives the folder that it gets the mode 0777. Nobody else can enter the folder above it.
            yield folder / "r"


def close_token(note: Callable[[str], None]) -> None:
    """Let only this user read the user's token for clusters. `ray get-auth-token` writes it with mode 0644.

    `note` is called with a sentence if other users could read it.
    """
    token = Path.home() / USERS_TOKEN
    try:
        mode = token.stat().st_mode & 0o777
        if not mode & 0o077:
            return
        token.chmod(0o600)
    except FileNotFoundError:
        return
    except OSError as error:
        note(f"{token}: other users of this machine may read it, and its mode cannot be changed ({error.strerror}).")
        return
    note(
        f"{token}: its mode was {mode:o} and is 600 now. If others use this machine, make a new token "
        "(ray get-auth-token --generate), because they could read this one."
    )


def _root() -> Path:
    """The folder for temporary files: RAY_TMPDIR or the system's; /tmp where their paths are too long for sockets."""
    root = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if root.is_dir() and len(os.fsencode(root)) <= MOST_ROOT_BYTES:
        return root
    return Path("/tmp")  # noqa: S108 - the folder that is made in it is private


def _write_token(path: Path) -> Path:
    """Write a new token into a file that only this user can read, from its first moment on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))  # 256 bits, as Ray's own tokens have
    return path


@contextmanager
def _defaults_in_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that have no value yet, for this process, for Ray's loaded copy of them, and for its children.

    Without the end of the block, a later call in this process could not join a cluster that has no token.
    """
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    refresh_authentication()
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        refresh_authentication()
