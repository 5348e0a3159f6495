"""How jobs are handed to the slots on Ray, and their reports heard: what the board is asked, from any process."""

import pickle
from collections.abc import Iterator
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError

from kdray.errors import JobError, KDRayError, SlotsLost
from kdray.slots.board_state import Event
from kdray.slots.job import Ask, Job, Report


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
            job_id = ask(self.board.submit, name, payload)
        except ValueError as error:
            raise JobError(str(getattr(error, "cause", error))) from None
        return RayRun(self.board, job_id, name)

    def cancel(self, name: str) -> None:
        """Stop this job at its next step; its reports end now."""
        ask(self.board.cancel, name, int(Ask.END))

    def suspend(self, name: str) -> None:
        """Stop this job at its next step, after a checkpoint; its reports end now."""
        ask(self.board.cancel, name, int(Ask.SUSPEND))


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
        event: Event = ask(self._board.next_event, self._id)
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
            raise unpickled(self._name, event["data"])
        raise StopIteration

    def close(self) -> None:
        """See JobRun."""
        if not self._ended:
            self._ended = True
            if ray.is_initialized():
                self._board.cancel_id.remote(self._id, int(Ask.SUSPEND))

    def __del__(self) -> None:
        self.close()


def ask(method: Any, *arguments: Any, timeout: float | None = None) -> Any:
    """The board's answer. Its own ValueErrors come as they are, as does GetTimeoutError when it says nothing for
    `timeout` seconds; raises SlotsLost when it is dead."""
    try:
        return ray.get(method.remote(*arguments), timeout=timeout)
    except (ValueError, GetTimeoutError):
        raise
    except RayError as error:
        raise SlotsLost(
            f"The board that hands jobs to the slots is gone ({cause(error)}); what was recorded is safe, and the "
            "same command goes on from there."
        ) from error


def unpickled(name: str, data: bytes) -> KDRayError:
    try:
        error: KDRayError = pickle.loads(data)
    except Exception as problem:
        return JobError(f"{name}: it failed, and its error cannot be read here: {problem}")
    return error


def cause(error: BaseException) -> str:
    """What Ray's many lines end with: the error at the bottom of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().rstrip(".")
