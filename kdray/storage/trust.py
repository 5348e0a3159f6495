"""Decides which of the addresses that a file remembers may be used: those that the user gave, and files of the storage.

A sweep's folder remembers addresses: the database of the ledger in `sweep.json`, the MLflow store in
`tracking/target.json`. The clients of such an address send it the passwords and tokens of the environment (PGPASSWORD,
~/.pgpass, MLFLOW_TRACKING_TOKEN), and whoever can write into the folder decides what the address is. So an address from
a file is used only if one of these is true:

- it is a SQLite file below the storage;
- the user gives the same address now: with an option, in the sweep that a command runs, or in an environment variable;
- the user gave it to an earlier command: it is a line of `trusted_file()`, which only this user can write.

How the rooms use it:

    LEDGER = AddressKind("ledger", option="--ledger", variable="KDRAY_LEDGER")
    accept_address(url)                                    # where a command receives an address from its user
    check_address(url, paths.settings, paths.storage, LEDGER)  # before an address from a file is used; may raise

An address is compared as a whole, with its query: `?host=` in a query sends a password to another host.
"""

import logging
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from kdray.errors import StorageError
from kdray.safe_text.escaping import printable
from kdray.safe_text.secrets import has_secret

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
"""The size up to which the file of trusted addresses is read."""

_accepted: set[str] = set()
"""The addresses that the user has given to this process."""


@dataclass(frozen=True)
class AddressKind:
    """What addresses of a kind are for, and how a user gives one."""

    what: str
    """A noun for messages, such as `ledger`."""
    option: str
    """The option of the command line, such as `--ledger`."""
    variable: str
    """The environment variable, such as `KDRAY_LEDGER`."""
    remedy: str = "run the same command with {option} {address}"
    """How the user gives it, where another command must do so; it may also contain `{folder}`, that of the file."""


def accept_address(address: str) -> None:
    """Trust an address that the user has just given, in this process and in later commands of this user.

    An address with a secret is not written down, so it is trusted in this process only. So is every address if the file
    of trusted addresses cannot be written, as in a container without a home folder.
    """
    address = _normal(address)
    if address in _accepted:
        return
    known = _read_trusted()
    _accepted.add(address)
    if address in known or not address.isprintable() or has_secret(address):
        return
    try:
        file = trusted_file()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One write to the end of the file: commands that run at the same time lose no address of each other.
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, f"{address}\n".encode())
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:
        log.info("%s is trusted by this command only: %s", address, error)


def check_address(address: str, file: Path, storage: Path, kind: AddressKind) -> None:
    """Raise StorageError if this address, which `file` in this storage remembers, may not be used without the user."""
    given = os.environ.get(kind.variable)
    trusted = {*_accepted, *_read_trusted(), *([_normal(given)] if given else [])}
    if is_below(address, storage) or _normal(address) in trusted:
        return
    # In quotes as a shell needs them: the sentence invites to copy the command, and a file has written the address.
    quoted = shlex.quote(printable(address))
    remedy = kind.remedy.format(option=kind.option, address=quoted, folder=file.parent)
    raise StorageError(
        f"{file}: names the {kind.what} {printable(address)}, which you have not given to kdray on this machine. "
        f"Passwords would be sent there, so it is not used before you confirm it: {remedy}, or set {kind.variable} to "
        "it."
    )


def is_below(address: str, folder: Path) -> bool:
    """Whether the address is a SQLite file below this folder, also after all links are followed."""
    file = _sqlite_file(address)
    return file is not None and file.resolve().is_relative_to(folder.resolve())


def trusted_file() -> Path:
    """The user's file with one trusted address in each line. Raises RuntimeError if the user has no home folder."""
    root = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    if not root.is_absolute():  # a relative one would be another file in each folder; the XDG specification ignores it
        root = Path.home() / ".config"
    return root / "kdray" / "trusted_addresses"


def _read_trusted() -> set[str]:
    """The addresses in the user's file; none if the file is missing, or if other users could have written it."""
    try:
        descriptor = os.open(trusted_file(), os.O_RDONLY | os.O_NOFOLLOW)
    except (OSError, RuntimeError):
        return set()
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("%s: other users can write it, so it is not used. Run: chmod go-w on it.", trusted_file())
            return set()
        lines = os.read(descriptor, MAX_FILE_BYTES).decode(errors="replace").splitlines()
    finally:
        os.close(descriptor)
    return {line for line in lines if line}


def _normal(address: str) -> str:
    """The form in which two addresses are compared: the full path of a file, and no slash at the end."""
    file = _sqlite_file(address)
    return f"sqlite:///{file}" if file else address.strip().rstrip("/")


def _sqlite_file(address: str) -> Path | None:
    """The full path of the file in the URL of a SQLite database; None for any other address.

    A query, a name that begins with `file:` or an encoded character may give the driver another file than the path.
    """
    match = re.fullmatch(r"sqlite(?:\+pysqlite)?:///(?!file:)([^?%\0]+)", address.strip())
    return Path(match[1]).absolute() if match else None
