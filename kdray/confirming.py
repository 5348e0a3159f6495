"""The stage between search and choice: candidates and controls are trained again on the slots, and judged.

Each run of it stands in MLflow beside the trials, under a number of its own. What is trained, and what its answers come
to, is `confirmation`'s.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdray.choice import candidates
from kdray.confirmation import Rerun, Retrained, Verdict, answers_of, judged, rerun_all, reruns
from kdray.paths import SweepPaths, read_json, write_json
from kdray.record import TrialRecord
from kdray.screen import Screen
from kdray.search.ledger import Ledger
from kdray.settings import dotted
from kdray.slots import SlotPool
from kdray.sweep import Sweep
from kdray.tracking import Tracker
from kdray.trial import Lesson, Trial, quality

FIRST_RERUN = 10_000
"""Where the numbers of reruns begin in MLflow: trials never come so far."""


def confirm(
    sweep: Sweep, paths: SweepPaths, ledger: Ledger, lessons: Mapping[str | None, Lesson], slots: SlotPool,
    tracker: Tracker, screen: Screen,
) -> Verdict:  # fmt: skip
    """Train the candidates and their controls again, and judge them on the test rows."""
    able = candidates(ledger.records(), sweep.choose, sweep.confirm.candidates)
    runs = reruns(sweep.confirm, able, sweep.recipe_of, sweep.seed)
    rows = lessons[None].transfer.rows(lessons[None].tokens, "test")
    trials = {
        run: Trial(run.recipe, lessons[run.recipe.student.checkpoint], run.seed, paths.rerun(run.key)) for run in runs
    }
    costs = {record.number: record.costs for record in able}
    keys = list(dict.fromkeys(run.key for run in runs))
    numbers = _numbers(paths.reruns, keys)
    failed: dict[str, str] = {}
    ended: set[str] = set()

    def on_end(run: Rerun, retrained: Retrained) -> None:
        ended.add(run.key)
        screen.progress("students trained again", len(ended), len(keys))
        if retrained.error:
            failed[run.key] = retrained.error
            screen.note(f"{run} failed: {retrained.error}")
        if retrained.reports or retrained.error:
            answers = answers_of(paths.rerun(run.key))
            tested = {} if answers is None else quality(sweep.task, answers, rows)
            figures = {**costs[run.trial], **{f"test.{name}": value for name, value in tested.items()}}
            tags = {"kdray.role": run.role, "kdray.candidate": str(run.trial), "kdray.teacher": sweep.teacher.called}
            record = _record(numbers[run.key], run, retrained, figures)
            tracker.trial(record, dotted(run.recipe) | {"seed": run.seed}, tags)

    rerun_all(trials, slots, on_end)
    answers = {run: logits for run in runs if (logits := answers_of(paths.rerun(run.key))) is not None}
    told = {run: failed[run.key] for run in runs if run.key in failed}
    return judged(answers, told, rows, sweep.task, able, sweep.choose, read_json(paths.teacher_figures))


def _record(number: int, run: Rerun, retrained: Retrained, figures: dict[str, float]) -> TrialRecord:
    """A rerun as MLflow is told of it: as a trial that begins and ends now."""
    took_s = sum(report.get("train_seconds", 0.0) for report in retrained.reports)
    return TrialRecord(
        number, {}, "failed" if retrained.error else "completed", retrained.reports, figures, retrained.error,
        host=retrained.host, started=time.time() - took_s, ended=time.time(), title=str(run),
    )  # fmt: skip


def _numbers(file: Path, keys: Sequence[str]) -> dict[str, int]:
    """A number for each, the same whenever it is asked for, and no trial's."""
    known: dict[str, int] = read_json(file) if file.exists() else {}
    for key in keys:
        known.setdefault(key, FIRST_RERUN + len(known))
    if keys:
        write_json(file, known)
    return known
