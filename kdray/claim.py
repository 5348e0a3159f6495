"""A sweep's folder belongs to one sweep: the first to write there, and that one alone goes on in it."""

import shutil
from collections.abc import Mapping
from typing import Any

from kdray.errors import StorageError
from kdray.paths import SweepPaths, read_json, write_json


def claim(identity: Mapping[str, Any], paths: SweepPaths, fresh: bool) -> None:
    """Make the sweep's folder its own. Raises StorageError when it belongs to a sweep with other settings."""
    if fresh and paths.root.exists():
        shutil.rmtree(paths.root)
    if paths.settings.exists():
        differences = different(read_json(paths.settings), identity)
        if differences:
            raise StorageError(
                f"{paths.root}: the name {paths.name!r} is used by a sweep with other settings: "
                f"{'; '.join(differences)}. Give this one another name (--set name=...), or start over with --fresh."
            )
    elif paths.root.exists() and any(paths.root.iterdir()) and not paths.logs.exists():
        raise StorageError(f"{paths.root}: holds something that is no sweep. Give another name or another --storage.")
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
