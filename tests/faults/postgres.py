"""A PostgreSQL server for tests, from Debian's package: on the loopback interface, with a password, for one block."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Cluster:
    """A server and its files."""

    programs: Path
    folder: Path
    port: int
    account: str
    """The account that the server runs under: PostgreSQL refuses to run as root."""
    password: str = "not-to-be-written-anywhere"

    def url(self, database: str) -> str:
        """Create a database and return its URL, which does not contain the password."""
        environment = {**os.environ, "PGPASSWORD": self.password}
        server = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "kdray"]
        subprocess.run([self.programs / "createdb", *server, database], env=environment, check=True, timeout=60)
        return f"postgresql://kdray@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server, unless it runs already."""
        if not (self.folder / "data" / "postmaster.pid").exists():
            options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
            self.run("pg_ctl", "start", "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop the server at once; open connections are closed."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.run("pg_ctl", "stop", "-w", "-t", "60", "-m", "fast")

    def run(self, program: str, *options: str) -> None:
        """Run one of PostgreSQL's programs on the server's files, under the server's account."""
        account = pwd.getpwnam(self.account)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if not os.getuid() else {}
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *options]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL, cwd=self.folder, **identity)  # type: ignore[call-overload]


@contextmanager
def postgres_cluster() -> Iterator[Cluster]:
    """Run a server with the user `kdray` for the block. The test is skipped if PostgreSQL cannot be installed."""
    programs = _find_or_install_programs()
    account = "nobody" if not os.getuid() else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="kdray-postgres-"))  # other accounts cannot read pytest's folders
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = Cluster(programs, folder, free.getsockname()[1], account)
    (folder / "password").write_text(cluster.password)
    (folder / "password").chmod(0o644)
    os.chown(folder, pwd.getpwnam(account).pw_uid, -1)
    try:
        secure = ["--auth", "scram-sha-256", "--pwfile", str(folder / "password")]
        cluster.run("initdb", "--username", "kdray", "--no-sync", *secure)
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def _find_or_install_programs() -> Path:
    """The folder of initdb and the server. As root, with apt-get, they are installed if they are missing."""
    pytest.importorskip("psycopg", reason="needs pip install 'kdray[postgresql]'")
    if not _initdb_files() and not os.getuid() and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", "postgresql"], check=False, timeout=600)
    if not (files := _initdb_files()):
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    return files[-1].parent


def _initdb_files() -> list[Path]:
    """The initdb programs of all installed versions, in the order of the versions."""
    return sorted(PACKAGES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
