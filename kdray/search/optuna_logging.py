"""Silences Optuna's messages about new studies, and its warnings about parts that it still calls experimental."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


@contextmanager
def silence_optuna() -> Iterator[None]:
    """Let Optuna log warnings and errors only within the block, and ignore its warnings about experimental parts."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("optuna.")]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        # A filter, because Logger.setLevel clears the cache of every logger of the process: 1 ms for each draw.
        logger.addFilter(_is_warning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_warning)
