"""The student that a sweep has chosen and shipped: its folder, and the settings for its use and measurement."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.choice.decision import Decision
from kdray.data.splits import Data
from kdray.errors import StorageError
from kdray.evaluation.measuring import Latency
from kdray.export.student_files import FORM_FILES, copy_student_files
from kdray.forms.form import FOLDER
from kdray.models.folders import weights_fingerprint
from kdray.models.lineage import Lineage
from kdray.models.pretrained import Pretrained
from kdray.search.claim import read_settings
from kdray.storage.files import file_fingerprint, replace_folder
from kdray.storage.names import check_regular_files
from kdray.storage.paths import SweepPaths, display_path
from kdray.storage.records import read_record
from kdray.tasks.kinds import task_of
from kdray.tasks.task import Task


@dataclass(frozen=True)
class Shipped:
    """The chosen student of a sweep."""

    paths: SweepPaths
    task: Task
    data: Data
    latency: Latency
    settings: dict[str, Any]
    """The settings of the sweep, as JSON."""
    decision: Decision
    lineage: Lineage | None
    """None for a sweep from before this record existed."""

    @property
    def folder(self) -> Path:
        """The folder with the weights, the tokenizer, the model card and the exported forms."""
        return self.paths.chosen

    @contextmanager
    def edit_folder(self) -> Iterator[Path]:
        """Give a copy of the folder to change; it replaces the folder when the block ends without an error.

        A storage in a bucket transfers complete folders only: other machines do not see a file that is added to one.
        """
        check_regular_files(self.folder, self.paths.root)
        with replace_folder(self.folder) as place:
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
            yield place

    @property
    def model(self) -> Pretrained:
        """The student in PyTorch, identified by the fingerprint of its weights."""
        return Pretrained(self.folder, weights_fingerprint(self.folder))


def read_shipped(paths: SweepPaths) -> Shipped:
    """Read the chosen student of a sweep.

    Raises StorageError if there is no sweep in this folder, no student, or a link in its folder that leads out of it:
    the files of the folder are read, exported and published.
    """
    settings = read_settings(paths)
    decision = read_record(Decision, paths.choice) or Decision()
    if decision.chosen is not None and decision.measured is None:
        raise StorageError(
            f"{display_path(paths.root)}: trial {decision.chosen} was chosen, but its student is not in "
            f"{paths.chosen.name}/ yet. Run the command that chose it again."
        )
    if not (paths.chosen / "config.json").exists():
        raise StorageError(
            f"{paths.chosen}: there is no chosen student: the sweep has not ended, or no student satisfies its rule. "
            f"Wait for the end of the sweep, or see `kdray show` for the reason."
        )
    check_regular_files(paths.chosen, paths.root)
    return Shipped(
        paths=paths,
        task=task_of(settings["task"]),
        data=Data(**settings["data"]),
        latency=Latency(**settings["latency"]),
        settings=settings,
        decision=decision,
        lineage=read_record(Lineage, paths.lineage),
    )


def copy_forms(before: Path, now: Path) -> None:
    """Copy the exported forms from `before` to the folder `now` that replaces it, if both have the same weights."""
    weights = "model.safetensors"
    if not (before / FOLDER).is_dir() or not (before / weights).exists() or not (now / weights).exists():
        return
    if file_fingerprint(before / weights) == file_fingerprint(now / weights):
        copy_student_files(before, now, FORM_FILES)
