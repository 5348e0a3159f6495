"""Nodes that die, are drained, join late or see another storage: three Ray nodes on this machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from kdray.errors import JobError, StorageError
from kdray.slots.cluster import connect
from kdray.slots.job import Instruction, Report, Worker
from kdray.slots.pool import SlotSettings
from kdray.slots.ray_slots import RaySlots, open_slots
from tests.faults.sweep_process import LIMIT_S, wait_for

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file
pytestmark = [pytest.mark.faults, pytest.mark.slow]


@dataclass(frozen=True)
class CountingJob:
    """A job with steps of 20 ms. It saves its step in a file when it is suspended, and after every tenth step."""

    file: Path
    steps: int

    def __call__(self, worker: Worker) -> Iterator[Report]:
        step = int(self.file.read_text()) if self.file.exists() else 0
        yield {"from": step, "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
        while step < self.steps:
            time.sleep(0.02)
            step += 1
            instruction = worker.next_instruction(save=step % 10 == 0)
            if instruction in (Instruction.SAVE, Instruction.SUSPEND):
                self.file.write_text(str(step))
            if instruction >= Instruction.SUSPEND:
                return
        yield {"reached": step, "pid": os.getpid()}


@dataclass
class RunningJob:
    """A job on a slot, and a thread that stores its reports."""

    reports: list[Report]
    thread: threading.Thread
    run: Any

    def wait(self) -> None:
        """Wait until the job ends."""
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()


def start_job(slots: RaySlots, file: Path, steps: int) -> RunningJob:
    run = slots.run(CountingJob(file, steps), file.name)
    reports: list[Report] = []

    def listen() -> None:
        for report in run:
            reports.append(report)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    return RunningJob(reports, thread, run)


def measure_recovery(job: RunningJob) -> float:
    """Wait until the job has started again on some node. Returns the seconds."""
    start = time.monotonic()
    wait_for(lambda: len(job.reports) > 1, "the second start of the job")
    return time.monotonic() - start


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head without CPUs, and three nodes with one CPU each."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes(60)
    info = connect(nodes.address, True, tmp_path / "logs")
    yield nodes
    info.close()
    nodes.shutdown()


@pytest.fixture
def slots(cluster: Cluster, tmp_path: Path) -> Iterator[RaySlots]:
    with open_slots(SlotSettings(count=2, cpus=1), tmp_path / "logs") as pool:
        pool.wait(LIMIT_S)
        yield pool


def node_of(cluster: Cluster, node_id: str) -> Any:
    return next(node for node in cluster.worker_nodes if node.node_id == node_id)


def test_only_the_slot_of_a_dead_node_moves_to_another_node(
    cluster: Cluster, slots: RaySlots, tmp_path: Path, record_recovery: Callable[[float], None]
) -> None:
    one, two = (start_job(slots, tmp_path / name, steps) for name, steps in (("one", 400), ("two", 2000)))
    wait_for(lambda: one.reports and two.reports and (tmp_path / "one").exists(), "the start of both jobs")
    cluster.remove_node(node_of(cluster, one.reports[0]["node"]), allow_graceful=False)
    record_recovery(measure_recovery(one))
    one.wait()
    assert [report.get("reached") for report in one.reports] == [None, None, 400]
    assert one.reports[1]["from"] > 0
    assert one.reports[1]["node"] != one.reports[0]["node"]
    assert one.run.attempts == 2
    two.wait()
    assert [report["pid"] for report in two.reports] == [two.reports[0]["pid"]] * 2
    assert two.run.attempts == 1


def test_the_job_of_a_drained_node_moves_with_its_checkpoint_and_counts_no_failure(
    cluster: Cluster, slots: RaySlots, tmp_path: Path, record_recovery: Callable[[float], None]
) -> None:
    job = start_job(slots, tmp_path / "one", 500)
    wait_for(lambda: job.reports, "the start of the job")
    first = job.reports[0]
    subprocess.run(
        [
            # The command of this environment, which need not be on the search path.
            Path(sys.executable).with_name("ray"),
            "drain-node",
            "--address",
            cluster.address,
            "--node-id",
            first["node"],
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "test",
            "--deadline-remaining-seconds",
            "60",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    record_recovery(measure_recovery(job))
    job.wait()
    assert [report.get("reached") for report in job.reports] == [None, None, 500]
    assert job.reports[1]["from"] > 0
    assert job.reports[1]["node"] != first["node"]
    assert job.run.attempts == 1


def test_the_number_of_slots_follows_the_number_of_machines(tmp_path: Path) -> None:
    """With count="auto": one machine, then two, then one, which continues both jobs."""
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first = machines.add_node(num_cpus=1)
    notes: list[str] = []
    info = connect(machines.address, True, tmp_path / "logs")
    try:
        with open_slots(SlotSettings(), tmp_path / "logs", note=notes.append) as pool:
            pool.wait(LIMIT_S)
            assert pool.count == 1
            one, two = (start_job(pool, tmp_path / name, 1200) for name in ("one", "two"))
            wait_for(lambda: one.reports, "the start of the first job")
            late = machines.add_node(num_cpus=1)
            wait_for(lambda: two.reports, "the start of the second job")
            assert pool.count == 2
            assert (one.reports[0]["node"], two.reports[0]["node"]) == (first.node_id, late.node_id)
            machines.remove_node(first, allow_graceful=False)
            wait_for(lambda: pool.count == 1, "a smaller pool")
            for job in (one, two):
                job.wait()
                assert job.reports[-1]["reached"] == 1200
            assert two.run.attempts == 1
            assert {report.get("node") for report in one.reports[1:]} == {late.node_id, None}
        assert not slot_threads()
    finally:
        info.close()
        machines.shutdown()
    assert notes == [
        "The cluster grew to 3 nodes: room for 2 slots.",
        "The cluster shrank to 2 nodes: room for 1 slot.",
    ]


def slot_threads() -> list[str]:
    """The threads of this process that may call Ray. A call after ray.shutdown would end the process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("slot-", "cluster"))]


