"""The guarantees of slots: no lost report, a stop within one step, errors end a job, deaths restart it, no hang."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from ray import cloudpickle

from kdray.errors import DataError, JobError, ResourceError
from kdray.evaluation.form_costs import MeasureForms
from kdray.evaluation.measuring import Latency
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained, save_model
from kdray.slots.client import RayRun
from kdray.slots.cluster import connect
from kdray.slots.job import Instruction, JobEnd, Report, Worker
from kdray.slots.local import LocalSlots
from kdray.slots.pool import SlotPool, SlotSettings
from kdray.slots.ray_slots import RaySlots, open_slots
from tests.models.tiny_bert import tiny_bert

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

LIMIT_S = 120


@dataclass(frozen=True)
class Counting:
    """Yields `n` reports in each rank, with the id of the process."""

    n: int
    key: str = ""

    def __call__(self, worker: Worker) -> Iterator[Report]:
        for i in range(self.n):
            yield {"i": i, "key": self.key, "pid": os.getpid()}


@dataclass(frozen=True)
class Stepping:
    """Makes steps of 20 ms until it is stopped. Writes the number of its steps, and the time at which it stopped."""

    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"pid": os.getpid()}
        steps = 0
        while not worker.must_stop():
            time.sleep(0.02)
            steps += 1
            (self.folder / f"steps-{worker.rank}").write_text(str(steps))
        (self.folder / f"stopped-{worker.rank}").write_text(str(time.time()))


@dataclass(frozen=True)
class Raising:
    """Raises an error in all ranks, or in one rank while the others wait for it in a collective call."""

    error: Exception
    rank: int | None = None

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"pid": os.getpid()}
        if self.rank in (None, worker.rank):
            raise self.error
        worker.all_gather("waiting for the rank that failed")


@dataclass(frozen=True)
class Dying:
    """Kills its own process in its first `times` attempts, and succeeds after that."""

    folder: Path
    times: int
    rank: int = 0

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {"i": 0, "pid": os.getpid()}
        worker.all_gather(0)
        deaths = len(list(self.folder.glob("death-*")))
        if worker.rank == self.rank and deaths < self.times:
            (self.folder / f"death-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        worker.all_gather(0)
        yield {"i": 1, "pid": os.getpid()}


def sum_of_ranks(worker: Worker) -> Iterator[Report]:
    total = torch.tensor(float(worker.rank + 1))
    dist.all_reduce(total)
    yield {"total": total.item(), "world": worker.world, "pids": worker.all_gather(os.getpid())}


def arithmetic(worker: Worker) -> Iterator[Report]:
    """Reports a sum whose last bits depend on the number of threads."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 300, generator=generator)
    yield {"sum": float((a @ a @ a).sum()), "threads": torch.get_num_threads()}


def warm_count(worker: Worker) -> Iterator[Report]:
    calls = worker.cached("calls", list)
    calls.append(1)
    yield {"calls": len(calls), "pid": os.getpid()}


@dataclass(frozen=True)
class Climbing:
    """Climbs to `top` in steps, alone or together with others, and keeps each step in a file to continue from.

    `fails_at` is the step at which it raises an error, and `dies_at` the one at which it kills its worker, once.
    """

    folder: Path
    top: int
    fails_at: int = 0
    dies_at: int = 0
    fuse_key: str = "climbing"

    def __call__(self, worker: Worker) -> Iterator[Report]:
        for _, report in self.fused_with(())(worker, [worker.instruction]):
            if isinstance(report, dict):
                yield report

    def fused_with(self, others: "Sequence[Climbing]") -> "ClimbingTogether":
        return ClimbingTogether((self, *others))

    def step(self) -> int:
        """Make a step, and return its number."""
        kept = self.folder / "kept"
        step = int(kept.read_text()) + 1 if kept.exists() else 1
        if step == self.fails_at:
            raise ZeroDivisionError("by nought")
        if step == self.dies_at and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        kept.write_text(str(step))
        return step


