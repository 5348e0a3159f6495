"""How MLflow's pyfunc answers for a model: the columns of its answers, and what the script needs that computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Serving:
    """The answers of a served model."""

    columns: Mapping[str, Any]
    """Column -> its type: "string" or "double"; for a cell with a list of objects, a list of one such mapping."""
    script: Mapping[str, Any]
    """The settings of `kdray.tracking.served_student`: `answers` is the name of its class that answers, and the others
    are read by this class."""
    has_pipeline: bool = False
    """Whether the pipeline of transformers gives these columns, too."""
