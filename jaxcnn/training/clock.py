"""Where a run's seconds go, and how far the host may run ahead of the devices."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxcnn.run.log import EXAMPLES_PER_SECOND

SECONDS_AHEAD = 0.2  # of work that the host hands the devices in advance: enough that they never wait for it


class Pace:
    """Lets the host run ahead of the devices, but not far. Being woken for each call would cost a small step 5 %."""

    def __init__(self, max_calls: int):
        self._max_calls, self._limit = max_calls, 2
        self._tickets: deque[jax.Array] = deque()
        self._since, self._calls = time.perf_counter(), 0

    def follow(self, ticket: jax.Array) -> None:
        """Notes a call that was just handed over; waits, for the older half of them, when they are too many."""
        self._tickets.append(ticket)
        self._calls += 1
        if len(self._tickets) <= self._limit:
            return
        for _ in range(self._limit // 2):
            oldest = self._tickets.popleft()
        jax.block_until_ready(oldest)
        now = time.perf_counter()
        seconds_a_call = (now - self._since) / self._calls
        self._limit = min(max(2, int(SECONDS_AHEAD / seconds_a_call)), self._max_calls)
        self._since, self._calls = now, 0

    def caught_up(self) -> None:
        """The devices have done all that they were handed."""
        self._tickets.clear()
        self._since, self._calls = time.perf_counter(), 0


class Clock:
    """Where the seconds go."""

    def __init__(self, step: int, seconds: dict[str, float] | None = None, steps_timed: int = 0):
        """`seconds` and `steps_timed` are of the run so far, before it was resumed."""
        self.seconds = seconds or {"compile": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
        self.steps_timed = steps_timed  # steps whose time counts as training: all but the first call's
        self._lap = self._interval_start = time.perf_counter()
        self._lap_step = self._interval_step = step
        self._waits = {"data_wait": 0.0, "device_wait": 0.0}

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Counts the block's time as spent on `what` in this interval."""
        start = time.perf_counter()
        yield
        self._waits[what] += time.perf_counter() - start

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Counts the block's time as `what`, and not as that of the lap or the interval that it falls into."""
        start = time.perf_counter()
        yield
        passed = time.perf_counter() - start
        self.seconds[what] += passed
        self._lap += passed
        self._interval_start += passed

    def lap(self, what: str, step: int) -> float:
        """Seconds since the last lap, counted as `what`."""
        now = time.perf_counter()
        passed, self._lap = now - self._lap, now
        self.seconds[what] += passed
        if what == "train":
            self.steps_timed += step - self._lap_step
        else:  # an interval's rate is that of training alone
            self._interval_start += passed
        if what == "compile":
            self._interval_start, self._interval_step = now, step
            self._waits = dict.fromkeys(self._waits, 0.0)
        self._lap_step = step
        return passed

    def interval(self, step: int, batch_size: int) -> dict[str, float]:
        """Rates since the last interval: examples/s, and the shares of the time spent waiting for data and devices.

        Nothing where too little time has passed to tell, as when two intervals are fetched together: the next one's
        rates then are of both.
        """
        now = time.perf_counter()
        passed, steps = now - self._interval_start, step - self._interval_step
        if passed < 0.01:
            return {}
        timing = {"seconds": passed, EXAMPLES_PER_SECOND: steps * batch_size / passed}
        timing |= {name: seconds / passed for name, seconds in self._waits.items()}
        self._interval_start, self._interval_step = now, step
        self._waits = dict.fromkeys(self._waits, 0.0)
        return timing
