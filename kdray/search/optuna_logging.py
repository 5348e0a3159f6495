"""Silences Optuna's messages about new studies, and its warnings about parts that it still calls experimental."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from optuna.exceptions import ExperimentalWarning


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


@lru_cache(maxsize=1)
def _optuna_loggers(count: int) -> list[logging.Logger]:
    """Optuna's loggers while there are `count` loggers in the process; to look for them takes half a millisecond."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("optuna.")]
    return [logging.getLogger(name) for name in names]


@contextmanager
def silence_optuna() -> Iterator[None]:
    """Let Optuna log warnings and errors only within the block, and ignore its warnings about experimental parts."""
    loggers = _optuna_loggers(len(logging.root.manager.loggerDict))
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
