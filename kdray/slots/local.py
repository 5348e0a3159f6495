"""One slot in this very process: jobs run in the thread that asks for their reports, where a debugger can follow them.

Same seam as `ray_slots`, no Ray: most tests and `--local` runs use it.
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
    """A pool of one slot with one worker: this process."""

    count = 1
    runs_in_caller = True

    def __init__(self, threads: int = 1, device: torch.device | None = None) -> None:
        self.threads = threads
        self.worker = Worker(device=device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._runs: dict[str, LocalRun] = {}

    def run(self, job: Job, name: str) -> "LocalRun":
        """The job's reports; each step of the iteration runs the job on to its next report."""
        if name in self._runs:
            raise JobError(f"{name}: a job of this name is running already; wait for it or cancel it.")
        return LocalRun(self, job, name)

    def cancel(self, name: str) -> None:
        """Stop this job at its next step; from the thread that runs it, at its last report."""
        self._tell(name, Instruction.END)

    def suspend(self, name: str) -> None:
        """The same, after a checkpoint."""
        self._tell(name, Instruction.SUSPEND)

    def _tell(self, name: str, ask: Instruction) -> None:
        if run := self._runs.get(name):
            run.ask = max(run.ask, ask)

    @property
    def threads_alone(self) -> int:
        return self.threads

    def client(self) -> "LocalSlots":
        return self

    def wait(self, timeout: float | None = None) -> None:
        """This process is up."""

    def describe(self) -> dict[str, Any]:
        return {"kind": "local", "count": 1, "workers": 1, "threads": self.threads, "device": str(self.worker.device)}

    def close(self) -> None:
        for name in list(self._runs):
            self.suspend(name)
        self.worker.cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class LocalRun:
    """A job of LocalSlots, from its first `next` to its end."""

    attempts = 1
    host = platform.node()

    def __init__(self, slots: LocalSlots, job: Job, name: str) -> None:
        self.ask = Instruction.NOTHING
        self._interrupted = False
        self._reports = self._told(slots, job, name)

    def __iter__(self) -> Iterator[Report]:
        return self._reports

    def __next__(self) -> Report:
        return next(self._reports)

    def close(self) -> None:
        """See JobRun; the job runs on to its next step."""
        self._reports.close()

    def interrupt(self) -> None:
        """Suspend the job, and then be a KeyboardInterrupt."""
        self._interrupted = True
        self.ask = max(self.ask, Instruction.SUSPEND)

    def _told(self, slots: LocalSlots, job: Job, name: str) -> Generator[Report, None, None]:
        slots._runs[name] = self
        slots.worker.instruction = lambda: self.ask
        threads = torch.get_num_threads()
        torch.set_num_threads(slots.threads)  # sums depend on it: a Ray slot with as many gives the same numbers
        reports = iter(job(slots.worker))
        try:
            yield from self._until_asked(reports)
        except (Exception, SystemExit) as error:
            raise as_job_error(name, error) from error
        finally:
            self.ask = max(self.ask, Instruction.SUSPEND)
            if self.ask is Instruction.SUSPEND:
                collections.deque(reports, maxlen=0)
            elif hasattr(reports, "close"):
                reports.close()
            torch.set_num_threads(threads)
            slots._runs.pop(name, None)
        if self._interrupted:
            raise KeyboardInterrupt

    def _until_asked(self, reports: Iterator[Report]) -> Iterator[Report]:
        while not self.ask:
            with redirect_signals(self.interrupt):
                report = next(reports, None)
            if report is None:
                return
            if not self.ask:
                yield report
