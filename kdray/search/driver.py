"""What both drivers of a search share: how a trial's job is made, named and listened to, and why it failed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from kdray.errors import JobError, KDRayError, ResourceError, SlotsLost, StorageError
from kdray.evaluation.trial_record import TrialRecord
from kdray.slots.job import Job, Report
from kdray.slots.pool import SlotClient

MakeJob: TypeAlias = Callable[[int, dict[str, Any]], Job]
"""The job of the trial with this number and these settings. What it raises is the reason why that trial failed."""

OnChange: TypeAlias = Callable[[TrialRecord], None]
"""Is told of each trial when it begins, after each evaluation, and when it ends."""


@dataclass(frozen=True)
class JobUpdate:
    """What the slots tell of a trial: a report, or the error that ended its job."""

    attempt: int = 1
    host: str = ""
    report: Report | None = None
    error: KDRayError | None = None


SEARCH_ENDING_ERRORS = (ResourceError, StorageError, SlotsLost)
"""No fault of the trial that met it first: the trial stays running in the ledger, to be gone on with."""


def job_name(number: int) -> str:
    """What the slots know the trial's job by."""
    return f"trial-{number}"


def job_updates(client: SlotClient, make: Callable[[], Job], number: int) -> Iterator[JobUpdate]:
    """All that is told of a trial's job, from its making on; closing the iterator cancels the job."""
    try:
        run = client.run(make(), job_name(number))
        try:
            for report in run:
                yield JobUpdate(run.attempts, run.host, report)
        finally:
            run.close()
    except KDRayError as error:
        yield JobUpdate(error=error)
    except Exception as error:
        yield JobUpdate(error=JobError(failure_reason(error)))


def failure_reason(error: BaseException) -> str:
    """Why a trial failed, for its row in the table."""
    return str(error) if isinstance(error, KDRayError) else f"{type(error).__name__}: {error}"
