"""What a job is and what it is given: the seam between the slots, which know no distillation, and the jobs.

A job is a picklable callable. It is called once in every worker of one slot, with that worker, and yields reports.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
import torch.distributed as dist

Report: TypeAlias = dict[str, Any]
"""What a job tells: JSON values by name. Only rank 0's reports travel. One that holds `NOTE` alone is a sentence for
people, no evaluation."""

NOTE = "note"

Job: TypeAlias = Callable[["Worker"], Iterator[Report]]

T = TypeVar("T")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many processor threads within the block, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Pool(Protocol):
    """Whatever runs jobs: all that teacher, transfer set and costs need to know of the slots."""

    @property
    def count(self) -> int:
        """How many jobs run at the same time."""
        ...

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs: all slots', if they are on one node."""
        ...

    def run(self, job: Job, name: str) -> Iterator[Report]:
        """Run a job and yield its reports. Raises JobError when it fails; closing the iterator stops the job."""
        ...


class Instruction(IntEnum):
    """What a job is asked to do at its next step; the greatest counts."""

    NOTHING = 0
    SAVE = 1
    """Write a checkpoint and go on."""
    SUSPEND = 2
    """Write a checkpoint and end: the job will be gone on with."""
    END = 3
    """End, and leave what was done."""


def _nothing() -> Instruction:
    return Instruction.NOTHING


@dataclass
class Worker:
    """One process of a slot: its place in the group, its device, and what stays warm in it between jobs."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: dict[Any, Any] = field(default_factory=dict)
    instruction: Callable[[], Instruction] = _nothing
    """What rank 0 has been told from outside; costs nothing to ask."""
    progress: int = 0
    """Grows while the job gets on; a worker whose count stands still for too long is taken for hung."""

    @property
    def pad_multiple(self) -> int:
        """Batches are padded up to a multiple of so many tokens: GPU kernels like eights, a CPU only pays for them."""
        return 8 if self.device.type == "cuda" else 1

    def next_instruction(self, save: bool = False) -> Instruction:
        """What to do at this step; `save`: rank 0 finds it time for a checkpoint.

        A collective call: every rank must make it, and all get the same answer.
        """
        self.progress += 1
        return Instruction(self.broadcast(max(self.instruction(), Instruction.SAVE if save else Instruction.NOTHING)))

    def must_stop(self) -> bool:
        """Whether to end at this step, for a job that keeps no checkpoints. A collective call."""
        return self.next_instruction() >= Instruction.SUSPEND

    def broadcast(self, number: int) -> int:
        """Rank 0's number, on every rank. A collective call."""
        if self.world == 1:
            return number
        own = torch.tensor([number], device=self.device)
        dist.broadcast(own, src=0)
        return int(own.item())

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """The warm value under `key`, made the first time; the key names everything the value depends on."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. A collective call."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values
