"""Joins a Ray cluster or starts Ray on this machine, and lists the machines that it has and those that it can add.

What Ray prints in this process goes to a log file. `sizing` divides the machines into slots.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml

from kdray.errors import ResourceError
from kdray.safe_text.log_lines import SafeFormatter
from kdray.slots.interrupts import restore_handlers
from kdray.slots.local_ray import USAGE_STATS, close_token, private_folder
from kdray.slots.ray_internals import (
    LOG_NAMES,
    address_file,
    address_to_join,
    is_head_of_local_ray,
    job_config,
    node_groups,
    print_no_worker_logs,
    requires_token,
    session_folder,
)
from kdray.slots.sizing import Growth, Node, with_plural

UNLIMITED_NODES = 1000
"""The number of machines that is assumed where the cluster sets no limit."""

BOOTSTRAP_CONFIG = Path.home() / "ray_bootstrap_config.yaml"
"""The copy of the cluster's file that `ray up` writes on the head."""

FIRST_NODES_TIMEOUT_S = 90.0
"""Seconds to wait for the machines that a cluster begins with. The sweep starts without those that are missing then."""

ray_logger = logging.getLogger("ray")


@dataclass(frozen=True)
class ClusterInfo:
    """The Ray cluster that was joined or started."""

    address: str
    local: bool
    """Whether Ray was started on this machine, for this process alone."""
    session: Path
    """The folder of Ray's own logs, on each node. That of a Ray that was started here is deleted when it ends."""
    nodes: tuple[Node, ...]
    started: ExitStack = field(default_factory=ExitStack)
    """What ends after a Ray that was started here: its token, its private folder."""

    @property
    def sentence(self) -> str:
        """A sentence for people: which cluster was joined, and what it has."""
        cpus, gpus = sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes)
        size = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        if self.local:
            return f"Started Ray on this machine: {size}."
        return f"Joined the Ray cluster at {self.address}: {with_plural(len(self.nodes), 'node')}, {size}."

    def close(self) -> None:
        """Leave the cluster. A Ray that was started here ends."""
        if ray.is_initialized():
            ray.shutdown()
        self.started.close()


def connect(
    address: str | None, require_cluster: bool, logs: Path, note: Callable[[str], None] = ray_logger.info
) -> ClusterInfo:
    """Join the cluster at `address`. Without an address: join RAY_ADDRESS or a running cluster, else start Ray here.

    `local` always starts Ray on this machine. With `require_cluster`, and on the head of a cluster that `ray up` made,
    Ray is never started here: a missing cluster raises ResourceError, because a sweep on this machine alone is not what
    the user wants. On such a head, the machines that the cluster begins with are waited for, and `note` is called with
    a sentence about it.

    A Ray that is started here requires a token (`local_ray`). A cluster that is joined may have none: this is noted.
    """
    if require_cluster and address == "local":
        raise ResourceError("--require-cluster and --address local exclude each other; give one of them.")
    require_cluster = require_cluster or (address is None and BOOTSTRAP_CONFIG.exists())
    _log_to_file(logs)
    close_token(note)
    address = _unless_of_another_user("auto" if require_cluster and address is None else address, note)
    with ExitStack() as started:
        if not ray.is_initialized():
            _start_or_join(address, started)
            _log_to_file(logs)  # ray.init removes the handlers of the logger `ray`
        if address != "local":
            _wait_for_first_nodes(note)
        info = ClusterInfo(
            address=ray.get_runtime_context().gcs_address,
            local=is_head_of_local_ray(),
            session=session_folder(),
            nodes=list_nodes(),
            started=started.pop_all(),
        )
    if requires_token(info.address) is False:
        note(_no_token_sentence(info))
    ray_logger.info("%s Ray's own logs: %s", info.sentence, info.session)
    return info


def list_nodes() -> tuple[Node, ...]:
    """The machines of the cluster that are up."""
    return tuple(nodes_by_id().values())


def nodes_by_id() -> dict[str, Node]:
    """The machines of the cluster that are up, by Ray's id of the node."""
    return {node["NodeID"]: Node.from_resources(node["Resources"]) for node in ray.nodes() if node["Alive"]}


def cluster_growth() -> Growth | None:
    """The machines that the cluster can have at most; None where it does not add machines by itself."""
    if groups := node_groups():
        return Growth(_repeat((Node.from_resources(resources), limit) for resources, limit in groups))
    if BOOTSTRAP_CONFIG.exists():
        return _growth_in_config(yaml.safe_load(BOOTSTRAP_CONFIG.read_text()))
    # KubeRay's operator sets this variable in every pod, but the limits of its autoscaler are not known here.
    return Growth(()) if "RAY_CLUSTER_NAME" in os.environ else None


