"""Running trials with Ray Tune, as many at a time as there are slots.

Tune's searcher and scheduler are thin here: both only ask and tell the planner. A Tune trial is an actor that listens to
one job on the slots; it does no work, sits on this node and is used again for the next trial. What Tune writes goes to
a folder that is removed: the record of the sweep is the ledger.
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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `interrupts` does it, and says so in our words
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # `StudySearcher` has as many as there are slots, however many that is
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables come at any verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

RELEASE_TIMEOUT_S = "60"
"""How long an actor may take to let go of a stopped trial; Tune's 2 s are too few for a busy machine."""


def run_with_tune(pool: SlotPool, planner: Planner, make_job: MakeJob, on_change: OnChange) -> None:
    """Run trials until the planner has no more; one that fails is a failed row, whatever it failed of.

    Raises ResourceError when there is no slot to be had, KeyboardInterrupt on one, and what `on_change` raises. Trials
    that run then stay running in the ledger: the next session begins them again.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    driver = TuneDriver(pool, planner, make_job, on_change)
    lane = partial(_lane_resources, f"node:{ray.util.get_node_ip_address()}")
    try:
        with scratch_folder() as folder, redirect_signals(driver.interrupt):
            tune.Tuner(
                tune.with_resources(partial(_listen, client=pool.client()), lane),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(driver),
                    scheduler=StudyScheduler(driver),
                    num_samples=-1,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="trials", storage_path=str(folder), stop=DriverStopper(driver), callbacks=[], verbose=0
                ),
            ).fit()
    finally:
        driver.suspend_all()
    if driver.ending:
        raise driver.ending


def _lane_resources(node: str, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """A crumb of this node, of a size of its own for each lane.

    Tune lends a finished trial's actor to the next trial that asks for the same, even to one whose own actor is
    starting, which it then throws away: with short trials it would start actors for ever and use one.
    """
    return tune.PlacementGroupFactory([{node: 0.0001 * (1 + config["lane"])}])


@dataclass(frozen=True)
class PickledTrial:
    """A trial on its way to its actor; opaque to Tune, which would look into a dict."""

    number: int
    payload: bytes
    """The pickled job."""

    def __repr__(self) -> str:
        return job_name(self.number)


def _listen(config: dict[str, Any], client: SlotClient) -> None:
    """What a Tune trial does: hand its job to the slots and pass on what they tell."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = RELEASE_TIMEOUT_S
    assignment: PickledTrial = config["assignment"]
    for new in job_updates(client, partial(cloudpickle.loads, assignment.payload), assignment.number):
        tune.report({"told": [new]})  # in a list, which Tune does not look into


class TuneDriver:
    """The one state behind Tune's searcher, scheduler and stopper, all of which Tune calls from one thread."""

    def __init__(self, pool: SlotPool, planner: Planner, make_job: MakeJob, on_change: OnChange) -> None:
        self.pool, self.planner, self.make_job, self.on_change = pool, planner, make_job, on_change
        self.running: dict[str, int] = {}
        """Tune's id of a trial -> its number."""
        self.lanes: dict[str, int] = {}
        """Tune's id of a trial -> which of the actors, as many as slots, listens to it."""
        self.ending: BaseException | None = None
        """Why the search ends before its budget is spent."""

    def next(self, trial_id: str) -> PickledTrial | None:
        """The next trial, which Tune knows by this id; None when there is no more."""
        self.lanes[trial_id] = min(set(range(self.pool.count)) - set(self.lanes.values()))
        while asked := self.planner.next_trial():
            self.running[trial_id] = asked.number
            self.on_change(self.planner.record(asked.number))
            if asked.stopped:
                self.finish(trial_id, "stopped")
                continue
            try:
                return PickledTrial(asked.number, cloudpickle.dumps(self.make_job(asked.number, asked.params)))
            except Exception as error:
                self.finish(trial_id, "failed", failure_reason(error))
        return None

    def take(self, trial_id: str, new: JobUpdate) -> bool:
        """Take what the slots tell of a trial; whether it should go on."""
        number = self.running[trial_id]
        if isinstance(new.error, SEARCH_ENDING_ERRORS):
            raise new.error
        if new.error:
            self.finish(trial_id, "failed", failure_reason(new.error))
        elif new.report is not None and not self.planner.observe(number, new.report, new.attempt, new.host):
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

    def lost(self, trial_id: str, error: str) -> None:
        """The actor that listened to a trial is gone: the trial is handed out again, and goes on where it was."""
        number = self.running.get(trial_id)
        if number is None:
            return
        self.pool.suspend(job_name(number))
        if self.planner.retry(number):
            del self.running[trial_id]
        else:
            self.finish(trial_id, "failed", error)

    def suspend_all(self) -> None:
        """Stop every job that still runs; the trials stay running in the ledger."""
        with suppress(SlotsLost):
            for number in self.running.values():
                self.pool.suspend(job_name(number))

    def interrupt(self) -> None:
        """End the search in order, and then be a KeyboardInterrupt."""
        self.ending = self.ending or KeyboardInterrupt()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What is raised in the block ends the search and leaves `search` as it is; Tune would bury it."""
        try:
            yield
        except Exception as error:
            self.ending = self.ending or error

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Tune pickles its searcher, scheduler and stopper to restore them, which is never done here."""
        return (object, ())


