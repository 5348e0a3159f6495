"""Where a ledger is kept: an Optuna journal file, or a database by its URL; opened, checked, and waited for.

What stands in it is the ledger's business.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
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

from kdray.errors import StorageError
from kdray.slots.interrupts import deliver_signal, hold_signals
from kdray.storage.files import replace_file

log = logging.getLogger(__name__)

Where: TypeAlias = Path | str
"""A journal file, or the URL of a database."""
T = TypeVar("T")

CONNECT_S = 10
"""A database that has not answered by then cannot be reached."""
BUSY_S = 120
"""How long another process may hold a SQLite file before the write is given up and begun again."""
OUTAGE_S = 600.0
"""How long a sweep waits for a database that went away while it ran."""
INTERRUPTED_S = 10.0
"""How long it waits once somebody has stopped it."""
TIMED = ("psycopg", "psycopg2", "pymysql", "mysqldb")
"""The drivers that can be told how long to try to connect."""
SECRETS = ("password", "passwd", "sslpassword")


def ledger_url(url: str) -> str:
    """The URL as it is kept: a SQLite file by its full path.

    Raises ValueError for what is no URL of a database, for a database that would not last, and for a password, which
    would be written into the sweep's folder, MLflow and the log.
    """
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, ValueError):
        raise ValueError(
            f"{url.partition(':')[0]!r} begins no URL of a database that Optuna knows; write it as "
            "sqlite:///folder/ledger.db or postgresql://user@host/database."
        ) from None
    if parsed.password is not None or any(name in SECRETS for name in parsed.query):
        raise ValueError(
            "there is a password in the URL, and it would be written into sweep.json, MLflow and the log. Leave it "
            "out: PostgreSQL's client finds it in PGPASSWORD or ~/.pgpass, MySQL's in ~/.my.cnf "
            "(?read_default_file=~/.my.cnf)."
        )
    if parsed.get_backend_name() != "sqlite":
        return url
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("a database in memory is gone with the process; name a file: sqlite:///folder/ledger.db.")
    return str(parsed.set(database=str(Path(parsed.database).expanduser().absolute())))


def open_storage(where: Where, *, writing: bool) -> BaseStorage:
    """Optuna's storage there; for writing, what is missing is made, and a line torn by a killed process cut off.

    Raises StorageError where it cannot be used; of a damaged journal it names the line.
    """
    try:
        if isinstance(where, str):
            return get_storage(_rdb_storage(where, writing))
        if not where.exists() and not writing:
            raise StorageError(f"ledger {where}: no such file; the sweep has no trials yet.")
        if writing:
            where.parent.mkdir(parents=True, exist_ok=True)
            where.with_name(f"{where.name}.lock").unlink(
                missing_ok=True
            )  # of a killed process: Optuna waits 30 s for it
            where.touch()
        _check_lines(where, cut=writing)
        return JournalStorage(Journal(where))
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"ledger {where}: cannot be used ({_cause(error)}). {_remedy(where, error)}") from error


def retry_while_away(where: Where, change: Callable[[], T], patience_s: float = OUTAGE_S) -> T:
    """What the change gives; while the database is locked or away, it is tried again.

    A change must do no harm when it is made twice, for one whose answer was lost may have been made.
    Raises StorageError when it is given up.
    """
    until = time.monotonic() + patience_s
    for pause_s in chain((0.1, 0.5, 1, 2, 4), repeat(8)):
        try:
            with (
                hold_signals() as interrupted
            ):  # Optuna's file lock, torn in its release, looks as if the journal were gone
                return change()
        except (StorageInternalError, OperationalError, InterfaceError) as error:
            if interrupted.is_set():
                until = min(until, time.monotonic() + INTERRUPTED_S)
                deliver_signal()
            away = any(isinstance(told, OperationalError | InterfaceError) for told in (error, error.__cause__))
            if not away or time.monotonic() > until:
                raise StorageError(
                    f"ledger {where}: could not be written ({_cause(error)}). What was written is safe; mend that, "
                    "and the same command goes on from there."
                ) from error
            log.warning("ledger %s: %s; trying again", where, _cause(error))
            time.sleep(pause_s)
    raise AssertionError("the pauses have no end")


def rewrite_choices(where: Where, study_id: int, longer: Mapping[str, BaseDistribution]) -> BaseStorage:
    """Write these longer lists of values into the trials of a study; the storage, opened again.

    Optuna keeps one list a setting and study, and has no way to change it. A value is kept as its place in the list, so
    the values of the old list must come first in the new one.
    """
    if isinstance(where, Path):
        _rewrite_journal(where, longer)
    else:
        _rewrite_database(_rdb_storage(where, writing=True), study_id, longer)
    return open_storage(where, writing=True)


class Journal(JournalFileBackend):
    """Optuna's journal file; a write that fails (a full disk) leaves no half of itself and names the file."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See JournalFileBackend; one process writes at a time."""
        size = self._file.stat().st_size
        try:
            super().append_logs(logs)
        except OSError as error:
            os.truncate(self._file, size)
            raise OSError(error.errno, error.strerror, str(self._file)) from error


def _check_lines(journal: Path, *, cut: bool) -> None:
    """Raise StorageError for a line that is no record, which Optuna would stumble over, or overlook as the last one.

    A last line without its end is what a killed process left of a write, or is being written just now: `cut` removes
    it, or the next write would be lost with it.
    """
    whole = 0
    with journal.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                if cut:
                    os.truncate(journal, whole)
                return
            whole += len(line)
            if not _is_record(line):
                start = line[:60].decode(errors="replace")
                raise StorageError(
                    f"ledger {journal}: line {number} is damaged: {start!r}. Restore the file, or start over with "
                    f"--fresh. The {number - 1} lines before it are whole."
                )


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and "op_code" in record


def _rdb_storage(where: str, writing: bool) -> RDBStorage:
    url = make_url(where)
    if url.get_backend_name() == "sqlite":
        file, options = Path(url.database or ""), {"timeout": BUSY_S}
        if writing:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif not file.exists():
            raise StorageError(f"ledger {where}: no such file; the sweep has no trials yet.")
    else:
        timed = url.get_driver_name() in TIMED and "connect_timeout" not in url.query
        options = {"connect_timeout": CONNECT_S} if timed else {}
    if url.drivername == "postgresql":  # SQLAlchemy 2.0 takes another driver by default than 2.1
        where = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    engine = {"connect_args": options, "pool_pre_ping": True}
    return RDBStorage(where, engine_kwargs=engine, skip_table_creation=not writing)


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
    """What the database or the file system says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _remedy(where: Where, error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "Install the driver it needs; for PostgreSQL: pip install 'kdray[postgresql]'."
    if isinstance(where, str):
        return (
            "Is the database up, and are host, user and database in the URL right? A password comes from PGPASSWORD "
            "or ~/.pgpass."
        )
    return "Give a journal file in a folder you may write to."
