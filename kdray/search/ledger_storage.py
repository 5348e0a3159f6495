"""Where a ledger is stored: an Optuna journal file, or a database with a URL. Opens it, checks it, and waits for it.

What the ledger records is defined in `ledger`.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError

from kdray.errors import KDRayError, StorageError
from kdray.safe_text.escaping import printable
from kdray.safe_text.secrets import has_secret
from kdray.slots.interrupts import deliver_signal, hold_signals
from kdray.storage.files import replace_file
from kdray.storage.safe_json import open_regular_file
from kdray.storage.sqlite_files import check_sqlite

log = logging.getLogger(__name__)

Location: TypeAlias = Path | str
"""A journal file, or the URL of a database."""
T = TypeVar("T")

CONNECT_S = 10
"""A database that has not answered after this time counts as unreachable."""
BUSY_S = 120
"""How long a write waits for a SQLite file that another process has locked, before it is tried again."""
OUTAGE_S = 600.0
"""How long a sweep waits for a database that is away while the sweep runs."""
INTERRUPTED_S = 10.0
"""How long a sweep waits for such a database once the sweep was interrupted."""
MAX_LINE_BYTES = 32 << 20
"""The longest line of a journal that is read; a line has the settings and costs of one trial, or one evaluation."""
DRIVERS_WITH_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")
"""The database drivers that have an option for how long to try to connect."""


def ledger_url(url: str) -> str:
    """The URL as it is stored in the settings: a SQLite file has its full path.

    Raises ValueError for a URL of no database, for a database that does not outlive the process, and for a URL with a
    password, which would be written into the sweep's folder, MLflow and the log.
    """
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, ValueError):
        raise ValueError(
            f"no URL of a database that Optuna supports begins with {url.partition(':')[0]!r}; write it as "
            "sqlite:///folder/ledger.db or postgresql://user@host/database."
        ) from None
    if has_secret(url):
        raise ValueError(
            "there is a password in the URL, or an option that may be a secret, and it would be written into "
            "sweep.json, MLflow and the log. Leave it out: PostgreSQL's client finds it in PGPASSWORD or ~/.pgpass, "
            "MySQL's in ~/.my.cnf (?read_default_file=~/.my.cnf)."
        )
    if parsed.get_backend_name() != "sqlite":
        return url
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("a database in memory is lost when the process ends; name a file: sqlite:///folder/ledger.db.")
    return str(parsed.set(database=str(Path(parsed.database).expanduser().absolute())))


def open_storage(location: Location, *, writing: bool) -> BaseStorage:
    """Optuna's storage at this location. For writing, it is created if missing, and a torn last line is cut off.

    Raises StorageError when the storage cannot be used; for a damaged journal the message names the line.
    """
    with name_ledger_errors(location):
        if isinstance(location, str):
            return get_storage(_rdb_storage(location, writing))
        if not location.exists() and not writing:
            raise StorageError(f"ledger {location}: no such file; the sweep has no trials yet.")
        if writing:
            location.parent.mkdir(parents=True, exist_ok=True)
            # A killed process leaves its lock file; Optuna would wait 30 s for it. The caller owns the folder, so no
            # living process holds the lock.
            location.with_name(f"{location.name}.lock").unlink(missing_ok=True)
            location.touch()
        _check_lines(location, cut=writing)
        return JournalStorage(JournalFile(location))


@contextmanager
def name_ledger_errors(location: Location) -> Iterator[None]:
    """Turn the errors of a ledger that is opened or read into a StorageError with the ledger, the cause and a remedy.

    A database that is away and a file that somebody else wrote make Optuna and SQLAlchemy raise errors of many kinds.
    """
    try:
        yield
    except KDRayError:
        raise
    except Exception as error:
        raise StorageError(
            f"ledger {location}: cannot be used ({_cause(error)}). {_remedy(location, error)}"
        ) from error


def retry_while_away(location: Location, change: Callable[[], T], patience_s: float = OUTAGE_S) -> T:
    """Make a change, and return what it returns. While the database is locked or away, the change is tried again.

    A change must be harmless when it is made twice: a change whose answer was lost may have been made.
    Raises StorageError when the database reports another error, or is still away after `patience_s` seconds.
    """
    deadline = time.monotonic() + patience_s
    for pause_s in chain((0.1, 0.5, 1, 2, 4), repeat(8)):
        try:
            # When a signal interrupts Optuna as it releases its file lock, Optuna reports a lost journal.
            with hold_signals() as interrupted:
                return change()
        except (StorageInternalError, OperationalError, InterfaceError) as error:
            # hold_signals delivers a signal at the end of its block, but not when the block raises an error.
            if interrupted.is_set():
                deadline = min(deadline, time.monotonic() + INTERRUPTED_S)
                deliver_signal()
            is_away = any(isinstance(each, OperationalError | InterfaceError) for each in (error, error.__cause__))
            if not is_away or time.monotonic() > deadline:
                raise StorageError(
                    f"ledger {location}: could not be written ({_cause(error)}). What was written before is safe. "
                    "Solve this problem; the same command then continues from there."
                ) from error
            log.warning("ledger %s: %s; trying again", location, _cause(error))
            time.sleep(pause_s)
    raise AssertionError("unreachable: the pauses never end")


def rewrite_choices(location: Location, study_id: int, longer: Mapping[str, BaseDistribution]) -> BaseStorage:
    """Write these longer lists of values into the trials of a study. Returns the storage, opened again.

    Optuna keeps one list for each setting of a study, and has no way to change it. It stores a value as its index in
    the list, so the values of the old list must come first in the new list.
    """
    if isinstance(location, Path):
        _rewrite_journal(location, longer)
    else:
        _rewrite_database(_rdb_storage(location, writing=True), study_id, longer)
    return open_storage(location, writing=True)


class JournalFile(JournalFileBackend):
    """Optuna's journal file. A write that fails, on a full disk for example, leaves no part of a line in the file."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See JournalFileBackend. Only one process may write at a time. Raises an OSError that names the file."""
        size = self._file.stat().st_size
        try:
            super().append_logs(logs)
        except OSError as error:
            os.truncate(self._file, size)
            raise OSError(error.errno, error.strerror, str(self._file)) from error


