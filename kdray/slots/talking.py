"""How the workers of one slot find each other: over the network that Ray knows their nodes by.

Gloo, left to itself, asks for the address of the machine's own name, and on many machines that is 127.0.1.1: workers
on two machines would wait for each other for ever. NCCL looks for a network by itself.
"""

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.callback import ControllerCallback

INTERFACE = "GLOO_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface with this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(its.address == address for its in addresses):
            return name
    return None


def use_the_nodes_network() -> None:
    """Have this process's gloo listen where the other nodes reach this one; who has said where is heard."""
    found = interface_of(ray.util.get_node_ip_address())
    if found:
        os.environ.setdefault(INTERFACE, found)


class _OverTheNodesNetwork(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_the_nodes_network)
        super().on_start(worker_group, backend_config)


class OverTheNodesNetwork(TorchConfig):
    """A TorchConfig whose process group uses the nodes' own addresses."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OverTheNodesNetwork


@dataclass
class Introduction(ControllerCallback):
    """Runs in the controller as it starts; it does not start when the board is gone."""

    board: Any
    slot: int

    def after_controller_start(self, train_run_context: Any) -> None:
        """See ControllerCallback."""
        me = ray.get_runtime_context().current_actor
        ray.get(self.board.introduce.remote(self.slot, me))
