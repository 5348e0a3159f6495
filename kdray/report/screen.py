"""The progress of a sweep on the screen: a live display on a terminal, plain lines in a pipe or CI.

The final table is in `table` and the report in `files`. Log messages are written to files, not to the screen.
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
    format_count,
    format_duration,
    format_metric,
    format_metrics,
    format_setting,
    format_settings,
    format_status,
    heading,
    shorten,
)
from kdray.evaluation.formatting import headings as headings_of
from kdray.evaluation.trial_record import State, TrialRecord
from kdray.forms.metrics import FORM_SPEEDUPS
from kdray.safe_text.escaping import one_line, terminal_text
from kdray.storage.records import read_record, write_record

_OTHER_METRICS = ("retention", "latency_ms", "speedup", *FORM_SPEEDUPS.values())
"""The metrics in the line of a trial, behind its quality."""
_COUNTED_STATES: tuple[State, ...] = ("running", "stopped", "failed")
_BAR_WIDTH = 40  # characters
_OTHER_LINES = 8  # of the live display, for everything but the rows of the trials
SILENCE_S = 60.0
"""How long plain lines may say nothing while something is counted: a training of a quarter of an hour is not stuck."""
_STYLES = {"running": "cyan", "completed": "green", "stopped": "yellow", "failed": "red"}


class Screen(Protocol):
    """Shows the progress of a sweep; used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage(self, text: str) -> None:
        """Begin a stage; the previous stage is complete."""

    def note(self, text: str) -> None:
        """Show a message that stays on the screen."""

    def progress(self, text: str, done: float, total: float) -> None:
        """Show that `done` of `total` in this stage are complete; `text` names what is counted."""

    def trials(
        self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None, quality: str
    ) -> None:
        """Show the trials, their number in the whole search if it is known (`budget`), and the best trial so far.

        `quality` is the name of the metric that the trials are compared by.
        """


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

    def trials(
        self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None, quality: str
    ) -> None:
        """See Screen."""


