"""Slots on a Ray cluster: Ray Train worker groups that start once and stay up, and the board that assigns jobs to them.

Each slot is a TorchTrainer whose training function is `serving.serve`. A thread of this process runs the trainer. When
a worker dies, Ray Train restarts its group, and the board assigns the job again. Another thread watches the cluster:
slots leave machines that will be taken away and, with count="auto", are added when machines join. Nothing here knows
what a job computes.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.util.placement_group import remove_placement_group

from kdray.errors import ResourceError, SlotsLost
from kdray.slots.board_state import Status
from kdray.slots.client import RayClient, RayRun, call_board, last_error_line, start_board, unpickle_error
from kdray.slots.cluster import cluster_growth, list_nodes, nodes_by_id
from kdray.slots.environment import DriverEnvironment
from kdray.slots.job import Instruction, Job
from kdray.slots.pool import SlotSettings
from kdray.slots.process_group import torch_backend
from kdray.slots.ray_internals import (
    ControllerStarted,
    NodeNetworkConfig,
    SlotTrainer,
    draining_nodes,
    is_retryable,
    is_start_timeout,
)
from kdray.slots.serving import SlotContext, serve
from kdray.slots.sizing import (
    MAX_CPU_SLOTS,
    Node,
    SlotShares,
    divide_into_slots,
    fused_jobs,
    with_plural,
    workers_that_fit,
)
from kdray.storage.files import scratch_folder

logger = logging.getLogger("ray.slots")
"""Below the logger `ray`, so that long errors of Ray go to its log file and not to the screen: see cluster.connect."""

START_ATTEMPTS = 3
"""How many times the start of a slot may fail before the slot is given up."""

START_TIMEOUT_S, GROWING_START_TIMEOUT_S = 300.0, 1200.0
"""slots.start_timeout_s="auto": on a cluster of a fixed size, and on one that starts machines first."""

NODE_POLL_S = 2.0
"""Seconds between two looks at the machines of the cluster."""

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon Train notices a dead worker, or the end of a slot
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a job are relative to the same folder as in the sweep
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it is one process for each slot; `_watch_cluster` does it for all
}

WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
"""The environment variables of workers, unless this process has other values.

