"""Slots on a Ray cluster: Ray Train worker groups that start once and stay, and the board that hands them jobs.

Each slot is a TorchTrainer whose training function is `serving.serve`; a thread of this process keeps it. Ray Train
restarts a group whose worker died, the board gives the group its job again. Another thread follows the cluster: slots
leave machines that are going to be taken away and, with count="auto", are added where machines join. Nothing here knows
what a job computes.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdray.errors import ResourceError, SlotsLost
from kdray.slots import board as board_module
from kdray.slots.board import Board
from kdray.slots.board_state import Status
from kdray.slots.client import RayClient, RayRun, ask_board, last_error_line, unpickle_error
from kdray.slots.cluster import cluster_growth, list_nodes, nodes_by_id
from kdray.slots.environment import DriverEnvironment
from kdray.slots.job import Instruction, Job
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_internals import (
    ControllerStarted,
    NodeNetworkConfig,
    SlotTrainer,
    draining_nodes,
    is_retryable,
    timed_out,
)
from kdray.slots.serving import SlotContext, serve
from kdray.slots.sizing import MOST_CPU_SLOTS, Node, SlotShares, divide_into_slots, with_plural, workers_that_fit
from kdray.storage.files import scratch_folder

chatter = logging.getLogger("ray.slots")
"""What Ray says of a failure, at its usual length, goes where the rest of its talk does: see cluster.connect."""

TRIES = 3
"""How often in a row a slot's start is tried before the slot is given up."""

START_S, GROWING_START_S = 300.0, 1200.0
"""slots.start_timeout_s="auto": without and with machines that must be started first."""

NODE_POLL_S = 2.0

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon Train sees a dead worker, or a slot's end
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # jobs name files as the sweep does
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less for each slot; `_follow_cluster` looks for all
}

WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
"""What workers have in their environment unless this process says otherwise.

Threads of OpenMP that wait for one another spin before they sleep. Where another program has one of their cores, that
keeps the thread they wait for from running, and a step takes up to a hundred times as long (bench/busy_machine.py). So
they sleep soon, as libgomp has it by itself where it has more threads than cores.
"""


