"""The data that the board keeps of jobs and slots, and the plain dictionaries that it exchanges with its callers."""

import asyncio
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict

Kind: TypeAlias = Literal["report", "finished", "failed", "died", "cancelled"]
"""`died`: the worker group of the job died in every attempt that slots.max_failures allows."""

FUSE_WAIT_S = 0.25
"""Seconds without a new job after which a slot starts with fewer jobs than it may run as one. A search submits the jobs
that follow its ended trials within some hundredths of a second each, and a job that comes too late waits for all."""


class Event(TypedDict):
    """One event of a job, read by the process that submitted the job."""

    kind: Kind
    attempts: int
    """How many times the job was assigned to a slot, without the attempts that ended because a node was drained."""
    host: str
    """The machines of the slot that ran the job last, in rank order."""
    data: bytes
    """The pickled report (`report`), the pickled error (`failed`), the cause as text (`died`), or empty."""


class Member(TypedDict):
    """One worker of a worker group: its actor, and the process that the actor runs in."""

    actor: Any
    node: str
    """Ray's id of the node."""
    host: str
    """The name of the machine."""
    pid: int
    placement_group: Any
    """Ray's placement group that reserves its resources."""


class AssignedJob(TypedDict):
    """A job of an assignment."""

    name: str
    payload: bytes
    """The pickled job."""


class Assignment(TypedDict):
    """What a slot runs next: one job, or several that run as one.

    Each assignment has its own number, so that the board can ignore a worker whose assignment is over.
    """

    number: int
    jobs: list[AssignedJob]
    """The place of a job in this list identifies it while the assignment runs."""


class SentInstructions(TypedDict):
    """The instructions for the jobs of one assignment."""

    assignment: int
    """The number of the assignment."""
    # Ints: with an Instruction, the board's process would import `job`, and with it torch.
    instructions: dict[int, int]
    """Place of a job -> a value of `kdray.slots.job.Instruction`; only jobs that were sent one."""


class Status(TypedDict):
    """The state of all slots."""

    up: list[int]
    """The slots whose workers have all joined."""
    given_up: dict[int, str]
    """Slot -> the reason why it was given up."""
    refusal: bytes
    """The pickled error with which every job fails, because a worker refused to run jobs; or empty."""


@dataclass(eq=False)
class JobState:
    """A job from its submission to its end."""

    id: int
    name: str
    payload: bytes
    fuse_key: str = ""
    """Jobs with the same key may run as one in a slot; empty: the job runs alone."""
    attempts: int = 0
    ended: bool = False
    """Whether its last event is queued for the submitter; the workers may still run the job."""
    instruction: int = 0
    """The greatest instruction for its workers so far: a value of `kdray.slots.job.Instruction`."""
    host: str = ""
    death_cause: str = ""
    """Why the board killed the worker group of the current attempt; empty if it did not kill it."""
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def send(self, instruction: int) -> None:
        """Send an instruction to the workers, unless they were sent a greater one."""
        self.instruction = max(self.instruction, instruction)

    def add_event(self, kind: Kind, data: bytes = b"") -> None:
        """Queue an event for the submitter, unless the job has ended. Every kind but `report` ends the job."""
        if not self.ended:
            self.ended = kind != "report"
            self.events.put_nowait({"kind": kind, "attempts": self.attempts, "host": self.host, "data": data})


class WaitingJobs:
    """The jobs that wait for a slot, in the order in which they are assigned."""

    def __init__(self, fused: int) -> None:
        self._jobs: deque[JobState] = deque()
        self._fused = fused
        """How many jobs a slot runs as one at most."""

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: JobState) -> None:
        """Add a job behind all others."""
        self._jobs.append(job)

    def add_again(self, jobs: Iterable[JobState]) -> None:
        """Add jobs that a slot has run before all others, in their order, without those that have ended."""
        self._jobs.extendleft(reversed([job for job in jobs if not job.ended]))

    def remove_ended(self) -> None:
        """Remove the jobs that have ended."""
        self._jobs = deque(job for job in self._jobs if not job.ended)

    def fail(self, error: bytes) -> None:
        """Fail and remove all jobs."""
        for job in self._jobs:
            job.add_event("failed", error)
        self._jobs.clear()

    def clear(self) -> None:
        """Remove all jobs."""
        self._jobs.clear()

    def next_jobs(self) -> list[JobState]:
        """The jobs that the next assignment has: the first one, and those after it that may run with it."""
        first = self._jobs[0]
        if not first.fuse_key:
            return [first]
        return [job for job in self._jobs if job.fuse_key == first.fuse_key][: self._fused]

    def may_grow(self) -> bool:
        """Whether the next assignment has room for another job."""
        return bool(self._jobs[0].fuse_key) and len(self.next_jobs()) < self._fused

    def take(self) -> list[JobState]:
        """Remove the jobs of the next assignment, and return them."""
        jobs = self.next_jobs()
        for job in jobs:
            self._jobs.remove(job)
        return jobs


