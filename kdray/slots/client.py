"""Starts the board; submits jobs to it and reads their reports, from any process of the cluster."""

import pickle
from collections.abc import Iterator
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdray.errors import JobError, KDRayError, SlotsLost
from kdray.slots import board, board_state, worker_processes
from kdray.slots.board import Board
from kdray.slots.board_state import Event
from kdray.slots.job import FusableJob, Instruction, Job, Report

BOARD_MODULES = (board, board_state, worker_processes)
"""The modules of kdray whose code the board's process needs."""


def start_board(max_failures: int, progress_timeout_s: float, fused: int) -> Any:
    """Start the board's actor on this node: the board must not be lost with a node that only has workers.

    `fused`: how many jobs a slot may run as one.
    """
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # The actor receives the code of these modules. Its process then imports no kdray and no torch, and starts sooner.
    for module in BOARD_MODULES:
        cloudpickle.register_pickle_by_value(module)
    try:
        # Every call that waits in the actor counts as concurrent, and there are some for each worker and each job.
        actor = ray.remote(num_cpus=0, max_concurrency=100_000, scheduling_strategy=this_node)(Board)
        return actor.remote(max_failures, progress_timeout_s, fused=fused)
    finally:
        for module in BOARD_MODULES:
            cloudpickle.unregister_pickle_by_value(module)


class RayClient:
    """Runs jobs on the slots of one board; see SlotClient."""

    def __init__(self, board: Any, can_fuse: bool = False) -> None:
        self.board = board
        self._can_fuse = can_fuse
        """Whether the slots run several jobs as one."""

    def run(self, job: Job, name: str) -> "RayRun":
        """Submit a job. It starts when a slot is free, whether or not its reports are read.

        Raises JobError when the job cannot be pickled, or while another job of this name is running.
        """
        try:
            payload = cloudpickle.dumps(job)
            fuse_key = job.fuse_key if self._can_fuse and isinstance(job, FusableJob) else ""
        except Exception as error:
            raise JobError(f"{name}: the job cannot be sent to a slot: {error}") from error
        try:
            job_id = call_board(self.board.submit_job, name, payload, fuse_key)
        except ValueError as error:
            # Ray raises an error of its own that is also a ValueError, and keeps the board's error in `cause`.
            raise JobError(str(getattr(error, "cause", error))) from None
        return RayRun(self.board, job_id, name)

    def cancel(self, name: str) -> None:
        """Stop the job of this name at its next step; its reports end now."""
        call_board(self.board.cancel_job, name, int(Instruction.END))

    def suspend(self, name: str) -> None:
        """Stop the job of this name at its next step, after a checkpoint; its reports end now."""
        call_board(self.board.cancel_job, name, int(Instruction.SUSPEND))


class RayRun:
    """The reports of a job that a RayClient submitted; see JobRun."""

    def __init__(self, board: Any, job_id: int, name: str) -> None:
        self.attempts, self.host = 0, ""
        self._board, self._id, self._name = board, job_id, name
        self._ended = False

    def __iter__(self) -> Iterator[Report]:
        return self

    def __next__(self) -> Report:
        if self._ended:
            raise StopIteration
        event: Event = call_board(self._board.next_event, self._id)
        self.attempts, self.host = event["attempts"], event["host"]
        if event["kind"] == "report":
            report: Report = cloudpickle.loads(event["data"])
            return report
        self._ended = True
        if event["kind"] == "died":
            why = event["data"].decode() or "killed, out of memory, or crashed"
            raise JobError(
                f"{self._name}: its worker died each of the {self.attempts} times it was tried: {why}. "
                "The slots' logs have its last lines; slots.max_failures allows more tries."
            )
        if event["kind"] == "failed":
            raise unpickle_error(self._name, event["data"])
        raise StopIteration

    def close(self) -> None:
        """Suspend the job if it has not ended; see JobRun."""
        if not self._ended:
            self._ended = True
            if ray.is_initialized():
                self._board.discard_job.remote(self._id, int(Instruction.SUSPEND))

    def __del__(self) -> None:
        self.close()  # a run that the caller dropped must not keep its slot busy


def call_board(method: Any, *arguments: Any, timeout: float | None = None) -> Any:
    """Call a method of the board's actor and return its result.

    Raises GetTimeoutError when there is no result within `timeout` seconds, the board's own ValueErrors, and SlotsLost
    when the board is dead.
    """
    try:
        return ray.get(method.remote(*arguments), timeout=timeout)
    except (ValueError, GetTimeoutError):
        raise
    except RayError as error:
        raise SlotsLost(
            f"The board, which assigns jobs to the slots, is dead ({last_error_line(error)}). What was recorded is "
            "safe, and the same command continues from there."
        ) from error


def unpickle_error(name: str, data: bytes) -> KDRayError:
    """The error of job `name`; a JobError that says so if the error cannot be unpickled in this process."""
    try:
        # A worker of this cluster made the bytes. It runs the same code as this process, as the same user.
        error: KDRayError = pickle.loads(data)  # noqa: S301
    except Exception as problem:
        return JobError(f"{name}: it failed, and its error cannot be read here: {problem}")
    return error


def last_error_line(error: BaseException) -> str:
    """The last line of an error's text. The text of a Ray error has many lines, and the last one names the cause."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().rstrip(".")
