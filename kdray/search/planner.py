"""What is tried next: the settings of a search, and the study that whoever runs the trials asks and tells.

How trials are drawn stands in `sampling`, how they are kept in `ledger`; after a restart the one is rebuilt from the
other. The sampler is shown an architecture's cost as its place among all architectures, so that the noise of a clock
never changes what is drawn.
"""

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from kdray.errors import SpecError
from kdray.evaluation.trial_record import State, TrialRecord
from kdray.search.ledger import OPTUNA_STATES, Ledger
from kdray.search.sampling import TrialSampler
from kdray.search.settings import Limit, Search
from kdray.search.space import Space, architectures, distributions, narrow_distributions
from kdray.slots.job import NOTE

MOST_RETRIES = 3
"""How often a trial is handed out again in one session whose listener died."""

EARLIER_TRIALS = "earlier trials"
"""The ledger's note of another sweep's trials that this one's sampler knows: `trials`, with params and metrics each."""

SECONDS_SPENT = "seconds spent"
"""The ledger's note of how long the search has taken in all its sessions, where `hours` limits it."""

NOTE_S = 60.0
"""At most so much of that is lost with a session that is killed."""

MUST_BE_FINITE = ("loss", "train_loss")
"""Besides the objectives: a trial that reports one of these as not finite has failed."""

Costs: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class PlannedTrial:
    """A trial to run."""

    number: int
    params: dict[str, Any]
    stopped: bool = False
    """There is nothing to run: nobody heard any more that its last evaluation stops it. `finish` it so."""


