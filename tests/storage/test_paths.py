"""Writes are atomic, fingerprints depend on content only, and a storage that cannot be written is refused."""

import os
import time
from pathlib import Path

import pytest

from kdray.errors import StorageError
from kdray.storage.files import (
    ABANDONED_AFTER_S,
    delete_abandoned,
    file_fingerprint,
    fingerprint,
    read_json,
    replace_file,
    replace_folder,
    write_json,
)
from kdray.storage.paths import StoragePaths, SweepPaths, storage_path


def test_storage_path_is_absolute_and_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_path("a/b") == tmp_path / "a" / "b"
    assert storage_path(f"file://{tmp_path}/with%20space") == tmp_path / "with space"
    assert (tmp_path / "with space").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("storage", ["file", "file/below", "/proc/kdray"])
def test_storage_that_cannot_be_written_is_refused(tmp_path: Path, storage: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"cannot be written \(.+\)\. Name a folder .* with --storage"):
        storage_path(tmp_path / storage)


def test_storage_with_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match=r"a local or shared folder, or to a bucket \(s3://, gs://\), not there"):
        storage_path("ftp://host/x")


def test_sweep_files_are_below_its_name_and_shared_files_are_not(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path, "one")
    of_sweep = [
        paths.settings,
        paths.owner,
        paths.journal,
        paths.chosen,
        paths.choice,
        paths.report,
        paths.logs,
        paths.student(7),
    ]
    assert all(path.is_relative_to(tmp_path / "one") for path in of_sweep)
    shared = [paths.tokens("k"), paths.model("k"), paths.teacher("k"), paths.transfer("k"), paths.cost("k")]
    assert len({*of_sweep, *shared}) == 13
    assert shared[:2] == [StoragePaths(tmp_path).tokens("k"), SweepPaths(tmp_path, "other").model("k")]


def test_fingerprints_depend_on_values_only(tmp_path: Path) -> None:
    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1})
    assert len({fingerprint(1), fingerprint("1"), fingerprint(1, None), fingerprint([1])}) == 4
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"3")
    (tmp_path / "c").write_bytes(b"12")
    a, b, c = (tmp_path / name for name in "abc")
    assert file_fingerprint(a, b) == file_fingerprint(c, b) != file_fingerprint(b, a)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "deep" / "x.json") as temporary:
        temporary.with_name("missing").rename(temporary)
    assert read_json(tmp_path / "deep" / "x.json") == {"a": 1}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.json"]


def test_temporary_files_of_killed_writers_are_deleted_and_no_others(tmp_path: Path) -> None:
    old = time.time() - ABANDONED_AFTER_S - 1
    others = [tmp_path / ".hidden", tmp_path / "file-0123456789ab", tmp_path / ".a-0123456789abc"]
    for other in others:
        other.touch()
        os.utime(other, (old, old))
    with replace_file(tmp_path / "new") as young, replace_file(tmp_path / "old") as abandoned:
        os.utime(abandoned, (old, old))
        (link := abandoned.with_name(".x-0123456789ab")).symlink_to(others[0])
        delete_abandoned(tmp_path)
        assert young.exists()
        assert link.is_symlink()
        assert not abandoned.exists()
        abandoned.touch()
    assert all(other.exists() for other in others)
    delete_abandoned(tmp_path / "missing")


def test_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replace_folder(tmp_path / "folder") as folder:
            (folder / content).touch()
    with pytest.raises(FileNotFoundError), replace_folder(tmp_path / "folder") as folder:
        (folder / "missing" / "file").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder", "folder/new"]


def test_error_names_the_invalid_json_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"a": ')
    with pytest.raises(StorageError, match=r"sweep\.json: not a readable JSON file .* --fresh"):
        read_json(tmp_path / "sweep.json")
