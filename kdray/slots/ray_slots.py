"""Slots on a Ray cluster: Ray Train worker groups that start once and stay, and the board that hands them jobs.

Each slot is a TorchTrainer whose training function is `serving.serve`; a thread of this process keeps it. Ray Train
restarts a group whose worker died, the board gives the group its job again. Nothing here knows what a job computes.
"""

import logging
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdray.errors import JobError, KDRayError, ResourceError, SlotsLost
from kdray.slots import board as board_module
from kdray.slots.board import Board, Event, Status
from kdray.slots.cluster import Shares, growth, nodes, shares
from kdray.slots.pool import SlotSettings
from kdray.slots.serving import Post, serve
from kdray.slots.talking import OverTheNodesNetwork
from kdray.worker import Ask, Job, Report

chatter = logging.getLogger("ray.slots")
"""What Ray says of a failure, at its usual length, goes where the rest of its talk does: see cluster.connect."""

TRIES = 3
"""How often in a row a slot's start is tried before the slot is given up."""

DRAIN_POLL_S = 2.0

RETRYABLE = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError, RayError)
"""What a slot is started anew after; a RayError: the controller died, or was taken down by a worker out of memory."""

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon Train sees a dead worker, or a slot's end
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # jobs name files as the sweep does
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less for each slot; `_watch_drains` looks for all
}


class RayClient:
    """Hands jobs to the slots from any process of the cluster."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def run(self, job: Job, name: str) -> "RayRun":
        """Hand a job over at once; the reports can be read when it suits."""
        try:
            payload = cloudpickle.dumps(job)
        except Exception as error:
            raise JobError(f"{name}: the job cannot be sent to a slot: {error}") from error
        try:
            job_id = _ask(self.board.submit, name, payload)
        except ValueError as error:
            raise JobError(str(getattr(error, "cause", error))) from None
        return RayRun(self.board, job_id, name)

    def cancel(self, name: str) -> None:
        """Stop this job at its next step; its reports end now."""
        _ask(self.board.cancel, name, int(Ask.END))

    def suspend(self, name: str) -> None:
        """Stop this job at its next step, after a checkpoint; its reports end now."""
        _ask(self.board.cancel, name, int(Ask.SUSPEND))


class RayRun:
    """A job of RaySlots and the reports it has sent."""

    def __init__(self, board: Any, job_id: int, name: str) -> None:
        self.attempts, self.host = 0, ""
        self._board, self._id, self._name = board, job_id, name
        self._ended = False

    def __iter__(self) -> Iterator[Report]:
        return self

    def __next__(self) -> Report:
        if self._ended:
            raise StopIteration
        event: Event = _ask(self._board.next_event, self._id)
        self.attempts, self.host = event["attempts"], event["host"]
        if event["kind"] == "report":
            report: Report = cloudpickle.loads(event["data"])
            return report
        self._ended = True
        if event["kind"] == "died":
            why = event["data"].decode() or "killed, out of memory, or crashed"
            raise JobError(
                f"{self._name}: its worker died each of the {self.attempts} times it was tried: {why}. "
                "The slots' logs have its last words; slots.max_failures allows more tries."
            )
        if event["kind"] == "failed":
            raise _unpickled(self._name, event["data"])
        raise StopIteration

    def close(self) -> None:
        """See JobRun."""
        if not self._ended:
            self._ended = True
            if ray.is_initialized():
                self._board.cancel_id.remote(self._id, int(Ask.SUSPEND))

    def __del__(self) -> None:
        self.close()


class _SlotTrainer(TorchTrainer):
    """A TorchTrainer without the process that deals out Ray Data, which no slot uses."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]


