"""Which way a pool's trials are run: Ray Tune for slots on a cluster, one after the other for slots in this process."""

from kdray.search import sequential, tuning
from kdray.search.running import MakeJob, OnChange
from kdray.search.searcher import Study
from kdray.slots.pool import SlotPool
from kdray.slots.ray_slots import RaySlots


def search(pool: SlotPool, study: Study, make_job: MakeJob, on_change: OnChange) -> None:
    """Run trials on the pool until the study has no more; see `sequential.search` and `tuning.search`."""
    drive = tuning.search if isinstance(pool, RaySlots) else sequential.search
    drive(pool, study, make_job, on_change)
