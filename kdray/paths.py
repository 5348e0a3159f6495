"""Where everything lies: every path of a sweep is a property here, and every file is whole or absent.

A storage in a bucket is a local folder that `mirror` keeps like it: what becomes whole here is sent there first.

STORAGE/
  mlflow.db  mlartifacts/        all sweeps of this storage
  cache/                         shared by all sweeps of this storage, by content
    tokens/<key>/  models/<key>/  teachers/<key>/  transfers/<key>/  costs/<key>.json
  <sweep>/
    sweep.json  owner.json  origin.json  lineage.json  times.json  teacher.json  conditions.json  choice.json
    ledger/  trials/<number>/  confirmation/<key>/  chosen/  report/  logs/  tracking/
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from kdray.bucket import KINDS, check
from kdray.errors import StorageError
from kdray.mirror import mirror_of, send, url_of

SCRATCH = "kdray-scratch-"
SCRATCH_LOCKED_WITHIN_S = 60.0
"""By then whoever made a scratch folder has locked it, or is dead."""


@dataclass(frozen=True)
class StoragePaths:
    """The files that all sweeps of one storage share."""

    storage: Path

    @property
    def cache(self) -> Path:
        return self.storage / "cache"

    @property
    def tracking_database(self) -> Path:
        return self.storage / "mlflow.db"

    @property
    def tracking_artifacts(self) -> Path:
        return self.storage / "mlartifacts"

    def tokens(self, key: str) -> Path:
        return self.cache / "tokens" / key

    def model(self, key: str) -> Path:
        return self.cache / "models" / key

    def teacher(self, key: str) -> Path:
        return self.cache / "teachers" / key

    def transfer(self, key: str) -> Path:
        return self.cache / "transfers" / key

    def cost(self, key: str) -> Path:
        return self.cache / "costs" / f"{key}.json"


@dataclass(frozen=True)
class SweepPaths(StoragePaths):
    """The files of one sweep."""

    name: str

    @property
    def root(self) -> Path:
        return self.storage / self.name

    @property
    def settings(self) -> Path:
        return self.root / "sweep.json"

    @property
    def owner(self) -> Path:
        """Who runs the sweep; there while somebody does."""
        return self.root / "owner.json"

    @property
    def journal(self) -> Path:
        return self.root / "ledger" / "journal.log"

    @property
    def chosen(self) -> Path:
        return self.root / "chosen"

    @property
    def choice(self) -> Path:
        return self.root / "choice.json"

    @property
    def teacher_figures(self) -> Path:
        """The teacher's metrics and costs."""
        return self.root / "teacher.json"

    @property
    def conditions(self) -> Path:
        """How the costs were measured, and on what."""
        return self.root / "conditions.json"

    @property
    def origin(self) -> Path:
        """The command, the commit and the versions of the last session."""
        return self.root / "origin.json"

    @property
    def lineage(self) -> Path:
        """What the students come from, by content: the teacher, the data, the test rows."""
        return self.root / "lineage.json"

    @property
    def times(self) -> Path:
        """Seconds of each stage, over all sessions."""
        return self.root / "times.json"

    @property
    def records(self) -> tuple[Path, ...]:
        """What is known of the sweep beside its settings and its ledger."""
        return (
            self.teacher_figures, self.conditions, self.choice, self.origin, self.lineage, self.times, self.reruns,
        )  # fmt: skip

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def spool(self) -> Path:
        """What MLflow has not taken yet."""
        return self.root / "tracking" / "spool.jsonl"

    @property
    def tracking_target(self) -> Path:
        """Where the spool is to go."""
        return self.root / "tracking" / "target.json"

    @property
    def reruns(self) -> Path:
        """What is trained outside the search: the number, place and time of each."""
        return self.root / "confirmation" / "reruns.json"

    def rerun(self, key: str) -> Path:
        """The weights of a student that was trained again, or of a control; its answers lie beside it."""
        return self.root / "confirmation" / key / "student"

    def student(self, number: int) -> Path:
        """The weights of a trial's student; kept while the trial is on the Pareto front."""
        return self.root / "trials" / f"{number:04d}" / "student"


def storage_path(storage: str | Path) -> Path:
    """The absolute folder that `storage` names: a path, a file:// URI, or the URL of a folder in a bucket.

    Raises StorageError for another scheme and for a folder or bucket that cannot be made or written.
    """
    path = _folder(storage)
    if url := url_of(path):
        check(url)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StorageError(
            f"storage {path}: cannot be written ({error.strerror}). Name a folder you may write to with --storage."
        ) from None
    return path


def sweep_paths(sweep: str | Path) -> SweepPaths:
    """The files of the sweep STORAGE/NAME. Raises StorageError for a scheme that is none of a storage's."""
    folder = _folder(sweep)
    return SweepPaths(folder.parent, folder.name)


def shown(path: Path) -> str:
    """The path for a person: where the storage is a bucket, the URL."""
    return url_of(path) or str(path)


def _folder(storage: str | Path) -> Path:
    url = urlparse(str(storage))
    if url.scheme in KINDS:
        return mirror_of(str(storage))
    if url.scheme not in ("", "file"):
        schemes = ", ".join(f"{kind}://" for kind in KINDS)
        raise StorageError(
            f"storage {url.scheme}://...: kdray writes to a local or shared folder, or to a bucket ({schemes}), not "
            "there."
        )
    return Path(unquote(url.path) if url.scheme else storage).expanduser().absolute()


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that depend on every part, by value (JSON) and nothing else."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(*files: Path) -> str:
    """A fingerprint of the contents of these files, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary name for a file that takes the place of `path` when the block ends well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        send(temporary, path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole: a reader never sees a half of it."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StorageError when it is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path}: not a readable JSON file ({error}). Restore it, or start over with --fresh."
        ) from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    temporary.chmod(0o755)
    try:
        yield temporary
        send(temporary, path)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def handed_in_folder(path: Path) -> Iterator[Path]:
    """The same, for a folder that this node needs no more: where the storage is a bucket, it lies there alone."""
    with new_folder(path) as temporary:
        yield temporary
    if url_of(path):
        shutil.rmtree(path)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder on this machine for what nobody needs after the block; what killed processes left is removed, too."""
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{SCRATCH}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > SCRATCH_LOCKED_WITHIN_S:
                with _locked_folder(left):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=SCRATCH))
    with _locked_folder(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder as long as this process lives. Raises OSError where another one does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
