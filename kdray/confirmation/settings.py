"""How much of the work goes into being sure of the choice."""

from pydantic import Field

from kdray.settings import Settings


class Confirm(Settings):
    """Which students are trained again before one of them is chosen."""

    candidates: int = Field(3, ge=0)
    """At most so many members of the front that satisfy the rule. 0: the search alone decides."""
    seeds: int = Field(3, ge=1)
    """How often each is trained again, each time with another seed than the search's."""
    controls: bool = True
    """Train each architecture of the front on labels alone, and with distillation as it comes: once as the search
    trained it, and those of candidates over the same seeds as these."""
