"""Whether a worker's process answers, and how it is killed. The board calls both."""

import asyncio
import os
import signal
from contextlib import suppress

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdray.slots.board_state import Member


async def is_alive(member: Member) -> bool:
    """Return whether a worker answers within 10 seconds."""
    try:
        await asyncio.wait_for(member["actor"].__ray_ready__.remote(), 10)
    except (ray.exceptions.RayError, TimeoutError):
        return False
    return True


def kill_worker(member: Member) -> None:
    """Kill a worker's process, whatever it is doing."""
    ray.kill(member["actor"])
    # A process that is stopped (SIGSTOP) does not react to ray.kill, only to a signal, which its own node must send.
    same_node = NodeAffinitySchedulingStrategy(member["node"], soft=False)
    ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=same_node)(_kill_process).remote(member["pid"])


def _kill_process(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
