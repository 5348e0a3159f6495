"""What both drivers share: the name of a trial's job, the updates from that job, and why the trial failed.

A driver runs trials: it takes each trial from the planner, runs the trial's job on the slots, and gives the job's
evaluations to the planner.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from kdray.errors import JobError, KDRayError, ResourceError, SlotsLost, StorageError
from kdray.evaluation.trial_record import TrialRecord
from kdray.safe_text.secrets import mask_secrets
from kdray.slots.job import Job, Report
from kdray.slots.pool import SlotClient

MakeJob: TypeAlias = Callable[[int, dict[str, Any]], Job]
"""Makes the job of the trial with this number and these settings. If it raises, the trial fails with that error."""

OnChange: TypeAlias = Callable[[TrialRecord], None]
"""Called with a trial's record when the trial starts, after each evaluation, and when the trial ends."""


@dataclass(frozen=True)
class JobUpdate:
    """What a job sends to its driver: one report, or the error that ended the job."""

    attempt: int = 1
    """How many times the slots have started the job."""
    host: str = ""
    """The machine that runs the job; of a job on several machines all of them, by rank."""
    report: Report | None = None
    error: KDRayError | None = None


SEARCH_ENDING_ERRORS = (ResourceError, StorageError, SlotsLost)
"""Errors that end the search, because no trial caused them. The trial that raised one stays running in the ledger, and
the next session resumes it."""


def job_name(number: int) -> str:
    """The name of the trial's job on the slots."""
    return f"trial-{number}"


def job_updates(client: SlotClient, make: Callable[[], Job], number: int) -> Iterator[JobUpdate]:
    """Make the trial's job, run it, and yield its updates; an error is the last update.

    Closing the iterator suspends a job that has not ended.
    """
    try:
        # `make` is called here, so that its error ends the trial like an error of the job.
        run = client.run(make(), job_name(number))
        try:
            for report in run:
                yield JobUpdate(attempt=run.attempts, host=run.host, report=report)
        finally:
            run.close()
    except KDRayError as error:
        yield JobUpdate(error=error)
    except Exception as error:
        yield JobUpdate(error=JobError(failure_reason(error)))


def failure_reason(error: BaseException) -> str:
    """Why a trial failed, for its row in the table."""
    # The reason is written into the ledger, MLflow and the report, and errors of libraries contain passwords.
    return mask_secrets(str(error) if isinstance(error, KDRayError) else f"{type(error).__name__}: {error}")
