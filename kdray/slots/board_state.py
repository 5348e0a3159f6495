"""What the board keeps of jobs and slots, and the plain values that it answers with."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict

Kind: TypeAlias = Literal["report", "finished", "failed", "died", "cancelled"]
"""`died`: the job took its slot down once too often."""


class Event(TypedDict):
    """What the asker of a job hears next; `data` is a pickled report or error."""

    kind: Kind
    attempts: int
    host: str
    """The machines of the slot that it ran on last, by rank."""
    data: bytes


class Member(TypedDict):
    """One worker of a slot: its actor, and where its process is."""

    actor: Any
    node: str
    host: str
    pid: int
    reserved: Any
    """The placement group that it runs in."""


class Assignment(TypedDict):
    """A job handed to a slot; every handing out has its own number, so that a dead worker's late words are known."""

    number: int
    name: str
    payload: bytes


class Status(TypedDict):
    """Which slots are up, and why those that were given up are not."""

    up: list[int]
    lost: dict[int, str]
    refused: bytes
    """Why no job is done at all: a pickled error, or nothing."""


@dataclass
class _Job:
    id: int
    name: str
    payload: bytes
    attempts: int = 0
    ended: bool = False
    ask: int = 0
    """What its workers are told to do at their next step: a `kdray.slots.job.Ask`."""
    host: str = ""
    trouble: str = ""
    """What took its slot down."""
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def tell(self, kind: Kind, data: bytes = b"") -> None:
        if not self.ended:
            self.ended = kind != "report"
            self.events.put_nowait({"kind": kind, "attempts": self.attempts, "host": self.host, "data": data})


@dataclass
class _Slot:
    group: str = ""
    """The worker group that serves it; a new one after each restart, none when it is known to be dead."""
    members: dict[int, Any] = field(default_factory=dict)
    """Rank -> Member."""
    reserved: Any = None
    """The placement group that its workers were last in."""
    controller: Any = None
    """Ray Train's, which starts its groups."""
    up: bool = False
    leaving: bool = False
    """Its node is being drained: it takes no job, and its own is given out again."""
    heard: float = 0.0
    """When its job was last known to get on, by the loop's clock."""
    lost: str = ""
    job: _Job | None = None
    number: int = 0
    outcomes: dict[int, bytes] = field(default_factory=dict)
    """Of each rank that is through with the job: its pickled error, or nothing."""
