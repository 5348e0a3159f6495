"""Search: how long to search, with which sampler, for which objectives, and within which limits.

`planner` applies these settings.
"""

from pydantic import Field, field_validator, model_validator

from kdray.evaluation.pareto import QUALITY
from kdray.search.ledger_storage import ledger_url
from kdray.search.sampling import SamplerName
from kdray.search.stopping import Halving
from kdray.settings import MAY_CHANGE, Names, Settings


class Limit(Settings):
    """A bound on a cost, written `at_most(5)` or `at_least(2)`."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _check_one_bound(self) -> "Limit":
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a limit has one of at_most and at_least, such as at_most(5) or {'at_most': 5}.")
        return self

    def is_satisfied_by(self, value: float) -> bool:
        """Whether the value is within the limit."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def __str__(self) -> str:
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


def at_most(value: float) -> Limit:
    """An upper limit, as in `constraints={"latency_ms": at_most(5)}`."""
    return Limit(at_most=value)


def at_least(value: float) -> Limit:
    """A lower limit, as in `constraints={"speedup": at_least(2)}`."""
    return Limit(at_least=value)


class Search(Settings):
    """How long to search, with which sampler, and for which objectives."""

    trials: int | None = Field(24, ge=1, json_schema_extra=MAY_CHANGE)
    """How many trials to run; failed and stopped trials count, too."""
    hours: float | None = Field(None, gt=0, json_schema_extra=MAY_CHANGE)
    """After this time, which includes earlier sessions of the sweep, no trial is started. Running trials are
    finished."""
    sampler: SamplerName = "tpe"
    """One of Optuna's samplers."""
    objectives: Names = Field((QUALITY, "latency_ms"), min_length=1)
    """The names of metrics; `quality` stands for the quality metric of the task. Early stopping compares trials by the
    first one, which is a quality."""
    constraints: dict[str, Limit] = Field({})
    """Limits on costs. Costs are known before training: a student that breaks a limit is never trained."""
    stopping: Halving | None = Halving()
    """Early stopping; None lets every trial run to its end."""
    seed: int = Field(0, ge=0)
    ledger: str | None = None
    """The URL of a database that stores the trials; None stores them in a journal file in the sweep's folder."""
    warm_start: str | None = None
    """The folder of another sweep. The sampler learns from its comparable trials before it draws the first one."""

    @field_validator("ledger")
    @classmethod
    def _check_ledger(cls, url: str | None) -> str | None:
        return None if url is None else ledger_url(url)

    @model_validator(mode="after")
    def _check_together(self) -> "Search":
        if self.trials is None and self.hours is None:
            raise ValueError(
                "Search: without trials and without hours the search would never end; give one of them or both."
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"Search.objectives: {', '.join(self.objectives)}: each may be named once.")
        if self.sampler == "cmaes" and len(self.objectives) > 1:
            raise ValueError(
                f"Search.sampler: cmaes searches for one objective, there are {len(self.objectives)} "
                f"({', '.join(self.objectives)}). Use tpe, gp, nsga2, nsga3, qmc or random, or name one objective."
            )
        if self.warm_start is not None and self.sampler in ("random", "qmc"):
            raise ValueError(
                f"Search.warm_start: {self.sampler} learns from no trial. Use tpe, gp, nsga2, nsga3 or cmaes, or leave "
                "warm_start out."
            )
        return self