@dataclass(frozen=True)
class ClimbingTogether:
    """Makes the steps of several jobs in turn; see `kdray.slots.job.FusedJob`."""

    jobs: tuple[Climbing, ...]

    def __call__(
        self, worker: Worker, instructions: Sequence[Callable[[], Instruction]]
    ) -> Iterator[tuple[int, Report | JobEnd]]:
        left = dict(enumerate(self.jobs))
        while left:
            time.sleep(0.01)
            for number, job in list(left.items()):
                end = JobEnd() if instructions[number]() else None
                try:
                    step = job.step()
                    yield number, {"step": step, "together": len(left)}
                    end = JobEnd() if step == job.top else end
                except ZeroDivisionError as error:
                    end = JobEnd(error)
                if end:
                    del left[number]
                    yield number, end


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    info = connect("local", False, tmp_path_factory.mktemp("logs"))
    yield tmp_path_factory.mktemp("storage")
    info.close()


@pytest.fixture(scope="module")
def pools(cluster: Path) -> Iterator[tuple[RaySlots, ...]]:
    """Pools with one slot: of one worker, of two, and of one that runs up to four jobs as one. They start together."""
    single = SlotSettings(count=1, cpus=1, max_failures=1)
    double = SlotSettings(count=1, workers=2, cpus=1, max_failures=1)
    fused = SlotSettings(count=1, cpus=1, fused=4)
    with (
        open_slots(single, cluster / "one-logs") as one,
        open_slots(double, cluster / "two-logs") as two,
        open_slots(fused, cluster / "fused-logs") as four_as_one,
    ):
        yield one, two, four_as_one


@pytest.fixture
def one(pools: tuple[RaySlots, ...]) -> RaySlots:
    pools[0].wait(LIMIT_S)
    return pools[0]


@pytest.fixture
def two(pools: tuple[RaySlots, ...]) -> RaySlots:
    pools[1].wait(LIMIT_S)
    return pools[1]


@pytest.fixture
def fused(pools: tuple[RaySlots, ...]) -> RaySlots:
    pools[2].wait(LIMIT_S)
    return pools[2]


@pytest.fixture(params=["local", "ray"])
def pool(request: pytest.FixtureRequest) -> SlotPool:
    """Each kind of pool, for the guarantees of every pool."""
    return LocalSlots() if request.param == "local" else request.getfixturevalue("one")


def appears(path: Path, limit_s: float = 30) -> bool:
    """Whether the file exists before the time is up."""
    until = time.monotonic() + limit_s
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.005)
    return path.exists()


# ---- every pool ----


def test_no_report_is_lost_or_reordered_over_200_jobs(pool: SlotPool) -> None:
    for number in range(200):
        reports = list(pool.run(Counting(n=number % 4, key=str(number)), f"job {number}"))
        assert [(r["i"], r["key"]) for r in reports] == [(i, str(number)) for i in range(number % 4)]


def test_an_error_ends_the_job_with_its_place_and_the_slot_stays_warm(pool: SlotPool) -> None:
    (before,) = pool.run(warm_count, "before")
    with pytest.raises(JobError, match=r"broken: ZeroDivisionError: by nought \(.*test_slots.py:\d+\)"):
        list(pool.run(Raising(ZeroDivisionError("by nought")), "broken"))
    (after,) = pool.run(warm_count, "after")
    assert after == {"calls": before["calls"] + 1, "pid": before["pid"]}


def test_errors_of_kdray_arrive_unchanged(pool: SlotPool) -> None:
    with pytest.raises(DataError, match=r"^row 3: no text$"):
        list(pool.run(Raising(DataError("row 3: no text")), "bad data"))


def test_closing_the_iterator_stops_the_job_and_frees_its_slot(pool: SlotPool, tmp_path: Path) -> None:
    run = pool.run(Stepping(tmp_path), "closed")
    next(run)
    run.close()
    assert list(run) == []
    assert len(list(pool.run(Counting(2), "next"))) == 2


@dataclass(frozen=True)
class Obeying:
    """Makes steps of 20 ms until it is instructed to end, and writes the name of the instruction."""

    folder: Path

    def __call__(self, worker: Worker) -> Iterator[Report]:
        yield {}
        while (instruction := worker.next_instruction()) < Instruction.SUSPEND:
            time.sleep(0.02)
        (self.folder / "instruction").write_text(instruction.name)


