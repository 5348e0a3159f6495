"""A stranger's SQLite database deletes no file elsewhere, and a link beside it is a sentence."""

import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kdray.errors import StorageError
from kdray.search.ledger import Ledger
from kdray.storage.paths import StoragePaths
from kdray.storage.sqlite_files import check_sqlite
from kdray.tracking.registry import Registry
from kdray.tracking.settings import Tracking

PAGE = 4096
MAGIC = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A SQLite database where MLflow's is."""
    file = tmp_path / "storage" / "mlflow.db"
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute("create table t(x)")
    connection.close()
    return file


def write_journal(database: Path, names: Path) -> None:
    """Write a journal without a page that names this file as the journal of a change in several databases."""
    header = MAGIC + struct.pack(">5I", 0, 0, database.stat().st_size // PAGE, 512, PAGE)
    name = bytes(names)
    end = struct.pack(">I", 0x4000_0000 // PAGE + 1) + name + struct.pack(">2I", len(name), sum(name)) + MAGIC
    database.with_name(f"{database.name}-journal").write_bytes(header.ljust(512, b"\0") + end)


OPENERS: dict[str, Callable[[Path], object]] = {
    "mlflow": lambda file: Registry("films", Tracking(), StoragePaths(file.parent)),
    "another address": lambda file: Registry(
        "films", Tracking(uri=f"sqlite:///{file}?timeout=3"), StoragePaths(file.parent / "other")
    ),
    "ledger": lambda file: Ledger.read(f"sqlite:///{file}", "films"),
    "ledger for writing": lambda file: Ledger.open(f"sqlite:///{file}", "films", ("accuracy",)),
}


@pytest.mark.parametrize("open_database", OPENERS.values(), ids=OPENERS)
def test_a_journal_that_names_another_file_is_refused(
    database: Path, tmp_path: Path, open_database: Callable[[Path], object]
) -> None:
    private = tmp_path / "thesis.txt"
    private.write_text("a year of work")
    write_journal(database, private)
    with pytest.raises(StorageError, match=r"mlflow\.db-journal: names another file, which SQLite would delete"):
        open_database(database)
    assert private.exists()
    # The attack is real: SQLite itself deletes the file.
    connection = sqlite3.connect(database)
    connection.execute("select * from t").fetchall()
    connection.close()
    assert not private.exists()


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_a_link_or_a_pipe_beside_a_database_is_refused(database: Path, tmp_path: Path, suffix: str) -> None:
    beside = database.with_name(database.name + suffix)
    link = tmp_path / "link.db"
    link.symlink_to(database)
    for make in (lambda: beside.symlink_to(tmp_path / "bashrc"), lambda: os.mkfifo(beside)):
        make()
        for file in (database, link):
            with pytest.raises(StorageError, match=f"mlflow.db{suffix}: is a link, or no regular file"):
                check_sqlite(file)
        beside.unlink()


def test_the_journal_of_a_killed_process_is_left_to_sqlite(database: Path) -> None:
    write_journal(database, database)
    journal = database.with_name(f"{database.name}-journal")
    journal.write_bytes(journal.read_bytes()[:512])
    check_sqlite(database)
    journal.write_bytes(b"")
    check_sqlite(database)
    check_sqlite(database.with_name("missing.db"))
