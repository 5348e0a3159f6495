"""What a person sees while a sweep runs: a live display on a terminal, plain lines in a pipe or CI.

What the final table and the report look like is `report`'s business; logging goes to files.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from pydantic import ConfigDict, RootModel
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kdray.evaluation.formatting import (
    format_duration,
    format_metric,
    format_metrics,
    format_setting,
    format_settings,
    format_status,
    shorten,
)
from kdray.evaluation.formatting import headings as headings_of
from kdray.evaluation.trial_record import State, TrialRecord
from kdray.storage.records import read_record, write_record

_BEST = ("accuracy", "retention", "latency_ms", "speedup")
_STATES: tuple[State, ...] = ("running", "stopped", "failed")
_BAR = 40  # characters
_STYLES = {"running": "cyan", "completed": "green", "stopped": "yellow", "failed": "red"}


class Screen(Protocol):
    """Shows how far a sweep is; used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, text: str) -> None:
        """A new stage begins, and the one before is done."""

    def note(self, text: str) -> None:
        """Something worth knowing: it stays to be read."""

    def progress(self, text: str, done: float, total: float) -> None:
        """How far the stage is."""

    def trials(self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None) -> None:
        """How the trials stand, of `budget` where that is known, and the best so far."""


class NullScreen:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, text: str) -> None:
        """See Screen."""

    def note(self, text: str) -> None:
        """See Screen."""

    def progress(self, text: str, done: float, total: float) -> None:
        """See Screen."""

    def trials(self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None) -> None:
        """See Screen."""


