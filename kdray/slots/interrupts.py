"""Ctrl-C and SIGTERM: the first ends the sweep in order, the second at once.

In order means that whatever is being waited for is left by KeyboardInterrupt, so that everything on the way closes.
Where that would tear something (a training step in this process, Ray Tune's loop), who can end it better takes it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_redirections: list[Callable[[], None]] = []


@contextmanager
def handle_signals(on_first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block signals end things as the module says; `on_first` is called by the first.

    Signals reach the main thread only: in any other the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, lambda number, frame: os._exit(EXIT_CODE))
        on_first()
        deliver_signal()

    with restore_handlers():
        for number in SIGNALS:
            signal.signal(number, first)
        yield


@contextmanager
def restore_handlers() -> Iterator[None]:
    """After the block signals go where they went before it, whatever was installed: Ray takes SIGTERM for a crash."""
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
    """Within the block the first signal calls `take`, in the main thread, between any two of its instructions."""
    _redirections.append(take)
    try:
        yield
    finally:
        _redirections.remove(take)


@contextmanager
def hold_signals() -> Iterator[threading.Event]:
    """A signal that comes within the block is heard at its end: for what must not be torn, and is soon done.

    The event says whether one has come. Where the block ends by an error, which comes out as it is, whoever goes on
    after that lets it be heard. Only the main thread is ever interrupted: in any other the block changes nothing.
    """
    come = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield come
        return
    with redirect_signals(come.set):
        yield come
    if come.is_set():
        deliver_signal()


def deliver_signal() -> None:
    """What a signal does that was held back: whoever takes it is told, else KeyboardInterrupt is raised."""
    if not _redirections:
        raise KeyboardInterrupt
    _redirections[-1]()
