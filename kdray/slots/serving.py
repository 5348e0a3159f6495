"""The loop that every worker of a slot runs until the slot ends: get an assignment, run the job, report its outcome.

A Python error ends the job, not the worker: the worker continues with the next job, and its cache stays warm. In a slot
of several workers this holds for a KDRayError, which every rank raises alike. After any other error the ranks may wait
for each other in different collective calls, so the group is restarted.
"""

import logging
import os
import platform
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import cloudpickle, train
from ray.train.torch import get_device
from ray.util.placement_group import get_current_placement_group

from kdray.errors import KDRayError, StorageError
from kdray.safe_text.log_lines import SafeFormatter
from kdray.slots.board_state import AssignedJob, Assignment, Member, SentInstructions
from kdray.slots.environment import DriverEnvironment
from kdray.slots.job import FusableJob, Instruction, Job, JobEnd, Worker
from kdray.slots.pool import as_job_error
from kdray.storage.mirror import send

logger = logging.getLogger(__name__)


class SlotBroken(RuntimeError):
    """Raised in a worker so that Ray Train restarts its whole group."""


@dataclass(frozen=True)
class SlotContext:
    """The slot that a worker serves, and how it serves it."""

    board: Any
    number: int
    """The number of the slot."""
    threads: int
    """Processor threads of one worker."""
    logs: Path
    driver: DriverEnvironment
    progress_interval_s: float = 5.0
    """Seconds between two looks at the job's progress, which is then reported to the board."""


def serve(slot: SlotContext) -> None:
    """Run jobs until the board is closed. Raises SlotBroken when the worker group cannot continue."""
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, world, get_device())
    refusals = [refusal for refusal in worker.all_gather(slot.driver.refusal()) if refusal]
    if refusals:
        with suppress(ray.exceptions.ActorDiedError):
            first = refusals[0]
            ray.get(slot.board.refuse_slot.remote(slot.number, str(first), _pickle(first), int(Instruction.SUSPEND)))
        return
    log = slot.logs / f"slot-{slot.number}-rank-{rank}.log"
    _redirect_output(log)
    torch.set_num_threads(slot.threads)
    group = _broadcast_text(uuid.uuid4().hex, world)
    try:
        _JobLoop(slot, group, worker).run()
    except ray.exceptions.ActorDiedError:
        return  # the board is dead, and nobody waits for a report
    finally:
        # Where the storage is a bucket, only the driver's node copies logs to it by itself.
        with suppress(StorageError, FileNotFoundError):
            send(log, log)


