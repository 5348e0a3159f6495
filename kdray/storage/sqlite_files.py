"""The files beside a SQLite database that SQLite obeys, checked before the database is opened.

SQLite repairs a database from the journal beside it. A journal may name another file, which SQLite then deletes: the
super-journal of a change in several databases. kdray changes one database at a time, so only a stranger writes such a
journal. SQLite itself follows no link in place of these files, and its sentence names neither the file nor the cause.
"""

import os
import re
from pathlib import Path

from kdray.errors import StorageError

_SUFFIXES = ("-journal", "-wal", "-shm")
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""The last bytes of a journal that names a super-journal (SQLite's file format, "The Rollback Journal")."""


def check_sqlite_address(address: str) -> None:
    """Call `check_sqlite` if the address is that of a SQLite file."""
    match = re.match(r"sqlite(?:\+\w+)?:///(?:file:)?([^?]+)", address.strip())
    if match:
        check_sqlite(Path(match[1]))


def check_sqlite(database: Path) -> None:
    """Raise StorageError if a file beside this database would make SQLite delete or open a file elsewhere."""
    place = database.resolve()  # SQLite looks beside the file that a link leads to
    for suffix in _SUFFIXES:
        file = place.with_name(place.name + suffix)
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise StorageError(
                f"{file}: is a link, or no regular file. SQLite would write into it. Remove it, and run again."
            )
    journal = place.with_name(f"{place.name}-journal")
    if journal.exists() and _last_bytes(journal, len(_SUPER_JOURNAL)) == _SUPER_JOURNAL:
        raise StorageError(
            f"{journal}: names another file, which SQLite would delete when it opens {place.name}. kdray never writes "
            "such a journal. Remove it if you do not trust those who can write into this folder."
        )


def _last_bytes(file: Path, count: int) -> bytes:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - count))
            return opened.read(count)
    except FileNotFoundError:  # another process has just ended its change
        return b""
