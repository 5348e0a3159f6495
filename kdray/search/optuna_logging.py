"""Optuna without its remarks: on new studies, and on parts that it calls experimental and has kept for years."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning


def _warnings_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


@contextmanager
def silence_optuna() -> Iterator[None]:
    """Within the block Optuna logs warnings only, and warns of nothing experimental."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("optuna.")]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(_warnings_only)  # to set a level makes every logger of the process forget what it knows
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_warnings_only)
