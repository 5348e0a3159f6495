"""Drawing trials: one of Optuna's samplers over a study in memory, which is all that the sampler sees.

The same trials told in the same order give the same draws, also after a restart: each draw has a sampler of its own
with a seed of its own, and what a sampler notes down about the study and its trials is handed out to be kept.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdray.evaluation.pareto import direction
from kdray.search.optuna_logging import silence_optuna

SamplerName: TypeAlias = Literal["tpe", "random", "gp", "nsga2", "nsga3", "cmaes", "qmc"]

DRAWS = 10
"""How often a trial is drawn before its architecture is drawn from the allowed ones; some samplers insist on theirs."""

DRAWS_NOTE, STUDY_NOTE = "kdray:draws", "kdray:study"

GENERATIONS = {"nsga2": "NSGAIISampler:generation", "nsga3": "NSGAIIISampler:generation"}
"""The note by which a genetic sampler counts a trial among the parents of others."""


@dataclass(frozen=True)
class Draw:
    """A trial's settings, and the notes that `Sampling.known` needs to be told after a restart."""

    params: dict[str, Any]
    notes: dict[str, Any]


class TrialSampler:
    """Draws trials and learns from what becomes of them. Trials are numbered from 0 in the order they are drawn."""

    def __init__(
        self, sampler: SamplerName, seed: int, objectives: Sequence[str], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        self._name, self._seed = sampler, seed
        self._several = len(objectives) > 1
        self._distributions = dict(distributions)
        self._storage = InMemoryStorage()
        directions = [direction(name) for name in objectives]
        with silence_optuna():
            self._study = optuna.create_study(storage=self._storage, directions=directions, study_name="view")
        self._study_id = self._storage.get_study_id_from_name("view")
        self._places: list[int] = []
        """Of each trial among the study's, which holds earlier trials and the draws that were not allowed, too."""
        self._sources: list[FrozenTrial] = []
        """What earlier trials tell CMA-ES, which knows numbers alone."""

    def draw(self, allowed: Callable[[Mapping[str, Any]], bool], architectures: Sequence[Mapping[str, Any]]) -> Draw:
        """The next trial: drawn until it is allowed; where that takes too long, with one of these architectures."""
        number = len(self._places)
        for draw in range(DRAWS):
            params = self._ask(number, draw)
            if allowed(params):
                return self._noted(params, draw + 1)
            self._study.tell(self._last(), state=TrialState.FAIL)
        random = np.random.default_rng((self._seed, number))
        self._study.enqueue_trial({**params, **architectures[int(random.integers(len(architectures)))]})
        return self._noted(self._ask(number, DRAWS), DRAWS + 1)

    def earlier(self, params: Mapping[str, Any], values: Sequence[float]) -> bool:
        """A finished trial of another search, told before any of this one; whether it is one that could be drawn."""
        notes = {GENERATIONS[self._name]: 0} if self._name in GENERATIONS else {}
        trial = self._trial(TrialState.COMPLETE, params, notes, values)
        self._study.add_trial(trial or create_trial(state=TrialState.FAIL))  # samplers keep the places of trials
        if trial is not None:
            numbers = {name: of for name, of in self._distributions.items() if _is_range(of)}
            own = {name: params[name] for name in numbers}
            self._sources.append(create_trial(values=values, params=own, distributions=numbers))
        return trial is not None

    def known(self, params: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """The next trial was drawn before a restart."""
        for _ in range(notes.get(DRAWS_NOTE, 1) - 1):
            self._study.add_trial(create_trial(state=TrialState.FAIL))
        own = {name: value for name, value in notes.items() if name not in (DRAWS_NOTE, STUDY_NOTE)}
        running = self._trial(TrialState.RUNNING, params, own)
        self._study.add_trial(running or create_trial(state=TrialState.FAIL))
        for name, value in json.loads(notes.get(STUDY_NOTE, "{}")).items():
            self._storage.set_study_system_attr(self._study_id, name, value)
        self._places.append(self._last())

    def tell(
        self, number: int, state: TrialState, values: Sequence[float] | None, course: Sequence[float] = ()
    ) -> None:
        """What became of a trial; `course` are the first objective's values at each evaluation."""
        place = self._places[number]
        if self._study.get_trials(deepcopy=False)[place].state.is_finished():
            return
        if not self._several:  # a sampler ranks stopped trials by it; Optuna has no course for several objectives
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, place)
            for step, value in enumerate(course):
                self._storage.set_trial_intermediate_value(trial_id, step, value)
        self._study.sampler = RandomSampler(self._seed)
        self._study.tell(place, values, state=state)

    def _trial(
        self,
        state: TrialState,
        params: Mapping[str, Any],
        notes: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> FrozenTrial | None:
        """A trial as it was drawn; None when it could not be drawn any more, since costs measured anew forbid it."""
        try:
            return create_trial(
                state=state,
                params=dict(params),
                distributions=self._distributions,
                values=values,
                system_attrs=dict(notes),
            )
        except ValueError:
            return None

    def _ask(self, number: int, draw: int) -> dict[str, Any]:
        seed = int(np.random.SeedSequence((self._seed, number, draw)).generate_state(1)[0])
        with silence_optuna():
            self._study.sampler = _sampler(self._name, seed, self._seed, self._sources)
            return dict(self._study.ask(self._distributions).params)

    def _noted(self, params: dict[str, Any], draws: int) -> Draw:
        self._places.append(self._last())
        notes = dict(self._study.get_trials(deepcopy=False)[-1].system_attrs)
        if draws > 1:
            notes[DRAWS_NOTE] = draws
        if of_study := self._storage.get_study_system_attrs(self._study_id):
            notes[STUDY_NOTE] = json.dumps(of_study)
        return Draw(params, notes)

    def _last(self) -> int:
        return self._storage.get_n_trials(self._study_id) - 1


def _is_range(distribution: BaseDistribution) -> bool:
    return not isinstance(distribution, CategoricalDistribution) and not distribution.single()


def _sampler(name: SamplerName, seed: int, sequence_seed: int, sources: list[FrozenTrial]) -> BaseSampler:
    """A fresh sampler; `sequence_seed` and `sources` stay the same for all draws of a search."""
    match name:
        case "tpe":
            return TPESampler(seed=seed)  # multivariate: half the time a draw, but twice as far from the front
        case "random":
            return RandomSampler(seed=seed)
        case "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed)
        case "nsga3":
            return NSGAIIISampler(seed=seed)
        case "cmaes":
            return CmaEsSampler(seed=seed, warn_independent_sampling=False, source_trials=sources or None)
        case "qmc":
            return QMCSampler(
                seed=sequence_seed,
                scramble=True,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
