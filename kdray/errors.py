"""Every exception that kdray raises on purpose.

    KDRayError
    ├── Refused                      found before anything starts: correct the input, nothing is lost (exit code 2)
    │   ├── SpecError (ValueError)       a setting, a name in `space`, an option
    │   ├── DataError (ValueError)       a folder, a file, a column, a cell, a label
    │   ├── TeacherError (ValueError)    no weights, quality near chance,  labels that differ from the data's
    │   ├── StorageError (OSError)       a path or bucket that cannot be used, a name that is already used
    │   └── ResourceError (RuntimeError) more workers, CPUs or GPUs than the machine or cluster has
    ├── JobError (RuntimeError)      one job on a slot failed; the sweep continues without it
    ├── SlotsLost (RuntimeError)     the process that hands out jobs died; the sweep can be resumed (exit code 1)
    ├── SweepFailed (RuntimeError)   no trial finished (exit code 1)
    ├── ExportError (RuntimeError)   the student cannot be exported in this form; its folder is unchanged (exit code 1)
    ├── TrackingError (RuntimeError) MLflow did not accept the data of a sweep (exit code 1)
    └── NoStudent (RuntimeError)     the sweep finished, but no student satisfies the rule (exit code 3)

A message has one or two sentences: where, what came, what is allowed, what to do. Every exception survives pickling:
an error that a Ray worker raises has the same class and message in the driver.
"""

import difflib
import errno
from collections.abc import Iterable

STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""The codes of an OSError that mean a full, read-only or failing file system, or a lost NFS handle."""


class KDRayError(Exception):
    """The base class of all errors of kdray; the command line exits with `exit_code`."""

    exit_code = 1


class Refused(KDRayError):
    """A mistake of the user that is found before anything starts."""

    exit_code = 2


class SpecError(Refused, ValueError):
    """A setting is unknown, out of its range, or in conflict with another setting."""


class DataError(Refused, ValueError):
    """The data cannot be read, or a model cannot learn from them."""


class TeacherError(Refused, ValueError):
    """The teacher cannot be loaded, or is too poor to teach."""


class StorageError(Refused, OSError):
    """A path or a bucket cannot be read or written, or it belongs to another sweep."""


def storage_error(error: BaseException, where: object = "the storage") -> StorageError | None:
    """The StorageError for an OSError of a full, failing or read-only storage; None for any other error.

    The message names `where` if the error itself names no file.
    """
    if not isinstance(error, OSError) or isinstance(error, StorageError) or error.errno not in STORAGE_ERRNOS:
        return None
    # filename2 is the target of a rename: the final name of the file, not the temporary one.
    path = error.filename2 or error.filename or where
    return StorageError(
        f"{path}: cannot be written: {error.strerror}. What was written before is safe. Free some space there, or "
        "make it writable; the same command then continues from there."
    )


class ResourceError(Refused, RuntimeError):
    """A sweep requests more than the machine or the cluster has or can scale up to."""


class JobError(KDRayError, RuntimeError):
    """One job on a slot failed. A job that raises it on purpose must raise it on every rank."""


class SlotsLost(KDRayError, RuntimeError):
    """The slots died while the sweep ran; the same command resumes the sweep."""


class SweepFailed(KDRayError, RuntimeError):
    """The sweep ended without a finished trial."""


class ExportError(KDRayError, RuntimeError):
    """The student cannot be exported in a form, or its outputs in that form differ from the original ones."""


class TrackingError(KDRayError, RuntimeError):
    """MLflow did not accept the calls in a sweep's spool."""


class NoStudent(KDRayError, RuntimeError):
    """The sweep finished, but no student satisfies the rule."""

    exit_code = 3


def did_you_mean(name: str, allowed: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The end of a message about an unknown name: the most similar allowed name, and the names in `listed`.

    Without `listed` it lists all of `allowed`.
    """
    names = sorted(allowed)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}Allowed: {', '.join(names if listed is None else listed)}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
