"""Signals, SIGTERM and SIGINT: outside of training they end the command within a second; within it, between steps.

A signal is noted in either case: an exception raised by a handler may be lost in a callback that Python was just
running, and training then still stops before its second step. A second signal ends the process as without us.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jaxcnn.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OUTSIDE = "stopped outside of training; the same command goes on"
_noted: list[str] = []
_before_leaving: list[Callable[[], object]] = []
_training = False


def _note(number: int, frame: Any) -> None:
    _noted.append(signal.Signals(number).name)
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)


def _note_and_raise(number: int, frame: Any) -> None:
    if _is_importing(frame):
        _leave(number)
    _note(number, frame)
    raise Preempted(f"{_noted[-1]}: {_OUTSIDE}")


def _is_importing(frame: Any) -> bool:
    """Modules written in C crash where an exception is raised into them."""
    while frame is not None and "importlib" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _leave(number: int, frame: Any = None) -> None:
    for what in _before_leaving:
        with suppress(Exception):
            what()
    os.write(2, f"jaxcnn: {signal.Signals(number).name}: {_OUTSIDE}\n".encode())
    os._exit(Preempted.exit_code)


@contextmanager
def before_leaving(what: Callable[[], object]) -> Iterator[None]:
    """Has a signal that ends the process at once, where no block ends any more, call `what` first."""
    _before_leaving.append(what)
    try:
        yield
    finally:
        _before_leaving.remove(what)


def hold() -> None:
    """A signal waits, also over a beginning of the process anew, until one of the next two is called."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def while_importing() -> None:
    """Until at_once is called a signal ends the process there and then."""
    _handle_by(_leave)


def at_once() -> None:
    """Makes a signal raise Preempted, from now on, wherever the command is.

    A signal that is lost, in a callback or because a library's code does not return, as from a compilation, ends the
    process after a second.
    """
    previous_hook = sys.unraisablehook
    sys.unraisablehook = lambda raised: None if isinstance(raised.exc_value, Preempted) else previous_hook(raised)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_insist, args=(reading,), name="signals", daemon=True).start()
    _handle_by(_note_and_raise)


def _handle_by(handler: Any) -> None:
    for each in _SIGNALS:
        signal.signal(each, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _insist(reading: int) -> None:
    while number := os.read(reading, 1):
        heeded = _training  # between steps, or by what follows training: a save, the test
        time.sleep(1)
        if number[0] in _SIGNALS and not heeded and not _training:
            _leave(number[0])


def ask_all() -> None:
    """Between two steps, in every process of a job: notes a signal to one of them, at one step in all."""
    from jaxcnn.hosts import job  # which imports packages: a signal is answered before they are, and on a login node

    if job.asked_to_stop():
        _noted.append(_SIGNALS[0].name)


@contextmanager
def between_steps() -> Iterator[list[str]]:
    """Yields the names of the signals that have come, none at first; those that come within raise nothing.

    Raises Preempted at the end where one has come and the block ended as if none had: another run may follow.
    """
    global _training
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    from jaxcnn.hosts import job

    if job.number() > 1:  # whose signals are JAX's
        yield _noted
        return
    _training = True
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    if not _noted:
        for each in _SIGNALS:
            signal.signal(each, _note)
    missed: list[str] = []
    try:
        yield _noted
        missed = list(_noted)
    finally:
        _training = False
        for each, handler in before.items():
            signal.signal(each, handler)
        _noted.clear()
    if missed:
        raise Preempted(f"{missed[0]}: {_OUTSIDE}")
