"""Draws trials with one of Optuna's samplers. The sampler sees only a study in memory, which this module fills.

The same outcomes, reported in the same order, give the same draws, also after a restart. For this, each draw has a new
sampler with its own seed. A sampler stores attributes in the study and in its trials; they are returned as notes, and
the ledger stores them. Notes from a ledger are data only: those that Optuna would unpickle never reach a sampler.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
)
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdray.evaluation.pareto import direction
from kdray.search.cmaes import GENERATION_NOTE, STEP_NOTE, RepeatingCmaEsSampler
from kdray.search.conditions import UNCONDITIONAL, Conditions
from kdray.search.optuna_logging import silence_optuna
from kdray.search.tpe import WindowStorage, tpe_sampler

CONDITIONAL: tuple[str, ...] = ("tpe", "random", "nsga2", "nsga3")
"""The samplers that can draw trials of which some lack a setting. The others draw points of one space of numbers."""

SamplerName: TypeAlias = Literal["tpe", "random", "gp", "nsga2", "nsga3", "cmaes", "qmc"]

MAX_DRAWS = 10
"""How many times the sampler draws a trial before its architecture is chosen at random among the allowed ones. Some
samplers draw the same forbidden architecture again and again."""

MIN_CMAES_SOURCES = 10

DRAWS_NOTE, STUDY_NOTE = "kdray:draws", "kdray:study"

GENERATION_NOTES = {"nsga2": "NSGAIISampler:generation", "nsga3": "NSGAIIISampler:generation"}
"""The note that makes a trial a possible parent for a genetic sampler."""

NOTES_OF_SAMPLERS: dict[SamplerName, tuple[str, ...]] = {
    "nsga2": ("NSGAIISampler:",),
    "nsga3": ("NSGAIIISampler:",),
    "cmaes": (GENERATION_NOTE, STEP_NOTE),
    "qmc": ("qmc:",),
}
"""How the attributes begin that a sampler reads again from the study and its trials; other attributes are left out."""


@dataclass(frozen=True)
class Draw:
    """The settings of a drawn trial, and the notes that `TrialSampler.restore` needs after a restart."""

    params: dict[str, Any]
    notes: dict[str, Any]


class TrialSampler:
    """Draws trials and learns from their outcomes. Trials are numbered from 0 in the order in which they are drawn."""

    def __init__(
        self,
        sampler: SamplerName,
        seed: int,
        objectives: Sequence[str],
        distributions: Mapping[str, BaseDistribution],
        conditions: Conditions = UNCONDITIONAL,
    ) -> None:
        self._name, self._seed, self._conditions = sampler, seed, conditions
        self._is_multi_objective = len(objectives) > 1
        self._distributions = dict(distributions)
        self._storage = WindowStorage() if sampler == "tpe" else InMemoryStorage()
        directions = [direction(name) for name in objectives]
        with silence_optuna():
            self._study = optuna.create_study(storage=self._storage, directions=directions, study_name="view")
        self._study_id = self._storage.get_study_id_from_name("view")
        self._study_numbers: list[int] = []
        """A trial's number -> its number in the study, which also has earlier trials and forbidden draws."""
        self._source_trials: list[FrozenTrial] = []
        """The earlier trials in the form that CMA-ES takes: it handles numbers only."""

    def draw(self, is_allowed: Callable[[Mapping[str, Any]], bool], architectures: Sequence[Mapping[str, Any]]) -> Draw:
        """Draw until a trial is allowed. After `MAX_DRAWS` draws, one of these architectures replaces the drawn one."""
        number = len(self._study_numbers)
        for draw in range(MAX_DRAWS):
            params = self._draw_params(number, draw)
            if is_allowed(params):
                return self._add_draw(params, draw + 1)
            self._study.tell(self._last_study_number(), state=TrialState.FAIL)
        random = np.random.default_rng((self._seed, number))
        # Optuna gives the parameters of an enqueued trial to the next call of Study.ask.
        chosen = {**params, **architectures[int(random.integers(len(architectures)))]}
        self._study.enqueue_trial({name: chosen[name] for name in self._conditions.names(chosen, chosen)})
        return self._add_draw(self._draw_params(number, MAX_DRAWS), MAX_DRAWS + 1)

    def add_earlier_trial(self, params: Mapping[str, Any], values: Sequence[float]) -> bool:
        """Add a completed trial of another search, before any trial of this search.

        Returns whether the sampler learns from the trial: it does if this search could draw the trial.
        """
        notes = {GENERATION_NOTES[self._name]: 0} if self._name in GENERATION_NOTES else {}
        trial = self._frozen_trial(TrialState.COMPLETE, params, notes, values)
        # A failed trial takes the place of the others, because samplers depend on the numbers of trials.
        self._study.add_trial(trial or create_trial(state=TrialState.FAIL))
        if trial is not None:
            ranges = {name: each for name, each in self._distributions.items() if _is_range(each)}
            numbers = {name: params[name] for name in ranges}
            self._source_trials.append(create_trial(values=values, params=numbers, distributions=ranges))
        return trial is not None

    def restore(self, params: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Add the next trial, which was drawn before a restart, with the notes of its draw."""
        for _ in range(notes.get(DRAWS_NOTE, 1) - 1):
            self._study.add_trial(create_trial(state=TrialState.FAIL))
        running = self._frozen_trial(TrialState.RUNNING, params, self._readable_notes(notes))
        self._study.add_trial(running or create_trial(state=TrialState.FAIL))
        for name, value in self._readable_notes(json.loads(notes.get(STUDY_NOTE, "{}"))).items():
            self._storage.set_study_system_attr(self._study_id, name, value)
        self._study_numbers.append(self._last_study_number())

    def report_outcome(
        self, number: int, state: TrialState, values: Sequence[float] | None, course: Sequence[float] = ()
    ) -> None:
        """Report how a trial ended. `values` are those of the objectives; `course` is the first objective over time."""
        study_number = self._study_numbers[number]
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, study_number)
        if self._storage.get_trial(trial_id).state.is_finished():
            return
        # Samplers rank stopped trials by their intermediate values. Optuna has these for a single objective only.
        if not self._is_multi_objective:
            for step, value in enumerate(course):
                self._storage.set_trial_intermediate_value(trial_id, step, value)
        # Study.tell calls the sampler's after_trial, and after a restart the sampler of the last draw does not exist.
        # RandomSampler.after_trial does nothing.
        self._study.sampler = RandomSampler(self._seed)
        self._study.tell(study_number, values, state=state)

    def _frozen_trial(
        self,
        state: TrialState,
        params: Mapping[str, Any],
        notes: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> FrozenTrial | None:
        """A trial with these settings; None if the distributions exclude them.

        That happens to a trial of an earlier session when the costs are measured again and a constraint then forbids
        the trial's architecture.
        """
        try:
            return create_trial(
                state=state,
                params=dict(params),
                distributions={name: self._distributions[name] for name in self._names(params)},
                values=values,
                system_attrs=dict(notes),
            )
        except ValueError:
            return None

    def _readable_notes(self, notes: Mapping[str, Any]) -> dict[str, Any]:
        """The notes that the sampler reads again."""
        starts = NOTES_OF_SAMPLERS.get(self._name, ())
        return {name: value for name, value in notes.items() if name.startswith(starts)}

    def _draw_params(self, number: int, draw: int) -> dict[str, Any]:
        seed = int(np.random.SeedSequence((self._seed, number, draw)).generate_state(1)[0])
        with silence_optuna():
            self._study.sampler = _make_sampler(self._name, seed, self._seed, self._source_trials)
            if not self._conditions.are_any:
                return dict(self._study.ask(self._distributions).params)
            trial = self._study.ask()
            for name in self._conditions.deciding:
                _suggest(trial, name, self._distributions[name])
            for name in self._names(trial.params):
                _suggest(trial, name, self._distributions[name])
            # In the order of the space, which is that of every other trial.
            return {name: trial.params[name] for name in self._distributions if name in trial.params}

    def _names(self, params: Mapping[str, Any]) -> list[str]:
        """The searched settings that a trial with these settings has."""
        return self._conditions.names(params, self._distributions)

    def _add_draw(self, params: dict[str, Any], draws: int) -> Draw:
        """Give the last trial of the study the next number, and return it with its notes."""
        self._study_numbers.append(self._last_study_number())
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, self._study_numbers[-1])
        notes = dict(self._storage.get_trial_system_attrs(trial_id))
        if draws > 1:
            notes[DRAWS_NOTE] = draws
        if study_notes := self._storage.get_study_system_attrs(self._study_id):
            notes[STUDY_NOTE] = json.dumps(study_notes)
        return Draw(params, notes)

    def _last_study_number(self) -> int:
        return self._storage.get_n_trials(self._study_id) - 1


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Draw this setting of the trial; one that it has already stays."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            trial.suggest_categorical(name, choices)
        case FloatDistribution(low=low, high=high, log=log, step=step):
            trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            trial.suggest_int(name, low, high, log=log, step=step)


def _is_range(distribution: BaseDistribution) -> bool:
    """Whether the distribution is a range of numbers with more than one value."""
    return not isinstance(distribution, CategoricalDistribution) and not distribution.single()


def _make_sampler(name: SamplerName, seed: int, sequence_seed: int, source_trials: list[FrozenTrial]) -> BaseSampler:
    """Make a new sampler. `sequence_seed` and `source_trials` are the same for all draws of a search."""
    match name:
        case "tpe":
            # The default of Optuna 5: multivariate for one objective only. With accuracy and latency, that needs half
            # the time for a draw, but its best accuracy per depth was twice as far from the optimum (0.0129 against
            # 0.0056, a toy search over 25 seeds of 24 trials).
            return tpe_sampler(seed)
        case "random":
            return RandomSampler(seed=seed)
        case "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed)
        case "nsga3":
            return NSGAIIISampler(seed=seed)
        case "cmaes":
            # Optuna starts from the best tenth of the source trials, and fails if that is no trial at all.
            enough = source_trials if len(source_trials) >= MIN_CMAES_SOURCES else None
            return RepeatingCmaEsSampler(seed=seed, warn_independent_sampling=False, source_trials=enough)
        case "qmc":
            # The points of one quasi-random sequence: all draws need the same scrambling.
            return QMCSampler(
                seed=sequence_seed,
                scramble=True,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
