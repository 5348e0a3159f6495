"""Session: the objects that every stage of a sweep uses."""

from dataclasses import dataclass

from kdray.report.screen import StageTimer
from kdray.search.ledger import Ledger
from kdray.slots.pool import SlotPool
from kdray.storage.paths import SweepPaths
from kdray.sweep import Sweep
from kdray.tracking.tracker import Tracker


@dataclass(frozen=True)
class Session:
    """One run of a sweep in this process: the sweep, its folder, and the resources that are open while it runs."""

    sweep: Sweep
    paths: SweepPaths
    ledger: Ledger
    screen: StageTimer
    slots: SlotPool
    tracker: Tracker