class PlainScreen(NullScreen):
    """One line for each event, with the minutes and seconds since the start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self._quarters: dict[str, int] = {}
        """Text of a progress line -> the last quarter that was printed for it."""
        self._printed = self._start
        """When the last line was printed."""
        self._running: dict[int, int] = {}
        """Number of a trial that has begun and not ended -> its place among the records."""
        self._seen_records = 0
        self._best: int | None = None

    def stage(self, text: str) -> None:
        """Print the name of the stage."""
        self._quarters.clear()
        self._print(text)

    def note(self, text: str) -> None:
        """Print a message."""
        self._print(f"  note: {text}")

    def progress(self, text: str, done: float, total: float) -> None:
        """Print the progress once for each quarter that is complete, and where nothing was printed for a minute."""
        quarter = int(4 * done / total) if total else 4
        is_overdue = done and time.monotonic() - self._printed >= SILENCE_S
        if quarter > self._quarters.get(text, 0) or is_overdue:
            self._quarters[text] = quarter
            self._print(f"  {text}: {_format_amount(done)} of {_format_amount(total)}")

    def trials(
        self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None, quality: str
    ) -> None:
        """Print each trial that has started or ended since the last call, and a new best trial."""
        # Records are only added, and ended trials do not change: with thousands of them, a walk over all takes long.
        places = [*self._running.values(), *range(self._seen_records, len(records))]
        self._seen_records = len(records)
        for place in places:
            record = records[place]
            if record.state != "running":
                self._running.pop(record.number, None)
                self._print(f"  {_trial_line(record, quality)}  [{_trial_counts(records, budget)}]")
            elif record.number not in self._running:
                self._running[record.number] = place
                self._print(f"  trial {record.number:03d} begins: {format_settings(record.params)}")
        if best is not None and best.number != self._best:
            self._best = best.number
            self._print(f"  best so far: trial {best.number:03d}: {_format_result(best, quality)}")

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        seconds = int(self._printed - self._start)
        print(f"[{seconds // 60:d}:{seconds % 60:02d}] {terminal_text(text)}", file=self._stream, flush=True)


class LiveScreen:
    """A display that is drawn again in place: the stage, a progress bar, the best trial, the latest trials."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage: tuple[str, float] | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._progress: tuple[str, float, float] | None = None
        self._records: tuple[TrialRecord, ...] = ()
        self._budget: int | None = None
        self._best: TrialRecord | None = None
        self._quality = ""
        # Transient: at the end the display disappears, and only the lines of the stages and the notes stay.
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_stage("green" if kind is None else "red", "✓" if kind is None else "✗")
        self._live.stop()

    def stage(self, text: str) -> None:
        """Begin a stage; the previous stage stays on the screen with its duration."""
        self._end_stage("green", "✓")
        self._stage = (one_line(text), time.monotonic())

    def note(self, text: str) -> None:
        """Print a message above the display."""
        self._console.print(Text(f"  {terminal_text(text)}", style="dim"))

    def progress(self, text: str, done: float, total: float) -> None:
        """Set the text and the length of the progress bar."""
        self._progress = (one_line(text), done, total)

    def trials(
        self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None, quality: str
    ) -> None:
        """Set the trials to display."""
        self._records, self._budget, self._best, self._quality = tuple(records), budget, best, quality

    def _end_stage(self, style: str, mark: str) -> None:
        if self._stage is not None:
            text, start = self._stage
            line = Text.assemble((f"{mark} ", style), text, (f"  {format_duration(time.monotonic() - start)}", "dim"))
            if self._records:
                line.append(f"  {_trial_counts(self._records, None)}", "dim")
            self._stage = None
            self._console.print(line)
        self._progress, self._records = None, ()

    def _render(self) -> RenderableType:
        if self._stage is None:
            return Text()
        text, start = self._stage
        self._spinner.update(text=Text.assemble(text, (f"  {format_duration(time.monotonic() - start)}", "dim")))
        parts: list[RenderableType] = [self._spinner]
        if self._progress:
            counted, done, total = self._progress
            parts.append(_progress_bar(done, total, f"{counted}: {_format_amount(done)} of {_format_amount(total)}"))
        if self._records:
            parts += self._render_trials()
        return Group(*parts)

    def _render_trials(self) -> list[RenderableType]:
        parts: list[RenderableType] = []
        ended = sum(record.state != "running" for record in self._records)
        counts = _trial_counts(self._records, self._budget)
        parts.append(_progress_bar(ended, self._budget, counts) if self._budget else Text(f"  {counts}"))
        if self._best is not None:
            result = _format_result(self._best, self._quality)
            best = one_line(f"trial {self._best.number:03d}: {result}; {format_settings(self._best.params)}")
            parts.append(Padding(Text.assemble(("best so far  ", "bold"), best), (0, 0, 0, 2)))
        # rich cuts a display that is higher than the terminal, so only as many rows as fit are drawn.
        rows = max(4, self._console.height - _OTHER_LINES)
        parts.append(Padding(_trial_table(_latest_trials(self._records, rows), self._quality), (1, 0, 0, 2)))
        return parts


class StageTimes(RootModel[dict[str, float]]):
    """Stage of a sweep -> its seconds over all sessions: the record times.json."""

    model_config = ConfigDict(frozen=True)


class StageTimer(NullScreen):
    """A screen that forwards to another screen, and writes the seconds of each stage into a file at the end of it."""

    def __init__(self, screen: Screen, file: Path) -> None:
        self._screen, self._file = screen, file
        self._times = dict((read_record(StageTimes, file) or StageTimes({})).root)
        self._stage, self._stage_start = "", 0.0

    @property
    def times(self) -> StageTimes:
        """The seconds of the stages that have ended."""
        return StageTimes(dict(self._times))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # If the storage is full, the error that ends the sweep already reports it. An error here would hide that one.
        with suppress(OSError):
            self._end_stage()

    def stage(self, text: str) -> None:
        """Begin a stage; the time of the previous stage is written."""
        self._end_stage()
        self._stage, self._stage_start = text, time.monotonic()
        self._screen.stage(text)

    def note(self, text: str) -> None:
        """See Screen."""
        self._screen.note(text)

    def progress(self, text: str, done: float, total: float) -> None:
        """See Screen."""
        self._screen.progress(text, done, total)

    def trials(
        self, records: Sequence[TrialRecord], budget: int | None, best: TrialRecord | None, quality: str
    ) -> None:
        """See Screen."""
        self._screen.trials(records, budget, best, quality)

    def _end_stage(self) -> None:
        if self._stage:
            self._times[self._stage] = self._times.get(self._stage, 0.0) + time.monotonic() - self._stage_start
            self._stage = ""
            write_record(self._file, self.times)


