"""The student that a sweep has shipped: its folder, and the settings that say how it is used and measured."""

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
from kdray.export.forms import FOLDER
from kdray.models.lineage import Lineage
from kdray.models.pretrained import Pretrained, weights_fingerprint
from kdray.search.claim import read_settings
from kdray.storage.files import file_fingerprint, replace_folder
from kdray.storage.paths import SweepPaths, display_path
from kdray.storage.records import read_record
from kdray.tasks.text_classification import TextClassification


@dataclass(frozen=True)
class Shipped:
    """The chosen student of a sweep."""

    paths: SweepPaths
    task: TextClassification
    data: Data
    latency: Latency
    settings: dict[str, Any]
    """The settings of the sweep, as JSON."""
    decision: Decision
    lineage: Lineage | None
    """None: the sweep is older than this record."""

    @property
    def folder(self) -> Path:
        return self.paths.chosen

    @contextmanager
    def changed(self) -> Iterator[Path]:
        """A copy of the folder, to be changed, that replaces the folder as a whole when the block ends well.

        A storage in a bucket knows whole folders only: a file that is added to one is not seen by other machines.
        """
        with replace_folder(self.folder) as place:
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
            yield place

    @property
    def model(self) -> Pretrained:
        return Pretrained(self.folder, weights_fingerprint(self.folder))


def read_shipped(paths: SweepPaths) -> Shipped:
    """The chosen student of the sweep in this folder. Raises StorageError where there is no sweep, or no student."""
    settings = read_settings(paths)
    decision = read_record(Decision, paths.choice) or Decision()
    if decision.chosen is not None and decision.measured is None:
        raise StorageError(
            f"{display_path(paths.root)}: trial {decision.chosen} was chosen, and its student has not been put into "
            f"{paths.chosen.name}/ yet. Give the command again that chose it."
        )
    if not (paths.chosen / "config.json").exists():
        raise StorageError(
            f"{paths.chosen}: there is no chosen student yet, or the rule found none. Let the sweep end, or see "
            f"`kdray show` for why none was chosen."
        )
    return Shipped(
        paths=paths,
        task=TextClassification(**settings["task"]),
        data=Data(**settings["data"]),
        latency=Latency(**settings["latency"]),
        settings=settings,
        decision=decision,
        lineage=read_record(Lineage, paths.lineage),
    )


def copy_forms(before: Path, now: Path) -> None:
    """Carry the exported forms over to a folder that takes the place of `before`, if it holds the same weights."""
    weights = "model.safetensors"
    if not (before / FOLDER).is_dir() or not (before / weights).exists() or not (now / weights).exists():
        return
    if file_fingerprint(before / weights) == file_fingerprint(now / weights):
        shutil.copytree(before / FOLDER, now / FOLDER)
