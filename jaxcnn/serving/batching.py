"""Images of many requests in batches: one thread owns the network, however many others ask it.

It takes what waits when it is free, so that batches grow with the load and nobody waits for one to fill.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Call = Callable[[np.ndarray], Any]  # uint8 [batch, height, width, channels] -> a tree of arrays [batch, ...]


class FullError(Exception):
    """So many images wait that these have no room."""


class LateError(Exception):
    """The images waited longer than they may."""


class ClosedError(Exception):
    """No images are answered any more, or the network could not be compiled."""


@dataclass(frozen=True)
class Compiled:
    """A call of the network, and the sizes of batches that it is compiled for, ascending."""

    call: Call
    sizes: Sequence[int]


@dataclass(frozen=True)
class _Waiting:
    call: str
    image: np.ndarray
    deadline: float
    answer: "Future[Any]"


class Batcher:
    """The thread, and the images that wait for it; `start` it once.

    Args:
      calls: by name.
      image_shape: height, width, channels of every image.
      capacity: so many images may wait.
      on_failure: called in the thread where a call cannot be compiled.
    """

    def __init__(
        self,
        calls: Mapping[str, Compiled],
        image_shape: tuple[int, ...],
        *,
        capacity: int,
        on_failure: Callable[[], None] = lambda: None,
    ):
        self._calls, self._image_shape, self._capacity = calls, image_shape, capacity
        self.on_failure = on_failure
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = self._ready = False
        self.failure: Exception | None = None
        self.batches: dict[int, int] = dict.fromkeys(sorted({s for each in calls.values() for s in each.sizes}), 0)
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether all is compiled and answers come."""
        return self._ready and not self._closed

    @property
    def num_waiting(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    def start(self) -> None:
        """Begins to compile, each call for each of its sizes, then to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answers what waits, then ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, call: str, images: Sequence[np.ndarray], *, seconds: float) -> "list[Future[Any]]":
        """A future for each image, of its row of the call's tree: all of them are taken, or none.

        A future may raise LateError, or what the network raised; one that is cancelled in time costs nothing.

        Raises:
          FullError: there is no room for them.
          ClosedError: nothing is answered any more.
        """
        deadline = time.monotonic() + seconds
        new = [_Waiting(call, image, deadline, Future()) for image in images]
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._waiting) + len(new) > self._capacity:
                raise FullError
            self._waiting.extend(new)
            self._changed.notify()
        return [each.answer for each in new]

    # ---- the thread

    def _work(self) -> None:
        try:
            for each in self._calls.values():
                for size in each.sizes:
                    if self._closed:
                        return
                    jax.block_until_ready(each.call(np.zeros((size, *self._image_shape), np.uint8)))
            self._ready = True
            while batch := self._next():
                self._answer(batch)
        except Exception as error:
            self.failure = error
            self.on_failure()
        finally:
            with self._changed:
                self._closed = True
                for waiting in self._waiting:
                    if waiting.answer.set_running_or_notify_cancel():
                        waiting.answer.set_exception(ClosedError())
                self._waiting.clear()

    def _next(self) -> list[_Waiting]:
        """The first that waits, and those behind it that go with it into a batch; nothing: it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            name = self._waiting[0].call
            largest = self._calls[name].sizes[-1]
            batch, others = list[_Waiting](), deque[_Waiting]()
            while self._waiting:
                each = self._waiting.popleft()
                (batch if each.call == name and len(batch) < largest else others).append(each)
            self._waiting = others
            return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        now, asked = time.monotonic(), []
        for each in batch:
            if not each.answer.set_running_or_notify_cancel():
                continue
            if now > each.deadline:
                each.answer.set_exception(LateError())
            else:
                asked.append(each)
        if not asked:
            return
        compiled = self._calls[asked[0].call]
        size = next(size for size in compiled.sizes if size >= len(asked))
        try:
            stacked = np.zeros((size, *self._image_shape), np.uint8)
            stacked[: len(asked)] = [each.image for each in asked]
            values = jax.device_get(compiled.call(stacked))
        except Exception as error:
            for each in asked:
                each.answer.set_exception(error)
            return
        self.batches[size] += 1
        for row, each in enumerate(asked):
            each.answer.set_result(jax.tree.map(lambda x: x[row], values))
