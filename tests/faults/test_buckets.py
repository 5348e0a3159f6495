"""Machines that share nothing but a bucket: the head is lost with its disk; nodes see none of each other's files."""

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
from kdray.storage.mirror import ROOT, mirror_of
from kdray.storage.paths import SweepPaths
from tests.faults.sweep_process import LIMIT_S, SweepProcess, numbers, until
from tests.storage.bucket_server import BucketServer, on_node

pytestmark = [pytest.mark.faults, pytest.mark.slow]

HASTY = "from kdray.storage import bucket_copies, owner\nowner.DEAD_AFTER_S, bucket_copies.COPY_S = 4.0, 0.5\n"


class BucketSweepProcess(SweepProcess):
    """A sweep in a bucket, run by whichever machine `storage` is a mirror on."""

    url: str

    def begin(self, *arguments: str, slots: int = 2, **environment: str) -> subprocess.Popen[str]:
        """Start the driver on this machine."""
        return super().begin(*arguments, "--storage", self.url, slots=slots, **environment)


@pytest.fixture
def far_night(bucket: str, night: SweepProcess) -> BucketSweepProcess:
    night.script.write_text(HASTY + night.script.read_text())
    far = BucketSweepProcess(night.script, mirror_of(bucket), night.mark, recoveries=night.recoveries)
    far.url = bucket
    return far


def holds_a_finished_sweep(night: BucketSweepProcess, server: BucketServer) -> None:
    """The bucket has what a finished sweep leaves, and nothing of what it does not."""
    names = server.names(f"{night.url}/night")
    assert {f"chosen/{FOLDER}", f"report/{FOLDER}", "sweep.json", "teacher.json", "choice.json"} <= names
    assert {"ledger/journal.log", "logs/kdray.log"} <= names
    assert not [name for name in names if name.endswith(("checkpoint.pt", "ended.json", "owner.json"))]


def test_a_head_that_is_lost_with_its_disk_costs_no_trial(
    far_night: BucketSweepProcess, undisturbed: list[Any], bucket_server: BucketServer, tmp_path: Path
) -> None:
    night = far_night
    driver = night.begin("--local", slots=1)
    trial = night.trial_in_its_middle()
    url = f"{night.url}/night/trials/{trial.number:04d}/checkpoint.pt"
    until(lambda: bucket_server.files.exists(url) or night.records()[-1].number > trial.number, "a checkpoint is sent")
    driver.kill()
    driver.wait(LIMIT_S)
    night.storage = on_node(tmp_path / "another", night.storage)
    other = {ROOT: str(tmp_path / "another")}
    owner = f"{night.url}/night/owner.json"
    until(lambda: time.time() - bucket_server.files.modified(owner).timestamp() > 5, "the dead one is taken for dead")
    night.run("--local", slots=1, **other)
    assert "is dead: going on in its place" in night.said
    night.is_sound()
    assert numbers(night.records()) == undisturbed
    holds_a_finished_sweep(night, bucket_server)


def test_ctrl_c_leaves_everything_in_the_bucket(
    far_night: BucketSweepProcess, undisturbed: list[Any], bucket_server: BucketServer, tmp_path: Path
) -> None:
    """Also the checkpoint of the very step: another machine goes on at once, and redoes nothing."""
    night = far_night
    driver = night.begin("--local", slots=1)
    night.trial_in_its_middle()
    driver.send_signal(signal.SIGINT)
    night.end(130)
    assert "owner.json" not in bucket_server.names(f"{night.url}/night")
    night.storage = on_node(tmp_path / "another", night.storage)
    night.run("--local", slots=1, **{ROOT: str(tmp_path / "another")})
    night.is_sound()
    assert numbers(night.records()) == undisturbed
    holds_a_finished_sweep(night, bucket_server)


@pytest.fixture
def two_nodes(far_night: BucketSweepProcess, bucket: str, tmp_path: Path) -> Iterator[Cluster]:
    """A head with one processor, and a node with another one that sees a folder of its own at the mirrors' path."""
    mirrors, others = Path(os.environ[ROOT]), tmp_path / "others"
    for folder in (mirrors, others):
        folder.mkdir(exist_ok=True)
    os.environ["KDRAY_TEST"] = far_night.mark
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray = [str(Path(sys.executable).with_name("ray")), "start", f"--address={nodes.address}", "--num-cpus=1", "--block"]
    private = f"mount --bind {shlex.quote(str(others))} {shlex.quote(str(mirrors))} && exec {shlex.join(ray)}"
    with (tmp_path / "node.txt").open("w") as out:
        node = subprocess.Popen(["unshare", "-m", "sh", "-c", private], stdout=out, stderr=out)
    try:
        until(lambda: node.poll() is not None or "started" in (tmp_path / "node.txt").read_text(), "a node")
        if node.poll() is not None:
            pytest.skip(f"no file system of its own can be mounted here: {(tmp_path / 'node.txt').read_text()}")
        yield nodes
    finally:
        node.terminate()
        node.wait(60)
        nodes.shutdown()
        del os.environ["KDRAY_TEST"]


def test_nodes_that_share_nothing_but_the_bucket(
    far_night: BucketSweepProcess,
    two_nodes: Cluster,
    bucket_server: BucketServer,
    tmp_path: Path,
    undisturbed: list[Any],
) -> None:
    """Both train; each fetched what the other wrote once; the table has the same trials."""
    night = far_night
    night.run("--address", two_nodes.address, slots=2)
    records = night.records()
    assert [record.state for record in records] == ["completed"] * 6
    holds_a_finished_sweep(night, bucket_server)
    other = SweepPaths(on_node(tmp_path / "others", night.storage), "night")
    hosts = [path.name for path in (other.logs, night.paths.logs) if any(path.glob("slot-*"))]
    assert len(hosts) == 2
    assert list(other.cache.glob("models/*/model.safetensors"))
    assert list(other.cache.glob("transfers/*/*.arrow"))
    assert {f"logs/slot-{slot}-rank-0.log" for slot in (0, 1)} <= bucket_server.names(f"{night.url}/night")
    for name in bucket_server.names(f"{night.url}/cache"):
        if not name.endswith(FOLDER):
            assert bucket_server.asked("GET", f"{night.url}/cache/{name}") <= 2, name
    expected = {row[0]: row for row in undisturbed}
    assert [record.params for record in records] == [expected[record.number][1] for record in records]
