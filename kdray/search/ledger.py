"""The ledger: the durable record of a sweep's trials, an Optuna study that `optuna.load_study` reads.

A journal file in the sweep's folder by default, any Optuna storage by its URL. Every change is written before it is
answered, so the record survives the process at any moment. What is tried next is the searcher's business.

A trial's user attributes: `costs`, `evaluation 0000` and on, `remark 0000` and on, `attempts`, `resumed`, `error`.
MLflow's run ids are attributes of the study (`run 7`), because a finished trial takes no more.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection, create_study, load_study
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdray.errors import StorageError
from kdray.pareto import direction
from kdray.record import State, TrialRecord
from kdray.search.quiet import quiet_optuna

STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
OPTUNA_STATES = {state: optuna_state for optuna_state, state in STATES.items()}

EVALUATION, REMARK, RUN = "evaluation ", "remark ", "run "


class Ledger:
    """The trials of one sweep; one process writes at a time, any number may read. Safe to use from several threads."""

    def __init__(self, where: Path | str, name: str, objectives: Sequence[str], storage: BaseStorage) -> None:
        self.where, self.name, self.objectives = where, name, tuple(objectives)
        self._storage = storage
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
    def open(cls, where: Path | str, name: str, objectives: Sequence[str]) -> "Ledger":
        """The ledger of this name, for writing; a new one where there is none.

        `where` is a journal file or an Optuna storage URL. Raises StorageError when it cannot be used or belongs to
        a search with other objectives.
        """
        storage = _opened(where, cut=True)
        directions = [StudyDirection[direction(objective).upper()] for objective in objectives]
        with quiet_optuna():
            study = create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
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
    def read(cls, where: Path | str, name: str) -> "Ledger":
        """The ledger as it is now, for looking at, while another process may be writing. Raises StorageError."""
        if isinstance(where, Path) and not where.exists():
            raise StorageError(f"ledger {where}: no such file; the sweep {name!r} has no trials yet.")
        storage = _opened(where, cut=False)
        try:
            objectives = load_study(storage=storage, study_name=name).metric_names or []
        except KeyError:
            raise StorageError(f"ledger {where}: holds no sweep {name!r}.") from None
        return cls(where, name, objectives, storage)

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
        """A new running trial, in one write."""
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"costs": dict(costs)},
            system_attrs=dict(notes),
        )
        with self._lock:
            trial_id = self._storage.create_new_trial(self._study_id, template_trial=template)
            trial = self._storage.get_trial(trial_id)
            self._ids[trial.number], self._notes[trial.number] = trial_id, trial.system_attrs
            return self._keep(_record(trial, None))

    def resume(self, number: int) -> TrialRecord:
        """A trial that was running when its process ended is handed out again."""
        with self._lock:
            record = self._records[number]
            changed = replace(record, attempts=record.attempts + 1, started=time.time())
            self._set(number, "attempts", changed.attempts)
            self._set(number, "resumed", changed.started)
            return self._keep(changed)

    def record(self, number: int, metrics: Mapping[str, float]) -> TrialRecord:
        """Append an evaluation. One whose `step` is known already (a trial begun again) changes nothing."""
        with self._lock:
            record = self._records[number]
            if "step" in metrics and any(known.get("step") == metrics["step"] for known in record.history):
                return record
            self._set(number, f"{EVALUATION}{len(record.history):04d}", dict(metrics))
            return self._keep(replace(record, history=(*record.history, dict(metrics))))

    def remark(self, number: int, sentence: str) -> TrialRecord:
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

    def finish(self, number: int, state: State, error: str | None = None) -> TrialRecord:
        """End a trial; a completed one must have every objective among its metrics."""
        with self._lock:
            record = self._records[number]
            if error:
                self._set(number, "error", error)
            values = [record.metrics[name] for name in self.objectives] if state == "completed" else None
            self._storage.set_trial_state_values(self._ids[number], OPTUNA_STATES[state], values)
            return self._keep(replace(record, state=state, error=error, ended=time.time()))

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
            self._storage.set_study_user_attr(self._study_id, name, value)
            self._attrs = {**self._attrs, name: value}

    def _set(self, number: int, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._ids[number], name, value)

    def _keep(self, record: TrialRecord) -> TrialRecord:
        self._records[record.number] = record
        return record


def _opened(where: Path | str, *, cut: bool) -> BaseStorage:
    try:
        if isinstance(where, str):
            return get_storage(where)
        where.parent.mkdir(parents=True, exist_ok=True)
        if cut:
            _cut_torn_line(where)
        return JournalStorage(JournalFileBackend(str(where)))
    except Exception as error:
        raise StorageError(
            f"ledger {where}: cannot be used ({type(error).__name__}: {error}). Give a journal file in a folder you "
            "may write to, or the URL of an Optuna storage."
        ) from error


def _cut_torn_line(journal: Path) -> None:
    """Drop what a killed process left of its last write: after it the next write would be lost, and then the study."""
    if not journal.exists():
        return
    text = journal.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(journal, whole)


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
        run_id=run_id,
        started=attrs.get("resumed", started),
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
    )
