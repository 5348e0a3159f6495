"""A real MLflow server for tests, and a proxy in front of it that injects faults into requests."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias
from urllib.request import urlopen

Fault: TypeAlias = Literal["passes", "error 500", "no answer", "late answer", "lost answer"]
"""`late answer` and `lost answer`: the server executes the request; the answer comes after `lateness_s`, or never."""
STARTS_WITHIN_S = 120


class Server:
    """`mlflow server` on a free port of the loopback interface, with a SQLite file and a folder for artifacts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> str:
        """The tracking URI of the SQLite file, to read the runs without the server and the proxy."""
        return f"sqlite:///{self.folder}/server.db"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, with the same port and data as before, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            self.store,
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=out, start_new_session=True, env=environment
            )
        limit = time.monotonic() + STARTS_WITHIN_S
        try:
            while not self._answers():
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < limit, "the MLflow server did not start in time"
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the server and its workers."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


class FaultyProxy:
    """A proxy in front of a server. `fate` maps the method and path of a request to the fault to inject."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = free_port()
        self.fate: Callable[[str, str], Fault] = lambda method, path: "passes"
        self.lateness_s = 0.0
        self.requests: list[str] = []
        self._shutting = threading.Event()
        self._listener: ThreadingHTTPServer | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()

    def open(self) -> None:
        """Listen, and pass all requests to the server."""
        self.fate = lambda method, path: "passes"
        if self._listener is None:
            self._shutting = threading.Event()
            proxy = self

            class Handler(_Handler):
                owner = proxy

            self._listener = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
            self._listener.daemon_threads = True
            threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def shut(self) -> None:
        """Stop listening: connections are refused."""
        if self._listener is not None:
            self._shutting.set()
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None

    def always(self, fate: Fault) -> None:
        """Inject this fault into every request."""
        self.fate = lambda method, path: fate

    def wait_for(self, requests: int, limit_s: float = 60) -> None:
        """Wait until this number of further requests has come."""
        limit, before = time.monotonic() + limit_s, len(self.requests)
        while len(self.requests) - before < requests:
            assert time.monotonic() < limit, f"no {requests} requests came within {limit_s} s"
            time.sleep(0.02)

    def sleep(self, seconds: float) -> None:
        """Wait, at most until `shut` is called."""
        self._shutting.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy

    def handle_request(self) -> None:
        proxy = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.requests.append(f"{self.command} {self.path}")
        fate = proxy.fate(self.command, self.path)
        if fate == "error 500":
            self.send_error(500)
            return
        if fate == "no answer":
            proxy.sleep(60)
            return
        status, headers, content = self._forward(body)
        if fate == "lost answer":
            return
        proxy.sleep(proxy.lateness_s if fate == "late answer" else 0)
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.owner.server.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            server.request(self.command, self.path, body, headers)
            response = server.getresponse()
            return response.status, response.getheaders(), response.read()
        except OSError:
            return 502, [], b""
        finally:
            server.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client may have closed the connection
            super().handle()

    def log_message(self, format: str, *args: object) -> None: ...


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