@pytest.mark.parametrize(("how", "instruction"), [("close", "SUSPEND"), ("cancel", "END"), ("suspend", "SUSPEND")])
def test_the_way_to_stop_a_job_decides_whether_it_writes_a_checkpoint(
    pool: SlotPool, tmp_path: Path, how: str, instruction: str
) -> None:
    run = pool.run(Obeying(tmp_path), f"{how} me")
    next(run)
    if how == "close":
        run.close()
    else:
        threading.Timer(0.1, getattr(pool, how), [f"{how} me"]).start()
        assert list(run) == []
    assert appears(tmp_path / "instruction")
    assert read_when_written(tmp_path / "instruction") == instruction


def read_when_written(path: Path, limit_s: float = 5) -> str:
    """The text of a file that exists, but may still be empty."""
    until = time.monotonic() + limit_s
    while not path.read_text() and time.monotonic() < until:
        time.sleep(0.005)
    return path.read_text()


def test_a_name_can_be_used_again_when_its_job_has_ended(pool: SlotPool) -> None:
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


def test_local_slots_restore_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    (report,) = LocalSlots(threads=before + 1).run(arithmetic, "a")
    assert report["threads"] == before + 1
    assert torch.get_num_threads() == before


# ---- worker groups ----


def test_cancel_ends_the_waiting_reader_at_once_and_the_job_within_a_step(one: RaySlots, tmp_path: Path) -> None:
    run = one.run(Stepping(tmp_path), "stop me")
    next(run)
    assert appears(tmp_path / "steps-0")
    rest: list[list[Report]] = []
    reader = threading.Thread(target=lambda: rest.append(list(run)))
    reader.start()
    cancelled = time.time()
    one.cancel("stop me")
    reader.join(5)
    assert rest == [[]]
    assert appears(tmp_path / "stopped-0")
    assert float((tmp_path / "stopped-0").read_text()) - cancelled < 0.5
    assert len(list(one.run(Counting(1), "next"))) == 1


def test_a_job_that_waits_for_a_slot_can_be_cancelled(one: RaySlots, tmp_path: Path) -> None:
    busy = one.run(Stepping(tmp_path), "busy")
    next(busy)
    waiting = one.run(Counting(1), "waiting")
    one.cancel("waiting")
    assert list(waiting) == []
    busy.close()


def test_jobs_can_be_submitted_before_their_reports_are_read(one: RaySlots) -> None:
    runs = [one.run(Counting(2, str(number)), f"ahead {number}") for number in range(5)]
    assert [[r["key"] for r in run] for run in runs] == [[str(number)] * 2 for number in range(5)]


def test_any_process_of_the_cluster_can_submit_jobs(one: RaySlots) -> None:
    client = one.client()

    @ray.remote(num_cpus=0.001)
    def elsewhere() -> list[int]:
        return [report["i"] for report in client.run(Counting(3), "from elsewhere")]

    assert ray.get(elsewhere.remote(), timeout=LIMIT_S) == [0, 1, 2]


def test_a_job_that_cannot_be_pickled_is_refused(one: RaySlots) -> None:
    lock = threading.Lock()
    with pytest.raises(JobError, match="unsendable: the job cannot be sent"):
        one.run(lambda worker: iter([lock]), "unsendable")


def test_openmp_threads_that_wait_for_each_other_sleep_soon(one: RaySlots) -> None:
    """Otherwise another program on one of the slot's cores slows every step down: bench/busy_machine.py."""

    def report_environment(worker: Worker) -> Iterator[Report]:
        yield {"spins": os.environ.get("GOMP_SPINCOUNT")}

    assert list(one.run(report_environment, "environment")) == [{"spins": os.environ.get("GOMP_SPINCOUNT", "3000")}]


def test_the_output_of_a_job_is_in_the_log_of_its_slot(one: RaySlots) -> None:
    mark = uuid.uuid4().hex

    def writing(worker: Worker) -> Iterator[Report]:
        os.write(2, f"{mark}\n".encode())
        yield {}

    list(one.run(writing, "writing"))
    assert mark in (one.logs / "slot-0-rank-0.log").read_text()


def test_a_killed_worker_is_replaced_and_its_job_is_run_again(one: RaySlots, tmp_path: Path) -> None:
    run = one.run(Dying(tmp_path, times=1), "killed once")
    reports = list(run)
    assert [r["i"] for r in reports] == [0, 0, 1]
    assert run.attempts == 2
    assert reports[0]["pid"] != reports[1]["pid"]