class Planner:
    """The search as those see it who run trials: `ask` for one, `observe` its evaluations, `finish` it."""

    def __init__(
        self,
        search: Search,
        space: Space,
        ledger: Ledger,
        costs: Callable[[Mapping[str, Any]], Costs],
        evaluations: Callable[[Mapping[str, Any]], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Go on with what stands in the ledger. Raises SpecError when no architecture keeps the constraints.

        `costs`: of the trial with these settings; asked of each of `architectures(space)` at once.
        `evaluations`: how many the trial makes when nothing stops it, so that none is stopped after its last.
        """
        self.search, self.ledger = search, ledger
        self._costs, self._evaluations, self._clock = costs, evaluations, clock
        self._distributions = ledger.extend_choices(distributions(space))
        measured = [(shape, costs(shape)) for shape in architectures(space)]
        self._allowed = _allowed(search.constraints, measured)
        self._places = _places(search.objectives, [cost for _, cost in measured])
        narrow = narrow_distributions(self._distributions, self._allowed)
        self._sampling = TrialSampler(search.sampler, search.seed, search.objectives, narrow)
        records = ledger.records()
        self._spent_s = self._noted_s = max(_busy_s(records), ledger.attr(SECONDS_SPENT) or 0.0)
        self._opened = clock()
        self._interrupted = [record.number for record in records if record.state == "running"]
        self._attempts: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._again: Counter[int] = Counter()
        heeded = [self._tell_earlier(**trial) for trial in (ledger.attr(EARLIER_TRIALS) or {"trials": []})["trials"]]
        self.ignored_trials = heeded.count(False)
        """Earlier trials that the sampler does not learn from, for their architecture breaks a constraint."""
        for record in records:
            self._sampling.known(record.params, ledger.notes(record.number))
            if record.state != "running":
                self._tell(record)

    def records(self) -> list[TrialRecord]:
        """All trials so far, those of earlier sessions too."""
        return self.ledger.records()

    def record(self, number: int) -> TrialRecord:
        """What is known of one trial now."""
        return self.ledger[number]

    def next_trial(self) -> PlannedTrial | None:
        """The next trial, an interrupted one first; None when the budget is spent."""
        if self._interrupted:
            record = self.ledger.resume(self._interrupted.pop(0))
            return self._asked(record, stopped=bool(record.history) and not self._goes_on(record))
        self._note_spent()
        if self._spent():
            return None
        drawn = self._sampling.draw(self._keeps_constraints, self._allowed)
        costs = self._costs(drawn.params)
        return self._asked(self.ledger.add(drawn.params, self._distributions, costs, drawn.notes))

    def _asked(self, record: TrialRecord, stopped: bool = False) -> PlannedTrial:
        self._attempts[record.number] = record.attempts
        return PlannedTrial(record.number, dict(record.params), stopped)

    def retry(self, number: int) -> bool:
        """Whoever listened to this trial died, not the trial: hand it out again, if that has not happened too often."""
        if self.ledger[number].state != "running" or self._again[number] == MOST_RETRIES:
            return False
        self._again[number] += 1
        self._interrupted.append(number)
        return True

    def observe(self, number: int, report: Mapping[str, Any], attempt: int = 1, host: str = "") -> bool:
        """Take an evaluation; whether the trial should go on. If not: stop it, then `finish` it as stopped.

        `attempt`: how often the slots have begun the job; `host`: where it runs now. A number that must be finite and
        is not fails the trial.
        """
        record = self.ledger[number]
        if record.state != "running":
            return False
        self._note_spent()
        attempts = self._attempts[number] + attempt - 1
        if attempts != record.attempts:
            self.ledger.set_attempts(number, attempts)
        if host and host != record.host:
            self.ledger.set_host(number, host)
        if report.keys() == {NOTE}:
            self.ledger.add_remark(number, str(report[NOTE]))
            return True
        metrics = {name: float(value) for name, value in report.items() if isinstance(value, Real)}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        record = self.ledger.add_evaluation(number, finite)
        wrong = [name for name in (*self.search.objectives, *MUST_BE_FINITE) if name in metrics and name not in finite]
        if wrong:
            self.finish(number, "failed", f"{wrong[0]} is {metrics[wrong[0]]} at {_moment(metrics)}")
            return False
        return self._goes_on(record)

    def finish(self, number: int, state: State, error: str | None = None) -> TrialRecord:
        """End a trial that has not ended yet. Without its objectives, a completed one has failed."""
        record = self.ledger[number]
        if record.state != "running":
            return record
        missing = [name for name in self.search.objectives if name not in record.metrics]
        if state == "completed" and missing:
            state, error = "failed", f"it ended without reporting {' and '.join(missing)}"
        record = self.ledger.finish(number, state, error)
        self._tell(record)
        return record

    def _spent(self) -> bool:
        trials, hours = self.search.trials, self.search.hours
        late = hours is not None and self._elapsed_s() >= 3600 * hours
        return (trials is not None and len(self.ledger) >= trials) or late

    def _elapsed_s(self) -> float:
        return self._spent_s + self._clock() - self._opened

    def _note_spent(self) -> None:
        """Keep how long it has taken for the next session, now and then, where that matters."""
        if self.search.hours is not None and self._elapsed_s() >= self._noted_s + NOTE_S:
            self._noted_s = self._elapsed_s()
            self.ledger.set_attr(SECONDS_SPENT, self._noted_s)

    def _keeps_constraints(self, params: Mapping[str, Any]) -> bool:
        costs = self._costs(params) if self.search.constraints else {}
        return all(limit.holds(costs[name]) for name, limit in self.search.constraints.items())

    def _goes_on(self, record: TrialRecord) -> bool:
        """The verdict on its last evaluation. One that is good stays so, whoever reaches the rung afterwards."""
        stopping, evaluations = self.search.stopping, len(record.history)
        if stopping is None or record.passed >= evaluations or not stopping.is_rung(evaluations):
            return True
        if self._evaluations and evaluations >= self._length(record):
            return True
        peers = (
            other
            for other in self.ledger.records()
            if other.costs == record.costs
            and other.number != record.number
            and other.state != "failed"
            and self._length(other) == self._length(record)
        )
        keeps = stopping.keeps(record, peers, self.search.objectives[0])
        if keeps:
            self.ledger.set_passed(record.number, evaluations)
        return keeps

    def _length(self, record: TrialRecord) -> int:
        """How many evaluations the trial makes when nothing stops it; 0 where that is not known."""
        if record.number not in self._lengths:
            self._lengths[record.number] = self._evaluations(record.params) if self._evaluations else 0
        return self._lengths[record.number]

    def _tell(self, record: TrialRecord) -> None:
        """Let the sampler know: quality as it is, costs as places."""
        values = (
            [self._shown(name, record.metrics[name]) for name in self.search.objectives]
            if record.state == "completed"
            else None
        )
        first = self.search.objectives[0]
        course = [metrics[first] for metrics in record.history if first in metrics]
        self._sampling.tell(record.number, OPTUNA_STATES[record.state], values, course)

    def _tell_earlier(self, params: Mapping[str, Any], metrics: Mapping[str, float]) -> bool:
        """Let the sampler know what another sweep found, at the costs that are measured here."""
        known = {**metrics, **self._costs(params)}
        return self._sampling.earlier(params, [self._shown(name, known[name]) for name in self.search.objectives])

    def _shown(self, name: str, value: float) -> float:
        return float(bisect_left(self._places[name], value)) if name in self._places else value


def _allowed(
    constraints: Mapping[str, Limit], measured: Sequence[tuple[dict[str, Any], Costs]]
) -> list[dict[str, Any]]:
    """The architectures that keep the constraints. Raises SpecError when there is none."""
    for name, limit in constraints.items():
        values = [costs[name] for _, costs in measured if name in costs]
        if not any(limit.holds(value) for value in values):
            there = f"theirs is from {min(values):.4g} to {max(values):.4g}" if values else "it was not measured"
            raise SpecError(
                f"search.constraints[{name!r}]: {limit} is kept by none of the {len(measured)} architectures: {there}. "
                "Loosen it, or search smaller students."
            )
    allowed = [
        shape for shape, costs in measured if all(limit.holds(costs[name]) for name, limit in constraints.items())
    ]
    if not allowed:
        asked = " and ".join(f"{name} {limit}" for name, limit in constraints.items())
        raise SpecError(
            f"search.constraints: none of the {len(measured)} architectures has {asked}. Loosen one of them."
        )
    return allowed


def _places(objectives: Sequence[str], costs: Iterable[Costs]) -> dict[str, list[float]]:
    """Objective that is a cost -> its values over all architectures, in order."""
    costs = list(costs)
    return {name: sorted({cost[name] for cost in costs}) for name in objectives if all(name in cost for cost in costs)}


def _moment(metrics: Mapping[str, float]) -> str:
    name = next((name for name in ("epoch", "step") if name in metrics), None)
    return f"{name} {metrics[name]:g}" if name else "its evaluation"


def _busy_s(records: Iterable[TrialRecord]) -> float:
    """Seconds in which at least one of these trials ran: the wall clock of the sessions they ran in, without pauses.

    At least these: of what was interrupted more than once, only the ledger's own note tells all.

    Of a trial that was interrupted the ledger knows when it was begun again, and how long it had been trained. Those of
    several slots were so at once, so the longest counts.
    """
    total = until = before = 0.0
    for record in sorted(records, key=lambda record: record.started):
        trained = sum(told.get("train_seconds", 0.0) + told.get("eval_seconds", 0.0) for told in record.history)
        before = max(before, trained - max(0.0, record.ended - record.started))
        total += max(0.0, record.ended - max(until, record.started))
        until = max(until, record.ended)
    return total + before
