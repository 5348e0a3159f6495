"""The driver with Ray Tune: runs as many trials at a time as the slots have places.

Tune's searcher and scheduler only pass its events to the planner. A Tune trial is an actor that runs one job on the
slots and passes on the job's reports. The actor does no other work, runs on the driver's node, and is reused for the
next trial. A lane is the place of one such actor; there are as many lanes as jobs that run at the same time. What Tune
writes goes to a scratch folder that is deleted at the end, because the ledger is the record of the sweep.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from kdray.errors import SlotsLost
from kdray.evaluation.trial_record import State
from kdray.search.driver import (
    SEARCH_ENDING_ERRORS,
    JobUpdate,
    MakeJob,
    OnChange,
    failure_reason,
    job_name,
    job_updates,
)
from kdray.search.planner import Planner
from kdray.slots.interrupts import redirect_signals
from kdray.slots.pool import SlotClient, SlotPool
from kdray.slots.ray_internals import keep_one_more_actor
from kdray.storage.files import scratch_folder

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its CSV, JSON and TensorBoard files cost more than the rest of Tune
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `kdray.slots.interrupts` handles SIGINT, with kdray's own messages
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # never: Tune's snapshots are not used
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # no limit: `PlannerSearcher` suggests at most as many trials as lanes
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints its tables at any verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

MAX_FUSED_LANES = 64
"""The most lanes where slots run several jobs as one, unless there are more slots. Each lane is a process on the
driver's node."""

RELEASE_TIMEOUT_S = "60"
"""How long an actor may take to release a stopped trial. Tune's 2 s are too short for a busy machine."""


def run_with_tune(pool: SlotPool, planner: Planner, make_job: MakeJob, on_change: OnChange) -> None:
    """Run trials until the planner has no more trials. A trial that fails is a failed row with its reason.

    Raises ResourceError when no slot is available, KeyboardInterrupt after an interrupt, and any error of `on_change`.
    Trials that run at that moment stay running in the ledger, and the next session resumes them.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    driver = TuneDriver(pool=pool, planner=planner, make_job=make_job, on_change=on_change)
    resources = partial(_lane_resources, f"node:{ray.util.get_node_ip_address()}")
    try:
        with scratch_folder() as folder, redirect_signals(driver.interrupt):
            tune.Tuner(
                tune.with_resources(partial(_run_job, client=pool.client()), resources),
                tune_config=tune.TuneConfig(
                    search_alg=PlannerSearcher(driver),
                    scheduler=PlannerScheduler(driver),
                    num_samples=-1,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="trials", storage_path=str(folder), stop=DriverStopper(driver), callbacks=[], verbose=0
                ),
            ).fit()
    finally:
        driver.suspend_all()
    if driver.ending_error:
        raise driver.ending_error


def _lane_resources(node: str, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """A tiny share of the driver's node, of a different size for each lane."""
    # Tune gives the actor of a finished trial to the next trial with the same resources, even to a trial whose own
    # actor is still starting, and then discards the starting one. Without lanes, Tune started one actor for each short
    # trial: 1.44 s a trial, against 0.04 s with lanes (30 trials on two slots).
    return tune.PlacementGroupFactory([{node: 0.0001 * (1 + config["lane"])}])


@dataclass(frozen=True)
class PickledTrial:
    """A trial as Tune passes it to an actor. It is no dict, because Tune flattens dicts."""

    number: int
    payload: bytes
    """The pickled job."""

    def __repr__(self) -> str:
        return job_name(self.number)


