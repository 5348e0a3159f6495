"""Ctrl-C and SIGTERM: what is torn by them, what takes them, and what they wait for."""

import os
import signal
import threading
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from kdray.search.ledger_storage import retry_while_away
from kdray.slots.interrupts import handle_signals, hold_signals, redirect_signals


def signalled(number: signal.Signals = signal.SIGINT, then: Callable[[], object] = int) -> None:
    os.kill(os.getpid(), number)
    then()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_an_interrupt_wherever_it_comes(number: signal.Signals) -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt), handle_signals(lambda: told.append("stopping")):
        signalled(number, lambda: told.append("went on"))
    assert told == ["stopping"]


def test_who_takes_it_is_called_and_nothing_is_torn() -> None:
    taken = threading.Event()
    with handle_signals(), redirect_signals(taken.set):
        signalled()
        assert taken.is_set()


def test_what_must_not_be_torn_is_ended_first() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), handle_signals(), hold_signals():
        signalled(then=lambda: done.append("whole"))
    assert done == ["whole"]


def test_what_was_held_back_goes_to_who_takes_it() -> None:
    taken = threading.Event()
    with handle_signals(), redirect_signals(taken.set), hold_signals():
        signalled()
        assert not taken.is_set()
    assert taken.is_set()


def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), handle_signals(), hold_signals():
        signalled(then=lambda: 1 // 0)


def test_a_signal_while_a_database_is_away_ends_the_waiting() -> None:
    tries: list[int] = []

    def away() -> None:
        tries.append(1)
        if len(tries) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        raise OperationalError("select 1", {}, Exception("the server is gone"))

    with pytest.raises(KeyboardInterrupt), handle_signals():
        retry_while_away("postgresql://db/kdray", away)
    assert len(tries) == 2


def test_the_handlers_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
