"""The verdict of a confirmation: the figures of each candidate on the test rows, with intervals, and the choice.

The interval of one figure is a bootstrap over rows and seeds. The interval of a difference draws the same rows for both
students (see `statistics`). If the interval of a gain contains zero, the sentence says that no gain is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from kdray.choice.reruns import Rerun, Role
from kdray.choice.rule import Choice, Choose, apply_rule
from kdray.data.rows import Rows
from kdray.evaluation.formatting import (
    format_change,
    format_difference,
    format_distance,
    format_interval,
    has_points,
    noun,
)
from kdray.evaluation.pareto import direction
from kdray.evaluation.quality import student_quality
from kdray.evaluation.randomisation import randomisation_test
from kdray.evaluation.statistics import (
    CountMetric,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_ratio,
    mcnemar,
    metric_of_counts,
)
from kdray.evaluation.trial_record import TrialRecord
from kdray.tasks.task import Outputs, Task

FEW_ROWS = 200
"""Below this number of test rows, a sentence says that the intervals are wide."""


class ConfirmedStudent(BaseModel):
    """One student on the test rows, over its seeds."""

    model_config = ConfigDict(frozen=True)

    trial: int
    role: Role
    seeds: int
    """The number of seeds that it was trained with."""
    metric: Interval
    """The task's quality metric."""
    retention: Interval
    metrics: dict[str, float]
    """All metrics of the task, averaged over the seeds."""
    misses: list[str]
    """The requirements of the rule that it does not satisfy with these figures, in words."""


class Gain(BaseModel):
    """The lead of the chosen student over one of its controls."""

    model_config = ConfigDict(frozen=True)

    over: Role
    difference: Interval
    """The task's quality metric of the chosen student minus that of the control."""


class PairedTest(BaseModel):
    """McNemar's test of the chosen student and the next candidate, for a task whose rows have one answer."""

    model_config = ConfigDict(frozen=True)

    trial: int
    """The number of the next candidate."""
    only_chosen: int
    """The number of rows that only the chosen student has right."""
    only_other: int
    """The number of rows that only the other candidate has right."""
    p: float


class ExchangeTest(BaseModel):
    """The approximate randomisation test of the chosen student and the next candidate, for all other tasks."""

    model_config = ConfigDict(frozen=True)

    trial: int
    """The number of the next candidate."""
    difference: float
    """The quality metric of the chosen student minus that of the other candidate."""
    shuffles: int
    """How often the answers of rows were exchanged at random."""
    p: float


class Verdict(BaseModel):
    """The result of a confirmation."""

    model_config = ConfigDict(frozen=True)

    metric: str
    """The name of the task's quality metric."""
    rows: int
    """The number of test rows."""
    teacher: Interval
    """The teacher's quality on the test rows."""
    confirmed: list[ConfirmedStudent]
    chosen: int | None
    satisfied: bool
    """Whether the chosen student satisfies the rule."""
    sentences: list[str]
    gains: list[Gain] = []
    against: PairedTest | ExchangeTest | None = None
    flattered: float | None = None
    """The chosen trial's metric in the search, on the validation rows, minus its confirmed metric."""
    failed: dict[str, str] = {}
    """Rerun -> why it failed."""

    @property
    def winner(self) -> ConfirmedStudent | None:
        """The confirmed figures of the chosen student; None without one, or if no candidate could be trained again."""
        return next((c for c in self.confirmed if (c.trial, c.role) == (self.chosen, "candidate")), None)


@dataclass(frozen=True)
class ConfirmationAnswers:
    """The outputs of the reruns of a confirmation for the test rows."""

    outputs: Mapping[Rerun, Outputs]
    failed: Mapping[Rerun, str]
    """Rerun -> why it failed."""
    teacher: Outputs
    rows: Rows
    """The test rows."""
    task: Task


