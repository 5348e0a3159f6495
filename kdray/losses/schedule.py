"""Schedules: how a setting of the loss goes from its start to its end while a student is trained.

A setting X has a schedule if `Distillation` also has a setting X_end.
"""

import math
from collections.abc import Callable

END = "_end"
"""The ending of the name of a setting that is the last value of another one."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 0.0,
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}
"""The value of `distillation.schedule` -> the share of the way from start to end that a setting has gone, as a
function of the share of the time (both from 0 to 1)."""


def scheduled(*names: str) -> frozenset[str]:
    """These settings with those of their schedules."""
    return frozenset({*names, *(f"{name}{END}" for name in names), "schedule", "schedule_from", "schedule_to"})


def value_between(start: float, end: float, share: float) -> float:
    """The value after this share of the way from start to end; exactly these two at the shares 0 and 1."""
    return (1 - share) * start + share * end
