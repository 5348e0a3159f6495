"""An MLflow client in a process of its own, so that MLflow takes no processor time from the sweep's driver.

Python runs one thread of a process at a time: while MLflow writes into its database, the driver answers no slot. The
process has one client, which it asks for one request after the other. It ends with the process that started it.
"""

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from mlflow import MlflowClient

import kdray

Request: TypeAlias = tuple[str, Sequence[Any], Mapping[str, Any]]
"""The name of a method of MlflowClient, and its arguments."""

END_S = 10.0
"""Seconds to wait for the end of a process that was killed."""


class ClientError(Exception):
    """An error of the client, in the words that it had in the other process."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        if trace:
            self.add_note(trace)


class ClientProcess:
    """Has the methods of MlflowClient; each raises ClientError instead of the client's own error. For one thread.

    The first request starts the process, and so does a request after the process has died.
    """

    def __init__(self, uri: str, log: Path) -> None:
        """A client for the store at this address. What the process prints is added to the file `log`."""
        self._uri, self._log = uri, log
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._changing, self._is_closed = threading.Lock(), False

    def __getattr__(self, name: str) -> Any:
        """The method of the client with this name."""
        return partial(self._call, name)

    def close(self) -> None:
        """End the process, also in the middle of another thread's request; every later request raises ClientError."""
        with self._changing:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()
                # A process that waits for a dead file system cannot be killed, and must not stop the sweep.
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_S)

    def _call(self, name: str, *values: Any, **options: Any) -> Any:
        connection = self._connect()
        try:
            connection.send((name, values, options))
            result, error = connection.recv()
        except (EOFError, OSError):
            raise ClientError("the process that sends to MLflow has ended") from None
        if error is not None:
            raise ClientError(*error)
        return result

    def _connect(self) -> Connection:
        """The connection to the process, which is started if none is running."""
        with self._changing:
            if self._is_closed:
                raise ClientError("the sweep has ended")
            if self._connection is None or self._process is None or self._process.poll() is not None:
                self._process, self._connection = self._start()
            return self._connection

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = Pipe()
        # A folder that Python found kdray in, but that is not in PYTHONPATH, would be unknown to the process.
        folders = [str(Path(kdray.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs, self._log.open("a") as output:
            process = subprocess.Popen(  # noqa: S603 - a list of words, no shell
                [sys.executable, "-m", "kdray.tracking.client_process", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the driver alone, which still sends the end of the sweep
            )
        # Not among the arguments, which every user of the machine may read: an address can have a password.
        ours.send(self._uri)
        return process, ours


def _serve(connection: Connection) -> None:
    """Answer requests until the other process ends or closes the connection."""
    requests: SimpleQueue[Request] = SimpleQueue()
    client = MlflowClient(tracking_uri=connection.recv())
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    while True:
        name, values, options = requests.get()
        try:
            result = getattr(client, name)(*values, **options)
        except Exception as error:  # a store may raise any error, and some cannot be pickled
            connection.send((None, (str(error) or type(error).__name__, traceback.format_exc())))
        else:
            connection.send((result, None))


def _receive(connection: Connection, requests: "SimpleQueue[Request]") -> None:
    """Receive requests. End the process if the other one has ended, even in the middle of a request."""
    while True:
        try:
            requests.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