def reach_verdict(
    answers: ConfirmationAnswers, candidates: Sequence[TrialRecord], rule: Choose, teacher: Mapping[str, float]
) -> Verdict:
    """Apply the rule to the confirmed figures, or to those of the search if no candidate could be trained again.

    `candidates` are in the order in which the rule prefers them. `teacher` are the metrics and costs of the teacher in
    the search.
    """
    figures = _ConfirmedFigures(answers, rule)
    confirmed = [figures.student(record, role) for record in candidates for role in figures.roles(record.number)]
    test_metrics = {student.trial: student.metrics for student in confirmed if student.role == "candidate"}
    records = [
        replace(record, history=(*record.history, test_metrics[record.number]))
        for record in candidates
        if record.number in test_metrics
    ]
    # The knee is a property of the whole front, and only the search has measured all of that front. So the order of the
    # candidates is used: of those that still satisfy the rule, the first one is the closest to the knee.
    knee_scores = {record.number: -float(place) for place, record in enumerate(candidates)}
    if records:
        choice = apply_rule(records, rule, {**teacher, **figures.teacher_metrics}, "confirmed student", knee_scores)
    else:
        choice = apply_rule(candidates, rule, teacher, "candidate", knee_scores)
    verdict = Verdict(
        metric=figures.metric,
        rows=len(answers.rows.example_starts) - 1,
        teacher=figures.teacher,
        confirmed=confirmed,
        chosen=choice.number,
        satisfied=choice.satisfied,
        sentences=[],
        failed={str(run): error for run, error in answers.failed.items()},
    )
    if (winner := verdict.winner) is not None:
        searched = next(record.metrics for record in candidates if record.number == winner.trial)
        excess = searched[figures.metric] - winner.metric.estimate if figures.metric in searched else None
        ranked = rule.rank(records, knee_scores) or rule.rank_by_limits(records)
        others = [record.number for record in ranked if record.number != winner.trial]
        against = figures.paired_test(winner.trial, others[0]) if others else None
        gains = [figures.gain(winner.trial, role) for role in figures.roles(winner.trial) if role != "candidate"]
        verdict = verdict.model_copy(update={"gains": gains, "against": against, "flattered": excess})
    return verdict.model_copy(update={"sentences": _describe(verdict, choice, answers.task)})


class _ConfirmedFigures:
    """The figures of students and teacher on the test rows."""

    def __init__(self, answers: ConfirmationAnswers, rule: Choose) -> None:
        self._answers, self._rule = answers, rule
        self._rows, self._task = answers.rows, answers.task
        self.metric = self._task.quality.name
        self._teacher_metric = self._count_metric([answers.teacher])
        self.teacher_metrics = self._task.values(answers.teacher, self._rows)
        self.teacher = bootstrap_interval(self._teacher_metric)

    def roles(self, trial: int) -> list[Role]:
        """The roles that have outputs for this trial."""
        return list(dict.fromkeys(run.role for run in self._answers.outputs if run.trial == trial))

    def student(self, record: TrialRecord, role: Role) -> ConfirmedStudent:
        """The figures of one student over its seeds."""
        outputs = self._outputs(record.number, role)
        count_metric = self._count_metric(outputs)
        teacher = self._answers.teacher
        # As in `quality.retention`: more than 1 means that the student is better.
        is_minimized = self._task.quality.direction == "minimize"
        ratio = (self._teacher_metric, count_metric) if is_minimized else (count_metric, self._teacher_metric)
        metrics_of_seeds = [student_quality(self._task, each, teacher, self._rows) for each in outputs]
        metrics = {name: float(np.mean([each[name] for each in metrics_of_seeds])) for name in metrics_of_seeds[0]}
        return ConfirmedStudent(
            trial=record.number,
            role=role,
            seeds=len(outputs),
            metric=bootstrap_interval(count_metric),
            retention=bootstrap_ratio(*ratio),
            metrics=metrics,
            misses=self._rule.misses({**record.metrics, **metrics}),
        )

    def gain(self, trial: int, over: Role) -> Gain:
        """The lead of the candidate over its control."""
        candidate, control = (self._count_metric(self._outputs(trial, role)) for role in ("candidate", over))
        return Gain(over=over, difference=bootstrap_difference(candidate, control))

    def paired_test(self, trial: int, other: int) -> PairedTest | ExchangeTest:
        """The test of two candidates: McNemar's where a row has one answer, else one that works for any metric.

        The test compares two models, not two recipes, so it reads the first seed of each candidate only.
        """
        first, second = (self._outputs(each, "candidate")[0] for each in (trial, other))
        if self._task.has_one_answer:
            right = mcnemar(self._task.right(first, self._rows), self._task.right(second, self._rows))
            return PairedTest(trial=other, only_chosen=right.only_first, only_other=right.only_second, p=right.p)
        test = randomisation_test(self._count_metric([first]), self._count_metric([second]))
        return ExchangeTest(trial=other, difference=test.estimate, shuffles=test.shuffles, p=test.p)

    def _outputs(self, trial: int, role: str) -> list[Outputs]:
        """The outputs with each seed, in the order of the seeds."""
        runs = [run for run in self._answers.outputs if (run.trial, run.role) == (trial, role)]
        return [self._answers.outputs[run] for run in sorted(runs, key=lambda run: run.seed)]

    def _count_metric(self, outputs: Sequence[Outputs]) -> CountMetric:
        return metric_of_counts(self.metric, [self._task.counts(each, self._rows) for each in outputs])


