"""What every worker of a slot runs, from the slot's start to its end: take a job from the board, do it, tell.

A Python error ends the job, not the worker: it and everything warm in it goes on to the next job. In a slot of
several workers that holds for our own errors, which every rank raises alike; after any other the ranks may wait for
one another in different places, so the group is started anew.
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
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import cloudpickle, train
from ray.train.torch import get_device
from ray.util.placement_group import get_current_placement_group

from kdray.errors import KDRayError, StorageError
from kdray.slots.board_state import Assignment, Member
from kdray.slots.environment import DriverEnvironment
from kdray.slots.job import Instruction, Job, Worker
from kdray.slots.pool import as_job_error
from kdray.storage.mirror import send

logger = logging.getLogger(__name__)


class SlotBroken(RuntimeError):
    """Raised in a worker to have its whole group started anew."""


@dataclass(frozen=True)
class SlotContext:
    """Which slot a worker serves, and how."""

    board: Any
    slot: int
    threads: int
    logs: Path
    common: DriverEnvironment
    beat_s: float = 5.0
    """Seconds between two signs that a job gets on."""


def serve(post: SlotContext) -> None:
    """Do jobs until the board is closed. Raises SlotBroken when this group cannot go on."""
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, world, get_device())
    refusals = [refusal for refusal in worker.all_gather(post.common.refusal()) if refusal]
    if refusals:
        with suppress(ray.exceptions.ActorDiedError):
            first = refusals[0]
            ray.get(post.board.refuse_slot.remote(post.slot, str(first), _pickled(first), int(Instruction.SUSPEND)))
        return
    log = post.logs / f"slot-{post.slot}-rank-{rank}.log"
    _write_to(log)
    torch.set_num_threads(post.threads)
    group = _agreed(uuid.uuid4().hex, world)
    try:
        _Server(post, group, worker).work()
    except ray.exceptions.ActorDiedError:
        return  # the board is gone: so is who asked
    finally:
        with suppress(StorageError, FileNotFoundError):
            send(log, log)  # of a bucket's storage, only the driver's node copies the logs


class _Server:
    def __init__(self, post: SlotContext, group: str, worker: Worker) -> None:
        self.board, self.slot, self.beat_s = post.board, post.slot, post.beat_s
        self.group, self.worker = group, worker
        self.number = 0
        self.news = (0, 0)
        """What was told last: of which assignment, and an `Ask`."""
        worker.instruction = lambda: Instruction(self.news[1]) if self.news[0] == self.number else Instruction.NOTHING

    def work(self) -> None:
        context = ray.get_runtime_context()
        me = Member(
            actor=context.current_actor,
            node=context.get_node_id(),
            host=platform.node(),
            pid=os.getpid(),
            reserved=get_current_placement_group(),
        )
        self._ask(self.board.join_worker, self.slot, self.group, self.worker.rank, self.worker.world, me)
        threading.Thread(target=self._beat, name="progress", daemon=True).start()
        if self.worker.rank == 0:
            threading.Thread(target=self._hear, name="news", daemon=True).start()
        while assignment := self._ask(self.board.take_job, self.slot, self.group, self.worker.rank, self.number):
            self.number = assignment["number"]
            error, broken = self._done(assignment)
            if not self._ask(self.board.finish_rank, self.slot, self.number, self.worker.rank, error, broken):
                raise SlotBroken(f"slot {self.slot}: its group cannot go on after {assignment['name']}.")

    def _ask(self, method: Any, *arguments: Any) -> Any:
        return ray.get(method.remote(*arguments))

    def _hear(self) -> None:
        """Keep what `Worker.told` reads up to date, whatever the job is doing."""
        while (news := self._ask(self.board.next_instruction, self.slot, self.group, self.news)) != (0, 0):
            self.news = news

    def _beat(self) -> None:
        """Tell that the job gets on, while it does."""
        told = 0
        while True:
            time.sleep(self.beat_s)
            beats, number = self.worker.progress, self.number
            if beats != told:
                told = beats
                self._ask(self.board.note_progress, self.slot, number)

    def _done(self, assignment: Assignment) -> tuple[bytes, bool]:
        """Do a job. Its pickled error, if any, and whether that leaves the group in an unknown state."""
        outcome = b"", False
        try:
            self._report_all(cloudpickle.loads(assignment["payload"]))
        except (Exception, SystemExit) as error:
            logger.exception("%s failed", assignment["name"])
            told = as_job_error(assignment["name"], error)
            unknown = self.worker.world > 1 and told is not error
            outcome = _pickled(told), unknown or isinstance(error, torch.AcceleratorError)
        if outcome[0] and self.worker.device.type == "cuda":
            torch.cuda.empty_cache()  # what an out-of-memory job held: other slots may share this GPU
        return outcome

    def _report_all(self, job: Job) -> None:
        """Send rank 0's reports on; each is on the board before the job goes on, so that none is lost with it."""
        reports = iter(job(self.worker))
        for report in reports:
            if self.worker.rank == 0:
                self._ask(self.board.pass_report, self.slot, self.number, cloudpickle.dumps(report))
            if self.worker.world == 1 and self.worker.instruction() is Instruction.END:
                break  # several ranks stop together, at a step of their own: see Worker.next_instruction
        if hasattr(reports, "close"):
            reports.close()


def _agreed(value: str, world: int) -> str:
    """Rank 0's value, on every rank."""
    if world == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return str(box[0])


def _pickled(error: KDRayError) -> bytes:
    try:
        return cloudpickle.dumps(error)
    except Exception:  # an error of ours that carries something of the job's
        return cloudpickle.dumps(as_job_error("job", RuntimeError(str(error))))


def _write_to(path: Path) -> None:
    """Send what this process writes to its log of the sweep, where every word about a slot is looked for."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return  # storage that this node does not see: Ray's own log of the worker has it
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
