"""The stages between search and choice, in which students are trained outside the search, on the slots.

Each run of them stands in MLflow beside the trials, under a number of its own. What is trained, and what its answers
come to, is `confirmation`'s.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.choice.controls import Control, front_controls
from kdray.choice.reruns import Rerun, Retrained, answers_of, rerun_all, reruns
from kdray.choice.rule import candidates
from kdray.choice.verdict import Verdict, judged
from kdray.data.rows import Rows
from kdray.evaluation.quality import quality
from kdray.evaluation.trial_record import TrialRecord
from kdray.report.screen import Screen
from kdray.search.ledger import Ledger
from kdray.settings import dotted
from kdray.slots.pool import SlotPool
from kdray.storage.files import read_json, write_json
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.tracker import Tracker
from kdray.training.trial import Lesson, Trial, reports_of


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
            else Control(trial=run.trial, role=run.role, metrics=reports_of(self.paths.rerun(run.key))[-1])
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
        book = RerunBook(self.paths.reruns, keys)
        rows = self._test_rows()
        failed: dict[str, str] = {}
        ended: set[str] = set()

        def on_end(run: Rerun, retrained: Retrained) -> None:
            ended.add(run.key)
            self.screen.progress(what, len(ended), len(keys))
            if retrained.error:
                failed[run.key] = retrained.error
                self.screen.note(f"{run} failed: {retrained.error}")
            answers = answers_of(self.paths.rerun(run.key))
            tested = {} if answers is None else quality(self.sweep.task, answers, rows)
            figures = {**costs[run.trial], **{f"test.{name}": value for name, value in tested.items()}}
            tags = {"kdray.role": run.role, "kdray.of_trial": str(run.trial)}
            tags["kdray.teacher"] = self.sweep.teacher.called
            record = book.record(run, retrained, figures)
            self.tracker.trial(record, dotted(run.recipe) | {"seed": run.seed}, tags)

        rerun_all(trials, self.slots, on_end)
        return failed

    def _test_rows(self) -> Rows:
        lesson = self.lessons[None]
        return lesson.transfer.rows(lesson.tokens, "test")


class RerunBook:
    """What MLflow is told of each rerun beside its figures: its number, which is no trial's, and where and when it ran.

    It is kept in a file, so that every session tells the same; and tells what one that was killed could not.
    """

    FIRST = 10_000

    def __init__(self, file: Path, keys: Sequence[str]) -> None:
        """Give a number to each of these that has none."""
        self._file = file
        self._known: dict[str, dict[str, Any]] = read_json(file) if file.exists() else {}
        for key in keys:
            self._known.setdefault(key, {"number": self.FIRST + len(self._known)})
        if keys:
            write_json(file, self._known)

    def record(self, run: Rerun, retrained: Retrained, figures: dict[str, float]) -> TrialRecord:
        """A rerun that has ended, as a trial."""
        entry = self._known[run.key]
        if retrained.host or retrained.error or "ended" not in entry:
            took_s = sum(report.get("train_seconds", 0.0) for report in retrained.reports)
            entry |= {"host": retrained.host, "started": time.time() - took_s, "ended": time.time()}
            write_json(self._file, self._known)
        return TrialRecord(
            params={}, state="failed" if retrained.error else "completed", history=retrained.reports, costs=figures,
            error=retrained.error, title=str(run), **entry,
        )  # fmt: skip
