"""Running trials one after the other, in the thread that asks, without Ray: for LocalSlots and for a debugger."""

from contextlib import closing

from kdray.search.running import ENDS_THE_SEARCH, MakeJob, OnChange, job_name, reason, told
from kdray.search.searcher import Asked, Study
from kdray.slots.pool import SlotPool


def search(pool: SlotPool, study: Study, make_job: MakeJob, on_change: OnChange) -> None:
    """Run trials until the study has no more; one that fails is a failed row, whatever it failed of.

    Raises ResourceError when there is no slot to be had. That, or an interrupt, leaves the trial running in the ledger:
    the next session begins it again.
    """
    while asked := study.ask():
        on_change(study.record(asked.number))
        if asked.stopped:
            on_change(study.finish(asked.number, "stopped"))
            continue
        _run(pool, study, asked, make_job, on_change)
        on_change(study.finish(asked.number, "completed"))


def _run(pool: SlotPool, study: Study, asked: Asked, make_job: MakeJob, on_change: OnChange) -> None:
    """Run one trial; afterwards it is still running in the study only if its job ran to its end."""
    number = asked.number
    with closing(told(pool, lambda: make_job(number, asked.params), number)) as news:  # type: ignore[type-var]
        for new in news:
            if isinstance(new.error, ENDS_THE_SEARCH):
                raise new.error
            if new.error:
                study.finish(number, "failed", reason(new.error))
            elif new.report is not None and not study.observe(number, new.report, new.attempt, new.host):
                pool.cancel(job_name(number))
                study.finish(number, "stopped")
                return
            else:
                on_change(study.record(number))