def open_screen(stream: TextIO | None = None) -> Screen:
    """A live display if `stream` (standard error by default) is a terminal, otherwise plain lines."""
    stream = stream or sys.stderr
    console = Console(file=stream, highlight=False)
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(stream)


def seconds_left(records: Sequence[TrialRecord], budget: int | None, now: float) -> float | None:
    """An estimate of the seconds until the last trial ends, from the mean duration of the trials that have ended.

    None if the number of trials is unknown or no trial has ended. `now` is in seconds since the epoch.
    """
    durations = [record.ended - record.started for record in records if record.state != "running" and record.ended]
    running = [record for record in records if record.state == "running"]
    if budget is None or not durations:
        return None
    mean = sum(durations) / len(durations)
    # The slots are not known here. Their number is at least the number of trials that ran when the last one ended.
    last_end = max(record.ended for record in records)
    parallel = sum(record.started < last_end and (not record.ended or record.ended >= last_end) for record in records)
    running_s = sum(max(0.0, mean - (now - record.started)) for record in running)
    return (mean * max(0, budget - len(records)) + running_s) / max(1, parallel, len(running))


def _trial_counts(records: Sequence[TrialRecord], budget: int | None) -> str:
    counts = Counter(record.state for record in records)
    ended = len(records) - counts["running"]
    parts = [f"{ended} of {format_count(budget, 'trial')}" if budget else format_count(ended, "trial")]
    parts += [f"{counts[state]} {state}" for state in _COUNTED_STATES if counts[state]]
    left = seconds_left(records, budget, time.time())
    return ", ".join(parts) + (f", about {format_duration(left)} left" if left else "")


def _format_result(record: TrialRecord, quality: str) -> str:
    return format_metrics(record.metrics, dict.fromkeys((quality, *_OTHER_METRICS)))


def _trial_line(record: TrialRecord, quality: str) -> str:
    result = _format_result(record, quality) if record.history else ""
    return f"trial {record.number:03d} {shorten(format_status(record), 120)}" + (f": {result}" if result else "")


def _format_amount(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.1f}"


def _progress_bar(done: float, total: float | None, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" ", ProgressBar(total or 1, done, width=_BAR_WIDTH), Text(text))
    return grid


def _latest_trials(records: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """At most `most` trials: the running ones, then the others, the last ended one first."""
    running = [record for record in records if record.state == "running"]
    ended = [record for record in records if record.state != "running"]
    ended.sort(key=lambda record: (record.ended, record.number), reverse=True)
    return (running + ended)[:most]


def _trial_table(records: Sequence[TrialRecord], quality: str) -> Table:
    names = headings_of(records[0].params) if records else {}
    in_forms = [name for name in FORM_SPEEDUPS.values() if any(name in record.costs for record in records)]
    columns = list(dict.fromkeys((quality, "retention", "latency_ms", *in_forms)))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for title in ("trial", *names.values(), "epoch", *map(heading, columns)):
        table.add_column(Text(one_line(title)), justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True, overflow="ellipsis", ratio=1, min_width=10)
    for record in records:
        metrics = record.metrics
        table.add_row(
            f"{record.number:03d}",
            # Text, not str: rich would read brackets in a value as markup.
            *(Text(one_line(format_setting(record.params.get(name)))) for name in names),
            f"{metrics['epoch']:g}" if "epoch" in metrics else "-",
            *(format_metric(name, metrics.get(name)) for name in columns),
            Text(one_line(format_status(record)), style=_STYLES[record.state]),
        )
    return table
