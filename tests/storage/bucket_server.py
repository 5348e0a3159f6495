"""A local stand-in for S3, which processes reach over loopback, and what was asked of it."""

import logging
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import s3fs
from moto.server import ThreadedMotoServer


class BucketServer(logging.Handler):
    """Moto's S3 server on a free port; it keeps the requests that it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take it for S3."""
        host, port = self._server.get_host_and_port()
        return {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester's secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_bucket(self) -> str:
        """The URL of a bucket that nobody uses."""
        self.files.clear_instance_cache()
        name = f"kdray-{uuid.uuid4().hex[:8]}"
        self.files.mkdir(name)
        return f"s3://{name}"

    @property
    def files(self) -> s3fs.S3FileSystem:
        """What is in the buckets, to be looked at and broken past kdray."""
        here = self.environment
        return s3fs.S3FileSystem(
            key=here["AWS_ACCESS_KEY_ID"],
            secret=here["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=here["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
        )

    def names(self, url: str) -> set[str]:
        """The names of all objects below the URL."""
        start = url.removeprefix("s3://") + "/"
        return {name.removeprefix(start) for name in self.files.find(url)}

    def asked(self, what: str, url: str) -> int:
        """How often this was asked for the object of this URL."""
        return sum(f"{what} /{url.removeprefix('s3://')} " in request for request in self.requests)

    def emit(self, record: logging.LogRecord) -> None:
        """The server's own log says what was asked."""
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
    """Where another node, whose mirrors lie in this folder, has what is `path` here."""
    return folder.joinpath(*path.parts[path.parts.index("kdray-mirror") :])
