"""Claim: another program on one of a slot's cores makes a step at most five times as long.

One slot with all cores takes training steps of a small transformer: alone, and beside a program that uses one core.
The ratio is the time of a step beside the other program / the time of a step alone, with the environment that slots
have. `default_ratio` is the same ratio with the default of libgomp, whose threads spin for a long time while they
wait for each other. `alone_ratio` is the cost of spinning less if no other program runs.

    python bench/busy_machine.py [--seconds 10] [--width 64]                                     (about 2 minutes)
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import machine, print_result
from ray import cloudpickle

from kdray import FreshTransformer, SlotSettings
from kdray.slots.cluster import connect
from kdray.slots.job import Report, Worker
from kdray.slots.ray_slots import WORKER_ENVIRONMENT, RaySlots, open_slots
from kdray.tasks.text_classification import TextClassification

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker cannot import this file

LIBGOMP = {"GOMP_SPINCOUNT": "300000"}
"""The default of libgomp if it has no more threads than cores."""


@dataclass(frozen=True)
class Steps:
    """The job that trains for some seconds and reports the time of one step."""

    seconds: float
    width: int

    def __call__(self, worker: Worker) -> Iterator[Report]:
        torch.manual_seed(0)
        words, labels = [f"word{i}" for i in range(200)], ("negative", "positive")
        shape = FreshTransformer(width=self.width, feed_forward=2 * self.width)
        model, _ = shape.create([" ".join(words)], labels, TextClassification(max_length=16), 0)
        optimizer = torch.optim.AdamW(model.train().parameters())
        batch = {"input_ids": torch.randint(5, 200, (32, 16)), "labels": torch.randint(0, 2, (32,))}
        steps, begun = -3, time.perf_counter()
        while steps < 3 or time.perf_counter() - begun < self.seconds:
            if steps == 0:
                begun = time.perf_counter()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        yield {"step_ms": 1000 * (time.perf_counter() - begun) / steps, "threads": torch.get_num_threads()}


@contextmanager
def another_program() -> Iterator[None]:
    """Run a program that uses one core, for the block."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        program.kill()
        program.wait()


def measure_step(slots: RaySlots, job: Steps, name: str) -> Report:
    (report,) = slots.run(job, name)
    return report


def step_times(environment: dict[str, str], job: Steps) -> dict[str, float]:
    """The times of a step alone and beside another program, on a slot whose worker has these environment variables."""
    os.environ.update(environment)
    with (
        tempfile.TemporaryDirectory(prefix="kdray-bench-") as logs,
        open_slots(SlotSettings(count=1), Path(logs)) as slots,
    ):
        slots.wait()
        alone = measure_step(slots, job, "alone")
        with another_program():
            beside = measure_step(slots, job, "beside")
    return {"alone_ms": alone["step_ms"], "beside_ms": beside["step_ms"], "threads": alone["threads"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="length of each of the four measurements")
    parser.add_argument("--width", type=int, default=64, help="width of the model; a MiniLM has 384")
    options, on = parser.parse_args(), machine()
    job = Steps(options.seconds, options.width)
    with tempfile.TemporaryDirectory(prefix="kdray-bench-") as logs:
        cluster = connect("local", False, Path(logs))
        ours, default = step_times(WORKER_ENVIRONMENT, job), step_times(LIBGOMP, job)
        cluster.close()
    print_result(
        "a training step beside a program that takes one core, against the step alone",
        ours["beside_ms"] / ours["alone_ms"],
        {
            "goal": 5,
            "default_ratio": default["beside_ms"] / default["alone_ms"],
            "alone_ratio": ours["alone_ms"] / default["alone_ms"],
            "ours": ours,
            "default": default,
            "width": options.width,
        },
        on,
    )


if __name__ == "__main__":
    main()
