"""Who may use the Ray that kdray starts on this machine: its ports, its files, its token."""

import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import ray

from kdray.slots.cluster import ClusterInfo, connect
from kdray.slots.ray_internals import requires_token
from tests.slots.private_files import mode, private_part

SERVICES = (
    "ray.rpc.InternalKVGcsService/InternalKVKeys",
    "ray.rpc.JobInfoGcsService/AddJob",
    "ray.rpc.ObjectManagerService/Push",
    "ray.rpc.ObjectManagerService/Pull",
    "ray.rpc.NodeManagerService/RequestWorkerLease",
    "ray.rpc.CoreWorkerService/Exit",
)
"""Requests by which a stranger would read or change data, or run programs, at one of the ports of Ray."""


def open_ports() -> list[tuple[str, int]]:
    """The ports of this process and of all processes below it that other machines can reach."""
    own = psutil.Process()
    listening = [
        each.laddr
        for process in [own, *own.children(recursive=True)]
        for each in process.net_connections(kind="tcp")
        if each.status == "LISTEN"
    ]
    everywhere = ("::", "0.0.0.0")
    return [("127.0.0.1" if ip in everywhere else ip, port) for ip, port in listening if ip not in ("127.0.0.1", "::1")]


def rpc_answer(address: str, method: str, token: str = "") -> grpc.StatusCode:
    """The status with which a port answers a gRPC request."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(f"/{method}")(b"", timeout=2, metadata=metadata)
        except grpc.RpcError as error:
            status: grpc.StatusCode = error.code()
            return status
    return grpc.StatusCode.OK


def http_answer(address: str) -> tuple[int, str]:
    """Status and text with which a port answers an HTTP request; (0, "") where it speaks no HTTP."""
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", "/get_runtime_envs_info")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (http.client.HTTPException, OSError):
        return 0, ""
    finally:
        connection.close()


@pytest.fixture(scope="module")
def notes() -> list[str]:
    """What was noted at the start."""
    return []


@pytest.fixture(scope="module", autouse=True)
def info(home: Path, tmp_path_factory: pytest.TempPathFactory, notes: list[str]) -> Iterator[ClusterInfo]:
    info = connect("local", False, tmp_path_factory.mktemp("logs"), notes.append)
    # A worker that is busy keeps its port open while the ports are looked at.
    ray.get(ray.remote(num_cpus=0)(lambda: 0).remote(), timeout=60)
    yield info
    info.close()


def test_it_refuses_requests_without_the_token_and_with_another_one(info: ClusterInfo, notes: list[str]) -> None:
    assert requires_token(info.address) is True
    assert notes == []
    assert rpc_answer(info.address, SERVICES[0], "0" * 64) is grpc.StatusCode.UNAUTHENTICATED
    token = (private_part(info) / "token").read_text()
    assert rpc_answer(info.address, SERVICES[0], token) is not grpc.StatusCode.UNAUTHENTICATED


def test_no_open_port_gives_a_stranger_more_than_figures_and_health() -> None:
    refused = set()
    for host, port in open_ports():
        status, text = http_answer(f"{host}:{port}")
        if status:
            assert status == 401 or text.startswith("# HELP"), f"{port}: {text[:80]}"
            continue
        answers = {service: rpc_answer(f"{host}:{port}", service) for service in SERVICES}
        refused |= {service for service, answer in answers.items() if answer is grpc.StatusCode.UNAUTHENTICATED}
        assert grpc.StatusCode.OK not in answers.values(), answers
    assert refused == set(SERVICES)


def test_its_files_are_in_a_folder_that_only_its_user_can_enter(info: ClusterInfo) -> None:
    folder = private_part(info)
    assert mode(folder) == 0o700
    assert folder.stat().st_uid == os.getuid()
    assert mode(folder / "token") == 0o600
    assert list((info.session / "sockets").iterdir())


def test_the_users_token_for_clusters_is_not_made(info: ClusterInfo, home: Path) -> None:
    assert not (home / ".ray").exists()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(private_part(info) / "token")


def test_its_workers_run_with_the_token_and_report_no_use() -> None:
    names = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")
    seen = ray.remote(num_cpus=0)(lambda: [os.environ.get(name) for name in names]).remote()
    assert ray.get(seen, timeout=60) == ["token", "0"]
