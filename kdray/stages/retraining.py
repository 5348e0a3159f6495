"""The stages between search and choice: controls, and the confirmation of the candidates.

These students are trained on the slots, outside the search. Each such rerun has a number and a run in MLflow, like a
trial. `choice` plans the reruns and evaluates their outputs.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Required  # pydantic needs this one before Python 3.12

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.controls import Control, controls_of_front
from kdray.choice.race import Race, Step, step_without_race
from kdray.choice.reruns import ControlsOf, Rerun, RerunResult, planned_reruns, read_answers, run_reruns
from kdray.choice.rule import candidates
from kdray.choice.verdict import Verdict, reach_verdict
from kdray.data.rows import Rows
from kdray.evaluation.quality import student_quality
from kdray.evaluation.trial_record import TrialRecord
from kdray.settings import dotted_values
from kdray.slots.job import Worker
from kdray.stages.session import Session
from kdray.stages.teaching import Lessons
from kdray.storage.files import write_json
from kdray.storage.paths import SweepPaths
from kdray.storage.records import Number, read_value
from kdray.sweep import Sweep
from kdray.tasks.task import Outputs
from kdray.training.trial import Trial, read_reports

FIRST_NUMBER = 10_000
"""The number of the first rerun: larger than the number of any trial."""


@with_config(ConfigDict(extra="forbid"))
class RerunEntry(TypedDict, total=False):
    """What is stored about one rerun: its number, its host, and its start and end in seconds since the epoch."""

    number: Required[int]
    host: str
    started: Number
    ended: Number


RERUN_ENTRIES = TypeAdapter(dict[str, RerunEntry])
"""The content of reruns.json."""


def train_controls(session: Session, lessons: Lessons, records: Sequence[TrialRecord]) -> list[Control]:
    """Train the controls of each architecture of the front.

    The list is empty if `confirm.controls` is off. A control whose training failed has an error and no metrics.
    """
    sweep = session.sweep
    if not sweep.confirm.controls:
        return []
    session.screen.stage("Controls")
    controls_of = _controls_of(sweep, lessons)
    runs = controls_of_front(records, sweep.search.objectives, sweep.recipe_of, controls_of, sweep.seed)
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
    """Train the candidates and their controls with other seeds, and compare them on the test rows.

    `teacher` are the metrics and costs of the teacher. None if `confirm.candidates` is 0.
    """
    sweep = session.sweep
    if not sweep.confirm.candidates:
        return None
    session.screen.stage("Confirmation")
    candidate_trials = candidates(records, sweep.choose, sweep.confirm.candidates)
    recipes = {record.number: sweep.recipe_of(record.params) for record in candidate_trials}
    plan = planned_reruns(sweep.confirm, recipes, _controls_of(sweep, lessons), sweep.seed)
    race = Race(plan, candidate_trials, sweep.choose)

    def next_step(answers: ConfirmationAnswers) -> Step:
        return race.step(answers) if sweep.confirm.race else step_without_race(plan, answers)

    answers = ConfirmationAnswers({}, {}, _teacher_outputs(lessons), _test_rows(lessons), sweep.task)
    trained, noted, failures = set[str](), set[int](), dict[str, str]()
    while True:
        step = next_step(answers)
        for dropped in step.dropped:
            if dropped.trial not in noted:
                session.screen.note(f"{dropped}.")
        noted |= {dropped.trial for dropped in step.dropped}
        if not step.runs:
            return reach_verdict(answers, candidate_trials, sweep.choose, teacher, step.dropped)
        # A control may be the same training as a candidate of an earlier round, which MLflow has under that role.
        new_runs = [run for run in step.runs if run.key not in trained]
        failures |= _train(session, lessons, new_runs, "students trained again", len(trained))
        trained |= {run.key for run in new_runs}
        answers = _with_reruns(answers, step.runs, failures, session.paths)


def _with_reruns(
    answers: ConfirmationAnswers, runs: Sequence[Rerun], failures: Mapping[str, str], paths: SweepPaths
) -> ConfirmationAnswers:
    """The answers with those of these reruns, which have ended; `failures` are their errors, by key."""
    outputs, validation, failed = dict(answers.outputs), dict(answers.validation), dict(answers.failed)
    for run in runs:
        student = paths.rerun(run.key)
        if (of_run := read_answers(student)) is not None:
            outputs[run], validation[run] = of_run, read_reports(student)[-1]
        if run.key in failures or of_run is None:
            failed[run] = failures.get(run.key, "it ended without outputs for the test rows")
    return replace(answers, outputs=outputs, validation=validation, failed=failed)


def _controls_of(sweep: Sweep, lessons: Lessons) -> ControlsOf:
    return ControlsOf(sweep.recipe, lambda recipe: lessons.inputs.of(recipe.student).has_more_text(recipe))


def trials_of(runs: Sequence[Rerun], lessons: Lessons, paths: SweepPaths) -> dict[Rerun, Trial]:
    """The training of each rerun."""
    return {
        run: Trial(
            recipe=run.recipe,
            inputs=lessons.inputs.of(run.recipe.student),
            seed=run.seed,
            target=paths.rerun(run.key),
        )
        for run in runs
    }


def _train(
    session: Session, lessons: Lessons, runs: Sequence[Rerun], progress_name: str, earlier: int = 0
) -> dict[str, str]:
    """Train these reruns, and report each one to the screen and to MLflow when it ends.

    Returns the error of every failed rerun, by key. `progress_name` names the count on the screen, which begins after
    the number of `earlier` trainings.
    """
    sweep, paths = session.sweep, session.paths
    trials = trials_of(runs, lessons, paths)
    costs = {record.number: record.costs for record in session.ledger.records()}
    # Reruns with one key are one training. This list keeps their order, by which they are numbered.
    keys = list(dict.fromkeys(run.key for run in runs))
    log = RerunLog(paths.reruns, keys)
    rows, teacher = _test_rows(lessons), _teacher_outputs(lessons)
    failures: dict[str, str] = {}
    ended: set[str] = set()

    def on_end(run: Rerun, result: RerunResult) -> None:
        ended.add(run.key)
        session.screen.progress(progress_name, earlier + len(ended), earlier + len(keys))
        if result.error:
            failures[run.key] = result.error
            session.screen.note(f"{run.title(sweep.task)} failed: {result.error}")
        answers = read_answers(paths.rerun(run.key))
        quality = {} if answers is None else student_quality(sweep.task, answers, teacher, rows)
        figures = {**costs[run.trial], **{f"test.{name}": value for name, value in quality.items()}}
        tags = {
            "kdray.role": run.role,
            "kdray.of_trial": str(run.trial),
            "kdray.task": sweep.task.name,
            "kdray.teacher": sweep.teacher.display_name,
        }
        record = log.record(run, result, run.title(sweep.task), figures)
        session.tracker.trial(record, dotted_values(run.recipe) | {"seed": run.seed}, tags)

    run_reruns(trials, session.slots, on_end)
    return failures


def _test_rows(lessons: Lessons) -> Rows:
    return lessons.inputs.first.rows("test", Worker())


def _teacher_outputs(lessons: Lessons) -> Outputs:
    """The teacher's outputs for the test rows."""
    return lessons.inputs.first.teacher_outputs("test", Worker())


