"""Optuna's TPE sampler at a cost that does not grow with the number of trials.

With several objectives, Optuna's `TPESampler` divides all trials into good and bad ones again for each setting that it
draws, and reads the settings of each trial again. So a draw of four settings takes 6 ms after 100 trials, and 18 ms
after 500. `OneSplitTPESampler` divides them once a draw. `WindowStorage` keeps their settings as arrays, and lets the
sampler read only some of the trials when there are many. While there are few, the draws are those of Optuna's sampler;
`bench/tpe_window.py` compares what both find when there are many.

`OneSplitTPESampler` overrides private methods of Optuna, because Optuna has no other place for this. So it is used with
the versions of Optuna with whose sampler tests/search/test_tpe.py has compared its draws. With any other version, the
sampler of Optuna itself is used: it draws the same in a longer time.

Letters: N trials, M objectives, S settings.
"""

import copy
from bisect import insort
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe import sampler as optunas
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

LEARNT_FROM = (TrialState.COMPLETE, TrialState.PRUNED)
"""The states of the ended trials that TPE learns from."""


COMPARED_VERSIONS = ("5.0.",)
"""The versions of Optuna that `OneSplitTPESampler` was compared with, by how they begin."""


@dataclass(frozen=True)
class Window:
    """How many trials TPE reads.

    Nobody has shown yet that a search with a window finds as good students as one without (bench/tpe_window.py), so it
    begins where few searches come.
    """

    most: int = 1000
    """While at most so many trials are running or have been learnt from, TPE reads all of them."""
    best: int = 250
    """After that it reads so many of the best completed trials ..."""
    latest: int = 750
    """... and so many of the latest ended ones ..."""
    running: int = 100
    """... and so many of the latest running ones."""


WINDOW = Window()


def tpe_sampler(seed: int) -> TPESampler:
    """The sampler for one draw: the fast one if it is known to draw as this version of Optuna does."""
    return (OneSplitTPESampler if optuna.__version__.startswith(COMPARED_VERSIONS) else TPESampler)(seed=seed)


