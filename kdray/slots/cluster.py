"""Which Ray this is, and whether the slots asked for fit on it.

Joins a cluster or starts one on this machine, keeps Ray's chatter off the screen, and works out before anything is
started how the resources divide: what is asked for and cannot be had is refused here, with both figures.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ray

from kdray.errors import ResourceError
from kdray.interrupts import handlers_kept
from kdray.slots.pool import SlotSettings

MOST_CPU_SLOTS = 8
"""count="auto" on CPUs alone: beyond this, memory and the search's patience give out before the cores do."""

SLIVER = 0.02
"""CPU of each worker's share left to Ray Tune, whose trials wait for slots and must themselves be scheduled."""

LOGGERS = ("ray", "ray._private")
"""Ray's chatter in this process. Two, because ray.init clears the first while it talks through the second."""


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster offers."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class ClusterInfo:
    """The Ray that was joined or started."""

    address: str
    local: bool
    """Started here, on this machine, for this process alone."""
    session: Path
    """Where Ray keeps its own logs, on each node."""
    nodes: tuple[Node, ...]

    @property
    def sentence(self) -> str:
        """What was joined, in words."""
        cpus, gpus = sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes)
        what = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        if self.local:
            return f"Started Ray on this machine: {what}."
        return f"Joined the Ray cluster at {self.address}: {len(self.nodes)} nodes, {what}."

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if ray.is_initialized():
            ray.shutdown()


@dataclass(frozen=True)
class Shares:
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
        return f"{self.count} slots of {self.workers} workers with {self.cpus:g} CPUs{gpus} each"


def connect(address: str | None, require_cluster: bool, logs: Path) -> ClusterInfo:
    """Join the cluster at `address`; without one, the cluster of RAY_ADDRESS or `ray start`, else start Ray here.

    `local` always starts Ray here, `require_cluster` never does. Raises ResourceError when there is no such cluster.
    """
    if require_cluster and address == "local":
        raise ResourceError("--require-cluster and --address local exclude each other; give one of them.")
    _quieten(logs)
    if not ray.is_initialized():
        _start_or_join("auto" if require_cluster and address is None else address)
        _quieten(logs)  # ray.init drops the handlers of the logger `ray`
    context = ray.get_runtime_context()
    node = ray._private.worker._global_node
    info = ClusterInfo(
        address=context.gcs_address,
        local=bool(node.head),
        session=Path(node.get_session_dir_path()),
        nodes=nodes(),
    )
    logging.getLogger("ray").info("%s Ray's own logs: %s", info.sentence, info.session)
    return info


def nodes() -> tuple[Node, ...]:
    """The machines that are up."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive)


def growth() -> Node | None:
    """All that the cluster can grow to, if it is one that grows."""
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    return Node(most.get("CPU", 0.0), most.get("GPU", 0.0)) if most else None


def shares(settings: SlotSettings, nodes: Iterable[Node], growth: Node | None = None) -> Shares:
    """How the cluster is divided. Raises ResourceError when it does not have what is asked for, nor can grow to it."""
    nodes = tuple(nodes)
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if growth is not None:
        cpus, gpus = max(cpus, growth.cpus), max(gpus, growth.gpus)
    count = _count(settings, cpus, gpus)
    workers = count * settings.workers
    gpu_share = _floor(min(1.0, gpus / workers)) if settings.gpus == "auto" else settings.gpus
    cpu_share = settings.cpus or _cpu_share(workers, gpu_share, nodes) or _floor(cpus / workers)
    asked = Shares(count, settings.workers, cpu_share, gpu_share)
    if growth is None and _fitting(nodes, cpu_share, gpu_share) < workers:
        raise _refused(asked, f"The cluster has {_words(nodes)}.")
    if workers * cpu_share > cpus + 1e-6 or workers * gpu_share > gpus + 1e-6 or not cpu_share:
        raise _refused(asked, f"The cluster can grow to {cpus:g} CPUs and {gpus:g} GPUs.")
    return asked


def _count(settings: SlotSettings, cpus: float, gpus: float) -> int:
    if settings.count != "auto":
        return settings.count
    each = float(gpus > 0) if settings.gpus == "auto" else settings.gpus
    by_cpu = cpus / (settings.cpus or 1.0) / settings.workers
    if each:
        return max(1, int(min(gpus / each / settings.workers, by_cpu)))
    return max(1, min(MOST_CPU_SLOTS, int(by_cpu)))


def _cpu_share(workers: int, gpus: float, nodes: tuple[Node, ...]) -> float:
    """The largest equal share of CPUs with which so many workers find room, each of them on one node."""
    possible = sorted({node.cpus / n for node in nodes for n in range(1, workers + 1)}, reverse=True)
    return next((_floor(share) for share in possible if share and _fitting(nodes, share, gpus) >= workers), 0.0)


def _fitting(nodes: tuple[Node, ...], cpus: float, gpus: float) -> int:
    """How many workers of this size the nodes hold."""
    if not cpus:
        return 0
    by_cpu = [int(node.cpus / cpus + 1e-6) for node in nodes]
    by_gpu = [int(node.gpus / gpus + 1e-6) if gpus else fit for node, fit in zip(nodes, by_cpu, strict=True)]
    return sum(map(min, by_cpu, by_gpu))


def _floor(share: float) -> float:
    """Ray counts resources in ten-thousandths."""
    return int(share * 10_000 + 1e-6) / 10_000


def _words(nodes: tuple[Node, ...]) -> str:
    sizes = [f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "") for node in nodes]
    counted = [f"{sizes.count(size)} node{'s' * (sizes.count(size) > 1)} with {size}" for size in dict.fromkeys(sizes)]
    return ", ".join(counted) or "no nodes"


def _refused(asked: Shares, there: str) -> ResourceError:
    return ResourceError(
        f"slots: asked for {asked}. {there} Ask for less: slots.count, slots.workers, slots.cpus, slots.gpus."
    )


def _start_or_join(address: str | None) -> None:
    try:
        with handlers_kept():
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, ValueError) as error:
        where = f"at {address}" if address not in (None, "auto") else "that can be found from here"
        raise ResourceError(
            f"There is no Ray cluster {where}: {error}. Start one (ray up, ray start), give its address, or leave out "
            "--require-cluster to use this machine alone."
        ) from None
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() and token.stat().st_mode & 0o077:
        token.chmod(0o600)  # Ray writes it for everyone to read


def _quieten(logs: Path) -> None:
    """Send what Ray says in this process to a file."""
    logs.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(logs / "ray.log", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in LOGGERS:
        log = logging.getLogger(name)
        for handler in log.handlers:
            handler.close()
        log.handlers = [file]
        log.setLevel(logging.INFO)
        log.propagate = False
    ray._private.worker._worker_logs_enabled = False  # the raylet's warnings are printed whatever log_to_driver says
