"""The stage that applies the user's rule and writes down the decision."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdray.choice.controls import Control
from kdray.choice.decision import Decision, DecisionSettings
from kdray.choice.reruns import planned_reruns
from kdray.choice.rule import apply_rule, front_trials
from kdray.choice.verdict import Verdict
from kdray.errors import StorageError, SweepFailed
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
    """Apply the rule and write the decision down; where there is a verdict, it has applied the rule already.

    Raises SweepFailed when no trial ran to its end, StorageError when the weights of the chosen one were not kept.
    """
    sweep, paths = session.sweep, session.paths
    session.screen.stage("Choice")
    if not any(record.state == "completed" for record in records):
        first = next((record.error for record in records if record.error), "early stopping ended them all")
        raise SweepFailed(f"none of the {len(records)} trials ran to its end; the first: {first}")
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
        student_to_ship(sweep, paths, session.ledger[decision.chosen], verdict)
    write_record(paths.choice, decision)
    return decision


def student_to_ship(sweep: Sweep, paths: SweepPaths, record: TrialRecord, verdict: Verdict | None) -> Path:
    """The folder of the weights to ship for the chosen trial.

    Of the seeds that confirmed it, the best on the validation rows; the trial's own student where it was not confirmed.
    Raises StorageError when the trial's own student is needed and was not kept.
    """
    if verdict is not None and verdict.winner is not None:
        metric = verdict.metric
        candidates_only = sweep.confirm.model_copy(update={"controls": False})
        runs = planned_reruns(candidates_only, [record], sweep.recipe_of, sweep.seed)
        trained = [student for run in runs if fetch(student := paths.rerun(run.key)).exists()]
        return max(trained, key=lambda student: float(read_reports(student)[-1][metric]))
    student = fetch(paths.student(record.number))
    if not student.exists():
        raise StorageError(
            f"{display_path(student)}: trial {record.number} was on no front that the rule of then asked for, so its "
            "weights were not kept. Train it again: --set confirm.candidates=1."
        )
    return student