class RaySlots:
    """Worker groups that stay up until the pool is closed. They start in the background; jobs wait for them."""

    def __init__(self, settings: SlotSettings, asked: Shares, logs: Path, train_folder: Path) -> None:
        self.count, self.settings, self.shares, self.logs = asked.count, settings, asked, logs
        self._train_folder, self._nodes = train_folder, len(nodes())
        self._closing = threading.Event()
        self._board = _board(asked.count, settings.max_failures, settings.progress_timeout_s)
        self._client = RayClient(self._board)
        self._keepers = [
            threading.Thread(target=self._keep, args=(slot,), name=f"slot-{slot}", daemon=True)
            for slot in range(asked.count)
        ]
        self._timer = threading.Timer(settings.start_timeout_s, self._give_up_missing)
        self._timer.daemon = True
        drains = threading.Thread(target=self._watch_drains, name="drains", daemon=True)
        for thread in (*self._keepers, self._timer, drains):
            thread.start()

    def run(self, job: Job, name: str) -> RayRun:
        """Hand over a job; see SlotClient."""
        return self._client.run(job, name)

    def cancel(self, name: str) -> None:
        """Stop a job; see SlotClient."""
        self._client.cancel(name)

    def suspend(self, name: str) -> None:
        """Stop a job after a checkpoint; see SlotClient."""
        self._client.suspend(name)

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs."""
        one_node = len(nodes()) == 1 and self.shares.workers == 1
        return self.shares.threads * (self.shares.count if one_node else 1)

    def client(self) -> RayClient:
        return self._client

    def up(self) -> int:
        """How many slots are up now."""
        status: Status = _ask(self._board.status)
        return len(status["up"])

    def wait(self, timeout: float | None = None) -> None:
        """Return when every slot is up, or after `timeout` seconds. Raises ResourceError when one is given up."""
        try:
            status: Status = ray.get(self._board.settled.remote(), timeout=timeout)
        except GetTimeoutError:
            return
        if status["lost"]:
            raise ResourceError(" ".join(status["lost"].values()))

    def describe(self) -> dict[str, Any]:
        asked = self.shares
        return {
            "kind": "ray",
            "count": asked.count,
            "workers": asked.workers,
            "cpus": asked.cpus,
            "gpus": asked.gpus,
            "threads": asked.threads,
            "nodes": self._nodes,
        }

    def close(self) -> None:
        """Suspend every job and end every slot; one that does not stop by itself is killed."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._timer.cancel()
        try:
            started: list[int] = _ask(self._board.close, int(Ask.SUSPEND))
            if not self._joined(started, self.settings.stop_timeout_s):
                _ask(self._board.kill_all)
                self._joined(started, 60.0)
            ray.kill(self._board)
        except SlotsLost:
            chatter.warning("the board died before its slots were closed", exc_info=True)
        finally:
            # a slot that is still starting finds no board, and ends, too: not after Ray, which would take this process
            self._joined(list(range(self.count)), self.settings.stop_timeout_s)
            shutil.rmtree(self._train_folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _joined(self, slots: list[int], patience_s: float) -> bool:
        until = time.monotonic() + patience_s
        keepers = [self._keepers[slot] for slot in slots]
        for keeper in keepers:
            keeper.join(max(0.0, until - time.monotonic()))
        return not any(keeper.is_alive() for keeper in keepers)

    def _keep(self, slot: int) -> None:
        """Keep one slot up: Ray Train restarts its group; where that gives up, start anew."""
        for attempt in range(TRIES):
            try:
                self._trainer(slot).fit()
                return
            except Exception as error:
                if self._closing.is_set():
                    return
                chatter.warning("slot %s: start %s failed", slot, attempt + 1, exc_info=error)
                causes = (error, getattr(error, "controller_failure", None))
                again = any(isinstance(cause, RETRYABLE) for cause in causes)
                if not again or attempt + 1 == TRIES:
                    with suppress(SlotsLost):  # whoever waits for a job hears of it
                        self._lose(
                            slot, f"slot {slot} could not be started: {_cause(error)}. See {self.logs / 'ray.log'}."
                        )
                    return  # what it reserved is not given back before this process ends

    def _watch_drains(self) -> None:
        """Have slots leave nodes that are going to be taken away."""
        known: set[str] = set()
        while not self._closing.wait(DRAIN_POLL_S):
            try:
                draining = set(ray._private.state.state.get_draining_nodes())
                for node in draining - known:
                    left: list[int] = _ask(self._board.drain, node, int(Ask.SUSPEND))
                    chatter.warning("node %s is being drained; slots that leave it: %s", node, left)
                known = draining
            except Exception as error:  # the next look may succeed; a lost node is a dead worker in any case
                chatter.warning("cannot see which nodes are being drained", exc_info=error)

    def _trainer(self, slot: int) -> TorchTrainer:
        asked, limit_s = self.shares, self.settings.progress_timeout_s
        return _SlotTrainer(
            partial(serve, Post(self._board, slot, asked.threads, self.logs, min(5.0, limit_s / 4))),
            torch_config=OverTheNodesNetwork(backend=_backend(asked)),
            scaling_config=ScalingConfig(
                num_workers=asked.workers,
                use_gpu=asked.gpus > 0,
                resources_per_worker=asked.bundle,
            ),
            run_config=RunConfig(
                name=f"slot-{slot}",
                storage_path=str(self._train_folder),
                # the board counts, for each job, how often its group died; the start has the slot's own limit
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )

    def _give_up_missing(self) -> None:
        """Say what the slots that are not up by now are waiting for."""
        try:
            status: Status = _ask(self._board.status)
        except SlotsLost:
            return
        for slot in set(range(self.count)) - set(status["up"]) - set(status["lost"]):
            free = {name: ray.available_resources().get(name, 0.0) for name in self.shares.bundle}
            self._lose(
                slot,
                f"slot {slot} was not up after {self.settings.start_timeout_s:g} s: it waits for {self.shares.workers} "
                f"workers with {self.shares.bundle} each; free now: {free}. Ask for less, or raise "
                "slots.start_timeout_s.",
            )

    def _lose(self, slot: int, reason: str) -> None:
        _ask(self._board.lose, slot, reason, cloudpickle.dumps(ResourceError(reason)))


@contextmanager
def open_slots(settings: SlotSettings, storage: Path, logs: Path) -> Iterator[RaySlots]:
    """The slots on the Ray that `connect` joined; they start while the caller goes on, and end with the block.

    Raises ResourceError at once when the cluster neither has nor can grow to what is asked for.
    """
    asked = shares(settings, nodes(), growth())
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # Train takes these from here to its controllers and workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.start_timeout_s)
    storage.mkdir(parents=True, exist_ok=True)
    slots = RaySlots(settings, asked, logs, Path(tempfile.mkdtemp(dir=storage, prefix=".slots-")))
    try:
        yield slots
    finally:
        slots.close()


def _board(slots: int, max_failures: int, progress_s: float) -> Any:
    """The board's actor, on this node: it must outlive every worker, and it need not import what workers need."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    cloudpickle.register_pickle_by_value(board_module)
    try:
        actor = ray.remote(num_cpus=0, max_concurrency=100_000, scheduling_strategy=here)(Board)
        return actor.remote(slots, max_failures, progress_s)
    finally:
        cloudpickle.unregister_pickle_by_value(board_module)


def _backend(asked: Shares) -> str:
    """NCCL refuses two ranks on one GPU."""
    return "cpu:gloo,cuda:nccl" if asked.gpus >= 1 else "gloo"


def _ask(method: Any, *arguments: Any) -> Any:
    """The board's answer. Its own ValueErrors come as they are; raises SlotsLost when it is dead."""
    try:
        return ray.get(method.remote(*arguments))
    except ValueError:
        raise
    except RayError as error:
        raise SlotsLost(
            f"The board that hands jobs to the slots is gone ({_cause(error)}); what was recorded is safe, and the "
            "same command goes on from there."
        ) from error


def _unpickled(name: str, data: bytes) -> KDRayError:
    try:
        error: KDRayError = pickle.loads(data)
    except Exception as problem:
        return JobError(f"{name}: it failed, and its error cannot be read here: {problem}")
    return error


def _cause(error: BaseException) -> str:
    """What Ray's many lines end with: the error at the bottom of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().rstrip(".")
