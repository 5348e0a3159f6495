"""Runs a search on a pool of slots, with the driver that the pool needs."""

from kdray.search.driver import MakeJob, OnChange
from kdray.search.planner import Planner
from kdray.search.sequential_driver import run_in_sequence
from kdray.search.tune_driver import run_with_tune
from kdray.slots.pool import SlotPool


def run_search(pool: SlotPool, planner: Planner, make_job: MakeJob, on_change: OnChange) -> None:
    """Run trials on the pool until the planner has no more trials; see `run_in_sequence` and `run_with_tune`."""
    run_trials = run_in_sequence if pool.runs_in_caller else run_with_tune
    run_trials(pool, planner, make_job, on_change)