def test_a_job_that_kills_its_worker_each_time_fails_and_the_slot_continues(one: RaySlots, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="deadly: its worker died each of the 2 times"):
        list(one.run(Dying(tmp_path, times=9), "deadly"))
    assert len(list(one.run(Counting(1), "after the deadly one"))) == 1


def test_two_workers_train_one_job_together(two: RaySlots) -> None:
    (report,) = two.run(sum_of_ranks, "sum")
    assert (report["total"], report["world"], len(set(report["pids"]))) == (3.0, 2, 2)


@pytest.mark.slow
def test_costs_in_a_form_are_measured_once_on_a_slot_of_two_workers(two: RaySlots, tmp_path: Path) -> None:
    save_model(tiny_bert(), word_tokenizer(["a warm film"], 40, 16), tmp_path)
    job = MeasureForms(
        source=Pretrained(tmp_path, "tiny"), student=None, latency=Latency(length=8, repeats=2), forms=("onnx", "int8")
    )
    (report,) = two.run(job, "forms")
    (local,) = LocalSlots().run(job, "forms")
    assert {form: costs["size_mb"] for form, costs in report.items()} == {
        form: costs["size_mb"] for form, costs in local.items()
    }
    assert all(costs["latency_ms"] > 0 for costs in report.values())


def test_two_workers_stop_together(two: RaySlots, tmp_path: Path) -> None:
    run = two.run(Stepping(tmp_path), "stop us")
    next(run)
    two.cancel("stop us")
    assert appears(tmp_path / "stopped-0")
    assert appears(tmp_path / "stopped-1")
    assert (tmp_path / "steps-0").exists() == (tmp_path / "steps-1").exists()
    assert len(list(two.run(sum_of_ranks, "next"))) == 1


def test_an_error_that_all_ranks_raise_keeps_the_group(two: RaySlots) -> None:
    (before,) = two.run(sum_of_ranks, "before")
    with pytest.raises(JobError, match=r"^not this one$"):
        list(two.run(Raising(JobError("not this one")), "all"))
    (after,) = two.run(sum_of_ranks, "after")
    assert after == before


def test_an_error_of_one_rank_ends_the_job_and_restarts_the_group(two: RaySlots) -> None:
    (before,) = two.run(sum_of_ranks, "before")
    with pytest.raises(JobError, match="alone: KeyError: 'mine'"):
        list(two.run(Raising(KeyError("mine"), rank=1), "alone"))
    (after,) = two.run(sum_of_ranks, "after")
    assert not set(after["pids"]) & set(before["pids"])


@pytest.mark.slow
def test_a_killed_rank_counts_as_a_death_and_not_as_an_error_of_its_peers(two: RaySlots, tmp_path: Path) -> None:
    run = two.run(Dying(tmp_path, times=1, rank=1), "peer killed")
    assert [r["i"] for r in run] == [0, 0, 1]
    assert run.attempts == 2


def test_more_than_the_cluster_has_is_refused_at_once(cluster: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"asked for 1 slot of 9 workers with 1 CPUs.*has 1 node with 4 CPUs"),
        open_slots(SlotSettings(count=1, workers=9, cpus=1), cluster),
    ):
        pass


def test_a_slot_that_does_not_start_raises_an_error_within_its_timeout(two: RaySlots, cluster: Path) -> None:
    settings = SlotSettings(count=1, cpus=4, start_timeout_s=2)  # the other slots hold the CPUs
    with open_slots(settings, cluster / "stuck-logs") as stuck:
        with pytest.raises(ResourceError, match=r"slot 0 was not up after 2 s: it waits for 1 workers"):
            list(stuck.run(Counting(1), "never"))
        with pytest.raises(ResourceError, match="free now"):
            stuck.wait(LIMIT_S)


def climb(pool: RaySlots, folder: Path, **jobs: Climbing) -> dict[str, RayRun]:
    """Submit jobs by name, each with a folder of its own."""
    runs = {}
    for name, job in jobs.items():
        (folder / name).mkdir()
        runs[name] = pool.run(replace(job, folder=folder / name), name)
    return runs


