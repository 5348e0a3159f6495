"""Ctrl-C and SIGTERM: what they interrupt, which function they call instead, and what delays them."""

import os
import signal
import threading
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from kdray.search.ledger_storage import retry_while_away
from kdray.slots.interrupts import handle_signals, hold_signals, redirect_signals


def send_signal(number: signal.Signals = signal.SIGINT, then: Callable[[], object] = int) -> None:
    """Send this process a signal, and call `then` if the signal has not raised an error."""
    os.kill(os.getpid(), number)
    then()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_raises_keyboard_interrupt(number: signal.Signals) -> None:
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt), handle_signals(lambda: calls.append("on_first")):
        send_signal(number, lambda: calls.append("after the signal"))
    assert calls == ["on_first"]


def test_a_redirected_signal_calls_the_function_and_interrupts_nothing() -> None:
    taken = threading.Event()
    with handle_signals(), redirect_signals(taken.set):
        send_signal()
        assert taken.is_set()


def test_a_delayed_signal_comes_after_the_block() -> None:
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt), handle_signals(), hold_signals():
        send_signal(then=lambda: calls.append("complete"))
    assert calls == ["complete"]


def test_a_delayed_signal_is_redirected_after_the_block() -> None:
    taken = threading.Event()
    with handle_signals(), redirect_signals(taken.set), hold_signals():
        send_signal()
        assert not taken.is_set()
    assert taken.is_set()


def test_an_error_in_a_block_that_holds_signals_is_raised_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), handle_signals(), hold_signals():
        send_signal(then=lambda: 1 // 0)


def test_a_signal_ends_the_wait_for_a_database() -> None:
    attempts: list[int] = []

    def change() -> None:
        attempts.append(1)
        if len(attempts) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        raise OperationalError("select 1", {}, Exception("the server is gone"))

    with pytest.raises(KeyboardInterrupt), handle_signals():
        retry_while_away("postgresql://db/kdray", change)
    assert len(attempts) == 2


def test_the_handlers_are_restored_after_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
