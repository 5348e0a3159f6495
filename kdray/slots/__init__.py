"""Slots: workers that start once, stay warm, and do whatever jobs they are handed, one after the other.

- `pool`         the seam: settings, and what every pool promises
- `local`        one slot in this process
- `cluster`      which Ray this is, and how its resources divide into slots
- `ray_slots`    slots on that Ray: Ray Train worker groups; the only place where Ray Train is asked for anything
- `board`        where jobs wait for slots and reports for who asked
- `serving`      what each worker of a slot does
- `controlling`  how Ray Train's controller of a slot can be ended
- `talking`      how the workers of one slot find each other
"""

from kdray.slots.cluster import ClusterInfo, connect
from kdray.slots.local import LocalSlots
from kdray.slots.pool import JobRun, SlotClient, SlotPool, SlotSettings
from kdray.slots.ray_slots import RaySlots, open_slots

__all__ = [
    "ClusterInfo",
    "JobRun",
    "LocalSlots",
    "RaySlots",
    "SlotClient",
    "SlotPool",
    "SlotSettings",
    "connect",
    "open_slots",
]
