"""The promises of the slots: no report lost, a stop within a step, errors end jobs, deaths restart them, no hang."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray import cloudpickle

from kdray.errors import DataError, JobError, ResourceError, SpecError
from kdray.slots import LocalSlots, RaySlots, SlotPool, SlotSettings, connect, open_slots
from kdray.slots.board import Board, Member
from kdray.slots.cluster import Node, shares
from kdray.worker import Ask, Report, Worker

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

LIMIT_S = 120


@dataclass(frozen=True)
class Counting:
    """Report 1..n from each rank, with what a test wants to know of the worker."""

    n: int
    key: str = ""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        for i in range(self.n):
            yield {"i": i, "key": self.key, "pid": os.getpid()}


@dataclass(frozen=True)
class Stepping:
    """Steps of 20 ms for ever, with one report at the start; writes how many steps it took when it is stopped."""

    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"pid": os.getpid()}
        steps = 0
        while not worker.stopping():
            time.sleep(0.02)
            steps += 1
            (self.folder / f"steps-{worker.rank}").write_text(str(steps))
        (self.folder / f"stopped-{worker.rank}").write_text(str(time.time()))


@dataclass(frozen=True)
class Raising:
    error: Exception
    rank: int | None = None

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"pid": os.getpid()}
        if self.rank in (None, worker.rank):
            raise self.error
        worker.gathered("waiting for the rank that failed")


@dataclass(frozen=True)
class Dying:
    """Killed like by the kernel, the first `times` times it is run; then well."""

    folder: Path
    times: int
    rank: int = 0

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"i": 0, "pid": os.getpid()}
        worker.gathered(0)
        deaths = len(list(self.folder.glob("death-*")))
        if worker.rank == self.rank and deaths < self.times:
            (self.folder / f"death-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        worker.gathered(0)
        yield {"i": 1, "pid": os.getpid()}


def sum_of_ranks(worker: Worker) -> Iterator[Report]:
    total = torch.tensor(float(worker.rank + 1))
    dist.all_reduce(total)
    yield {"total": total.item(), "world": worker.world, "pids": worker.gathered(os.getpid())}


def arithmetic(worker: Worker) -> Iterator[Report]:
    """Sums whose last bits depend on the number of threads."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 300, generator=generator)
    yield {"sum": float((a @ a @ a).sum()), "threads": torch.get_num_threads()}


def warm_count(worker: Worker) -> Iterator[Report]:
    calls = worker.kept("calls", list)
    calls.append(1)
    yield {"calls": len(calls), "pid": os.getpid()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    info = connect("local", False, tmp_path_factory.mktemp("logs"))
    yield tmp_path_factory.mktemp("storage")
    info.close()


@pytest.fixture(scope="module")
def two_pools(cluster: Path) -> Iterator[tuple[RaySlots, RaySlots]]:
    """A slot of one worker, and a slot of two; they start at the same time."""
    single = SlotSettings(count=1, cpus=1, max_failures=1)
    double = SlotSettings(count=1, workers=2, cpus=1, max_failures=1)
    with (
        open_slots(single, cluster / "one", cluster / "one-logs") as one,
        open_slots(double, cluster / "two", cluster / "two-logs") as two,
    ):
        yield one, two


@pytest.fixture
def one(two_pools: tuple[RaySlots, RaySlots]) -> RaySlots:
    two_pools[0].wait(LIMIT_S)
    return two_pools[0]


@pytest.fixture
def two(two_pools: tuple[RaySlots, RaySlots]) -> RaySlots:
    two_pools[1].wait(LIMIT_S)
    return two_pools[1]


@pytest.fixture(params=["local", "ray"])
def pool(request: pytest.FixtureRequest) -> SlotPool:
    """What every pool promises is tested on both."""
    return LocalSlots() if request.param == "local" else request.getfixturevalue("one")


def exists(path: Path, limit_s: float = 30) -> bool:
    until = time.monotonic() + limit_s
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.005)
    return path.exists()


# ---- every pool ----


def test_no_report_is_lost_or_reordered_over_200_jobs(pool: SlotPool) -> None:
    for number in range(200):
        reports = list(pool.run(Counting(n=number % 4, key=str(number)), f"job {number}"))
        assert [(r["i"], r["key"]) for r in reports] == [(i, str(number)) for i in range(number % 4)]


