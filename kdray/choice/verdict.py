"""What confirmation came to: each candidate's figures on rows that nothing was chosen by, with intervals.

The interval of a figure draws rows and seeds anew; those of differences draw the same rows for both (`statistics`). A
gain whose interval holds zero is not shown, and the sentence says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from kdray.choice.reruns import Rerun, Role
from kdray.choice.rule import Choice, Choose, apply_rule
from kdray.data.rows import Rows
from kdray.evaluation.formatting import format_interval, format_points
from kdray.evaluation.quality import student_quality
from kdray.evaluation.statistics import (
    CountMetric,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_ratio,
    classification_metric,
    mcnemar,
)
from kdray.evaluation.trial_record import TrialRecord
from kdray.tasks.task import Task

FEW_ROWS = 200


class ConfirmedStudent(BaseModel):
    """One student over its seeds, on the test rows."""

    model_config = ConfigDict(frozen=True)

    trial: int
    role: Role
    seeds: int
    metric: Interval
    retention: Interval
    metrics: dict[str, float]
    """All of the task's, averaged over the seeds."""
    misses: list[str]
    """What it lacks by the rule, on these figures."""


class Gain(BaseModel):
    """How much better the chosen student is than one of its controls."""

    model_config = ConfigDict(frozen=True)

    over: Role
    difference: Interval


class PairedTest(BaseModel):
    """The chosen student beside the next candidate, on rows that only one of them has right."""

    model_config = ConfigDict(frozen=True)

    trial: int
    only_chosen: int
    only_other: int
    p: float


class Verdict(BaseModel):
    """What confirmation came to."""

    model_config = ConfigDict(frozen=True)

    metric: str
    rows: int
    teacher: Interval
    confirmed: list[ConfirmedStudent]
    chosen: int | None
    satisfied: bool
    sentences: list[str]
    gains: list[Gain] = []
    against: PairedTest | None = None
    flattered: float | None = None
    """The metric on the validation rows when the chosen trial was found, less the confirmed one."""
    failed: dict[str, str] = {}
    """What could not be trained again, and why."""

    @property
    def winner(self) -> ConfirmedStudent | None:
        """The chosen student's confirmed figures; None where none was chosen, or none could be trained again."""
        return next((c for c in self.confirmed if (c.trial, c.role) == (self.chosen, "candidate")), None)


@dataclass(frozen=True)
class ConfirmationAnswers:
    """What the reruns of a confirmation answered on the test rows."""

    logits: Mapping[Rerun, np.ndarray]
    """Run -> its logits (N x C)."""
    failed: Mapping[Rerun, str]
    """Run -> why it failed."""
    rows: Rows
    task: Task


def reach_verdict(
    answers: ConfirmationAnswers, candidates: Sequence[TrialRecord], rule: Choose, teacher: Mapping[str, float]
) -> Verdict:
    """Apply the rule to the confirmed figures; to the figures of the search where no candidate could be trained again.

    `teacher` are the teacher's metrics and costs, as the search knows them.
    """
    figures = _ConfirmedFigures(answers, rule)
    confirmed = [figures.student(record, role) for record in candidates for role in figures.roles(record.number)]
    tested = {each.trial: each.metrics for each in confirmed if each.role == "candidate"}
    records = [
        replace(record, history=(*record.history, tested[record.number]))
        for record in candidates
        if record.number in tested
    ]
    # A knee belongs to the whole front, which only the search has seen. Candidates come in the order of the rule, so
    # among those that still satisfy it the first one is nearest to the knee.
    knee_scores = {record.number: -float(place) for place, record in enumerate(candidates)}
    if records:
        choice = apply_rule(records, rule, {**teacher, **figures.teacher_metrics}, "confirmed student", knee_scores)
    else:
        choice = apply_rule(candidates, rule, teacher, "candidate", knee_scores)
    verdict = Verdict(
        metric=figures.metric,
        rows=len(answers.rows),
        teacher=figures.teacher,
        confirmed=confirmed,
        chosen=choice.number,
        satisfied=choice.satisfied,
        sentences=[],
        failed={str(run): why for run, why in answers.failed.items()},
    )
    if (winner := verdict.winner) is not None:
        found = next(record for record in candidates if record.number == winner.trial)
        flattered = found.metrics[figures.metric] - winner.metric.estimate if figures.metric in found.metrics else None
        ranked = [record.number for record in (rule.ranked(records, knee_scores) or rule.nearest(records))]
        others = [number for number in ranked if number != winner.trial]
        against = figures.paired_test(winner.trial, others[0]) if others else None
        gains = [figures.gain(winner.trial, role) for role in figures.roles(winner.trial) if role != "candidate"]
        verdict = verdict.model_copy(update={"gains": gains, "against": against, "flattered": flattered})
    return verdict.model_copy(update={"sentences": _sentences(verdict, choice)})


