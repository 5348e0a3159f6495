"""Decides which trial runs next, takes the evaluations of running trials, and decides which trials stop early.

`sampling` draws the trials, and `ledger` records them; after a restart the sampler's state is rebuilt from the ledger.
In place of an architecture's cost, the sampler receives the rank of that cost among all architectures. So the timing
noise in a measured latency never changes which trials are drawn.
"""

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from kdray.errors import SpecError, StorageError
from kdray.evaluation.trial_record import State, TrialRecord
from kdray.search.ledger import OPTUNA_STATES, Ledger
from kdray.search.sampling import Draw, TrialSampler
from kdray.search.settings import Limit, Search
from kdray.search.space import SearchSpace, distributions, narrow_distributions
from kdray.search.stopping import Rungs
from kdray.slots.job import NOTE
from kdray.storage.records import Number, describe_problem

MAX_RETRIES = 3
"""How many times one session retries a trial whose Tune actor died."""

EARLIER_TRIALS = "earlier trials"
"""The ledger's attribute for the trials of another sweep that this sweep's sampler learns from: `trials`, a list. Each
trial in it has `params` and `metrics`."""


class _EarlierTrial(TypedDict):
    """A trial of another sweep."""

    params: dict[str, Any]
    metrics: dict[str, Number]


class EarlierTrials(TypedDict):
    """The value of EARLIER_TRIALS, as far as the planner reads it."""

    trials: list[_EarlierTrial]


EARLIER_TRIALS_KIND = TypeAdapter(EarlierTrials)

SECONDS_SPENT = "seconds spent"
"""The ledger's attribute for how long the search has run in all its sessions; set only when `hours` is a limit."""

WRITE_INTERVAL_S = 60.0
"""How often that attribute is written. A session that is killed loses at most this much of the time."""

MUST_BE_FINITE = ("loss", "train_loss")
"""Besides the objectives: a trial that reports one of these as not finite has failed."""

Costs: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Length:
    """How long a trial is, if nothing stops it."""

    evaluations: int
    first_compared: int = 1
    """The number of its first evaluation, from 1, that says something about the student."""


@dataclass(frozen=True)
class PlannedTrial:
    """A trial to run."""

    number: int
    params: dict[str, Any]
    must_stop: bool = False
    """Early stopping had ended the trial, but the driver died before it recorded that. The driver must not run the
    trial, but `finish` it as stopped."""


