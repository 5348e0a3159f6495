"""The MLflow client in a process of its own: what it answers, how it fails, and when it ends."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kdray.tracking.client_process import ClientError, ClientProcess
from tests.tracking.scripted_sweep import wait_until

DRIVER = """
import sys
from pathlib import Path
from kdray.tracking.client_process import ClientProcess

client = ClientProcess(sys.argv[1], Path(sys.argv[2]))
client.search_experiments()
print(client._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def client(store: str, tmp_path: Path) -> Iterator[ClientProcess]:
    client = ClientProcess(store, tmp_path / "logs" / "mlflow.log")
    yield client
    client.close()


def process_of(client: ClientProcess) -> psutil.Process:
    assert client._process is not None
    return psutil.Process(client._process.pid)


def test_it_answers_as_the_client_does_and_raises_errors_in_its_words(client: ClientProcess):
    experiment = client.create_experiment("answers")
    assert client.get_experiment(experiment).name == "answers"
    with pytest.raises(ClientError, match=r"name=answers\) already exists") as refused:
        client.create_experiment("answers")
    assert "MlflowException" in refused.value.__notes__[0]
    assert client.get_experiment_by_name("answers").experiment_id == experiment


def test_a_process_that_died_is_started_again(client: ClientProcess):
    client.search_experiments()
    died = process_of(client)
    died.kill()
    wait_until(lambda: client._process is not None and client._process.poll() is not None, 60, "it has not ended")
    assert client.search_experiments()
    assert process_of(client) != died


class OpenRequest:
    """A request to a server that never answers, in a thread."""

    def __init__(self, client: ClientProcess) -> None:
        self.errors: list[str] = []
        self._client = client
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self._client.search_experiments()
        except ClientError as error:
            self.errors.append(str(error))

    def wait(self) -> None:
        """Wait for its end."""
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def client_of(server: socket.socket, tmp_path: Path) -> ClientProcess:
    return ClientProcess(f"http://user:secret-word@127.0.0.1:{server.getsockname()[1]}", tmp_path / "mlflow.log")


def test_a_request_fails_whose_process_dies(silent_server: socket.socket, tmp_path: Path):
    client = client_of(silent_server, tmp_path)
    request = OpenRequest(client)
    with silent_server.accept()[0]:
        process_of(client).kill()
        request.wait()
    assert request.errors == ["the process that sends to MLflow has ended"]
    client.close()


def test_it_is_closed_while_a_server_does_not_answer(silent_server: socket.socket, tmp_path: Path):
    client = client_of(silent_server, tmp_path)
    request = OpenRequest(client)
    with silent_server.accept()[0]:
        process = process_of(client)
        assert "secret-word" not in " ".join(process.cmdline())
        client.close()
        request.wait()
    assert not process.is_running()
    assert request.errors == ["the process that sends to MLflow has ended"]
    with pytest.raises(ClientError, match="the sweep has ended"):
        client.search_experiments()


def test_it_ends_with_the_driver(store: str, tmp_path: Path):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, store, str(tmp_path / "mlflow.log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with driver:
        assert driver.stdout is not None
        process = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60, "it has not ended")
