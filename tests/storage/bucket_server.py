"""A local server with the API of S3, for tests; it records the requests that it receives."""

import logging
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import s3fs
from moto.server import ThreadedMotoServer


class BucketServer(logging.Handler):
    """Moto's S3 server on a free port of the loopback interface; a logging handler that records its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a process uses this server as S3."""
        host, port = self._server.get_host_and_port()
        return {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester's secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_bucket(self) -> str:
        """Create an empty bucket and return its URL."""
        self.files.clear_instance_cache()  # fsspec caches file system instances
        name = f"kdray-{uuid.uuid4().hex[:8]}"
        self.files.mkdir(name)
        return f"s3://{name}"

    @property
    def files(self) -> s3fs.S3FileSystem:
        """A file system for all buckets, with which tests read and damage objects without kdray."""
        environment = self.environment
        return s3fs.S3FileSystem(
            key=environment["AWS_ACCESS_KEY_ID"],
            secret=environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
        )

    def names(self, url: str) -> set[str]:
        """The names of all objects below the URL."""
        start = url.removeprefix("s3://") + "/"
        return {name.removeprefix(start) for name in self.files.find(url)}

    def count_requests(self, method: str, url: str) -> int:
        """The number of requests with this HTTP method for the object at this URL."""
        return sum(f"{method} /{url.removeprefix('s3://')} " in request for request in self.requests)

    def emit(self, record: logging.LogRecord) -> None:
        """Record one line of the server's own log, which has one line for each request."""
        self.requests.append(record.getMessage())

    def __enter__(self) -> Self:
        log = logging.getLogger("werkzeug")
        log.handlers, log.propagate = [self], False
        log.setLevel(logging.INFO)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()


def on_node(folder: Path, path: Path) -> Path:
    """The path on another node, whose mirrors are in `folder`, of the file or folder that is `path` on this node."""
    return folder.joinpath(*path.parts[path.parts.index("kdray-mirror") :])