def _growth_in_config(config: Mapping[str, Any]) -> Growth | None:
    """The machines that the cluster's file allows; None where the file does not say how large they are."""
    limit = config.get("max_workers", 0)
    head = config["head_node_type"]
    types = config["available_node_types"]
    nodes = {name: Node.from_resources(each.get("resources") or {}) for name, each in types.items()}
    if not any(node.cpus for node in nodes.values()):
        return None
    groups = [(nodes[head], 1)]
    groups += [(nodes[name], min(each.get("max_workers", 0), limit)) for name, each in types.items() if name != head]
    return Growth(_repeat(groups))


def _repeat(groups: Iterable[tuple[Node, int]]) -> tuple[Node, ...]:
    """Each node as often as its number says. A negative number: the cluster sets no limit."""
    nodes: list[Node] = []
    for node, number in groups:
        nodes += [node] * (UNLIMITED_NODES if number < 0 else min(number, UNLIMITED_NODES))
    return tuple(nodes)


def _wait_for_first_nodes(note: Callable[[str], None]) -> None:
    """On the head of a cluster that `ray up` made, wait for the workers that the cluster begins with.

    They join about a minute after `ray up` has ended. Without them, the slots would be divided for the head alone.
    """
    if not BOOTSTRAP_CONFIG.exists():
        return
    config = yaml.safe_load(BOOTSTRAP_CONFIG.read_text())
    expected = 1 + sum(each.get("min_workers", 0) for each in config["available_node_types"].values())
    until = time.monotonic() + FIRST_NODES_TIMEOUT_S
    if len(list_nodes()) < expected:
        note(f"Waiting for {expected} nodes, at most {FIRST_NODES_TIMEOUT_S:g} s; {len(list_nodes())} so far.")
    while len(list_nodes()) < expected and time.monotonic() < until:
        time.sleep(0.5)


def _unless_of_another_user(address: str | None, note: Callable[[str], None]) -> str | None:
    """The address; "local" instead of a cluster that Ray would find by a file of another user of this machine.

    The file is in a folder that everyone may write, and who writes it decides where this process sends its programs.
    Raises ResourceError instead if a cluster is required.
    """
    if address not in (None, "auto") or os.environ.get("RAY_ADDRESS"):
        return address
    file = address_file()
    try:
        if file.stat().st_uid in (os.getuid(), 0):
            return address
    except OSError:
        return address
    reason = f"{file} names a Ray cluster, and belongs to another user of this machine, so it is not used"
    if address == "auto":
        raise ResourceError(f"{reason}. Give the address of the cluster with --address.")
    note(f"{reason}. Ray is started here; --address joins a cluster.")
    return "local"


def _start_or_join(address: str | None, started: ExitStack) -> None:
    """Join the cluster at `address`, or start Ray here; `started` then gets what must end after it."""
    for name, value in USAGE_STATS.items():
        os.environ.setdefault(name, value)
    try:
        starts_here = address_to_join(address) is None
        options = {"address": "local", "_temp_dir": str(started.enter_context(private_folder()))} if starts_here else {}
        with restore_handlers():
            ray.init(
                **{"address": address, **options},
                job_config=job_config(),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        started.callback(ray.shutdown)
    except (ConnectionError, ValueError) as error:
        where = f"at {address}" if address not in (None, "auto") else "that can be found from here"
        raise ResourceError(
            f"There is no Ray cluster {where}: {error}. Start one (ray up, ray start), give its address, or leave out "
            "--require-cluster to use this machine alone."
        ) from None
    except Exception as error:
        # Ray has no class of its own for this: a node that takes longer than 30 s to start raises a plain Exception.
        if type(error) is not Exception:
            raise
        raise ResourceError(
            f"Ray did not start: {error} If other programs keep this machine busy, run the command again when they "
            "have ended."
        ) from error


def _no_token_sentence(info: ClusterInfo) -> str:
    where = "The Ray that was started here" if info.local else f"The Ray cluster at {info.address}"
    remedy = "Unset RAY_AUTH_MODE" if info.local else "Start it with RAY_AUTH_MODE=token and a token on each node"
    return (
        f"{where} requires no token: everyone who reaches its ports can run programs as its user, and read the data of "
        f"this sweep. {remedy} (docs/security.md)."
    )


def _log_to_file(logs: Path) -> None:
    """Send Ray's log messages of this process to `ray.log` in this folder, and not to the screen."""
    logs.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(logs / "ray.log", delay=True)
    file.setFormatter(SafeFormatter())
    for name in LOG_NAMES:
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            handler.close()
        logger.handlers = [file]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    print_no_worker_logs()
