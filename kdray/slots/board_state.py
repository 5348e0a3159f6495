"""The data that the board keeps of jobs and slots, and the plain dictionaries that it exchanges with its callers."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict

Kind: TypeAlias = Literal["report", "finished", "failed", "died", "cancelled"]
"""`died`: the worker group of the job died in every attempt that slots.max_failures allows."""


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


class Assignment(TypedDict):
    """A job that is assigned to a slot.

    Each assignment has its own number, so that the board can ignore a worker whose assignment is over.
    """

    number: int
    name: str
    payload: bytes
    """The pickled job."""


class SentInstruction(TypedDict):
    """An instruction for the workers of one assignment."""

    assignment: int
    """The number of the assignment."""
    # An int: with an Instruction, the board's process would import `job`, and with it torch.
    instruction: int
    """A value of `kdray.slots.job.Instruction`."""


class Status(TypedDict):
    """The state of all slots."""

    up: list[int]
    """The slots whose workers have all joined."""
    given_up: dict[int, str]
    """Slot -> the reason why it was given up."""
    refusal: bytes
    """The pickled error with which every job fails, because a worker refused to run jobs; or empty."""


@dataclass
class JobState:
    """A job from its submission to its end."""

    id: int
    name: str
    payload: bytes
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


@dataclass
class SlotState:
    """A slot, the worker group that serves it, and the job that it runs."""

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
    """Whether the group must leave its node: it gets no new job, and its current job is assigned again."""
    last_progress: float = 0.0
    """The time of the job's last step or report, by the clock of the event loop."""
    give_up_reason: str = ""
    job: JobState | None = None
    assignment_number: int = 0
    """The number of the current assignment, or of the last one."""
    errors: dict[int, bytes] = field(default_factory=dict)
    """Rank -> its pickled error, or empty if it succeeded; only ranks that have finished the current job."""

    def is_on(self, nodes: Collection[str]) -> bool:
        """Whether one of its workers is on one of these nodes."""
        return any(member["node"] in nodes for member in self.members.values())

    def assign(self, job: JobState, number: int) -> None:
        """Give the slot a job, as the assignment with this number."""
        hosts = [self.members[rank]["host"] for rank in sorted(self.members)]
        self.job, self.assignment_number, self.errors = job, number, {}
        job.attempts += 1
        job.death_cause = ""
        job.host = ", ".join(dict.fromkeys(hosts))

    def instruction_after(self, known: SentInstruction) -> SentInstruction | None:
        """The instruction to its workers, if it is newer than `known`: of a later assignment, or a greater one."""
        if self.job is None or not self.job.instruction:
            return None
        current: SentInstruction = {"assignment": self.assignment_number, "instruction": self.job.instruction}
        if current["assignment"] == known["assignment"]:
            return current if current["instruction"] > known["instruction"] else None
        return current if current["assignment"] > known["assignment"] else None
