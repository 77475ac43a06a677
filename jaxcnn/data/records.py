"""What a set of images is to the rest of the project: records, splits of them, and a source that has both.

Nothing here knows where images come from. Records answer with uint8 images as they are stored.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from jaxcnn.errors import RunError, UserError

# {"image": uint8 [H, W, C], "label": int, or float32 [K] where labels are soft}. Who pops the image lets go of it
# before the next is decoded; one of 100 megapixels has 300 MB.
Example = dict[str, Any]
ImageShape = tuple[int, int, int]
Progress = Callable[[int, int], None]  # called with (done, total) examples


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array of an example."""

    shape: tuple[int, ...]
    dtype: Any


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

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """Of every record, without decoding an image: int32 [N], -1 where one cannot be read, or soft float32 [N, K].

        Records of soft labels also have a `label_shape`; see label_shape().
        """

    def identifier(self, record: int) -> str:
        """What a record is called in lists: unique within its source, the same on every machine."""

    def __getitem__(self, record: int) -> Example: ...

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked; faster than one by one. DamagedRecordError at one that is damaged."""


class PlainRecords(Records, Protocol):
    """Records that are no images: an example is arrays of fixed shapes."""

    @property
    def example(self) -> dict[str, ArraySpec]:
        """The arrays of one example, by name."""


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
    image_shape: Any  # ImageShape of the run, after image_size; None where examples are no images
    splits: dict[str, Split]  # train, test, and validation unless the run has none
    fingerprint: str  # of what the data is, not of where it lies
    class_counts: dict[str, dict[str, int]] | None = None  # by split and class name, where labels are known at once
    stored_sizes: np.ndarray | None = None  # int [N, 2], height and width of each stored image, where they are known
    record_numbers: dict[str, np.ndarray] = field(default_factory=dict)  # what a run keeps of its splits: splits.py
    num_excluded: int = 0  # records that the exclusion list took out
    exclusion_digest: str | None = None  # of the list's content

    @property
    def label_shape(self) -> tuple[int, ...]:
        """() where a label is a class, (K,) where it is a distribution over the classes."""
        return label_shape(self.splits["train"].records)

    @property
    def example(self) -> dict[str, ArraySpec]:
        """The arrays of one example, as a batch has them: `image` and `label`, or what the records are made of."""
        return example_of(self.splits["train"].records, self.image_shape)

    @property
    def fit(self) -> dict[str, Any]:
        """Keywords of what reads examples: how they are made to fit a batch."""
        return {"image_shape": self.image_shape}

    def facts(self) -> dict[str, Any]:
        """What a run's folder says of it, as plain JSON data."""
        sizes = self.stored_sizes
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "splits": self.splits_digest,
            "excluded": {"num_examples": self.num_excluded, "digest": self.exclusion_digest},
            "image_shape": None if self.image_shape is None else list(self.image_shape),
            "class_names": list(self.class_names),
            "num_examples": {name: len(split) for name, split in self.splits.items()},
            "class_counts": self.class_counts,
            "stored_sizes": None
            if sizes is None
            else {
                "smallest": sizes.min(axis=0).tolist(),
                "median": np.median(sizes, axis=0).tolist(),
                "largest": sizes.max(axis=0).tolist(),
            },
        }

    def words(self) -> str:
        """What an example is, in a line: `28x28x1, 10 classes`."""
        shape = () if self.image_shape is None else self.image_shape
        classes = f"{len(self.class_names)} classes" if self.class_names else ""
        return ", ".join(filter(None, ("x".join(map(str, shape)), classes)))

    @property
    def splits_digest(self) -> str:
        """Of which records are in which split."""
        digest = hashlib.sha256()
        for name, numbers in sorted(self.record_numbers.items()):
            digest.update(name.encode() + (b"" if numbers.dtype.kind == "U" else numbers.astype("<i8").tobytes()))
        return digest.hexdigest()[:16]


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
    classes: np.ndarray  # int [N], or soft labels, float [N, K]
    files: tuple[Path, ...] = ()

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of a label: () or (K,)."""
        return self.classes.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, record: int) -> Example:
        label = self.classes[record]
        return {"image": self.images[record], "label": label.astype(np.float32) if self.label_shape else int(label)}

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """int32 [N] or float32 [N, K]."""
        return self.classes.astype(np.float32 if self.label_shape else np.int32)

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


@dataclass(frozen=True)
class JoinedRecords:
    """Several sets of records as one, numbered through: train+extra."""

    parts: tuple[Records, ...]

    @property
    def name(self) -> str:
        """All names."""
        return " + ".join(part.name for part in self.parts)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files; none where a part has none, so that what is made of them is not kept."""
        return tuple(path for part in self.parts for path in part.files) if all(p.files for p in self.parts) else ()

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of a label: () or (K,), the same in all parts of one source."""
        return label_shape(self.parts[0])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, record: int) -> Example:
        part, number = self.place([record])
        return self.parts[part[0]][int(number[0])]

    def place(self, records: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which part, which of its records), int [N] each."""
        starts = np.cumsum([0, *map(len, self.parts)])
        part = np.searchsorted(starts, records, side="right") - 1
        return part, np.asarray(records) - starts[part]

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """Of all parts."""
        return np.concatenate([part.labels(progress) for part in self.parts])

    def identifier(self, record: int) -> str:
        """As the part calls it."""
        part, number = self.place([record])
        return self.parts[part[0]].identifier(int(number[0]))

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked; each part is read at once."""
        place, number = self.place(records)
        readers = [part.read(number[place == index]) for index, part in enumerate(self.parts)]
        return (next(readers[index]) for index in place)


@dataclass(frozen=True)
class Relabelled:
    """Records with other labels, for splits of the same files."""

    whole: Records

    @property
    def name(self) -> str:
        """Name of the whole."""
        return self.whole.name

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the whole."""
        return self.whole.files

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, record: int) -> Example:
        return next(self.read([record]))

    def relabelled(self, labels: np.ndarray) -> np.ndarray:
        """Labels [N, ...] of the whole's labels; negative where one is not known."""
        raise NotImplementedError

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """Labels of all records, [N, ...]."""
        return self.relabelled(self.whole.labels(progress))

    def identifier(self, record: int) -> str:
        """Identifier in the whole."""
        return self.whole.identifier(record)

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked."""
        for example in self.whole.read(records):
            label = self.relabelled(np.asarray(example["label"])[None])[0]
            yield {**example, "label": label if label.ndim else int(label)}


@dataclass(frozen=True)
class ChosenClasses(Relabelled):
    """Records whose labels are numbered anew, for splits that have only some of the classes."""

    numbers: tuple[int, ...]  # of the classes, in their new order

    def relabelled(self, labels: np.ndarray) -> np.ndarray:
        """int32 [N] of the whole's labels; -1 where it is another class, or not known."""
        table = np.full(max(self.numbers) + 2, -1, np.int32)  # the last is for all others
        table[list(self.numbers)] = np.arange(len(self.numbers))
        return table[np.where((labels < 0) | (labels > max(self.numbers)), -1, labels)]