def test_an_error_ends_the_job_and_says_where_and_the_slot_stays_warm(pool: SlotPool) -> None:
    (before,) = pool.run(warm_count, "before")
    with pytest.raises(JobError, match=r"broken: ZeroDivisionError: by nought \(.*test_slots.py:\d+\)"):
        list(pool.run(Raising(ZeroDivisionError("by nought")), "broken"))
    (after,) = pool.run(warm_count, "after")
    assert after == {"calls": before["calls"] + 1, "pid": before["pid"]}


def test_our_own_errors_arrive_as_themselves(pool: SlotPool) -> None:
    with pytest.raises(DataError, match=r"^row 3: no text$"):
        list(pool.run(Raising(DataError("row 3: no text")), "bad data"))


def test_closing_the_iterator_stops_the_job_and_frees_its_slot(pool: SlotPool, tmp_path: Path) -> None:
    run = pool.run(Stepping(tmp_path), "closed")
    next(run)
    run.close()
    assert list(run) == []
    assert len(list(pool.run(Counting(2), "next"))) == 2


@dataclass(frozen=True)
class Suspending:
    """Steps of 20 ms until it is asked to end; writes what it was asked for."""

    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {}
        while (ask := worker.asked()) < Ask.SUSPEND:
            time.sleep(0.02)
        (self.folder / "asked").write_text(ask.name)


@pytest.mark.parametrize(("how", "ask"), [("close", "SUSPEND"), ("cancel", "END"), ("suspend", "SUSPEND")])
def test_who_stops_a_job_says_whether_it_will_be_gone_on_with(
    pool: SlotPool, tmp_path: Path, how: str, ask: str
) -> None:
    run = pool.run(Suspending(tmp_path), f"{how} me")
    next(run)
    if how == "close":
        run.close()
    else:
        threading.Timer(0.1, getattr(pool, how), [f"{how} me"]).start()
        assert list(run) == []
    assert exists(tmp_path / "asked")
    assert until_written(tmp_path / "asked") == ask


def until_written(path: Path, limit_s: float = 5) -> str:
    until = time.monotonic() + limit_s
    while not path.read_text() and time.monotonic() < until:
        time.sleep(0.005)
    return path.read_text()


def test_a_name_is_free_again_when_its_job_has_ended(pool: SlotPool) -> None:
    for _ in range(2):
        assert len(list(pool.run(Counting(2), "the same"))) == 2


def test_a_name_in_use_is_refused(pool: SlotPool, tmp_path: Path) -> None:
    run = pool.run(Stepping(tmp_path), "taken")
    next(run)
    with pytest.raises(JobError, match="taken: a job of this name is running"):
        list(pool.run(Counting(1), "taken"))
    run.close()


def test_local_and_ray_slots_give_the_same_numbers(one: RaySlots) -> None:
    assert list(LocalSlots(threads=1).run(arithmetic, "a")) == list(one.run(arithmetic, "a"))


# ---- this process ----


def test_a_local_job_is_cancelled_between_two_steps_from_another_thread(tmp_path: Path) -> None:
    slots = LocalSlots()
    run = slots.run(Stepping(tmp_path), "stop me")
    next(run)
    threading.Timer(0.1, slots.cancel, ["stop me"]).start()
    assert list(run) == []
    assert (tmp_path / "stopped-0").exists()


def test_local_slots_restore_the_threads_of_their_process() -> None:
    before = torch.get_num_threads()
    (report,) = LocalSlots(threads=before + 1).run(arithmetic, "a")
    assert report["threads"] == before + 1
    assert torch.get_num_threads() == before


# ---- worker groups ----


def test_cancel_ends_the_waiting_asker_at_once_and_the_job_within_a_step(one: RaySlots, tmp_path: Path) -> None:
    run = one.run(Stepping(tmp_path), "stop me")
    next(run)
    assert exists(tmp_path / "steps-0")
    rest: list[list[Report]] = []
    asker = threading.Thread(target=lambda: rest.append(list(run)))
    asker.start()
    asked = time.time()
    one.cancel("stop me")
    asker.join(5)
    assert rest == [[]]
    assert exists(tmp_path / "stopped-0")
    assert float((tmp_path / "stopped-0").read_text()) - asked < 0.5
    assert len(list(one.run(Counting(1), "next"))) == 1


def test_a_job_that_waits_for_a_slot_can_be_cancelled(one: RaySlots, tmp_path: Path) -> None:
    busy = one.run(Stepping(tmp_path), "busy")
    next(busy)
    waiting = one.run(Counting(1), "waiting")
    one.cancel("waiting")
    assert list(waiting) == []
    busy.close()


