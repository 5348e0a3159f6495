"""The board: jobs waiting for a slot, the job each slot is on, and the reports of each job on their way to who asked.

One asyncio actor on the driver's node, which alone decides what becomes of a job. Jobs, reports and errors pass through
as bytes, and what it answers is built of plain dicts: its process then needs neither torch nor kdray, and is up
in a moment. Who calls it: `ray_slots` (asking), `serving` (working).
"""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdray.slots.board_state import Assignment, Event, Member, Status, _Job, _Slot


async def is_alive(member: Member) -> bool:
    """Whether a worker still answers."""
    try:
        await asyncio.wait_for(member["actor"].__ray_ready__.remote(), 10)
    except (ray.exceptions.RayError, TimeoutError):
        return False
    return True


def kill_worker(member: Member) -> None:
    """End a worker's process, whatever it is doing; one that is stopped hears nothing but a signal."""
    ray.kill(member["actor"])
    there = NodeAffinitySchedulingStrategy(member["node"], soft=False)
    ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_end_process).remote(member["pid"])


def _end_process(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Board:
    """See the module."""

    def __init__(
        self,
        max_failures: int,
        progress_s: float = 600.0,
        alive: Callable[[Any], Awaitable[bool]] = is_alive,
        kill: Callable[[Any], None] = kill_worker,
        straggle_s: float = 30.0,
    ) -> None:
        self._slots: list[_Slot] = []
        self._max_failures, self._alive, self._kill = max_failures, alive, kill
        self._progress_s, self._straggle_s = progress_s, straggle_s
        self._watcher: asyncio.Task[None] | None = None
        self._jobs: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._ids, self._numbers = count(1), count(1)
        self._closed = False
        self._hopeless = b""
        """Why there is no slot at all, for now: a pickled error."""
        self._refused = b""
        self._begun = False
        """Whether the slots have settled once."""
        self._changed = asyncio.Condition()

    # ---- who asks ----

    async def submit_job(self, name: str, payload: bytes) -> int:
        """Put a job up; its id. Raises ValueError when a job of this name has not ended yet."""
        async with self._changed:
            if any(job.name == name and not job.ended for job in self._jobs.values()):
                raise ValueError(f"{name}: a job of this name is running already; wait for it or cancel it.")
            job = _Job(next(self._ids), name, payload)
            self._jobs[job.id] = job
            if self._closed:
                job.tell("cancelled")
            elif why := self._refused or self._hopeless:
                job.tell("failed", why)
            else:
                self._waiting.append(job)
            self._changed.notify_all()
            return job.id

    async def next_event(self, job_id: int) -> Event:
        """The next word of a job, as soon as there is one; after its last one, `cancelled`."""
        job = self._jobs.get(job_id)
        if job is None:
            return {"kind": "cancelled", "attempts": 0, "host": "", "data": b""}
        event = await job.events.get()
        if event["kind"] != "report":
            self._jobs.pop(job_id, None)
        return event

    async def cancel_job(self, name: str, ask: int) -> None:
        """End the job of this name for who asked, and tell its workers this."""
        await self._cancel(lambda job: job.name == name, ask)

    async def cancel_id(self, job_id: int, ask: int) -> None:
        """The same, for a job whose asker listens no more."""
        await self._cancel(lambda job: job.id == job_id, ask)
        self._jobs.pop(job_id, None)

    async def drain_node(self, node: str, ask: int) -> list[int]:
        """A node is going to be taken away: its slots leave it, their jobs are told this and given out again.

        Which slots these are.
        """
        async with self._changed:
            leaving = [
                number
                for number, slot in enumerate(self._slots)
                if not slot.leaving and any(member["node"] == node for member in slot.members.values())
            ]
            for slot in (self._slots[number] for number in leaving):
                slot.leaving = True
                if slot.job is None:
                    self._kill_members(slot)
                else:
                    slot.job.ask = max(slot.job.ask, ask)
            self._changed.notify_all()
        return leaving

    async def status(self) -> Status:
        """Which slots are up now."""
        return {
            "up": [number for number, slot in enumerate(self._slots) if slot.up],
            "lost": {number: slot.lost for number, slot in enumerate(self._slots) if slot.lost},
            "refused": self._refused,
        }

    async def wait_until_settled(self, enough: int) -> Status:
        """The status, once so many slots are up, or each is up or given up."""

        def known() -> bool:
            up = sum(slot.up for slot in self._slots)
            return up >= enough or all(slot.up or slot.lost for slot in self._slots)

        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or bool(self._refused) or known())
            self._begun = True
        return await self.status()

    async def add_slot(self) -> int:
        """One more slot; its number."""
        async with self._changed:
            self._slots.append(_Slot())
            self._changed.notify_all()
            return len(self._slots) - 1

    async def placement_group(self, slot_number: int) -> Any:
        """What the slot's last group of workers had reserved."""
        return self._slots[slot_number].reserved

    async def nodes_died(self, nodes: list[str]) -> None:
        """Nodes are dead: the jobs of their slots go to the others, for a new group may be long in coming."""
        async with self._changed:
            for slot in self._slots:
                if any(member["node"] in nodes for member in slot.members.values()):
                    self._retire(slot)
            self._changed.notify_all()

    async def give_up_slot(self, slot_number: int, reason: str, error: bytes) -> None:
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

    async def refuse_slot(self, slot_number: int, reason: str, error: bytes, ask: int) -> None:
        """A worker must do no jobs. Before the slots have settled once, none is done at all: what runs is told this.

        Later the other slots go on.
        """
        await self.give_up_slot(slot_number, reason, error)
        async with self._changed:
            if not self._begun:
                self._refused = error
                for job in self._jobs.values():
                    job.tell("failed", error)
                    job.ask = max(job.ask, ask)
                self._waiting.clear()
            self._changed.notify_all()

    async def close(self, ask: int) -> list[int]:
        """Cancel every job; the slots go home. Those that have a home to go to."""
        async with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.tell("cancelled")
            for job in [*self._jobs.values(), *(slot.job for slot in self._slots if slot.job)]:
                job.ask = max(job.ask, ask)
            self._waiting.clear()
            self._changed.notify_all()
            return [number for number, slot in enumerate(self._slots) if slot.members]

    async def kill_all(self) -> None:
        """End the processes of the slots that did not go home."""
        for slot in self._slots:
            self._kill_members(slot)

    async def end_controllers(self) -> None:
        """End what starts the slots: one that waits for room would do so after the cluster was left."""
        for slot in self._slots:
            if slot.controller:
                ray.kill(slot.controller)

    # ---- who works ----

    async def register_controller(self, slot_number: int, controller: Any) -> None:
        """A slot is being started by this controller; for nothing, when the board is closed."""
        self._slots[slot_number].controller = controller
        if self._closed:
            ray.kill(controller)

    async def join_worker(self, slot_number: int, group: str, rank: int, world: int, member: Any) -> None:
        """A worker is up. The first of a new group tells that the group before it is dead."""
        async with self._changed:
            slot = self._slots[slot_number]
            if slot.group != group:
                self._retire(slot)
                slot.group = group
            slot.members[rank], slot.reserved = member, member["reserved"]
            self._watcher = self._watcher or asyncio.create_task(self._watch())
            if len(slot.members) == world:
                slot.up, slot.lost, self._hopeless = True, "", b""
            self._changed.notify_all()

    async def take_job(self, slot_number: int, group: str, rank: int, after: int) -> Assignment | None:
        """The slot's next job after assignment `after`; None when the pool is closed or the group is given up."""
        slot = self._slots[slot_number]

        def ready() -> bool:
            if self._closed or slot.group != group:
                return True
            if slot.job is not None:
                return slot.number > after
            return rank == 0 and bool(self._waiting) and not slot.leaving

        async with self._changed:
            await self._changed.wait_for(ready)
            if self._closed or slot.group != group:
                return None
            if slot.job is None:
                slot.job, slot.number, slot.outcomes = self._waiting.popleft(), next(self._numbers), {}
                slot.job.attempts += 1
                slot.job.host = ", ".join(dict.fromkeys(slot.members[rank]["host"] for rank in sorted(slot.members)))
                slot.heard = asyncio.get_running_loop().time()
                self._changed.notify_all()
            return {"number": slot.number, "name": slot.job.name, "payload": slot.job.payload}

    async def pass_report(self, slot_number: int, number: int, data: bytes) -> None:
        """Pass a report on; a report of an assignment that is over is dropped."""
        slot = self._slots[slot_number]
        if slot.job is not None and slot.number == number:
            slot.heard = asyncio.get_running_loop().time()
            slot.job.tell("report", data)

    async def note_progress(self, slot_number: int, number: int) -> None:
        """A rank got on with its job."""
        slot = self._slots[slot_number]
        if slot.number == number:
            slot.heard = asyncio.get_running_loop().time()

    async def next_instruction(self, slot_number: int, group: str, known: tuple[int, int]) -> tuple[int, int]:
        """What the slot's workers are told as soon as it is something new: assignment and `Ask`; (0, 0): no more."""
        slot = self._slots[slot_number]

        def news() -> tuple[int, int] | None:
            told = (slot.number, slot.job.ask) if slot.group == group and slot.job and slot.job.ask else (0, 0)
            over = self._closed or slot.group != group
            return told if told > known else (0, 0) if over else None

        async with self._changed:
            await self._changed.wait_for(lambda: news() is not None)
            return news() or (0, 0)

    async def finish_rank(self, slot_number: int, number: int, rank: int, error: bytes, broken: bool) -> bool:
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
        group = slot.group
        async with self._changed:
            slot.outcomes[rank] = error
            if len(slot.outcomes) == len(slot.members):
                self._end(slot)
                if slot.leaving:
                    self._retire(slot)
            self._changed.notify_all()
        await self._all_through(slot, number)
        return slot.group == group

    async def _all_through(self, slot: _Slot, number: int) -> None:
        """Return when all ranks of this assignment are through; one that failed is not kept waiting for ever."""

        def over() -> bool:
            return slot.number != number or slot.job is None

        async with self._changed:
            await self._changed.wait_for(lambda: over() or any(slot.outcomes.values()))
            try:
                await asyncio.wait_for(self._changed.wait_for(over), self._straggle_s)
            except TimeoutError:
                self._end(slot)
                self._retire(slot)
                self._changed.notify_all()

    # ---- what becomes of a job ----

    async def _cancel(self, which: Callable[[_Job], bool], ask: int) -> None:
        async with self._changed:
            for job in filter(which, list(self._jobs.values())):
                job.tell("cancelled")
                job.ask = max(job.ask, ask)
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
        """The job is over: with the error of its lowest rank, or well; or it made room, and waits again."""
        if slot.job is None:
            return
        errors = [slot.outcomes[rank] for rank in sorted(slot.outcomes) if slot.outcomes[rank]]
        if slot.leaving and slot.job.ask and not slot.job.ended and not errors:
            slot.job.attempts -= 1  # nobody's fault
            slot.job.ask = 0
            self._waiting.appendleft(slot.job)
        else:
            slot.job.tell("failed" if errors else "finished", errors[0] if errors else b"")
        slot.job = None

    def _retire(self, slot: _Slot) -> None:
        """The slot's group is dead: its job waits again, before all others, unless it was tried often enough."""
        job, slot.job = slot.job, None
        drained = slot.leaving
        slot.group, slot.members, slot.up, slot.leaving = "", {}, False, False
        if job is None or job.ended:
            return
        job.ask = 0
        job.attempts -= drained
        if job.attempts > self._max_failures:
            job.tell("died", job.trouble.encode())
        else:
            self._waiting.appendleft(job)

    def _kill_members(self, slot: _Slot) -> None:
        for member in slot.members.values():
            self._kill(member)

    async def _watch(self) -> None:
        """End the groups whose job does not get on; who restarts them finds the job waiting."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            await asyncio.sleep(min(5.0, self._progress_s / 4))
            for slot in self._slots:
                if slot.job is not None and loop.time() - slot.heard > self._progress_s:
                    slot.job.trouble = f"it made no step for {self._progress_s:g} s"
                    slot.heard = loop.time()
                    self._kill_members(slot)