class OneSplitTPESampler(TPESampler):
    """Draws what Optuna's `TPESampler` draws, from a study in a `WindowStorage`.

    Like all samplers in `sampling`, it is made for one draw.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._halves: tuple[np.ndarray, np.ndarray] | None = None
        """The ids of the good trials and of the bad ones; None before the first setting is drawn."""

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int | float]:
        """Optuna's method, except that it remembers the good and the bad trials, and their settings as numbers."""
        storage = study._storage
        assert isinstance(storage, WindowStorage)
        self._halves = self._halves or self._split(study, trial)
        good_N, bad_N = (storage.values_of(search_space, ids_N) for ids_N in self._halves)
        weights_N = np.ones(len(next(iter(good_N.values())))) if study._is_multi_objective() else None
        good = self._parzen_estimator_cls(good_N, search_space, self._parzen_estimator_parameters, weights_N)
        bad = self._parzen_estimator_cls(bad_N, search_space, self._parzen_estimator_parameters)
        candidates = good.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(candidates, self._compute_acquisition_func(candidates, good, bad))
        return {name: space.to_external_repr(best[name]) for name, space in search_space.items()}

    def _split(self, study: Study, trial: FrozenTrial) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the good trials and of the bad ones, each in ascending order.

        A running trial counts as bad, so that no other slot draws the same. Optuna also divides the trials that break a
        constraint; kdray's constraints narrow the space, so there are none.
        """
        by_state: dict[TrialState, list[FrozenTrial]] = {state: [] for state in (*LEARNT_FROM, TrialState.RUNNING)}
        for other in study.get_trials(deepcopy=False, states=tuple(by_state)):
            by_state[other.state].append(other)
        completed, stopped = (by_state[state] for state in LEARNT_FROM)
        gamma = optunas.default_gamma if len(study.directions) == 1 else optunas.default_gamma_multiobjective
        most = gamma(len(completed) + len(stopped))
        good, bad = optunas._split_complete_trials(completed, study, most)
        good_stopped, bad_stopped = optunas._split_pruned_trials(stopped, study, max(0, most - len(good)))
        running = [other for other in by_state[TrialState.RUNNING] if other._trial_id != trial._trial_id]
        return _sorted_ids(good, good_stopped), _sorted_ids(bad, bad_stopped, running)


def _sorted_ids(*groups: Sequence[FrozenTrial]) -> np.ndarray:
    """The ids of the trials in these groups, in ascending order."""
    return np.sort(np.asarray([trial._trial_id for group in groups for trial in group], dtype=np.int64))


class WindowStorage(InMemoryStorage):
    """Optuna's storage of one study in memory. When it has many trials, it returns only some of them.

    Which ones these are depends on the trials alone, and not on the order in which they ended: a sampler draws the same
    after a restart, when the trials are added in the order of their numbers.
    """

    def __init__(self, window: Window = WINDOW) -> None:
        super().__init__()
        self._window = window
        self._running: dict[int, None] = {}
        """The ids of the running trials; a dict because Python has no ordered set."""
        self._ended: list[int] = []
        """The ids of the trials that TPE learns from, in ascending order."""
        self._best = BestTrials(window.best)
        self._count = 0
        self._values: dict[str, np.ndarray] = {}
        """Name -> the value of this setting in each trial, by id, as the number in which samplers compute.

        NaN where a trial has no such setting. An array may be longer than there are trials, or shorter.
        """

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See BaseStorage."""
        trial_id = super().create_new_trial(study_id, template_trial)
        self._count += 1
        self._signs_M = [1 if each == StudyDirection.MINIMIZE else -1 for each in self.get_study_directions(study_id)]
        if template_trial is not None:
            for name, value in template_trial.params.items():
                self._note_value(trial_id, name, template_trial.distributions[name].to_internal_repr(value))
        self._note_state(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See BaseStorage."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._note_value(trial_id, param_name, param_value_internal)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See BaseStorage."""
        is_changed = super().set_trial_state_values(trial_id, state, values)
        self._note_state(trial_id)
        return is_changed

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        """The number of all trials, also of those outside the window; see BaseStorage."""
        return self._count if state is None else super().get_n_trials(study_id, state)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials, or those of the window; see BaseStorage."""
        window = self._window
        if states == (TrialState.WAITING,) or len(self._running) + len(self._ended) <= window.most:
            return super().get_all_trials(study_id, deepcopy, states)
        running = list(self._running)[-window.running :]
        ids = sorted({*self._best.ids(), *self._ended[-window.latest :], *running})
        trials = [self.get_trial(trial_id) for trial_id in ids]
        return [copy.deepcopy(each) if deepcopy else each for each in trials if states is None or each.state in states]

    def values_of(self, names: Collection[str], ids_N: np.ndarray) -> dict[str, np.ndarray]:
        """The values of these settings in those of the trials that have all of them, in the order of the trials."""
        values_SxN = np.full((len(names), len(ids_N)), np.nan)
        for setting, name in enumerate(names):
            values = self._values.get(name, np.empty(0))
            is_known_N = ids_N < len(values)
            values_SxN[setting, is_known_N] = values[ids_N[is_known_N]]
        has_all_N = ~np.isnan(values_SxN).any(axis=0)
        return dict(zip(names, values_SxN[:, has_all_N], strict=True))

    def _note_value(self, trial_id: int, name: str, value: float) -> None:
        """Note the value of a setting of a trial."""
        values = self._values.get(name, np.empty(0))
        if trial_id >= len(values):
            # Twice as long each time, so that it is copied seldom.
            values = np.append(values, np.full(trial_id + 1, np.nan))
            self._values[name] = values
        values[trial_id] = value

    def _note_state(self, trial_id: int) -> None:
        """Note the state of a new trial, or the new state of a trial."""
        trial = self.get_trial(trial_id)
        if trial.state == TrialState.RUNNING:
            self._running[trial_id] = None
            return
        self._running.pop(trial_id, None)
        if trial.state in LEARNT_FROM:
            insort(self._ended, trial_id)
        if trial.state == TrialState.COMPLETE:
            self._best.add(trial_id, np.multiply(self._signs_M, trial.values))


class BestTrials:
    """The trials that few others precede.

    A trial precedes another one that it dominates, and an equal one that is later. The trials that fewer than K others
    precede are the K-skyband: Papadias et al., Progressive Skyline Computation in Database Systems, 2005. A trial that
    has left it never returns, and its members alone tell how many trials precede a new one. They include the K trials
    of the lowest nondomination ranks.
    """

    def __init__(self, most: int) -> None:
        """`most` is K, and how many trials `ids` returns."""
        self._most = most
        self._ids_N = np.empty(0, dtype=np.int64)
        self._counts_N = np.empty(0, dtype=np.int64)
        """How many trials precede each one."""
        self._values_NxM = np.empty((0, 0))

    def add(self, trial_id: int, values_M: np.ndarray) -> None:
        """Add a completed trial. Less is better in each of its values."""
        values_NxM = self._values_NxM.reshape(-1, len(values_M))
        is_equal_N = (values_NxM == values_M).all(axis=1)
        before_N = ((values_NxM <= values_M).all(axis=1) & ~is_equal_N) | (is_equal_N & (self._ids_N < trial_id))
        after_N = ((values_NxM >= values_M).all(axis=1) & ~is_equal_N) | (is_equal_N & (self._ids_N > trial_id))
        counts_N = self._counts_N + after_N
        stays_N = counts_N < self._most
        count = before_N.sum()
        if count < self._most:
            self._ids_N = np.append(self._ids_N[stays_N], trial_id)
            self._counts_N = np.append(counts_N[stays_N], count)
            self._values_NxM = np.vstack([values_NxM[stays_N], values_M])

    def ids(self) -> list[int]:
        """The trials that the fewest others precede, at most `most`; of equal ones the later ones."""
        order_N = np.lexsort((-self._ids_N, self._counts_N))
        return [int(trial_id) for trial_id in self._ids_N[order_N[: self._most]]]
