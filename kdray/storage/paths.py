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

import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from kdray.errors import StorageError
from kdray.storage.bucket import KINDS, check_bucket
from kdray.storage.mirror import mirror_of, url_of


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
            self.teacher_figures,
            self.conditions,
            self.choice,
            self.origin,
            self.lineage,
            self.times,
            self.reruns,
        )

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
        check_bucket(url)
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


def display_path(path: Path) -> str:
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