class Planner:
    """Plans a search. A driver runs each `next_trial`, passes the reports to `observe`, and then calls `finish`."""

    def __init__(
        self,
        search: Search,
        space: SearchSpace,
        ledger: Ledger,
        costs: Callable[[Mapping[str, Any]], Costs],
        length: Callable[[Mapping[str, Any]], Length] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Continue the search that the ledger records. Raises SpecError when no architecture satisfies the constraints.

        `costs` gives the costs of a trial with these settings; it is called at once for all architectures of the space.
        `length` gives the length of such a trial. With it, no trial is stopped after its last evaluation, and trials of
        different lengths are not compared. `clock` gives the time in seconds.
        """
        self.search, self.ledger = search, ledger
        self._costs, self._length, self._clock = costs, length, clock
        self._distributions = ledger.extend_choices(distributions(space.domains))
        measured = [(shape, costs(shape)) for shape in space.architectures()]
        self._allowed = _allowed_architectures(search.constraints, measured)
        self._sorted_costs = _sorted_costs(search.objectives, [cost for _, cost in measured])
        # The constraints narrow the space itself: to reject forbidden draws is not enough. Optuna's GP sampler drew
        # the same forbidden depth for minutes.
        narrow = narrow_distributions(self._distributions, self._allowed)
        self._sampler = TrialSampler(
            sampler=search.sampler,
            seed=search.seed,
            objectives=search.objectives,
            distributions=narrow,
            conditions=space.conditions,
        )
        records = ledger.records()
        # Both are lower bounds of the time that earlier sessions took, so the larger one is closer to it.
        self._earlier_s = self._written_s = max(
            _running_seconds(records), ledger.checked_attr(SECONDS_SPENT, TypeAdapter(FiniteFloat)) or 0.0
        )
        self._session_start = clock()
        self._earlier_trials = len(records)
        """How many trials earlier sessions have recorded."""
        self._to_resume = [record.number for record in records if record.state == "running"]
        self._first_attempts: dict[int, int] = {}
        """A trial's number -> its attempts in the ledger when this session started it."""
        self._lengths: dict[int, Length] = {}
        self._rungs = Rungs(search.stopping, search.objectives[0]) if search.stopping else None
        self._retries: Counter[int] = Counter()
        self.ignored_trials = 0
        """Earlier trials that the sampler does not learn from, because their architecture breaks a constraint."""
        # The order matters: the sampler draws the same trials again only if it receives all trials in the same order.
        earlier = ledger.checked_attr(EARLIER_TRIALS, EARLIER_TRIALS_KIND)
        for trial in earlier["trials"] if earlier else []:
            if not self._add_earlier_trial(**trial):
                self.ignored_trials += 1
        for record in records:
            with ledger.name_damage(record.number):
                self._sampler.restore(record.params, ledger.sampler_notes(record.number))
                if record.state != "running":
                    self._report_outcome(record)
            for evaluations, metrics in enumerate(record.history if record.state != "failed" else (), start=1):
                self._add_to_rung(record, evaluations, metrics)

    def records(self) -> list[TrialRecord]:
        """The records of all trials so far, including those of earlier sessions."""
        return self.ledger.records()

    def record(self, number: int) -> TrialRecord:
        """The current record of one trial."""
        return self.ledger[number]

    def next_trial(self) -> PlannedTrial | None:
        """The next trial, an interrupted one first; None when the budget is spent."""
        if self._to_resume:
            record = self.ledger.resume(self._to_resume.pop(0))
            return self._plan(record, must_stop=bool(record.history) and not self._can_continue(record))
        self._write_elapsed()
        if self._is_budget_spent():
            return None
        draw = self._draw()
        costs = self._costs(draw.params)
        drawn = {name: self._distributions[name] for name in draw.params}
        return self._plan(self.ledger.add(draw.params, drawn, costs, draw.notes))

    def _draw(self) -> Draw:
        """Draw a trial. Raises StorageError when the sampler cannot continue from the ledger of earlier sessions."""
        try:
            return self._sampler.draw(self._is_allowed, self._allowed)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            if not self._earlier_trials:
                raise
            # Optuna's samplers trust the attributes of the trials, and another program may have written them.
            raise StorageError(
                f"ledger {self.ledger.location}: the sampler {self.search.sampler} cannot continue from its trials "
                f"({describe_problem(error)}). Restore the ledger, or start over with --fresh."
            ) from error

    def _plan(self, record: TrialRecord, must_stop: bool = False) -> PlannedTrial:
        self._first_attempts[record.number] = record.attempts
        return PlannedTrial(record.number, dict(record.params), must_stop)

    def retry(self, number: int) -> bool:
        """Plan a running trial again, because its Tune actor died and not its job. False after too many retries."""
        if self.ledger[number].state != "running" or self._retries[number] == MAX_RETRIES:
            return False
        self._retries[number] += 1
        self._to_resume.append(number)
        return True

    def observe(self, number: int, report: Mapping[str, Any], attempt: int = 1, host: str = "") -> bool:
        """Take an evaluation. Returns whether the trial continues; if not, cancel its job and `finish` it as stopped.

        `attempt` is how many times the slots have started the job, and `host` is the machine that runs it now. An
        objective, or a metric of `MUST_BE_FINITE`, that is not finite fails the trial.
        """
        record = self.ledger[number]
        if record.state != "running":
            return False
        self._write_elapsed()
        # The slots count the starts of the job in this session; the ledger counts those of all sessions.
        attempts = self._first_attempts[number] + attempt - 1
        if attempts != record.attempts:
            self.ledger.set_attempts(number, attempts)
        if host and host != record.host:
            self.ledger.set_host(number, host)
        # A report with a note alone is a sentence for people, and no evaluation.
        if report.keys() == {NOTE}:
            self.ledger.add_remark(number, str(report[NOTE]))
            return True
        metrics = {name: float(value) for name, value in report.items() if isinstance(value, Real)}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        before, record = record, self.ledger.add_evaluation(number, finite)
        if len(record.history) > len(before.history):
            self._add_to_rung(record, len(record.history), finite)
        wrong = [name for name in (*self.search.objectives, *MUST_BE_FINITE) if name in metrics and name not in finite]
        if wrong:
            self.finish(number, "failed", f"{wrong[0]} is {metrics[wrong[0]]} at {_evaluation_name(metrics)}")
            return False
        return self._can_continue(record)

    def finish(self, number: int, state: State, error: str | None = None) -> TrialRecord:
        """End a trial that is still running. A completed trial without a value of each objective is failed instead."""
        record = self.ledger[number]
        if record.state != "running":
            return record
        missing = [name for name in self.search.objectives if name not in record.metrics]
        if state == "completed" and missing:
            state, error = "failed", f"the job ended without reporting {' and '.join(missing)}"
        record = self.ledger.finish(number, state, error)
        if self._rungs and state == "failed":
            self._rungs.remove(self._group(record), record.history)
        self._report_outcome(record)
        return record

    def _is_budget_spent(self) -> bool:
        trials, hours = self.search.trials, self.search.hours
        is_late = hours is not None and self._elapsed_s() >= 3600 * hours
        return (trials is not None and len(self.ledger) >= trials) or is_late

    def _elapsed_s(self) -> float:
        """How long the search has run in all its sessions."""
        return self._earlier_s + self._clock() - self._session_start

    def _write_elapsed(self) -> None:
        """Write how long the search has run into the ledger, when `hours` is a limit and the last write is old."""
        if self.search.hours is not None and self._elapsed_s() >= self._written_s + WRITE_INTERVAL_S:
            self._written_s = self._elapsed_s()
            self.ledger.set_attr(SECONDS_SPENT, self._written_s)

    def _is_allowed(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial with these settings satisfies all constraints."""
        costs = self._costs(params) if self.search.constraints else {}
        return all(limit.is_satisfied_by(costs[name]) for name, limit in self.search.constraints.items())

    def _can_continue(self, record: TrialRecord) -> bool:
        """Whether early stopping lets the trial continue after its last evaluation."""
        evaluations = len(record.history)
        # A trial that may continue keeps that right: better trials that reach the rung later do not stop it, also when
        # a restarted job reports the same evaluation again.
        if self._rungs is None or record.continued_after >= evaluations or not self._rungs.is_rung(evaluations):
            return True
        length = self._length_of(record)
        if length is not None and not length.first_compared <= evaluations < length.evaluations:
            return True
        can_continue = self._rungs.can_continue(self._group(record), evaluations, record.history[-1])
        if can_continue:
            self.ledger.set_passed(record.number, evaluations)
        return can_continue

    def _add_to_rung(self, record: TrialRecord, evaluations: int, metrics: Mapping[str, float]) -> None:
        if self._rungs and self._rungs.is_rung(evaluations):
            self._rungs.add(self._group(record), evaluations, metrics)

    def _group(self, record: TrialRecord) -> Hashable:
        """What the trials have in common that early stopping compares with this one."""
        # Equal costs mean the same architecture: a shallow student is not compared with a deep one.
        return tuple(sorted(record.costs.items())), self._length_of(record)

    def _length_of(self, record: TrialRecord) -> Length | None:
        """The length of the trial; None where it is unknown."""
        if self._length is None:
            return None
        if record.number not in self._lengths:
            self._lengths[record.number] = self._length(record.params)
        return self._lengths[record.number]

    def _report_outcome(self, record: TrialRecord) -> None:
        """Report an ended trial to the sampler: metrics by value, costs by rank."""
        values = (
            [self._value_for_sampler(name, record.metrics[name]) for name in self.search.objectives]
            if record.state == "completed"
            else None
        )
        first = self.search.objectives[0]
        course = [metrics[first] for metrics in record.history if first in metrics]
        self._sampler.report_outcome(record.number, OPTUNA_STATES[record.state], values, course)

    def _add_earlier_trial(self, params: Mapping[str, Any], metrics: Mapping[str, float]) -> bool:
        """Report a trial of another sweep to the sampler. Returns whether the sampler learns from the trial.

        Its costs are replaced by those measured in this sweep, because the other sweep may have run on another machine.
        """
        metrics_here = {**metrics, **self._costs(params)}
        values = [self._value_for_sampler(name, metrics_here[name]) for name in self.search.objectives]
        return self._sampler.add_earlier_trial(params, values)

    def _value_for_sampler(self, name: str, value: float) -> float:
        """The rank of a cost among all architectures; the value itself of any other objective."""
        return float(bisect_left(self._sorted_costs[name], value)) if name in self._sorted_costs else value


def _allowed_architectures(
    constraints: Mapping[str, Limit], measured: Sequence[tuple[dict[str, Any], Costs]]
) -> list[dict[str, Any]]:
    """The architectures that satisfy the constraints. Raises SpecError when no architecture does."""
    for name, limit in constraints.items():
        values = [costs[name] for _, costs in measured if name in costs]
        if not any(limit.is_satisfied_by(value) for value in values):
            reason = f"its values are from {min(values):.4g} to {max(values):.4g}" if values else "it was not measured"
            raise SpecError(
                f"search.constraints[{name!r}]: {limit} is kept by none of the {len(measured)} architectures: "
                f"{reason}. Loosen the limit, or search smaller students."
            )
    allowed = [
        shape
        for shape, costs in measured
        if all(limit.is_satisfied_by(costs[name]) for name, limit in constraints.items())
    ]
    if not allowed:
        limits = " and ".join(f"{name} {limit}" for name, limit in constraints.items())
        raise SpecError(
            f"search.constraints: none of the {len(measured)} architectures has {limits}. Loosen one of these limits."
        )
    return allowed


def _sorted_costs(objectives: Sequence[str], costs: Iterable[Costs]) -> dict[str, list[float]]:
    """Objective that is a cost -> its different values over all architectures, in ascending order."""
    costs = list(costs)
    return {name: sorted({cost[name] for cost in costs}) for name in objectives if all(name in cost for cost in costs)}


def _evaluation_name(metrics: Mapping[str, float]) -> str:
    """The evaluation with these metrics, by its epoch or step: `epoch 2`."""
    name = next((name for name in ("epoch", "step") if name in metrics), None)
    return f"{name} {metrics[name]:g}" if name else "an evaluation"


def _running_seconds(records: Iterable[TrialRecord]) -> float:
    """A lower bound of the seconds in which at least one of these trials ran: wall clock, without pauses.

    For an interrupted trial, the ledger stores when it was resumed, and how long it had trained before. Trials that
    were interrupted on several slots had trained at the same time, so only the longest of them counts. The bound is too
    low for a trial that was interrupted more than once: then only the attribute `SECONDS_SPENT` has the full time.
    """
    total = until = longest_before = 0.0
    for record in sorted(records, key=lambda record: record.started):
        trained = sum(
            metrics.get("train_seconds", 0.0) + metrics.get("eval_seconds", 0.0) for metrics in record.history
        )
        longest_before = max(longest_before, trained - max(0.0, record.ended - record.started))
        total += max(0.0, record.ended - max(until, record.started))
        until = max(until, record.ended)
    return total + longest_before
