"""The verdict of a confirmation: the figures of each candidate on the test rows, with intervals, and the choice.

The interval of one figure is a bootstrap over rows and seeds. The interval of a difference draws the same rows for both
students (see `statistics`). If the interval of a gain contains zero, the sentence says that no gain is shown.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.race import Dropped
from kdray.choice.reruns import Role
from kdray.choice.rule import Choice, Choose, apply_rule
from kdray.evaluation.formatting import (
    format_change,
    format_difference,
    format_distance,
    format_interval,
    has_points,
    noun,
)
from kdray.evaluation.pareto import direction
from kdray.evaluation.randomisation import randomisation_test
from kdray.evaluation.statistics import (
    CountMetric,
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_ratio,
    mcnemar,
)
from kdray.evaluation.trial_record import TrialRecord
from kdray.tasks.task import Task

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
    dropped: list[Dropped] = []
    """The candidates that the race dropped before they were trained with all seeds."""
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


def reach_verdict(
    answers: ConfirmationAnswers,
    candidates: Sequence[TrialRecord],
    rule: Choose,
    teacher: Mapping[str, float],
    dropped: Sequence[Dropped] = (),
) -> Verdict:
    """Apply the rule to the confirmed figures, or to those of the search if no candidate could be trained again.

    `candidates` are in the order in which the rule prefers them. `teacher` are the metrics and costs of the teacher in
    the search. `dropped` are the candidates without all seeds: they are shown, but not chosen.
    """
    choice = confirmed_choice(answers, candidates, rule, teacher, dropped)
    figures = _ConfirmedFigures(answers, rule)
    confirmed = [figures.student(record, role) for record in candidates for role in answers.roles(record.number)]
    verdict = Verdict(
        metric=figures.metric,
        rows=len(answers.rows.example_starts) - 1,
        teacher=figures.teacher,
        confirmed=confirmed,
        dropped=list(dropped),
        chosen=choice.number,
        satisfied=choice.satisfied,
        sentences=[],
        failed={run.title(answers.task): error for run, error in answers.failed.items()},
    )
    if (winner := verdict.winner) is not None:
        searched = next(record.metrics for record in candidates if record.number == winner.trial)
        excess = searched[figures.metric] - winner.metric.estimate if figures.metric in searched else None
        records = _test_records(answers, candidates)
        ranked = rule.rank(records, _knee_scores(candidates)) or rule.rank_by_limits(records)
        others = [record.number for record in ranked if record.number != winner.trial]
        against = figures.paired_test(winner.trial, others[0]) if others else None
        gains = [figures.gain(winner.trial, role) for role in answers.roles(winner.trial) if role != "candidate"]
        verdict = verdict.model_copy(update={"gains": gains, "against": against, "flattered": excess})
    return verdict.model_copy(update={"sentences": _describe(verdict, choice, answers.task)})


def confirmed_choice(
    answers: ConfirmationAnswers,
    candidates: Sequence[TrialRecord],
    rule: Choose,
    teacher: Mapping[str, float],
    dropped: Sequence[Dropped] = (),
) -> Choice:
    """The choice of `reach_verdict`, without the figures and the intervals that it reports."""
    knee_scores = _knee_scores(candidates)
    records = _test_records(answers, candidates)
    if not records:
        return apply_rule(candidates, rule, teacher, "candidate", knee_scores)
    # Every candidate is dropped only where none satisfies the rule, and the rule then chooses none of them.
    incomplete = {each.trial for each in dropped}
    complete = [record for record in records if record.number not in incomplete] or records
    figures = {**teacher, **answers.task.values(answers.teacher, answers.rows)}
    return apply_rule(complete, rule, figures, "confirmed student", knee_scores)


def _test_records(answers: ConfirmationAnswers, candidates: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The candidates that have outputs, with their metrics on the test rows."""
    return [answers.test_record(record) for record in candidates if "candidate" in answers.roles(record.number)]


def _knee_scores(candidates: Sequence[TrialRecord]) -> dict[int, float]:
    # The knee is a property of the whole front, and only the search has measured all of that front. So the order of the
    # candidates is used: of those that still satisfy the rule, the first one is the closest to the knee.
    return {record.number: -float(place) for place, record in enumerate(candidates)}


class _ConfirmedFigures:
    """The figures of students and teacher on the test rows."""

    def __init__(self, answers: ConfirmationAnswers, rule: Choose) -> None:
        self._answers, self._rule = answers, rule
        self._rows, self._task = answers.rows, answers.task
        self.metric = self._task.quality.name
        self._teacher_metric = answers.count_metric(self.metric, [answers.teacher])
        self.teacher = bootstrap_interval(self._teacher_metric)

    def student(self, record: TrialRecord, role: Role) -> ConfirmedStudent:
        """The figures of one student over its seeds."""
        count_metric = self._count_metric(record.number, role)
        # As in `quality.retention`: more than 1 means that the student is better.
        is_minimized = self._task.quality.direction == "minimize"
        ratio = (self._teacher_metric, count_metric) if is_minimized else (count_metric, self._teacher_metric)
        metrics = self._answers.mean_metrics(record.number, role)
        return ConfirmedStudent(
            trial=record.number,
            role=role,
            seeds=count_metric.seeds,
            metric=bootstrap_interval(count_metric),
            retention=bootstrap_ratio(*ratio),
            metrics=metrics,
            misses=self._rule.misses({**record.metrics, **metrics}),
        )

    def gain(self, trial: int, over: Role) -> Gain:
        """The lead of the candidate over its control."""
        candidate, control = self._count_metric(trial, "candidate"), self._count_metric(trial, over)
        return Gain(over=over, difference=bootstrap_difference(candidate, control))

    def paired_test(self, trial: int, other: int) -> PairedTest | ExchangeTest:
        """The test of two candidates: McNemar's where a row has one answer, else one that works for any metric.

        The test compares two models, not two recipes, so it reads the first seed of each candidate only.
        """
        first, second = (self._answers.outputs_of(each, "candidate")[0] for each in (trial, other))
        if self._task.has_one_answer:
            right = mcnemar(self._task.right(first, self._rows), self._task.right(second, self._rows))
            return PairedTest(trial=other, only_chosen=right.only_first, only_other=right.only_second, p=right.p)
        test = randomisation_test(*(self._answers.count_metric(self.metric, [each]) for each in (first, second)))
        return ExchangeTest(trial=other, difference=test.estimate, shuffles=test.shuffles, p=test.p)

    def _count_metric(self, trial: int, role: Role) -> CountMetric:
        return self._answers.count_metric(self.metric, self._answers.outputs_of(trial, role))


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
    sentences += [f"{each}." for each in verdict.dropped]
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
