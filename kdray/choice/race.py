"""The race of the candidates: which of them are trained with a further seed, and which can no longer be chosen.

All candidates are trained with the first seed. Then, round by round, only those that the rule may still choose:

- A candidate is out if it does not satisfy the rule, or will not with all its seeds.
- A candidate is out if another one satisfies the rule, and the rule prefers that one. For the smallest student the
  costs decide, which are known: the dearer candidates wait until the cheaper ones are decided. For the knee the order
  of the candidates decides, in the same way. For the best student their metric on the test rows decides.
- If no candidate satisfies the rule, all of them are compared by what the rule falls back on, unless it falls back on
  none.

The chosen candidate always has all seeds. The controls explain its gain only, so only its own are trained.

The verdict is the rule applied to means over seeds on the given test rows. So what can still change is the mean over
the seeds that are left, and a figure of r seeds, with l seeds left, differs from the mean over all of them by a normal
error with the variance V * l / (r * (r + l)), where V is the variance of a figure between seeds. V has two parts:

- rows that one seed has right and another one wrong. The bootstrap variance over rows of a figure with one seed is an
  upper bound: a row that is right with probability p adds at most as much to it as p * (1 - p). For the difference of
  two students on the same rows it is the sum of both, so half of it is counted for each.
- a seed that is better or worse on all rows. It is estimated, over all candidates together, from the figures on the
  validation rows: those of the search, and of the seeds trained so far. The search's figures are too good, because the
  trials were selected by them, so this part is rather too large.

The second part has few degrees of freedom; those of the sum are Satterthwaite's (1946, "An approximate distribution of
estimates of variance components"), and the quantile is that of Student's t. A race is wrong if it drops the candidate
that would be chosen with all seeds. In each round but the last, the limits of the rule can drop it, or each other
candidate. So `WRONG` is divided by the number of these rounds times that of the candidates (Bonferroni).

A race reads nothing but the outputs of its own rounds, so a sweep that is continued repeats it with the same result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm, t

from kdray.choice.answers import ConfirmationAnswers
from kdray.choice.reruns import Rerun
from kdray.choice.rule import Choose, signed
from kdray.evaluation.formatting import format_count, format_difference, format_metric, noun
from kdray.evaluation.pareto import direction
from kdray.evaluation.statistics import Interval, bootstrap_difference, bootstrap_interval, bootstrap_ratio
from kdray.evaluation.trial_record import TrialRecord

WRONG = 0.05
"""The largest probability that a race drops a candidate which the rule would have chosen with all seeds."""
RESAMPLES = 400
"""The number of draws of the rows, of which only the standard deviation is needed."""
ONE_SIGMA = float(norm.cdf(1) - norm.cdf(-1))
"""The level of an interval whose half width is the standard deviation."""


class Dropped(BaseModel):
    """A candidate that was not trained with all seeds, because it could no longer be chosen."""

    model_config = ConfigDict(frozen=True)

    trial: int
    seeds: int
    """The number of seeds that it was trained with."""
    planned: int
    """The number of seeds of the confirmation."""
    reason: str
    """Why it could no longer be chosen, as a sentence without its end."""

    def __str__(self) -> str:
        return (
            f"Trial {self.trial} was dropped after {self.seeds} of {format_count(self.planned, 'seed')}: {self.reason}"
        )


@dataclass(frozen=True)
class Step:
    """What the confirmation does next."""

    runs: Sequence[Rerun]
    """The reruns to train; empty if the confirmation is complete."""
    dropped: Sequence[Dropped] = ()
    """The candidates that cannot be chosen any more, although they lack seeds."""


def step_without_race(plan: Sequence[Rerun], answers: ConfirmationAnswers) -> Step:
    """All reruns of the plan at once."""
    return Step([run for run in plan if not _has_ended(run, answers)])


@dataclass(frozen=True)
class Race:
    """The race of these candidates."""

    plan: Sequence[Rerun]
    """The reruns of the whole confirmation, from `planned_reruns`."""
    candidates: Sequence[TrialRecord]
    """The candidates as the search has measured them, in the order in which the rule prefers them."""
    rule: Choose

    @property
    def seeds(self) -> int:
        """The number of seeds of the confirmation."""
        return len({run.seed for run in self.plan})

    def step(self, answers: ConfirmationAnswers) -> Step:
        """The reruns to train next, when those in `answers` have ended."""
        left = {record.number: self._left(record.number, answers) for record in self.candidates}
        first = [runs[0] for runs in left.values() if runs]
        if len(self.candidates) > 1 and not answers.outputs and not answers.failed:
            return Step(first)
        standing = _Standing(self, answers, {number: len(runs) for number, runs in left.items()})
        dropped = [
            Dropped(
                trial=number,
                seeds=len(answers.outputs_of(number, "candidate")),
                planned=self.seeds,
                reason=reason,
            )
            for number, reason in standing.out.items()
            if left[number]
        ]
        return Step(self._next_runs(standing, left, answers), dropped)

    def _next_runs(
        self, standing: "_Standing", left: Mapping[int, Sequence[Rerun]], answers: ConfirmationAnswers
    ) -> list[Rerun]:
        remaining = standing.remaining
        unfinished = [record for record in remaining if left[record.number]]
        # If the rule prefers an unfinished candidate in any case, the other one is needed only if that one fails.
        racing = [each for each in unfinished if not any(standing.lead(other, each) for other in unfinished)]
        if len(racing) > 1:
            return [left[record.number][0] for record in racing]
        # One candidate alone gets all its seeds at once: they are needed unless it fails, and slots can share them.
        runs = list(left[racing[0].number]) if racing else []
        if len(remaining) == 1 and standing.is_chosen(remaining[0]):
            number = remaining[0].number
            runs += [run for run in self.plan if run.trial == number and run.role != "candidate"]
        return [run for run in runs if not _has_ended(run, answers)]

    def _left(self, trial: int, answers: ConfirmationAnswers) -> list[Rerun]:
        """The reruns of a candidate that have not ended, in the order of their seeds."""
        runs = [run for run in self.plan if (run.trial, run.role) == (trial, "candidate")]
        return sorted((run for run in runs if not _has_ended(run, answers)), key=lambda run: run.seed)


def _has_ended(run: Rerun, answers: ConfirmationAnswers) -> bool:
    return run in answers.outputs or run in answers.failed


@dataclass(frozen=True)
class _Outlook:
    """Whether a candidate satisfies the rule with all its seeds."""

    satisfies: bool | None
    """None: the seeds that are left can still decide it."""
    reason: str = ""
    """Why it does not, in words."""


@dataclass(frozen=True)
class _SeedVariance:
    """The variance of a metric between the seeds of one recipe, and its degrees of freedom."""

    variance: float
    freedom: int


class _Standing:
    """What the seeds so far say about the candidates."""

    def __init__(self, race: Race, answers: ConfirmationAnswers, left: Mapping[int, int]) -> None:
        """`left`: number of a candidate -> how many of its seeds have not ended."""
        self._rule, self._answers, self._left = race.rule, answers, left
        self._searched = race.candidates
        self._places = {record.number: place for place, record in enumerate(race.candidates)}
        self._seeds = {record.number: len(answers.outputs_of(record.number, "candidate")) for record in race.candidates}
        comparisons = max(1, len(race.candidates) * (race.seeds - 1))
        self._level = 1 - 2 * WRONG / comparisons
        # A candidate that failed with every seed has no figures to be chosen by. One without any seed so far has those
        # of the search, of which only the costs are read.
        self._records = [
            answers.test_record(record) if self._seeds[record.number] else record
            for record in race.candidates
            if self._seeds[record.number] or left[record.number]
        ]
        self._outlooks = {record.number: self._outlook(record) for record in self._records}
        self._is_fallback = self._rule.otherwise == "best" and all(
            outlook.satisfies is False for outlook in self._outlooks.values()
        )
        self._leads: dict[tuple[int, int], str] = {}
        self.out = self._find_out()
        """Number of a candidate that cannot be chosen any more -> why."""
        self.remaining = [record for record in self._records if record.number not in self.out]
        """The candidates that can still be chosen."""

    def is_chosen(self, record: TrialRecord) -> bool:
        """Whether the last remaining candidate is chosen, whatever the figures of its other seeds are."""
        is_only_one = len(self._searched) == 1 and self._rule.otherwise == "best"
        return self._is_fallback or is_only_one or self._outlooks[record.number].satisfies is True

    def lead(self, first: TrialRecord, second: TrialRecord) -> str:
        """Why the rule prefers the first of two candidates, if both are equally good enough; empty if it may not."""
        pair = (first.number, second.number)
        if pair not in self._leads:
            self._leads[pair] = "" if first is second else self._find_lead(first, second)
        return self._leads[pair]

    def _find_out(self) -> dict[int, str]:
        if self._is_fallback:
            cause, rivals, others = "no candidate satisfies the rule, and trial {} ", self._records, self._records
        else:
            cause = "trial {} satisfies the rule and "
            others = [each for each in self._records if self._outlooks[each.number].satisfies is not False]
            rivals = [each for each in others if self._outlooks[each.number].satisfies]
        fails = {each.number: self._outlooks[each.number].reason for each in self._records if each not in others}
        leaders = {each.number: [rival for rival in rivals if self.lead(rival, each)] for each in others}
        led = {}
        for each in others:
            if ahead := leaders[each.number]:
                # One that can still be chosen is named, rather than one that is out, too.
                rival = next((rival for rival in ahead if not leaders[rival.number]), ahead[0])
                led[each.number] = cause.format(rival.number) + self.lead(rival, each)
        return fails | led

    def _outlook(self, record: TrialRecord) -> _Outlook:
        """Whether a candidate satisfies the rule."""
        number, rule, metrics = record.number, self._rule, record.metrics
        if self._seeds[number] and (not self._left[number] or math.isnan(metrics["retention"])):
            misses = rule.misses(metrics)
            return _Outlook(not misses, "it " + " and ".join(misses))
        parts = [self._limit_outlook(record, name, limit) for name, limit in rule.at_most.items()]
        if rule.retention is not None:
            parts.append(self._retention_outlook(record, rule.retention))
        for part in parts:
            if part.satisfies is False:
                return part
        return _Outlook(True if all(part.satisfies for part in parts) else None)

    def _retention_outlook(self, record: TrialRecord, least: float) -> _Outlook:
        outputs = self._answers.outputs_of(record.number, "candidate")[:1]
        if not outputs:
            return _Outlook(None)
        task, teacher = self._answers.task, [self._answers.teacher]
        # As in `quality.retention`: more than 1 means that the student is better.
        pair = (teacher, outputs) if task.quality.direction == "minimize" else (outputs, teacher)
        student, divisor = (self._answers.count_metric(task.quality.name, each) for each in pair)
        ratio = bootstrap_ratio(student, divisor, method="percentile", resamples=RESAMPLES, level=ONE_SIGMA)
        expected = self._forecast("retention", record.metrics["retention"], ratio, self._share(record))
        required = f"the rule requires {100 * least:g}%"
        return self._judge("retention", expected, expected.low >= least, expected.high < least, required)

    def _limit_outlook(self, record: TrialRecord, name: str, most: float) -> _Outlook:
        allowed = f"the rule allows at most {format_metric(name, most)}"
        if name in record.costs:
            value = record.costs[name]
            return _Outlook(value <= most, f"its {noun(name)} is {format_metric(name, value)}, and {allowed}")
        outputs = self._answers.outputs_of(record.number, "candidate")[:1]
        if not outputs or not self._is_counted(name):
            return _Outlook(None)
        candidate = self._answers.count_metric(name, outputs)
        figure = bootstrap_interval(candidate, method="percentile", resamples=RESAMPLES, level=ONE_SIGMA)
        expected = self._forecast(name, record.metrics[name], figure, self._share(record))
        return self._judge(name, expected, expected.high <= most, expected.low > most, allowed)

    @staticmethod
    def _judge(name: str, expected: Interval, passes: bool, fails: bool, requirement: str) -> _Outlook:
        if not (passes or fails):
            return _Outlook(None)
        value, low, high = (format_metric(name, each) for each in (expected.estimate, expected.low, expected.high))
        bounds = f"with all seeds, {expected.level:.0%}: {low} to {high}"
        return _Outlook(passes, f"its {noun(name)} is {value} ({bounds}), and {requirement}")

    def _find_lead(self, first: TrialRecord, second: TrialRecord) -> str:
        rule = self._rule
        if self._is_fallback:
            if not (self._has_numbers(first) and self._has_numbers(second)):
                return "has outputs that are numbers" if self._has_numbers(first) else ""
            fewer, more = self._exceeded_limits(first), self._exceeded_limits(second)
            if fewer is None or more is None:
                return ""
            if fewer != more:
                return "exceeds fewer limits" if fewer < more else ""
            return self._lead_by((rule.best, *rule.compared), first, second)
        if rule.knee:
            is_closer = self._places[first.number] < self._places[second.number]
            return "is closer to the knee of the front" if is_closer else ""
        return self._lead_by((rule.smallest or rule.best, rule.best, *rule.compared), first, second)

    def _lead_by(self, names: Sequence[str], first: TrialRecord, second: TrialRecord) -> str:
        """The lead in the first of these metrics in which the two candidates differ, as in `Choose.rank`."""
        for name in names:
            is_known = name in first.costs and name in second.costs
            if not is_known and (self._left[first.number] or self._left[second.number]):
                return self._expected_lead(name, first, second)
            if first.metrics[name] != second.metrics[name]:
                values = [format_metric(name, record.metrics[name]) for record in (first, second)]
                word = "smaller" if direction(name) == "minimize" else "larger"
                is_better = signed(first, name) < signed(second, name)
                return f"has the {word} {noun(name)} ({values[0]} instead of {values[1]})" if is_better else ""
        return "was searched earlier" if first.number < second.number else ""

    def _expected_lead(self, name: str, first: TrialRecord, second: TrialRecord) -> str:
        """The lead of the first of two candidates in a metric of the test rows, if it holds with all seeds."""
        # Of one teacher, the larger retention is that of the better quality.
        name = self._answers.task.quality.name if name == "retention" else name
        if not (self._seeds[first.number] and self._seeds[second.number] and self._is_counted(name)):
            return ""
        one, other = (
            self._answers.count_metric(name, self._answers.outputs_of(record.number, "candidate")[:1])
            for record in (first, second)
        )
        of_first_seeds = bootstrap_difference(one, other, method="percentile", resamples=RESAMPLES, level=ONE_SIGMA)
        difference = first.metrics[name] - second.metrics[name]
        share = self._share(first) + self._share(second)
        expected = self._forecast(name, difference, of_first_seeds, share, students=2)
        is_better = expected.high < 0 if direction(name) == "minimize" else expected.low > 0
        return f"has the better {noun(name)} with all seeds: {format_difference(name, expected)}" if is_better else ""

    def _forecast(self, name: str, estimate: float, of_rows: Interval, share: float, students: int = 1) -> Interval:
        """The range of a figure with all seeds.

        `of_rows` is its interval over rows, of one seed of each of its students, with `ONE_SIGMA` on either side.
        """
        between_seeds = self._seed_variance(name)
        if between_seeds is None:
            return Interval(estimate, -math.inf, math.inf, self._level)
        part_of_seeds = share * between_seeds.variance
        variance = share * (of_rows.width / 2) ** 2 / students + part_of_seeds
        freedom = between_seeds.freedom * (variance / part_of_seeds) ** 2 if part_of_seeds else math.inf
        half = float(t.ppf((1 + self._level) / 2, freedom)) * math.sqrt(variance)
        return Interval(estimate, estimate - half, estimate + half, self._level)

    def _seed_variance(self, name: str) -> _SeedVariance | None:
        """The variance between seeds on the validation rows, of all candidates together; None if it is unknown."""
        squares, freedom = 0.0, 0
        for record in self._searched:
            runs = [run for run in self._answers.validation if (run.trial, run.role) == (record.number, "candidate")]
            figures = (record.metrics, *(self._answers.validation[run] for run in runs))
            values = np.array([each[name] for each in figures if name in each])
            if len(values) > 1 and np.isfinite(values).all():
                squares += float(((values - values.mean()) ** 2).sum())
                freedom += len(values) - 1
        return _SeedVariance(squares / freedom, freedom) if freedom else None

    def _share(self, record: TrialRecord) -> float:
        """The variance of the mean over the seeds so far around that over all seeds / the variance between seeds."""
        left, seeds = self._left[record.number], self._seeds[record.number]
        return left / (seeds * (seeds + left))

    def _is_counted(self, name: str) -> bool:
        return name in self._answers.task.counts(self._answers.teacher, self._answers.rows).metrics

    def _has_numbers(self, record: TrialRecord) -> bool:
        return not math.isnan(record.metrics["retention"])

    def _exceeded_limits(self, record: TrialRecord) -> int | None:
        """The number of limits that a candidate exceeds, as in `Choose.rank_by_limits`; None if that is not certain."""
        limits = self._rule.at_most
        if self._left[record.number] and not limits.keys() <= record.costs.keys():
            return None
        return len([name for name, most in limits.items() if record.metrics[name] > most])
