"""Which sweep a folder belongs to: the first sweep that starts a trial there. No other sweep may continue in it.

`sweep.json` records the sweep's settings, the ledger that stores its trials, and an id. A database that stores the
ledgers of several folders finds the folder's ledger by that id. A process must own the folder (see
`kdray.storage.owner`) before it claims the folder.

Whoever can write into the folder may have written the URL of the ledger into `sweep.json`, and a client of a database
sends its password to the server that the URL names. So a URL from there is used only if the user gave it (`trust`).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from kdray.errors import StorageError
from kdray.search.ledger import Ledger
from kdray.search.ledger_storage import Location
from kdray.search.space import is_longer
from kdray.storage.files import read_json, write_json
from kdray.storage.mirror import delete, list_bucket
from kdray.storage.paths import SweepPaths, display_path
from kdray.storage.records import describe_problem
from kdray.storage.trust import AddressKind, accept_address, check_address

log = logging.getLogger(__name__)

FOLDER_ID = "id"
Scalar: TypeAlias = str | int | float | bool | None

LEDGER = AddressKind("ledger", option="--ledger", variable="KDRAY_LEDGER")


class _StoredSearch(BaseModel):
    """What is read of the search's settings."""

    objectives: tuple[str, ...] = Field(min_length=1)
    ledger: str | None = None


class _StoredDomain(BaseModel):
    """A searched setting: Optuna's JSON of a distribution."""

    name: str
    attributes: dict[str, Scalar | list[Scalar]]


class _StoredSettings(BaseModel):
    """The parts of `sweep.json` that commands read before they know the settings of the sweep that they run."""

    search: _StoredSearch
    space: dict[str, _StoredDomain]
    id: str = ""


def claim_folder(identity: Mapping[str, Any], paths: SweepPaths, fresh: bool) -> Ledger:
    """Claim the folder for the sweep with this identity, and open the sweep's ledger for writing.

    A sweep may continue with longer lists of values in its space. `fresh` first deletes everything that a sweep wrote
    here, except its logs. Raises StorageError when the folder has trials of a sweep with other settings, holds files
    that are no sweep, or has lost its ledger.
    """
    all_entries = {*paths.root.iterdir(), *list_bucket(paths.root)} - {paths.logs, paths.owner}
    entries = [path for path in all_entries if not _is_torn_settings_file(path, paths)]
    known = _read_known_settings(paths, entries, fresh)
    settings = {**identity, FOLDER_ID: known.get(FOLDER_ID) or uuid4().hex}
    # The identity is that of the sweep that the user runs. `kdray choose` reads it from the folder, but not before it
    # has read the ledger, and so has checked the address.
    if url := identity["search"].get("ledger"):
        accept_address(url)
    location = _ledger_location(settings, paths)
    if isinstance(location, str):
        # Raises for a database that cannot be used, before anything in the folder has changed.
        Ledger.count_trials(location, paths.name, settings[FOLDER_ID])
    differences: list[str] = []
    if known:
        # Settings that an older kdray recorded, and this one does not count, are not compared.
        before = {name: value for name, value in _extend_known(known, identity).items() if name in identity}
        differences = describe_differences(before, identity)
    if known and not fresh:
        _check_trials(known, paths, differences)
    # A sweep without trials loses nothing: its settings may be corrected under the same name.
    if fresh or differences:
        _delete_sweep(known, paths, entries)
        settings[FOLDER_ID] = uuid4().hex
    write_json(paths.settings, settings)
    return Ledger.open(location, paths.name, identity["search"]["objectives"], settings[FOLDER_ID])


def read_settings(paths: SweepPaths) -> dict[str, Any]:
    """The settings that the sweep was claimed with, as JSON values.

    Raises StorageError when the folder holds no sweep, or its sweep.json is damaged.
    """
    if not paths.settings.exists():
        raise StorageError(
            f"{display_path(paths.root)}: there is no sweep here; give STORAGE/NAME, such as results/quickstart."
        )
    settings: dict[str, Any] = read_json(paths.settings)
    try:
        _StoredSettings.model_validate(settings)
    except ValidationError as error:
        raise StorageError(
            f"{paths.settings}: does not hold the settings of a sweep ({describe_problem(error)}). Restore it, or "
            "start over with --fresh."
        ) from None
    return settings


