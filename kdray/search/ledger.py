"""The ledger: the durable record of a sweep's trials, an Optuna study that `optuna.load_study` reads.

A journal file in the sweep's folder by default, any Optuna storage by its URL. Every change is written before it is
answered, so the record survives the process at any moment. What is tried next is the searcher's business.

A trial's user attributes: `costs`, `evaluation 0000` and on, `remark 0000` and on, `attempts`, `resumed`, `host`,
`error`.
MLflow's run ids are attributes of the study (`run 7`), because a finished trial takes no more. `folder` marks whose
study it is: in a database, two storages may each have a sweep of the same name.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection, create_study, delete_study, load_study
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdray.errors import StorageError
from kdray.evaluation.pareto import direction
from kdray.evaluation.trial_record import State, TrialRecord
from kdray.search.ledger_storage import OUTAGE_S, Where, open_storage, retry_while_away, rewrite_choices
from kdray.search.optuna_logging import silence_optuna
from kdray.search.space import extend_choices

STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
OPTUNA_STATES = {state: optuna_state for optuna_state, state in STATES.items()}

EVALUATION, REMARK, RUN, FOLDER = "evaluation ", "remark ", "run ", "folder"

T = TypeVar("T")


class Ledger:
    """The trials of one sweep; one process writes at a time, any number may read. Safe to use from several threads."""

    def __init__(self, where: Where, name: str, objectives: Sequence[str], storage: BaseStorage) -> None:
        self.where, self.name, self.objectives = where, name, tuple(objectives)
        self._storage, self._patience_s = storage, OUTAGE_S
        self._study_id = storage.get_study_id_from_name(name)
        self._lock = threading.RLock()
        self._ids: dict[int, int] = {}
        self._notes: dict[int, dict[str, Any]] = {}
        self._records: dict[int, TrialRecord] = {}
        self._attrs = storage.get_study_user_attrs(self._study_id)
        for trial in storage.get_all_trials(self._study_id, deepcopy=False):
            self._ids[trial.number] = storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
            self._notes[trial.number] = trial.system_attrs
            self._records[trial.number] = _record(trial, self._attrs.get(f"{RUN}{trial.number}"))

    @classmethod
    def open(cls, where: Where, name: str, objectives: Sequence[str], folder: str = "") -> "Ledger":
        """The ledger of this name, for writing; a new one where there is none.

        `folder` is the mark of the sweep's folder. Raises StorageError when it cannot be used, or belongs to another
        folder or a search with other objectives.
        """
        storage = open_storage(where, writing=True)
        directions = [StudyDirection[direction(objective).upper()] for objective in objectives]
        with silence_optuna():
            study = create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
            _check_folder(where, study, folder)
            if study.user_attrs.get(FOLDER, "") != folder:
                study.set_user_attr(FOLDER, folder)
            if study.metric_names is None:
                study.set_metric_names(list(objectives))
        known = study.metric_names or []
        if tuple(known) != tuple(objectives):
            raise StorageError(
                f"ledger {where}: {name!r} was begun with the objectives {', '.join(known)}; got "
                f"{', '.join(objectives)}. Give the sweep another name, or start over with --fresh."
            )
        return cls(where, name, objectives, storage)

    @classmethod
    def read(cls, where: Where, name: str) -> "Ledger":
        """The ledger as it is now, for looking at, while another process may be writing. Raises StorageError."""
        storage = open_storage(where, writing=False)
        try:
            objectives = load_study(storage=storage, study_name=name).metric_names or []
        except KeyError:
            raise StorageError(f"ledger {where}: holds no sweep {name!r}.") from None
        return cls(where, name, objectives, storage)

    @classmethod
    def trials_in(cls, where: Where, name: str, folder: str = "") -> int | None:
        """How many trials the ledger has; None where there is no ledger.

        Raises StorageError when it cannot be used, or belongs to another folder.
        """
        if isinstance(where, Path) and not where.exists():
            return None
        storage = open_storage(where, writing=True)
        try:
            study = load_study(storage=storage, study_name=name)
        except KeyError:
            return None
        _check_folder(where, study, folder)
        return len(study.get_trials(deepcopy=False))

    @classmethod
    def remove(cls, where: Where, name: str, folder: str) -> None:
        """Remove the ledger, if it is this folder's. Raises StorageError when it cannot be used."""
        storage = open_storage(where, writing=True)
        try:
            if load_study(storage=storage, study_name=name).user_attrs.get(FOLDER) == folder:
                delete_study(storage=storage, study_name=name)
        except KeyError:
            return

    def study(self) -> Study:
        """As Optuna has it, for its own analyses."""
        return load_study(storage=self._storage, study_name=self.name)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> TrialRecord:
        return self._records[number]

    def records(self) -> list[TrialRecord]:
        """All trials, by number."""
        with self._lock:
            return [self._records[number] for number in sorted(self._records)]

    def notes(self, number: int) -> dict[str, Any]:
        """What the sampler noted when it drew this trial."""
        return self._notes[number]

    def add(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        costs: Mapping[str, float],
        notes: Mapping[str, Any],
    ) -> TrialRecord:
        """A new running trial, in one write. Raises StorageError, as all that writes, when the write is given up."""
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"costs": dict(costs)},
            system_attrs=dict(notes),
        )
        with self._lock:
            trial = self._write(self._creating(template))
            self._ids[trial.number] = self._storage.get_trial_id_from_study_id_trial_number(
                self._study_id, trial.number
            )
            self._notes[trial.number] = trial.system_attrs
            return self._keep(_record(trial, None))

    def extend_choices(self, distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
        """These distributions, each choice in the order that its trials know it by, values new to them at the end.

        The trials so far are rewritten to know those, too. Raises SpecError when a value is gone that was tried.
        """
        with self._lock:
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
            known = {name: known for trial in reversed(trials) for name, known in trial.distributions.items()}
            now = {
                name: extend_choices(name, known[name], distribution) if name in known else distribution
                for name, distribution in distributions.items()
            }
            choices = [name for name in now if isinstance(known.get(name), CategoricalDistribution)]
            longer = {name: now[name] for name in choices if now[name] != known[name]}
            if longer:
                self._storage = self._write(lambda: rewrite_choices(self.where, self._study_id, longer))
            return now

    def resume(self, number: int) -> TrialRecord:
        """A trial that was running when its process ended is handed out again."""
        with self._lock:
            record = self._records[number]
            changed = replace(record, attempts=record.attempts + 1, started=time.time())
            self._set(number, "attempts", changed.attempts)
            self._set(number, "resumed", changed.started)
            return self._keep(changed)

    def add_evaluation(self, number: int, metrics: Mapping[str, float]) -> TrialRecord:
        """Append an evaluation. One whose `step` is known already (a trial begun again) changes nothing."""
        with self._lock:
            record = self._records[number]
            if "step" in metrics and any(known.get("step") == metrics["step"] for known in record.history):
                return record
            self._set(number, f"{EVALUATION}{len(record.history):04d}", dict(metrics))
            return self._keep(replace(record, history=(*record.history, dict(metrics))))

    def add_remark(self, number: int, sentence: str) -> TrialRecord:
        """Note what befell a trial, once."""
        with self._lock:
            record = self._records[number]
            if sentence in record.remarks:
                return record
            self._set(number, f"{REMARK}{len(record.remarks):04d}", sentence)
            return self._keep(replace(record, remarks=(*record.remarks, sentence)))

    def set_attempts(self, number: int, attempts: int) -> TrialRecord:
        """Note how often the trial was begun."""
        with self._lock:
            self._set(number, "attempts", attempts)
            return self._keep(replace(self._records[number], attempts=attempts))

    def set_host(self, number: int, host: str) -> TrialRecord:
        """Note where the trial runs now."""
        with self._lock:
            self._set(number, "host", host)
            return self._keep(replace(self._records[number], host=host))

    def set_passed(self, number: int, evaluations: int) -> TrialRecord:
        """Note that early stopping lets the trial go on after so many evaluations."""
        with self._lock:
            self._set(number, "passed", evaluations)
            return self._keep(replace(self._records[number], passed=evaluations))

    def finish(self, number: int, state: State, error: str | None = None) -> TrialRecord:
        """End a trial; a completed one must have every objective among its metrics."""
        with self._lock:
            record = self._records[number]
            if error:
                self._set(number, "error", error)
            values = [record.metrics[name] for name in self.objectives] if state == "completed" else None
            ended = self._write(lambda: self._end(number, state, values))
            return self._keep(replace(record, state=state, error=error, ended=ended))

    def set_run_id(self, number: int, run_id: str) -> TrialRecord:
        """Note the trial's MLflow run, whatever state the trial is in."""
        with self._lock:
            self.set_attr(f"{RUN}{number}", run_id)
            return self._keep(replace(self._records[number], run_id=run_id))

    def attr(self, name: str) -> Any:
        """A note on the sweep as a whole; None where there is none."""
        return self._attrs.get(name)

    def set_attr(self, name: str, value: Any) -> None:
        """Keep a note on the sweep as a whole: a JSON value."""
        with self._lock:
            self._write(lambda: self._storage.set_study_user_attr(self._study_id, name, value))
            self._attrs = {**self._attrs, name: value}

    def _set(self, number: int, name: str, value: Any) -> None:
        self._write(lambda: self._storage.set_trial_user_attr(self._ids[number], name, value))

    def _creating(self, template: FrozenTrial) -> Callable[[], FrozenTrial]:
        """Creates the trial; tried again, it looks first whether only the answer was lost."""
        tries = count()

        def create() -> FrozenTrial:
            if next(tries):
                trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
                if len(trials) > len(self._records):
                    return trials[-1]
            return self._storage.get_trial(self._storage.create_new_trial(self._study_id, template_trial=template))

        return create

    def _end(self, number: int, state: State, values: Sequence[float] | None) -> float:
        """End the trial in the storage; when it ended, by the storage's own clock, in seconds since the epoch."""
        # A retry after a lost answer finds the trial ended already.
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(self._ids[number], OPTUNA_STATES[state], values)
        ended = self._storage.get_trial(self._ids[number]).datetime_complete
        return ended.timestamp() if ended else time.time()

    def _write(self, change: Callable[[], T]) -> T:
        """Make a change, waiting for a database that is away, though only once for one that stays away."""
        try:
            return retry_while_away(self.where, change, self._patience_s)
        except BaseException:
            self._patience_s = 0.0
            raise

    def _keep(self, record: TrialRecord) -> TrialRecord:
        self._records[record.number] = record
        return record


def _check_folder(where: Where, study: Study, folder: str) -> None:
    """Raise StorageError when a study in a database is another folder's, or no sweep at all."""
    known = study.user_attrs.get(FOLDER, "")
    if isinstance(where, str) and folder != known and (known or study.get_trials(deepcopy=False)):
        raise StorageError(
            f"ledger {where}: the sweep {study.study_name!r} in it belongs to another folder. Give this one another "
            "name (--set name=...), or another database."
        )


def _record(trial: FrozenTrial, run_id: str | None) -> TrialRecord:
    attrs, state = trial.user_attrs, STATES[trial.state]
    started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return TrialRecord(
        number=trial.number,
        params=dict(trial.params),
        state=state,
        history=tuple(attrs[name] for name in sorted(attrs) if name.startswith(EVALUATION)),
        costs=attrs.get("costs", {}),
        remarks=tuple(attrs[name] for name in sorted(attrs) if name.startswith(REMARK)),
        error=attrs.get("error") if state == "failed" else None,
        attempts=attrs.get("attempts", 1),
        host=attrs.get("host", ""),
        passed=attrs.get("passed", 0),
        run_id=run_id,
        started=attrs.get("resumed", started),
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
    )
