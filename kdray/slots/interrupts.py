"""Ctrl-C and SIGTERM: the first signal ends the sweep in order, the second ends the process at once.

By default the first signal raises KeyboardInterrupt in the main thread, wherever it is, so that every `with` block on
the way is closed. Code that must not be left in the middle (a training step in this process, Ray Tune's loop) redirects
the signal to a function that ends it properly.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130
"""The usual exit code of a process that Ctrl-C ended: 128 + SIGINT."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_redirections: list[Callable[[], None]] = []


@contextmanager
def handle_signals(on_first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block, handle SIGINT and SIGTERM as the module says; the first of them calls `on_first`.

    Python runs signal handlers in the main thread only. In any other thread the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle_first(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            # Not sys.exit: the second signal must not wait for the cleanup that the first one started.
            signal.signal(each, lambda number, frame: os._exit(EXIT_CODE))
        on_first()
        deliver_signal()

    with restore_handlers():
        for number in SIGNALS:
            signal.signal(number, handle_first)
        yield


@contextmanager
def restore_handlers() -> Iterator[None]:
    """After the block, restore the signal handlers that were installed before it.

    `ray.init` replaces the handler of SIGTERM with one that aborts the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def redirect_signals(take: Callable[[], None]) -> Iterator[None]:
    """Within the block, let the first signal call `take` instead of raising KeyboardInterrupt.

    `take` runs in the main thread, between any two of its instructions. The innermost block gets the signal.
    """
    _redirections.append(take)
    try:
        yield
    finally:
        _redirections.remove(take)


@contextmanager
def hold_signals() -> Iterator[threading.Event]:
    """Delay a signal until the block has ended. For short blocks that must not be interrupted, such as a write.

    The event is set when a signal has come. If the block raises an error, the error is raised unchanged, and the caller
    must call `deliver_signal` where the event is set. In any thread but the main thread the block changes nothing.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    with redirect_signals(received.set):
        yield received
    if received.is_set():
        deliver_signal()


def deliver_signal() -> None:
    """Call the function of the innermost `redirect_signals`; outside of any such block, raise KeyboardInterrupt."""
    if not _redirections:
        raise KeyboardInterrupt
    _redirections[-1]()
