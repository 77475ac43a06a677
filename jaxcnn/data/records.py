"""What a set of images is to the rest of the project: records, splits of them, and a source that has both.

Nothing here knows where images come from. Records answer with uint8 images as they are stored.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxcnn.errors import RunError, UserError

Example = dict[str, Any]  # {"image": uint8 [H, W, C], "label": int}
ImageShape = tuple[int, int, int]


class NotPreparedError(UserError):
    """The set is not on this disk."""


class DamagedRecordError(RunError):
    """A record cannot be read or decoded, or is not what its set declares; the message names it and its file."""


class Records(Protocol):
    """Random access to stored examples by record number. Picklable, so that a decoding process can be given it."""

    @property
    def name(self) -> str:
        """Set and split, for messages."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What a cache of the decoded images depends on; empty where the images are in memory and need none."""

    def __len__(self) -> int: ...

    def labels(self) -> np.ndarray:
        """int32 [N], of every record, without decoding an image."""

    def identifier(self, record: int) -> str:
        """What a record is called in lists: unique within its source, the same on every machine."""

    def __getitem__(self, record: int) -> Example: ...

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked; faster than one by one. DamagedRecordError at one that is damaged."""


class EncodedRecords(Records, Protocol):
    """Records of image files, or of their bytes in a container."""

    def encoded(self, records: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The files as they are stored, in the order asked."""


@dataclass(frozen=True)
class Split:
    """Some of a set's records; several splits may share the records, as train and what is held out of it do."""

    records: Records
    indices: np.ndarray  # int [N]: which of the records, in the split's order

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.records[int(self.indices[index])]


@dataclass(frozen=True)
class Source:
    """A set that was found, and all that a run needs to know of it before an image is decoded."""

    name: str
    class_names: tuple[str, ...]
    image_shape: ImageShape  # of the run, after image_size
    splits: dict[str, Split]  # train, test, and validation unless the run has none
    fingerprint: str  # of what the data is, not of where it lies
    class_counts: dict[str, dict[str, int]] | None = None  # by split and class name, where labels are known at once
    stored_sizes: np.ndarray | None = None  # int [N, 2], height and width of each stored image, where they are known


@dataclass(frozen=True)
class StoredSet:
    """A set as it is stored, before a run chooses a size and its splits."""

    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]  # none: varies
    splits: dict[str, Split]  # as the source names them
    fingerprint: str
    stored_sizes: np.ndarray | None = None  # int [N, 2], height and width of each image, where they are known


@dataclass(frozen=True)
class ImagesInMemory:
    """Records that are arrays."""

    name: str
    images: np.ndarray  # uint8 [N, H, W, C]
    classes: np.ndarray  # int [N]
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, record: int) -> Example:
        return {"image": self.images[record], "label": int(self.classes[record])}

    def labels(self) -> np.ndarray:
        """int32 [N]."""
        return self.classes.astype(np.int32)

    def identifier(self, record: int) -> str:
        """`NAME:NUMBER`."""
        return f"{self.name}:{record}"

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked."""
        return (self[int(record)] for record in records)


def read_or_error(records: Records, numbers: Sequence[int] | np.ndarray) -> Iterator[Example | DamagedRecordError]:
    """As `records.read`, with the error itself in the place of each record that is damaged."""
    done = 0
    while done < len(numbers):
        try:
            for example in records.read(numbers[done:]):
                yield example
                done += 1
        except DamagedRecordError as error:
            yield error
            done += 1


def one_line(error: Exception) -> str:
    """What a library said, short enough to stand within a message of ours."""
    return " ".join(str(error).split())[:200]


def fingerprint_of(*parts: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
