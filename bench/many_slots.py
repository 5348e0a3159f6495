"""Claim: one driver and one board carry a thousand slots that each report once a second.

The board, planner, sampler, ledger, early stopping and the spool of MLflow are the real ones, in this process and
without Ray. The slots are simulated: a job reports each second, ends after `--evaluations` reports or when early
stopping ends it, and a slot dies from time to time, so that its job is assigned again. One clock counts everything: the
processor time of this process, the time of each write of the ledger to the disk (measured at the start), and the
waiting in between, which is skipped. So other programs on the machine hardly change the figures.

`latency_s` is the time from the moment a report is due to the decision of early stopping on it. `busy` is the share of
the clock in which the process did not wait; `events_per_s` are the reports, starts and ends of trials, for each second
of it. `driver_ms` and `board_ms` are the processor time of an event in the planner, ledger and spool, and in the board
with its simulated slots; `disk_ms` is the time of a write. The search then runs with more and more slots, until the
process is busy all the time: `breaks_at` slots; null if that is above `--most-slots`. The ratio is the last number of
slots that was tried / `--slots`.

Not in it: the calls between Ray's processes, Ray Tune (see empty_trials.py), and the thread that sends the spool to
MLflow.

    python bench/many_slots.py [--slots 1000] [--trials 20000]                                   (about 20 minutes)
"""

import argparse
import asyncio
import os
import pickle
import random
import selectors
import statistics
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import material
import psutil
from machine import machine, print_result

from kdray import Search, Sweep
from kdray.report.screen import NullScreen, StageTimer
from kdray.search.driver import job_name
from kdray.search.ledger import Ledger
from kdray.search.planner import Length, PlannedTrial, Planner
from kdray.search.stopping import Halving
from kdray.slots.board import Board
from kdray.slots.board_state import Member, SentInstructions
from kdray.slots.job import Instruction
from kdray.stages.bookkeeping import Bookkeeper
from kdray.stages.session import Session
from kdray.storage.paths import SweepPaths
from kdray.tracking.ids import tracked_sweep
from kdray.tracking.mlflow_tracker import MlflowTracker
from kdray.tracking.spool import Spool

RESTART_S = 20.0
"""How long a slot that died takes to start again."""
ALWAYS_BUSY = 0.97
"""The share of the clock from which on reports queue up. The first seconds of a run, with few reports, count too."""
PAYLOAD = bytes(4000)
"""A pickled job has about this size."""


@dataclass
class Clock:
    """Processor time of this thread, and time that was skipped."""

    skipped: float = 0.0
    waited: float = 0.0
    """The part of the skipped time in which nothing was to be done."""

    def time(self) -> float:
        return self.skipped + time.thread_time()

    def skip(self, seconds: float) -> None:
        self.skipped += seconds


class SkippingSelector(selectors.DefaultSelector):
    """Skips the time in which an event loop would wait."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("the simulation waits for nothing")
        self._clock.skip(max(0.0, timeout))
        self._clock.waited += max(0.0, timeout)
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop with such a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(SkippingSelector(clock))
        self._simulated = clock

    def time(self) -> float:
        return self._simulated.time()


@dataclass(frozen=True)
class Load:
    """What the slots do."""

    slots: int
    trials: int
    evaluations: int
    deaths: float
    """The probability that a slot dies in a second in which it runs a job."""


@dataclass
class Counts:
    """What a simulation has counted."""

    latencies: list[float] = field(default_factory=list)
    events: int = 0
    deaths: int = 0
    driver_s: float = 0.0
    """Processor time of the driver's part."""


class SlotDied(Exception):
    """A simulated slot has died."""


def kill(member: Member) -> NoReturn:
    raise AssertionError("no simulated slot hangs")


