"""What a data set's name means: the source behind it, in the shape and the splits of the run.

Opening never downloads, prepares or needs TensorFlow.
"""

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.digits import open_digits
from jaxcnn.data.records import ImageShape, ImagesInMemory, Source, Split, StoredSet
from jaxcnn.data.splits import assign_splits
from jaxcnn.data.tfds import open_tfds, prepared_sets, tfds_directory
from jaxcnn.errors import UserError, nearest


def open_source(data: DataConfig) -> Source:
    """Finds the set and its splits: `test` is the source's own, else its `validation`, as for ImageNet.

    `validation` is `validation_split`, else the source's own where it has both, else a slice held out of train, else
    (validation_fraction=0) absent. Where a set has neither, test (a tenth) is held out of train too, disjoint from
    validation. Splits whose first label is negative count as absent: ImageNet's `test` is published without labels.
    """
    stored = open_stored(data)
    image_shape = _run_shape(data, stored.image_shape)
    _check_expected(data, stored)
    return Source(
        name=data.name,
        class_names=stored.class_names,
        image_shape=image_shape,
        splits=assign_splits(data, stored.splits),
        fingerprint=stored.fingerprint,
    )


def open_stored(data: DataConfig) -> StoredSet:
    """Finds the set as it is stored, with its own splits and sizes."""
    kind, _, rest = data.name.partition(":")
    if data.name == "digits":
        return open_digits()
    if kind == "tfds" and rest:
        return open_tfds(data.name, rest, data.dir)
    valid = ["digits", *(f"tfds:{name}" for name in prepared_sets(tfds_directory(data.dir)))]
    raise UserError(
        f"data.name={data.name!r} is no known data set: {nearest(data.name, valid)}; "
        "a set that TFDS has prepared is named tfds:NAME"
    )


def stand_in_source(data: DataConfig) -> Source | None:
    """The shapes of a set that is not here, from what the config expects of it; None where it says too little.

    It has no images to read: for a dry run.
    """
    if not (data.expected_examples and data.expected_classes and data.image_size and data.mean and data.std):
        return None
    nothing = ImagesInMemory("", np.empty((data.expected_examples, 0)), np.empty(data.expected_examples, np.int32))
    sizes = {data.train_split: data.expected_examples, "test": 0}  # of the test split nothing is known
    stored = {name: Split(nothing, np.arange(size)) for name, size in sizes.items()}
    return Source(
        name=data.name,
        class_names=tuple(str(number) for number in range(data.expected_classes)),
        image_shape=(data.image_size, data.image_size, len(data.mean)),
        splits=assign_splits(data, stored),
        fingerprint="",
    )


def _check_expected(data: DataConfig, stored: StoredSet) -> None:
    found = len(stored.splits[data.train_split]) if data.train_split in stored.splits else None
    for what, expected, actual in (
        ("examples", data.expected_examples, found),
        ("classes", data.expected_classes, len(stored.class_names)),
    ):
        if expected is not None and actual is not None and expected != actual:
            raise UserError(
                f"{data.name} {data.train_split} has {actual:,} {what}, not the {expected:,} of data.expected_{what}: "
                "prepare the set again, or set the field to none"
            )


def _run_shape(data: DataConfig, stored_shape: tuple[int | None, int | None, int]) -> ImageShape:
    height, width, channels = stored_shape
    if data.image_size is not None:
        return data.image_size, data.image_size, channels
    if height is None or width is None:
        raise UserError(f"{data.name} has images of many sizes: set data.image_size, for instance to 224")
    return height, width, channels
