"""A sweep of one trial, run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from kdray.run import Outcome, RunOptions, run
from kdray.search.settings import Search
from kdray.slots.pool import SlotSettings
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep

RunTiny: TypeAlias = Callable[..., tuple[Outcome, list[str]]]


class Notes:
    """A screen that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __enter__(self) -> "Notes":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values, **named: None


ONE = Search(trials=1, stopping=None)


@pytest.fixture
def run_tiny(make_sweep: Callable[..., Sweep], tmp_path: Path) -> RunTiny:
    """A function that runs a sweep of one trial with these fields in `tmp_path`; the outcome and its notes."""

    def run_sweep(**fields: Any) -> tuple[Outcome, list[str]]:
        sweep = make_sweep(**{"search": ONE, "slots": SlotSettings(cpus=1), **fields})
        screen = Notes()
        return run(sweep, SweepPaths(tmp_path, sweep.name), RunOptions(local=True), screen), screen.notes  # type: ignore[arg-type]

    return run_sweep