def _run_job(config: dict[str, Any], client: SlotClient) -> None:
    """Run the trial's job on the slots, and report its updates to Tune. This is the trainable of every Tune trial."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = RELEASE_TIMEOUT_S
    trial: PickledTrial = config["trial"]
    for update in job_updates(client, partial(cloudpickle.loads, trial.payload), trial.number):
        tune.report({"updates": [update]})  # in a list, because Tune flattens a dict of results


class TuneDriver:
    """The state that Tune's searcher, scheduler and stopper share. Tune calls all three from one thread."""

    def __init__(self, pool: SlotPool, planner: Planner, make_job: MakeJob, on_change: OnChange) -> None:
        self.pool, self.planner, self.make_job, self.on_change = pool, planner, make_job, on_change
        self.running: dict[str, int] = {}
        """Tune's id of a running trial -> the trial's number."""
        self.lanes: dict[str, int] = {}
        """Tune's id of a trial -> its lane."""
        self.ending_error: BaseException | None = None
        """The reason why the search ends before its budget is spent."""

    @property
    def lane_count(self) -> int:
        """How many trials run at a time."""
        return max(self.pool.count, min(self.pool.places, MAX_FUSED_LANES))

    def start_next(self, trial_id: str) -> PickledTrial | None:
        """Start the next trial under this id of Tune. Returns None when the planner has no more trials."""
        self.lanes[trial_id] = min(set(range(self.lane_count)) - set(self.lanes.values()))
        while planned := self.planner.next_trial():
            self.running[trial_id] = planned.number
            self.on_change(self.planner.record(planned.number))
            if planned.must_stop:
                self.finish(trial_id, "stopped")
                continue
            try:
                return PickledTrial(planned.number, cloudpickle.dumps(self.make_job(planned.number, planned.params)))
            except Exception as error:
                self.finish(trial_id, "failed", failure_reason(error))
        return None

    def process_update(self, trial_id: str, update: JobUpdate) -> bool:
        """Pass a job's update to the planner. Returns whether the trial continues."""
        number = self.running[trial_id]
        if isinstance(update.error, SEARCH_ENDING_ERRORS):
            raise update.error
        if update.error:
            self.finish(trial_id, "failed", failure_reason(update.error))
        elif update.report is not None and not self.planner.observe(number, update.report, update.attempt, update.host):
            # The job ends at its next step, on its slot.
            self.pool.cancel(job_name(number))
            self.finish(trial_id, "stopped")
        else:
            self.on_change(self.planner.record(number))
        return trial_id in self.running

    def finish(self, trial_id: str, state: State, error: str | None = None) -> None:
        """End a trial, unless it has ended already."""
        number = self.running.pop(trial_id, None)
        if number is not None:
            self.on_change(self.planner.finish(number, state, error))

    def retry_or_fail(self, trial_id: str, error: str) -> None:
        """Suspend the job of a trial whose actor died. Plan the trial again, or fail it after too many retries."""
        number = self.running.get(trial_id)
        if number is None:
            return
        self.pool.suspend(job_name(number))
        if self.planner.retry(number):
            del self.running[trial_id]
        else:
            self.finish(trial_id, "failed", error)

    def suspend_all(self) -> None:
        """Suspend every running job; its trial stays running in the ledger."""
        with suppress(SlotsLost):
            for number in self.running.values():
                self.pool.suspend(job_name(number))

    def interrupt(self) -> None:
        """Let the search end in order, and `run_with_tune` then raise KeyboardInterrupt."""
        self.ending_error = self.ending_error or KeyboardInterrupt()

    @contextmanager
    def end_on_error(self) -> Iterator[None]:
        """Let an error in the block end the search, and `run_with_tune` raise it. Tune itself would hide the error."""
        try:
            yield
        except Exception as error:
            self.ending_error = self.ending_error or error

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Pickle as an empty object. Tune pickles its searcher, scheduler and stopper; kdray never restores them."""
        return (object, ())


class PlannerSearcher(Searcher):
    """Suggests the planner's trials to Tune, at most as many at a time as there are lanes."""

    def __init__(self, driver: TuneDriver) -> None:
        super().__init__()
        self.driver = driver

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None while all lanes are in use."""
        if self.driver.ending_error:
            return Searcher.FINISHED
        if len(self.driver.lanes) >= self.driver.lane_count:
            return None
        trial = None
        with self.driver.end_on_error():
            trial = self.driver.start_next(trial_id)
        if trial:
            return {"trial": trial, "lane": self.driver.lanes[trial_id]}
        self.driver.lanes.pop(trial_id, None)
        # While a trial runs the search is not finished: the trial's actor may die, and the trial is then planned again.
        return None if self.driver.running else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End a trial whose job ran to its end; retry a trial whose actor Tune lost without another event."""
        with self.driver.end_on_error():
            if self.driver.ending_error:
                pass  # Tune ends every trial with the search; the trial stays running in the ledger
            elif error:
                self.driver.retry_or_fail(trial_id, "Ray Tune lost the trial; see the log for the reason")
            else:
                self.driver.finish(trial_id, "completed")
            self.driver.lanes.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the record."""


class PlannerScheduler(FIFOScheduler):
    """Passes the reports of Tune's trials to the planner, and stops the trials that the planner stops."""

    def __init__(self, driver: TuneDriver) -> None:
        super().__init__()
        self.driver = driver
        self._trials: dict[str, TuneTrial] = {}
        """The trials that have not ended, by Tune's id. Tune keeps all trials, and would search all at every step."""
        self._lanes: set[tune.PlacementGroupFactory] = set()
        """The resources of the lanes that already keep an actor."""

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Remember a trial that Tune took from the searcher."""
        self._trials[trial.trial_id] = trial

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The first pending trial."""
        # Tune sends no event for a trial that failed because it could not reuse the actor of another trial.
        for trial in [trial for trial in self._trials.values() if trial.status == TuneTrial.ERROR]:
            self.on_trial_error(tune_controller, trial)
        return next((trial for trial in self._trials.values() if trial.status == TuneTrial.PENDING), None)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Forget the trial, and let Tune keep one actor for its lane, even while actors of other lanes start."""
        self._forget(trial)
        lane = trial.placement_group_factory
        if lane not in self._lanes:
            self._lanes.add(lane)
            keep_one_more_actor(tune_controller, lane)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """The planner's decision on a report: whether the trial continues."""
        can_continue = False
        with self.driver.end_on_error():
            can_continue = self.driver.process_update(trial.trial_id, result["updates"][0])
        return TrialScheduler.CONTINUE if can_continue else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Retry or fail a trial whose actor died or could not start."""
        self._forget(trial)
        with self.driver.end_on_error():
            reason = trial.get_pickled_error() or trial.get_error() or "unknown reason"
            self.driver.retry_or_fail(trial.trial_id, f"Ray Tune lost the trial's actor: {_last_line(reason)}")
            self.driver.lanes.pop(trial.trial_id, None)

    def _forget(self, trial: TuneTrial) -> None:
        """Forget a trial that has ended. Tune keeps all trials, but need not keep the statistics of their reports."""
        self._trials.pop(trial.trial_id, None)
        trial.metric_n_steps.clear()
        trial.metric_analysis.clear()


class DriverStopper(Stopper):
    """Ends the Tune experiment when the search must end before its budget is spent."""

    def __init__(self, driver: TuneDriver) -> None:
        self.driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether the experiment ends. Tune calls this between any two events."""
        # An actor waits for its job until the job ends, so Tune could not stop the actor before.
        if self.driver.ending_error:
            self.driver.suspend_all()
        return self.driver.ending_error is not None


def _last_line(reason: object) -> str:
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return lines[-1] if lines else repr(reason)