@dataclass(frozen=True)
class LabelSets(Relabelled):
    """Records whose class stands for a set of labels, and has the set in its place: 1 for each label that is in it."""

    table: np.ndarray  # float32 [classes of the whole, K], 0 or 1

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a label, (K,)."""
        return self.table.shape[1:]

    def relabelled(self, labels: np.ndarray) -> np.ndarray:
        """float32 [N, K] of the whole's classes; -1 where one is not known."""
        return np.where((labels < 0)[:, None], np.float32(-1), self.table[np.maximum(labels, 0)])


def label_shape(records: Records) -> tuple[int, ...]:
    """() where a label is a class, (K,) where it is a distribution; records of classes need not say so."""
    return getattr(records, "label_shape", ())


def example_of(records: Records, image_shape: ImageShape | None) -> dict[str, ArraySpec]:
    """The arrays of one example; of records that are images, in this shape."""
    if image_shape is None:
        return cast(PlainRecords, records).example
    shape = label_shape(records)
    return {
        "image": ArraySpec(image_shape, np.uint8),
        "label": ArraySpec(shape, np.float32 if shape else np.int32),
    }


def label_array(labels: Sequence[Any] | np.ndarray, records: Records) -> np.ndarray:
    """Labels of some examples as one array: int32 [N], or float32 [N, K]."""
    shape = label_shape(records)
    return np.asarray(labels, np.float32 if shape else np.int32).reshape(len(labels), *shape)


def classes_of(labels: np.ndarray) -> np.ndarray:
    """The class of each label, int [N]: of a soft one the likeliest."""
    return labels.argmax(axis=1) if labels.ndim == 2 else labels