class _ConfirmedFigures:
    """The figures of students and teacher on the test rows."""

    def __init__(self, answers: ConfirmationAnswers, rule: Choose) -> None:
        self._answers, self._rule = answers, rule
        self._rows, self._task = answers.rows, answers.task
        self.metric = self._task.quality
        teacher_NxC = self._rows.teacher_logits(np.arange(len(self._rows)))
        self._teacher = self._resampled([teacher_NxC])
        self.teacher_metrics = self._task.metrics(teacher_NxC, self._rows.labels)
        self.teacher = bootstrap_interval(self._teacher)

    def roles(self, trial: int) -> list[Role]:
        """The roles in which runs of this trial, or controls of it, have answered."""
        return list(dict.fromkeys(run.role for run in self._answers.logits if run.trial == trial))

    def student(self, record: TrialRecord, role: Role) -> ConfirmedStudent:
        """One student over its seeds."""
        logits = self._logits(record.number, role)
        resampled = self._resampled(logits)
        each = [student_quality(self._task, logits_NxC, self._rows) for logits_NxC in logits]
        metrics = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        return ConfirmedStudent(
            trial=record.number,
            role=role,
            seeds=len(logits),
            metric=bootstrap_interval(resampled),
            retention=bootstrap_ratio(resampled, self._teacher),
            metrics=metrics,
            misses=self._rule.misses({**record.metrics, **metrics}),
        )

    def gain(self, trial: int, over: Role) -> Gain:
        """How much better the candidate is than its control."""
        ours, theirs = (self._resampled(self._logits(trial, role)) for role in ("candidate", over))
        return Gain(over=over, difference=bootstrap_difference(ours, theirs))

    def paired_test(self, trial: int, other: int) -> PairedTest:
        """McNemar's test of two candidates, by the first seed of each: it compares two classifiers, not two recipes."""
        right = [self._logits(each, "candidate")[0].argmax(1) == self._rows.labels for each in (trial, other)]
        found = mcnemar(*right)
        return PairedTest(trial=other, only_chosen=found.only_first, only_other=found.only_second, p=found.p)

    def _logits(self, trial: int, role: str) -> list[np.ndarray]:
        """The logits of each seed, in the order of the seeds."""
        runs = [run for run in self._answers.logits if (run.trial, run.role) == (trial, role)]
        return [self._answers.logits[run] for run in sorted(runs, key=lambda run: run.seed)]

    def _resampled(self, logits: Sequence[np.ndarray]) -> CountMetric:
        answers_SxN = np.stack([one.argmax(1) for one in logits])
        return classification_metric(self.metric, answers_SxN, self._rows.labels)


def _sentences(verdict: Verdict, choice: Choice) -> list[str]:
    said = [choice.sentence]
    winner = verdict.winner
    if winner is not None:
        seeds = f"{winner.seeds} seed{'s' * (winner.seeds > 1)}"
        metric = format_interval(verdict.metric, winner.metric)
        retention = format_interval("retention", winner.retention)
        said.append(
            f"Trained again over {seeds} and measured on {verdict.rows:,} test rows that nothing was chosen by: "
            f"{verdict.metric} {metric}, {retention} of the teacher's."
        )
        said += [_gain(gain) for gain in verdict.gains]
    elif not any(each.role == "candidate" for each in verdict.confirmed):
        said.append(
            "This could not be confirmed: no candidate could be trained again, and the figures are those of the "
            "validation rows, which it was chosen by."
        )
    if verdict.flattered is not None:
        points = 100 * verdict.flattered
        why = "the choice among many flatters, and the rows differ" if points > 0 else "the choice did not flatter it"
        more = f"{abs(points):.1f} points {'more' if points > 0 else 'less'}"
        said.append(f"When it was found, the validation rows said {more}: {why}.")
    if verdict.against is not None:
        other = verdict.against
        said.append(
            f"Beside trial {other.trial}, the next candidate, it alone is right on {other.only_chosen} rows and alone "
            f"wrong on {other.only_other} (McNemar's p {other.p:.2g})."
        )
    if verdict.rows < FEW_ROWS:
        said.append(f"With {verdict.rows} test rows the intervals are wide: a difference of a point cannot be seen.")
    if verdict.failed:
        said.append(f"{len(verdict.failed)} of the runs that were to confirm it failed; report.md has the reasons.")
    return said


def _gain(gain: Gain) -> str:
    due, over = {
        "labels only": ("Due to distillation", "the same student trained on labels alone"),
        "default distillation": ("Due to the search", "the same student with distillation as it comes"),
    }[gain.over]
    shown = "" if gain.difference.low > 0 else "; it is worse" if gain.difference.high < 0 else "; no gain is shown"
    return f"{due}: {format_points(gain.difference)} over {over}{shown}."
