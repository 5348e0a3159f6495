"""How jobs are handed to the slots on Ray, and their reports heard: what the board is asked, from any process."""

import pickle
from collections.abc import Iterator
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError

from kdray.errors import JobError, KDRayError, SlotsLost
from kdray.slots.board_state import Event
from kdray.slots.job import Instruction, Job, Report


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
            job_id = ask_board(self.board.submit_job, name, payload)
        except ValueError as error:
            raise JobError(str(getattr(error, "cause", error))) from None
        return RayRun(self.board, job_id, name)

    def cancel(self, name: str) -> None:
        """Stop this job at its next step; its reports end now."""
        ask_board(self.board.cancel_job, name, int(Instruction.END))

    def suspend(self, name: str) -> None:
        """Stop this job at its next step, after a checkpoint; its reports end now."""
        ask_board(self.board.cancel_job, name, int(Instruction.SUSPEND))


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
        event: Event = ask_board(self._board.next_event, self._id)
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
            raise unpickle_error(self._name, event["data"])
        raise StopIteration

    def close(self) -> None:
        """See JobRun."""
        if not self._ended:
            self._ended = True
            if ray.is_initialized():
                self._board.cancel_id.remote(self._id, int(Instruction.SUSPEND))

    def __del__(self) -> None:
        self.close()


def ask_board(method: Any, *arguments: Any, timeout: float | None = None) -> Any:
    """The board's answer. Its own ValueErrors come as they are, as does GetTimeoutError when it says nothing for
    `timeout` seconds; raises SlotsLost when it is dead."""
    try:
        return ray.get(method.remote(*arguments), timeout=timeout)
    except (ValueError, GetTimeoutError):
        raise
    except RayError as error:
        raise SlotsLost(
            f"The board that hands jobs to the slots is gone ({last_error_line(error)}); what was recorded is safe, and the "
            "same command goes on from there."
        ) from error


def unpickle_error(name: str, data: bytes) -> KDRayError:
    try:
        error: KDRayError = pickle.loads(data)
    except Exception as problem:
        return JobError(f"{name}: it failed, and its error cannot be read here: {problem}")
    return error


def last_error_line(error: BaseException) -> str:
    """What Ray's many lines end with: the error at the bottom of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().rstrip(".")
