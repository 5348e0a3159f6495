"""Three hosts, a cluster that `ray up` made of them, and a sweep of six small trials."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdray.models.pretrained import Pretrained
from tests.cluster.hosts import Network, missing
from tests.cluster.onprem import Cluster, give_uv
from tests.faults.sweep_process import SWEEP


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if why := missing():
        pytest.skip(why)
    with Network() as made:
        yield made


@pytest.fixture
def plugs(network: Network) -> Iterator[None]:
    """However a test ends, the next one finds every living host in its network."""
    yield
    for machine in network.machines.values():
        if machine.alive and machine is not network.laptop:
            network.reconnect(machine)


@pytest.fixture(scope="module")
def cluster(network: Network) -> Cluster:
    """Hosts 1 to 3, the first of them the head; it ends with them."""
    for number in (1, 2, 3):
        give_uv(network.host(number))
    made = Cluster.on(network, head=1, workers=[2, 3])
    made.up()
    made.await_nodes(*made.hosts)
    return made


@pytest.fixture(scope="module")
def night(network: Network, data_folder: Path, teacher: Pretrained) -> Path:
    """A sweep's file on the laptop; what it reads lies where all hosts see it."""
    inputs = network.folder / "inputs"
    shutil.copytree(data_folder, inputs / "data")
    shutil.copytree(teacher.folder, inputs / "teacher")
    script = network.folder / "night.py"
    script.write_text(SWEEP.format(data=str(inputs / "data"), teacher=str(inputs / "teacher")))
    return script
