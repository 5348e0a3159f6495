"""The stage that applies the user's rule and records the decision."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdray.choice.controls import Control
from kdray.choice.decision import Decision, DecisionSettings
from kdray.choice.reruns import planned_reruns
from kdray.choice.rule import apply_rule, front_trials
from kdray.choice.verdict import Verdict
from kdray.errors import StorageError, SweepFailed
from kdray.evaluation.pareto import direction
from kdray.evaluation.trial_record import TrialRecord
from kdray.search.importance import setting_importances
from kdray.stages.session import Session
from kdray.storage.mirror import fetch
from kdray.storage.paths import SweepPaths, display_path
from kdray.storage.records import write_record
from kdray.sweep import Sweep
from kdray.training.trial import read_reports


def choose(
    session: Session,
    records: Sequence[TrialRecord],
    controls: Sequence[Control],
    verdict: Verdict | None,
    teacher: Mapping[str, float],
) -> Decision:
    """Apply the rule to the trials, and record the decision. A verdict has already applied the rule: its choice stands.

    `teacher` are the metrics and costs of the teacher. Raises SweepFailed when no trial completed, StorageError when
    the weights of the chosen student were not kept.
    """
    sweep, paths = session.sweep, session.paths
    session.screen.stage("Choice")
    if not any(record.state == "completed" for record in records):
        first_error = next((record.error for record in records if record.error), None)
        reason = f"the first error: {first_error}" if first_error else "early stopping stopped all of them"
        raise SweepFailed(f"none of the {len(records)} trials completed; {reason}")
    choice = apply_rule(records, sweep.choose, teacher)
    decision = Decision(
        chosen=choice.number if verdict is None else verdict.chosen,
        sentences=(choice.sentence,) if verdict is None else tuple(verdict.sentences),
        asked=DecisionSettings(choose=sweep.choose, confirm=sweep.confirm),
        front=tuple(sorted(front_trials(records, sweep.search.objectives))),
        importances=setting_importances(session.ledger),
        controls=tuple(controls),
        confirmation=verdict,
    )
    if decision.chosen is not None:
        # Raises if the weights are missing: before the decision is recorded, so that the former one stays.
        student_to_ship(sweep, paths, session.ledger[decision.chosen], verdict)
    write_record(paths.choice, decision)
    return decision


def student_to_ship(sweep: Sweep, paths: SweepPaths, record: TrialRecord, verdict: Verdict | None) -> Path:
    """The folder with the weights to ship for the chosen trial.

    A confirmed trial has one student for each seed: the best of them on the validation rows is shipped. Otherwise the
    student of the search is shipped. Raises StorageError if that student is needed and was not kept.
    """
    if verdict is not None and verdict.winner is not None:
        metric = verdict.metric
        best = min if direction(metric) == "minimize" else max
        # The reruns of the controls are no students to ship.
        runs = planned_reruns(sweep.confirm, {record.number: sweep.recipe_of(record.params)}, None, sweep.seed)
        # Reruns that failed have no weights.
        trained = [student for run in runs if fetch(student := paths.rerun(run.key)).exists()]
        return best(trained, key=lambda student: float(read_reports(student)[-1][metric]))
    student = fetch(paths.student(record.number))
    if not student.exists():
        raise StorageError(
            f"{display_path(student)}: trial {record.number} was not on the front of the objectives or of the earlier "
            "rule, so its weights were not kept. Train it again: --set confirm.candidates=1."
        )
    return student
