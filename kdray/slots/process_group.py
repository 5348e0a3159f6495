"""How the workers of one slot find each other: over the network that Ray knows their nodes by.

Without help, gloo asks for the address of the machine's own name. On many machines that is 127.0.1.1, so workers on two
machines would wait for each other for ever. NCCL finds a network by itself.
"""

import os

import psutil
import ray

INTERFACE = "GLOO_SOCKET_IFNAME"


def interface_with_address(address: str) -> str | None:
    """The name of the network interface of this machine that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def use_node_network() -> None:
    """Let gloo in this process listen where other nodes reach this one, unless the user has named an interface."""
    found = interface_with_address(ray.util.get_node_ip_address())
    if found:
        os.environ.setdefault(INTERFACE, found)