class Simulation:
    """One search with simulated slots."""

    def __init__(self, load: Load, clock: Clock, planner: Planner, bookkeeper: Bookkeeper) -> None:
        self.load, self.clock, self.counts = load, clock, Counts()
        self._planner, self._bookkeeper = planner, bookkeeper
        self._random = random.Random(0)
        self._board = Board(max_failures=2, kill=kill)
        self._due: dict[str, deque[float]] = {}
        """Name of a running job -> when each of its reports that the driver has not read yet was due."""

    async def run(self) -> None:
        """Run all trials."""
        slots = [asyncio.create_task(self._serve(await self._board.add_slot())) for _ in range(self.load.slots)]
        await self._board.wait_until_settled(self.load.slots)
        await asyncio.gather(*(self._run_trials() for _ in range(self.load.slots)))
        await self._board.close(int(Instruction.END))
        await asyncio.gather(*slots)

    # ---- a slot, as `kdray.slots.serving` ----

    async def _serve(self, number: int) -> None:
        for group in count():
            if await self._serve_group(number, f"{number}-{group}"):
                return
            await asyncio.sleep(RESTART_S)

    async def _serve_group(self, number: int, group: str) -> bool:
        """Run jobs until the board is closed; False if the slot has died before."""
        member = Member(actor=None, node="node", host=f"host-{number}", pid=0, placement_group=None)
        await self._board.join_worker(number, group, 0, 1, member)
        received = SentInstructions(assignment=0, instructions={})
        listener = asyncio.create_task(self._receive_instructions(number, group, received))
        last = 0
        try:
            while assignment := await self._board.next_assignment(number, group, 0, last):
                last = assignment["number"]
                await self._run_job(number, last, assignment["jobs"][0]["name"], received)
                await self._board.finish_rank(number, last, 0, b"", False)
            return True
        except SlotDied:
            return False
        finally:
            listener.cancel()

    async def _receive_instructions(self, number: int, group: str, received: SentInstructions) -> None:
        while new := await self._board.next_instructions(number, group, received):
            received.update(new)

    async def _run_job(self, slot: int, assignment: int, name: str, received: SentInstructions) -> None:
        start = self.clock.time() + self._random.random()
        self._due[name] = deque()
        quality = 0.5 + 0.4 * random.Random(name).random()
        for step in range(1, self.load.evaluations + 1):
            due = start + step
            await asyncio.sleep(max(0.0, due - self.clock.time()))
            if received["assignment"] == assignment and received["instructions"].get(0, 0) >= Instruction.SUSPEND:
                return
            if self._random.random() < self.load.deaths:
                self.counts.deaths += 1
                raise SlotDied
            value = quality * (1 - 0.5**step)
            report = {"accuracy": value, "retention": value, "loss": 1 - value, "epoch": step, "step": step}
            self._due[name].append(due)
            await self._board.pass_report(slot, assignment, pickle.dumps(report))
            if step % 5 == 0:
                await self._board.report_progress(slot, assignment)

    # ---- the driver, as `kdray.search.tune_driver` ----

    async def _run_trials(self) -> None:
        """Run one trial after the other, as an actor of Ray Tune and the driver do together."""
        while planned := self._start_trial():
            name = job_name(planned.number)
            job = await self._board.submit_job(name, PAYLOAD)
            while True:
                event = await self._board.next_event(job)
                if event["kind"] != "report":
                    self._end_trial(planned.number, event["kind"] == "finished", event["kind"])
                    break
                if not self._take_report(planned.number, name, event["data"], event["attempts"], event["host"]):
                    await self._board.cancel_job(name, int(Instruction.END))
                    break

    def _start_trial(self) -> PlannedTrial | None:
        started = time.thread_time()
        planned = self._planner.next_trial()
        if planned:
            self._bookkeeper.update(self._planner.record(planned.number))
        self._count_event(started)
        return planned

    def _take_report(self, number: int, name: str, data: bytes, attempts: int, host: str) -> bool:
        """Pass a report to the planner. Returns whether the trial continues; if not, it has ended."""
        started = time.thread_time()
        can_continue = self._planner.observe(number, pickle.loads(data), attempts, host)  # noqa: S301 (our own bytes)
        self.counts.latencies.append(self.clock.time() - self._due[name].popleft())
        self._bookkeeper.update(
            self._planner.record(number) if can_continue else self._planner.finish(number, "stopped")
        )
        self._count_event(started)
        return can_continue

    def _end_trial(self, number: int, is_complete: bool, kind: str) -> None:
        started = time.thread_time()
        self._bookkeeper.update(
            self._planner.finish(number, "completed" if is_complete else "failed", None if is_complete else kind)
        )
        self._count_event(started)

    def _count_event(self, started: float) -> None:
        self.counts.events += 1
        self.counts.driver_s += time.thread_time() - started


