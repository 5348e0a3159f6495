"""Finds the splits of a local source: files by their names, a folder for each split, and folders of `save_to_disk`."""

import glob
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.errors import DataError
from kdray.sources.data_files import ENDINGS, DataFile, data_files_at

_SAVED_DICT, _SAVED_SPLIT, _SAVED_INFO = "dataset_dict.json", "state.json", "dataset_info.json"
"""What `save_to_disk` of Hugging Face `datasets` writes beside the rows: for all splits, and twice for each split."""
_LARGEST_STATE = 1 << 24
"""Bytes of one of these files."""


@dataclass(frozen=True)
class LocalSplits:
    """The files of each split below a folder."""

    where: str
    files: Mapping[str, tuple[DataFile, ...]]
    notes: Mapping[str, tuple[str, ...]]
    """Split -> one sentence for everything about its files that the user should know."""


def find_splits(folder: Path) -> LocalSplits:
    """The splits in a folder. There are none if it holds no data files.

    They are looked for in the folder, then in its subfolder `data` as in a copy of a hub repository, then in folders
    that are named for their splits; the first of these places with a split `train` is taken. A file is a whole split
    (train.csv) or a part of it (train-00000-of-00002.parquet).
    """
    saved = _saved_splits(folder)
    if saved:
        return _local_splits(folder, saved)
    places = [folder, folder / "data"]
    by_name = {place: _splits_by_name(place) for place in places}
    found = [(place, splits) for place, splits in by_name.items() if splits]
    # Files beside the folders of the splits stay splits of their own.
    by_folder = [(place, _splits_by_folder(place)) for place in places]
    found += [(place, splits | by_name[place]) for place, splits in by_folder if splits]
    # The folder above `data` may have other files, such as dataset_infos.json: prefer the one with a train split.
    best = [each for each in found if "train" in each[1]] or found
    place, splits = best[0] if best else (folder, {})
    return _local_splits(place, splits)


def splits_of_files(files: list[DataFile], where: str) -> LocalSplits:
    """The splits of files that the user names together: all are rows to train on, unless one is called train.

    An archive often holds train.csv and test.csv.
    """
    by_name = _group_by_split(files)
    return _local_splits(where, by_name if len(files) > 1 and "train" in by_name else {"train": files})


def files_of_pattern(pattern: str, folder: Path | None, any_ending: bool = False) -> tuple[DataFile, ...]:
    """The data files that a pattern such as `part-*.csv` names, in the order of their names; none if there are none.

    A pattern without a `/` at its start is relative to `folder`. If `any_ending`, every file that it names is one.
    """
    names = sorted(glob.glob(str(Path(pattern).expanduser()), root_dir=folder, recursive=True))
    paths = [Path(name) if folder is None else folder / name for name in names]
    return tuple(file for path in paths if path.is_file() for file in data_files_at(path, any_ending))


def is_pattern(name: str) -> bool:
    """Whether a name is meant for files and not for a split: it has a `*`, `?` or `[`, a `/`, or an ending."""
    return glob.has_magic(name) or "/" in name or name.lower().endswith((*ENDINGS, ".gz", ".bz2", ".zst", ".zip"))


def _local_splits(where: Path | str, splits: Mapping[str, list[DataFile]]) -> LocalSplits:
    files, notes = {}, {}
    for split, candidates in splits.items():
        chosen, skipped = _without_copies(candidates)
        _check_one_format(chosen, split, str(where))
        files[split] = tuple(chosen)
        notes[split] = (*_notes_about_copies(chosen, skipped), *_notes_about_parts(chosen, split, str(where)))
    return LocalSplits(str(where), files, notes)


def _splits_by_name(place: Path) -> dict[str, list[DataFile]]:
    return _group_by_split(_files_in(place))


def _splits_by_folder(place: Path) -> dict[str, list[DataFile]]:
    """Split -> its files, for folders that are named for their splits."""
    folders = sorted(path for path in place.glob("[!._]*") if path.is_dir()) if place.is_dir() else []
    splits = {}
    for folder in folders:
        files = list(_saved_splits(folder).get("train", [])) or _files_in(folder)
        if files:
            splits[folder.name] = files
    return splits


def _files_in(place: Path) -> list[DataFile]:
    return [file for path in sorted(place.glob("[!._]*")) if path.is_file() for file in data_files_at(path)]


def _group_by_split(files: Iterable[DataFile]) -> dict[str, list[DataFile]]:
    splits: dict[str, list[DataFile]] = {}
    for file in files:
        splits.setdefault(file.split, []).append(file)
    return splits


def _without_copies(files: list[DataFile]) -> tuple[list[DataFile], list[DataFile]]:
    """The files to read, and those that are left out as copies: train.csv.gz beside train.csv."""
    usual = [file for file in files if file.is_usual]
    chosen = usual or files
    return chosen, [file for file in files if file not in chosen]


def _check_one_format(files: list[DataFile], split: str, where: str) -> None:
    # Files in two formats may be copies of the same rows: reading both would then duplicate every row.
    if len({(file.ending, file.compression) for file in files}) > 1:
        names = " and ".join(file.name for file in files)
        raise DataError(f"data.source {where}: split {split!r} has files in several formats, {names}. Keep one format.")


def _notes_about_copies(chosen: list[DataFile], skipped: list[DataFile]) -> list[str]:
    return [f"{file.where}: is not read, because {chosen[0].name} is there." for file in skipped]


def _notes_about_parts(files: list[DataFile], split: str, where: str) -> list[str]:
    """A note for the parts of a split that its file names promise and that are missing."""
    parts = [file.shard for file in files if file.shard is not None]
    counts = {shard.count for shard in parts}
    if len(counts) != 1 or len(parts) != len(files):
        return []
    (count,) = counts
    present = {shard.number for shard in parts}
    if len(present) >= count:
        return []
    # Some programs count from 1; then the last part has the number of parts.
    missing = next(number for number in range(1 if count in present else 0, count + 1) if number not in present)
    return [
        f"{where}: split {split!r} has {len(present)} of {count} files; for example, number {missing:05d} is missing. "
        f"Copy the others if the rows are not meant to be a part."
    ]


def _saved_splits(folder: Path) -> dict[str, list[DataFile]]:
    """Split -> its files, of a folder that `save_to_disk` wrote; empty for another folder."""
    if (folder / _SAVED_SPLIT).is_file() and (folder / _SAVED_INFO).is_file():
        return {"train": _saved_files(folder)}
    if (folder / _SAVED_DICT).is_file():
        names = _read_object(folder / _SAVED_DICT).get("splits")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return {name: _saved_files(_inner_path(folder, name)) for name in names}
    return {}


def _saved_files(folder: Path) -> list[DataFile]:
    state = folder / _SAVED_SPLIT
    listed = _read_object(state).get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise DataError(f"{state}: does not list the files with the rows. Save the data again with save_to_disk.")
    paths = [_inner_path(folder, each.get("filename")) for each in listed]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing:
        raise DataError(f"{missing}: is missing, but {state.name} lists it. Copy the folder again, with all its files.")
    return [file for path in paths for file in data_files_at(path)]


def _inner_path(folder: Path, name: Any) -> Path:
    """The entry of a folder that a file in it names. Raises DataError for a path that leads elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise DataError(f"{folder}: names {name!r}, which is no entry of this folder. Do not use data from a stranger.")
    return folder / name


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > _LARGEST_STATE:
        raise DataError(f"{path}: is missing or too large. Save the data again with save_to_disk.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({type(error).__name__}). Save the data again with save_to_disk.") from None
    return value if isinstance(value, dict) else {}
