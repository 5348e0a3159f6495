"""What a job is and what it is given: the seam between the slots, which know no distillation, and the jobs.

A job is a picklable callable. It is called once in every worker of one slot, with that worker, and yields reports.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
import torch.distributed as dist

Report: TypeAlias = dict[str, Any]
"""What a job tells: JSON values by name. Only rank 0's reports travel."""

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

    count: int
    """How many jobs run at the same time."""

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs: all slots', if they are on one node."""
        ...

    def run(self, job: Job, name: str) -> Iterator[Report]:
        """Run a job and yield its reports. Raises JobError when it fails; closing the iterator stops the job."""
        ...


def _never() -> bool:
    return False


@dataclass
class Worker:
    """One process of a slot: its place in the group, its device, and what stays warm in it between jobs."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    warm: dict[Any, Any] = field(default_factory=dict)
    stop_asked: Callable[[], bool] = _never
    """Whether rank 0 has been told to stop this job; costs nothing to ask."""

    @property
    def multiple(self) -> int:
        """Batches are padded up to a multiple of so many tokens: GPU kernels like eights, a CPU only pays for them."""
        return 8 if self.device.type == "cuda" else 1

    def stopping(self) -> bool:
        """Whether to stop at this step. A collective call: every rank must make it, and all get the same answer."""
        if self.world == 1:
            return self.stop_asked()
        flag = torch.tensor([int(self.rank == 0 and self.stop_asked())], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def kept(self, key: Any, make: Callable[[], T]) -> T:
        """The warm value under `key`, made the first time; the key names everything the value depends on."""
        if key not in self.warm:
            self.warm[key] = make()
        return self.warm[key]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. A collective call."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values
