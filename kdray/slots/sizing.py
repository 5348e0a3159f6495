"""Divides the processors of a cluster into slots. It computes with lists of machines, and does not call Ray.

Slots that the cluster does not have room for are refused here, before anything is started. The message says what was
requested and what the cluster has.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from kdray.errors import ResourceError
from kdray.slots.pool import SlotSettings

MAX_CPU_SLOTS = 8
"""The most slots that count="auto" gives on CPUs alone. With more, memory and the search are the limit, not cores."""

TUNE_CPUS = 0.02
"""CPUs of each worker's share that are left to Ray Tune: its trials wait for slots, and Ray must schedule them too."""

ROUNDING = 1e-6
"""Added before a number is rounded down, because floating point may give 2.9999999 instead of 3."""


@dataclass(frozen=True)
class Node:
    """The processors of one machine of the cluster."""

    cpus: float
    gpus: float

    @classmethod
    def from_resources(cls, resources: Mapping[str, float]) -> Self:
        """A node with these resources, under Ray's names."""
        return cls(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)))


@dataclass(frozen=True)
class Growth:
    """The machines that a cluster with an autoscaler can have at most."""

    nodes: tuple[Node, ...]
    """Empty where only the autoscaler knows them."""

    @property
    def is_known(self) -> bool:
        """Whether the machines are known here."""
        return bool(self.nodes)


@dataclass(frozen=True)
class SlotShares:
    """The number of slots, and the resources of each worker."""

    count: int
    workers: int
    """Workers of each slot."""
    cpus: float
    """CPUs of each worker."""
    gpus: float
    """GPUs of each worker."""

    @property
    def threads(self) -> int:
        """Processor threads of each worker."""
        return max(1, int(self.cpus + ROUNDING))

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of each worker, as Ray reserves them."""
        bundle = {"CPU": round(max(self.cpus - TUNE_CPUS, TUNE_CPUS), 4)}
        return bundle | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        workers = f"{with_plural(self.count, 'slot')} of {with_plural(self.workers, 'worker')}"
        return f"{workers} with {self.cpus:g} CPUs{gpus} each"


def divide_into_slots(settings: SlotSettings, nodes: Iterable[Node], growth: Growth | None = None) -> SlotShares:
    """Divide a cluster of these nodes into slots as the settings request.

    `growth`: the nodes that the cluster can have at most; None if it does not grow. Raises ResourceError when the
    cluster neither has nor can grow to what is requested.
    """
    present = tuple(nodes)
    most = growth.nodes if growth and growth.is_known else present
    only_autoscaler_knows = growth is not None and not growth.is_known
    cpus, gpus = sum(node.cpus for node in most), sum(node.gpus for node in most)
    count = _slot_count(settings, cpus, gpus)
    if settings.count == "auto" and not only_autoscaler_knows:
        count = max(1, min(count, _slots_that_fit(settings, gpus, most)))
    workers = count * settings.workers
    gpu_share = _gpu_share(workers, most) if settings.gpus == "auto" else settings.gpus
    cpu_share = settings.cpus or _cpu_share(workers, gpu_share, most) or _round_down(cpus / workers)
    shares = SlotShares(count=count, workers=settings.workers, cpus=cpu_share, gpus=gpu_share)
    if only_autoscaler_knows and cpu_share:
        return shares  # cannot be checked here: slots.start_timeout_s limits the wait
    if workers_that_fit(most, shares) < workers:
        verb = "has" if most == present else "can grow to"
        raise ResourceError(
            f"slots: asked for {shares}. The cluster {verb} {describe_nodes(most)}. Ask for less: slots.count, "
            "slots.workers, slots.cpus, slots.gpus."
        )
    return shares


def fused_jobs(settings: SlotSettings, shares: SlotShares) -> int:
    """How many jobs a slot may run as one."""
    # In its last attempt a job runs alone; where there is only one attempt, it never runs with others.
    return 1 if shares.workers > 1 or settings.max_failures == 0 else settings.fused


def _slot_count(settings: SlotSettings, cpus: float, gpus: float) -> int:
    """How many slots the processors are enough for, if each machine could be divided without a remainder."""
    if settings.count != "auto":
        return settings.count
    gpus_each = _gpus_each(settings, gpus)
    by_cpu = cpus / (settings.cpus or 1.0) / settings.workers
    if gpus_each:
        return max(1, int(min(gpus / gpus_each / settings.workers, by_cpu)))
    return max(1, min(MAX_CPU_SLOTS, int(by_cpu)))


def _slots_that_fit(settings: SlotSettings, gpus: float, nodes: tuple[Node, ...]) -> int:
    """How many slots fit on the nodes, where each worker lies on one node."""
    # A share of CPUs that is not requested is computed later, and must not limit the number here.
    cpus = settings.cpus or 0.0001
    shares = SlotShares(count=1, workers=settings.workers, cpus=cpus, gpus=_gpus_each(settings, gpus))
    return workers_that_fit(nodes, shares) // settings.workers


def _gpus_each(settings: SlotSettings, gpus: float) -> float:
    """GPUs of one worker; "auto" counts as one GPU where the cluster has any."""
    return float(gpus > 0) if settings.gpus == "auto" else settings.gpus


def _gpu_share(workers: int, nodes: tuple[Node, ...]) -> float:
    """The largest equal share of a GPU with which so many workers fit on the nodes; 0 where there is no GPU."""
    gpus = sum(int(node.gpus) for node in nodes)
    return _round_down(1 / math.ceil(workers / gpus)) if gpus else 0.0


def _cpu_share(workers: int, gpus: float, nodes: tuple[Node, ...]) -> float:
    """The largest equal share of CPUs with which so many workers fit on the nodes, each on one node; 0 for none."""
    possible = sorted({node.cpus / n for node in nodes for n in range(1, workers + 1)}, reverse=True)
    for share in possible:
        shares = SlotShares(count=workers, workers=1, cpus=_round_down(share), gpus=gpus)
        if workers_that_fit(nodes, shares) >= workers:
            return shares.cpus
    return 0.0


def workers_that_fit(nodes: Iterable[Node], shares: SlotShares) -> int:
    """How many workers with these resources fit on the nodes, each on one node."""
    return sum(_workers_on_node(node, shares) for node in nodes) if shares.cpus else 0


def _workers_on_node(node: Node, shares: SlotShares) -> int:
    by_cpu = int(node.cpus / shares.cpus + ROUNDING)
    return min(by_cpu, _workers_on_gpus(node, shares.gpus)) if shares.gpus else by_cpu


def _workers_on_gpus(node: Node, share: float) -> int:
    """How many shares the GPUs of a node hold. Ray does not put a share below 1 on two GPUs."""
    return int(node.gpus / share + ROUNDING) if share >= 1 else int(node.gpus) * int(1 / share + ROUNDING)


def _round_down(share: float) -> float:
    """A share that Ray can reserve: it counts resources in ten-thousandths."""
    return int(share * 10_000 + ROUNDING) / 10_000


def with_plural(number: int, noun: str) -> str:
    """The number with the noun in the right form: 1 node, 2 nodes."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_nodes(nodes: Iterable[Node]) -> str:
    """The nodes in words; those with the same processors are counted together."""
    sizes = [f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "") for node in nodes]
    return (
        ", ".join(f"{with_plural(sizes.count(size), 'node')} with {size}" for size in dict.fromkeys(sizes))
        or "no nodes"
    )