class RaySlots:
    """Worker groups that stay up until the pool is closed. They start in the background; jobs wait for them."""

    def __init__(
        self,
        settings: SlotSettings,
        asked: SlotShares,
        start_s: float,
        logs: Path,
        train_folder: Path,
        common: DriverEnvironment,
        note: Callable[[str], None],
    ) -> None:
        self.settings, self.shares, self.logs = settings, asked, logs
        self._start_s, self._train_folder, self._common, self._note = start_s, train_folder, common, note
        self._alive = nodes_by_id()
        self._room = self._room_on(self._alive)
        self._closing, self._adding = threading.Event(), threading.Lock()
        self._board = _board(settings.max_failures, settings.progress_timeout_s)
        self._client = RayClient(self._board)
        self._keepers: list[threading.Thread] = []
        for _ in range(asked.count):
            self._add()
        self._timer = threading.Timer(start_s, self._give_up_missing)
        self._timer.daemon = True
        self._timer.start()
        self._follower = threading.Thread(target=self._follow_cluster, name="cluster", daemon=True)
        self._follower.start()

    @property
    def count(self) -> int:
        """How many jobs run at a time; with count="auto", as many as the machines have room for now."""
        return max(1, min(len(self._keepers), self._room))

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
    def runs_in_caller(self) -> bool:
        """Jobs run in the workers of the slots."""
        return False

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs."""
        one_node = len(list_nodes()) == 1 and self.shares.workers == 1
        return self.shares.threads * (self.shares.count if one_node else 1)

    def client(self) -> RayClient:
        return self._client

    def up(self) -> int:
        """How many slots are up now."""
        status: Status = ask_board(self._board.status)
        return len(status["up"])

    def wait(self, timeout: float | None = None) -> None:
        """Return when every slot that there is room for is up, or after `timeout` seconds.

        Raises ResourceError when one is given up (with count="auto": when none is up), StorageError or ResourceError
        when a machine's storage or code is another than the driver's, SlotsLost when the board dies.
        """
        try:
            status: Status = ask_board(self._board.wait_until_settled, self.count, timeout=timeout)
        except GetTimeoutError:
            return
        if status["refused"]:
            raise unpickle_error("slots", status["refused"])
        if status["lost"] and not (self._follows and status["up"]):
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
            "nodes": len(self._alive),
        }

    def close(self) -> None:
        """Suspend every job and end every slot; one that does not stop by itself is killed."""
        if self._closing.is_set():
            return
        with self._adding:
            self._closing.set()
        self._timer.cancel()
        try:
            started: list[int] = ask_board(self._board.close, int(Instruction.SUSPEND))
            if not self._joined(started, self.settings.stop_timeout_s):
                ask_board(self._board.kill_all)
                self._joined(started, 60.0)
            ask_board(self._board.end_controllers)
            ray.kill(self._board)
        except SlotsLost:
            chatter.warning("the board died before its slots were closed", exc_info=True)
        finally:
            # no thread may wait for Ray when this process leaves it: Ray would take the process with it
            self._joined(list(range(len(self._keepers))), self.settings.stop_timeout_s)
            for thread in (self._follower, self._timer):
                thread.join(self.settings.stop_timeout_s)

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

    # ---- one slot ----

    def _add(self) -> None:
        """One more slot."""
        with self._adding:
            if not self._closing.is_set():
                slot: int = ask_board(self._board.add_slot)
                keeper = threading.Thread(target=self._keep, args=(slot,), name=f"slot-{slot}", daemon=True)
                self._keepers.append(keeper)
                keeper.start()

    def _keep(self, slot: int) -> None:
        """Keep one slot up: Ray Train restarts its group; where that gives up, start anew."""
        tries = 0
        while tries < TRIES:
            try:
                self._trainer(slot).fit()
                return
            except Exception as error:
                if self._closing.is_set():
                    return
                chatter.warning("slot %s: its start failed", slot, exc_info=error)
                with suppress(SlotsLost):  # whoever waits for a job hears of it
                    self._give_back(slot)
                    if self._waits_for_room(error):
                        continue
                    tries = tries + 1 if is_retryable(error) else TRIES
                    if tries == TRIES:
                        self._lose(
                            slot,
                            f"slot {slot} could not be started: {last_error_line(error)}. See {self.logs / 'ray.log'}.",
                        )

    def _give_back(self, slot: int) -> None:
        """Free what a failed start still holds: Ray Train's own cleaner asks the dashboard, which does not run here."""
        if reserved := ask_board(self._board.placement_group, slot):
            with suppress(Exception):  # it may be gone
                remove_placement_group(reserved)

    def _waits_for_room(self, error: Exception) -> bool:
        """Whether a start failed for want of a machine that may come yet, while other slots do the work."""
        return self._follows and timed_out(error) and self.up() > 0

    def _trainer(self, slot: int) -> SlotTrainer:
        asked, limit_s = self.shares, self.settings.progress_timeout_s
        post = SlotContext(self._board, slot, asked.threads, self.logs, self._common, min(5.0, limit_s / 4))
        return SlotTrainer(
            ControllerStarted(partial(_register_controller, self._board, slot)),
            partial(serve, post),
            torch_config=NodeNetworkConfig(backend=_backend(asked)),
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
                worker_runtime_env={
                    "env_vars": {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
                },
            ),
        )

    def _give_up_missing(self) -> None:
        """Say what the slots that are not up by now are waiting for."""
        try:
            status: Status = ask_board(self._board.status)
        except SlotsLost:
            return
        for slot in set(range(len(self._keepers))) - set(status["up"]) - set(status["lost"]):
            free = {name: ray.available_resources().get(name, 0.0) for name in self.shares.bundle}
            self._lose(
                slot,
                f"slot {slot} was not up after {self._start_s:g} s: it waits for {self.shares.workers} "
                f"workers with {self.shares.bundle} each; free now: {free}. Ask for less, or raise "
                "slots.start_timeout_s.",
            )

    def _lose(self, slot: int, reason: str) -> None:
        ask_board(self._board.give_up_slot, slot, reason, cloudpickle.dumps(ResourceError(reason)))

    # ---- the cluster ----

    @property
    def _follows(self) -> bool:
        """Whether there are as many slots as there is room for."""
        return self.settings.count == "auto"

    def _room_on(self, machines: Mapping[str, Node]) -> int:
        """How many slots the machines hold, of those that may be."""
        if not self._follows:
            return self.shares.count
        room = workers_that_fit(machines.values(), self.shares) // self.shares.workers
        return room if self.shares.gpus else min(room, MOST_CPU_SLOTS)

    def _follow_cluster(self) -> None:
        """Have slots leave machines that are taken away, and take those that join."""
        draining: set[str] = set()
        while not self._closing.wait(NODE_POLL_S):
            try:
                now = draining_nodes()
                for node in now - draining:
                    left: list[int] = ask_board(self._board.drain_node, node, int(Instruction.SUSPEND))
                    chatter.warning("node %s is being drained; slots that leave it: %s", node, left)
                draining = now
                self._take_note_of(nodes_by_id())
            except Exception as error:  # the next look may succeed; a lost node is a dead worker in any case
                chatter.warning("cannot see the cluster's nodes", exc_info=error)

    def _take_note_of(self, machines: Mapping[str, Node]) -> None:
        """Some machines may have come or gone."""
        if machines.keys() == self._alive.keys():
            return
        ask_board(self._board.nodes_died, sorted(self._alive.keys() - machines.keys()))
        self._alive, before, self._room = dict(machines), self._room, self._room_on(machines)
        if self._room != before:
            what = "grew" if self._room > before else "shrank"
            there, room = with_plural(len(machines), "node"), with_plural(self._room, "slot")
            self._note(f"The cluster {what} to {there}: room for {room}.")
        while self._follows and len(self._keepers) < self._room and not self._closing.is_set():
            self._add()