def test_jobs_can_be_handed_over_before_their_reports_are_read(one: RaySlots) -> None:
    runs = [one.run(Counting(2, str(number)), f"ahead {number}") for number in range(5)]
    assert [[r["key"] for r in run] for run in runs] == [[str(number)] * 2 for number in range(5)]


def test_any_process_of_the_cluster_can_hand_over_jobs(one: RaySlots) -> None:
    client = one.client()

    @ray.remote(num_cpus=0.001)
    def elsewhere() -> list[int]:
        return [report["i"] for report in client.run(Counting(3), "from elsewhere")]

    assert ray.get(elsewhere.remote(), timeout=LIMIT_S) == [0, 1, 2]


def test_a_job_that_cannot_be_pickled_is_a_sentence(one: RaySlots) -> None:
    lock = threading.Lock()
    with pytest.raises(JobError, match="unsendable: the job cannot be sent"):
        one.run(lambda worker: iter([lock]), "unsendable")


def test_what_a_job_writes_is_in_the_slots_log(one: RaySlots) -> None:
    mark = uuid.uuid4().hex

    def loud(worker: Worker) -> Iterator[Report]:
        os.write(2, f"{mark}\n".encode())
        yield {}

    list(one.run(loud, "loud"))
    assert mark in (one.logs / "slot-0-rank-0.log").read_text()


def test_a_killed_worker_is_replaced_and_does_its_job_again(one: RaySlots, tmp_path: Path) -> None:
    run = one.run(Dying(tmp_path, times=1), "killed once")
    reports = list(run)
    assert [r["i"] for r in reports] == [0, 0, 1]
    assert run.attempts == 2
    assert reports[0]["pid"] != reports[1]["pid"]


def test_a_job_that_keeps_killing_its_slot_fails_and_the_slot_goes_on(one: RaySlots, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="poison: its worker died each of the 2 times"):
        list(one.run(Dying(tmp_path, times=9), "poison"))
    assert len(list(one.run(Counting(1), "after the poison"))) == 1


def test_two_workers_train_one_job_together(two: RaySlots) -> None:
    (report,) = two.run(sum_of_ranks, "sum")
    assert (report["total"], report["world"], len(set(report["pids"]))) == (3.0, 2, 2)


def test_two_workers_stop_together(two: RaySlots, tmp_path: Path) -> None:
    run = two.run(Stepping(tmp_path), "stop us")
    next(run)
    two.cancel("stop us")
    assert exists(tmp_path / "stopped-0")
    assert exists(tmp_path / "stopped-1")
    assert (tmp_path / "steps-0").exists() == (tmp_path / "steps-1").exists()
    assert len(list(two.run(sum_of_ranks, "next"))) == 1


def test_an_error_that_all_ranks_raise_keeps_the_group(two: RaySlots) -> None:
    (before,) = two.run(sum_of_ranks, "before")
    with pytest.raises(JobError, match=r"^not this one$"):
        list(two.run(Raising(JobError("not this one")), "all"))
    (after,) = two.run(sum_of_ranks, "after")
    assert after == before


def test_an_error_of_one_rank_ends_the_job_and_starts_the_group_anew(two: RaySlots) -> None:
    (before,) = two.run(sum_of_ranks, "before")
    with pytest.raises(JobError, match="alone: KeyError: 'mine'"):
        list(two.run(Raising(KeyError("mine"), rank=1), "alone"))
    (after,) = two.run(sum_of_ranks, "after")
    assert not set(after["pids"]) & set(before["pids"])


@pytest.mark.slow
def test_a_killed_peer_is_a_death_not_an_error(two: RaySlots, tmp_path: Path) -> None:
    run = two.run(Dying(tmp_path, times=1, rank=1), "peer killed")
    assert [r["i"] for r in run] == [0, 0, 1]
    assert run.attempts == 2


def test_more_than_the_cluster_has_is_refused_at_once(cluster: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"asked for 1 slots of 9 workers with 1 CPUs.*has 1 node with 4 CPUs"),
        open_slots(SlotSettings(count=1, workers=9, cpus=1), cluster, cluster),
    ):
        pass


