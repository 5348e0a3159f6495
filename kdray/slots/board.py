"""The board: jobs waiting for a slot, the job each slot is on, and the reports of each job on their way to who asked.

One asyncio actor on the driver's node, which alone decides what becomes of a job. Jobs, reports and errors pass through
as bytes, and what it answers is built of plain dicts: its process then needs neither torch nor kdray, and is up
in a moment. Who calls it: `ray_slots` (asking), `serving` (working).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeAlias, TypedDict

import ray

Kind: TypeAlias = Literal["report", "finished", "failed", "died", "cancelled"]
"""`died`: the job took its slot down once too often."""


class Event(TypedDict):
    """What the asker of a job hears next; `data` is a pickled report or error."""

    kind: Kind
    attempts: int
    data: bytes


class Assignment(TypedDict):
    """A job handed to a slot; every handing out has its own number, so that a dead worker's late words are known."""

    number: int
    name: str
    payload: bytes


class Status(TypedDict):
    """Which slots are up, and why those that were given up are not."""

    up: list[int]
    lost: dict[int, str]


@dataclass
class _Job:
    id: int
    name: str
    payload: bytes
    attempts: int = 0
    ended: bool = False
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def tell(self, kind: Kind, data: bytes = b"") -> None:
        if not self.ended:
            self.ended = kind != "report"
            self.events.put_nowait({"kind": kind, "attempts": self.attempts, "data": data})


@dataclass
class _Slot:
    group: str = ""
    """The worker group that serves it; a new one after each restart, none when it is known to be dead."""
    members: dict[int, Any] = field(default_factory=dict)
    up: bool = False
    lost: str = ""
    job: _Job | None = None
    number: int = 0
    outcomes: dict[int, bytes] = field(default_factory=dict)
    """Of each rank that is through with the job: its pickled error, or nothing."""


async def alive(member: Any) -> bool:
    """Whether a worker still answers."""
    try:
        await asyncio.wait_for(member.__ray_ready__.remote(), 10)
    except (ray.exceptions.RayError, TimeoutError):
        return False
    return True


def kill(member: Any) -> None:
    """End a worker's process, whatever it is doing."""
    ray.kill(member)