def test_jobs_that_run_as_one_end_fail_and_continue_from_their_own_step(fused: RaySlots, tmp_path: Path) -> None:
    runs = climb(
        fused,
        tmp_path,
        early=Climbing(tmp_path, top=2),
        failing=Climbing(tmp_path, top=9, fails_at=3),
        deadly=Climbing(tmp_path, top=6, dies_at=5),
        other=Climbing(tmp_path, top=9),
    )
    assert list(runs["early"]) == [{"step": 1, "together": 4}, {"step": 2, "together": 4}]
    with pytest.raises(JobError, match=r"^failing: ZeroDivisionError: by nought \(.*test_slots.py:\d+\)"):
        list(runs["failing"])
    # Only the steps of the two others until the worker died are repeated in an attempt of their own.
    for name, top in (("deadly", 6), ("other", 9)):
        reports = list(runs[name])
        assert [report["step"] for report in reports] == list(range(1, top + 1))
        assert {report["step"]: report["together"] for report in reports}[5] == 2
    assert [run.attempts for run in runs.values()] == [1, 1, 2, 2]


def test_a_job_that_runs_with_others_is_cancelled_alone(fused: RaySlots, tmp_path: Path) -> None:
    endless = Climbing(tmp_path, top=100_000)
    runs = climb(fused, tmp_path, stopped=endless, closed=endless, going_on=Climbing(tmp_path, top=60))
    assert next(runs["stopped"])["together"] == 3
    fused.cancel("stopped")
    next(runs["closed"])
    runs["closed"].close()
    assert [list(runs[name]) for name in ("stopped", "closed")] == [[], []]
    last = list(runs["going_on"])[-1]
    assert last == {"step": 60, "together": 1}
    assert int((tmp_path / "closed" / "kept").read_text()) < 60


def test_jobs_with_another_key_or_without_one_run_alone(fused: RaySlots, two: RaySlots, tmp_path: Path) -> None:
    job = Climbing(tmp_path, top=1)
    runs = climb(fused, tmp_path, first=job, other_key=replace(job, fuse_key="other"), no_key=replace(job, fuse_key=""))
    assert [[report["together"] for report in run] for run in runs.values()] == [[1]] * 3
    assert (fused.places, two.places) == (4, 1)


SCRIPT = """
import os, sys
from pathlib import Path
from kdray.slots.pool import SlotSettings
from kdray.evaluation.form_costs import MeasureForms
from kdray.evaluation.measuring import Latency
from kdray.models.fresh import word_tokenizer
from kdray.models.pretrained import Pretrained, save_model
from kdray.slots.cluster import connect
from kdray.slots.ray_slots import open_slots
def job(worker):
    print("output of a worker")
    yield {"pid": os.getpid()}
    if os.environ.get("ENDLESS"):
        import time
        time.sleep(1000)
folder = Path(sys.argv[1])
info = connect("local", False, folder / "logs")
with open_slots(SlotSettings(count=1), folder / "logs") as slots:
    print(next(slots.run(job, "job")).keys())
info.close()
"""


@pytest.mark.slow
def test_a_process_that_used_slots_prints_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    mark = f"KDRAY_TEST={uuid.uuid4().hex}"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, **dict([mark.split("=")]), "TMPDIR": str(tmp_path / "tmp")}
    completed = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (completed.stdout, completed.stderr, completed.returncode) == ("dict_keys(['pid'])\n", "", 0)
    assert "output of a worker" in (tmp_path / "logs" / "slot-0-rank-0.log").read_text()
    assert not list((tmp_path / "tmp").glob("kdray-*"))
    assert becomes_true(lambda: not processes_with(mark))


def becomes_true(condition: Callable[[], bool], limit_s: float = 20) -> bool:
    """Whether the condition becomes true before the time is up."""
    until = time.monotonic() + limit_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return condition()


def processes_with(mark: str) -> list[str]:
    """The command lines of the processes that inherited this environment variable."""
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
    def endless(worker: Worker) -> Iterator[Report]:
        yield {"pid": os.getpid()}
        time.sleep(1000)

    with open_slots(SlotSettings(count=1, cpus=1, stop_timeout_s=0.2), cluster / "endless-logs") as slots:
        pid = next(slots.run(endless, "endless"))["pid"]
        slots.close()
    assert becomes_true(lambda: not Path(f"/proc/{pid}").exists())
