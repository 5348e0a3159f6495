"""Running trials one after the other, in the thread that asks, without Ray: for LocalSlots and for a debugger."""

from contextlib import closing

from kdray.search.driver import SEARCH_ENDING_ERRORS, MakeJob, OnChange, failure_reason, job_name, job_updates
from kdray.search.planner import PlannedTrial, Planner
from kdray.slots.pool import SlotPool


def run_in_sequence(pool: SlotPool, planner: Planner, make_job: MakeJob, on_change: OnChange) -> None:
    """Run trials until the planner has no more; one that fails is a failed row, whatever it failed of.

    Raises ResourceError when there is no slot to be had. That, or an interrupt, leaves the trial running in the ledger:
    the next session begins it again.
    """
    while asked := planner.next_trial():
        on_change(planner.record(asked.number))
        if asked.stopped:
            on_change(planner.finish(asked.number, "stopped"))
            continue
        _run(pool, planner, asked, make_job, on_change)
        on_change(planner.finish(asked.number, "completed"))


def _run(pool: SlotPool, planner: Planner, asked: PlannedTrial, make_job: MakeJob, on_change: OnChange) -> None:
    """Run one trial; afterwards it is still running in the planner only if its job ran to its end."""
    number = asked.number
    with closing(job_updates(pool, lambda: make_job(number, asked.params), number)) as news:  # type: ignore[type-var]
        for new in news:
            if isinstance(new.error, SEARCH_ENDING_ERRORS):
                raise new.error
            if new.error:
                planner.finish(number, "failed", failure_reason(new.error))
            elif new.report is not None and not planner.observe(number, new.report, new.attempt, new.host):
                pool.cancel(job_name(number))
                planner.finish(number, "stopped")
                return
            else:
                on_change(planner.record(number))