def _describe(verdict: Verdict, choice: Choice, task: Task) -> list[str]:
    """The verdict in sentences."""
    sentences = [choice.sentence]
    if (winner := verdict.winner) is not None:
        seeds = "1 seed" if winner.seeds == 1 else f"{winner.seeds} seeds"
        metric = format_interval(verdict.metric, winner.metric)
        retention = format_interval("retention", winner.retention)
        sentences.append(
            f"Trial {winner.trial} was trained again with {seeds} and measured on {verdict.rows:,} test rows, which "
            f"the search did not use: {noun(verdict.metric)} {metric}, retention {retention}."
        )
        sentences += [_describe_gain(verdict, gain, task) for gain in verdict.gains]
        sentences += _describe_weak_teacher(verdict, winner, task)
    elif not any(student.role == "candidate" for student in verdict.confirmed):
        sentences.append(
            "The choice could not be confirmed, because no candidate could be trained again. The figures are those of "
            "the validation rows, which the search used."
        )
    if verdict.flattered is not None:
        sentences.append(_describe_excess(verdict, verdict.flattered))
    if verdict.against is not None:
        sentences.append(_describe_test(verdict, verdict.against))
    if verdict.rows < FEW_ROWS:
        sentences.append(
            f"With {verdict.rows} test rows the intervals are wide: a small difference cannot be detected."
        )
    if verdict.failed:
        sentences.append(f"{len(verdict.failed)} of the runs of the confirmation failed; report.md gives the reasons.")
    return sentences


def _describe_weak_teacher(verdict: Verdict, winner: ConfirmedStudent, task: Task) -> list[str]:
    """A sentence if a student without a teacher is better than the teacher; the interval must show it."""
    own = (winner.trial, "labels only")
    control = next((student for student in verdict.confirmed if (student.trial, student.role) == own), None)
    if control is None or control.retention.low <= 1:
        return []
    return [
        f"The teacher is weak: the same student trained {task.without_teacher} is better ({noun(verdict.metric)} "
        f"{format_interval(verdict.metric, control.metric)}). Fine-tune the teacher longer, or with another learning "
        "rate, before you trust the retention."
    ]


def _describe_test(verdict: Verdict, test: PairedTest | ExchangeTest) -> str:
    compared = f"Compared with trial {test.trial}, the next candidate, by the first seed of each:"
    if isinstance(test, ExchangeTest):
        return (
            f"{compared} the {noun(verdict.metric)} of the chosen student is "
            f"{format_distance(verdict.metric, test.difference, 0)} {'higher' if test.difference >= 0 else 'lower'} "
            f"(approximate randomisation test with {test.shuffles:,} shuffles: p = {test.p:.2g})."
        )
    return (
        f"{compared} {test.only_chosen} rows are right only for the chosen student, {test.only_other} only for trial "
        f"{test.trial} (McNemar's test: p = {test.p:.2g})."
    )


def _describe_excess(verdict: Verdict, excess: float) -> str:
    before = f"In the search, on the validation rows, the {noun(verdict.metric)} of trial {verdict.chosen} was"
    distance = f"{format_distance(verdict.metric, excess, 0)} {'higher' if excess > 0 else 'lower'}"
    was_better = excess < 0 if direction(verdict.metric) == "minimize" else excess > 0
    if was_better:
        return f"{before} {distance}: the best of many trials is overestimated, and the rows differ."
    return f"{before} {distance}, so it was not overestimated."


def _describe_gain(verdict: Verdict, gain: Gain, task: Task) -> str:
    metric = verdict.metric
    cause, control = {
        "labels only": ("distillation", f"the same student trained {task.without_teacher}"),
        "labelled rows": ("more text", "the same distillation on the labelled rows alone"),
        "logits alone": ("the inner terms", "the same distillation on logits alone"),
        "default distillation": ("the search", "the same student with default distillation"),
    }[gain.over]
    is_higher, is_lower = gain.difference.low > 0, gain.difference.high < 0
    is_better, is_worse = (is_lower, is_higher) if direction(metric) == "minimize" else (is_higher, is_lower)
    remark = "; no gain is shown"
    if is_better:
        remark = ""
    elif is_worse:
        remark = "; the chosen student is worse"
    if has_points(metric):
        return f"Due to {cause}: {noun(metric)} {format_difference(metric, gain.difference)} over {control}{remark}."
    change = format_change(metric, gain.difference)
    return f"Due to {cause}: {noun(metric)} {change} than for {control}{_share_of_control(verdict, gain)}{remark}."


def _share_of_control(verdict: Verdict, gain: Gain) -> str:
    """How much less or more the value of the chosen student is than that of its control, in percent."""
    if (winner := verdict.winner) is None or not (control := winner.metric.estimate - gain.difference.estimate):
        return ""
    share = gain.difference.estimate / abs(control)
    return f", {abs(share):.1%} {'less' if share < 0 else 'more'}"
