"""Workers of one slot listen where the other nodes reach them."""

import os

import pytest
import ray

from kdray.slots.talking import INTERFACE, interface_of, use_the_nodes_network


def test_an_interface_is_known_by_its_address() -> None:
    loopback = interface_of("127.0.0.1")
    assert loopback is not None
    assert loopback.startswith("lo")
    assert interface_of("192.0.2.255") is None  # reserved for documentation: no machine's


def test_gloo_is_told_the_nodes_interface_unless_somebody_has_said_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(INTERFACE, "bond0")
    use_the_nodes_network()
    assert os.environ[INTERFACE] == "bond0"
    monkeypatch.delenv(INTERFACE)
    use_the_nodes_network()
    assert os.environ[INTERFACE] == interface_of("127.0.0.1")
    monkeypatch.delenv(INTERFACE)
