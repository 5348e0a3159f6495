"""Another node fetches exactly what one node has sent, once; nothing incomplete, old or deleted is ever read."""

import hashlib
import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from kdray.errors import StorageError
from kdray.storage import bucket as bucket_module
from kdray.storage import mirror
from kdray.storage.bucket import FOLDER, BucketObject, check_bucket, open_bucket
from kdray.storage.files import replace_file, replace_folder, upload_folder, write_json
from kdray.storage.mirror import (
    MIRROR_VARIABLE,
    delete,
    download,
    fetch,
    fetch_files,
    fetch_growing,
    list_bucket,
    mirror_of,
    send,
    url_of,
)
from kdray.storage.paths import storage_path, sweep_paths
from tests.storage.bucket_server import BucketServer, on_node


@pytest.fixture
def root(bucket: str) -> Path:
    """This node's mirror of the bucket."""
    return mirror_of(bucket)


@pytest.fixture
def other_node_path(root: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """A function: a path on this node -> the same path on another node."""
    return lambda path: on_node(tmp_path / "other", path)


def write_folder(path: Path, **files: str) -> Path:
    """Replace the folder by one with these files, file name -> content."""
    with replace_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
    return path


def texts(folder: Path) -> dict[str, str]:
    """The files in the folder, file name -> content."""
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_path_of_a_url_and_url_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path))
    path = mirror_of("s3://bucket/team/kdray/")
    assert path == tmp_path / "kdray-mirror" / "s3" / "bucket" / "team" / "kdray"
    assert url_of(path / "tiny" / "sweep.json") == "s3://bucket/team/kdray/tiny/sweep.json"
    assert url_of(mirror_of("gs://bucket")) == "gs://bucket"
    assert (
        sweep_paths("gs://bucket/tiny").settings == tmp_path / "kdray-mirror" / "gs" / "bucket" / "tiny" / "sweep.json"
    )
    assert [url_of(path) for path in (path / ".tiny-x7" / "a", tmp_path, tmp_path / "kdray-mirror")] == [None] * 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/x", "a name, password or query in the URL"),
        ("s3://bucket/x?X-Amz-Signature=secret", "a name, password or query in the URL"),
        ("gs://", "name a bucket and a folder in it, such as gs://bucket/kdray"),
        ("s3://bucket//x", "name a bucket"),
        ("s3://bucket/../x", "name a bucket"),
        ("s3://bucket/.hidden", "name a bucket"),
    ],
)
def test_url_that_names_no_folder_is_refused(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        mirror_of(url)
    assert "secret" not in str(caught.value)


def test_plain_folder_needs_no_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec, "filesystem", None)
    write_folder(tmp_path / "folder", a="1")
    with upload_folder(tmp_path / "other") as folder:
        (folder / "b").touch()
    assert fetch(tmp_path / "folder") == fetch_files(tmp_path / "folder") == fetch_growing(tmp_path / "folder")
    assert list_bucket(tmp_path) == set()
    delete(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_another_node_fetches_files_and_folders(
    root: Path, other_node_path: Callable[[Path], Path], bucket: str, bucket_server: BucketServer
) -> None:
    folder = write_folder(root / "cache" / "models" / "k", weights="w", config="c")
    write_json(root / "tiny" / "sweep.json", {"a": 1})
    assert texts(fetch(other_node_path(folder))) == {"weights": "w", "config": "c"}
    assert json.loads(fetch(other_node_path(root / "tiny" / "sweep.json")).read_text()) == {"a": 1}
    assert bucket_server.names(bucket) == {
        "cache/models/k/weights",
        "cache/models/k/config",
        f"cache/models/k/{FOLDER}",
        "tiny/sweep.json",
    }


def test_a_folder_that_was_half_sent_is_not_there(
    root: Path, other_node_path: Callable[[Path], Path], bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies, or the bucket becomes unreachable, between the first file and the list of files."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("the bucket is unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket_server.files), "pipe_file", fail)
        with pytest.raises(StorageError, match="the bucket is unreachable"):
            write_folder(root / "k", a="1", b="2")
    assert {path.name for path in list_bucket(root / "k")} == {"a", "b"}
    assert not (root / "k").exists()
    assert not fetch(root / "k").exists()
    assert not fetch(other_node_path(root / "k")).exists()
    write_folder(root / "k", a="1", b="2")
    assert texts(fetch(other_node_path(root / "k"))) == {"a": "1", "b": "2"}


