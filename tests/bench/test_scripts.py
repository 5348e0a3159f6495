"""Every script in bench/ still starts, measures something small, and prints its one line.

They run with `-m slow`: most of them start Ray, which takes half a minute each. mypy checks all of them at once.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NO_SCRIPTS = {"machine", "material"}
"""Modules that the scripts import."""

REAL = ("--max-rows", "600", "--epochs", "1", "--teacher-epochs", "6")
"""The options that make a sweep of `material` small: as many rows as a teacher needs to be better than chance."""

SMALL: dict[str, tuple[str, ...]] = {
    "busy_machine": ("--seconds", "0.2", "--width", "16"),
    "confirmation_race": ("--repeats", "1"),
    "empty_trials": ("--trials", "6", "--tune-trials", "3"),
    "evaluation_batches": ("--rows", "12", "--repeats", "1"),
    "gpu": ("--tiny",),
    "inner_ratio": ("--max-rows", "48", "--repeats", "1"),
    "kill_and_resume": ("{sweep}", "--kills", "1"),
    "ledger_replay": ("--trials", "40"),
    "many_slots": ("--slots", "20", "--trials", "100", "--most-slots", "20"),
    "million_rows": ("--rows", "400"),
    "slot_memory": ("--megabytes", "1"),
    "step_ratio": (*REAL, "--repeats", "1", "--depths", "1"),
    "sweep_efficiency": (*REAL, "--trials", "2"),
    "textbrewer_peer": (*REAL, "--depths", "1"),
    "top_k": ("--steps", "4", "--vocabulary", "400"),
    "tpe_window": ("--trials", "30", "--seeds", "1"),
    "transformers_peer": (*REAL, "--trials", "2"),
    "trial_overhead": ("--trials", "3", "--nested", "1"),
    "variants": (
        *("{sweep}", "--storage", "{folder}", "--seeds", "1", "--costs", "--set", "student.depth=1"),
        *("--variant", "logits", "--variant", "hidden", "distillation.hidden_mse=0.1"),
    ),
    "vocabulary_memory": ("--vocabulary", "500", "--tokens", "128"),
}

SWEEP = """
from kdray import (
    Confirm, Data, FreshTransformer, GeneratedReviews, Latency, Search, Sweep, Teacher, TextClassification, Training,
)

sweep = Sweep(
    name="tiny",
    task=TextClassification(max_length=32),
    data=Data(source=GeneratedReviews(train_rows=600, validation_rows=200, test_rows=64)),
    teacher=Teacher(
        model=FreshTransformer(layers=2, width=32), training=Training(epochs=6, learning_rate=3e-3), above_chance=0.0
    ),
    training=Training(epochs=1, learning_rate=3e-3),
    latency=Latency(length=16, warmup=1, repeats=3),
    space={"student.depth": [1, 2]},
    search=Search(trials=2, stopping=None),
    confirm=Confirm(candidates=1, seeds=1),
)
"""


def test_every_script_has_a_small_run() -> None:
    assert {path.stem for path in BENCH.glob("*.py")} - NO_SCRIPTS == set(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("script", list(SMALL))
def test_a_script_prints_its_claim(script: str, tmp_path: Path) -> None:
    if script == "textbrewer_peer":
        pytest.importorskip("textbrewer")
    sweep = tmp_path / "tiny.py"
    sweep.write_text(SWEEP)
    arguments = [argument.format(sweep=sweep, folder=tmp_path / "storage") for argument in SMALL[script]]
    figures = figures_of(script, arguments, tmp_path)
    assert figures["claim"]
    assert math.isfinite(figures["ratio"])
    assert figures["machine"]["cores"] >= 1


@pytest.mark.slow
def test_variants_that_are_trained_already_are_kept_for_other_comparisons(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(SWEEP)
    arguments = ["tiny.py", "--storage", "storage", "--seeds", "1", "--variant", "logits"]

    def trained(*variant: str) -> dict[Path, int]:
        figures_of("variants", [*arguments, "--variant", *variant], tmp_path)
        return {file: file.stat().st_mtime_ns for file in tmp_path.glob("storage/*/confirmation/*/ended.json")}

    first = trained("hidden", "distillation.hidden_mse=0.1")
    assert len(first) == 2
    second = trained("shallow", "student.depth=1")
    assert first.items() < second.items()
    assert len(second) == 3


def figures_of(script: str, arguments: Sequence[str], folder: Path) -> Any:
    """Run a script in this folder, and return the figures that it prints."""
    command = [sys.executable, str(BENCH / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    return json.loads(line)
