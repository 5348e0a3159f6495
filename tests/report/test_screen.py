"""What a person sees while a sweep runs."""

import contextlib
import io
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


def plain(show) -> list[str]:
    stream = io.StringIO()
    with PlainScreen(stream) as screen:
        show(screen)
    return [line.partition("] ")[2] for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_plain_lines_and_a_terminal_the_live_display():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(open_screen(io.StringIO()), PlainScreen)
    assert isinstance(open_screen(Terminal()), LiveScreen)


def test_plain_lines_tell_each_trial_once_with_its_settings_result_and_reason():
    def show(screen: PlainScreen) -> None:
        screen.stage("Search")
        screen.trials([RUNNING], 24, None)
        screen.trials([RUNNING], 24, None)
        for _ in range(2):
            screen.trials([COMPLETED, FAILED], 24, COMPLETED)

    begun, completed, failed, best = plain(show)[1:]
    assert begun == "  trial 000 begins: depth 2, T 3.14, alpha 0.70, lr 1.9e-4"
    assert "trial 000 completed: accuracy 0.8612, retention 97.1%, latency 1.60 ms" in completed
    assert "2 of 24 trials, 1 failed" in completed
    assert "trial 001 failed: loss is nan at epoch 2" in failed
    assert best.startswith("  best so far: trial 000: accuracy 0.8612")


def test_progress_of_a_thousand_steps_is_four_plain_lines():
    lines = plain(lambda screen: [screen.progress("rows labelled", done, 1000) for done in range(1001)])
    assert lines == [f"  rows labelled: {n} of 1,000" for n in (250, 500, 750)] + ["  rows labelled: 1,000 of 1,000"]


def test_the_live_display_shows_stages_the_best_trial_and_the_failed_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=40, color_system=None)
    with LiveScreen(console) as screen:
        screen.stage("Teacher")
        screen.progress("epochs", 1, 3)
        screen.note("validation cut from train")
        screen.stage("Search")
        screen.trials([COMPLETED, FAILED, replace(RUNNING, number=2)], 24, COMPLETED)
        with console.capture() as capture:
            console.print(screen._drawn())
    drawn = capture.get()
    assert "2 of 24 trials, 1 running, 1 failed" in drawn
    assert "best so far  trial 000: accuracy 0.8612, retention 97.1%" in drawn
    assert "failed: loss is nan" in drawn
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "validation cut from train" in shown
    assert "✓ Teacher" in shown
    assert "✓ Search" in shown


def test_a_stage_that_an_error_ended_is_marked():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with contextlib.suppress(ValueError), LiveScreen(console) as screen:
        screen.stage("Teacher")
        raise ValueError
    assert "✗" in console.file.getvalue()  # type: ignore[attr-defined]


def test_time_left_counts_the_trials_to_come_and_the_slots_that_share_them():
    ended = [replace(COMPLETED, number=n, started=60.0 * (n // 2), ended=60.0 * (n // 2 + 1)) for n in range(4)]
    assert seconds_left(ended, 10, now=120.0) == pytest.approx(6 * 60 / 2)
    running = [replace(RUNNING, number=n, started=120.0) for n in (4, 5)]
    assert seconds_left(ended + running, 10, now=150.0) == pytest.approx((4 * 60 + 2 * 30) / 2)


def test_time_left_is_not_guessed_without_a_budget_or_a_finished_trial():
    assert seconds_left([COMPLETED], None, now=0.0) is None
    assert seconds_left([RUNNING], 10, now=0.0) is None
