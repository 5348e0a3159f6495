"""Every error that kdray raises on purpose.

    KDRayError
    ├── Refused                      mend what the sentence says; nothing is lost (exit code 2)
    │   ├── SpecError (ValueError)       a setting, a name in `space`, an option
    │   ├── DataError (ValueError)       a folder, a file, a column, a cell, a label
    │   ├── TeacherError (ValueError)    no weights, near chance, labels that disagree
    │   ├── StorageError (OSError)       a path or bucket that cannot be used, a name already used
    │   └── ResourceError (RuntimeError) more workers, CPUs or GPUs than there are
    ├── JobError (RuntimeError)      one job on a slot failed; the sweep goes on without it
    ├── SlotsLost (RuntimeError)     what hands out jobs died; the sweep can be gone on with (exit code 1)
    ├── SweepFailed (RuntimeError)   nothing useful came out (exit code 1)
    ├── ExportError (RuntimeError)   the student has no such form; the folder stays as it is (exit code 1)
    ├── TrackingError (RuntimeError) MLflow did not take what a sweep has to tell (exit code 1)
    └── NoStudent (RuntimeError)     the sweep finished, no student satisfies the rule (exit code 3)

A message is one sentence or two: where, what came, what is allowed, what to do. All of them survive pickling,
so an error raised in a Ray worker arrives in the driver as itself.
"""

import difflib
import errno
from collections.abc import Iterable

STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


class KDRayError(Exception):
    """The root of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class Refused(KDRayError):
    """A mistake found before anything was started."""

    exit_code = 2


class SpecError(Refused, ValueError):
    """A setting is unknown, out of its range, or does not go with another."""


class DataError(Refused, ValueError):
    """The data cannot be read, or cannot be learnt from."""


class TeacherError(Refused, ValueError):
    """The teacher cannot be loaded, or should not be taught from."""


class StorageError(Refused, OSError):
    """A path or a bucket cannot be read or written, or belongs to another sweep."""


def storage_error(error: BaseException, where: object = "the storage") -> StorageError | None:
    """What a full, failing or read-only storage raised, as a sentence; None for any other error.

    `where` is named when the error itself names no file.
    """
    if not isinstance(error, OSError) or isinstance(error, StorageError) or error.errno not in STORAGE_ERRNOS:
        return None
    path = error.filename2 or error.filename or where
    return StorageError(
        f"{path}: cannot be written: {error.strerror}. What was written is safe; make room (or make it writable), and "
        "the same command goes on from there."
    )


class ResourceError(Refused, RuntimeError):
    """More was asked than the machine or the cluster has or can grow to."""


class JobError(KDRayError, RuntimeError):
    """One job on a slot failed. Raised inside a job on purpose, it must be raised by every rank alike."""


class SlotsLost(KDRayError, RuntimeError):
    """The slots died in the middle of the sweep; running the same sweep again goes on."""


class SweepFailed(KDRayError, RuntimeError):
    """The sweep ended without one finished trial."""


class ExportError(KDRayError, RuntimeError):
    """The student cannot be written in a form, or is not the same student in it."""


class TrackingError(KDRayError, RuntimeError):
    """MLflow did not take what lies in a sweep's spool."""


class NoStudent(KDRayError, RuntimeError):
    """The sweep finished and no student satisfies the rule."""

    exit_code = 3


def did_you_mean(name: str, allowed: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The tail of a sentence about an unknown name: the nearest allowed one, and all of them or those to be listed."""
    names = sorted(allowed)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}Allowed: {', '.join(names if listed is None else listed)}."
