"""The seam: what a pool of slots is asked for, and what it promises.

A job is handed to a pool under a name and its reports come back one by one. Whether a pool is this process
(`local`) or worker groups on a Ray cluster (`ray_slots`) makes no difference to who asks. What a job is stands in
`kdray.slots.job`; what it computes is no business of a slot's.
"""

import traceback
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field

from kdray.errors import JobError, KDRayError, storage_error
from kdray.settings import Settings
from kdray.slots.job import Job, Report


class SlotSettings(Settings):
    """How many slots, and what each of them holds."""

    count: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Jobs at a time. auto: one for each `workers` GPUs; without GPUs one for each `workers` CPUs, at most 8; more and
    fewer as machines join and leave the cluster."""
    workers: int = Field(1, ge=1)
    """Processes that train one job together (DistributedDataParallel)."""
    cpus: float | None = Field(None, gt=0)
    """Of one worker. None: an equal share of the cluster's."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Of one worker; 0.5 puts two workers on a GPU. auto: an equal share of the cluster's, at most 1."""
    max_failures: int = Field(2, ge=0)
    """How many times a job may take its slot down and be tried again."""
    start_timeout_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """How long to wait for a slot before its resources are said to be missing. auto: five minutes, or twenty where the
    cluster starts machines first."""
    progress_timeout_s: float = Field(600.0, gt=0)
    """How long a job may make no step before its worker is taken for hung and started anew; to load a model must not
    take longer."""
    stop_timeout_s: float = Field(15.0, gt=0)
    """How long a job may take for its last step and checkpoint when the sweep is stopped, before it is killed."""


class JobRun(Protocol):
    """The reports of one job, in order; ends when the job has ended or was cancelled, raises what the job raised."""

    attempts: int
    """How often the job was begun: more than once when its slot died under it. Each attempt reports from its start."""
    host: str
    """The machines that it runs on, by rank; known with its first report."""

    def __iter__(self) -> Iterator[Report]: ...

    def __next__(self) -> Report: ...

    def close(self) -> None:
        """Suspend the job if it has not ended: it stops at its next step, after a checkpoint."""


class SlotClient(Protocol):
    """What hands jobs to the slots; picklable, so that any process of the cluster can."""

    def run(self, job: Job, name: str) -> JobRun:
        """Hand over a job. Raises JobError, here or while iterating, with the reason if it fails."""

    def cancel(self, name: str) -> None:
        """Stop the job of this name at its next step; its reports end at once. Unknown names are ignored."""

    def suspend(self, name: str) -> None:
        """The same, but it writes a checkpoint first, since it will be gone on with."""


class SlotPool(SlotClient, Protocol):
    """Slots that stay warm from job to job, until the pool is closed."""

    @property
    def count(self) -> int:
        """How many jobs run at a time; it may change while the pool is open."""
        ...

    @property
    def threads_alone(self) -> int:
        """How many processor threads a worker may use while no other job runs."""
        ...

    @property
    def runs_in_caller(self) -> bool:
        """Whether a job runs in the thread that reads its reports, so that only one job can run at a time."""
        ...

    def client(self) -> SlotClient: ...

    def wait(self, timeout: float | None = None) -> None:
        """Return when every slot is up. Raises ResourceError when one of them cannot be had."""

    def describe(self) -> dict[str, Any]:
        """What the slots are, for the record: JSON values by name."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def as_job_error(name: str, error: BaseException) -> KDRayError:
    """What the asker of job `name` is told: our own errors as they are, others as a JobError that names the place."""
    if isinstance(error, KDRayError):
        return error
    if full := storage_error(error):
        return full
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    told = JobError(f"{name}: {type(error).__name__}: {error}{place}")
    told.add_note("".join(traceback.format_exception(error)))
    return told
