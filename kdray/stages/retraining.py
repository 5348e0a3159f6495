"""The stages between search and choice: controls, and the confirmation of the candidates.

Students are trained here outside the search, on the slots. Each of these runs is in MLflow beside the trials, under a
number of its own. `choice` says which runs there are, and what their answers mean.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdray.choice.controls import Control, controls_of_front
from kdray.choice.reruns import Rerun, RerunResult, planned_reruns, read_answers, run_reruns
from kdray.choice.rule import candidates
from kdray.choice.verdict import ConfirmationAnswers, Verdict, reach_verdict
from kdray.data.rows import Rows
from kdray.evaluation.quality import student_quality
from kdray.evaluation.trial_record import TrialRecord
from kdray.settings import dotted_values
from kdray.stages.session import Session
from kdray.stages.teaching import Lessons
from kdray.storage.files import read_json, write_json
from kdray.training.trial import Trial, read_reports

FIRST_NUMBER = 10_000
"""The number of the first rerun: larger than that of any trial of a search."""


def train_controls(session: Session, lessons: Lessons, records: Sequence[TrialRecord]) -> list[Control]:
    """Train each architecture of the front on labels alone, and with default distillation; none if not asked for."""
    sweep = session.sweep
    if not sweep.confirm.controls:
        return []
    session.screen.stage("Controls")
    runs = controls_of_front(records, sweep.search.objectives, sweep.recipe_of, sweep.seed)
    failures = _train(session, lessons, runs, "controls trained")
    return [
        Control(trial=run.trial, role=run.role, error=failures[run.key])
        if run.key in failures
        else Control(trial=run.trial, role=run.role, metrics=read_reports(session.paths.rerun(run.key))[-1])
        for run in runs
    ]


def confirm(
    session: Session, lessons: Lessons, records: Sequence[TrialRecord], teacher: Mapping[str, float]
) -> Verdict | None:
    """Train candidates and their controls over other seeds, and compare them on the test rows; None if not asked for.

    `teacher` are the metrics and costs of the teacher.
    """
    sweep, paths = session.sweep, session.paths
    if not sweep.confirm.candidates:
        return None
    session.screen.stage("Confirmation")
    chosen_from = candidates(records, sweep.choose, sweep.confirm.candidates)
    runs = planned_reruns(sweep.confirm, chosen_from, sweep.recipe_of, sweep.seed)
    failures = _train(session, lessons, runs, "students trained again")
    answers = {run: logits for run in runs if (logits := read_answers(paths.rerun(run.key))) is not None}
    failed = {run: failures[run.key] for run in runs if run.key in failures}
    tested = ConfirmationAnswers(answers, failed, _test_rows(lessons), sweep.task)
    return reach_verdict(tested, chosen_from, sweep.choose, teacher)


def _train(session: Session, lessons: Lessons, runs: Sequence[Rerun], what: str) -> dict[str, str]:
    """Train all of these, and report each to the screen and to MLflow as it ends; key -> why a run failed."""
    sweep, paths = session.sweep, session.paths
    trials = {
        run: Trial(run.recipe, lessons.inputs.of(run.recipe.student), run.seed, paths.rerun(run.key)) for run in runs
    }
    costs = {record.number: record.costs for record in session.ledger.records()}
    keys = list(dict.fromkeys(run.key for run in runs))
    log = RerunLog(paths.reruns, keys)
    rows = _test_rows(lessons)
    failures: dict[str, str] = {}
    ended: set[str] = set()

    def on_end(run: Rerun, result: RerunResult) -> None:
        ended.add(run.key)
        session.screen.progress(what, len(ended), len(keys))
        if result.error:
            failures[run.key] = result.error
            session.screen.note(f"{run} failed: {result.error}")
        answers = read_answers(paths.rerun(run.key))
        tested = {} if answers is None else student_quality(sweep.task, answers, rows)
        figures = {**costs[run.trial], **{f"test.{name}": value for name, value in tested.items()}}
        tags = {
            "kdray.role": run.role,
            "kdray.of_trial": str(run.trial),
            "kdray.teacher": sweep.teacher.display_name,
        }
        record = log.record(run, result, figures)
        session.tracker.trial(record, dotted_values(run.recipe) | {"seed": run.seed}, tags)

    run_reruns(trials, session.slots, on_end)
    return failures


def _test_rows(lessons: Lessons) -> Rows:
    inputs = lessons.inputs.teacher
    return inputs.transfer.rows(inputs.tokens, "test")


class RerunLog:
    """The number, place and time of each rerun, in a file.

    Every session then reports the same to MLflow, and reports what a killed session could not.
    """

    def __init__(self, file: Path, keys: Sequence[str]) -> None:
        """Give a number to each of these runs that has none."""
        self._file = file
        self._known: dict[str, dict[str, Any]] = read_json(file) if file.exists() else {}
        for key in keys:
            self._known.setdefault(key, {"number": FIRST_NUMBER + len(self._known)})
        if keys:
            write_json(file, self._known)

    def record(self, run: Rerun, result: RerunResult, figures: dict[str, float]) -> TrialRecord:
        """A rerun that has ended, as a trial."""
        entry = self._known[run.key]
        if result.host or result.error or "ended" not in entry:
            took_s = sum(report.get("train_seconds", 0.0) for report in result.reports)
            entry |= {"host": result.host, "started": time.time() - took_s, "ended": time.time()}
            write_json(self._file, self._known)
        return TrialRecord(
            params={},
            state="failed" if result.error else "completed",
            history=result.reports,
            costs=figures,
            error=result.error,
            title=str(run),
            **entry,
        )