@dataclass
class AssignmentState:
    """An assignment from its beginning to its end."""

    number: int
    jobs: dict[int, JobState]
    """Place -> a job that has not left the assignment. One that was cancelled leaves it when its workers stop."""
    is_fused: bool
    """Whether it began with several jobs."""
    last_progress: float = 0.0
    """The time of the last step or report, by the clock of the event loop."""
    waiting_again: list[JobState] = field(default_factory=list)
    """The jobs that have left it to be assigned again when it is over."""
    errors: dict[int, bytes] = field(default_factory=dict)
    """Rank -> its pickled error, or empty if it succeeded; only ranks that have finished."""

    def message(self) -> Assignment:
        """The assignment as a worker gets it."""
        return {
            "number": self.number,
            "jobs": [{"name": job.name, "payload": job.payload} for job in self.jobs.values()],
        }

    def send(self, instruction: int) -> None:
        """Send an instruction for each job to the workers."""
        for job in self.jobs.values():
            job.send(instruction)

    def end_job(self, place: int, error: bytes, draining: bool) -> None:
        """End a job with its error, or as finished.

        A job that was suspended because its slot is being drained is assigned again instead.
        """
        job = self.jobs.pop(place, None)
        if job is None:
            return
        if draining and job.instruction and not job.ended and not error:
            job.attempts -= 1  # the job did not cause this
            job.instruction = 0
            self.waiting_again.append(job)
        else:
            job.add_event("failed" if error else "finished", error)

    def end_jobs(self, draining: bool) -> None:
        """End each job that has not left, with the error of the lowest failed rank, or as finished.

        Where several jobs ran as one, the error may be that of one of them: each of them is assigned again, alone.
        """
        errors = [self.errors[rank] for rank in sorted(self.errors) if self.errors[rank]]
        if errors and self.is_fused:
            for job in self.jobs.values():
                job.fuse_key, job.instruction = "", 0
                self.waiting_again.append(job)
            self.jobs.clear()
        for place in list(self.jobs):
            self.end_job(place, errors[0] if errors else b"", draining)

    def note_progress(self) -> None:
        """Note that the jobs have made a step, or reported."""
        self.last_progress = asyncio.get_running_loop().time()

    def has_hung(self, timeout_s: float) -> bool:
        """Whether there was no progress for this time. The jobs then keep it as the cause of the death of a worker.

        It is true again only after another `timeout_s`: the workers are killed now, and that may take a while.
        """
        if asyncio.get_running_loop().time() - self.last_progress <= timeout_s:
            return False
        self.note_progress()
        for job in self.jobs.values():
            job.death_cause = f"it made no step for {timeout_s:g} s"
        return True

    def lose_workers(self, draining: bool, max_failures: int) -> None:
        """Let each job that has not ended be assigned again, or die if this was its last attempt."""
        for job in filter(lambda job: not job.ended, self.jobs.values()):
            job.instruction = 0
            if draining:
                job.attempts -= 1
            if job.attempts > max_failures:
                job.add_event("died", job.death_cause.encode())
                continue
            if job.attempts == max_failures:
                job.fuse_key = ""  # in its last attempt, no other job must die with it
            self.waiting_again.append(job)


@dataclass
class SlotState:
    """A slot, the worker group that serves it, and the jobs that it runs."""

    group: str = ""
    """The id of the worker group; each restart makes a new one. Empty from a group's death until the next one joins."""
    members: dict[int, Member] = field(default_factory=dict)
    """Rank -> worker."""
    placement_group: Any = None
    """Ray's placement group of the last worker that joined; kept after the group's death, so that it can be freed."""
    controller: Any = None
    """The actor of Ray Train's controller, which starts the worker groups of this slot."""
    up: bool = False
    """Whether every worker of the group has joined."""
    draining: bool = False
    """Whether the group must leave its node: it gets no new jobs, and its current jobs are assigned again."""
    give_up_reason: str = ""
    assignment: AssignmentState | None = None
    """The current assignment; None between two of them."""

    def is_on(self, nodes: Collection[str]) -> bool:
        """Whether one of its workers is on one of these nodes."""
        return any(member["node"] in nodes for member in self.members.values())

    def assign(self, jobs: list[JobState], number: int) -> AssignmentState:
        """Give the slot jobs, as the assignment with this number."""
        hosts = [self.members[rank]["host"] for rank in sorted(self.members)]
        for job in jobs:
            job.attempts += 1
            job.death_cause = ""
            job.host = ", ".join(dict.fromkeys(hosts))
        self.assignment = AssignmentState(number, dict(enumerate(jobs)), is_fused=len(jobs) > 1)
        self.assignment.note_progress()
        return self.assignment

    def assignment_with(self, number: int) -> AssignmentState | None:
        """The current assignment if it has this number; None: that assignment is over."""
        return self.assignment if self.assignment is not None and self.assignment.number == number else None

    def instructions_after(self, known: SentInstructions) -> SentInstructions | None:
        """The instructions to its workers, if one is newer than `known`: of a later assignment, or a greater one."""
        if self.assignment is None or self.assignment.number < known["assignment"]:
            return None
        current = {place: job.instruction for place, job in self.assignment.jobs.items() if job.instruction}
        before = known["instructions"] if self.assignment.number == known["assignment"] else {}
        if all(instruction <= before.get(place, 0) for place, instruction in current.items()):
            return None
        return {"assignment": self.assignment.number, "instructions": before | current}
