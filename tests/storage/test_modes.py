"""What is written has the modes that the umask gives, so a team can share a storage; scratch folders are private."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdray.search.ledger import Ledger
from kdray.storage.files import replace_file, replace_folder, scratch_folder, write_json
from kdray.storage.mirror import fetch, fetch_files, mirror_of
from kdray.storage.owner import own_sweep
from kdray.storage.paths import storage_path
from kdray.tracking.database import make_database
from tests.storage.bucket_server import on_node


@pytest.fixture(params=[0o022, 0o002, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[tuple[bool, int]]:
    """Whether it is a folder, and the mode, of everything below the folder."""
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in folder.rglob("*")}


def write_with_owner(folder: Path) -> None:
    (folder / "sweep").mkdir()
    with own_sweep(folder / "sweep" / "owner.json", lambda note: None):
        (folder / "sweep" / "owner.json").rename(folder / "sweep" / "was-owner.json")


def replace_a_folder(folder: Path) -> None:
    for _ in range(2):
        with replace_folder(folder / "student") as new:
            (new / "weights").touch()


def replace_a_private_file(folder: Path) -> None:
    (folder / "file").touch(mode=0o600)
    with replace_file(folder / "file") as new:
        new.write_text("1")


WRITERS: dict[str, Callable[[Path], object]] = {
    "json": lambda folder: write_json(folder / "a" / "b" / "x.json", {}),
    "file": replace_a_private_file,
    "folder": replace_a_folder,
    "journal": lambda folder: Ledger.open(folder / "ledger" / "journal.log", "x", ["accuracy"]).set_attr("a", 1),
    "sqlite": lambda folder: Ledger.open(f"sqlite:///{folder}/db/ledger.db", "x", ["accuracy"]).set_attr("a", 1),
    "owner": write_with_owner,
    "storage": lambda folder: storage_path(folder / "a" / "b"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_files_and_folders_have_the_modes_of_the_umask(
    tmp_path: Path, umask: int, write: Callable[[Path], object]
) -> None:
    folder = tmp_path / "storage"
    folder.mkdir()
    write(folder)
    assert modes(folder)
    assert modes(folder) <= {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}


def test_the_database_of_mlflow_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        make_database(tmp_path / "mlflow.db", tmp_path / "scratch")
    finally:
        os.umask(before)
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o664


def test_copies_of_a_bucket_have_the_modes_of_the_umask(tmp_path: Path, bucket: str) -> None:
    before = os.umask(0o027)
    try:
        root = mirror_of(bucket)
        with replace_folder(root / "k") as folder:
            (folder / "a").touch()
        write_json(root / "shards" / "b.json", {})
        for path in (
            fetch(on_node(tmp_path / "other", root / "k")),
            fetch_files(on_node(tmp_path / "x", root / "shards")),
        ):
            assert modes(path) == {(False, 0o640)}
            assert path.stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(before)


def test_scratch_folders_are_private(umask: int) -> None:
    with scratch_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