class _JobLoop:
    """The calls of one worker to the board, and the jobs that it runs."""

    def __init__(self, slot: SlotContext, group: str, worker: Worker) -> None:
        self._board, self._slot, self._progress_interval_s = slot.board, slot.number, slot.progress_interval_s
        self._group, self._worker = group, worker
        self._assignment_number = 0
        self._received = SentInstructions(assignment=0, instructions={})
        worker.instruction = self._current_instruction

    def run(self) -> None:
        context = ray.get_runtime_context()
        member = Member(
            actor=context.current_actor,
            node=context.get_node_id(),
            host=platform.node(),
            pid=os.getpid(),
            placement_group=get_current_placement_group(),
        )
        rank = self._worker.rank
        self._call(self._board.join_worker, self._slot, self._group, rank, self._worker.world, member)
        threading.Thread(target=self._report_progress, name="progress", daemon=True).start()
        if rank == 0:
            threading.Thread(target=self._receive_instructions, name="instructions", daemon=True).start()
        while assignment := self._next_assignment():
            self._assignment_number = assignment["number"]
            error, broken = self._run_job(assignment)
            if not self._call(self._board.finish_rank, self._slot, self._assignment_number, rank, error, broken):
                raise SlotBroken(f"slot {self._slot}: its worker group cannot continue after {_names(assignment)}.")

    def _call(self, method: Any, *arguments: Any) -> Any:
        return ray.get(method.remote(*arguments))

    def _next_assignment(self) -> Assignment | None:
        assignment: Assignment | None = self._call(
            self._board.next_assignment, self._slot, self._group, self._worker.rank, self._assignment_number
        )
        return assignment

    def _current_instruction(self, place: int = 0) -> Instruction:
        """The instruction for the current job in this place; NOTHING if there is none for the current assignment."""
        received = self._received
        if received["assignment"] != self._assignment_number:
            return Instruction.NOTHING
        return Instruction(received["instructions"].get(place, Instruction.NOTHING))

    def _receive_instructions(self) -> None:
        """Store the instructions from the board. Runs in a thread, so that a job reads them without waiting."""
        while new := self._call(self._board.next_instructions, self._slot, self._group, self._received):
            self._received = new

    def _report_progress(self) -> None:
        """Report to the board in each interval in which the job has made a step. Runs in a thread."""
        reported = 0
        while True:
            time.sleep(self._progress_interval_s)
            progress, assignment_number = self._worker.progress, self._assignment_number
            if progress != reported:
                reported = progress
                self._call(self._board.report_progress, self._slot, assignment_number)

    def _run_job(self, assignment: Assignment) -> tuple[bytes, bool]:
        """Run a job, or several as one. Return its pickled error, or empty, and whether the group's state is unknown.

        The error is that of all jobs that have not ended before.
        """
        try:
            first, *others = [cloudpickle.loads(job["payload"]) for job in assignment["jobs"]]
            if others:
                self._pass_fused_reports(first, others, assignment["jobs"])
            else:
                self._pass_reports(first)
            return b"", False
        except (Exception, SystemExit) as error:
            logger.exception("%s failed", _names(assignment))
            job_error = as_job_error(_names(assignment), error)
            ranks_may_differ = self._worker.world > 1 and job_error is not error
            # After an AcceleratorError, every later call of this process on its GPU may fail.
            outcome = _pickle(job_error), ranks_may_differ or isinstance(error, torch.AcceleratorError)
        if self._worker.device.type == "cuda":
            torch.cuda.empty_cache()  # PyTorch keeps the memory of a failed job, and other slots may share this GPU
        return outcome

    def _pass_reports(self, job: Job) -> None:
        """Run a job and pass the reports of rank 0 to the board."""
        reports = iter(job(self._worker))
        for report in reports:
            if self._worker.rank == 0:
                # Each report is awaited: calls to an async actor may overtake each other, and a report that arrives
                # after `finish_rank` would be lost.
                self._call(self._board.pass_report, self._slot, self._assignment_number, cloudpickle.dumps(report))
            if self._worker.world == 1 and self._worker.instruction() is Instruction.END:
                break  # several ranks must end at the same step, in Worker.next_instruction
        if hasattr(reports, "close"):
            reports.close()

    def _pass_fused_reports(self, first: FusableJob, others: list[FusableJob], assigned: list[AssignedJob]) -> None:
        """Run jobs as one, and pass the reports and the end of each of them to the board."""
        instructions = [partial(self._current_instruction, place) for place in range(len(assigned))]
        for place, report in first.fused_with(others)(self._worker, instructions):
            if isinstance(report, JobEnd):
                error = report.error
                if error:
                    logger.error("%s failed", assigned[place]["name"], exc_info=error)
                pickled = _pickle(as_job_error(assigned[place]["name"], error)) if error else b""
                self._call(self._board.end_job, self._slot, self._assignment_number, place, pickled)
                if isinstance(error, torch.AcceleratorError):
                    raise error  # the GPU can no longer be used for the others
            else:
                data = cloudpickle.dumps(report)
                self._call(self._board.pass_report, self._slot, self._assignment_number, data, place)


def _names(assignment: Assignment) -> str:
    return ", ".join(job["name"] for job in assignment["jobs"])


def _broadcast_text(text: str, world: int) -> str:
    """The text of rank 0, on every rank."""
    if world == 1:
        return text
    texts: list[Any] = [text]
    dist.broadcast_object_list(texts, src=0)
    return str(texts[0])


def _pickle(error: KDRayError) -> bytes:
    try:
        return cloudpickle.dumps(error)
    except Exception:  # the error has an attribute that cannot be pickled
        return cloudpickle.dumps(as_job_error("job", RuntimeError(str(error))))


def _redirect_output(path: Path) -> None:
    """Append what this process writes to stdout and stderr to the slot's log in the sweep's folder.

    Log records lose their secrets and control characters there. What a library prints is written as it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever can write into the storage could put a link there, to any file that this user may change.
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except OSError:
        return  # the node does not see the storage, or there is a link; the output stays in Ray's log of the worker
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Python would print a record as it is: with texts of the data, and with addresses from the errors of libraries.
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter())
    logging.root.addHandler(handler)
    logging.captureWarnings(True)
