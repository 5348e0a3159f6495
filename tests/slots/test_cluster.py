"""The cluster's file that `ray up` writes on the head: growth, first machines, joining. Without Ray."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kdray.errors import ResourceError
from kdray.slots import cluster
from kdray.slots.cluster import ClusterInfo, connect
from kdray.slots.sizing import Growth, Node

AWS = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0, "memory": 1e9}},
        "gpu": {"resources": {"CPU": 16, "GPU": 4}, "min_workers": 1, "max_workers": 5},
        "cpu": {"resources": {"CPU": 4}, "max_workers": 1},
    },
}
LOCAL = {
    "max_workers": 3,
    "head_node_type": "local.cluster.node",
    "available_node_types": {"local.cluster.node": {"resources": {}, "min_workers": 2, "max_workers": 2}},
}


@pytest.fixture
def bootstrap_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the cluster's file, which does not exist yet."""
    path = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(cluster, "BOOTSTRAP_CONFIG", path)
    return path


def test_growth_is_what_the_file_allows() -> None:
    assert cluster._growth_in_config(AWS) == Growth((Node(0, 0), *[Node(16, 4)] * 3, Node(4, 0)))


def test_growth_is_unknown_if_the_file_does_not_give_the_size_of_the_machines() -> None:
    assert cluster._growth_in_config(LOCAL) is None


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 2, 3], 3), ([3], 3), ([1], 1)])
def test_the_machines_that_a_cluster_begins_with_are_waited_for(
    bootstrap_config: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int], expected: int
) -> None:
    def joining_nodes() -> Iterator[tuple[Node, ...]]:
        for count in counts:
            yield (Node(1, 0),) * count
        while True:
            yield (Node(1, 0),) * counts[-1]

    nodes = joining_nodes()
    bootstrap_config.write_text(yaml.safe_dump(LOCAL))
    monkeypatch.setattr(cluster, "FIRST_NODES_TIMEOUT_S", 0.3)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cluster, "list_nodes", lambda: next(nodes))
    notes: list[str] = []
    cluster._wait_for_first_nodes(notes.append)
    assert len(next(nodes)) == expected
    assert bool(notes) == (counts[0] < 3)


def test_without_the_file_no_machines_are_waited_for(bootstrap_config: Path) -> None:
    cluster._wait_for_first_nodes(pytest.fail)


def test_a_ray_that_cannot_start_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(cluster, "address_to_join", lambda address: None)
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(ResourceError, match="Ray did not start: The current node timed out"):
        cluster.connect("local", False, tmp_path)


def test_on_the_head_of_a_cluster_a_missing_cluster_is_refused_and_no_local_ray_is_started(
    bootstrap_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def address_to_join(address: str | None) -> None:
        raise ConnectionError(f"nothing at {address}")

    bootstrap_config.write_text(yaml.safe_dump(LOCAL))
    monkeypatch.setattr(cluster, "address_to_join", address_to_join)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: pytest.fail("a Ray is started"))
    with pytest.raises(ResourceError, match="no Ray cluster that can be found from here: nothing at auto"):
        connect(None, False, tmp_path)


@pytest.fixture
def strangers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which Ray finds the address of a cluster, written by another user."""
    file = tmp_path / "ray_current_cluster"
    file.write_text("10.66.6.6:6379")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "address_file", lambda: file)
    owner = 12345 if os.getuid() == 0 else os.getuid()
    os.chown(file, owner, -1)
    monkeypatch.setattr(cluster.os, "getuid", lambda: owner + 1)
    return file


def test_a_cluster_that_another_user_of_the_machine_names_is_not_joined(strangers_file: Path) -> None:
    notes: list[str] = []
    assert cluster._unless_of_another_user(None, notes.append) == "local"
    (note,) = notes
    assert note.startswith(f"{strangers_file} names a Ray cluster, and belongs to another user of this machine")
    with pytest.raises(ResourceError, match="Give the address of the cluster with --address"):
        cluster._unless_of_another_user("auto", pytest.fail)


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379"])
def test_an_address_that_the_user_gives_is_used(strangers_file: Path, address: str) -> None:
    assert cluster._unless_of_another_user(address, pytest.fail) == address


def test_an_address_in_the_environment_and_a_file_of_the_user_are_used(
    strangers_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.os, "getuid", lambda: strangers_file.stat().st_uid)
    assert cluster._unless_of_another_user(None, pytest.fail) is None
    monkeypatch.undo()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster._unless_of_another_user("auto", pytest.fail) == "auto"


def test_the_sentence_names_the_cluster_and_its_size() -> None:
    info = ClusterInfo(address="10.0.0.1:6379", local=False, session=Path("/tmp/ray"), nodes=(Node(8, 0), Node(16, 4)))
    assert info.sentence == "Joined the Ray cluster at 10.0.0.1:6379: 2 nodes, 24 CPUs and 4 GPUs."
