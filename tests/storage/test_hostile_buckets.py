"""Somebody else can write into the bucket: nothing there makes kdray write or delete outside of its folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdray.errors import StorageError
from kdray.search.claim import claim_folder
from kdray.stages.bookkeeping import remove_siblings
from kdray.storage import folder_list, safe_json
from kdray.storage.bucket import FOLDER, remove_objects
from kdray.storage.files import replace_file, replace_folder, write_json
from kdray.storage.mirror import delete, download, fetch, fetch_files, list_bucket, mirror_of
from kdray.storage.paths import SweepPaths
from tests.storage.bucket_server import BucketServer, on_node

DIGEST = "0" * 64
NAMES = ["../out", "../../../../../out", "/tmp/kdray-out", "a/../../out", "a\\b", "a\nb", "a*", "", ".", "..", "a//b"]
"""Names that lead out of the folder, or that fsspec or a terminal would obey."""


@pytest.fixture
def root(bucket: str) -> Path:
    """This node's mirror of the bucket."""
    return mirror_of(bucket)


def files_of(folder: Path) -> set[str]:
    """All files below the folder, without locks."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts
    }


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_in_the_list_of_a_folder_is_refused_before_a_byte_is_written(
    root: Path, bucket: str, bucket_server: BucketServer, tmp_path: Path, name: str
) -> None:
    bucket_server.files.pipe_file(f"{bucket}/k/{FOLDER}", json.dumps({"a": DIGEST, name: DIGEST}).encode())
    bucket_server.files.pipe_file(f"{bucket}/k/a", b"1")
    before = files_of(tmp_path)
    with pytest.raises(StorageError, match=rf"k/{FOLDER}: names (a file|the files) .* Remove") as caught:
        fetch(root / "k")
    assert caught.value.exit_code == 2
    assert files_of(tmp_path) == before


LISTS: dict[str, Any] = {
    "no object": [1],
    "a number for a hash": {"a": 1},
    "its own name": {FOLDER: DIGEST},
    "a staged file": {".new/x": DIGEST},
    "two files in one": {"a": DIGEST, "a/b": DIGEST},
}


@pytest.mark.parametrize("files", LISTS.values(), ids=LISTS)
def test_a_list_that_kdray_never_writes_is_refused(
    root: Path, bucket: str, bucket_server: BucketServer, files: Any
) -> None:
    bucket_server.files.pipe_file(f"{bucket}/k/{FOLDER}", json.dumps(files).encode())
    with pytest.raises(StorageError, match=rf"k/{FOLDER}: .* Remove"):
        fetch(root / "k")


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":', b"\xff\xfe"], ids=["deep", "torn", "binary"])
def test_a_list_that_is_no_json_is_refused(root: Path, bucket: str, bucket_server: BucketServer, text: bytes) -> None:
    bucket_server.files.pipe_file(f"{bucket}/k/{FOLDER}", text)
    with pytest.raises(StorageError, match="not a readable JSON file"):
        fetch(root / "k")


def test_a_list_that_is_too_long_is_refused(
    root: Path, bucket: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_list, "MAX_LIST_BYTES", 1000)
    bucket_server.files.pipe_file(f"{bucket}/k/{FOLDER}", b" " * 1001)
    with pytest.raises(StorageError, match=r"has 1,001 bytes, and at most 1,000 are read"):
        fetch(root / "k")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../out": DIGEST}, "staged": ["../out"]},
        {"staged": ["../out"]},
        {"place": "../other"},
        {"place": ".new/../../x"},
        {"place": 1},
        {"staged": {"a": 1}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_staged_list_is_checked_by_readers_and_by_senders(
    root: Path, bucket: str, bucket_server: BucketServer, changes: dict[str, Any]
) -> None:
    staged = {"files": {"a": DIGEST}, "staged": ["a"], "place": ".new/0123456789abcdef"} | changes
    bucket_server.files.pipe_file(f"{bucket}/k/.new/{FOLDER}", json.dumps(staged).encode())
    with pytest.raises(StorageError, match=rf"k/\.new/{FOLDER}: .* Remove"):
        fetch(root / "k")
    with pytest.raises(StorageError, match=rf"k/\.new/{FOLDER}: .* Remove"), replace_folder(root / "k") as folder:
        (folder / "a").touch()


@pytest.mark.parametrize("name", ["../out", "a*", "a\\b", "a/../../out"], ids=repr)
def test_the_name_of_an_object_is_refused_before_a_byte_is_written(
    root: Path, bucket: str, bucket_server: BucketServer, tmp_path: Path, name: str
) -> None:
    for each in ("good", name):
        bucket_server.files.pipe_file(f"{bucket}/shards/{each}", b"1")
    before = files_of(tmp_path)
    with pytest.raises(StorageError, match=r"/shards: names a file .* Remove"):
        fetch_files(root / "shards")
    assert files_of(tmp_path) == before


def test_an_object_in_a_subfolder_and_the_object_of_a_folder_are_not_fetched(
    root: Path, bucket: str, bucket_server: BucketServer
) -> None:
    """The consoles of S3 and Google write an empty object whose name ends with a slash for a new folder."""
    for name in ("shards/", "shards/a", "shards/sub/b", "shards/.hidden"):
        bucket_server.files.call_s3("put_object", Bucket=bucket.split("/")[2], Key=f"team/{name}", Body=b"1")
    assert {path.name for path in fetch_files(root / "shards").iterdir()} == {"a"}
    assert {path.name for path in list_bucket(root / "shards")} == {"a", "sub", ".hidden"}


def test_an_object_with_dots_in_its_name_deletes_no_other_folder(
    root: Path, bucket: str, bucket_server: BucketServer
) -> None:
    """Whoever deletes what the bucket lists in a folder would delete the folder above it: `..` is one of the names."""
    write_json(root / "other" / "sweep.json", {})
    write_json(root / "tiny" / "trials" / "0001" / "ended.json", [])
    bucket_server.files.pipe_file(f"{bucket}/tiny/trials/0001/../x", b"")
    before = files_of(root)
    with pytest.raises(StorageError, match=r"trials/0001: names a file '\.\.'"):
        remove_siblings(root / "tiny" / "trials" / "0001" / "student")
    assert files_of(root) == before
    assert "other/sweep.json" in bucket_server.names(bucket)


def test_fresh_deletes_nothing_outside_of_the_sweep(root: Path, bucket: str, bucket_server: BucketServer) -> None:
    paths = SweepPaths(root, "tiny")
    write_json(root / "other" / "sweep.json", {})
    write_json(paths.settings, {"search": {}, "space": {}})
    bucket_server.files.pipe_file(f"{bucket}/tiny/../x", b"")
    with pytest.raises(StorageError, match=r"tiny: names a file '\.\.'"):
        claim_folder({"search": {"objectives": ["accuracy"]}, "space": {}}, paths, fresh=True)
    assert (root / "other" / "sweep.json").exists()
    assert "other/sweep.json" in bucket_server.names(bucket)


def test_a_name_with_a_wildcard_deletes_only_itself(root: Path, bucket: str, bucket_server: BucketServer) -> None:
    for name in ("k/a*", "k/abc", "k2/abc", "l/[ab]", "l/a"):
        bucket_server.files.pipe_file(f"{bucket}/{name}", b"")
    delete(root / "k")
    assert bucket_server.names(bucket) == {"k2/abc", "l/[ab]", "l/a"}
    remove_objects(f"{bucket}/l/[ab]")
    assert "l/a" in bucket_server.names(bucket)


def test_a_replaced_folder_keeps_no_object_with_a_wildcard(
    root: Path, bucket: str, bucket_server: BucketServer
) -> None:
    for content in ("1", "2"):
        with replace_folder(root / "k") as folder:
            (folder / "abc").write_text(content)
        bucket_server.files.pipe_file(f"{bucket}/k/a*", b"")
    with replace_folder(root / "k") as folder:
        (folder / "abc").write_text("3")
    assert bucket_server.names(f"{bucket}/k") == {"abc", FOLDER}


@pytest.mark.parametrize("name", ["a*", "a\nb", "a\\b", FOLDER])
def test_a_folder_that_no_node_could_fetch_is_not_sent(
    root: Path, bucket: str, bucket_server: BucketServer, name: str
) -> None:
    with pytest.raises(StorageError, match="names a file"), replace_folder(root / "k") as folder:
        (folder / name).touch()
    assert bucket_server.names(bucket) == set()


def test_a_link_in_a_folder_is_not_sent(root: Path, bucket: str, bucket_server: BucketServer, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a private key")
    with pytest.raises(StorageError, match="is a link to"), replace_folder(root / "k") as folder:
        (folder / "vocab.txt").symlink_to(tmp_path / "key")
    assert bucket_server.names(bucket) == set()


@pytest.mark.parametrize("url", ["s3://bucket/a*", "s3://bucket/a/[b]", "s3://bucket/a\\b", "s3://bucket/a\x1bb"])
def test_a_storage_with_a_name_that_fsspec_would_expand_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match=r"name a bucket and a folder in it|a name, password or query"):
        mirror_of(url)


def test_a_long_object_is_never_in_memory(
    root: Path, bucket: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_json(root / "tiny" / "times.json", {})
    bucket_server.files.pipe_file(f"{bucket}/tiny/times.json", b" " * 5000)
    monkeypatch.setattr(safe_json, "MAX_JSON_BYTES", 1000)
    assert download(root / "tiny" / "times.json", tmp_path / "copy")
    with pytest.raises(StorageError, match=r"has 5,000 bytes, and at most 1,000"):
        safe_json.read_regular_file(tmp_path / "copy", safe_json.MAX_JSON_BYTES)


# ---- files that are compared one by one ----


def write_shard(path: Path, content: str) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(content)


def test_an_object_of_the_same_size_is_fetched_again(
    root: Path, bucket: str, bucket_server: BucketServer, tmp_path: Path
) -> None:
    other = on_node(tmp_path / "other", root / "shards")
    write_shard(root / "shards" / "a", "1")
    assert (fetch_files(other) / "a").read_text() == "1"
    bucket_server.files.pipe_file(f"{bucket}/shards/a", b"2")
    assert (fetch_files(other) / "a").read_text() == "2"
    assert (fetch_files(root / "shards") / "a").read_text() == "2"


def test_a_local_file_of_the_same_size_is_fetched_again(
    root: Path, bucket: str, bucket_server: BucketServer, tmp_path: Path
) -> None:
    other = on_node(tmp_path / "other", root / "shards")
    write_shard(root / "shards" / "a", "1")
    fetch_files(other)
    (other / "a").write_text("x")
    assert (fetch_files(other) / "a").read_text() == "1"
    (other / "a").unlink()
    (other / "a").symlink_to(tmp_path / "elsewhere")
    assert (fetch_files(other) / "a").read_text() == "1"
    assert not (other / "a").is_symlink()


def test_an_unchanged_file_is_neither_fetched_nor_read_again(
    root: Path, bucket: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(root / "shards" / "a", "1")
    fetch_files(root / "shards")  # hashes the file once: this node has written it
    monkeypatch.setattr("kdray.storage.object_versions._md5_of_file", None)
    fetch_files(root / "shards")
    assert bucket_server.count_requests("GET", f"{bucket}/shards/a") == 0


def test_a_file_that_was_sent_in_parts_is_fetched_once(
    root: Path, bucket: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tag is no hash of its content."""
    write_shard(root / "shards" / "a", "1")
    tag = lambda details: {**details, "ETag": '"0123456789abcdef0123456789abcdef-2"'}  # noqa: E731
    find = type(bucket_server.files).find
    monkeypatch.setattr(
        type(bucket_server.files),
        "find",
        lambda *args, **options: {name: tag(details) for name, details in find(*args, **options).items()},
    )
    for _ in range(2):
        assert (fetch_files(root / "shards") / "a").read_text() == "1"
    assert bucket_server.count_requests("GET", f"{bucket}/shards/a") == 1


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", '{"a": 1}'], ids=["deep", "list", "other"])
def test_a_damaged_record_of_versions_costs_a_hash_only(root: Path, text: str) -> None:
    write_shard(root / "shards" / "a", "1")
    fetch_files(root / "shards")
    (record,) = (root.parents[2] / ".versions").iterdir()
    record.write_text(text)
    assert (fetch_files(root / "shards") / "a").read_text() == "1"
