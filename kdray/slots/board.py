"""The board: it assigns waiting jobs to slots, and passes the reports of each job to the process that submitted it.

It is one asyncio actor on the driver's node. It alone decides whether a job is assigned again, fails, or has ended.
Jobs, reports and errors pass through it as bytes, and its answers are plain dictionaries. Its process therefore imports
neither torch nor the code of a job, and starts quickly. `client`, `ray_slots` and `serving` call it.

A slot may run several jobs with the same `fuse_key` as one. Each of them keeps its own submitter, its own attempts and
its own end. In its last attempt a job runs alone, so that a job that kills its worker fails only itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import ray

from kdray.slots.board_state import (
    FUSE_WAIT_S,
    Assignment,
    AssignmentState,
    Event,
    JobState,
    Member,
    SentInstructions,
    SlotState,
    Status,
    WaitingJobs,
)
from kdray.slots.worker_processes import is_alive, kill_worker


class Board:
    """The state of all jobs and slots. `ray_slots` makes one Ray actor of this class for each pool."""

    def __init__(
        self,
        max_failures: int,
        progress_timeout_s: float = 600.0,
        check_alive: Callable[[Member], Awaitable[bool]] = is_alive,
        kill: Callable[[Member], None] = kill_worker,
        straggler_timeout_s: float = 30.0,
        fused: int = 1,
        fuse_wait_s: float = FUSE_WAIT_S,
    ) -> None:
        self._max_failures, self._check_alive, self._kill = max_failures, check_alive, kill
        self._progress_timeout_s, self._straggler_timeout_s = progress_timeout_s, straggler_timeout_s
        self._fused, self._fuse_wait_s = fused, fuse_wait_s
        self._slots: list[SlotState] = []
        self._jobs: dict[int, JobState] = {}
        """Job id -> a job whose events are still read."""
        self._waiting = WaitingJobs(fused)
        self._job_ids, self._assignment_numbers = count(1), count(1)
        self._closed = False
        self._no_slot_error = b""  # the pickled error of every job while all slots are given up, else empty
        self._refusal = b""  # see Status
        self._has_settled = False  # `wait_until_settled` has not returned yet
        self._watcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()

    # ---- calls from the driver ----

    async def submit_job(self, name: str, payload: bytes, fuse_key: str = "") -> int:
        """Queue a job and return its id. Raises ValueError while another job of this name has not ended."""
        async with self._changed:
            if any(job.name == name and not job.ended for job in self._jobs.values()):
                raise ValueError(f"{name}: a job of this name is running already; wait for it or cancel it.")
            job = JobState(next(self._job_ids), name, payload, fuse_key)
            self._jobs[job.id] = job
            if self._closed:
                job.add_event("cancelled")
            elif error := self._refusal or self._no_slot_error:
                job.add_event("failed", error)
            else:
                self._waiting.add(job)
            self._changed.notify_all()
            return job.id

    async def next_event(self, job_id: int) -> Event:
        """Wait for the next event of a job and return it; `cancelled` if the job's last event was returned before."""
        job = self._jobs.get(job_id)
        if job is None:
            return {"kind": "cancelled", "attempts": 0, "host": "", "data": b""}
        event = await job.events.get()
        if event["kind"] != "report":
            self._jobs.pop(job_id, None)
        return event

    async def cancel_job(self, name: str, instruction: int) -> None:
        """End the job of this name for its submitter, and send this instruction to its workers."""
        await self._cancel(lambda job: job.name == name, instruction)

    async def discard_job(self, job_id: int, instruction: int) -> None:
        """Cancel a job whose events nobody will read: send this instruction to its workers, and delete its events."""
        await self._cancel(lambda job: job.id == job_id, instruction)
        self._jobs.pop(job_id, None)

    async def drain_node(self, node: str, instruction: int) -> list[int]:
        """Move the slots off a node that will be taken away, and return these slots.

        Their jobs receive this instruction, and are then assigned again.
        """
        async with self._changed:
            leaving = [number for number, slot in enumerate(self._slots) if not slot.draining and slot.is_on([node])]
            for slot in (self._slots[number] for number in leaving):
                slot.draining = True
                if slot.assignment is None:
                    self._kill_group(slot)  # Ray Train then starts a new group, on another node
                else:
                    slot.assignment.send(instruction)
            self._changed.notify_all()
        return leaving

    async def status(self) -> Status:
        """The current state of all slots."""
        return {
            "up": [number for number, slot in enumerate(self._slots) if slot.up],
            "given_up": {number: slot.give_up_reason for number, slot in enumerate(self._slots) if slot.give_up_reason},
            "refusal": self._refusal,
        }

    async def wait_until_settled(self, enough: int) -> Status:
        """Wait until `enough` slots are up, or until each slot is up or given up; return the status."""

        def is_settled() -> bool:
            up = sum(slot.up for slot in self._slots)
            return up >= enough or all(slot.up or slot.give_up_reason for slot in self._slots)

        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or bool(self._refusal) or is_settled())
            self._has_settled = True
        return await self.status()

    async def add_slot(self) -> int:
        """Add a slot and return its number."""
        async with self._changed:
            self._slots.append(SlotState())
            self._changed.notify_all()
            return len(self._slots) - 1

    async def placement_group(self, slot_number: int) -> Any:
        """The placement group of the slot's last worker group; None if no worker has joined yet."""
        return self._slots[slot_number].placement_group

    async def retire_nodes(self, nodes: list[str]) -> None:
        """Assign the jobs of the slots on dead nodes again, at once: a new worker group may take long to start."""
        async with self._changed:
            for slot in self._slots:
                if slot.is_on(nodes):
                    self._retire_group(slot)
            self._changed.notify_all()

    async def give_up_slot(self, slot_number: int, reason: str, error: bytes) -> None:
        """Give a slot up: another slot gets its job. When every slot is given up, every job fails with `error`."""
        async with self._changed:
            slot = self._slots[slot_number]
            slot.give_up_reason = reason
            self._retire_group(slot)
            if all(each.give_up_reason for each in self._slots):
                self._no_slot_error = error
                self._waiting.fail(error)
            self._changed.notify_all()

    async def close(self, instruction: int) -> list[int]:
        """Cancel every job, and end every worker group. Return the slots whose groups will now end by themselves."""
        async with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.add_event("cancelled")
                job.send(instruction)
            # Workers may still run a job that was discarded, which is no longer in `_jobs`.
            for assignment in filter(None, (slot.assignment for slot in self._slots)):
                assignment.send(instruction)
            self._waiting.clear()
            self._changed.notify_all()
            return [number for number, slot in enumerate(self._slots) if slot.members]

    async def kill_groups(self) -> None:
        """Kill the worker groups that did not end by themselves after `close`."""
        for slot in self._slots:
            self._kill_group(slot)

    async def kill_controllers(self) -> None:
        """Kill Ray Train's controllers: one that waits for resources would continue after the driver has left Ray."""
        for slot in self._slots:
            if slot.controller:
                ray.kill(slot.controller)

    async def register_controller(self, slot_number: int, controller: Any) -> None:
        """Store the controller that starts the slot's worker groups; kill it if the board is closed already."""
        self._slots[slot_number].controller = controller
        if self._closed:
            ray.kill(controller)

    # ---- calls from the workers ----

    async def refuse_slot(self, slot_number: int, reason: str, error: bytes, instruction: int) -> None:
        """Give up a slot whose worker must not run jobs, because its storage or its code is not the driver's.

        If the slots have not settled before, every job fails with `error`, and the running ones receive this
        instruction. After that only this slot is given up, and the other slots continue.
        """
        await self.give_up_slot(slot_number, reason, error)
        async with self._changed:
            if not self._has_settled:
                self._refusal = error
                for job in self._jobs.values():
                    job.add_event("failed", error)
                    job.send(instruction)
                self._waiting.clear()
            self._changed.notify_all()

    async def join_worker(self, slot_number: int, group: str, rank: int, world: int, member: Member) -> None:
        """Add a worker to the slot's group. The first worker of a new group shows that the previous group is dead."""
        async with self._changed:
            slot = self._slots[slot_number]
            if slot.group != group:
                self._retire_group(slot)
                slot.group = group
            slot.members[rank], slot.placement_group = member, member["placement_group"]
            self._watcher = self._watcher or asyncio.create_task(self._kill_hung_groups())
            if len(slot.members) == world:
                # A slot that was given up because it started late is used from now on.
                slot.up, slot.give_up_reason, self._no_slot_error = True, "", b""
            self._changed.notify_all()

    async def next_assignment(self, slot_number: int, group: str, rank: int, after: int) -> Assignment | None:
        """Wait for the slot's next assignment after number `after`, and return it.

        None: the board is closed, or another group serves the slot.
        """
        slot = self._slots[slot_number]

        def is_ready() -> bool:
            if self._closed or slot.group != group:
                return True
            if slot.assignment is not None:
                return slot.assignment.number > after
            # Rank 0 takes jobs from the queue for all ranks.
            return rank == 0 and bool(self._waiting) and not slot.draining

        async with self._changed:
            while True:
                await self._changed.wait_for(is_ready)
                if not self._may_grow(slot, group):
                    break
                # While this slot waited, another one may have taken the jobs.
                if not await self._new_job_comes() and is_ready():
                    break
            if self._closed or slot.group != group:
                return None
            assignment = slot.assignment
            if assignment is None:
                assignment = slot.assign(self._waiting.take(), next(self._assignment_numbers))
                self._changed.notify_all()
            return assignment.message()

    async def pass_report(self, slot_number: int, assignment_number: int, data: bytes, place: int = 0) -> None:
        """Queue a report for the submitter of the job in this place; ignore one of an assignment that is over."""
        if assignment := self._slots[slot_number].assignment_with(assignment_number):
            assignment.note_progress()
            if place in assignment.jobs:
                assignment.jobs[place].add_event("report", data)

    async def end_job(self, slot_number: int, assignment_number: int, place: int, error: bytes) -> None:
        """End one of the jobs that run as one, with its pickled error, or as finished if that is empty."""
        slot = self._slots[slot_number]
        if assignment := slot.assignment_with(assignment_number):
            assignment.note_progress()
            assignment.end_job(place, error, slot.draining)

    async def report_progress(self, slot_number: int, assignment_number: int) -> None:
        """Note that a rank has made a step of its job."""
        if assignment := self._slots[slot_number].assignment_with(assignment_number):
            assignment.note_progress()

    async def next_instructions(self, slot_number: int, group: str, known: SentInstructions) -> SentInstructions | None:
        """Wait for an instruction to the slot's workers that is newer than `known`, and return all of them.

        None: no more will come, because the board is closed or another group serves the slot.
        """
        slot = self._slots[slot_number]

        def newer() -> SentInstructions | None:
            return slot.instructions_after(known) if slot.group == group else None

        async with self._changed:
            await self._changed.wait_for(lambda: newer() is not None or self._closed or slot.group != group)
            return newer()

    async def finish_rank(
        self, slot_number: int, assignment_number: int, rank: int, error: bytes, broken: bool
    ) -> bool:
        """Note that a rank has finished its job, wait for the other ranks, and return whether the group can continue.

        `error` is the rank's pickled error, or empty. `broken`: the rank does not know the state of its group. If
        another rank is dead, then its death is the cause, and the job is assigned again. Otherwise the job ends with
        this error. In both cases the group must be restarted.
        """
        slot = self._slots[slot_number]
        assignment = slot.assignment_with(assignment_number)
        if assignment is None:
            return False
        if broken:
            await self._retire_broken_group(slot, assignment, rank, error)
            return False
        group = slot.group
        async with self._changed:
            assignment.errors[rank] = error
            if len(assignment.errors) == len(slot.members):
                self._end_assignment(slot)
                if slot.draining:
                    self._retire_group(slot)
            self._changed.notify_all()
        await self._wait_for_all_ranks(slot, assignment)
        return slot.group == group

    # ---- jobs and groups ----

    def _may_grow(self, slot: SlotState, group: str) -> bool:
        """Whether a slot that could start now may get one more job to run with the others."""
        if self._closed or slot.group != group or slot.assignment is not None or not self._waiting.may_grow():
            return False
        # The search has a place for each job that can run at a time; while all are taken, no further job comes.
        return sum(not job.ended for job in self._jobs.values()) < self._fused * sum(each.up for each in self._slots)

    async def _new_job_comes(self) -> bool:
        """Wait for a new job. Returns False if none comes within the limit."""
        newest = max(self._jobs, default=0)
        try:
            changed = self._changed.wait_for(lambda: self._closed or max(self._jobs, default=0) > newest)
            await asyncio.wait_for(changed, self._fuse_wait_s)
        except TimeoutError:
            return False
        return True

    async def _wait_for_all_ranks(self, slot: SlotState, assignment: AssignmentState) -> None:
        """Return when every rank has finished this assignment; if a rank has failed, retire the group after a time."""

        def is_over() -> bool:
            return slot.assignment is not assignment

        async with self._changed:
            await self._changed.wait_for(lambda: is_over() or any(assignment.errors.values()))
            # The other ranks may wait for ever in a collective call for the rank that failed.
            try:
                await asyncio.wait_for(self._changed.wait_for(is_over), self._straggler_timeout_s)
            except TimeoutError:
                self._end_assignment(slot)
                self._retire_group(slot)
                self._changed.notify_all()

    async def _cancel(self, matches: Callable[[JobState], bool], instruction: int) -> None:
        async with self._changed:
            for job in filter(matches, list(self._jobs.values())):
                job.add_event("cancelled")
                job.send(instruction)
            self._waiting.remove_ended()
            self._changed.notify_all()

    async def _retire_broken_group(self, slot: SlotState, assignment: AssignmentState, rank: int, error: bytes) -> None:
        peers = [member for other, member in slot.members.items() if other != rank]
        all_alive = all(await asyncio.gather(*map(self._check_alive, peers)))
        async with self._changed:
            if slot.assignment is assignment:
                if all_alive:
                    assignment.errors = {rank: error}
                    self._end_assignment(slot)
                self._retire_group(slot)
                self._changed.notify_all()

    def _end_assignment(self, slot: SlotState) -> None:
        """End the slot's jobs; those that must be assigned again wait, first in the queue."""
        if slot.assignment is not None:
            slot.assignment.end_jobs(slot.draining)
            self._waiting.add_again(slot.assignment.waiting_again)
            slot.assignment = None

    def _retire_group(self, slot: SlotState) -> None:
        """Remove the slot's dead group. Its jobs wait again, first in the queue, or have died in their last attempt."""
        assignment, slot.assignment = slot.assignment, None
        was_draining = slot.draining
        slot.group, slot.members, slot.up, slot.draining = "", {}, False, False
        if assignment is None:
            return
        assignment.lose_workers(was_draining, self._max_failures)
        self._waiting.add_again(assignment.waiting_again)

    def _kill_group(self, slot: SlotState) -> None:
        for member in slot.members.values():
            self._kill(member)

    async def _kill_hung_groups(self) -> None:
        """Kill each group whose jobs make no step for `progress_timeout_s`. Ray Train then starts a new group."""
        while not self._closed:
            await asyncio.sleep(min(5.0, self._progress_timeout_s / 4))
            for slot in self._slots:
                if slot.assignment is not None and slot.assignment.has_hung(self._progress_timeout_s):
                    self._kill_group(slot)
