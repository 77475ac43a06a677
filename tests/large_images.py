"""Records of images that are counted while they live: what looks through a set may hold few of full size."""

import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxcnn.data.records import Split

HELD = os.cpu_count() or 1  # one a thread


class _Image(np.ndarray):
    pass


class CountedRecords:
    """Images [600, 500, 3] of two classes, made when they are read."""

    name, files = "counted", ()

    def __init__(self, count: int = 60):
        self._count, self._alive, self.most = count, 0, 0

    def __len__(self) -> int:
        return self._count

    def labels(self, progress: Any = None) -> np.ndarray:
        return np.arange(self._count, dtype=np.int32) % 2

    def identifier(self, record: int) -> str:
        return str(record)

    def __getitem__(self, record: int) -> dict[str, Any]:
        image = np.full((600, 500, 3), record, np.uint8).view(_Image)
        image[: record + 1] = 255
        weakref.finalize(image, self._gone)
        self._alive += 1
        self.most = max(self.most, self._alive)
        return {"image": image, "label": record % 2}

    def _gone(self) -> None:
        self._alive -= 1

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
        return (self[int(record)] for record in records)

    def split(self) -> Split:
        return Split(self, np.arange(self._count))  # type: ignore[arg-type]
