"""The screen: plain lines, the live display, and the estimate of the time left."""

import contextlib
import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import LiveScreen, PlainScreen, open_screen, seconds_left

PARAMS = {
    "training.learning_rate": 1.9e-4,
    "student.depth": 2,
    "distillation.temperature": 3.14159,
    "distillation.alpha": 0.7,
}
RUNNING = TrialRecord(0, PARAMS, started=1000.0)
EVALUATION = {"epoch": 3.0, "step": 648.0, "accuracy": 0.8612, "retention": 0.971}
COMPLETED = replace(RUNNING, state="completed", history=(EVALUATION,), costs={"latency_ms": 1.6}, ended=1060.0)
FAILED = replace(RUNNING, number=1, state="failed", error="loss is nan\nat epoch 2", ended=1030.0)


def plain_lines(show) -> list[str]:
    """The lines that `show` prints on a plain screen, without their times."""
    stream = io.StringIO()
    with PlainScreen(stream) as screen:
        show(screen)
    return [line.partition("] ")[2] for line in stream.getvalue().splitlines()]


def test_open_screen_is_plain_on_a_pipe_and_live_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(open_screen(io.StringIO()), PlainScreen)
    assert isinstance(open_screen(Terminal()), LiveScreen)


def test_plain_screen_prints_the_start_and_the_end_of_each_trial_once():
    def show(screen: PlainScreen) -> None:
        screen.stage("Search")
        screen.trials([RUNNING], 24, None, "accuracy")
        screen.trials([RUNNING], 24, None, "accuracy")
        for _ in range(2):
            screen.trials([COMPLETED, FAILED], 24, COMPLETED, "accuracy")

    started, completed, failed, best = plain_lines(show)[1:]
    assert started == "  trial 000 begins: depth 2, T 3.14, alpha 0.70, lr 1.9e-4"
    assert "trial 000 completed: accuracy 0.8612, retention 97.1%, latency 1.60 ms" in completed
    assert "2 of 24 trials, 1 failed" in completed
    assert "trial 001 failed: loss is nan at epoch 2" in failed
    assert best.startswith("  best so far: trial 000: accuracy 0.8612")


def test_plain_screen_prints_progress_four_times():
    lines = plain_lines(lambda screen: [screen.progress("rows labelled", done, 1000) for done in range(1001)])
    assert lines == [f"  rows labelled: {n} of 1,000" for n in (250, 500, 750)] + ["  rows labelled: 1,000 of 1,000"]


def test_plain_screen_prints_progress_where_it_has_printed_nothing_for_a_minute(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def train(screen: PlainScreen) -> None:
        screen.progress("students trained again", 0, 9)
        for done, minutes in enumerate((0.5, 2.5, 3.0, 3.2, 5.0), start=1):
            now[0] = 60 * minutes
            screen.progress("students trained again", done, 9)

    lines = plain_lines(train)
    assert lines == [f"  students trained again: {done} of 9" for done in (2, 3, 5)]


def test_live_screen_shows_stages_the_best_trial_and_failed_trials(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=40, color_system=None)
    with LiveScreen(console) as screen:
        screen.stage("Teacher")
        screen.progress("epochs", 1, 3)
        screen.note("validation cut from train")
        screen.stage("Search")
        screen.trials([COMPLETED, FAILED, replace(RUNNING, number=2)], 24, COMPLETED, "accuracy")
        with console.capture() as capture:
            console.print(screen._render())
    display = capture.get()
    assert "2 of 24 trials, 1 running, 1 failed" in display
    assert "best so far  trial 000: accuracy 0.8612, retention 97.1%" in display
    assert "failed: loss is nan" in display
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "validation cut from train" in output
    assert "✓ Teacher" in output
    assert "✓ Search" in output


@pytest.mark.parametrize(
    ("quality", "value", "text"), [("span_f1", 0.5123, "span F1 0.5123"), ("mse", 1.5, "MSE 1.500")]
)
def test_both_screens_show_the_metric_that_the_trials_are_compared_by(quality: str, value: float, text: str):
    trial = replace(COMPLETED, history=({"epoch": 3.0, quality: value, "retention": 0.971},))
    lines = plain_lines(lambda screen: screen.trials([trial], 24, trial, quality))
    assert f"trial 000 completed: {text}, retention 97.1%" in lines[0]
    assert lines[1].startswith(f"  best so far: trial 000: {text}")
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=40, color_system=None)
    with LiveScreen(console) as screen:
        screen.stage("Search")
        screen.trials([trial], 24, trial, quality)
        with console.capture() as capture:
            console.print(screen._render())
    title, row = [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()][-2:]
    name, number = text.rsplit(" ", 1)
    assert title == f"trial depth T alpha lr epoch {name} retention latency status"
    assert row.startswith(f"000 2 3.14 0.70 1.9e-4 3 {number} 97.1% 1.60 ms completed")


def test_live_screen_marks_a_stage_that_ended_with_an_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with contextlib.suppress(ValueError), LiveScreen(console) as screen:
        screen.stage("Teacher")
        raise ValueError
    assert "✗" in console.file.getvalue()  # type: ignore[attr-defined]


def test_seconds_left_counts_remaining_trials_and_parallel_slots():
    ended = [replace(COMPLETED, number=n, started=60.0 * (n // 2), ended=60.0 * (n // 2 + 1)) for n in range(4)]
    assert seconds_left(ended, 10, now=120.0) == pytest.approx(6 * 60 / 2)
    running = [replace(RUNNING, number=n, started=120.0) for n in (4, 5)]
    assert seconds_left(ended + running, 10, now=150.0) == pytest.approx((4 * 60 + 2 * 30) / 2)


def test_seconds_left_is_unknown_without_a_budget_or_an_ended_trial():
    assert seconds_left([COMPLETED], None, now=0.0) is None
    assert seconds_left([RUNNING], 10, now=0.0) is None
