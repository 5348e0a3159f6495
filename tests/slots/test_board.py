"""The board alone, without Ray: what happens to jobs when slots join, are given up, break, hang, drain and refuse."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from kdray.slots.board import Board
from kdray.slots.board_state import Assignment, Event, Member, SentInstructions
from kdray.slots.client import BOARD_MODULES
from kdray.slots.job import Instruction

NO_INSTRUCTION = SentInstructions(assignment=0, instructions={})


def run_on_board(scenario: Callable[[Board], Awaitable[None]], slots: int = 1, **options: Any) -> None:
    """Run a scenario on a board whose workers are names. Workers named "dead..." do not answer."""

    async def check_alive(member: Member) -> bool:
        return not member["actor"].startswith("dead")

    async def main() -> None:
        board = Board(**{"max_failures": 1, "check_alive": check_alive} | options)
        for _ in range(slots):
            await board.add_slot()
        await asyncio.wait_for(scenario(board), 20)

    asyncio.run(main())


def make_worker(name: str = "worker", node: str = "node") -> Member:
    return Member(actor=name, node=node, host=f"{node}.local", pid=0, placement_group=None)


async def join_group(board: Board, slot: int, group: str, *workers: Member) -> None:
    """Let a group of these workers join, in rank order; by default one worker."""
    members = workers or (make_worker(),)
    for rank, member in enumerate(members):
        await board.join_worker(slot, group, rank, len(members), member)


async def take_assignment(board: Board, slot: int, group: str, rank: int = 0, after: int = 0) -> Assignment:
    assignment = await board.next_assignment(slot, group, rank, after)
    assert assignment is not None
    return assignment


async def finish(board: Board, slot: int, assignment: Assignment) -> bool:
    """Finish an assignment without an error, in a group of one worker."""
    return await board.finish_rank(slot, assignment["number"], 0, b"", broken=False)


def summary(event: Event) -> tuple[str, int, bytes]:
    return event["kind"], event["attempts"], event["data"]


def test_late_calls_of_a_dead_group_are_ignored() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "old")
        job = await board.submit_job("job", b"work")
        first = await take_assignment(board, 0, "old")
        await join_group(board, 0, "new")
        second = await take_assignment(board, 0, "new")
        await board.pass_report(0, first["number"], b"late")
        assert not await finish(board, 0, first)
        await board.pass_report(0, second["number"], b"new")
        assert await finish(board, 0, second)
        events = [await board.next_event(job) for _ in range(2)]
        assert [summary(event) for event in events] == [("report", 2, b"new"), ("finished", 2, b"")]

    run_on_board(scenario)


def test_the_job_of_a_given_up_slot_is_assigned_again_and_without_any_slot_all_jobs_fail() -> None:
    async def scenario(board: Board) -> None:
        for slot in (0, 1):
            await join_group(board, slot, f"group {slot}")
        job = await board.submit_job("job", b"work")
        await take_assignment(board, 0, "group 0")
        await board.give_up_slot(0, "first reason", b"first error")
        assert (await take_assignment(board, 1, "group 1"))["jobs"][0]["name"] == "job"
        waiting = await board.submit_job("waiting", b"work")
        await board.give_up_slot(1, "second reason", b"second error")
        assert (await board.next_event(job))["kind"] == "died"
        assert summary(await board.next_event(waiting)) == ("failed", 0, b"second error")
        late = await board.submit_job("late", b"work")
        assert (await board.next_event(late))["kind"] == "failed"

    run_on_board(scenario, slots=2)


@pytest.mark.parametrize(("peer", "kind"), [("dead peer", "report"), ("living peer", "failed")])
def test_the_error_of_a_broken_rank_ends_the_job_only_if_its_peers_live(peer: str, kind: str) -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group", make_worker(), make_worker(peer))
        job = await board.submit_job("job", b"work")
        assignment = await take_assignment(board, 0, "group")
        assert not await board.finish_rank(0, assignment["number"], 0, b"connection closed", broken=True)
        await board.join_worker(0, "next", 0, 2, make_worker())
        if kind == "report":
            again = await take_assignment(board, 0, "next")
            await board.pass_report(0, again["number"], b"")
        assert (await board.next_event(job))["kind"] == kind

    run_on_board(scenario)


def test_when_one_rank_fails_the_other_ranks_are_waited_for_only_for_a_time() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group", make_worker(), make_worker())
        job = await board.submit_job("job", b"work")
        assignment = await take_assignment(board, 0, "group")
        assert not await board.finish_rank(0, assignment["number"], 1, b"error of rank 1", broken=False)
        assert summary(await board.next_event(job)) == ("failed", 1, b"error of rank 1")

    run_on_board(scenario, straggler_timeout_s=0.05)


def test_an_event_names_the_machines_of_the_slot_in_rank_order() -> None:
    async def scenario(board: Board) -> None:
        for rank, node in ((1, "second"), (0, "first"), (2, "second")):
            await board.join_worker(0, "group", rank, 3, make_worker(node=node))
        job = await board.submit_job("job", b"work")
        assignment = await take_assignment(board, 0, "group")
        await board.pass_report(0, assignment["number"], b"")
        assert (await board.next_event(job))["host"] == "first.local, second.local"

    run_on_board(scenario)


def test_a_job_ends_when_its_last_rank_has_finished() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group", make_worker(), make_worker())
        await board.submit_job("job", b"work")
        await board.submit_job("next", b"work")
        of_rank_0, of_rank_1 = [await take_assignment(board, 0, "group", rank) for rank in (0, 1)]
        assert of_rank_0 == of_rank_1
        number = of_rank_0["number"]
        first = asyncio.create_task(board.finish_rank(0, number, 0, b"", broken=False))
        await asyncio.sleep(0)
        assert not first.done()
        assert await board.finish_rank(0, number, 1, b"", broken=False)
        assert await first
        assert (await take_assignment(board, 0, "group", after=number))["jobs"][0]["name"] == "next"

    run_on_board(scenario)


def test_a_closed_board_ends_every_waiting_call_and_cancels_new_jobs() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group")
        assignment = asyncio.create_task(board.next_assignment(0, "group", 0, 0))
        instruction = asyncio.create_task(board.next_instructions(0, "group", NO_INSTRUCTION))
        await asyncio.sleep(0)
        await board.close(Instruction.SUSPEND)
        assert await assignment is None
        assert await instruction is None
        assert (await board.next_event(await board.submit_job("late", b"")))["kind"] == "cancelled"

    run_on_board(scenario)


def test_each_instruction_is_returned_once() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group")
        job = await board.submit_job("job", b"work")
        number = (await take_assignment(board, 0, "group"))["number"]
        await board.discard_job(job, Instruction.SUSPEND)
        suspend = await board.next_instructions(0, "group", NO_INSTRUCTION)
        assert suspend == {"assignment": number, "instructions": {0: Instruction.SUSPEND}}
        following = asyncio.create_task(board.next_instructions(0, "group", suspend))
        await asyncio.sleep(0)
        assert not following.done()
        await board.close(Instruction.END)
        assert await following == {"assignment": number, "instructions": {0: Instruction.END}}

    run_on_board(scenario)


def test_the_job_of_a_drained_slot_is_suspended_and_assigned_again_without_counting_an_attempt() -> None:
    killed: list[str] = []

    async def scenario(board: Board) -> None:
        for slot, node in enumerate(("drained", "drained", "staying")):
            await join_group(board, slot, f"group {slot}", make_worker(f"worker {slot}", node))
        job = await board.submit_job("job", b"work")
        assignment = await take_assignment(board, 0, "group 0")
        assert await board.drain_node("drained", Instruction.SUSPEND) == [0, 1]
        assert killed == ["worker 1"]  # it had no job
        assert await board.drain_node("drained", Instruction.SUSPEND) == []
        assert await board.next_instructions(0, "group 0", NO_INSTRUCTION) == {
            "assignment": assignment["number"],
            "instructions": {0: Instruction.SUSPEND},
        }
        assert not await finish(board, 0, assignment)
        assert await finish(board, 2, await take_assignment(board, 2, "group 2"))
        assert summary(await board.next_event(job)) == ("finished", 1, b"")

    run_on_board(scenario, slots=3, kill=lambda member: killed.append(member["actor"]))


def test_a_job_that_makes_no_step_has_its_worker_killed_and_dies_in_its_last_attempt() -> None:
    killed: list[str] = []

    async def scenario(board: Board) -> None:
        job = await board.submit_job("job", b"work")
        for group in ("first", "second"):
            await join_group(board, 0, group, make_worker(group))
            assignment = await take_assignment(board, 0, group)
            for _ in range(10):
                await board.report_progress(0, assignment["number"])
                await asyncio.sleep(0.02)
            assert group not in killed
            while group not in killed:
                await asyncio.sleep(0.01)
        await join_group(board, 0, "third")
        assert summary(await board.next_event(job)) == ("died", 2, b"it made no step for 0.1 s")

    run_on_board(scenario, progress_timeout_s=0.1, kill=lambda member: killed.append(member["actor"]))


def test_a_job_that_hung_once_and_then_dies_otherwise_is_not_said_to_hang() -> None:
    killed: list[str] = []

    async def scenario(board: Board) -> None:
        job = await board.submit_job("job", b"work")
        await join_group(board, 0, "first", make_worker("first"))
        await take_assignment(board, 0, "first")
        while "first" not in killed:
            await asyncio.sleep(0.01)
        await join_group(board, 0, "second", make_worker("second"))
        await take_assignment(board, 0, "second")
        await join_group(board, 0, "third")  # the second group died by itself
        assert summary(await board.next_event(job)) == ("died", 2, b"")

    run_on_board(scenario, progress_timeout_s=0.2, kill=lambda member: killed.append(member["actor"]))


def test_the_job_of_a_dead_node_is_assigned_to_a_slot_on_another_node_at_once() -> None:
    async def scenario(board: Board) -> None:
        for slot, node in enumerate(("dead", "alive")):
            await join_group(board, slot, f"group {slot}", make_worker(node=node))
        job = await board.submit_job("job", b"work")
        await take_assignment(board, 0, "group 0")
        await board.retire_nodes(["dead"])
        assert await finish(board, 1, await take_assignment(board, 1, "group 1"))
        assert summary(await board.next_event(job)) == ("finished", 2, b"")
        assert (await board.status())["up"] == [1]

    run_on_board(scenario, slots=2)


def test_the_slots_have_settled_when_enough_are_up_or_each_is_up_or_given_up() -> None:
    async def scenario(board: Board) -> None:
        settling = asyncio.create_task(board.wait_until_settled(2))
        await join_group(board, 0, "group 0")
        await asyncio.sleep(0)
        assert not settling.done()
        await board.add_slot()
        await join_group(board, 3, "group 3")
        assert (await settling)["up"] == [0, 3]
        for slot in (1, 2):
            await board.give_up_slot(slot, "no room", b"")
        assert set((await board.wait_until_settled(9))["given_up"]) == {1, 2}

    run_on_board(scenario, slots=3)


def test_a_refusal_before_the_slots_have_settled_ends_every_job() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group 0")
        running = await board.submit_job("running", b"work")
        assignment = await take_assignment(board, 0, "group 0")
        waiting = await board.submit_job("waiting", b"work")
        await board.refuse_slot(1, "another folder", b"error", Instruction.SUSPEND)
        assert await board.next_instructions(0, "group 0", NO_INSTRUCTION) == {
            "assignment": assignment["number"],
            "instructions": {0: Instruction.SUSPEND},
        }
        late = await board.submit_job("late", b"work")
        for job, attempts in ((running, 1), (waiting, 0), (late, 0)):
            assert summary(await board.next_event(job)) == ("failed", attempts, b"error")
        assert (await board.wait_until_settled(2))["refusal"] == b"error"

    run_on_board(scenario, slots=2)


def test_a_refusal_by_a_machine_that_joins_late_gives_up_only_its_slot() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group 0")
        await board.wait_until_settled(1)
        job = await board.submit_job("job", b"work")
        await board.refuse_slot(1, "another folder", b"error", Instruction.SUSPEND)
        assert await finish(board, 0, await take_assignment(board, 0, "group 0"))
        assert (await board.next_event(job))["kind"] == "finished"
        assert (await board.status())["given_up"] == {1: "another folder"}

    run_on_board(scenario, slots=2)


# ---- several jobs as one ----


async def submit(board: Board, *names: str) -> list[int]:
    """Submit jobs whose key is the first letter of their name."""
    return [await board.submit_job(name, b"work", fuse_key=name[0]) for name in names]


def names_in(assignment: Assignment) -> list[str]:
    return [job["name"] for job in assignment["jobs"]]


def test_waiting_jobs_with_the_key_of_the_first_one_are_assigned_with_it() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group")
        await submit(board, "a1", "b1", "a2", "a3", "b2", "a4")
        await board.submit_job("alone", b"work")
        await board.submit_job("alone, too", b"work")
        assigned, number = [], 0
        for _ in range(5):
            assignment = await take_assignment(board, 0, "group", after=number)
            assigned.append(names_in(assignment))
            number = assignment["number"]
            assert await finish(board, 0, assignment)
        assert assigned == [["a1", "a2", "a3"], ["b1", "b2"], ["a4"], ["alone"], ["alone, too"]]

    run_on_board(scenario, fused=3, fuse_wait_s=0)


def test_a_slot_waits_for_more_jobs_until_it_is_full_or_all_places_are_taken() -> None:
    async def scenario(board: Board) -> None:
        for slot in (0, 1):
            await join_group(board, slot, f"group {slot}")
        await submit(board, "a1")
        first = asyncio.create_task(take_assignment(board, 0, "group 0"))
        second = asyncio.create_task(take_assignment(board, 1, "group 1"))
        await asyncio.sleep(0.01)
        assert not first.done()
        await submit(board, "a2")
        assert names_in(await first) == ["a1", "a2"]
        await submit(board, "a3")
        await asyncio.sleep(0.01)
        assert not second.done()
        await submit(board, "b1")
        assert names_in(await second) == ["a3"]

    run_on_board(scenario, slots=2, fused=2, fuse_wait_s=60)


def test_jobs_that_run_as_one_have_their_own_reports_instructions_and_ends() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group")
        jobs = await submit(board, "a1", "a2", "a3", "a4")
        assignment = await take_assignment(board, 0, "group")
        number = assignment["number"]
        for place in (0, 2):
            await board.pass_report(0, number, b"report", place)
        await board.end_job(0, number, 0, b"")
        await board.end_job(0, number, 2, b"error")
        await board.cancel_job("a2", Instruction.END)
        sent = await board.next_instructions(0, "group", NO_INSTRUCTION)
        assert sent == {"assignment": number, "instructions": {1: Instruction.END}}
        await board.discard_job(jobs[3], Instruction.SUSPEND)
        sent = await board.next_instructions(0, "group", sent)
        assert sent == {"assignment": number, "instructions": {1: Instruction.END, 3: Instruction.SUSPEND}}
        await board.end_job(0, number, 1, b"")
        await board.end_job(0, number, 3, b"")
        assert await finish(board, 0, assignment)
        ends = [[(await board.next_event(job))["kind"] for _ in range(2)] for job in jobs]
        assert ends == [["report", "finished"], ["cancelled"] * 2, ["report", "failed"], ["cancelled"] * 2]
        await submit(board, "a5")
        assert names_in(await take_assignment(board, 0, "group", after=number)) == ["a5"]

    run_on_board(scenario, fused=4, fuse_wait_s=0)


def test_an_error_of_jobs_that_run_as_one_lets_each_of_them_run_alone() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "group")
        jobs = await submit(board, "a1", "a2", "a3")
        assignment = await take_assignment(board, 0, "group")
        await board.end_job(0, assignment["number"], 0, b"")
        await board.finish_rank(0, assignment["number"], 0, b"error of one", broken=False)
        for name, error in (("a2", b""), ("a3", b"its own error")):
            assignment = await take_assignment(board, 0, "group", after=assignment["number"])
            assert names_in(assignment) == [name]
            await board.finish_rank(0, assignment["number"], 0, error, broken=False)
        events = [summary(await board.next_event(job)) for job in jobs]
        assert events == [("finished", 1, b""), ("finished", 2, b""), ("failed", 2, b"its own error")]

    run_on_board(scenario, fused=3, fuse_wait_s=0)


def test_jobs_whose_worker_died_run_together_again_but_alone_in_their_last_attempt() -> None:
    async def scenario(board: Board) -> None:
        await join_group(board, 0, "first")
        jobs = await submit(board, "a1", "a2", "a3", "a4", "b1")
        number = (await take_assignment(board, 0, "first"))["number"]
        await board.end_job(0, number, 1, b"")
        await board.cancel_job("a4", Instruction.END)
        await join_group(board, 0, "second")
        assert names_in(await take_assignment(board, 0, "second")) == ["a1", "a3"]
        await join_group(board, 0, "third")
        assert names_in(await take_assignment(board, 0, "third")) == ["a1"]
        await join_group(board, 0, "fourth")
        assert summary(await board.next_event(jobs[0])) == ("died", 3, b"")
        for name in ("a3", "b1"):
            assignment = await take_assignment(board, 0, "fourth")
            assert names_in(assignment) == [name]
            assert await finish(board, 0, assignment)
        events = [summary(await board.next_event(job)) for job in jobs[1:]]
        ends = [("finished", 1), ("finished", 3), ("cancelled", 1), ("finished", 1)]
        assert events == [(kind, attempts, b"") for kind, attempts in ends]

    run_on_board(scenario, max_failures=2, fused=4, fuse_wait_s=0)


def test_drained_jobs_are_assigned_again_together_without_counting_an_attempt() -> None:
    async def scenario(board: Board) -> None:
        for slot, node in enumerate(("drained", "staying")):
            await join_group(board, slot, f"group {slot}", make_worker(node=node))
        jobs = await submit(board, "a1", "a2", "a3")
        assignment = await take_assignment(board, 0, "group 0")
        await board.end_job(0, assignment["number"], 1, b"")
        assert await board.drain_node("drained", Instruction.SUSPEND) == [0]
        for place in (0, 2):
            await board.end_job(0, assignment["number"], place, b"")
        assert not await finish(board, 0, assignment)
        again = await take_assignment(board, 1, "group 1")
        assert names_in(again) == ["a1", "a3"]
        assert await finish(board, 1, again)
        assert [summary(await board.next_event(job)) for job in jobs] == [("finished", 1, b"")] * 3

    run_on_board(scenario, slots=2, fused=3, fuse_wait_s=0)


def test_the_process_of_the_board_needs_neither_kdray_nor_torch(tmp_path: Path) -> None:
    for module in BOARD_MODULES:
        cloudpickle.register_pickle_by_value(module)
    try:
        (tmp_path / "board").write_bytes(cloudpickle.dumps(Board))
    finally:
        for module in BOARD_MODULES:
            cloudpickle.unregister_pickle_by_value(module)
    load = "import pickle, sys; sys.modules['kdray'] = None; pickle.load(open('board', 'rb'))(2)"
    script = f"{load}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
