"""A sweep's folder belongs to one sweep: the first to begin a trial there, and that one alone goes on in it."""

import shutil
from collections.abc import Mapping
from typing import Any

from kdray.errors import StorageError
from kdray.paths import SweepPaths, read_json, write_json
from kdray.search.ledger import Ledger


def claim(identity: Mapping[str, Any], paths: SweepPaths, fresh: bool) -> None:
    """Make the sweep's folder its own; `fresh` removes what a sweep has left there, all but its logs.

    Raises StorageError when it belongs to a sweep with other settings, or holds something that is no sweep.
    """
    there = [path for path in paths.root.iterdir() if path != paths.logs] if paths.root.exists() else []
    if there and not paths.settings.exists():
        raise StorageError(f"{paths.root}: holds something that is no sweep. Give another name or another --storage.")
    differences = different(read_json(paths.settings), identity) if there and not fresh else []
    if differences and _begun(paths):
        raise StorageError(
            f"{paths.root}: the name {paths.name!r} is used by a sweep with other settings: "
            f"{'; '.join(differences)}. Give this one another name (--set name=...), or start over with --fresh."
        )
    if fresh or differences:  # what was refused before its first trial is mended under the same name
        for path in there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(paths.settings, identity)


def different(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, as `name: was A, now B`."""
    sentences = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            sentences += different(old, new, f"{prefix}{name}.")
        elif old != new:
            sentences.append(f"{prefix}{name}: was {old}, now {new}")
    return sentences


def _begun(paths: SweepPaths) -> bool:
    return paths.journal.exists() and len(Ledger.read(paths.journal, paths.name)) > 0