def test_a_slot_that_never_started_leaves_no_thread(cluster: Cluster, tmp_path: Path) -> None:
    taken = [ray.remote(num_cpus=1)(threading.Event).remote() for _ in range(3)]
    ray.get([holder.is_set.remote() for holder in taken])
    with open_slots(SlotSettings(count=1, cpus=1, stop_timeout_s=5), tmp_path / "logs") as pool:
        pool.wait(8)
        assert pool.up() == 0
        assert "slot-0" in slot_threads()
    assert not slot_threads()


def test_a_machine_that_sees_another_storage_is_refused_before_anything_is_trained(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A file that has another content for the workers, as on machines without a shared folder."""
    proof = tmp_path / "owner.json"
    proof.write_text("the driver")
    with open_slots(SlotSettings(count=2, cpus=1), tmp_path / "logs", proof) as pool:
        proof.write_text("another driver")
        with pytest.raises(StorageError, match=r"the driver wrote owner.json there, and the machine .* another one"):
            pool.wait(LIMIT_S)
        with pytest.raises(StorageError, match="must be one place for all machines"):
            list(pool.run(CountingJob(tmp_path / "never", 1), "never"))
    assert not (tmp_path / "never").exists()


def test_only_the_job_that_uses_up_the_memory_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's memory monitor kills the worker of the job each time."""

    def greedy(worker: Worker) -> Iterator[Report]:
        blocks = []
        yield {}
        while True:
            blocks.append(bytearray(os.urandom(1 << 20)) * 64)
            time.sleep(0.02)

    def modest(worker: Worker) -> Iterator[Report]:
        yield {"well": True}

    used, total = _memory()
    monkeypatch.setenv("RAY_memory_usage_threshold", str(min(0.95, (used + 6e9) / total)))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    info = connect("local", False, tmp_path / "logs")
    settings = SlotSettings(count=1, cpus=1, max_failures=1)
    try:
        with open_slots(settings, tmp_path / "logs") as pool:
            with pytest.raises(JobError, match=r"its worker died each of the 2 times it was tried: .*out of memory"):
                list(pool.run(greedy, "greedy"))
            assert list(pool.run(modest, "modest")) == [{"well": True}]
    finally:
        info.close()


def _memory() -> tuple[float, float]:
    """The memory in use and the total memory, in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (float(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total - free, total


def test_a_stopped_process_is_ended_by_a_signal_from_its_node(
    cluster: Cluster, tmp_path: Path, record_recovery: Callable[[float], None]
) -> None:
    """A stopped process does not react to Ray's messages."""
    settings = SlotSettings(count=1, cpus=1, progress_timeout_s=4)
    with open_slots(settings, tmp_path / "logs") as pool:
        job = start_job(pool, tmp_path / "one", 300)
        wait_for(lambda: job.reports and (tmp_path / "one").exists(), "the start of the job")
        pid = job.reports[0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        record_recovery(measure_recovery(job))
        job.wait()
        assert [report.get("reached") for report in job.reports] == [None, None, 300]
        assert not Path(f"/proc/{pid}").exists()