class Board:
    """See the module."""

    def __init__(
        self,
        slots: int,
        max_failures: int,
        alive: Callable[[Any], Awaitable[bool]] = alive,
        kill: Callable[[Any], None] = kill,
        straggle_s: float = 30.0,
    ) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._max_failures, self._alive, self._kill = max_failures, alive, kill
        self._straggle_s = straggle_s
        self._jobs: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._ids, self._numbers = count(1), count(1)
        self._closed = False
        self._hopeless = b""
        self._changed = asyncio.Condition()

    # ---- who asks ----

    async def submit(self, name: str, payload: bytes) -> int:
        """Put a job up; its id. Raises ValueError when a job of this name has not ended yet."""
        async with self._changed:
            if any(job.name == name and not job.ended for job in self._jobs.values()):
                raise ValueError(f"{name}: a job of this name is running already; wait for it or cancel it.")
            job = _Job(next(self._ids), name, payload)
            self._jobs[job.id] = job
            if self._closed:
                job.tell("cancelled")
            elif self._hopeless:
                job.tell("failed", self._hopeless)
            else:
                self._waiting.append(job)
            self._changed.notify_all()
            return job.id

    async def next_event(self, job_id: int) -> Event:
        """The next word of a job, as soon as there is one; after its last one, `cancelled`."""
        job = self._jobs.get(job_id)
        if job is None:
            return {"kind": "cancelled", "attempts": 0, "data": b""}
        event = await job.events.get()
        if event["kind"] != "report":
            self._jobs.pop(job_id, None)
        return event

    async def cancel(self, name: str) -> None:
        """End the job of this name for who asked, and stop it where it runs."""
        await self._cancel(lambda job: job.name == name)

    async def cancel_id(self, job_id: int) -> None:
        """The same, for a job whose asker listens no more."""
        await self._cancel(lambda job: job.id == job_id)
        self._jobs.pop(job_id, None)

    async def status(self) -> Status:
        """Which slots are up now."""
        return {
            "up": [number for number, slot in enumerate(self._slots) if slot.up],
            "lost": {number: slot.lost for number, slot in enumerate(self._slots) if slot.lost},
        }

    async def settled(self) -> Status:
        """The status, once every slot is up or given up."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or all(s.up or s.lost for s in self._slots))
        return await self.status()

    async def lose(self, slot_number: int, reason: str, error: bytes) -> None:
        """Give a slot up: its job goes to the others. Without any slot left, every job ends with `error`."""
        async with self._changed:
            slot = self._slots[slot_number]
            slot.lost = reason
            self._retire(slot)
            if all(s.lost for s in self._slots):
                self._hopeless = error
                for job in self._waiting:
                    job.tell("failed", error)
                self._waiting.clear()
            self._changed.notify_all()

    async def close(self) -> list[int]:
        """Cancel every job; the slots go home. Those that have a home to go to."""
        async with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.tell("cancelled")
            self._waiting.clear()
            self._changed.notify_all()
            return [number for number, slot in enumerate(self._slots) if slot.members]

    async def kill_all(self) -> None:
        """End the processes of the slots that did not go home."""
        for slot in self._slots:
            for member in slot.members.values():
                self._kill(member)

    # ---- who works ----

    async def join(self, slot_number: int, group: str, rank: int, world: int, member: Any) -> None:
        """A worker is up. The first of a new group tells that the group before it is dead."""
        async with self._changed:
            slot = self._slots[slot_number]
            if slot.group != group:
                self._retire(slot)
                slot.group = group
            slot.members[rank] = member
            if len(slot.members) == world:
                slot.up, slot.lost, self._hopeless = True, "", b""
            self._changed.notify_all()

    async def take(self, slot_number: int, group: str, rank: int, after: int) -> Assignment | None:
        """The slot's next job after assignment `after`; None when the pool is closed or the group is given up."""
        slot = self._slots[slot_number]

        def ready() -> bool:
            if self._closed or slot.group != group:
                return True
            if slot.job is not None:
                return slot.number > after
            return rank == 0 and bool(self._waiting)

        async with self._changed:
            await self._changed.wait_for(ready)
            if self._closed or slot.group != group:
                return None
            if slot.job is None:
                slot.job, slot.number, slot.outcomes = self._waiting.popleft(), next(self._numbers), {}
                slot.job.attempts += 1
                self._changed.notify_all()
            return {"number": slot.number, "name": slot.job.name, "payload": slot.job.payload}

    async def report(self, slot_number: int, number: int, data: bytes) -> None:
        """Pass a report on; a report of an assignment that is over is dropped."""
        slot = self._slots[slot_number]
        if slot.job is not None and slot.number == number:
            slot.job.tell("report", data)

    async def cancelled(self, slot_number: int, group: str, after: int) -> int:
        """The number of the slot's assignment as soon as it is cancelled (one after `after`); 0: no more will come."""
        slot = self._slots[slot_number]

        def ready() -> bool:
            if self._closed or slot.group != group:
                return True
            return slot.job is not None and slot.job.ended and slot.number > after

        async with self._changed:
            await self._changed.wait_for(ready)
            running = slot.group == group and slot.job is not None and slot.number > after
            return slot.number if running else 0

    async def finish(self, slot_number: int, number: int, rank: int, error: bytes, broken: bool) -> bool:
        """A rank is through with its job; whether its group can go on, answered when every rank is through.

        `broken`: the rank cannot tell in what state its group is. If a peer is dead, that is the cause, and the job is
        given out again; otherwise the job ends with this error. Either way the group must be started anew.
        """
        slot = self._slots[slot_number]
        if slot.number != number or slot.job is None:
            return False
        if broken:
            await self._break(slot, number, rank, error)
            return False
        async with self._changed:
            slot.outcomes[rank] = error
            if len(slot.outcomes) == len(slot.members):
                self._end(slot)
            self._changed.notify_all()
        return await self._all_through(slot, number)

    async def _all_through(self, slot: _Slot, number: int) -> bool:
        """Whether the ranks of this assignment all came through; one that failed is not kept waiting for ever."""

        def over() -> bool:
            return slot.number != number or slot.job is None

        group = slot.group
        async with self._changed:
            await self._changed.wait_for(lambda: over() or any(slot.outcomes.values()))
            try:
                await asyncio.wait_for(self._changed.wait_for(over), self._straggle_s)
            except TimeoutError:
                self._end(slot)
                self._retire(slot)
                self._changed.notify_all()
        return slot.group == group

    # ---- what becomes of a job ----

    async def _cancel(self, which: Callable[[_Job], bool]) -> None:
        async with self._changed:
            for job in filter(which, list(self._jobs.values())):
                job.tell("cancelled")
            self._waiting = deque(job for job in self._waiting if not job.ended)
            self._changed.notify_all()

    async def _break(self, slot: _Slot, number: int, rank: int, error: bytes) -> None:
        peers = [member for other, member in slot.members.items() if other != rank]
        all_alive = all(await asyncio.gather(*map(self._alive, peers)))
        async with self._changed:
            if slot.number == number and slot.job is not None:
                if all_alive:
                    slot.outcomes = {rank: error}
                    self._end(slot)
                self._retire(slot)
                self._changed.notify_all()

    def _end(self, slot: _Slot) -> None:
        """The job is over: with the error of its lowest rank, or well."""
        if slot.job is not None:
            errors = [slot.outcomes[rank] for rank in sorted(slot.outcomes) if slot.outcomes[rank]]
            slot.job.tell("failed" if errors else "finished", errors[0] if errors else b"")
            slot.job = None

    def _retire(self, slot: _Slot) -> None:
        """The slot's group is dead: its job waits again, before all others, unless it was tried often enough."""
        job, slot.job = slot.job, None
        slot.group, slot.members, slot.up = "", {}, False
        if job is None or job.ended:
            return
        if job.attempts > self._max_failures:
            job.tell("died")
        else:
            self._waiting.appendleft(job)
