"""The board alone, without Ray: what becomes of jobs when slots come, go, break, hang and refuse."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kdray.slots.board import Board
from kdray.slots.board_state import Event, Member
from kdray.slots.job import Instruction


def on_board(story: Callable[[Board], Awaitable[None]], slots: int = 1, **options: Any) -> None:
    """Run a story on a board whose workers are names; those named "dead..." do not answer."""

    async def alive(member: Member) -> bool:
        return not member["actor"].startswith("dead")

    async def whole() -> None:
        board = Board(max_failures=1, alive=alive, **options)
        for _ in range(slots):
            await board.add_slot()
        await asyncio.wait_for(story(board), 20)

    asyncio.run(whole())


def worker(name: str = "worker", node: str = "node") -> Member:
    return Member(actor=name, node=node, host=f"{node}.local", pid=0, reserved=None)


def said(event: Event) -> tuple[str, int, bytes]:
    return event["kind"], event["attempts"], event["data"]


def test_late_words_of_a_dead_group_are_dropped() -> None:
    async def story(board: Board) -> None:
        await board.join_worker(0, "old", 0, 1, worker())
        job = await board.submit_job("job", b"work")
        first = await board.take_job(0, "old", 0, 0)
        await board.join_worker(0, "new", 0, 1, worker())
        second = await board.take_job(0, "new", 0, 0)
        assert first is not None
        assert second is not None
        await board.pass_report(0, first["number"], b"late")
        assert not await board.finish_rank(0, first["number"], 0, b"", broken=False)
        await board.pass_report(0, second["number"], b"fresh")
        assert await board.finish_rank(0, second["number"], 0, b"", broken=False)
        events = [await board.next_event(job) for _ in range(2)]
        assert [(e["kind"], e["data"], e["attempts"]) for e in events] == [
            ("report", b"fresh", 2),
            ("finished", b"", 2),
        ]

    on_board(story)


def test_a_lost_slots_job_goes_to_another_and_without_any_slot_all_jobs_fail() -> None:
    async def story(board: Board) -> None:
        for slot in (0, 1):
            await board.join_worker(slot, f"group {slot}", 0, 1, worker())
        job = await board.submit_job("job", b"work")
        await board.take_job(0, "group 0", 0, 0)
        await board.give_up_slot(0, "burnt", b"burnt down")
        taken = await board.take_job(1, "group 1", 0, 0)
        assert taken is not None
        assert taken["name"] == "job"
        waiting = await board.submit_job("waiting", b"work")
        await board.give_up_slot(1, "drowned", b"washed away")
        assert (await board.next_event(job))["kind"] == "died"
        assert said(await board.next_event(waiting)) == ("failed", 0, b"washed away")
        late = await board.submit_job("late", b"work")
        assert (await board.next_event(late))["kind"] == "failed"

    on_board(story, slots=2)


@pytest.mark.parametrize(("peer", "kind"), [("dead peer", "report"), ("living peer", "failed")])
def test_a_broken_rank_is_believed_only_if_its_peers_live(peer: str, kind: str) -> None:
    async def story(board: Board) -> None:
        for rank, name in enumerate(["worker", peer]):
            await board.join_worker(0, "group", rank, 2, worker(name))
        job = await board.submit_job("job", b"work")
        taken = await board.take_job(0, "group", 0, 0)
        assert taken is not None
        assert not await board.finish_rank(0, taken["number"], 0, b"connection closed", broken=True)
        await board.join_worker(0, "next", 0, 2, worker())
        if kind == "report":
            again = await board.take_job(0, "next", 0, 0)
            assert again is not None
            await board.pass_report(0, again["number"], b"")
        assert (await board.next_event(job))["kind"] == kind

    on_board(story)


def test_a_rank_that_fails_alone_is_not_waited_for_for_ever() -> None:
    async def story(board: Board) -> None:
        for rank in (0, 1):
            await board.join_worker(0, "group", rank, 2, worker())
        job = await board.submit_job("job", b"work")
        taken = await board.take_job(0, "group", 0, 0)
        assert taken is not None
        assert not await board.finish_rank(0, taken["number"], 1, b"mine", broken=False)
        assert said(await board.next_event(job)) == ("failed", 1, b"mine")

    on_board(story, straggle_s=0.05)


def test_a_job_tells_the_machines_it_runs_on_by_rank() -> None:
    async def story(board: Board) -> None:
        for rank, node in ((1, "second"), (0, "first"), (2, "second")):
            await board.join_worker(0, "group", rank, 3, worker(node=node))
        job = await board.submit_job("job", b"work")
        taken = await board.take_job(0, "group", 0, 0)
        assert taken is not None
        await board.pass_report(0, taken["number"], b"")
        assert (await board.next_event(job))["host"] == "first.local, second.local"

    on_board(story)


def test_a_job_is_over_when_its_last_rank_is() -> None:
    async def story(board: Board) -> None:
        for rank in (0, 1):
            await board.join_worker(0, "group", rank, 2, worker())
        await board.submit_job("job", b"work")
        await board.submit_job("next", b"work")
        taken = [await board.take_job(0, "group", rank, 0) for rank in (0, 1)]
        assert taken[0] == taken[1]
        assert taken[0] is not None
        number = taken[0]["number"]
        first = asyncio.create_task(board.finish_rank(0, number, 0, b"", broken=False))
        await asyncio.sleep(0)
        assert not first.done()
        assert await board.finish_rank(0, number, 1, b"", broken=False)
        assert await first
        following = await board.take_job(0, "group", 0, number)
        assert following is not None
        assert following["name"] == "next"

    on_board(story)


def test_a_closed_board_sends_everybody_home() -> None:
    async def story(board: Board) -> None:
        await board.join_worker(0, "group", 0, 1, worker())
        taking = asyncio.create_task(board.take_job(0, "group", 0, 0))
        hearing = asyncio.create_task(board.next_instruction(0, "group", (0, 0)))
        await asyncio.sleep(0)
        await board.close(Instruction.SUSPEND)
        assert await taking is None
        assert await hearing == (0, 0)
        assert (await board.next_event(await board.submit_job("late", b"")))["kind"] == "cancelled"

    on_board(story)


def test_what_a_worker_is_told_is_news_once() -> None:
    async def story(board: Board) -> None:
        await board.join_worker(0, "group", 0, 1, worker())
        job = await board.submit_job("job", b"work")
        taken = await board.take_job(0, "group", 0, 0)
        assert taken is not None
        await board.cancel_id(job, Instruction.SUSPEND)
        assert await board.next_instruction(0, "group", (0, 0)) == (taken["number"], Instruction.SUSPEND)
        more = asyncio.create_task(board.next_instruction(0, "group", (taken["number"], int(Instruction.SUSPEND))))
        await asyncio.sleep(0)
        assert not more.done()
        await board.close(Instruction.END)
        assert await more == (taken["number"], Instruction.END)

    on_board(story)


def test_a_drained_slot_suspends_its_job_which_is_given_out_again_and_blamed_on_nobody() -> None:
    killed: list[str] = []

    async def story(board: Board) -> None:
        for slot, node in enumerate(("going", "going", "staying")):
            await board.join_worker(slot, f"group {slot}", 0, 1, worker(f"worker {slot}", node))
        job = await board.submit_job("job", b"work")
        taken = await board.take_job(0, "group 0", 0, 0)
        assert taken is not None
        assert await board.drain_node("going", Instruction.SUSPEND) == [0, 1]
        assert killed == ["worker 1"]  # it had nothing to do
        assert await board.drain_node("going", Instruction.SUSPEND) == []
        assert await board.next_instruction(0, "group 0", (0, 0)) == (taken["number"], Instruction.SUSPEND)
        assert not await board.finish_rank(0, taken["number"], 0, b"", broken=False)
        again = await board.take_job(2, "group 2", 0, 0)
        assert again is not None
        assert await board.finish_rank(2, again["number"], 0, b"", broken=False)
        assert said(await board.next_event(job)) == ("finished", 1, b"")

    on_board(story, slots=3, kill=lambda member: killed.append(member["actor"]))


def test_a_job_that_makes_no_step_has_its_worker_killed_and_fails_in_the_end() -> None:
    killed: list[str] = []

    async def story(board: Board) -> None:
        job = await board.submit_job("job", b"work")
        for group in ("first", "second"):
            await board.join_worker(0, group, 0, 1, worker(group))
            taken = await board.take_job(0, group, 0, 0)
            assert taken is not None
            for _ in range(10):
                await board.note_progress(0, taken["number"])
                await asyncio.sleep(0.02)
            assert group not in killed
            while group not in killed:
                await asyncio.sleep(0.01)
        await board.join_worker(0, "third", 0, 1, worker())
        event = await board.next_event(job)
        assert (event["kind"], event["attempts"], event["data"]) == ("died", 2, b"it made no step for 0.1 s")

    on_board(story, progress_s=0.1, kill=lambda member: killed.append(member["actor"]))


def test_a_dead_nodes_job_goes_to_a_slot_elsewhere_at_once() -> None:
    async def story(board: Board) -> None:
        for slot, node in enumerate(("here", "there")):
            await board.join_worker(slot, f"group {slot}", 0, 1, worker(node=node))
        job = await board.submit_job("job", b"work")
        assert await board.take_job(0, "group 0", 0, 0)
        await board.nodes_died(["here"])
        again = await board.take_job(1, "group 1", 0, 0)
        assert again is not None
        assert await board.finish_rank(1, again["number"], 0, b"", broken=False)
        assert said(await board.next_event(job)) == ("finished", 2, b"")
        assert (await board.status())["up"] == [1]

    on_board(story, slots=2)


def test_the_slots_have_settled_when_there_are_enough_or_none_is_awaited() -> None:
    async def story(board: Board) -> None:
        settling = asyncio.create_task(board.wait_until_settled(2))
        await board.join_worker(0, "group 0", 0, 1, worker())
        await asyncio.sleep(0)
        assert not settling.done()
        await board.add_slot()
        await board.join_worker(3, "group 3", 0, 1, worker())
        assert (await settling)["up"] == [0, 3]
        for slot in (1, 2):
            await board.give_up_slot(slot, "no room", b"")
        assert set((await board.wait_until_settled(9))["lost"]) == {1, 2}

    on_board(story, slots=3)


def test_a_refusal_before_the_slots_have_settled_ends_every_job() -> None:
    async def story(board: Board) -> None:
        await board.join_worker(0, "group 0", 0, 1, worker())
        running = await board.submit_job("running", b"work")
        taken = await board.take_job(0, "group 0", 0, 0)
        assert taken is not None
        waiting = await board.submit_job("waiting", b"work")
        await board.refuse_slot(1, "another folder", b"why", Instruction.SUSPEND)
        assert await board.next_instruction(0, "group 0", (0, 0)) == (taken["number"], Instruction.SUSPEND)
        for job in (running, waiting, await board.submit_job("late", b"work")):
            assert said(await board.next_event(job)) == ("failed", job == running, b"why")
        assert (await board.wait_until_settled(2))["refused"] == b"why"

    on_board(story, slots=2)


def test_a_refusal_of_a_machine_that_joins_late_costs_only_its_slot() -> None:
    async def story(board: Board) -> None:
        await board.join_worker(0, "group 0", 0, 1, worker())
        await board.wait_until_settled(1)
        job = await board.submit_job("job", b"work")
        await board.refuse_slot(1, "another folder", b"why", Instruction.SUSPEND)
        taken = await board.take_job(0, "group 0", 0, 0)
        assert taken is not None
        assert await board.finish_rank(0, taken["number"], 0, b"", broken=False)
        assert (await board.next_event(job))["kind"] == "finished"
        assert (await board.status())["lost"] == {1: "another folder"}

    on_board(story, slots=2)