def read_ledger(paths: SweepPaths, kind: AddressKind = LEDGER) -> Ledger:
    """The ledger of the sweep in this folder, for reading.

    Raises StorageError when there is no ledger, or when it is in a database that the user has not named; `kind` says
    how the user can do that.
    """
    return Ledger.read(_ledger_location(read_settings(paths), paths, kind), paths.name)


def open_ledger(paths: SweepPaths) -> Ledger:
    """The ledger of the sweep in this folder, for writing. The caller must own the folder.

    Raises StorageError when it is in a database that the user has not named.
    """
    settings = read_settings(paths)
    location, objectives = _ledger_location(settings, paths), settings["search"]["objectives"]
    return Ledger.open(location, paths.name, objectives, settings.get(FOLDER_ID, ""))


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, each as `name: was A, now B`."""
    sentences = []
    for name in sorted({*before, *now} - {FOLDER_ID}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            # "attributes" is a level of Optuna's JSON for a distribution, and no part of a dotted name.
            sentences += describe_differences(old, new, prefix if name == "attributes" else f"{prefix}{name}.")
        elif old != new:
            sentences.append(f"{prefix}{name}: was {old}, now {new}")
    return sentences


def _is_torn_settings_file(path: Path, paths: SweepPaths) -> bool:
    """Whether the file is a temporary sweep.json, left by a process that was killed while it wrote it."""
    return path.name.startswith(f".{paths.settings.name}-")


def _read_known_settings(paths: SweepPaths, entries: list[Path], fresh: bool) -> dict[str, Any]:
    """The settings of the sweep in the folder. Empty for a new folder, and for damaged settings when `fresh`.

    Raises StorageError when the entries of the folder belong to no sweep, or the settings are missing or damaged.
    """
    if not entries:
        return {}
    if not paths.settings.exists():
        if paths.journal.exists() or paths.teacher_figures.exists():
            raise StorageError(
                f"{paths.settings}: is missing. Without it the settings of the trials in this folder are unknown. "
                "Restore it, or delete the folder to start over."
            )
        raise StorageError(f"{paths.root}: holds something that is no sweep. Give another name or another --storage.")
    try:
        return read_settings(paths)
    except StorageError:
        if fresh:
            return {}
        raise


def _check_trials(known: Mapping[str, Any], paths: SweepPaths, differences: list[str]) -> None:
    """Raise StorageError when the folder has trials of a sweep with other settings, or has lost its trials."""
    location = _ledger_location(known, paths)
    trials = Ledger.count_trials(location, paths.name, known.get(FOLDER_ID, ""))
    if trials and differences:
        raise StorageError(
            f"{paths.root}: the name {paths.name!r} is used by a sweep with other settings: "
            f"{'; '.join(differences)}. Give this one another name (--set name=...), or start over with --fresh."
        )
    # The teacher's figures are written before the first trial: they show that the sweep was started.
    if trials is None and paths.teacher_figures.exists():
        raise StorageError(
            f"{paths.root}: the sweep was started, but its ledger {location} is missing. Restore the ledger, or start "
            "over with --fresh."
        )


def _extend_known(known: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The known settings, with each list of values that is longer now replaced by the longer list."""
    now = identity["space"]
    longer = {name: now[name] for name, domain in known["space"].items() if is_longer(domain, now.get(name))}
    return {**known, "space": known["space"] | longer}


def _ledger_location(settings: Mapping[str, Any], paths: SweepPaths, kind: AddressKind = LEDGER) -> Location:
    """The database of the sweep's settings, or else the journal file in the sweep's folder.

    Raises StorageError for a database that the user has not named.
    """
    url: str | None = settings["search"].get("ledger")
    if not url:
        return paths.journal
    check_address(url, paths.settings, paths.storage, kind)
    return url


def _delete_sweep(known: Mapping[str, Any], paths: SweepPaths, entries: list[Path]) -> None:
    """Delete the entries of the folder. In a database, delete only the ledger that belongs to this folder.

    Raises StorageError for a path that cannot be deleted.
    """
    if known:
        try:
            if isinstance(location := _ledger_location(known, paths), str):
                Ledger.delete(location, paths.name, known.get(FOLDER_ID, ""))
        except StorageError as error:
            log.warning("%s The trials of this sweep stay in that database.", error)
    # sweep.json goes last: as long as it exists, the other entries are known to belong to a sweep.
    others = [path for path in entries if path != paths.settings]
    settings_file = [path for path in entries if path == paths.settings]
    for path in [*others, *settings_file]:
        delete(path)
        if path.exists():
            raise StorageError(f"{path}: cannot be deleted. Change its permissions, and run the same command again.")
