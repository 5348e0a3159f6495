"""Every path of a storage and of a sweep, as a property or method of one class.

A storage in a bucket is a local folder, too: `mirror` keeps it equal to the bucket.

STORAGE/
  mlflow.db  mlartifacts/        MLflow's data of all sweeps of this storage
  cache/                         shared by all sweeps of this storage; a key is a fingerprint of the content
    tokens/<key>/  models/<key>/  teachers/<key>/  transfers/<key>/  states/<key>/  costs/<key>.json
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
        """The folder with the files that are named by a fingerprint of their content."""
        return self.storage / "cache"

    @property
    def tracking_database(self) -> Path:
        """The SQLite database of MLflow, if no tracking server is given."""
        return self.storage / "mlflow.db"

    @property
    def tracking_artifacts(self) -> Path:
        """The artifacts of MLflow, if no tracking server is given."""
        return self.storage / "mlartifacts"

    def tokens(self, key: str) -> Path:
        """The folder with the token ids of the splits."""
        return self.cache / "tokens" / key

    def model(self, key: str) -> Path:
        """The folder with a pretrained source model."""
        return self.cache / "models" / key

    def teacher(self, key: str) -> Path:
        """The folder with a fine-tuned teacher."""
        return self.cache / "teachers" / key

    def transfer(self, key: str) -> Path:
        """The folder with the shards of a transfer set."""
        return self.cache / "transfers" / key

    def states(self, key: str) -> Path:
        """The folder with the hidden states of one layer of a teacher."""
        return self.cache / "states" / key

    def cost(self, key: str) -> Path:
        """The measured costs of one architecture."""
        return self.cache / "costs" / f"{key}.json"


@dataclass(frozen=True)
class SweepPaths(StoragePaths):
    """The files of one sweep."""

    name: str

    @property
    def root(self) -> Path:
        """The folder with all files of the sweep."""
        return self.storage / self.name

    @property
    def settings(self) -> Path:
        """The settings of the sweep."""
        return self.root / "sweep.json"

    @property
    def owner(self) -> Path:
        """The process that runs the sweep; the file exists while a process does."""
        return self.root / "owner.json"

    @property
    def journal(self) -> Path:
        """The ledger, if it is not in a database: a journal file of Optuna."""
        return self.root / "ledger" / "journal.log"

    @property
    def chosen(self) -> Path:
        """The folder with the chosen student; it loads without kdray."""
        return self.root / "chosen"

    @property
    def choice(self) -> Path:
        """Which student was chosen, and why."""
        return self.root / "choice.json"

    @property
    def teacher_figures(self) -> Path:
        """The teacher's metrics and costs."""
        return self.root / "teacher.json"

    @property
    def conditions(self) -> Path:
        """How the costs were measured, and on which hardware."""
        return self.root / "conditions.json"

    @property
    def origin(self) -> Path:
        """The command, the git commit and the package versions of the last session."""
        return self.root / "origin.json"

    @property
    def lineage(self) -> Path:
        """Fingerprints of what the students were made from: the teacher, the data, the test rows."""
        return self.root / "lineage.json"

    @property
    def times(self) -> Path:
        """Seconds of each stage, summed over all sessions."""
        return self.root / "times.json"

    @property
    def records(self) -> tuple[Path, ...]:
        """The small JSON files about the sweep, without its settings and its ledger."""
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
        """The folder with the report: tables, page and plots."""
        return self.root / "report"

    @property
    def logs(self) -> Path:
        """The folder with the logs of the driver and of each rank of each slot."""
        return self.root / "logs"

    @property
    def spool(self) -> Path:
        """The calls that MLflow has not accepted yet."""
        return self.root / "tracking" / "spool.jsonl"

    @property
    def tracking_target(self) -> Path:
        """The tracking settings that say where the spool is sent to, and how the last session ended."""
        return self.root / "tracking" / "target.json"

    @property
    def reruns(self) -> Path:
        """The students trained outside the search, by key: the number, host and times of each."""
        return self.root / "confirmation" / "reruns.json"

    def rerun(self, key: str) -> Path:
        """The weights of a student that was trained again, or of a control; the file with its outputs is beside it."""
        return self.root / "confirmation" / key / "student"

    def student(self, number: int) -> Path:
        """The weights of a trial's student; deleted once the trial leaves the Pareto front."""
        return self.root / "trials" / f"{number:04d}" / "student"


def storage_path(storage: str | Path) -> Path:
    """The absolute local folder for `storage`: a path, a file:// URI, or the URL of a folder in a bucket.

    Makes the folder if it does not exist. Raises StorageError for another scheme, and for a folder or bucket that
    cannot be made or written.
    """
    path = _local_folder(storage)
    if url := url_of(path):
        check_bucket(url)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # mkdir succeeds on an existing folder that cannot be written
            pass
    except OSError as error:
        raise StorageError(
            f"storage {path}: cannot be written ({error.strerror}). Name a folder you may write to with --storage."
        ) from None
    return path


def sweep_paths(sweep: str | Path) -> SweepPaths:
    """The paths of the sweep STORAGE/NAME. Raises StorageError for a scheme that kdray cannot write to."""
    folder = _local_folder(sweep)
    return SweepPaths(folder.parent, folder.name)


def display_path(path: Path) -> str:
    """The path as messages show it: the URL if the storage is a bucket."""
    return url_of(path) or str(path)


def _local_folder(storage: str | Path) -> Path:
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
