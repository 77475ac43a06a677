"""SIGTERM and SIGINT: outside of training they end the command at once; within it they are heeded between steps.

A signal is noted in either case: an exception raised by a handler may be lost in a callback that Python was just
running, and training then still stops before its second step. A second signal ends the process as without us.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxcnn.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_noted: list[str] = []


def _note(number: int, frame: Any) -> None:
    _noted.append(signal.Signals(number).name)
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)


def _note_and_raise(number: int, frame: Any) -> None:
    _note(number, frame)
    raise Preempted(f"{_noted[-1]}: stopped outside of training; the same command goes on")


def at_once() -> None:
    """From now on a signal raises Preempted wherever the command is."""
    sys.unraisablehook = _without_preempted
    for each in _SIGNALS:
        signal.signal(each, _note_and_raise)


def _without_preempted(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, Preempted):
        sys.__unraisablehook__(unraisable)


@contextmanager
def between_steps() -> Iterator[list[str]]:
    """Yields the names of the signals that have come, none at first; those that come within raise nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    if not _noted:
        for each in _SIGNALS:
            signal.signal(each, _note)
    try:
        yield _noted
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        _noted.clear()