def _check_lines(journal: Path, *, cut: bool) -> None:
    """Raise StorageError for a line that is no record. `cut` removes a last line that has no end.

    Optuna stops with an error at such a line, or ignores it if it is the last one.
    """
    complete_bytes = 0
    with open_regular_file(journal) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES), b""), start=1):
            if len(line) == MAX_LINE_BYTES:
                raise StorageError(
                    f"ledger {journal}: line {number} has more than {MAX_LINE_BYTES:,} bytes, and kdray writes no such "
                    "line. Restore the file, or start over with --fresh."
                )
            if not line.endswith(b"\n"):
                # A killed process left it, or another process writes it just now. Optuna would append the next record
                # to this line, and both would be lost.
                if cut:
                    os.truncate(journal, complete_bytes)
                return
            complete_bytes += len(line)
            if not _is_record(line):
                start = printable(line[:60].decode(errors="replace"))
                raise StorageError(
                    f"ledger {journal}: line {number} is damaged: {start!r}. Restore the file, or start over with "
                    f"--fresh. The {number - 1} lines before it are undamaged."
                )


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "op_code" in record


def _rdb_storage(url: str, writing: bool) -> RDBStorage:
    """Optuna's storage in the database. For writing, missing tables and the folder of a SQLite file are created."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        file, options = Path(parsed.database or ""), {"timeout": BUSY_S}
        check_sqlite(file)
        if writing:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()  # SQLite makes files that only their owner may write, whatever the umask allows a team
        elif not file.exists():
            # SQLite would create an empty file.
            raise StorageError(f"ledger {url}: no such file; the sweep has no trials yet.")
    else:
        has_timeout = parsed.get_driver_name() in DRIVERS_WITH_TIMEOUT
        options = {"connect_timeout": CONNECT_S} if has_timeout and "connect_timeout" not in parsed.query else {}
    if parsed.drivername == "postgresql":
        # The default driver of SQLAlchemy 2.0 differs from that of 2.1.
        url = parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    # pool_pre_ping replaces a connection that the server closed, for example because it was restarted.
    engine = {"connect_args": options, "pool_pre_ping": True}
    return RDBStorage(url, engine_kwargs=engine, skip_table_creation=not writing)


def _rewrite_journal(journal: Path, longer: Mapping[str, BaseDistribution]) -> None:
    with replace_file(journal) as temporary, journal.open() as lines, temporary.open("w") as file:
        for line in lines:
            record = json.loads(line)
            known = record.get("distributions", {})
            known |= {name: distribution_to_json(longer[name]) for name in known if name in longer}
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def _rewrite_database(storage: RDBStorage, study_id: int, longer: Mapping[str, BaseDistribution]) -> None:
    change = text(
        "UPDATE trial_params SET distribution_json = :json WHERE param_name = :name"
        " AND trial_id IN (SELECT trial_id FROM trials WHERE study_id = :study)"
    )
    with storage.engine.begin() as connection:
        for name, distribution in longer.items():
            connection.execute(change, {"json": distribution_to_json(distribution), "name": name, "study": study_id})


def _cause(error: BaseException) -> str:
    """The error of the database or the file system that is the cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = " ".join(str(getattr(error, "orig", None) or error).split())
    return printable(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _remedy(location: Location, error: BaseException) -> str:
    """What the user can do about a ledger that cannot be used."""
    if isinstance(error, ImportError):
        return "Install the driver it needs; for PostgreSQL: pip install 'kdray[postgresql]'."
    if isinstance(location, Path) and isinstance(error, OSError):
        return "Give a journal file in a folder you may write to."
    if isinstance(location, Path) or (location.startswith("sqlite") and not isinstance(error, OperationalError)):
        return "kdray has not written this file, or it is damaged. Restore it, or start over with --fresh."
    return (
        "Check that the database is up, and that host, user and database in the URL are right. A password is read from "
        "PGPASSWORD or ~/.pgpass."
    )
