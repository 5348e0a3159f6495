"""Chooses the network over which the workers of one slot communicate: the one of the address that Ray uses for a node.

By default gloo listens on the address that the machine's own name resolves to. On many machines (Debian) that is
127.0.1.1, and workers on two machines would wait for each other for ever. NCCL finds a network by itself.
"""

import os

import psutil
import ray

INTERFACE = "GLOO_SOCKET_IFNAME"
"""The environment variable with the network interface that gloo uses."""


def interface_with_address(address: str) -> str | None:
    """The name of this machine's network interface that has this address; None if no interface has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def use_node_network() -> None:
    """Let gloo in this process use the network on which other nodes reach this node, unless the user chose another."""
    interface = interface_with_address(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault(INTERFACE, interface)


def torch_backend(gpus: float) -> str:
    """The backend of torch.distributed for workers with so many GPUs each.

    NCCL refuses two ranks on one GPU, so workers that share a GPU use gloo.
    """
    return "cpu:gloo,cuda:nccl" if gpus >= 1 else "gloo"
