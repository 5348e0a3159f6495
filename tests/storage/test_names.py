"""Names from a bucket or a file lead to a file below their folder, or are refused; so are links that lead out of it."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdray.errors import StorageError
from kdray.storage.names import MAX_NAME_BYTES, MAX_PART_BYTES, check_links, path_below, paths_below

HOSTILE = [
    "..",
    "../x",
    "a/../../x",
    "a/..",
    ".",
    "./a",
    "/etc/passwd",
    "//host/x",
    "",
    "a//b",
    "a/",
    "a\\..\\b",
    "a\nb",
    "a\x00b",
    "a\x1b[2Jb",
    "a\u202eb",
    "a*",
    "a?",
    "a[0]",
    " a",
    "a/ .. /b",
    "\ud800",
    "a" * (MAX_PART_BYTES + 1),
    "/".join(["a" * 200] * (MAX_NAME_BYTES // 200 + 1)),
    None,
    7,
    ["a"],
]
"""Names that no file below a folder may have."""


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:40])
def test_a_name_that_leads_elsewhere_is_refused_in_a_sentence(tmp_path: Path, name: Any) -> None:
    with pytest.raises(StorageError, match=r"list\.json: names a file .*, which .*\. .* Remove it") as caught:
        path_below(tmp_path, name, "list.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["a", "model-00001-of-00002.safetensors", "1_Pooling/config.json", ".gitattributes", "é ü"]
)
def test_a_name_below_the_folder_is_accepted(tmp_path: Path, name: str) -> None:
    assert path_below(tmp_path, name, "list.json") == tmp_path / name
    assert paths_below(tmp_path, [name, "other"], "list.json") == {name: tmp_path / name, "other": tmp_path / "other"}


@pytest.mark.parametrize(
    "names", [["Vocab.txt", "vocab.txt"], ["e\u0301", "\u00e9"], ["a", "a/b"], ["a/b/c", "A/B"]], ids=str
)
def test_names_of_which_one_file_would_hide_the_other_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(StorageError, match="which cannot both exist"):
        paths_below(tmp_path, names, "list.json")


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(tmp_path: Path) -> None:
    sweep = tmp_path / "storage" / "sweep"
    (sweep / "trials" / "0001").mkdir(parents=True)
    (sweep / "inside").symlink_to(sweep / "trials")
    check_links(sweep, tmp_path / "storage")
    check_links(sweep / "missing", tmp_path / "storage")
    (sweep / "trials" / "0001" / "student").symlink_to(tmp_path)
    with pytest.raises(StorageError, match=r"student: is a link to .*, outside of .*/storage\. .* Remove the link"):
        check_links(sweep, tmp_path / "storage")


def test_a_folder_that_is_itself_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "sweep").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="is a link"):
        check_links(tmp_path / "storage" / "sweep", tmp_path / "storage")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.parents[2] / "pipe")
    path.symlink_to(path.parents[2] / "pipe")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(path))  # the path of a socket is limited to some 100 bytes


@pytest.mark.parametrize("make", [make_pipe, make_link_to_a_pipe, make_socket])
def test_a_pipe_and_a_socket_are_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Who opens a pipe waits until another process opens it, too."""
    sweep = tmp_path / "sweep"
    (sweep / "ledger").mkdir(parents=True)
    make(sweep / "ledger" / "journal.log")
    with pytest.raises(StorageError, match=r"journal\.log: is no regular file\. .* remove it"):
        check_links(sweep, tmp_path)


def test_links_in_a_large_folder_are_found_in_a_moment(tmp_path: Path) -> None:
    """Only the entries of the folders are read, no file; a link to a large folder is not followed."""
    for number in range(300):
        (tmp_path / f"{number:04d}").mkdir()
        for name in "abcdefghij":
            (tmp_path / f"{number:04d}" / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    check_links(tmp_path, tmp_path)
