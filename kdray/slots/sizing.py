"""How the processors of a cluster divide into slots: plain arithmetic on nodes, without asking Ray anything.

What is asked for and cannot be had is refused here, before anything is started, with both figures.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from kdray.errors import ResourceError
from kdray.slots.pool import SlotSettings

MOST_CPU_SLOTS = 8
"""count="auto" on CPUs alone: beyond this, memory and the search's patience give out before the cores do."""

SLIVER = 0.02
"""CPU of each worker's share left to Ray Tune, whose trials wait for slots and must themselves be scheduled."""


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster offers."""

    cpus: float
    gpus: float

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Self:
        """With these of Ray's resources."""
        return cls(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)))


@dataclass(frozen=True)
class Growth:
    """What a cluster that grows can have at most."""

    nodes: tuple[Node, ...]
    """None where only its autoscaler knows."""


@dataclass(frozen=True)
class SlotShares:
    """What each worker of each slot gets."""

    count: int
    workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus + 1e-6))

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray reserves it."""
        bundle = {"CPU": round(max(self.cpus - SLIVER, SLIVER), 4)}
        return bundle | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        of = f"{with_plural(self.count, 'slot')} of {with_plural(self.workers, 'worker')}"
        return f"{of} with {self.cpus:g} CPUs{gpus} each"


def divide_into_slots(settings: SlotSettings, nodes: Iterable[Node], growth: Growth | None = None) -> SlotShares:
    """How the cluster is divided. Raises ResourceError when it does not have what is asked for, nor can grow to it."""
    there = tuple(nodes)
    most = growth.nodes if growth and growth.nodes else there
    cpus, gpus = sum(node.cpus for node in most), sum(node.gpus for node in most)
    count = _count(settings, cpus, gpus)
    if settings.count == "auto" and not (growth is not None and not growth.nodes):
        count = max(1, min(count, _most(settings, gpus, most)))
    workers = count * settings.workers
    gpu_share = _gpu_share(workers, most) if settings.gpus == "auto" else settings.gpus
    cpu_share = settings.cpus or _cpu_share(workers, gpu_share, most) or _floor(cpus / workers)
    asked = SlotShares(count, settings.workers, cpu_share, gpu_share)
    if growth is not None and not growth.nodes and cpu_share:
        return asked  # only the autoscaler knows; slots.start_timeout_s is the limit
    if workers_that_fit(most, asked) < workers:
        verb = "has" if most == there else "can grow to"
        raise _refused(asked, f"The cluster {verb} {describe_nodes(most)}.")
    return asked


def _count(settings: SlotSettings, cpus: float, gpus: float) -> int:
    if settings.count != "auto":
        return settings.count
    each = float(gpus > 0) if settings.gpus == "auto" else settings.gpus
    by_cpu = cpus / (settings.cpus or 1.0) / settings.workers
    if each:
        return max(1, int(min(gpus / each / settings.workers, by_cpu)))
    return max(1, min(MOST_CPU_SLOTS, int(by_cpu)))


def _most(settings: SlotSettings, gpus: float, nodes: tuple[Node, ...]) -> int:
    """How many slots of the size that is asked for lie on the nodes; what is not asked for takes no room."""
    each = float(gpus > 0) if settings.gpus == "auto" else settings.gpus
    return workers_that_fit(nodes, SlotShares(1, settings.workers, settings.cpus or 0.0001, each)) // settings.workers


def _gpu_share(workers: int, nodes: tuple[Node, ...]) -> float:
    """The largest equal part of a GPU with which so many workers find room; 0 where there is no GPU."""
    whole = sum(int(node.gpus) for node in nodes)
    return _floor(1 / math.ceil(workers / whole)) if whole else 0.0


def _cpu_share(workers: int, gpus: float, nodes: tuple[Node, ...]) -> float:
    """The largest equal share of CPUs with which so many workers find room, each of them on one node."""
    possible = sorted({node.cpus / n for node in nodes for n in range(1, workers + 1)}, reverse=True)
    sizes = (SlotShares(workers, 1, _floor(share), gpus) for share in possible if share)
    return next((size.cpus for size in sizes if workers_that_fit(nodes, size) >= workers), 0.0)


def workers_that_fit(nodes: Iterable[Node], size: SlotShares) -> int:
    """How many workers of this size the nodes hold."""
    return sum(_fitting(node, size) for node in nodes) if size.cpus else 0


def _fitting(node: Node, size: SlotShares) -> int:
    by_cpu = int(node.cpus / size.cpus + 1e-6)
    return min(by_cpu, _on_gpus(node, size.gpus)) if size.gpus else by_cpu


def _on_gpus(node: Node, share: float) -> int:
    """How many shares the node's GPUs hold; none that is smaller than a GPU lies on two of them."""
    return int(node.gpus / share + 1e-6) if share >= 1 else int(node.gpus) * int(1 / share + 1e-6)


def _floor(share: float) -> float:
    """Ray counts resources in ten-thousandths."""
    return int(share * 10_000 + 1e-6) / 10_000


def with_plural(number: int, noun: str) -> str:
    """One node, two nodes."""
    return f"{number} {noun}{'s' * (number != 1)}"


def describe_nodes(nodes: Iterable[Node]) -> str:
    """What these machines are, those of one size together."""
    sizes = [f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "") for node in nodes]
    return (
        ", ".join(f"{with_plural(sizes.count(size), 'node')} with {size}" for size in dict.fromkeys(sizes))
        or "no nodes"
    )


def _refused(asked: SlotShares, there: str) -> ResourceError:
    return ResourceError(
        f"slots: asked for {asked}. {there} Ask for less: slots.count, slots.workers, slots.cpus, slots.gpus."
    )
