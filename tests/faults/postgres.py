"""A PostgreSQL server for tests, out of Debian's package: on loopback, with a password, gone when the block ends."""

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
    """One server and its files."""

    programs: Path
    folder: Path
    port: int
    account: str
    """The server refuses to be root."""
    password: str = "not-to-be-written-anywhere"

    def url(self, database: str) -> str:
        """Of a new database; the password is not in it."""
        environment = {**os.environ, "PGPASSWORD": self.password}
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "kdray"]
        subprocess.run([self.programs / "createdb", *where, database], env=environment, check=True, timeout=60)
        return f"postgresql://kdray@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, unless it runs."""
        if not (self.folder / "data" / "postmaster.pid").exists():
            options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
            self.run("pg_ctl", "start", "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop it at once, whoever is connected."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.run("pg_ctl", "stop", "-w", "-t", "60", "-m", "fast")

    def run(self, program: str, *options: str) -> None:
        """Run one of PostgreSQL's programs on the server's files, as the account that may."""
        account = pwd.getpwnam(self.account)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if not os.getuid() else {}
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *options]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL, cwd=self.folder, **identity)  # type: ignore[call-overload]


@contextmanager
def postgres_cluster() -> Iterator[Cluster]:
    """A running server with the user `kdray`; the test is skipped where there is no PostgreSQL to be had."""
    programs = _programs()
    account = "nobody" if not os.getuid() else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="kdray-postgres-"))  # pytest's own folders are closed to other accounts
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


def _programs() -> Path:
    """Where initdb and the server are; installed where that may be."""
    pytest.importorskip("psycopg", reason="needs pip install 'kdray[postgresql]'")
    if not _found() and not os.getuid() and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", "postgresql"], check=False, timeout=600)
    if not (found := _found()):
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    return found[-1].parent


def _found() -> list[Path]:
    return sorted(PACKAGES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
