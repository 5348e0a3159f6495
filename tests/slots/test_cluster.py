"""What the file that `ray up` leaves on a cluster's head says of it; without Ray."""

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
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(cluster, "BOOTSTRAP_CONFIG", path)
    return path


def test_a_cluster_grows_to_what_its_file_allows() -> None:
    assert cluster._growth_in(AWS) == Growth((Node(0, 0), *[Node(16, 4)] * 3, Node(4, 0)))


def test_a_file_that_does_not_say_how_large_its_machines_are_promises_nothing() -> None:
    assert cluster._growth_in(LOCAL) is None


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 2, 3], 3), ([3], 3), ([1], 1)])
def test_the_machines_a_cluster_begins_with_are_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int], expected: int
) -> None:
    def there() -> Iterator[tuple[Node, ...]]:
        for count in counts:
            yield (Node(1, 0),) * count
        while True:
            yield (Node(1, 0),) * counts[-1]

    joining = there()
    file.write_text(yaml.safe_dump(LOCAL))
    monkeypatch.setattr(cluster, "FIRST_NODES_S", 0.3)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cluster, "list_nodes", lambda: next(joining))
    said: list[str] = []
    cluster._await_first_nodes(said.append)
    assert len(next(joining)) == expected
    assert bool(said) == (counts[0] < 3)


def test_without_such_a_file_nobody_is_waited_for(file: Path) -> None:
    cluster._await_first_nodes(pytest.fail)


def test_on_the_head_of_a_cluster_no_ray_is_started_when_the_clusters_is_not_to_be_found(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(address: str | None, **options: object) -> None:
        raise ConnectionError(f"nothing at {address}")

    file.write_text(yaml.safe_dump(LOCAL))
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(ResourceError, match="no Ray cluster that can be found from here: nothing at auto"):
        connect(None, False, tmp_path)


def test_what_was_joined_in_words() -> None:
    info = ClusterInfo("10.0.0.1:6379", False, Path("/tmp/ray"), (Node(8, 0), Node(16, 4)))
    assert info.sentence == "Joined the Ray cluster at 10.0.0.1:6379: 2 nodes, 24 CPUs and 4 GPUs."
