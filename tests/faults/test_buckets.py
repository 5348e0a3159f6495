"""Machines that share only a bucket: a head that is lost with its disk; nodes that cannot read each other's files."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from kdray.storage.bucket import FOLDER
from kdray.storage.mirror import MIRROR_VARIABLE, mirror_of
from kdray.storage.paths import SweepPaths
from tests.faults.sweep_process import LIMIT_S, NAME, SweepProcess, wait_for, without_clock_metrics
from tests.storage.bucket_server import BucketServer, on_node

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SHORT_INTERVALS = (
    "from kdray.storage import bucket_copies, owner\nowner.DEAD_AFTER_S, bucket_copies.COPY_S = 4.0, 0.5\n"
)


class BucketSweepProcess(SweepProcess):
    """A sweep in a bucket. `storage` is the mirror on the machine that runs the sweep."""

    url: str
    """The URL of the storage."""

    def start(self, *arguments: str, slots: int = 2, **environment: str) -> subprocess.Popen[str]:
        """Start the driver on this machine."""
        return super().start(*arguments, "--storage", self.url, slots=slots, **environment)


@pytest.fixture
def bucket_sweep(bucket: str, sweep: SweepProcess) -> BucketSweepProcess:
    sweep.script.write_text(SHORT_INTERVALS + sweep.script.read_text())
    process = BucketSweepProcess(sweep.script, mirror_of(bucket), sweep.mark, recoveries=sweep.recoveries)
    process.url = bucket
    return process


def assert_bucket_has_finished_sweep(sweep: BucketSweepProcess, server: BucketServer) -> None:
    """Check that the bucket has the files of a finished sweep, and no temporary ones."""
    names = server.names(f"{sweep.url}/{NAME}")
    assert {f"chosen/{FOLDER}", f"report/{FOLDER}", "sweep.json", "teacher.json", "choice.json"} <= names
    assert {"ledger/journal.log", "logs/kdray.log"} <= names
    assert not [name for name in names if name.endswith(("checkpoint.pt", "ended.json", "owner.json"))]


def test_no_trial_is_lost_when_the_head_dies_with_its_disk(
    bucket_sweep: BucketSweepProcess, expected_table: list[Any], bucket_server: BucketServer, tmp_path: Path
) -> None:
    sweep = bucket_sweep
    driver = sweep.start("--local", slots=1)
    trial = sweep.wait_for_running_trial()
    url = f"{sweep.url}/{NAME}/trials/{trial.number:04d}/checkpoint.pt"
    wait_for(
        lambda: bucket_server.files.exists(url) or sweep.records()[-1].number > trial.number,
        "a checkpoint in the bucket",
    )
    driver.kill()
    driver.wait(LIMIT_S)
    sweep.storage = on_node(tmp_path / "another", sweep.storage)
    another_machine = {MIRROR_VARIABLE: str(tmp_path / "another")}
    owner = f"{sweep.url}/{NAME}/owner.json"
    wait_for(lambda: time.time() - bucket_server.files.modified(owner).timestamp() > 5, "the dead owner's file is old")
    sweep.run("--local", slots=1, **another_machine)
    assert "is dead; this process continues the sweep" in sweep.output
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table
    assert_bucket_has_finished_sweep(sweep, bucket_server)


def test_the_bucket_has_everything_after_ctrl_c(
    bucket_sweep: BucketSweepProcess, expected_table: list[Any], bucket_server: BucketServer, tmp_path: Path
) -> None:
    """With the checkpoint of the last step, so that another machine continues at once and repeats no step."""
    sweep = bucket_sweep
    driver = sweep.start("--local", slots=1)
    sweep.wait_for_running_trial()
    driver.send_signal(signal.SIGINT)
    sweep.end(130)
    assert "owner.json" not in bucket_server.names(f"{sweep.url}/{NAME}")
    sweep.storage = on_node(tmp_path / "another", sweep.storage)
    sweep.run("--local", slots=1, **{MIRROR_VARIABLE: str(tmp_path / "another")})
    sweep.assert_sound()
    assert without_clock_metrics(sweep.records()) == expected_table
    assert_bucket_has_finished_sweep(sweep, bucket_server)


@pytest.fixture
def two_nodes(bucket_sweep: BucketSweepProcess, bucket: str, tmp_path: Path) -> Iterator[Cluster]:
    """A head and a node with one CPU each. At the path of the mirrors, the node has a folder of its own."""
    mirrors, others = Path(os.environ[MIRROR_VARIABLE]), tmp_path / "others"
    for folder in (mirrors, others):
        folder.mkdir(exist_ok=True)
    os.environ["KDRAY_TEST"] = bucket_sweep.mark
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray = [str(Path(sys.executable).with_name("ray")), "start", f"--address={nodes.address}", "--num-cpus=1", "--block"]
    private = f"mount --bind {shlex.quote(str(others))} {shlex.quote(str(mirrors))} && exec {shlex.join(ray)}"
    with (tmp_path / "node.txt").open("w") as out:
        node = subprocess.Popen(["unshare", "-m", "sh", "-c", private], stdout=out, stderr=out)
    try:
        wait_for(lambda: node.poll() is not None or "started" in (tmp_path / "node.txt").read_text(), "a node")
        if node.poll() is not None:
            pytest.skip(f"no file system of its own can be mounted here: {(tmp_path / 'node.txt').read_text()}")
        yield nodes
    finally:
        node.terminate()
        node.wait(60)
        nodes.shutdown()
        del os.environ["KDRAY_TEST"]


def test_nodes_that_share_only_a_bucket_train_together(
    bucket_sweep: BucketSweepProcess,
    two_nodes: Cluster,
    bucket_server: BucketServer,
    tmp_path: Path,
    expected_table: list[Any],
) -> None:
    """Both nodes train, each fetches the files of the other one once, and the table has the same trials."""
    sweep = bucket_sweep
    sweep.run("--address", two_nodes.address, slots=2)
    records = sweep.records()
    assert [record.state for record in records] == ["completed"] * 6
    assert_bucket_has_finished_sweep(sweep, bucket_server)
    other = SweepPaths(on_node(tmp_path / "others", sweep.storage), NAME)
    hosts = [path.name for path in (other.logs, sweep.paths.logs) if any(path.glob("slot-*"))]
    assert len(hosts) == 2
    assert list(other.cache.glob("models/*/model.safetensors"))
    assert list(other.cache.glob("transfers/*/*.arrow"))
    assert {f"logs/slot-{slot}-rank-0.log" for slot in (0, 1)} <= bucket_server.names(f"{sweep.url}/{NAME}")
    for name in bucket_server.names(f"{sweep.url}/cache"):
        if not name.endswith(FOLDER):
            assert bucket_server.count_requests("GET", f"{sweep.url}/cache/{name}") <= 2, name
    expected_params = {number: params for number, params, *_ in expected_table}
    assert [record.params for record in records] == [expected_params[record.number] for record in records]