def test_a_slot_that_does_not_start_is_an_error_not_a_hang(two: RaySlots, cluster: Path) -> None:
    settings = SlotSettings(count=1, cpus=4, start_timeout_s=2)  # the other slots hold three of the four CPUs
    with open_slots(settings, cluster, cluster / "stuck-logs") as stuck:
        with pytest.raises(ResourceError, match=r"slot 0 was not up after 2 s: it waits for 1 workers"):
            list(stuck.run(Counting(1), "never"))
        with pytest.raises(ResourceError, match="free now"):
            stuck.wait(LIMIT_S)


QUIET = """
import os, sys
from pathlib import Path
from kdray.slots import SlotSettings, connect, open_slots
def job(worker):
    print("worker chatter")
    yield {"pid": os.getpid()}
    if os.environ.get("ENDLESS"):
        import time
        time.sleep(1000)
folder = Path(sys.argv[1])
info = connect("local", False, folder / "logs")
with open_slots(SlotSettings(count=1), folder, folder / "logs") as slots:
    print(next(slots.run(job, "job")).keys())
info.close()
"""


@pytest.mark.slow
def test_a_process_that_used_slots_says_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    mark = f"KDRAY_TEST={uuid.uuid4().hex}"
    script = tmp_path / "quiet.py"
    script.write_text(QUIET)
    environment = {**os.environ, **dict([mark.split("=")])}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (done.stdout, done.stderr, done.returncode) == ("dict_keys(['pid'])\n", "", 0)
    assert "worker chatter" in (tmp_path / "logs" / "slot-0-rank-0.log").read_text()
    assert not list(tmp_path.glob(".slots-*"))
    assert gone(lambda: not marked(mark))


def gone(nothing_left: Callable[[], bool], limit_s: float = 20) -> bool:
    until = time.monotonic() + limit_s
    while not nothing_left() and time.monotonic() < until:
        time.sleep(0.1)
    return nothing_left()


