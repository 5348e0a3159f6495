"""Optuna without its remarks: on new studies, and on parts that it calls experimental and has kept for years."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna import logging
from optuna.exceptions import ExperimentalWarning


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Within the block Optuna logs warnings only, and warns of nothing experimental."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
