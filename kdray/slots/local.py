"""One slot in this process: a job runs in the thread that reads its reports, where a debugger can step through it.

It has the interface of `ray_slots`, without Ray. Most tests and `--local` runs use it.
"""

import collections
import platform
from collections.abc import Generator, Iterator
from typing import Any, Self

import torch

from kdray.errors import JobError
from kdray.slots.interrupts import redirect_signals
from kdray.slots.job import Instruction, Job, Report, Worker
from kdray.slots.pool import as_job_error


class LocalSlots:
    """A SlotPool of one slot with one worker: this process."""

    count = places = 1
    runs_in_caller = True

    def __init__(self, threads: int = 1, device: torch.device | None = None) -> None:
        self.threads = threads
        self.worker = Worker(device=device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._runs: dict[str, LocalRun] = {}

    def run(self, job: Job, name: str) -> "LocalRun":
        """Return an iterator over the job's reports. Each `next` runs the job up to its next report."""
        if name in self._runs:
            raise JobError(f"{name}: a job of this name is running already; wait for it or cancel it.")
        return LocalRun(self, job, name)

    def cancel(self, name: str) -> None:
        """Stop the job of this name: at its next step, or at its last report if the same thread runs it."""
        self._send(name, Instruction.END)

    def suspend(self, name: str) -> None:
        """Stop the job of this name as `cancel` does, but after a checkpoint."""
        self._send(name, Instruction.SUSPEND)

    def _send(self, name: str, instruction: Instruction) -> None:
        if run := self._runs.get(name):
            run.instruction = max(run.instruction, instruction)

    @property
    def threads_alone(self) -> int:
        """See SlotPool."""
        return self.threads

    def client(self) -> "LocalSlots":
        """See SlotPool."""
        return self

    def wait(self, timeout: float | None = None) -> None:
        """Do nothing: this process is up."""

    def describe(self) -> dict[str, Any]:
        """See SlotPool."""
        return {"kind": "local", "count": 1, "workers": 1, "threads": self.threads, "device": str(self.worker.device)}

    def close(self) -> None:
        """Suspend every job and clear the worker's cache."""
        for name in list(self._runs):
            self.suspend(name)
        self.worker.cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class LocalRun:
    """A job of LocalSlots, as a JobRun. The job starts with the first `next`."""

    attempts = 1
    host = platform.node()

    def __init__(self, slots: LocalSlots, job: Job, name: str) -> None:
        self.instruction = Instruction.NOTHING
        self._interrupted = False
        self._reports = self._run_job(slots, job, name)

    def __iter__(self) -> Iterator[Report]:
        return self._reports

    def __next__(self) -> Report:
        return next(self._reports)

    def close(self) -> None:
        """Suspend the job, as JobRun says; it runs to its next step in this call."""
        self._reports.close()

    def interrupt(self) -> None:
        """Suspend the job, and let the iterator raise KeyboardInterrupt when the job has ended."""
        self._interrupted = True
        self.instruction = max(self.instruction, Instruction.SUSPEND)

    def _run_job(self, slots: LocalSlots, job: Job, name: str) -> Generator[Report, None, None]:
        slots._runs[name] = self
        slots.worker.instruction = lambda: self.instruction
        threads = torch.get_num_threads()
        # Sums depend on the number of threads: a slot on Ray with as many threads gives the same numbers.
        torch.set_num_threads(slots.threads)
        reports = iter(job(slots.worker))
        try:
            yield from self._reports_until_instruction(reports)
        except (Exception, SystemExit) as error:
            raise as_job_error(name, error) from error
        finally:
            self.instruction = max(self.instruction, Instruction.SUSPEND)
            if self.instruction is Instruction.SUSPEND:
                # The job gets the instruction at its next step, and writes its checkpoint before it ends.
                collections.deque(reports, maxlen=0)
            elif hasattr(reports, "close"):
                reports.close()
            torch.set_num_threads(threads)
            slots._runs.pop(name, None)
        if self._interrupted:
            raise KeyboardInterrupt

    def _reports_until_instruction(self, reports: Iterator[Report]) -> Iterator[Report]:
        while not self.instruction:
            # A KeyboardInterrupt in the middle of a step would leave the model half updated.
            with redirect_signals(self.interrupt):
                report = next(reports, None)
            if report is None:
                return
            if not self.instruction:
                yield report