class StudySearcher(Searcher):
    """Asks the planner, as many trials at a time as there are slots."""

    def __init__(self, driver: TuneDriver) -> None:
        super().__init__()
        self.driver = driver

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None while all slots are taken."""
        if self.driver.ending:
            return Searcher.FINISHED
        if len(self.driver.lanes) >= self.driver.pool.count:
            return None
        assignment = None
        with self.driver.guarded():
            assignment = self.driver.next(trial_id)
        if assignment:
            return {"assignment": assignment, "lane": self.driver.lanes[trial_id]}
        self.driver.lanes.pop(trial_id, None)
        return None if self.driver.running else Searcher.FINISHED  # one that runs may have to be handed out again

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The job ran to its end; or Tune lost the actor, and nobody said so yet."""
        with self.driver.guarded():
            if self.driver.ending:
                pass  # Tune ends what still runs; it stays running in the ledger
            elif error:
                self.driver.lost(trial_id, "Ray Tune lost the trial; the log says more")
            else:
                self.driver.finish(trial_id, "completed")
            self.driver.lanes.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """The ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """The ledger has it."""


class StudyScheduler(FIFOScheduler):
    """Tells the planner; what it stops ends at its next step on its slot."""

    def __init__(self, driver: TuneDriver) -> None:
        super().__init__()
        self.driver = driver
        self._trials: dict[str, TuneTrial] = {}
        """Those that have not ended; Tune keeps all there ever were, and would look through them at every step."""
        self._lanes: set[tune.PlacementGroupFactory] = set()

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Tune took it from the searcher."""
        self._trials[trial.trial_id] = trial

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The first that waits. One whose actor could not be lent to it has failed without anybody being told."""
        for trial in [trial for trial in self._trials.values() if trial.status == TuneTrial.ERROR]:
            self.on_trial_error(tune_controller, trial)
        return next((trial for trial in self._trials.values() if trial.status == TuneTrial.PENDING), None)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Its actor is kept for the lane's next trial, even while other lanes wait for theirs to start."""
        self._trials.pop(trial.trial_id, None)
        lane = trial.placement_group_factory
        if lane not in self._lanes:
            self._lanes.add(lane)
            keep_one_more_actor(tune_controller, lane)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """The planner's verdict on a report."""
        goes_on = False
        with self.driver.guarded():
            goes_on = self.driver.take(trial.trial_id, result["told"][0])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """The actor died or could not be started: its job is stopped, the trial failed."""
        self._trials.pop(trial.trial_id, None)
        with self.driver.guarded():
            why = trial.get_pickled_error() or trial.get_error() or "for a reason unknown"
            self.driver.lost(trial.trial_id, f"Ray Tune lost the trial's actor: {_last_line(why)}")
            self.driver.lanes.pop(trial.trial_id, None)


class DriverStopper(Stopper):
    """Ends the experiment when the search must end before its budget is spent."""

    def __init__(self, driver: TuneDriver) -> None:
        self.driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Asked between any two events; first of all the actors must be freed from waiting for their jobs."""
        if self.driver.ending:
            self.driver.suspend_all()
        return self.driver.ending is not None


def _last_line(why: object) -> str:
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    return lines[-1] if lines else repr(why)
