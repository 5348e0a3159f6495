"""Helpers for the tests of tokens: the private files of a Ray that was started here."""

import stat
from pathlib import Path

from kdray.slots.cluster import ClusterInfo


def private_part(info: ClusterInfo) -> Path:
    """The private folder in which the files of a Ray are that was started here."""
    return info.session.parents[1]


def mode(path: Path) -> int:
    """The permissions of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)
