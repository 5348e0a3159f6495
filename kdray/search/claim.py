"""A sweep's folder belongs to one sweep: the first to begin a trial there, and that one alone goes on in it.

`sweep.json` says which: its settings, which ledger keeps its trials, and an id by which a database knows the folder.
Whoever claims must own the folder (`owner`).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from kdray.errors import StorageError
from kdray.search.ledger import Ledger
from kdray.search.ledger_storage import Where
from kdray.search.space import is_longer
from kdray.storage.files import read_json, write_json
from kdray.storage.mirror import list_bucket, remove
from kdray.storage.paths import SweepPaths, display_path

log = logging.getLogger(__name__)

FOLDER_ID = "id"


def claim_folder(identity: Mapping[str, Any], paths: SweepPaths, fresh: bool) -> Ledger:
    """Make the sweep's folder its own and open its ledger; `fresh` removes what a sweep has left, all but its logs.

    A sweep may go on with longer lists of values in its space. Raises StorageError when the folder belongs to a sweep
    with other settings, holds something that is no sweep, or has lost its ledger.
    """
    everything = {*paths.root.iterdir(), *list_bucket(paths.root)} - {paths.logs, paths.owner}
    there = [path for path in everything if not _torn(path, paths)]
    known = _known(paths, there, fresh)
    settings = {**identity, FOLDER_ID: known.get(FOLDER_ID) or uuid4().hex}
    now = _where(settings, paths)
    if isinstance(now, str):
        Ledger.trials_in(
            now, paths.name, settings[FOLDER_ID]
        )  # one that cannot be used is refused while all is as it was
    before = {name: value for name, value in _lengthened(known, identity).items() if name in identity} if known else {}
    differences = (
        describe_differences(before, identity) if known else []
    )  # what an older kdray counted and this one does not
    if known and not fresh:
        _check_begun(known, paths, differences)
    if fresh or differences:  # what was refused before its first trial is mended under the same name
        _remove(known, paths, there)
        settings[FOLDER_ID] = uuid4().hex
    write_json(paths.settings, settings)
    return Ledger.open(now, paths.name, identity["search"]["objectives"], settings[FOLDER_ID])


def read_settings(paths: SweepPaths) -> dict[str, Any]:
    """What the sweep was claimed with. Raises StorageError where there is no sweep, or its sweep.json is damaged."""
    if not paths.settings.exists():
        raise StorageError(
            f"{display_path(paths.root)}: there is no sweep here; give STORAGE/NAME, such as results/quickstart."
        )
    settings = read_json(paths.settings)
    if not isinstance(settings, dict) or not all(isinstance(settings.get(part), dict) for part in ("search", "space")):
        raise StorageError(f"{paths.settings}: holds no sweep's settings. Restore it, or start over with --fresh.")
    return settings


def read_ledger(paths: SweepPaths) -> Ledger:
    """The ledger of the sweep in this folder, for looking at. Raises StorageError where there is none."""
    return Ledger.read(_where(read_settings(paths), paths), paths.name)


def open_ledger(paths: SweepPaths) -> Ledger:
    """The ledger of the sweep in this folder, for writing: whoever does must own the folder."""
    settings = read_settings(paths)
    where, objectives = _where(settings, paths), settings["search"]["objectives"]
    return Ledger.open(where, paths.name, objectives, settings.get(FOLDER_ID, ""))


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, as `name: was A, now B`."""
    sentences = []
    for name in sorted({*before, *now} - {FOLDER_ID}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            sentences += describe_differences(old, new, prefix if name == "attributes" else f"{prefix}{name}.")
        elif old != new:
            sentences.append(f"{prefix}{name}: was {old}, now {new}")
    return sentences


def _torn(path: Path, paths: SweepPaths) -> bool:
    """Whether it is what a process left that was killed as it wrote the very first file."""
    return path.name.startswith(f".{paths.settings.name}-")


def _known(paths: SweepPaths, there: list[Path], fresh: bool) -> dict[str, Any]:
    """The settings of the sweep whose folder it is; empty where there is none, and where they are of no use."""
    if not there:
        return {}
    if not paths.settings.exists():
        if paths.journal.exists() or paths.teacher_figures.exists():
            raise StorageError(
                f"{paths.settings}: is gone, and without it nobody knows what the trials here were. Restore it, or "
                "remove the folder to start over."
            )
        raise StorageError(f"{paths.root}: holds something that is no sweep. Give another name or another --storage.")
    try:
        return read_settings(paths)
    except StorageError:
        if fresh:
            return {}
        raise


def _check_begun(known: Mapping[str, Any], paths: SweepPaths, differences: list[str]) -> None:
    """Raise StorageError when the sweep has trials and was another one, or has lost them."""
    where = _where(known, paths)
    trials = Ledger.trials_in(where, paths.name, known.get(FOLDER_ID, ""))
    if trials and differences:
        raise StorageError(
            f"{paths.root}: the name {paths.name!r} is used by a sweep with other settings: "
            f"{'; '.join(differences)}. Give this one another name (--set name=...), or start over with --fresh."
        )
    if trials is None and paths.teacher_figures.exists():
        raise StorageError(
            f"{paths.root}: the sweep was begun, but its ledger {where} is gone. Restore it, or start over with "
            "--fresh."
        )


def _lengthened(known: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The known settings, with the lists of values that are longer now."""
    now = identity["space"]
    longer = {name: now[name] for name, domain in known["space"].items() if is_longer(domain, now.get(name))}
    return {**known, "space": known["space"] | longer}


def _where(settings: Mapping[str, Any], paths: SweepPaths) -> Where:
    return settings["search"].get("ledger") or paths.journal


def _remove(known: Mapping[str, Any], paths: SweepPaths, there: list[Path]) -> None:
    """What a sweep has left here; of a ledger in a database, only the one that is known to be this folder's."""
    if known and isinstance(where := _where(known, paths), str):
        try:
            Ledger.remove(where, paths.name, known.get(FOLDER_ID, ""))
        except StorageError as error:
            log.warning("%s What it holds of this sweep stays there.", error)
    for path in sorted(there, key=lambda path: path == paths.settings):  # last what says that the rest is a sweep's
        remove(path)
        if path.exists():
            raise StorageError(f"{path}: cannot be removed. Mend its rights, and give the same command again.")