def write_seconds(folder: Path) -> float:
    """The time of one write that reaches the disk: the lower quartile of forty."""
    file, times = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_APPEND), []
    for _ in range(40):
        started = time.perf_counter()
        os.write(file, PAYLOAD[:300])
        os.fsync(file)
        times.append(time.perf_counter() - started)
    os.close(file)
    return statistics.quantiles(times, n=4)[0]


def simulate(load: Load, sweep: Sweep, folder: Path, disk_s: float) -> dict[str, float]:
    """The figures of one search."""
    clock, paths, process = Clock(), SweepPaths(folder, sweep.name), psutil.Process()
    os.fsync = lambda file: clock.skip(disk_s)  # type: ignore[assignment]
    ledger = Ledger.open(paths.journal, sweep.name, sweep.search.objectives)
    tracker = MlflowTracker(sweep.tracking, paths, tracked_sweep(ledger), lambda sentence: None, own_process=True)
    tracker._spool = Spool(paths)  # without the thread that sends: its time would count here
    length = Length(load.evaluations)
    planner = Planner(sweep.search, sweep.search_space, ledger, material.invented_costs, length=lambda params: length)
    session = Session(sweep, paths, ledger, StageTimer(NullScreen(), paths.times), None, tracker)  # type: ignore[arg-type]
    simulation = Simulation(load, clock, planner, Bookkeeper(session))
    memory, started, processor = process.memory_info().rss, clock.time(), time.thread_time()
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock)) as runner:
        runner.run(simulation.run())
    counts, taken, processor = simulation.counts, clock.time() - started, time.thread_time() - processor
    busy_s = taken - clock.waited
    latencies = sorted(counts.latencies)
    states = [record.state for record in ledger.records()]
    return {
        "slots": load.slots,
        "trials": load.trials,
        "stopped": states.count("stopped"),
        "failed": states.count("failed"),
        "deaths": counts.deaths,
        "simulated_s": taken,
        "busy": busy_s / taken,
        "events": counts.events,
        "events_per_s": counts.events / busy_s,
        "latency_s_p50": latencies[len(latencies) // 2],
        "latency_s_p99": latencies[len(latencies) * 99 // 100],
        "driver_ms": 1000 * counts.driver_s / counts.events,
        "board_ms": 1000 * (processor - counts.driver_s) / counts.events,
        "disk_ms": 1000 * disk_s,
        "kb_per_trial": (process.memory_info().rss - memory) / 1000 / load.trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--evaluations", type=int, default=60, help="reports of a trial that nothing stops")
    parser.add_argument("--first-rung", type=int, default=10, help="reports before early stopping compares")
    parser.add_argument(
        "--deaths", type=float, default=0.0005, help="deaths of a slot that runs a job, for each second"
    )
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--most-slots", type=int, default=8000, help="where the search for the limit ends")
    options, on = parser.parse_args(), machine()
    stopping = Halving(first=options.first_rung)

    def figures_of(slots: int, trials: int) -> dict[str, float]:
        search = Search(trials=trials, sampler=options.sampler, stopping=stopping)
        sweep = material.sweep(material.parser("").parse_args([]), search)
        with tempfile.TemporaryDirectory(prefix="kdray-bench-") as name:
            disk_s = write_seconds(Path(name))
            return simulate(Load(slots, trials, options.evaluations, options.deaths), sweep, Path(name), disk_s)

    write_to_disk = os.fsync
    probes: list[dict[str, float]] = []
    slots = max(1, options.slots // 8)
    while slots <= options.most_slots:
        os.fsync = write_to_disk
        probes.append(figures_of(slots, min(options.trials, 3 * slots)))
        if probes[-1]["busy"] > ALWAYS_BUSY:
            break
        slots *= 2
    os.fsync = write_to_disk
    whole = figures_of(options.slots, options.trials)
    os.fsync = write_to_disk
    print_result(
        "slots at one report a second that a driver and its board carry (times as many as asked)",
        probes[-1]["slots"] / options.slots,
        {
            **whole,
            "breaks_at": probes[-1]["slots"] if probes[-1]["busy"] > ALWAYS_BUSY else None,
            "probes": [
                {name: probe[name] for name in ("slots", "busy", "events_per_s", "latency_s_p99", "board_ms")}
                for probe in probes
            ],
            "evaluations": options.evaluations,
            "first_rung": options.first_rung,
            "sampler": options.sampler,
        },
        on,
    )


if __name__ == "__main__":
    main()
