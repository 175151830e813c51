"""Requests to stop: at once or deferred, once or twice, heard by programs only."""

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from core.utils import signals
from core.utils.seeding import random_states, restore_random_states, seed_step

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


def test_no_exception_handler_takes_it_for_an_error():
    assert not issubclass(signals.Stopped, Exception)


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


def test_without_a_listener_nothing_happens():
    with signals.deferred():
        pass
    signals.acknowledge()


def test_the_handlers_of_an_outer_program_come_back():
    def body():
        listened(send)
        with signals.deferred():
            pass  # the inner one's signal is not the outer one's
        send_and_go_on(signal.SIGUSR1)

    assert listened(body).number == signal.SIGUSR1


def test_outside_the_main_thread_no_handler_is_installed():
    seen = []

    def body():
        with signals.listening(), signals.deferred():
            seen.append([signal.getsignal(number) for number in signals.SIGNALS])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [HANDLERS]


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


# --- random states ---------------------------------------------------------------------------------------------------


def test_random_states_come_back_through_a_file(tmp_path):
    torch.manual_seed(3)
    torch.save(random_states(), tmp_path / "states.pth")
    drawn = [torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()]  # noqa: NPY002
    torch.rand(5), random.random(), np.random.rand(5)  # noqa: NPY002
    restore_random_states(torch.load(tmp_path / "states.pth", weights_only=True))
    assert drawn == [torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()]  # noqa: NPY002


def test_what_a_step_draws_depends_on_seed_and_iteration_only():
    def drawn(seed, iteration):
        seed_step(seed, iteration)
        return torch.rand(4).tolist()

    first = drawn(1, 5)
    torch.rand(9)
    assert drawn(1, 5) == first
    assert first not in (drawn(1, 6), drawn(2, 5))
