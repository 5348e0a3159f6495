"""Tokens and temporary folders: what is left afterwards, what the user has set, clusters that let in everyone."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from kdray.slots import local_ray
from kdray.slots.cluster import connect
from kdray.slots.local_ray import close_token, private_folder
from kdray.slots.ray_internals import requires_token
from tests.slots.private_files import mode, private_part

OPEN_CLUSTER = """
import sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
"""A Ray that ends when its standard input is closed."""


def test_afterwards_nothing_is_left_and_the_next_one_has_a_token_of_its_own(home: Path, tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        info = connect("local", False, tmp_path)
        folder = private_part(info)
        tokens.append((folder / "token").read_text())
        info.close()
        assert not folder.exists()
        assert not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"))
    assert tokens[0] != tokens[1]
    assert all(len(token) == 64 for token in tokens)


@pytest.fixture
def open_cluster(home: Path) -> Iterator[str]:
    """The address of a Ray in another process that requires no token."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_CLUSTER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(60)


def test_a_cluster_without_a_token_is_joined_with_a_warning(open_cluster: str, tmp_path: Path) -> None:
    """Also by a process that started a Ray with a token before."""
    notes: list[str] = []
    info = connect(open_cluster, True, tmp_path, notes.append)
    try:
        assert not info.local
        assert ray.get(ray.remote(num_cpus=0)(lambda: 42).remote(), timeout=60) == 42
    finally:
        info.close()
    (note,) = notes
    assert note.startswith(f"The Ray cluster at {open_cluster} requires no token: everyone who reaches its ports")
    assert "RAY_AUTH_MODE=token" in note


def test_a_server_that_is_not_there_is_not_said_to_be_open() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert requires_token(f"127.0.0.1:{free.getsockname()[1]}") is None


def test_what_the_user_has_set_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with private_folder() as folder:
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
        assert not (folder.parent / "token").exists()
        assert mode(folder.parent) == 0o700
    assert os.environ["RAY_AUTH_TOKEN"] == "a" * 64


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_paths_of_sockets_stay_short_below_a_long_folder_for_temporary_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    session = "session_2026-11-27_11-00-00_000000_4194304/sockets/plasma_store"
    with private_folder() as folder:
        assert len(os.fsencode(folder / session)) <= 103


def test_a_short_folder_for_temporary_files_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as short:
        assert len(short) <= local_ray.MOST_ROOT_BYTES
        monkeypatch.setenv("RAY_TMPDIR", short)
        with private_folder() as folder:
            assert folder.is_relative_to(short)


def test_a_token_file_that_others_can_read_is_closed_with_a_note(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    notes: list[str] = []
    close_token(notes.append)
    token.parent.mkdir()
    try:
        token.write_text("secret")
        token.chmod(0o644)
        for _ in range(2):
            close_token(notes.append)
        assert mode(token) == 0o600
    finally:
        token.unlink()
        token.parent.rmdir()
    (note,) = notes
    assert note.startswith(f"{token}: its mode was 644 and is 600 now.")
    assert "secret" not in note


IMPORT_IN_WORKER = """
import sys
from pathlib import Path
import ray
from kdray.slots import cluster
if sys.argv[2] == "ray's own":
    cluster.job_config = lambda: None
info = cluster.connect("local", False, Path(sys.argv[1]))
try:
    print(ray.get(ray.remote(num_cpus=0)(lambda: __import__("colorsys").__file__).remote(), timeout=60))
finally:
    info.close()
"""
"""Prints from which file a worker imports a module that nothing has imported before."""


@pytest.mark.parametrize(
    ("paths", "is_hostile"), [("kdray's", False), pytest.param("ray's own", True, marks=pytest.mark.slow)]
)
def test_a_module_in_the_working_directory_is_not_imported_by_a_worker(
    home: Path, tmp_path: Path, paths: str, is_hostile: bool
) -> None:
    """The second case shows that the attack is real."""
    stranger, script = tmp_path / "stranger", tmp_path / "bin" / "script.py"
    for file, text in ((stranger / "colorsys.py", "hostile = True"), (script, IMPORT_IN_WORKER)):
        file.parent.mkdir()
        file.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "logs"), paths],
        cwd=stranger,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.splitlines()[-1] == str(stranger / "colorsys.py")) is is_hostile
