"""The student that a finished sweep has shipped: its folder, and the settings that say how it is used and measured."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.data.splits import Data
from kdray.errors import StorageError
from kdray.evaluation.measuring import Latency
from kdray.export.forms import FOLDER
from kdray.models.pretrained import Pretrained, weights_fingerprint
from kdray.search.claim import settings_in
from kdray.storage.files import file_fingerprint, new_folder, read_json
from kdray.storage.paths import SweepPaths, shown
from kdray.tasks.text_classification import TextClassification


@dataclass(frozen=True)
class Shipped:
    """A sweep's chosen student."""

    paths: SweepPaths
    task: TextClassification
    data: Data
    latency: Latency
    settings: dict[str, Any]
    """All that the sweep was claimed with, as JSON."""

    @property
    def folder(self) -> Path:
        return self.paths.chosen

    @contextmanager
    def changed(self) -> Iterator[Path]:
        """A copy of the folder, to be changed, that takes its place as a whole when the block ends well.

        A storage in a bucket knows whole folders only: what is added to one there is lost to all other machines.
        """
        with new_folder(self.folder) as place:
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
            yield place

    @property
    def data_key(self) -> str | None:
        """The fingerprint of the rows that it learnt from; None of a sweep whose lineage was not written down."""
        return str(read_json(self.paths.lineage)["data"]) if self.paths.lineage.exists() else None

    @property
    def model(self) -> Pretrained:
        return Pretrained(self.folder, weights_fingerprint(self.folder))


def shipped(paths: SweepPaths) -> Shipped:
    """The chosen student of the sweep in this folder. Raises StorageError where there is no sweep, or no student."""
    settings = settings_in(paths)
    choice = read_json(paths.choice) if paths.choice.exists() else {}
    if choice.get("chosen") is not None and "measured" not in choice:  # that is written once its student lies there
        raise StorageError(
            f"{shown(paths.root)}: trial {choice['chosen']} was chosen, and its student has not been put into "
            f"{paths.chosen.name}/ yet. Give the command again that chose it."
        )
    if not (paths.chosen / "config.json").exists():
        raise StorageError(
            f"{paths.chosen}: there is no chosen student yet, or the rule found none. Let the sweep end, or see "
            f"`kdray show` for why none was chosen."
        )
    return Shipped(
        paths,
        TextClassification(**settings["task"]),
        Data(**settings["data"]),
        Latency(**settings["latency"]),
        settings,
    )


def keep_forms(before: Path, now: Path) -> None:
    """Carry the exported forms over to a folder that takes the place of `before`, if it holds the same weights."""
    weights = "model.safetensors"
    if not (before / FOLDER).is_dir() or not (before / weights).exists() or not (now / weights).exists():
        return
    if file_fingerprint(before / weights) == file_fingerprint(now / weights):
        shutil.copytree(before / FOLDER, now / FOLDER)
