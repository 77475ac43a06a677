"""Images and their masks as records: of files, or in memory; and how both are made to fit a run's size.

An image that has not the run's size is scaled until it fits in, whole; what is then beside it is black, and void.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxcnn.data.decoding import FILE_LIMIT, decode_any, resize_image
from jaxcnn.data.records import ArraySpec, DamagedRecordError, Example, ImageShape, Progress
from jaxcnn.data.streaming import num_cores
from jaxcnn.files import read_bytes
from jaxcnn.tasks.segmentation.classes import Classes, decode_mask
from jaxcnn.tasks.segmentation.losses import VOID
from jaxcnn.terminal import short_line


def size_within(shape: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image that is scaled until it just fits into some room."""
    scale = min(room[0] / shape[0], room[1] / shape[1])
    return max(1, min(room[0], round(shape[0] * scale))), max(1, min(room[1], round(shape[1] * scale)))


def fit_whole(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image [H, W, C] scaled until it fits in, at the upper left; black beside it."""
    if image.shape[:2] == shape:
        return image
    height, width = size_within((image.shape[0], image.shape[1]), shape)
    whole = np.zeros((*shape, image.shape[2]), image.dtype)
    whole[:height, :width] = resize_image(image, height, width)
    return whole


def fit_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Classes uint8 [H, W] as fit_whole has their image: the nearest pixel's, void beside it."""
    if labels.shape == shape:
        return labels
    height, width = size_within((labels.shape[0], labels.shape[1]), shape)
    rows, columns = (
        np.minimum(((np.arange(size) + 0.5) * whole / size).astype(int), whole - 1)
        for size, whole in zip((height, width), labels.shape, strict=True)
    )
    fitted = np.full(shape, VOID, np.uint8)
    fitted[:height, :width] = labels[rows[:, None], columns]
    return fitted


@dataclass(frozen=True)
class MaskRecords:
    """What records of images and masks share."""

    name: str
    shape: ImageShape  # of the run
    classes: Classes
    rarest: np.ndarray  # int32 [N]: of a mask's classes that which the fewest have; splits have each in proportion

    class_by_class: ClassVar[bool] = True  # their order may be anything: data/splits.py
    files: ClassVar[tuple[Path, ...]] = ()  # none: nothing is cached

    def __len__(self) -> int:
        return len(self.rarest)

    @property
    def example(self) -> dict[str, ArraySpec]:
        """An image, and the class of each pixel, VOID where nothing counts."""
        return {"image": ArraySpec(self.shape, np.uint8), "label": ArraySpec(self.shape[:2], np.uint8)}

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """The rarest class of each mask, int32 [N]."""
        return self.rarest

    def whole(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, C] and classes uint8 [H, W] as they are stored. Raises DamagedRecordError."""
        raise NotImplementedError

    def __getitem__(self, record: int) -> Example:
        image, labels = self.whole(record)
        return {"image": fit_whole(image, self.shape[:2]), "label": fit_labels(labels, self.shape[:2])}

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked."""
        return (self[int(record)] for record in records)


@dataclass(frozen=True)
class MaskedFiles(MaskRecords):
    """A split's images and masks, each a file of its own."""

    root: str
    images: tuple[str, ...]  # below root, with /
    masks: tuple[str, ...]

    def identifier(self, record: int) -> str:
        """Path of the image below the set's folder."""
        return self.images[record]

    def whole(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and classes, of one size."""
        image = self._decoded(self.images[record], partial(decode_any, num_channels=self.shape[2]))
        labels = self._decoded(
            self.masks[record],
            lambda encoded: self.classes.numbers(decode_mask(encoded, coloured=self.classes.coloured)),
        )
        if image.shape[:2] != labels.shape:
            raise DamagedRecordError(f"{self.name}: {self.masks[record]} has changed since the run began; run it again")
        return image, labels

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked, decoded by threads, a few ahead."""
        numbers = iter([int(record) for record in records])
        with ThreadPoolExecutor(num_cores()) as threads:
            while ahead := list(islice(numbers, 4 * num_cores())):
                yield from threads.map(self.__getitem__, ahead)

    def _decoded(self, path: str, decode: Callable[[bytes], Any]) -> np.ndarray:
        try:
            return np.asarray(decode(read_bytes(Path(self.root, path), limit=FILE_LIMIT)))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or short_line(error)
            raise DamagedRecordError(f"{self.name}: {path} cannot be read ({reason}); replace or remove it") from error


@dataclass(frozen=True)
class MaskedArrays(MaskRecords):
    """A split's images and masks, in memory."""

    split: str
    images: np.ndarray  # uint8 [N, H, W, C]
    masks: np.ndarray  # uint8 [N, H, W], classes

    def identifier(self, record: int) -> str:
        """`SPLIT:NUMBER`."""
        return f"{self.split}:{record}"

    def whole(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and classes."""
        return self.images[record], self.masks[record]


def rarest_classes(pixels: np.ndarray) -> np.ndarray:
    """Of each mask the class that the fewest masks have, int32 [N], by its pixels of each [N, K]; 0 of an empty one."""
    there = pixels > 0
    rank = np.where(there, there.sum(axis=0), len(pixels) + 1)
    return rank.argmin(axis=1).astype(np.int32)
