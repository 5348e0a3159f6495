"""Checks, before a worker's first job, that its machine has the same code and the same storage as the driver's.

On a cluster whose machines see different folders under one path, or run different code, a sweep would train for hours
and then have no student, or a wrong one. So each worker compares versions, and reads a file that the driver wrote.
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
"""The packages besides kdray whose versions must be equal."""

PROOF_TIMEOUT_S = 15.0
"""Seconds within which a file server shows one machine what another machine has written."""


@dataclass(frozen=True)
class DriverEnvironment:
    """The code and the storage of the driver, which every worker must have too."""

    machine: str
    versions: dict[str, str]
    proof: Path | None
    """A file in the sweep's folder that the driver wrote. None: no storage is shared, and none is checked."""
    content: bytes
    """The content of that file."""

    @classmethod
    def of_this_process(cls, proof: Path | None) -> "DriverEnvironment":
        """The code of this process, and the storage that it sees."""
        return cls(
            machine=_machine(),
            versions=installed_versions(),
            proof=proof,
            content=proof.read_bytes() if proof else b"",
        )

    def refusal(self) -> Refused | None:
        """Why this process must not run jobs of the sweep: other code, or another storage; None if it may."""
        # On the driver's own machine the code is the same installation, which somebody may edit while the sweep runs.
        if _machine() != self.machine:
            own = installed_versions()
            differing = {name: version for name, version in self.versions.items() if own[name] != version}
            wrong = [f"{name} {own[name]} (the driver: {version})" for name, version in differing.items()]
            if wrong:
                return ResourceError(
                    f"the machine {_machine()} has {', '.join(wrong)}. All machines need the same versions: on a "
                    "cluster made by `ray up`, run the same `ray up` again to install them everywhere."
                )
        try:
            return _storage_refusal(self.proof, self.content) if self.proof else None
        except StorageError as error:
            return StorageError(f"the machine {_machine()}: {error}")


@cache
def installed_versions() -> dict[str, str]:
    """The versions of Python, PACKAGES and kdray, on which the numbers of a job depend."""
    package = Path(__file__).parents[1]
    # The version of a checkout does not change with its code, so kdray's version here includes a digest of its files.
    digest = hashlib.sha256()
    for module in sorted(package.rglob("*.py")):
        digest.update(module.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    others = {name: metadata.version(name) for name in PACKAGES}
    return {"Python": python, **others, "kdray": f"{metadata.version('kdray')} ({digest.hexdigest()[:8]})"}


def _storage_refusal(proof: Path, content: bytes) -> StorageError | None:
    until = time.monotonic() + PROOF_TIMEOUT_S
    while _read(proof) != content:
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


def _read(path: Path) -> bytes | None:
    try:
        return fetch(path).read_bytes()
    except StorageError:
        raise  # a bucket that this machine may not use: waiting does not help
    except OSError:
        return None


def _machine() -> str:
    return platform.node()
