"""Work that overlaps: order, errors, and how far the input runs ahead."""

import threading
import time

import pytest

from core.utils.threads import overlapped


def test_results_come_in_order_from_another_thread():
    threads = set()

    def square(number):
        threads.add(threading.get_ident())
        time.sleep(0.002 * (number % 3))
        return number**2

    assert list(overlapped(square, range(20))) == [n**2 for n in range(20)]
    assert list(overlapped(square, [])) == []
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_the_next_item_is_made_meanwhile():
    made = threading.Event()

    def items():
        yield "first"
        made.set()
        yield "second"

    def wait_for_the_second(item):
        assert made.wait(10)
        return item

    assert list(overlapped(wait_for_the_second, items())) == ["first", "second"]


def test_the_input_is_not_made_far_ahead():
    made, behind = [], []

    def items():
        for number in range(12):
            made.append(number)
            yield number

    for done in overlapped(lambda item: item, items(), ahead=2):
        behind.append(made[-1] - done)
    assert max(behind) <= 3


def test_an_error_comes_out_and_ends_the_work():
    worked = []

    def work(item):
        worked.append(item)
        if item == 3:
            raise ValueError("the fourth")
        return item

    seen = []
    with pytest.raises(ValueError, match="the fourth"):
        seen.extend(overlapped(work, range(100)))
    assert worked[:4] == [0, 1, 2, 3]
    assert len(worked) <= 7


def test_an_error_of_the_input_comes_out():
    def items():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(lambda item: item, items()))
