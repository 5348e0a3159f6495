"""The driver without Ray: runs one trial after the other in the calling thread, for LocalSlots and for a debugger."""

from contextlib import closing

from kdray.search.driver import SEARCH_ENDING_ERRORS, MakeJob, OnChange, failure_reason, job_name, job_updates
from kdray.search.planner import PlannedTrial, Planner
from kdray.slots.pool import SlotPool


def run_in_sequence(pool: SlotPool, planner: Planner, make_job: MakeJob, on_change: OnChange) -> None:
    """Run trials until the planner has no more trials. A trial that fails is a failed row with its reason.

    Raises ResourceError when no slot is available. After that error, or an interrupt, the trial stays running in the
    ledger, and the next session resumes it.
    """
    while planned := planner.next_trial():
        on_change(planner.record(planned.number))
        if planned.must_stop:
            on_change(planner.finish(planned.number, "stopped"))
            continue
        _run(pool, planner, planned, make_job, on_change)
        # For a trial that `_run` ended as failed or stopped, `finish` changes nothing.
        on_change(planner.finish(planned.number, "completed"))


def _run(pool: SlotPool, planner: Planner, planned: PlannedTrial, make_job: MakeJob, on_change: OnChange) -> None:
    """Run one trial. Afterwards it is still running in the planner only if its job ran to its end."""
    number = planned.number
    with closing(job_updates(pool, lambda: make_job(number, planned.params), number)) as updates:  # type: ignore[type-var]
        for update in updates:
            if isinstance(update.error, SEARCH_ENDING_ERRORS):
                raise update.error
            if update.error:
                planner.finish(number, "failed", failure_reason(update.error))
            elif update.report is not None and not planner.observe(number, update.report, update.attempt, update.host):
                pool.cancel(job_name(number))
                planner.finish(number, "stopped")
                return
            else:
                on_change(planner.record(number))
