"""The workers of one slot use the network on which other nodes reach them."""

import os

import pytest
import ray

from kdray.slots.process_group import INTERFACE, interface_with_address, use_node_network


def test_an_interface_is_found_by_its_address() -> None:
    loopback = interface_with_address("127.0.0.1")
    assert loopback is not None
    assert loopback.startswith("lo")
    assert interface_with_address("192.0.2.255") is None  # reserved for documentation: no machine has it


def test_gloo_uses_the_interface_of_the_node_unless_the_user_chose_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(INTERFACE, "bond0")
    use_node_network()
    assert os.environ[INTERFACE] == "bond0"
    monkeypatch.delenv(INTERFACE)
    use_node_network()
    assert os.environ[INTERFACE] == interface_with_address("127.0.0.1")
    monkeypatch.delenv(INTERFACE)