WRITING_CALLS = ("put", "pipe_file", "copy", "rm")


class RecordingBucket:
    """A bucket that records the names of uploaded files; the call `broken`, or every call that writes, fails."""

    def __init__(self, files: Any, uploads: list[str], broken: str = "", read_only: bool = False) -> None:
        self._files, self._uploads, self._broken, self._read_only = files, uploads, broken, read_only

    def __getattr__(self, name: str) -> Any:
        if name == self._broken or (self._read_only and name in WRITING_CALLS):
            raise OSError("the bucket is unreachable")
        return getattr(self._files, name)

    def put(self, sources: list[str], targets: list[str]) -> None:
        """Upload the files and record their names."""
        self._uploads += [target.rpartition("/")[2] for target in targets]
        self.__getattr__("put")(sources, targets)


@pytest.fixture
def replace_buckets(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that makes every bucket a RecordingBucket and returns the list that the uploads are recorded in."""

    def replace(broken: str = "", read_only: bool = False) -> list[str]:
        uploads: list[str] = []
        for module in (mirror, bucket_module):
            monkeypatch.setattr(
                module, "open_bucket", lambda url: RecordingBucket(open_bucket(url), uploads, broken, read_only)
            )
        return uploads

    return replace


@pytest.mark.parametrize("broken", ["put", "pipe_file", "rm", "copy"])
def test_a_folder_stays_until_the_one_that_replaces_it_is_there(
    root: Path,
    other_node_path: Callable[[Path], Path],
    bucket: str,
    bucket_server: BucketServer,
    replace_buckets: Callable[..., list[str]],
    broken: str,
) -> None:
    """The sender fails at the first new file, at the staged list, or while it replaces the old folder.

    A reader, which must not write to the bucket, gets the old folder before the staged list is complete, and then the
    new one. The next attempt to send the new folder succeeds.
    """
    old, new = {"a": "1", "b": "2", "gone": "3"}, {"a": "1", "b": "4", "c": "5"}
    write_folder(root / "k", **old)
    replace_buckets(broken)
    with pytest.raises(StorageError, match="the bucket is unreachable"):
        write_folder(root / "k", **new)
    names = bucket_server.names(f"{bucket}/k")
    replace_buckets(read_only=True)
    assert texts(fetch(other_node_path(root / "k"))) == (new if broken == "copy" else old)
    assert bucket_server.names(f"{bucket}/k") == names
    replace_buckets()
    write_folder(root / "k", **new)
    assert texts(fetch(other_node_path(root / "k"))) == new
    assert bucket_server.names(f"{bucket}/k") == {*new, FOLDER}


def test_reader_gets_the_complete_old_or_new_folder_while_it_is_replaced(
    root: Path, other_node_path: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node reads the folder before each writing call of the sender."""
    old, new = {"a": "1", "b": "2", "gone": "3"}, {"a": "1", "b": "4", "c": "5"}
    write_folder(root / "k", **old)
    seen: list[dict[str, str]] = []

    class ReadBeforeWriteBucket(RecordingBucket):
        def __getattr__(self, name: str) -> Any:
            if name in WRITING_CALLS:
                with monkeypatch.context() as patch:
                    for module in (mirror, bucket_module):  # the reader's own calls are not intercepted
                        patch.setattr(module, "open_bucket", open_bucket)
                    shutil.rmtree(other_node_path(root / "k"), ignore_errors=True)
                    seen.append(texts(fetch(other_node_path(root / "k"))))
            return getattr(self._files, name)

    for module in (mirror, bucket_module):
        monkeypatch.setattr(module, "open_bucket", lambda url: ReadBeforeWriteBucket(open_bucket(url), []))
    write_folder(root / "k", **new)
    assert seen[0] == old
    assert seen[-1] == new
    assert all(folder in (old, new) for folder in seen)
    assert len(seen) >= 7


def test_only_changed_files_of_a_replaced_folder_are_sent(
    root: Path, replace_buckets: Callable[..., list[str]]
) -> None:
    write_folder(root / "k", weights="w", card="1")
    uploads = replace_buckets()
    write_folder(root / "k", weights="w", card="2", onnx="o")
    assert sorted(uploads) == ["card", "onnx"]


def test_fetch_replaces_and_deletes_local_files_that_differ_from_the_bucket(
    root: Path, other_node_path: Callable[[Path], Path], bucket_server: BucketServer
) -> None:
    folder, file = write_folder(root / "chosen", a="old", b="old"), root / "choice.json"
    write_json(file, "old")
    fetch(other_node_path(folder)), fetch(other_node_path(file))
    write_folder(other_node_path(folder), a="new")
    write_json(other_node_path(file), "new")
    assert texts(fetch(folder)) == {"a": "new"}
    assert fetch(file).read_text() == '"new"\n'
    delete(other_node_path(folder)), delete(other_node_path(file))
    assert not fetch(folder).exists()
    assert not fetch(file).exists()


def test_damaged_local_copy_is_fetched_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(root / "k", a="right")
    (folder / "a").write_text("wrong")
    monkeypatch.setattr(mirror, "_VERIFIED", {})  # as in a new process
    assert texts(fetch(folder)) == {"a": "right"}


def test_objects_with_other_hashes_than_the_list_are_refused(
    root: Path, other_node_path: Callable[[Path], Path], bucket: str, bucket_server: BucketServer
) -> None:
    folder = write_folder(root / "k", a="right")
    bucket_server.files.pipe_file(f"{bucket}/k/a", b"wrong")
    with pytest.raises(StorageError, match="the hashes of its files differ from its list"):
        fetch(other_node_path(folder))
    assert not other_node_path(folder).exists()


def fetch_at_barrier(folder: Path, start: threading.Barrier, kind: str) -> None:
    start.wait(60)
    {"folder": fetch, "files": fetch_files}[kind](folder)


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_processes_of_a_node_fetch_once_together(
    root: Path, other_node_path: Callable[[Path], Path], bucket: str, bucket_server: BucketServer, kind: str
) -> None:
    if kind == "folder":
        write_folder(root / "k", a="1")
    else:
        with replace_file(root / "k" / "a") as temporary:
            temporary.write_text("1")
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(3)
    processes = [
        spawn.Process(target=fetch_at_barrier, args=(other_node_path(root / "k"), start, kind)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert texts(other_node_path(root / "k")) == {"a": "1"}
    assert bucket_server.count_requests("GET", f"{bucket}/k/a") == 1
    assert [path.name for path in other_node_path(root).iterdir()] == ["k"]


def test_fetch_files_adds_and_deletes_single_files(
    root: Path, other_node_path: Callable[[Path], Path], bucket: str, bucket_server: BucketServer
) -> None:
    for name in "ab":
        with replace_file(root / "shards" / name) as temporary:
            temporary.write_text(name)
    (other_node_path(root) / "shards").mkdir(parents=True)
    (other_node_path(root) / "shards" / "b").write_text("b")
    (other_node_path(root) / "shards" / "gone").touch()
    assert texts(fetch_files(other_node_path(root / "shards"))) == {"a": "a", "b": "b"}
    assert bucket_server.count_requests("GET", f"{bucket}/shards/b") == 0
    assert not fetch_files(other_node_path(root / "none")).exists() or not any(other_node_path(root / "none").iterdir())


def test_fetch_growing_keeps_a_longer_local_file(root: Path, other_node_path: Callable[[Path], Path]) -> None:
    file = root / "journal.log"
    file.parent.mkdir(parents=True)
    file.write_text("1\n2\n")
    assert fetch_growing(file).read_text() == "1\n2\n"  # the bucket has no such file
    send(file, file)
    file.write_text("1\n2\n3\n")
    assert fetch_growing(file).read_text() == "1\n2\n3\n"
    other = fetch_growing(other_node_path(file))
    other.write_text("1\n2\nother\nlines\n")
    send(other, other)
    assert fetch_growing(file).read_text() == "1\n2\nother\nlines\n"
    assert download(file, root / "elsewhere")
    assert not download(root / "nothing", root / "nothing")


def test_upload_folder_keeps_no_local_copy(root: Path, other_node_path: Callable[[Path], Path]) -> None:
    with upload_folder(root / "student") as folder:
        (folder / "a").write_text("1")
    assert not (root / "student").exists()
    assert texts(fetch(other_node_path(root / "student"))) == {"a": "1"}
    assert not list(root.iterdir())


def test_remove_deletes_a_folder_here_and_in_the_bucket(root: Path, bucket: str, bucket_server: BucketServer) -> None:
    write_folder(root / "trials" / "0001" / "student", a="1")
    write_json(root / "trials" / "0001" / "ended.json", [])
    write_json(root / "trials" / "00011.json", [])
    delete(root / "trials" / "0001")
    delete(root / "trials" / "0001")
    assert bucket_server.names(bucket) == {"trials/00011.json"}
    assert [path.name for path in (root / "trials").iterdir()] == ["00011.json"]
    assert list_bucket(root / "trials") == {root / "trials" / "00011.json"}


def test_bucket_object_is_created_once_and_has_an_age(bucket: str) -> None:
    owner = BucketObject(f"{bucket}/owner.json")
    assert owner.read() is None
    assert owner.age_s() == 0
    owner.write(b"anna", new=True)
    with pytest.raises(FileExistsError):
        owner.write(b"ben", new=True)
    time.sleep(1.1)
    assert 1 <= owner.age_s() <= 30
    owner.write(b"anna again")
    assert owner.read() == b"anna again"
    owner.remove()
    assert owner.read() is None


# ---- errors of the bucket ----


def test_check_of_a_bucket_leaves_no_objects(bucket: str, bucket_server: BucketServer) -> None:
    assert storage_path(bucket) == mirror_of(bucket) == storage_path(mirror_of(bucket))
    assert bucket_server.names(bucket) == set()


def test_error_names_a_missing_bucket(bucket: str) -> None:
    with pytest.raises(StorageError, match=r"storage s3://kdray-nowhere/x: there is no such bucket .* Create it"):
        storage_path("s3://kdray-nowhere/x")


def test_error_without_credentials_says_where_to_give_them(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match=rf"storage {bucket}: there are no credentials .* AWS_PROFILE"):
        storage_path(bucket)


class ForbiddingHandler(BaseHTTPRequestHandler):
    """Answers every request with 403 Access Denied."""

    def do_PUT(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    do_GET = do_HEAD = do_PUT

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def forbidding_server(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process uses a server that denies access to every bucket."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ForbiddingHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("forbidding_server")
def test_error_names_a_bucket_that_denies_access(bucket: str) -> None:
    with pytest.raises(
        StorageError, match=rf"storage {bucket}: access denied .* list, read, write and delete"
    ) as caught:
        check_bucket(bucket)
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


def test_error_names_the_missing_library(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_import_error(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", raise_import_error)
    with pytest.raises(StorageError, match=r"pip install 'kdray\[s3\]', on every node"):
        storage_path(bucket)
    with pytest.raises(StorageError, match=r"pip install 'kdray\[gcs\]'"):
        storage_path(bucket.replace("s3://", "gs://"))


def test_error_names_a_mirror_that_cannot_be_written(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"/proc/kdray-mirror: cannot be written on this node .* KDRAY_MIRROR"):
        fetch(Path("/proc/kdray-mirror/s3/bucket/x"))


def test_folder_without_its_list_does_not_exist(root: Path, bucket: str, bucket_server: BucketServer) -> None:
    write_folder(root / "k", a="1")
    files = json.loads(bucket_server.files.cat_file(f"{bucket}/k/{FOLDER}"))
    assert files == {"a": hashlib.sha256(b"1").hexdigest()}
    shutil.rmtree(root / "k")
    bucket_server.files.rm_file(f"{bucket}/k/{FOLDER}")
    assert not fetch(root / "k").exists()
