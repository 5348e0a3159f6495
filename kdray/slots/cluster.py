"""Which Ray this is, what machines it has, and what it can grow to.

Joins a cluster or starts one on this machine, and keeps Ray's chatter off the screen. How its machines divide into
slots is worked out in `sizing`.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from kdray.errors import ResourceError
from kdray.slots.interrupts import restore_handlers
from kdray.slots.ray_internals import (
    LOG_NAMES,
    is_head_of_local_ray,
    node_groups,
    print_no_worker_logs,
    session_folder,
)
from kdray.slots.sizing import Growth, Node, with_plural

MOST_NODES = 1000
"""What a limit that the cluster does not set is taken for."""

BOOTSTRAP_CONFIG = Path.home() / "ray_bootstrap_config.yaml"
"""Where `ray up` leaves the cluster's file on its head."""

FIRST_NODES_S = 90.0
"""How long the machines that a cluster begins with are waited for; it goes on without those that do not come."""

ray_log = logging.getLogger("ray")


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
        return f"Joined the Ray cluster at {self.address}: {with_plural(len(self.nodes), 'node')}, {what}."

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if ray.is_initialized():
            ray.shutdown()


def connect(
    address: str | None, require_cluster: bool, logs: Path, note: Callable[[str], None] = ray_log.info
) -> ClusterInfo:
    """Join the cluster at `address`; without one, the cluster of RAY_ADDRESS or `ray start`, else start Ray here.

    `local` always starts Ray here. On the head of a cluster that `ray up` made, and with `require_cluster`, that is
    never done, and the machines that the cluster begins with are waited for. Raises ResourceError when there is no
    such cluster.
    """
    if require_cluster and address == "local":
        raise ResourceError("--require-cluster and --address local exclude each other; give one of them.")
    require_cluster = require_cluster or (address is None and BOOTSTRAP_CONFIG.exists())
    _quieten(logs)
    if not ray.is_initialized():
        _start_or_join("auto" if require_cluster and address is None else address)
        _quieten(logs)  # ray.init drops the handlers of the logger `ray`
    context = ray.get_runtime_context()
    if address != "local":
        _await_first_nodes(note)
    info = ClusterInfo(
        address=context.gcs_address,
        local=is_head_of_local_ray(),
        session=session_folder(),
        nodes=list_nodes(),
    )
    ray_log.info("%s Ray's own logs: %s", info.sentence, info.session)
    return info


def list_nodes() -> tuple[Node, ...]:
    """The machines that are up."""
    return tuple(nodes_by_id().values())


def nodes_by_id() -> dict[str, Node]:
    """The machines that are up, by Ray's id."""
    return {node["NodeID"]: Node.of(node["Resources"]) for node in ray.nodes() if node["Alive"]}


def cluster_growth() -> Growth | None:
    """What the cluster can grow to; None where it is as large as it will get by itself."""
    if groups := node_groups():
        return Growth(_repeated((Node.of(resources), most) for resources, most in groups))
    if BOOTSTRAP_CONFIG.exists():
        return _growth_in(yaml.safe_load(BOOTSTRAP_CONFIG.read_text()))
    return Growth(()) if "RAY_CLUSTER_NAME" in os.environ else None  # KubeRay's operator sets it in every pod


def _growth_in(config: Mapping[str, Any]) -> Growth | None:
    """What the file that `ray up` was given allows; None where it does not say how large its machines are."""
    most = config.get("max_workers", 0)
    head = config["head_node_type"]
    types = config["available_node_types"]
    sizes = {name: Node.of(of.get("resources") or {}) for name, of in types.items()}
    if not any(node.cpus for node in sizes.values()):
        return None
    groups = [(sizes[head], 1)]
    groups += [(sizes[name], min(of.get("max_workers", 0), most)) for name, of in types.items() if name != head]
    return Growth(_repeated(groups))


def _repeated(groups: Iterable[tuple[Node, int]]) -> tuple[Node, ...]:
    return tuple(node for node, times in groups for _ in range(MOST_NODES if times < 0 else min(times, MOST_NODES)))


def _await_first_nodes(note: Callable[[str], None]) -> None:
    """Workers come a minute after `ray up` has ended: to begin without them would cut the slots for the head alone."""
    if not BOOTSTRAP_CONFIG.exists():
        return
    config = yaml.safe_load(BOOTSTRAP_CONFIG.read_text())
    first = 1 + sum(of.get("min_workers", 0) for of in config["available_node_types"].values())
    until = time.monotonic() + FIRST_NODES_S
    if len(list_nodes()) < first:
        note(f"Waiting for {first} nodes, at most {FIRST_NODES_S:g} s; {len(list_nodes())} so far.")
    while len(list_nodes()) < first and time.monotonic() < until:
        time.sleep(0.5)


def _start_or_join(address: str | None) -> None:
    try:
        with restore_handlers():
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
    for name in LOG_NAMES:
        log = logging.getLogger(name)
        for handler in log.handlers:
            handler.close()
        log.handlers = [file]
        log.setLevel(logging.INFO)
        log.propagate = False
    print_no_worker_logs()
