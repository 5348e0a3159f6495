"""Workers of one slot listen where the other nodes reach them."""

import os

import pytest
import ray

from kdray.slots.process_group import INTERFACE, interface_with_address, use_node_network


def test_an_interface_is_known_by_its_address() -> None:
    loopback = interface_with_address("127.0.0.1")
    assert loopback is not None
    assert loopback.startswith("lo")
    assert interface_with_address("192.0.2.255") is None  # reserved for documentation: no machine's


def test_gloo_is_told_the_nodes_interface_unless_somebody_has_said_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(INTERFACE, "bond0")
    use_node_network()
    assert os.environ[INTERFACE] == "bond0"
    monkeypatch.delenv(INTERFACE)
    use_node_network()
    assert os.environ[INTERFACE] == interface_with_address("127.0.0.1")
    monkeypatch.delenv(INTERFACE)
