"""Fixtures: three hosts, a cluster that `ray up` starts on them, and the script of a sweep of six small trials."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdray.models.pretrained import Pretrained
from tests.cluster.hosts import Network, explain_unavailable
from tests.cluster.onprem import Cluster, install_uv
from tests.faults.sweep_process import SWEEP


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := explain_unavailable():
        pytest.skip(reason)
    with Network() as network:
        yield network


@pytest.fixture
def reconnect_hosts(network: Network) -> Iterator[None]:
    """Reconnect every running host after a test, also if the test fails."""
    yield
    for machine in network.machines.values():
        if machine.alive and machine is not network.laptop:
            network.reconnect(machine)


@pytest.fixture(scope="module")
def cluster(network: Network) -> Cluster:
    """The cluster of hosts 1 to 3, with host 1 as its head. It ends with the hosts."""
    for number in (1, 2, 3):
        install_uv(network.host(number))
    cluster = Cluster.on(network, head=1, workers=[2, 3])
    cluster.up()
    cluster.await_nodes(*cluster.hosts)
    return cluster


@pytest.fixture(scope="module")
def script(network: Network, data_folder: Path, teacher: Pretrained) -> Path:
    """The script of the sweep on the laptop. Its data and its teacher are in a folder that all hosts share."""
    inputs = network.folder / "inputs"
    shutil.copytree(data_folder, inputs / "data")
    shutil.copytree(teacher.folder, inputs / "teacher")
    script = network.folder / "six_trials.py"
    script.write_text(SWEEP.format(data=str(inputs / "data"), teacher=str(inputs / "teacher")))
    return script
