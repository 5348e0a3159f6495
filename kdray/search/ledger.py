"""The ledger: the durable record of a sweep's trials. It is an Optuna study that `optuna.load_study` reads.

It is stored in a journal file in the sweep's folder by default, or in any Optuna storage by its URL. Every change is
written before the method returns, so the record survives when the process dies at any moment. Which trial is tried next
is decided in `planner`.

User attributes of a trial: `costs`, `evaluation 0000` and so on, `remark 0000` and so on, `attempts`, `resumed`,
`host`, `passed`, `error`. MLflow's run ids are attributes of the study (`run 7`), because Optuna rejects new attributes
of a finished trial. The study's attribute `folder` is the id of the sweep's folder: sweeps of the same name in two
storages may use one database.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection, create_study, delete_study, load_study
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, TypeAdapter, ValidationError

from kdray.errors import StorageError
from kdray.evaluation.pareto import direction
from kdray.evaluation.trial_record import State, TrialRecord
from kdray.search.ledger_storage import (
    OUTAGE_S,
    Location,
    name_ledger_errors,
    open_storage,
    retry_while_away,
    rewrite_choices,
)
from kdray.search.optuna_logging import silence_optuna
from kdray.search.space import extend_choices
from kdray.storage.records import Number, check_value, describe_problem

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
    """The trials of one sweep. One process may write at a time, any number may read. Thread-safe."""

    def __init__(self, location: Location, name: str, objectives: Sequence[str], storage: BaseStorage) -> None:
        self.location, self.name, self.objectives = location, name, tuple(objectives)
        self._storage, self._patience_s = storage, OUTAGE_S
        self._study_id = storage.get_study_id_from_name(name)
        self._lock = threading.RLock()  # reentrant, because set_run_id calls set_attr
        self._ids: dict[int, int] = {}
        """A trial's number -> its id in Optuna's storage, which counts the trials of all studies."""
        self._sampler_notes: dict[int, dict[str, Any]] = {}
        self._records: dict[int, TrialRecord] = {}
        """By number, in ascending order."""
        self._attrs = dict(storage.get_study_user_attrs(self._study_id))
        for trial in sorted(storage.get_all_trials(self._study_id, deepcopy=False), key=lambda trial: trial.number):
            self._ids[trial.number] = storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
            self._sampler_notes[trial.number] = trial.system_attrs
            with self.name_damage(trial.number):
                self._records[trial.number] = _trial_record(trial, self._attrs.get(f"{RUN}{trial.number}"))

    @classmethod
    def open(cls, location: Location, name: str, objectives: Sequence[str], folder: str = "") -> "Ledger":
        """The ledger of this name, for writing; creates it if it does not exist.

        `folder` is the id of the sweep's folder. Raises StorageError when the ledger cannot be used, belongs to another
        folder, or was created with other objectives.
        """
        storage = open_storage(location, writing=True)
        directions = [StudyDirection[direction(objective).upper()] for objective in objectives]
        with silence_optuna(), name_ledger_errors(location):
            study = create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
            _check_folder(location, study, folder)
            if study.user_attrs.get(FOLDER, "") != folder:
                study.set_user_attr(FOLDER, folder)
            if study.metric_names is None:
                study.set_metric_names(list(objectives))
            known = study.metric_names or []
        if tuple(known) != tuple(objectives):
            raise StorageError(
                f"ledger {location}: {name!r} was created with the objectives {', '.join(known)}; got "
                f"{', '.join(objectives)}. Give the sweep another name, or start over with --fresh."
            )
        with name_ledger_errors(location):
            return cls(location=location, name=name, objectives=objectives, storage=storage)

    @classmethod
    def read(cls, location: Location, name: str) -> "Ledger":
        """The ledger as it is now, for reading; another process may write meanwhile.

        Raises StorageError when the ledger cannot be used or has no sweep of this name.
        """
        storage = open_storage(location, writing=False)
        with name_ledger_errors(location):
            try:
                objectives = load_study(storage=storage, study_name=name).metric_names or []
            except KeyError:
                raise StorageError(f"ledger {location}: holds no sweep {name!r}.") from None
            return cls(location=location, name=name, objectives=objectives, storage=storage)

    @classmethod
    def count_trials(cls, location: Location, name: str, folder: str = "") -> int | None:
        """The number of trials in the ledger; None when there is no ledger.

        Raises StorageError when the ledger cannot be used, or belongs to another folder.
        """
        if isinstance(location, Path) and not location.exists():
            return None
        storage = open_storage(location, writing=True)
        with name_ledger_errors(location):
            try:
                study = load_study(storage=storage, study_name=name)
            except KeyError:
                return None
            _check_folder(location, study, folder)
            return len(study.get_trials(deepcopy=False))

    @classmethod
    def delete(cls, location: Location, name: str, folder: str) -> None:
        """Delete the ledger if it belongs to this folder. Raises StorageError when it cannot be used."""
        storage = open_storage(location, writing=True)
        try:
            if load_study(storage=storage, study_name=name).user_attrs.get(FOLDER) == folder:
                delete_study(storage=storage, study_name=name)
        except KeyError:
            return

    @contextmanager
    def name_damage(self, number: int) -> Iterator[None]:
        """Turn the errors that values of another kind in this trial cause into a StorageError that names the trial."""
        try:
            yield
        except (ValidationError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise StorageError(
                f"ledger {self.location}: trial {number} is damaged ({describe_problem(error)}). Restore the ledger, "
                "or start over with --fresh."
            ) from error

    def study(self) -> Study:
        """The Optuna study, for Optuna's own analyses."""
        return load_study(storage=self._storage, study_name=self.name)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> TrialRecord:
        return self._records[number]

    def records(self) -> list[TrialRecord]:
        """The records of all trials, by number."""
        with self._lock:
            return list(self._records.values())

    def sampler_notes(self, number: int) -> dict[str, Any]:
        """The notes that the sampler made when it drew this trial."""
        return self._sampler_notes[number]

    def add(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        costs: Mapping[str, float],
        sampler_notes: Mapping[str, Any],
    ) -> TrialRecord:
        """Add a running trial, in one write.

        Raises StorageError, like every method that writes, when the write does not succeed within the time allowed.
        """
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"costs": dict(costs)},
            system_attrs=dict(sampler_notes),
        )
        with self._lock:
            trial = self._write(self._trial_creation(template))
            self._ids[trial.number] = self._storage.get_trial_id_from_study_id_trial_number(
                self._study_id, trial.number
            )
            self._sampler_notes[trial.number] = trial.system_attrs
            return self._replace_record(_trial_record(trial, None))

    def extend_choices(self, distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
        """The distributions, where each choice lists the values of the existing trials first, and new values last.

        The longer lists are also written into the existing trials. Raises SpecError when a value of the earlier list is
        missing.
        """
        with self._lock:
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
            # Reversed, so that the list of the first trial that has the setting remains.
            known = {name: of_trial for trial in reversed(trials) for name, of_trial in trial.distributions.items()}
            now = {
                name: extend_choices(name, known[name], distribution) if name in known else distribution
                for name, distribution in distributions.items()
            }
            choices = [name for name in now if isinstance(known.get(name), CategoricalDistribution)]
            longer = {name: now[name] for name in choices if now[name] != known[name]}
            if longer:
                self._storage = self._write(lambda: rewrite_choices(self.location, self._study_id, longer))
            return now

    def resume(self, number: int) -> TrialRecord:
        """Start one more attempt of a trial that was running when its process or its driver's actor ended."""
        with self._lock:
            record = self._records[number]
            changed = replace(record, attempts=record.attempts + 1, started=time.time())
            self._set_trial_attr(number, "attempts", changed.attempts)
            self._set_trial_attr(number, "resumed", changed.started)
            return self._replace_record(changed)

    def add_evaluation(self, number: int, metrics: Mapping[str, float]) -> TrialRecord:
        """Append an evaluation. An evaluation at a `step` that is already recorded changes nothing."""
        with self._lock:
            record = self._records[number]
            # A job that starts again from an earlier checkpoint reports the same steps again.
            if "step" in metrics and any(known.get("step") == metrics["step"] for known in record.history):
                return record
            self._set_trial_attr(number, f"{EVALUATION}{len(record.history):04d}", dict(metrics))
            return self._replace_record(replace(record, history=(*record.history, dict(metrics))))

    def add_remark(self, number: int, sentence: str) -> TrialRecord:
        """Append a sentence about an event in the trial; the same sentence is recorded once."""
        with self._lock:
            record = self._records[number]
            if sentence in record.remarks:
                return record
            self._set_trial_attr(number, f"{REMARK}{len(record.remarks):04d}", sentence)
            return self._replace_record(replace(record, remarks=(*record.remarks, sentence)))

    def set_attempts(self, number: int, attempts: int) -> TrialRecord:
        """Record how many times the trial was started."""
        with self._lock:
            self._set_trial_attr(number, "attempts", attempts)
            return self._replace_record(replace(self._records[number], attempts=attempts))

    def set_host(self, number: int, host: str) -> TrialRecord:
        """Record the machine that runs the trial now."""
        with self._lock:
            self._set_trial_attr(number, "host", host)
            return self._replace_record(replace(self._records[number], host=host))

    def set_passed(self, number: int, evaluations: int) -> TrialRecord:
        """Record that early stopping let the trial continue after this many evaluations."""
        with self._lock:
            self._set_trial_attr(number, "passed", evaluations)
            return self._replace_record(replace(self._records[number], continued_after=evaluations))

    def finish(self, number: int, state: State, error: str | None = None) -> TrialRecord:
        """End a trial. A completed trial must have every objective among its metrics."""
        with self._lock:
            record = self._records[number]
            if error:
                self._set_trial_attr(number, "error", error)
            values = [record.metrics[name] for name in self.objectives] if state == "completed" else None
            end_time_s = self._write(lambda: self._end_trial(number, state, values))
            return self._replace_record(replace(record, state=state, error=error, ended=end_time_s))

    def set_run_id(self, number: int, run_id: str) -> TrialRecord:
        """Record the id of the trial's MLflow run, in any state of the trial."""
        with self._lock:
            self.set_attr(f"{RUN}{number}", run_id)
            return self._replace_record(replace(self._records[number], run_id=run_id))

    def attr(self, name: str) -> Any:
        """The value of an attribute of the whole sweep; None when it is not set."""
        return self._attrs.get(name)

    def checked_attr(self, name: str, kind: TypeAdapter[T]) -> T | None:
        """The value of an attribute as one of this kind; None when it is not set. Raises StorageError otherwise."""
        value = self._attrs.get(name)
        return None if value is None else check_value(kind, value, f"ledger {self.location}, {name!r}")

    def set_attr(self, name: str, value: Any) -> None:
        """Store an attribute of the whole sweep: a JSON value."""
        with self._lock:
            self._write(lambda: self._storage.set_study_user_attr(self._study_id, name, value))
            self._attrs[name] = value

    def _set_trial_attr(self, number: int, name: str, value: Any) -> None:
        self._write(lambda: self._storage.set_trial_user_attr(self._ids[number], name, value))

    def _trial_creation(self, template: FrozenTrial) -> Callable[[], FrozenTrial]:
        """A function that creates the trial. A second call first checks whether the first one created it already.

        A database may make a change and lose the connection before it answers.
        """
        tries = count()

        def create() -> FrozenTrial:
            if next(tries):
                trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
                if len(trials) > len(self._records):
                    return trials[-1]
            return self._storage.get_trial(self._storage.create_new_trial(self._study_id, template_trial=template))

        return create

    def _end_trial(self, number: int, state: State, values: Sequence[float] | None) -> float:
        """End the trial in the storage. Returns its end by the storage's clock, in seconds since the epoch."""
        # A retry after a lost answer finds that the trial has ended already.
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(self._ids[number], OPTUNA_STATES[state], values)
        ended = self._storage.get_trial(self._ids[number]).datetime_complete
        return ended.timestamp() if ended else time.time()

    def _write(self, change: Callable[[], T]) -> T:
        """Make a change; while the database is away, try again until the patience ends."""
        try:
            return retry_while_away(self.location, change, self._patience_s)
        except BaseException:
            # Whatever is still written while the sweep ends must not wait for the same database again.
            self._patience_s = 0.0
            raise

    def _replace_record(self, record: TrialRecord) -> TrialRecord:
        self._records[record.number] = record
        return record


def _check_folder(location: Location, study: Study, folder: str) -> None:
    """Raise StorageError when a study in a database belongs to another folder, or has trials and no folder."""
    known = study.user_attrs.get(FOLDER, "")
    if isinstance(location, str) and folder != known and (known or study.get_trials(deepcopy=False)):
        raise StorageError(
            f"ledger {location}: the sweep {study.study_name!r} in it belongs to another folder. Give this one another "
            "name (--set name=...), or another database."
        )


class _StoredTrial(BaseModel):
    """The attributes of a trial in the storage, which another program may have written."""

    history: tuple[dict[str, Number], ...]
    costs: dict[str, Number] = {}
    remarks: tuple[str, ...]
    error: str | None = None
    attempts: int = 1
    host: str = ""
    passed: int = 0
    resumed: float | None = None
    run_id: str | None


def _trial_record(trial: FrozenTrial, run_id: str | None) -> TrialRecord:
    """The record of a trial in the storage."""
    attrs, state = trial.user_attrs, STATES[trial.state]
    stored = _StoredTrial.model_validate(
        {
            "history": [attrs[name] for name in sorted(attrs) if name.startswith(EVALUATION)],
            "remarks": [attrs[name] for name in sorted(attrs) if name.startswith(REMARK)],
            "run_id": run_id,
            **{
                name: attrs[name]
                for name in ("costs", "error", "attempts", "host", "passed", "resumed")
                if name in attrs
            },
        }
    )
    started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return TrialRecord(
        number=trial.number,
        params=dict(trial.params),
        state=state,
        history=stored.history,
        costs=stored.costs,
        remarks=stored.remarks,
        error=stored.error if state == "failed" else None,
        attempts=stored.attempts,
        host=stored.host,
        continued_after=stored.passed,
        run_id=stored.run_id,
        started=started if stored.resumed is None else stored.resumed,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
    )
