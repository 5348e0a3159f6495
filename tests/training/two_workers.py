"""Runs a training in two processes that are the workers of one slot, joined by gloo."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing

from kdray.slots.job import Worker

T = TypeVar("T")

WORKERS = 2
LIMIT_S = 300.0
"""Importing torch and transformers takes most of the time: 8 s on an idle machine, minutes on a busy one."""


def run_two_workers(train: Callable[[Worker, Path, T], None], folder: Path, inputs: T) -> None:
    """Call `train(worker, folder, inputs)`, a function of a module, in both processes, and wait for their end.

    Raises the error of a process, AssertionError after `LIMIT_S`. No process is left.
    """
    context = torch.multiprocessing.start_processes(
        _run_rank, (train, folder, inputs), nprocs=WORKERS, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + LIMIT_S
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, "the two workers did not end"
    finally:
        for process in context.processes:
            process.kill()


def _run_rank(rank: int, train: Callable[[Worker, Path, T], None], folder: Path, inputs: T) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORKERS)
    train(Worker(rank, WORKERS), folder, inputs)
    dist.destroy_process_group()
