"""Requests to stop: at once or deferred, once or twice, heard by programs only."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.utils import signals

HANDLERS = [signal.getsignal(number) for number in signals.SIGNALS]


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def as_before():
    yield
    assert [signal.getsignal(number) for number in signals.SIGNALS] == HANDLERS


def listened(body, error=signals.Stopped):
    """The error that a listening program's body raises."""
    with pytest.raises(error) as raised, signals.listening():
        body()
    return raised.value


def send_and_go_on(*numbers):
    for number in numbers:
        send(number)
    raise AssertionError("went on")


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_stops_at_once(number):
    stopped = listened(lambda: send_and_go_on(number))
    assert stopped.number == number
    assert str(stopped) == number.name
    assert not isinstance(stopped, Exception)  # which handlers of errors would take


def test_a_hangup_that_is_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.listening():
            send(signal.SIGHUP)
            assert not signals.received()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_deferred_block_is_ended_first():
    done = []

    def body():
        with signals.deferred():
            with signals.deferred():
                send()
                done.append("inner")
            done.append("outer")
        done.append("after")

    listened(body)
    assert done == ["inner", "outer"]


def test_an_error_in_a_deferred_block_is_not_hidden():
    @signals.deferred()
    def body():
        send()
        raise ZeroDivisionError

    listened(body, ZeroDivisionError)


def test_a_second_sigint_stops_at_once_even_in_a_deferred_block():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    listened(signals.deferred()(lambda: send_and_go_on(*numbers)), KeyboardInterrupt)


def test_once_acknowledged_it_is_not_raised_again():
    with signals.listening():
        with pytest.raises(signals.Stopped):
            send()
        signals.acknowledge()
        with signals.deferred():
            send(signal.SIGUSR1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_a_finaliser_swallowed_is_raised_by_the_next_deferred_block():
    class Finalised:
        def __del__(self):
            send()

    def body():
        Finalised()  # Python reports what a finaliser raises, and goes on
        with signals.deferred():
            pass

    listened(body)


def test_the_handlers_of_an_outer_program_come_back():
    def body():
        listened(send)
        with signals.deferred():
            pass  # the inner one's signal is not the outer one's
        send_and_go_on(signal.SIGUSR1)

    assert listened(body).number == signal.SIGUSR1


def test_without_a_listener_and_outside_the_main_thread_no_handler_is_installed():
    def installed():
        with signals.listening(), signals.deferred():
            return [signal.getsignal(number) for number in signals.SIGNALS]

    with signals.deferred():
        pass
    signals.acknowledge()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(installed).result() == HANDLERS


def test_a_forked_process_leaves_signals_to_its_parent():
    with signals.listening():
        child = os.fork()
        if not child:
            code = 1
            try:
                send()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