class PlainScreen(NullScreen):
    """One line for each thing that happens, with the time since the start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._quarters: dict[str, int] = {}
        self._ended: set[int] = set()
        self._begun: set[int] = set()
        self._best: int | None = None

    def stage(self, text: str) -> None:
        """A new stage begins."""
        self._quarters.clear()
        self._line(text)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._line(f"  note: {text}")

    def progress(self, text: str, done: float, total: float) -> None:
        """How far the stage is: a line for each quarter."""
        quarter = int(4 * done / total) if total else 4
        if quarter > self._quarters.get(text, 0):
            self._quarters[text] = quarter
            self._line(f"  {text}: {_amount(done)} of {_amount(total)}")

    def trials(self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None) -> None:
        """A line for each trial that began or ended since, and for a new best one."""
        for record in records:
            if record.state != "running" and record.number not in self._ended:
                self._ended.add(record.number)
                self._line(f"  {_trial_line(record)}  [{_standing(records, budget)}]")
            elif record.state == "running" and record.number not in self._begun:
                self._begun.add(record.number)
                self._line(f"  trial {record.number:03d} begins: {format_settings(record.params)}")
        if best is not None and best.number != self._best:
            self._best = best.number
            self._line(f"  best so far: trial {best.number:03d}: {format_metrics(best.metrics, _BEST)}")

    def _line(self, text: str) -> None:
        at = int(time.monotonic() - self._start)
        print(f"[{at // 60:d}:{at % 60:02d}] {text}", file=self._stream, flush=True)


class LiveScreen:
    """A display that is drawn anew in place: stages, a bar, the trials under way, the best so far."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage: tuple[str, float] | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._progress: tuple[str, float, float] | None = None
        self._records: tuple[TrialRecord, ...] = ()
        self._budget: int | None = None
        self._best: TrialRecord | None = None
        self._live = Live(get_renderable=self._drawn, console=console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_stage("green" if kind is None else "red", "✓" if kind is None else "✗")
        self._live.stop()

    def stage(self, text: str) -> None:
        """A new stage begins; the one before stays on the screen with the time it took."""
        self._end_stage("green", "✓")
        self._stage = (text, time.monotonic())

    def note(self, text: str) -> None:
        """Something worth knowing: it stays above the display."""
        self._console.print(Text(f"  {text}", style="dim"))

    def progress(self, text: str, done: float, total: float) -> None:
        """How far the stage is."""
        self._progress = (text, done, total)

    def trials(self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None) -> None:
        """How the trials stand."""
        self._records, self._budget, self._best = tuple(records), budget, best

    def _end_stage(self, style: str, mark: str) -> None:
        if self._stage is not None:
            text, start = self._stage
            line = Text.assemble((f"{mark} ", style), text, (f"  {format_duration(time.monotonic() - start)}", "dim"))
            if self._records:
                line.append(f"  {_standing(self._records, None)}", "dim")
            self._stage = None
            self._console.print(line)
        self._progress, self._records = None, ()

    def _drawn(self) -> RenderableType:
        if self._stage is None:
            return Text()
        text, start = self._stage
        self._spinner.update(text=Text.assemble(text, (f"  {format_duration(time.monotonic() - start)}", "dim")))
        parts: list[RenderableType] = [self._spinner]
        if self._progress:
            what, done, total = self._progress
            parts.append(_bar(done, total, f"{what}: {_amount(done)} of {_amount(total)}"))
        if self._records:
            parts += self._drawn_trials()
        return Group(*parts)

    def _drawn_trials(self) -> list[RenderableType]:
        ended = sum(record.state != "running" for record in self._records)
        standing = _standing(self._records, self._budget)
        parts: list[RenderableType] = [_bar(ended, self._budget, standing) if self._budget else Text(f"  {standing}")]
        if self._best is not None:
            best = f"trial {self._best.number:03d}: {format_metrics(self._best.metrics, _BEST)}; {format_settings(self._best.params)}"
            parts.append(Padding(Text.assemble(("best so far  ", "bold"), best), (0, 0, 0, 2)))
        room = max(4, self._console.height - 8)
        parts.append(Padding(_trial_table(_latest(self._records, room)), (1, 0, 0, 2)))
        return parts


class StageTimes(RootModel[dict[str, float]]):
    """The seconds of each stage of a sweep, over all its sessions: times.json."""

    model_config = ConfigDict(frozen=True)


class StageTimer(NullScreen):
    """Shows everything on another screen, and records the seconds of each stage in a file as the stage ends."""

    def __init__(self, screen: Screen, file: Path) -> None:
        self._screen, self._file = screen, file
        self._times = dict((read_record(StageTimes, file) or StageTimes({})).root)
        self._stage, self._since = "", 0.0

    @property
    def times(self) -> StageTimes:
        """The times of the stages that have ended."""
        return StageTimes(dict(self._times))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full storage is reported by whatever failed first
            self._end()

    def stage(self, text: str) -> None:
        """A new stage begins; the one before is over."""
        self._end()
        self._stage, self._since = text, time.monotonic()
        self._screen.stage(text)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._screen.note(text)

    def progress(self, text: str, done: float, total: float) -> None:
        """How far the stage is."""
        self._screen.progress(text, done, total)

    def trials(self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None) -> None:
        """How the trials stand."""
        self._screen.trials(records, budget, best)

    def _end(self) -> None:
        if self._stage:
            self._times[self._stage] = self._times.get(self._stage, 0.0) + time.monotonic() - self._since
            self._stage = ""
            write_record(self._file, self.times)


def open_screen(stream: TextIO | None = None) -> Screen:
    """The live display where `stream` (the standard error by default) is a terminal, plain lines elsewhere."""
    stream = stream or sys.stderr
    console = Console(file=stream, highlight=False)
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(stream)


def seconds_left(records: Sequence[TrialRecord], budget: int | None, now: float) -> float | None:
    """How long the trials still to run will take, if they take as long as those that ended; None when unknown."""
    took = [record.ended - record.started for record in records if record.state != "running" and record.ended]
    running = [record for record in records if record.state == "running"]
    if budget is None or not took:
        return None
    mean = sum(took) / len(took)
    last = max(record.ended for record in records)
    at_once = sum(record.started < last and (not record.ended or record.ended >= last) for record in records)
    under_way = sum(max(0.0, mean - (now - record.started)) for record in running)
    return (mean * max(0, budget - len(records)) + under_way) / max(1, at_once, len(running))


def _standing(records: Sequence[TrialRecord], budget: int | None) -> str:
    counts = Counter(record.state for record in records)
    ended = len(records) - counts["running"]
    parts = [f"{ended} of {budget} trials" if budget else f"{ended} trials"]
    parts += [f"{counts[state]} {state}" for state in _STATES if counts[state]]
    left = seconds_left(records, budget, time.time())
    return ", ".join(parts) + (f", about {format_duration(left)} left" if left else "")


def _trial_line(record: TrialRecord) -> str:
    result = format_metrics(record.metrics, _BEST) if record.history else ""
    return f"trial {record.number:03d} {shorten(format_status(record), 120)}" + (f": {result}" if result else "")


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.1f}"


def _bar(done: float, total: float | None, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" ", ProgressBar(total or 1, done, width=_BAR), Text(text))
    return grid


def _latest(records: Sequence[TrialRecord], room: int) -> list[TrialRecord]:
    """Those running, then those that ended last, as many as there is room for."""
    running = [record for record in records if record.state == "running"]
    ended = sorted((record for record in records if record.state != "running"), key=lambda r: (r.ended, r.number))
    return (running + ended[::-1])[:room]


def _trial_table(records: Sequence[TrialRecord]) -> Table:
    names = headings_of(records[0].params) if records else {}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for title in ("trial", *names.values(), "epoch", "accuracy", "retention", "latency"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True, overflow="ellipsis", ratio=1, min_width=10)
    for record in records:
        metrics = record.metrics
        table.add_row(
            f"{record.number:03d}",
            *(format_setting(record.params.get(name)) for name in names),
            f"{metrics['epoch']:g}" if "epoch" in metrics else "-",
            *(format_metric(name, metrics.get(name)) for name in ("accuracy", "retention", "latency_ms")),
            Text(format_status(record), style=_STYLES[record.state]),
        )
    return table
