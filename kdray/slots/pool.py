"""The interface of a pool of slots: what can be requested from it, and what it guarantees.

A job is submitted to a pool under a name, and its reports come back one by one. The caller does not see whether the
pool is this process (`local`) or worker groups on a Ray cluster (`ray_slots`). `kdray.slots.job` defines what a job is;
a pool does not know what a job computes.
"""

import traceback
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field

from kdray.errors import JobError, KDRayError, storage_error
from kdray.safe_text.secrets import mask_secrets
from kdray.settings import Settings, later_field
from kdray.slots.job import Job, Report


class SlotSettings(Settings):
    """How many slots there are, and which resources each of them has."""

    count: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """How many jobs run at the same time. auto: one for each `workers` GPUs; without GPUs one for each `workers` CPUs,
    at most 8; more or fewer when machines join or leave the cluster."""
    workers: int = Field(1, ge=1)
    """Processes that train one job together (DistributedDataParallel)."""
    cpus: float | None = Field(None, gt=0)
    """CPUs of one worker. None: an equal share of the cluster's CPUs."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of one worker; 0.5 puts two workers on one GPU. auto: an equal share of the cluster's GPUs, at most 1."""
    max_failures: int = Field(2, ge=0)
    """How many times a job is tried again after its worker died."""
    fused: int = later_field(1, ge=1)
    """How many trials of the search a slot may train as one batch of models, if only their losses, learning rates and
    lengths of training differ. 1: none together, because no gain is shown yet (docs/performance.md). Slots of several
    workers, and those with max_failures=0, train each trial alone."""
    start_timeout_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Seconds to wait for a slot before its resources are reported as missing. auto: 300, or 1,200 where the cluster
    starts machines first."""
    progress_timeout_s: float = Field(600.0, gt=0)
    """Seconds without a step after which a job's worker counts as hung and is restarted. Loading a model must not take
    longer."""
    stop_timeout_s: float = Field(15.0, gt=0)
    """Seconds that a job may take for its last step and checkpoint when the sweep is stopped, before it is killed."""


class JobRun(Protocol):
    """An iterator over the reports of one job: it ends when the job has ended or was cancelled, or raises its error."""

    attempts: int
    """How many times the job was started: more than once if its worker died. Each attempt reports from its start."""
    host: str
    """The machines that the job runs on, in rank order; known from the first report on."""

    def __iter__(self) -> Iterator[Report]: ...

    def __next__(self) -> Report: ...

    def close(self) -> None:
        """Suspend the job if it has not ended: it stops at its next step, after a checkpoint."""


class SlotClient(Protocol):
    """Submits jobs to the slots. It can be pickled, so that any process of the cluster can use it."""

    def run(self, job: Job, name: str) -> JobRun:
        """Submit a job. Raises JobError with the reason if the job fails, here or from the iterator."""

    def cancel(self, name: str) -> None:
        """Stop the job of this name at its next step; its reports end at once. An unknown name is ignored."""

    def suspend(self, name: str) -> None:
        """Stop the job of this name as `cancel` does, but after a checkpoint, because it will be continued."""


class SlotPool(SlotClient, Protocol):
    """Slots that stay warm from job to job, until the pool is closed."""

    @property
    def count(self) -> int:
        """How many slots run jobs at the same time; it may change while the pool is open."""
        ...

    @property
    def places(self) -> int:
        """How many jobs run at the same time where jobs that may be fused fill each slot; `count` without fusing."""
        ...

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs."""
        ...

    @property
    def runs_in_caller(self) -> bool:
        """Whether a job runs in the thread that reads its reports, so that only one job can run at a time."""
        ...

    def client(self) -> SlotClient:
        """The part of the pool that submits jobs."""
        ...

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every slot is up, at most `timeout` seconds. Raises ResourceError when a slot cannot start."""

    def describe(self) -> dict[str, Any]:
        """The kind, number and resources of the slots, as JSON values by name."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def as_job_error(name: str, error: BaseException) -> KDRayError:
    """Convert an error of job `name` for its submitter.

    A KDRayError is returned unchanged, and a full or failing storage as a StorageError. Any other error becomes a
    JobError that names the line of code, with the traceback as a note.
    """
    if isinstance(error, KDRayError):
        return error
    if full := storage_error(error):
        return full
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    # The message goes into the ledger, MLflow and the report, and errors of libraries contain addresses with passwords.
    job_error = JobError(mask_secrets(f"{name}: {type(error).__name__}: {error}{place}"))
    # A traceback object cannot be pickled; its text can.
    job_error.add_note("".join(traceback.format_exception(error)))
    return job_error
