"""What a worker's machine must have in common with the driver's, looked at before its first job.

A cluster whose machines see different folders under one path, or run different code, trains for hours and then has no
student, or another one than it says. So each worker looks for a file that the driver wrote, and compares versions.
"""

import hashlib
import platform
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile

from kdray.errors import Refused, ResourceError, StorageError
from kdray.storage.mirror import fetch

PACKAGES = ("torch", "transformers")
SEEN_WITHIN_S = 15.0
"""How late a file server may show one machine what another has written."""


@dataclass(frozen=True)
class DriverEnvironment:
    """What every worker must find as the driver does."""

    machine: str
    versions: dict[str, str]
    proof: Path | None
    """A file in the sweep's folder, written by the driver. None: nothing there is shared."""
    content: bytes

    @classmethod
    def here(cls, proof: Path | None) -> "DriverEnvironment":
        """What this process finds."""
        return cls(_machine(), installed_versions(), proof, proof.read_bytes() if proof else b"")

    def refusal(self) -> Refused | None:
        """Why this process may do no jobs of the sweep: its code, or the storage it sees, is another."""
        if _machine() != self.machine:  # on the driver's own, the same code is there, whatever is being written in it
            own = installed_versions()
            differing = {name: known for name, known in self.versions.items() if own[name] != known}
            wrong = [f"{name} {own[name]} (the driver: {known})" for name, known in differing.items()]
            if wrong:
                return ResourceError(
                    f"the machine {_machine()} has {', '.join(wrong)}. All machines need the same: on a cluster made "
                    "by `ray up`, the same command again brings them in step."
                )
        try:
            return _storage_refusal(self.proof, self.content) if self.proof else None
        except StorageError as error:
            return StorageError(f"the machine {_machine()}: {error}")


@cache
def installed_versions() -> dict[str, str]:
    """Of what a job's numbers depend on; of kdray every line counts, for a checkout's version stays the same."""
    package = Path(__file__).parents[1]
    lines = hashlib.sha256()
    for module in sorted(package.rglob("*.py")):
        lines.update(module.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    others = {name: metadata.version(name) for name in PACKAGES}
    return {"Python": python, **others, "kdray": f"{metadata.version('kdray')} ({lines.hexdigest()[:8]})"}


def _storage_refusal(proof: Path, content: bytes) -> StorageError | None:
    until = time.monotonic() + SEEN_WITHIN_S
    while _content(proof) != content:
        if time.monotonic() > until:
            seen = "another one" if proof.exists() else "nothing"
            return StorageError(
                f"{proof.parent}: the driver wrote {proof.name} there, and the machine {_machine()} sees {seen}. The "
                "storage must be one place for all machines: name a shared folder or a bucket with --storage."
            )
        time.sleep(0.5)
    try:
        with TemporaryFile(dir=proof.parent):
            return None
    except OSError as error:
        return StorageError(
            f"{proof.parent}: the machine {_machine()} sees it, but cannot write there ({error.strerror}). Let all "
            "machines write it, as the same user or group."
        )


def _content(path: Path) -> bytes | None:
    try:
        return fetch(path).read_bytes()
    except StorageError:  # a bucket that this machine may not use
        raise
    except OSError:
        return None


def _machine() -> str:
    return platform.node()
