"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP as a request to stop, which a program honours where stopping loses nothing.

SIGHUP comes where a session ends; where it is ignored, as under nohup, it stays so.

A program listens (:func:`listening`); without that, everything here does nothing. While it listens, a signal raises
:class:`Stopped` at once, or at the end of a :func:`deferred` block.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """The process was asked to stop. Not an Exception: nothing but the program's frame may take it for an error.

    Attributes:
        number: the signal.
        note: what became of the run, for the program's last line; whoever knows it sets it.
        final: the note also says how to go on, or there is nothing to go on with.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number
        self.note = ""
        self.final = False


class _Listener:
    """State of one :func:`listening`."""

    def __init__(self):
        self.process = os.getpid()
        self.received: signal.Signals | None = None
        self.depth = 0  # of nested deferred blocks
        self.acknowledged = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a loader's worker, forked from the main process, which will end it
            return
        again, number = self.received is not None, signal.Signals(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        self.check()

    def check(self) -> None:
        if self.received is not None and not self.depth and not self.acknowledged:
            raise Stopped(self.received)


_listener = _Listener()  # until a program listens, one that hears nothing


@contextmanager
def listening() -> Iterator[None]:
    """Context of a program: the signals raise :class:`Stopped`; a second SIGINT raises KeyboardInterrupt at once.

    Outside the main thread, where Python has no handlers, it does nothing.
    """
    global _listener
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _listener = _listener, _Listener()
    heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _listener.handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _listener = outer


def _heard() -> _Listener:
    """The listener where its handler runs, in the main thread; elsewhere one that hears nothing."""
    return _listener if threading.current_thread() is threading.main_thread() else _Listener()


@contextmanager
def deferred() -> Iterator[None]:
    """A block that a signal does not interrupt; one that came in it raises :class:`Stopped` where it ends.

    So does one that went unseen before it: Python drops what a handler raises in a finaliser.
    """
    listener = _heard()
    listener.depth += 1
    try:
        yield
    finally:
        listener.depth -= 1
    listener.check()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within a :func:`deferred` block, one that a signal does interrupt; one that came before raises as it begins."""
    listener = _heard()
    depth, listener.depth = listener.depth, 0
    try:
        listener.check()
        yield
    finally:
        listener.depth = depth


def received() -> int:
    """The signal that came first, 0 if none has."""
    return int(_listener.received or 0)


def acknowledge() -> None:
    """The stop is being seen to: from here on only a second SIGINT is heard."""
    _listener.acknowledged = True
