"""What one node sends whole another one gets whole, once; what is half, old or gone in the bucket is not there."""

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
    ROOT,
    download,
    fetch,
    fetch_files,
    fetch_growing,
    list_bucket,
    mirror_of,
    remove,
    send,
    url_of,
)
from kdray.storage.paths import storage_path, sweep_paths
from tests.storage.bucket_server import BucketServer, on_node


@pytest.fixture
def here(bucket: str) -> Path:
    """This node's folder of the bucket."""
    return mirror_of(bucket)


@pytest.fixture
def there(here: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Where another node has what is at this path here."""
    return lambda path: on_node(tmp_path / "other", path)


def write_folder(path: Path, **files: str) -> Path:
    with replace_folder(path) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
    return path


def texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_path_tells_what_it_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT, str(tmp_path))
    path = mirror_of("s3://bucket/team/kdray/")
    assert path == tmp_path / "kdray-mirror" / "s3" / "bucket" / "team" / "kdray"
    assert url_of(path / "tiny" / "sweep.json") == "s3://bucket/team/kdray/tiny/sweep.json"
    assert url_of(mirror_of("gs://bucket")) == "gs://bucket"
    assert (
        sweep_paths("gs://bucket/tiny").settings == tmp_path / "kdray-mirror" / "gs" / "bucket" / "tiny" / "sweep.json"
    )
    assert [url_of(path) for path in (path / ".tiny-x7" / "a", tmp_path, tmp_path / "kdray-mirror")] == [None] * 3


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", "a name, password or query in the URL"),
        ("s3://bucket/x?X-Amz-Signature=secret", "a name, password or query in the URL"),
        ("gs://", "name a bucket and a folder in it, such as gs://bucket/kdray"),
        ("s3://bucket//x", "name a bucket"),
        ("s3://bucket/../x", "name a bucket"),
        ("s3://bucket/.hidden", "name a bucket"),
    ],
)
def test_a_url_that_is_none_of_a_folder_is_refused(url: str, said: str) -> None:
    with pytest.raises(StorageError, match=said) as caught:
        mirror_of(url)
    assert "secret" not in str(caught.value)


def test_a_plain_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec, "filesystem", None)
    write_folder(tmp_path / "folder", a="1")
    with upload_folder(tmp_path / "kept") as folder:
        (folder / "b").touch()
    assert fetch(tmp_path / "folder") == fetch_files(tmp_path / "folder") == fetch_growing(tmp_path / "folder")
    assert list_bucket(tmp_path) == set()
    remove(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_what_is_whole_here_is_whole_there(
    here: Path, there: Callable[[Path], Path], bucket: str, bucket_server: BucketServer
) -> None:
    folder = write_folder(here / "cache" / "models" / "k", weights="w", config="c")
    write_json(here / "tiny" / "sweep.json", {"a": 1})
    assert texts(fetch(there(folder))) == {"weights": "w", "config": "c"}
    assert json.loads(fetch(there(here / "tiny" / "sweep.json")).read_text()) == {"a": 1}
    assert bucket_server.names(bucket) == {
        "cache/models/k/weights",
        "cache/models/k/config",
        f"cache/models/k/{FOLDER}",
        "tiny/sweep.json",
    }


def test_a_folder_that_was_half_sent_is_not_there(
    here: Path, there: Callable[[Path], Path], bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died, or the bucket went away, between the first file and the last."""
    one = type(bucket_server.files)
    with monkeypatch.context() as broken:
        broken.setattr(one, "pipe_file", lambda *_, **__: (_ for _ in ()).throw(OSError("the bucket is away")))
        with pytest.raises(StorageError, match="the bucket is away"):
            write_folder(here / "k", a="1", b="2")
    assert {path.name for path in list_bucket(here / "k")} == {"a", "b"}
    assert not (here / "k").exists()
    assert not fetch(here / "k").exists()
    assert not fetch(there(here / "k")).exists()
    write_folder(here / "k", a="1", b="2")
    assert texts(fetch(there(here / "k"))) == {"a": "1", "b": "2"}


class Watched:
    """A bucket that keeps what was put into it, and in which one thing cannot be done."""

    def __init__(self, files: Any, sent: list[str], broken: str = "", reading: bool = False) -> None:
        self._files, self._sent, self._broken, self._reading = files, sent, broken, reading

    def __getattr__(self, name: str) -> Any:
        if name == self._broken or (self._reading and name in ("put", "pipe_file", "copy", "rm")):
            raise OSError("the bucket is away")
        return getattr(self._files, name)

    def put(self, sources: list[str], targets: list[str]) -> None:
        """Puts them."""
        self._sent += [target.rpartition("/")[2] for target in targets]
        self.__getattr__("put")(sources, targets)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Watches all buckets from now on: the names of what is put."""

    def watching(broken: str = "", reading: bool = False) -> list[str]:
        sent: list[str] = []
        for module in (mirror, bucket_module):
            monkeypatch.setattr(module, "open_bucket", lambda url: Watched(open_bucket(url), sent, broken, reading))
        return sent

    return watching


@pytest.mark.parametrize("broken", ["put", "pipe_file", "rm", "copy"])
def test_a_folder_stays_until_the_one_that_replaces_it_is_there(
    here: Path,
    there: Callable[[Path], Path],
    bucket: str,
    bucket_server: BucketServer,
    watch: Callable[..., list[str]],
    broken: str,
) -> None:
    """The process died at the first object, at the list of the new one, or when that began to take its place."""
    old, new = {"a": "1", "b": "2", "gone": "3"}, {"a": "1", "b": "4", "c": "5"}
    write_folder(here / "k", **old)
    watch(broken)
    with pytest.raises(StorageError, match="the bucket is away"):
        write_folder(here / "k", **new)
    left = bucket_server.names(f"{bucket}/k")
    watch(reading=True)
    assert texts(fetch(there(here / "k"))) == (new if broken == "copy" else old)
    assert bucket_server.names(f"{bucket}/k") == left
    watch()
    write_folder(here / "k", **new)
    assert texts(fetch(there(here / "k"))) == new
    assert bucket_server.names(f"{bucket}/k") == {*new, FOLDER}


def test_who_reads_while_a_folder_is_replaced_gets_one_of_the_two_whole(
    here: Path, there: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node reads before each change that its sender makes in the bucket."""
    old, new = {"a": "1", "b": "2", "gone": "3"}, {"a": "1", "b": "4", "c": "5"}
    write_folder(here / "k", **old)
    seen: list[dict[str, str]] = []

    class Looked(Watched):
        def __getattr__(self, name: str) -> Any:
            if name in ("put", "pipe_file", "copy", "rm"):
                with monkeypatch.context() as quiet:
                    for module in (mirror, bucket_module):
                        quiet.setattr(module, "open_bucket", open_bucket)
                    shutil.rmtree(there(here / "k"), ignore_errors=True)
                    seen.append(texts(fetch(there(here / "k"))))
            return getattr(self._files, name)

    for module in (mirror, bucket_module):
        monkeypatch.setattr(module, "open_bucket", lambda url: Looked(open_bucket(url), []))
    write_folder(here / "k", **new)
    assert seen[0] == old
    assert seen[-1] == new
    assert all(folder in (old, new) for folder in seen)
    assert len(seen) >= 7


def test_of_a_folder_that_replaces_another_only_what_differs_is_sent(
    here: Path, watch: Callable[..., list[str]]
) -> None:
    write_folder(here / "k", weights="w", card="1")
    sent = watch()
    write_folder(here / "k", weights="w", card="2", onnx="o")
    assert sorted(sent) == ["card", "onnx"]


def test_the_bucket_is_right_whatever_lies_here(
    here: Path, there: Callable[[Path], Path], bucket_server: BucketServer
) -> None:
    folder, file = write_folder(here / "chosen", a="old", b="old"), here / "choice.json"
    write_json(file, "old")
    fetch(there(folder)), fetch(there(file))
    write_folder(there(folder), a="new")
    write_json(there(file), "new")
    assert texts(fetch(folder)) == {"a": "new"}
    assert fetch(file).read_text() == '"new"\n'
    remove(there(folder)), remove(there(file))
    assert not fetch(folder).exists()
    assert not fetch(file).exists()


def test_a_copy_that_was_damaged_is_brought_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(here / "k", a="whole")
    (folder / "a").write_text("whale")
    monkeypatch.setattr(mirror, "_SEEN", {})  # as in a new process
    assert texts(fetch(folder)) == {"a": "whole"}


def test_objects_that_are_not_what_was_sent_are_refused(
    here: Path, there: Callable[[Path], Path], bucket: str, bucket_server: BucketServer
) -> None:
    folder = write_folder(here / "k", a="whole")
    bucket_server.files.pipe_file(f"{bucket}/k/a", b"whale")
    with pytest.raises(StorageError, match="its files are not what was sent"):
        fetch(there(folder))
    assert not there(folder).exists()


def _fetch(folder: Path, start: threading.Barrier, kind: str) -> None:
    start.wait(60)
    {"folder": fetch, "files": fetch_files}[kind](folder)


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_a_node_fetches_once_however_many_processes_ask(
    here: Path, there: Callable[[Path], Path], bucket: str, bucket_server: BucketServer, kind: str
) -> None:
    if kind == "folder":
        write_folder(here / "k", a="1")
    else:
        with replace_file(here / "k" / "a") as temporary:
            temporary.write_text("1")
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(3)
    asking = [spawn.Process(target=_fetch, args=(there(here / "k"), start, kind)) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(60)
        assert process.exitcode == 0
    assert texts(there(here / "k")) == {"a": "1"}
    assert bucket_server.asked("GET", f"{bucket}/k/a") == 1
    assert [path.name for path in there(here).iterdir()] == ["k"]


def test_a_folder_of_shards_has_what_the_bucket_has(
    here: Path, there: Callable[[Path], Path], bucket: str, bucket_server: BucketServer
) -> None:
    for name in "ab":
        with replace_file(here / "shards" / name) as temporary:
            temporary.write_text(name)
    (there(here) / "shards").mkdir(parents=True)
    (there(here) / "shards" / "b").write_text("b")
    (there(here) / "shards" / "gone").touch()
    assert texts(fetch_files(there(here / "shards"))) == {"a": "a", "b": "b"}
    assert bucket_server.asked("GET", f"{bucket}/shards/b") == 0
    assert not fetch_files(there(here / "none")).exists() or not any(there(here / "none").iterdir())


def test_a_file_that_grows_is_kept_where_it_is_longer(here: Path, there: Callable[[Path], Path]) -> None:
    file = here / "journal.log"
    file.parent.mkdir(parents=True)
    file.write_text("1\n2\n")
    assert fetch_growing(file).read_text() == "1\n2\n"  # the bucket has none
    send(file, file)
    file.write_text("1\n2\n3\n")
    assert fetch_growing(file).read_text() == "1\n2\n3\n"
    other = fetch_growing(there(file))
    other.write_text("1\n2\nother\nway\n")
    send(other, other)
    assert fetch_growing(file).read_text() == "1\n2\nother\nway\n"
    assert download(file, here / "elsewhere")
    assert not download(here / "nothing", here / "nothing")


def test_what_is_handed_in_lies_in_the_bucket_alone(here: Path, there: Callable[[Path], Path]) -> None:
    with upload_folder(here / "student") as folder:
        (folder / "a").write_text("1")
    assert not (here / "student").exists()
    assert texts(fetch(there(here / "student"))) == {"a": "1"}
    assert not list(here.iterdir())


def test_what_is_removed_is_removed_there_with_all_below(here: Path, bucket: str, bucket_server: BucketServer) -> None:
    write_folder(here / "trials" / "0001" / "student", a="1")
    write_json(here / "trials" / "0001" / "ended.json", [])
    write_json(here / "trials" / "00011.json", [])
    remove(here / "trials" / "0001")
    remove(here / "trials" / "0001")
    assert bucket_server.names(bucket) == {"trials/00011.json"}
    assert [path.name for path in (here / "trials").iterdir()] == ["00011.json"]
    assert list_bucket(here / "trials") == {here / "trials" / "00011.json"}


def test_a_note_is_made_once_and_has_an_age(bucket: str) -> None:
    note = BucketObject(f"{bucket}/owner.json")
    assert note.read() is None
    assert note.age_s() == 0
    note.write(b"anna", new=True)
    with pytest.raises(FileExistsError):
        note.write(b"ben", new=True)
    time.sleep(1.1)
    assert 1 <= note.age_s() <= 30
    note.write(b"anna again")
    assert note.read() == b"anna again"
    note.remove()
    assert note.read() is None


# ---- what is refused ----


def test_a_bucket_that_can_be_used_is_left_as_it_was(bucket: str, bucket_server: BucketServer) -> None:
    assert storage_path(bucket) == mirror_of(bucket) == storage_path(mirror_of(bucket))
    assert bucket_server.names(bucket) == set()


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(StorageError, match=r"storage s3://kdray-nowhere/x: there is no such bucket .* Make it"):
        storage_path("s3://kdray-nowhere/x")


def test_without_credentials_the_sentence_says_where_to_give_them(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match=rf"storage {bucket}: there are no credentials .* AWS_PROFILE"):
        storage_path(bucket)


class Forbidding(BaseHTTPRequestHandler):
    """A bucket that may not be used."""

    def do_PUT(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    do_GET = do_HEAD = do_PUT

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def forbidding(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidding)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("forbidding")
def test_a_bucket_that_denies_access_is_named(bucket: str) -> None:
    with pytest.raises(
        StorageError, match=rf"storage {bucket}: access denied .* list, read, write and delete"
    ) as caught:
        check_bucket(bucket)
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


def test_a_missing_library_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(StorageError, match=r"pip install 'kdray\[s3\]', on every node"):
        storage_path(bucket)
    with pytest.raises(StorageError, match=r"pip install 'kdray\[gcs\]'"):
        storage_path(bucket.replace("s3://", "gs://"))


def test_a_node_that_cannot_make_the_folder_says_so(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"/proc/kdray-mirror: cannot be written on this node .* KDRAY_MIRROR"):
        fetch(Path("/proc/kdray-mirror/s3/bucket/x"))


def test_a_list_is_what_makes_a_folder_whole(here: Path, bucket: str, bucket_server: BucketServer) -> None:
    write_folder(here / "k", a="1")
    said = json.loads(bucket_server.files.cat_file(f"{bucket}/k/{FOLDER}"))
    assert said == {"a": hashlib.sha256(b"1").hexdigest()}
    shutil.rmtree(here / "k")
    bucket_server.files.rm_file(f"{bucket}/k/{FOLDER}")
    assert not fetch(here / "k").exists()
