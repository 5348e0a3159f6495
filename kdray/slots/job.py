"""The interface between slots and jobs. Slots know nothing about distillation, and jobs know nothing about Ray.

A job is a picklable callable. Every worker of one slot calls it once, with its `Worker`, and iterates over the reports
that it yields.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
import torch.distributed as dist

Report: TypeAlias = dict[str, Any]
"""What a job reports: JSON values by name. Only the reports of rank 0 reach the submitter. A report that has only the
key `NOTE` is a sentence for people, not an evaluation."""

NOTE = "note"

Job: TypeAlias = Callable[["Worker"], Iterator[Report]]

T = TypeVar("T")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` processor threads within the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Pool(Protocol):
    """A pool of slots as teacher, transfer set and costs need it; `kdray.slots.pool.SlotPool` has more."""

    @property
    def count(self) -> int:
        """How many jobs run at the same time."""
        ...

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs: those of all slots on a single node."""
        ...

    def run(self, job: Job, name: str) -> Iterator[Report]:
        """Run a job and yield its reports. Raises JobError when the job fails; closing the iterator stops the job."""
        ...


class Instruction(IntEnum):
    """What a job must do at its next step. If several are sent, the greatest counts."""

    NOTHING = 0
    SAVE = 1
    """Write a checkpoint and continue."""
    SUSPEND = 2
    """Write a checkpoint and end: the job will be continued."""
    END = 3
    """End without a checkpoint."""


def _nothing() -> Instruction:
    return Instruction.NOTHING


@dataclass(frozen=True)
class JobEnd:
    """One of several jobs that run as one has ended."""

    error: Exception | None = None
    """Why it failed; None: it has finished, or was told to end or to suspend."""


class FusedJob(Protocol):
    """Several jobs that one worker runs together."""

    def __call__(
        self, worker: "Worker", instructions: Sequence[Callable[[], Instruction]]
    ) -> Iterator[tuple[int, Report | JobEnd]]:
        """Run the jobs. Yield each report with the number of its job, and the end of each job as its last value.

        `instructions` has the function of each job that reads its instruction, which stands in the place of
        `Worker.instruction`. An error that is raised is one of all jobs that have not ended.
        """
        ...


@runtime_checkable
class FusableJob(Protocol):
    """A job that one worker can run together with others like it."""

    @property
    def fuse_key(self) -> str:
        """Jobs with the same key may run together; empty: this job runs alone."""
        ...

    def fused_with(self, others: "Sequence[FusableJob]") -> FusedJob:
        """This job, number 0, and others with the same key, in order, as one."""
        ...


@dataclass
class Worker:
    """One process of a slot: its rank, its device, and a cache that stays warm between jobs."""

    rank: int = 0
    world: int = 1
    """How many workers the slot has."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: dict[Any, Any] = field(default_factory=dict)
    instruction: Callable[[], Instruction] = _nothing
    """The instruction that was sent to rank 0, read without waiting."""
    progress: int = 0
    """A count of steps. A worker whose count does not change for slots.progress_timeout_s counts as hung."""

    @property
    def pad_multiple(self) -> int:
        """Batches are padded to a multiple of this many tokens."""
        # GPU kernels are faster with multiples of 8. On a CPU the padding cost an eighth of the work.
        return 8 if self.device.type == "cuda" else 1

    def next_instruction(self, save: bool = False) -> Instruction:
        """The instruction for this step. `save`: rank 0 wants a checkpoint now.

        A collective call: every rank must make it, and every rank gets the same instruction.
        """
        self.progress += 1
        return Instruction(self.broadcast(max(self.instruction(), Instruction.SAVE if save else Instruction.NOTHING)))

    def must_stop(self) -> bool:
        """Whether a job without checkpoints must end at this step. A collective call."""
        return self.next_instruction() >= Instruction.SUSPEND

    def broadcast(self, number: int) -> int:
        """The number of rank 0, on every rank. A collective call."""
        if self.world == 1:
            return number
        tensor = torch.tensor([number], device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """The cached value of `key`, which names everything that the value depends on; `make` creates a missing one."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank. A collective call."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values