class RerunLog:
    """The number, the host and the times of each rerun, in a file.

    With them every session reports the same values to MLflow, also for a rerun that ended in a session which was killed
    before it reported the end.
    """

    def __init__(self, file: Path, keys: Sequence[str]) -> None:
        """Give a number to each of these keys that has none."""
        self._file = file
        self._entries: dict[str, RerunEntry] = read_value(RERUN_ENTRIES, file) if file.exists() else {}
        for key in keys:
            self._entries.setdefault(key, {"number": FIRST_NUMBER + len(self._entries)})
        if keys:
            write_json(file, self._entries)

    def record(self, run: Rerun, result: RerunResult, title: str, figures: dict[str, float]) -> TrialRecord:
        """The record of an ended rerun in the form of a trial's record; `figures` are its costs and test metrics."""
        entry = self._entries[run.key]
        # Without host and error, an earlier session has completed the rerun: its times stay if they are stored.
        if result.host or result.error or "ended" not in entry:
            train_s = sum(report.get("train_seconds", 0.0) for report in result.reports)
            entry |= {"host": result.host, "started": time.time() - train_s, "ended": time.time()}
            write_json(self._file, self._entries)
        return TrialRecord(
            params={},
            state="failed" if result.error else "completed",
            history=result.reports,
            costs=figures,
            error=result.error,
            title=title,
            **entry,
        )
