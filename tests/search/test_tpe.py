"""TPE draws what Optuna's sampler draws while there are few trials, and reads a bounded number of them after that."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from kdray.search import sampling
from kdray.search.conditions import UNCONDITIONAL, Conditions
from kdray.search.sampling import Draw, TrialSampler
from kdray.search.tpe import BestTrials, OneSplitTPESampler, Window, WindowStorage, tpe_sampler

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "depth": CategoricalDistribution([1, 2, 3]),
    "layers": IntDistribution(1, 12),
    "alpha": FloatDistribution(0.0, 1.0),
    "rate": FloatDistribution(1e-5, 1e-3, log=True),
}
SMALL = Window(most=30, best=10, latest=16, running=4)
"""A window that a short search leaves."""


LAYERS_FROM_DEPTH_2_ON = Conditions(("depth",), {(1,): frozenset({"layers"})})
"""A trial of depth 1 has no setting of this name."""


def make_sampler(*objectives: str, conditions: Conditions = UNCONDITIONAL) -> TrialSampler:
    return TrialSampler(
        sampler="tpe", seed=3, objectives=objectives, distributions=DISTRIBUTIONS, conditions=conditions
    )


def outcome(number: int, params: dict[str, Any], objectives: int) -> tuple[TrialState, list[float] | None]:
    """How a trial ends: every ninth one fails, every fifth one is stopped."""
    if number % 9 == 8 or number % 5 == 4:
        return (TrialState.FAIL if number % 9 == 8 else TrialState.PRUNED), None
    quality = 1.0 - (params["alpha"] - 0.6) ** 2 - 0.01 * params.get("layers", 0)
    return TrialState.COMPLETE, [round(quality, 2), float(params["depth"])][:objectives]


@dataclass
class ParallelSearch:
    """Draws trials on several slots, on which they end in an order of their own."""

    sampler: TrialSampler
    objectives: int
    slots: int = 7
    draws: list[Draw] = field(default_factory=list)
    outcomes: dict[int, tuple[TrialState, list[float] | None, list[float]]] = field(default_factory=dict)

    def run(self, trials: int) -> list[dict[str, Any]]:
        """Draw so many trials, and return their settings. As many as there are slots stay running."""
        order, running = random.Random(self.slots), list[int]()
        for number in range(trials):
            self.draws.append(self.sampler.draw(lambda params: params["alpha"] < 0.9, [{"depth": 1}]))
            running.append(number)
            if len(running) > self.slots:
                ended = running.pop(order.randrange(self.slots))
                params = self.draws[ended].params
                self.outcomes[ended] = *outcome(ended, params, self.objectives), [0.1 * ended, 0.2 * params["alpha"]]
                self.sampler.report_outcome(ended, *self.outcomes[ended])
        return [draw.params for draw in self.draws]


@pytest.mark.parametrize("conditions", [UNCONDITIONAL, LAYERS_FROM_DEPTH_2_ON])
@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "latency_ms")])
def test_the_draws_are_those_of_optuna(
    monkeypatch: pytest.MonkeyPatch, objectives: tuple[str, ...], conditions: Conditions
) -> None:
    ours = ParallelSearch(make_sampler(*objectives, conditions=conditions), len(objectives)).run(45)
    monkeypatch.setattr(sampling, "tpe_sampler", lambda seed: TPESampler(seed=seed))
    monkeypatch.setattr(sampling, "WindowStorage", InMemoryStorage)
    assert ParallelSearch(make_sampler(*objectives, conditions=conditions), len(objectives)).run(45) == ours
    assert any(len(params) < len(DISTRIBUTIONS) for params in ours) == bool(conditions.are_any)


@pytest.mark.parametrize(
    ("version", "kind"), [("5.0.1", OneSplitTPESampler), ("5.1.0", TPESampler), ("4.5.0", TPESampler)]
)
def test_private_methods_are_overridden_in_known_versions_only(
    monkeypatch: pytest.MonkeyPatch, version: str, kind: type[TPESampler]
) -> None:
    monkeypatch.setattr(optuna, "__version__", version)
    assert type(tpe_sampler(0)) is kind


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "latency_ms")])
def test_a_full_window_gives_the_same_draws_after_a_restart(
    monkeypatch: pytest.MonkeyPatch, objectives: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sampling, "WindowStorage", lambda: WindowStorage(SMALL))
    before, again = ParallelSearch(make_sampler(*objectives), len(objectives)), make_sampler(*objectives)
    before.run(60)
    for number, draw in enumerate(before.draws):
        again.restore(draw.params, draw.notes)
        if number in before.outcomes:
            again.report_outcome(number, *before.outcomes[number])
    trials = again._study.get_trials(deepcopy=False)
    assert len(trials) < 40
    assert sum(trial.state == TrialState.RUNNING for trial in trials) == SMALL.running
    everything, nothing = (lambda params: True), [{"depth": 1}]
    assert [again.draw(everything, nothing) for _ in range(3)] == [
        before.sampler.draw(everything, nothing) for _ in range(3)
    ]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_best_trials_are_those_of_the_lowest_ranks_in_any_order(objectives: int) -> None:
    values = np.random.default_rng(0).integers(0, 12, (200, objectives)).astype(float)
    best, reversed_best = BestTrials(12), BestTrials(12)
    for trial_id in range(200):
        best.add(trial_id, values[trial_id])
        reversed_best.add(199 - trial_id, values[199 - trial_id])
    assert best.ids() == reversed_best.ids()
    assert len(best.ids()) == 12
    precede = [
        sum(
            (values[other] <= values[each]).all() and ((values[other] < values[each]).any() or other < each)
            for other in range(200)
            if other != each
        )
        for each in range(200)
    ]
    assert sorted(precede[each] for each in best.ids()) == sorted(precede)[:12]


def test_a_trial_that_a_constraint_now_excludes_takes_no_place_in_the_window() -> None:
    sampler = make_sampler("accuracy")
    for _ in range(3):
        sampler.restore({"depth": 9, "layers": 1, "alpha": 0.5, "rate": 1e-4}, {})
    assert sampler._storage._ended == []  # type: ignore[attr-defined]