OpenMP threads that wait for each other spin before they sleep. Where another program uses one of their cores, the
spinning threads keep the thread that they wait for from running, and a step takes up to a hundred times as long
(bench/busy_machine.py). With this value they sleep soon, as libgomp does by default if it has more threads than cores.
"""


@dataclass(frozen=True)
class StartPlan:
    """How the slots of one pool are started."""

    shares: SlotShares
    timeout_s: float
    """Seconds after which a slot that is not up is given up."""
    logs: Path
    train_folder: Path
    """The folder for the files of Ray Train, which nobody reads."""
    driver: DriverEnvironment


class RaySlots:
    """A SlotPool of worker groups. They start in the background, and jobs wait for them."""

    def __init__(self, settings: SlotSettings, plan: StartPlan, note: Callable[[str], None]) -> None:
        self.settings, self.shares, self.logs = settings, plan.shares, plan.logs
        self._plan, self._note = plan, note
        self._nodes = nodes_by_id()
        self._max_slots = self._slots_on(self._nodes)
        self._closing, self._adding = threading.Event(), threading.Lock()
        self._fused = fused_jobs(settings, plan.shares)
        self._board = start_board(settings.max_failures, settings.progress_timeout_s, self._fused)
        self._client = RayClient(self._board, can_fuse=self._fused > 1)
        self._slot_threads: list[threading.Thread] = []
        for _ in range(self.shares.count):
            self._add_slot()
        self._start_timer = threading.Timer(plan.timeout_s, self._give_up_late_slots)
        self._start_timer.daemon = True
        self._start_timer.start()
        self._watcher = threading.Thread(target=self._watch_cluster, name="cluster", daemon=True)
        self._watcher.start()

    @property
    def count(self) -> int:
        """How many slots run jobs. With count="auto": as many as the present machines have room for."""
        return max(1, min(len(self._slot_threads), self._max_slots))

    @property
    def places(self) -> int:
        """See SlotPool."""
        return self.count * self._fused

    def run(self, job: Job, name: str) -> RayRun:
        """Submit a job; see SlotClient."""
        return self._client.run(job, name)

    def cancel(self, name: str) -> None:
        """Stop a job; see SlotClient."""
        self._client.cancel(name)

    def suspend(self, name: str) -> None:
        """Stop a job after a checkpoint; see SlotClient."""
        self._client.suspend(name)

    @property
    def runs_in_caller(self) -> bool:
        """False: jobs run in the workers of the slots."""
        return False

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs: those of all slots on a single node."""
        single_node = len(list_nodes()) == 1 and self.shares.workers == 1
        return self.shares.threads * (self.shares.count if single_node else 1)

    def client(self) -> RayClient:
        """See SlotPool."""
        return self._client

    def up(self) -> int:
        """How many slots are up now."""
        status: Status = call_board(self._board.status)
        return len(status["up"])

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every slot that there is room for is up, at most `timeout` seconds.

        Raises ResourceError when a slot is given up (with count="auto": when none is up), StorageError or ResourceError
        when the storage or the code of a machine differs from the driver's, and SlotsLost when the board dies.
        """
        try:
            status: Status = call_board(self._board.wait_until_settled, self.count, timeout=timeout)
        except GetTimeoutError:
            return
        if status["refusal"]:
            raise unpickle_error("slots", status["refusal"])
        if status["given_up"] and not (self._follows_cluster and status["up"]):
            raise ResourceError(" ".join(status["given_up"].values()))

    def describe(self) -> dict[str, Any]:
        """See SlotPool."""
        return {
            "kind": "ray",
            "count": self.shares.count,
            "workers": self.shares.workers,
            "cpus": self.shares.cpus,
            "gpus": self.shares.gpus,
            "threads": self.shares.threads,
            "nodes": len(self._nodes),
            **({"fused": self._fused} if self._fused > 1 else {}),
        }

    def close(self) -> None:
        """Suspend every job and end every slot. Workers that do not stop within slots.stop_timeout_s are killed."""
        if self._closing.is_set():
            return
        with self._adding:
            self._closing.set()
        self._start_timer.cancel()
        try:
            started: list[int] = call_board(self._board.close, int(Instruction.SUSPEND))
            if not self._join_threads(started, self.settings.stop_timeout_s):
                call_board(self._board.kill_groups)
                self._join_threads(started, 60.0)
            call_board(self._board.kill_controllers)
            ray.kill(self._board)
        except SlotsLost:
            logger.warning("the board died before its slots were closed", exc_info=True)
        finally:
            # A thread that calls Ray after this process has left Ray ends the whole process.
            self._join_threads(list(range(len(self._slot_threads))), self.settings.stop_timeout_s)
            for thread in (self._watcher, self._start_timer):
                thread.join(self.settings.stop_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _join_threads(self, slots: list[int], timeout_s: float) -> bool:
        """Wait for the threads of these slots, at most `timeout_s` in total. Return whether all have ended."""
        until = time.monotonic() + timeout_s
        threads = [self._slot_threads[slot] for slot in slots]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    # ---- one slot ----

    def _add_slot(self) -> None:
        """Add a slot and start the thread that runs it. Do nothing when the pool is being closed."""
        with self._adding:
            if not self._closing.is_set():
                slot: int = call_board(self._board.add_slot)
                thread = threading.Thread(target=self._run_slot, args=(slot,), name=f"slot-{slot}", daemon=True)
                self._slot_threads.append(thread)
                thread.start()

    def _run_slot(self, slot: int) -> None:
        """Run a slot until the pool is closed or the slot is given up.

        Ray Train restarts its worker group by itself. Where Ray Train fails, a new trainer is started.
        """
        failures = 0
        while failures < START_ATTEMPTS:
            try:
                self._make_trainer(slot).fit()
                return
            except Exception as error:
                if self._closing.is_set():
                    return
                logger.warning("slot %s: its start failed", slot, exc_info=error)
                with suppress(SlotsLost):  # the callers that wait for a job get this error
                    self._free_resources(slot)
                    if self._waits_for_machine(error):
                        continue
                    failures = failures + 1 if is_retryable(error) else START_ATTEMPTS
                    if failures == START_ATTEMPTS:
                        cause, log = last_error_line(error), self.logs / "ray.log"
                        self._give_up(slot, f"slot {slot} could not be started: {cause}. See {log}.")

    def _free_resources(self, slot: int) -> None:
        """Free what a failed start still reserves: Ray Train's own cleaner needs the dashboard, which does not run."""
        if placement_group := call_board(self._board.placement_group, slot):
            with suppress(Exception):  # it may be freed already
                remove_placement_group(placement_group)

    def _waits_for_machine(self, error: Exception) -> bool:
        """Whether a start failed only because its machine has not joined yet, while other slots run the jobs."""
        return self._follows_cluster and is_start_timeout(error) and self.up() > 0

    def _make_trainer(self, slot: int) -> SlotTrainer:
        shares = self.shares
        context = SlotContext(
            board=self._board,
            number=slot,
            threads=shares.threads,
            logs=self.logs,
            driver=self._plan.driver,
            progress_interval_s=min(5.0, self.settings.progress_timeout_s / 4),
        )
        return SlotTrainer(
            ControllerStarted(partial(_register_controller, self._board, slot)),
            partial(serve, context),
            torch_config=NodeNetworkConfig(backend=torch_backend(shares.gpus)),
            scaling_config=ScalingConfig(
                num_workers=shares.workers,
                use_gpu=shares.gpus > 0,
                resources_per_worker=shares.bundle,
            ),
            run_config=RunConfig(
                name=f"slot-{slot}",
                storage_path=str(self._plan.train_folder),
                # The board counts the deaths of a group for each job, and `_run_slot` counts failed starts.
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={
                    "env_vars": {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
                },
            ),
        )

    def _give_up_late_slots(self) -> None:
        """Give up the slots that are not up after the start timeout, with a reason that names the resources."""
        try:
            status: Status = call_board(self._board.status)
        except SlotsLost:
            return
        for slot in set(range(len(self._slot_threads))) - set(status["up"]) - set(status["given_up"]):
            free = {name: ray.available_resources().get(name, 0.0) for name in self.shares.bundle}
            self._give_up(
                slot,
                f"slot {slot} was not up after {self._plan.timeout_s:g} s: it waits for {self.shares.workers} "
                f"workers with {self.shares.bundle} each; free now: {free}. Ask for less, or raise "
                "slots.start_timeout_s.",
            )

    def _give_up(self, slot: int, reason: str) -> None:
        call_board(self._board.give_up_slot, slot, reason, cloudpickle.dumps(ResourceError(reason)))

    # ---- the cluster ----

    @property
    def _follows_cluster(self) -> bool:
        """Whether the number of slots changes with the machines of the cluster."""
        return self.settings.count == "auto"

    def _slots_on(self, nodes: Mapping[str, Node]) -> int:
        """How many slots may run on these nodes."""
        if not self._follows_cluster:
            return self.shares.count
        slots = workers_that_fit(nodes.values(), self.shares) // self.shares.workers
        return slots if self.shares.gpus else min(slots, MAX_CPU_SLOTS)

    def _watch_cluster(self) -> None:
        """Until the pool is closed, look for nodes that are drained, have died or have joined, and adapt the slots."""
        known_draining: set[str] = set()
        while not self._closing.wait(NODE_POLL_S):
            try:
                draining = draining_nodes()
                for node in draining - known_draining:
                    left: list[int] = call_board(self._board.drain_node, node, int(Instruction.SUSPEND))
                    logger.warning("node %s is being drained; slots that leave it: %s", node, left)
                known_draining = draining
                self._update_nodes(nodes_by_id())
            except Exception as error:
                # The next look may succeed. Ray Train notices the dead workers of a lost node in any case.
                logger.warning("cannot see the cluster's nodes", exc_info=error)

    def _update_nodes(self, nodes: Mapping[str, Node]) -> None:
        """Adapt the slots to the nodes that are alive now."""
        if nodes.keys() == self._nodes.keys():
            return
        call_board(self._board.retire_nodes, sorted(self._nodes.keys() - nodes.keys()))
        before = self._max_slots
        self._nodes, self._max_slots = dict(nodes), self._slots_on(nodes)
        if self._max_slots != before:
            change = "grew" if self._max_slots > before else "shrank"
            size, room = with_plural(len(nodes), "node"), with_plural(self._max_slots, "slot")
            self._note(f"The cluster {change} to {size}: room for {room}.")
        while self._follows_cluster and len(self._slot_threads) < self._max_slots and not self._closing.is_set():
            self._add_slot()


@contextmanager
def open_slots(
    settings: SlotSettings, logs: Path, proof: Path | None = None, note: Callable[[str], None] = logger.info
) -> Iterator[RaySlots]:
    """Start slots on the Ray that `connect` joined, without waiting for them, and close them after the block.

    `proof`: a file of the driver that every machine must see with the same content. `note` is called with a sentence
    when the cluster grows or shrinks. Raises ResourceError at once when the cluster neither has nor can grow to what
    is requested.
    """
    growth = cluster_growth()
    shares = divide_into_slots(settings, list_nodes(), growth)
    timeout_s = settings.start_timeout_s
    if timeout_s == "auto":
        timeout_s = GROWING_START_TIMEOUT_S if growth else START_TIMEOUT_S
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # Train passes these variables on to its controllers and workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(timeout_s)
    with scratch_folder() as train_folder:
        plan = StartPlan(
            shares=shares,
            timeout_s=timeout_s,
            logs=logs,
            train_folder=train_folder,
            driver=DriverEnvironment.of_this_process(proof),
        )
        slots = RaySlots(settings, plan, note)
        try:
            yield slots
        finally:
            slots.close()


def _register_controller(board: Any, slot: int, controller: Any) -> None:
    """Send the board the controller of a slot, so that it can kill a controller that still waits for resources."""
    ray.get(board.register_controller.remote(slot, controller))
