"""The thresholds of a model's labels are kept in its configuration, so that everybody who loads it finds them.

Letters: C labels.
"""

from typing import Any

import numpy as np

NAME = "thresholds"
"""The name in the configuration: for each output, the probability from which on its label holds."""


def write_thresholds(config: Any, thresholds_C: np.ndarray | None) -> None:
    """Keep these thresholds in the configuration of a model; None: a task without thresholds."""
    if thresholds_C is not None:
        setattr(config, NAME, [float(threshold) for threshold in thresholds_C])


def read_thresholds(config: Any) -> np.ndarray | None:
    """The thresholds in the configuration of a model (C); None if it has none, or none that kdray writes."""
    values = getattr(config, NAME, None)
    if not isinstance(values, list) or not all(isinstance(value, float) and 0 < value < 1 for value in values):
        return None
    # A configuration from outside may have thresholds of another model.
    return np.array(values) if len(values) == config.num_labels else None
