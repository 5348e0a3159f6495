"""The hosts of the cluster tests: they are isolated, and they end with the process that made them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import Network, explain_unavailable, remove_leftovers
from tests.cluster.onprem import wait_for

pytestmark = pytest.mark.cluster

MAKER = """
import sys
sys.path.insert(0, {tests!r})
from tests.cluster.hosts import Network
network = Network()
print(network.folder, network.host(1).pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def skip_if_unavailable() -> None:
    if reason := explain_unavailable():
        pytest.skip(reason)


def network_links() -> str:
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout


def has_ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_hosts_reach_each_other_and_nothing_else() -> None:
    before = network_links()
    with Network() as network:
        one, two = network.host(1), network.host(2)
        assert network_links() == before
        to_two = ["bash", "-c", f": </dev/tcp/{two.address}/22"]
        assert one.run(["hostname"]).stdout == "h1\n"
        assert one.run(to_two).returncode == 0
        network.cut_off(two)
        assert one.run(["timeout", "3", *to_two]).returncode != 0
        network.reconnect(two)
        assert one.run(to_two).returncode == 0
        assert one.run(["timeout", "3", "bash", "-c", ": </dev/tcp/192.0.2.1/80"]).returncode != 0
        (two.folder / "tmp" / "of-two").touch()
        # The project itself is seen in /tmp of every host, if it lies there.
        assert "of-two" not in one.run(["ls", "/tmp"]).stdout.split()
        assert two.processes() == []
    assert network_links() == before
    assert not network.folder.exists()


def test_hosts_end_with_a_killed_test_run_and_the_next_run_deletes_their_folders() -> None:
    maker = MAKER.format(tests=str(Path(__file__).parents[2]))
    process = subprocess.Popen([sys.executable, "-c", maker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder, pid = process.stdout.readline().split()
    assert not has_ended(int(pid))
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: has_ended(int(pid)), "the host's end", 30)
    remove_leftovers()
    assert not Path(folder).exists()
