"""The division of a cluster's processors into slots, and the refusals."""

from typing import Any

import pytest

from kdray.errors import ResourceError, SpecError
from kdray.slots.pool import SlotSettings
from kdray.slots.sizing import (
    Growth,
    Node,
    describe_nodes,
    divide_into_slots,
    fused_jobs,
    with_plural,
    workers_that_fit,
)


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
        (SlotSettings(count=5), [Node(16, 2), Node(16, 2)], (5, 5.3333, 0.5)),
        (SlotSettings(count=3, gpus=0.6), [Node(16, 3)], (3, 5.3333, 0.6)),
        (SlotSettings(), [Node(0, 0), Node(8, 4), Node(8, 4)], (8, 2.0, 1.0)),
        (SlotSettings(gpus=0.3), [Node(24, 4)], (12, 2.0, 0.3)),
        (SlotSettings(gpus=2), [Node(8, 3)] * 2, (2, 8.0, 2.0)),
        (SlotSettings(cpus=3), [Node(4, 0)] * 3, (3, 3.0, 0.0)),
        (SlotSettings(cpus=8), [Node(16, 0), Node(4, 0), Node(4, 0)], (2, 8.0, 0.0)),
    ],
)
def test_number_of_slots_and_shares_of_a_worker(
    settings: SlotSettings, nodes: list[Node], expected: tuple[int, float, float]
) -> None:
    divided = divide_into_slots(settings, nodes)
    assert (divided.count, divided.cpus, divided.gpus) == expected


@pytest.mark.parametrize(
    "settings",
    [SlotSettings(count=5), SlotSettings(cpus=3), SlotSettings(count=1, gpus=1), SlotSettings(workers=5)],
)
def test_more_than_the_cluster_has_is_refused_unless_it_grows(settings: SlotSettings) -> None:
    if settings.count == 5 or settings.workers == 5:
        settings = settings.model_copy(update={"cpus": 1})
    with pytest.raises(ResourceError, match="The cluster has 2 nodes with 2 CPUs"):
        divide_into_slots(settings, [Node(2, 0)] * 2)
    assert divide_into_slots(settings, [Node(2, 0)] * 2, growth=Growth((Node(8, 2),) * 2))


def test_a_share_below_one_gpu_is_not_put_on_two_gpus() -> None:
    with pytest.raises(ResourceError, match="1 node with 16 CPUs and 3 GPUs"):
        divide_into_slots(SlotSettings(count=4, gpus=0.6), [Node(16, 3)])


def test_more_than_the_cluster_can_grow_to_is_refused() -> None:
    with pytest.raises(ResourceError, match="can grow to 1 node with 16 CPUs"):
        divide_into_slots(SlotSettings(count=4, cpus=8), [Node(2, 0)], growth=Growth((Node(16, 0),)))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"workers": 0}, {"gpus": -1}, {"cpus": 0}, {"count": "many"}])
def test_settings_that_make_no_slot_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"SlotSettings.{next(iter(wrong))}"):
        SlotSettings(**wrong)


def test_a_cluster_that_begins_without_workers_is_divided_as_if_it_had_grown() -> None:
    head, worker = Node(8, 0), Node(16, 4)
    divided = divide_into_slots(SlotSettings(), [head], Growth((head, worker, worker)))
    assert (divided.count, divided.cpus, divided.gpus) == (8, 4.0, 1.0)
    assert workers_that_fit([head], divided) == 0
    assert workers_that_fit([head, worker], divided) == 4


def test_slots_are_not_refused_if_only_the_autoscaler_knows_the_machines() -> None:
    settings = SlotSettings(count=4, cpus=7, gpus=1)
    assert divide_into_slots(settings, [Node(4, 0)], Growth(())).count == 4
    with pytest.raises(ResourceError, match="asked for 4 slots of 1 worker with 7 CPUs and 1 GPUs each"):
        divide_into_slots(settings, [Node(4, 0)])


def test_nodes_are_described_by_size() -> None:
    assert describe_nodes([]) == "no nodes"
    assert describe_nodes([Node(2, 0), Node(8, 1), Node(2, 0)]) == "2 nodes with 2 CPUs, 1 node with 8 CPUs and 1 GPUs"
    assert with_plural(0, "slot") == "0 slots"


@pytest.mark.parametrize(
    ("settings", "node", "expected"),
    [
        (SlotSettings(), Node(4, 0), 1),
        (SlotSettings(), Node(4, 1), 1),
        (SlotSettings(fused=3), Node(4, 0), 3),
        (SlotSettings(fused=3), Node(4, 1), 3),
        (SlotSettings(workers=2), Node(4, 2), 1),
        (SlotSettings(fused=3, workers=2), Node(4, 0), 1),
        (SlotSettings(fused=3, max_failures=0), Node(4, 0), 1),
    ],
)
def test_how_many_jobs_a_slot_runs_as_one(settings: SlotSettings, node: Node, expected: int) -> None:
    assert fused_jobs(settings, divide_into_slots(settings, [node])) == expected
    assert ("fused" in settings.model_dump()) == (settings.fused != 1)  # records of earlier sweeps stay equal