@contextmanager
def open_slots(
    settings: SlotSettings, logs: Path, proof: Path | None = None, note: Callable[[str], None] = chatter.info
) -> Iterator[RaySlots]:
    """The slots on the Ray that `connect` joined; they start while the caller goes on, and end with the block.

    `proof` is a file that every machine must see as this one does; `note` is told of machines that come and go. Raises
    ResourceError at once when the cluster neither has nor can grow to what is asked for.
    """
    more = cluster_growth()
    asked = divide_into_slots(settings, list_nodes(), more)
    start_s = (GROWING_START_S if more else START_S) if settings.start_timeout_s == "auto" else settings.start_timeout_s
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # Train takes these from here to its controllers and workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_s)
    with scratch_folder() as train_folder:
        slots = RaySlots(settings, asked, start_s, logs, train_folder, DriverEnvironment.here(proof), note)
        try:
            yield slots
        finally:
            slots.close()


def _board(max_failures: int, progress_s: float) -> Any:
    """The board's actor, on this node: it must outlive every worker, and it need not import what workers need."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    cloudpickle.register_pickle_by_value(board_module)
    try:
        actor = ray.remote(num_cpus=0, max_concurrency=100_000, scheduling_strategy=here)(Board)
        return actor.remote(max_failures, progress_s)
    finally:
        cloudpickle.unregister_pickle_by_value(board_module)


def _backend(asked: SlotShares) -> str:
    """NCCL refuses two ranks on one GPU."""
    return "cpu:gloo,cuda:nccl" if asked.gpus >= 1 else "gloo"


def _register_controller(board: Any, slot: int, controller: Any) -> None:
    """Tell the board which actor starts this slot, so that it can end one that still waits for resources."""
    ray.get(board.register_controller.remote(slot, controller))
