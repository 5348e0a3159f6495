"""Optuna's CMA-ES sampler, without its pickled optimizer.

Optuna writes its optimizer as a pickle into the attributes of a trial, and a pickle from a ledger can run code when it
is loaded. This sampler writes down from which trials the optimizer has learnt, in steps, and repeats these steps. It
draws what Optuna's sampler draws.

It overrides private methods of Optuna, because Optuna has no other place for the state of this sampler.
`tests/search/test_cmaes.py` compares its draws with those of Optuna's sampler, and so fails if these methods change.
"""

import copy
from collections.abc import Sequence
from typing import Any

from cmaes import CMA
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import CmaEsSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

STEP_NOTE = "kdray:cmaes step"
"""The attribute of a trial before whose draw the optimizer learnt: the number of the trial that holds the step before
(-1 if there is none), then the numbers of the trials that it learnt from."""
GENERATION_NOTE = "cma:generation"
"""Optuna's attribute of a trial: how many steps the optimizer had made when it drew the trial."""


class RepeatingCmaEsSampler(CmaEsSampler):
    """Draws what Optuna's `CmaEsSampler` draws. Like all samplers in `sampling`, it is made for one draw."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna. It also keeps what the other methods need, and Optuna does not pass to them."""
        self._direction, self._space = study.direction, search_space
        self._step_before, self._solutions, self._population_size = -1, list[FrozenTrial](), 0
        return super().sample_relative(study, trial, search_space)

    def _init_optimizer(self, trans: _SearchSpaceTransform, direction: StudyDirection) -> CMA:
        optimizer: CMA = super()._init_optimizer(trans, direction)
        self._population_size = optimizer.population_size
        return optimizer

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> CMA | None:
        """The optimizer after all steps up to that of the last completed trial that holds one; None before a step."""
        holders = _steps(completed_trials)
        last_generation = max((_generation(trial) for trial in completed_trials), default=0)
        if not holders and last_generation < 1:
            return None
        # Only the first draw of a search takes a random number for a new optimizer in Optuna's sampler.
        random_state = self._cma_rng.rng.get_state()
        optimizer = self._init_optimizer(_SearchSpaceTransform(self._space, transform_0_1=True), self._direction)
        self._cma_rng.rng.set_state(random_state)
        trials = {trial.number: trial for trial in completed_trials}
        # Kdray 0.1 recorded no steps at first. In such a ledger each generation has learnt from the one before.
        first = [trials[number] for number in next(iter(holders.values()), []) if number in trials]
        optimizer = self._repeat_generations(
            optimizer, completed_trials, max(map(_generation, first), default=0) if holders else last_generation
        )
        for holder, numbers in holders.items():
            solutions = [trials[number] for number in numbers if number in trials]
            if len(solutions) != self._population_size:
                break  # a constraint now excludes one of them: the search continues from the steps before
            optimizer, self._step_before = self._learn(optimizer, solutions), holder
        return optimizer

    def _repeat_generations(self, optimizer: CMA, trials: list[FrozenTrial], until: int) -> CMA:
        while optimizer.generation < until:
            solutions = self._get_solution_trials(trials, optimizer.generation)[: self._population_size]
            if len(solutions) < self._population_size:
                break
            optimizer = self._learn(optimizer, solutions)
        return optimizer

    def _learn(self, optimizer: CMA, solutions: Sequence[FrozenTrial]) -> CMA:
        transform = _SearchSpaceTransform(self._space, transform_0_1=True)
        sign = 1 if self._direction == StudyDirection.MINIMIZE else -1
        optimizer.tell([(transform.transform(each.params), sign * each.values[0]) for each in solutions])
        # A copy has an exactly symmetric covariance matrix, as the pickle in Optuna's sampler has.
        return copy.deepcopy(optimizer)

    def _get_solution_trials(self, trials: list[FrozenTrial], generation: int) -> list[FrozenTrial]:
        self._solutions = super()._get_solution_trials(trials, generation)
        return self._solutions

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, Any]:
        """The attribute of a trial before whose draw the optimizer learnt, in place of the parts of a pickle."""
        numbers = [trial.number for trial in self._solutions[: self._population_size]]
        return {STEP_NOTE: [self._step_before, *numbers]}


def _steps(trials: Sequence[FrozenTrial]) -> dict[int, list[int]]:
    """The steps up to that of the last trial that holds one: number of the holder -> numbers that it learnt from."""
    notes = {trial.number: note for trial in trials if (note := _step_note(trial))}
    steps: dict[int, list[int]] = {}
    holder = max(notes, default=-1)
    while holder in notes:
        before, *steps[holder] = notes[holder]
        if before >= holder:
            break  # kdray never writes this: the steps would never end
        holder = before
    return dict(reversed(steps.items()))


def _step_note(trial: FrozenTrial) -> list[int]:
    note = trial.system_attrs.get(STEP_NOTE)
    return note if isinstance(note, list) and all(isinstance(number, int) for number in note) else []


def _generation(trial: FrozenTrial) -> int:
    generation = trial.system_attrs.get(GENERATION_NOTE)
    return generation if isinstance(generation, int) else 0
