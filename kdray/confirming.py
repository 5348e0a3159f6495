"""The stages between search and choice, in which students are trained outside the search, on the slots.

Each run of them stands in MLflow beside the trials, under a number of its own. What is trained, and what its answers
come to, is `confirmation`'s.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdray.choice import candidates
from kdray.confirmation import (
    Control,
    Rerun,
    Retrained,
    Verdict,
    answers_of,
    front_controls,
    judged,
    rerun_all,
    reruns,
)  # fmt: skip
from kdray.paths import SweepPaths, read_json, write_json
from kdray.record import TrialRecord
from kdray.screen import Screen
from kdray.search.ledger import Ledger
from kdray.settings import dotted
from kdray.slots import SlotPool
from kdray.sweep import Sweep
from kdray.tokens import Rows
from kdray.tracking import Tracker
from kdray.trial import Lesson, Trial, last_report, quality

FIRST_RERUN = 10_000
"""Where the numbers of reruns begin in MLflow: trials never come so far."""


@dataclass(frozen=True)
class Retraining:
    """Whatever is trained outside the search of a sweep whose trials have all ended."""

    sweep: Sweep
    paths: SweepPaths
    ledger: Ledger
    lessons: Mapping[str | None, Lesson]
    slots: SlotPool
    tracker: Tracker
    screen: Screen

    def controls(self) -> list[Control]:
        """Train each architecture of the front without distillation, and with it as it comes."""
        sweep = self.sweep
        runs = front_controls(self.ledger.records(), sweep.search.objectives, sweep.recipe_of, sweep.seed)
        failed = self._train(runs, "controls trained")
        return [
            Control(trial=run.trial, role=run.role, error=failed[run.key])
            if run.key in failed
            else Control(trial=run.trial, role=run.role, metrics=last_report(self.paths.rerun(run.key)))
            for run in runs
        ]

    def verdict(self) -> Verdict:
        """Train the candidates and their controls over other seeds, and judge them on the test rows."""
        sweep, paths = self.sweep, self.paths
        able = candidates(self.ledger.records(), sweep.choose, sweep.confirm.candidates)
        runs = reruns(sweep.confirm, able, sweep.recipe_of, sweep.seed)
        failed = self._train(runs, "students trained again")
        answers = {run: logits for run in runs if (logits := answers_of(paths.rerun(run.key))) is not None}
        told = {run: failed[run.key] for run in runs if run.key in failed}
        taught = read_json(paths.teacher_figures)
        return judged(answers, told, self._test_rows(), sweep.task, able, sweep.choose, taught)

    def _train(self, runs: Sequence[Rerun], what: str) -> dict[str, str]:
        """Train them, telling screen and MLflow of each that ends: why some of them failed, by key."""
        trials = {
            run: Trial(run.recipe, self.lessons[run.recipe.student.checkpoint], run.seed, self.paths.rerun(run.key))
            for run in runs
        }
        costs = {record.number: record.costs for record in self.ledger.records()}
        keys = list(dict.fromkeys(run.key for run in runs))
        numbers = self._numbers(keys)
        rows = self._test_rows()
        failed: dict[str, str] = {}
        ended: set[str] = set()

        def on_end(run: Rerun, retrained: Retrained) -> None:
            ended.add(run.key)
            self.screen.progress(what, len(ended), len(keys))
            if retrained.error:
                failed[run.key] = retrained.error
                self.screen.note(f"{run} failed: {retrained.error}")
            if retrained.reports or retrained.error:
                answers = answers_of(self.paths.rerun(run.key))
                tested = {} if answers is None else quality(self.sweep.task, answers, rows)
                figures = {**costs[run.trial], **{f"test.{name}": value for name, value in tested.items()}}
                tags = {"kdray.role": run.role, "kdray.of_trial": str(run.trial)}
                tags["kdray.teacher"] = self.sweep.teacher.called
                record = _record(numbers[run.key], run, retrained, figures)
                self.tracker.trial(record, dotted(run.recipe) | {"seed": run.seed}, tags)

        rerun_all(trials, self.slots, on_end)
        return failed

    def _test_rows(self) -> Rows:
        lesson = self.lessons[None]
        return lesson.transfer.rows(lesson.tokens, "test")

    def _numbers(self, keys: Sequence[str]) -> dict[str, int]:
        """A number for each, the same whenever it is asked for, and no trial's."""
        file = self.paths.reruns
        known: dict[str, int] = read_json(file) if file.exists() else {}
        for key in keys:
            known.setdefault(key, FIRST_RERUN + len(known))
        if keys:
            write_json(file, known)
        return known


def _record(number: int, run: Rerun, retrained: Retrained, figures: dict[str, float]) -> TrialRecord:
    """A rerun as MLflow is told of it: as a trial that begins and ends now."""
    took_s = sum(report.get("train_seconds", 0.0) for report in retrained.reports)
    return TrialRecord(
        number, {}, "failed" if retrained.error else "completed", retrained.reports, figures, retrained.error,
        host=retrained.host, started=time.time() - took_s, ended=time.time(), title=str(run),
    )  # fmt: skip