def marked(mark: str) -> list[str]:
    """The processes that inherited this variable."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_closing_ends_a_worker_that_does_not_stop(cluster: Path, two: RaySlots) -> None:
    def deaf(worker: Worker) -> Iterator[Report]:
        yield {"pid": os.getpid()}
        time.sleep(1000)

    with open_slots(SlotSettings(count=1, cpus=1, stop_timeout_s=0.2), cluster, cluster / "deaf-logs") as slots:
        pid = next(slots.run(deaf, "deaf"))["pid"]
        slots.close()
    assert gone(lambda: not Path(f"/proc/{pid}").exists())


# ---- how a cluster divides ----


@pytest.mark.parametrize(
    ("settings", "nodes", "expected"),
    [
        (SlotSettings(), [Node(2, 0)], (2, 1.0, 0.0)),
        (SlotSettings(count=2), [Node(8, 0)], (2, 4.0, 0.0)),
        (SlotSettings(count=1, workers=2), [Node(2, 0)], (1, 1.0, 0.0)),
        (SlotSettings(count=2), [Node(2, 0)] * 3, (2, 2.0, 0.0)),
        (SlotSettings(count=3), [Node(1, 0), Node(4, 0)], (3, 1.3333, 0.0)),
        (SlotSettings(), [Node(64, 0)], (8, 8.0, 0.0)),
        (SlotSettings(), [Node(16, 1)], (1, 16.0, 1.0)),
        (SlotSettings(count=4), [Node(16, 1)], (4, 4.0, 0.25)),
        (SlotSettings(gpus=0.5), [Node(16, 2)], (4, 4.0, 0.5)),
        (SlotSettings(), [Node(0, 0), Node(8, 4), Node(8, 4)], (8, 2.0, 1.0)),
    ],
)
def test_shares(settings: SlotSettings, nodes: list[Node], expected: tuple[int, float, float]) -> None:
    divided = shares(settings, nodes)
    assert (divided.count, divided.cpus, divided.gpus) == expected


@pytest.mark.parametrize(
    "settings",
    [SlotSettings(count=5), SlotSettings(cpus=3), SlotSettings(count=1, gpus=1), SlotSettings(workers=5)],
)
def test_more_than_there_is_is_refused_unless_the_cluster_grows(settings: SlotSettings) -> None:
    if settings.count == 5:
        settings = settings.model_copy(update={"cpus": 1})
    if settings.workers == 5:
        settings = settings.model_copy(update={"cpus": 1})
    with pytest.raises(ResourceError, match="The cluster has 2 nodes with 2 CPUs"):
        shares(settings, [Node(2, 0)] * 2)
    assert shares(settings, [Node(2, 0)] * 2, growth=Node(16, 4))


def test_more_than_it_can_grow_to_is_refused() -> None:
    with pytest.raises(ResourceError, match="can grow to 16 CPUs and 0 GPUs"):
        shares(SlotSettings(count=4, cpus=8), [Node(2, 0)], growth=Node(16, 0))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"workers": 0}, {"gpus": -1}, {"cpus": 0}, {"count": "many"}])
def test_settings_that_make_no_slot_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"SlotSettings.{next(iter(wrong))}"):
        SlotSettings(**wrong)


# ---- the board, without Ray ----


def on_board(story: Callable[[Board], Awaitable[None]], slots: int = 1, **options: Any) -> None:
    """Run a story on a board whose workers are names; those named "dead..." do not answer."""

    async def alive(member: Member) -> bool:
        return not member["actor"].startswith("dead")

    async def whole() -> None:
        board = Board(slots, max_failures=1, alive=alive, **options)
        await asyncio.wait_for(story(board), 20)

    asyncio.run(whole())


def worker(name: str = "worker", node: str = "node") -> Member:
    return Member(actor=name, node=node, host=f"{node}.local", pid=0)


def test_late_words_of_a_dead_group_are_dropped() -> None:
    async def story(board: Board) -> None:
        await board.join(0, "old", 0, 1, worker())
        job = await board.submit("job", b"work")
        first = await board.take(0, "old", 0, 0)
        await board.join(0, "new", 0, 1, worker())
        second = await board.take(0, "new", 0, 0)
        assert first is not None
        assert second is not None
        await board.report(0, first["number"], b"late")
        assert not await board.finish(0, first["number"], 0, b"", broken=False)
        await board.report(0, second["number"], b"fresh")
        assert await board.finish(0, second["number"], 0, b"", broken=False)
        events = [await board.next_event(job) for _ in range(2)]
        assert [(e["kind"], e["data"], e["attempts"]) for e in events] == [
            ("report", b"fresh", 2),
            ("finished", b"", 2),
        ]

    on_board(story)


def test_a_lost_slots_job_goes_to_another_and_without_any_slot_all_jobs_fail() -> None:
    async def story(board: Board) -> None:
        for slot in (0, 1):
            await board.join(slot, f"group {slot}", 0, 1, worker())
        job = await board.submit("job", b"work")
        await board.take(0, "group 0", 0, 0)
        await board.lose(0, "burnt", b"burnt down")
        taken = await board.take(1, "group 1", 0, 0)
        assert taken is not None
        assert taken["name"] == "job"
        waiting = await board.submit("waiting", b"work")
        await board.lose(1, "drowned", b"washed away")
        assert (await board.next_event(job))["kind"] == "died"
        assert await board.next_event(waiting) == {
            "kind": "failed", "attempts": 0, "host": "", "data": b"washed away"
        }  # fmt: skip
        late = await board.submit("late", b"work")
        assert (await board.next_event(late))["kind"] == "failed"

    on_board(story, slots=2)


@pytest.mark.parametrize(("peer", "kind"), [("dead peer", "report"), ("living peer", "failed")])
def test_a_broken_rank_is_believed_only_if_its_peers_live(peer: str, kind: str) -> None:
    async def story(board: Board) -> None:
        for rank, name in enumerate(["worker", peer]):
            await board.join(0, "group", rank, 2, worker(name))
        job = await board.submit("job", b"work")
        taken = await board.take(0, "group", 0, 0)
        assert taken is not None
        assert not await board.finish(0, taken["number"], 0, b"connection closed", broken=True)
        await board.join(0, "next", 0, 2, worker())
        if kind == "report":
            again = await board.take(0, "next", 0, 0)
            assert again is not None
            await board.report(0, again["number"], b"")
        assert (await board.next_event(job))["kind"] == kind

    on_board(story)


def test_a_rank_that_fails_alone_is_not_waited_for_for_ever() -> None:
    async def story(board: Board) -> None:
        for rank in (0, 1):
            await board.join(0, "group", rank, 2, worker())
        job = await board.submit("job", b"work")
        taken = await board.take(0, "group", 0, 0)
        assert taken is not None
        assert not await board.finish(0, taken["number"], 1, b"mine", broken=False)
        assert await board.next_event(job) == {
            "kind": "failed", "attempts": 1, "host": "node.local", "data": b"mine"
        }  # fmt: skip

    on_board(story, straggle_s=0.05)


def test_a_job_tells_the_machines_it_runs_on_by_rank() -> None:
    async def story(board: Board) -> None:
        for rank, node in ((1, "second"), (0, "first"), (2, "second")):
            await board.join(0, "group", rank, 3, worker(node=node))
        job = await board.submit("job", b"work")
        taken = await board.take(0, "group", 0, 0)
        assert taken is not None
        await board.report(0, taken["number"], b"")
        assert (await board.next_event(job))["host"] == "first.local, second.local"

    on_board(story)


def test_a_job_is_over_when_its_last_rank_is() -> None:
    async def story(board: Board) -> None:
        for rank in (0, 1):
            await board.join(0, "group", rank, 2, worker())
        await board.submit("job", b"work")
        await board.submit("next", b"work")
        taken = [await board.take(0, "group", rank, 0) for rank in (0, 1)]
        assert taken[0] == taken[1]
        assert taken[0] is not None
        number = taken[0]["number"]
        first = asyncio.create_task(board.finish(0, number, 0, b"", broken=False))
        await asyncio.sleep(0)
        assert not first.done()
        assert await board.finish(0, number, 1, b"", broken=False)
        assert await first
        following = await board.take(0, "group", 0, number)
        assert following is not None
        assert following["name"] == "next"

    on_board(story)


def test_a_closed_board_sends_everybody_home() -> None:
    async def story(board: Board) -> None:
        await board.join(0, "group", 0, 1, worker())
        taking = asyncio.create_task(board.take(0, "group", 0, 0))
        hearing = asyncio.create_task(board.told(0, "group", (0, 0)))
        await asyncio.sleep(0)
        await board.close(Ask.SUSPEND)
        assert await taking is None
        assert await hearing == (0, 0)
        assert (await board.next_event(await board.submit("late", b"")))["kind"] == "cancelled"

    on_board(story)


def test_what_a_worker_is_told_is_news_once() -> None:
    async def story(board: Board) -> None:
        await board.join(0, "group", 0, 1, worker())
        job = await board.submit("job", b"work")
        taken = await board.take(0, "group", 0, 0)
        assert taken is not None
        await board.cancel_id(job, Ask.SUSPEND)
        assert await board.told(0, "group", (0, 0)) == (taken["number"], Ask.SUSPEND)
        more = asyncio.create_task(board.told(0, "group", (taken["number"], int(Ask.SUSPEND))))
        await asyncio.sleep(0)
        assert not more.done()
        await board.close(Ask.END)
        assert await more == (taken["number"], Ask.END)

    on_board(story)


def test_a_drained_slot_suspends_its_job_which_is_given_out_again_and_blamed_on_nobody() -> None:
    killed: list[str] = []

    async def story(board: Board) -> None:
        for slot, node in enumerate(("going", "going", "staying")):
            await board.join(slot, f"group {slot}", 0, 1, worker(f"worker {slot}", node))
        job = await board.submit("job", b"work")
        taken = await board.take(0, "group 0", 0, 0)
        assert taken is not None
        assert await board.drain("going", Ask.SUSPEND) == [0, 1]
        assert killed == ["worker 1"]  # it had nothing to do
        assert await board.drain("going", Ask.SUSPEND) == []
        assert await board.told(0, "group 0", (0, 0)) == (taken["number"], Ask.SUSPEND)
        assert not await board.finish(0, taken["number"], 0, b"", broken=False)
        again = await board.take(2, "group 2", 0, 0)
        assert again is not None
        assert await board.finish(2, again["number"], 0, b"", broken=False)
        assert await board.next_event(job) == {
            "kind": "finished", "attempts": 1, "host": "staying.local", "data": b""
        }  # fmt: skip

    on_board(story, slots=3, kill=lambda member: killed.append(member["actor"]))


def test_a_job_that_makes_no_step_has_its_worker_killed_and_fails_in_the_end() -> None:
    killed: list[str] = []

    async def story(board: Board) -> None:
        job = await board.submit("job", b"work")
        for group in ("first", "second"):
            await board.join(0, group, 0, 1, worker(group))
            taken = await board.take(0, group, 0, 0)
            assert taken is not None
            for _ in range(10):
                await board.beat(0, taken["number"])
                await asyncio.sleep(0.02)
            assert group not in killed
            while group not in killed:
                await asyncio.sleep(0.01)
        await board.join(0, "third", 0, 1, worker())
        event = await board.next_event(job)
        assert (event["kind"], event["attempts"], event["data"]) == ("died", 2, b"it made no step for 0.1 s")

    on_board(story, progress_s=0.1, kill=lambda member: killed.append(member["actor"]))
