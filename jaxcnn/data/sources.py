"""What a data set's name means: the source behind it, in the shape and the splits of the run.

Opening never downloads, prepares or needs TensorFlow.
"""

import dataclasses

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.digits import open_digits
from jaxcnn.data.exclusion import read_exclusion, without
from jaxcnn.data.records import ImageShape, ImagesInMemory, Source, Split, StoredSet
from jaxcnn.data.splits import Progress, assign_splits, named_split, record_numbers, restore_splits
from jaxcnn.data.tfds import open_tfds, prepared_sets, tfds_directory
from jaxcnn.errors import UserError, nearest


def open_source(
    data: DataConfig, *, progress: Progress | None = None, kept: dict[str, np.ndarray] | None = None
) -> Source:
    """Finds the set and its splits: `test` is `test_split`, else the source's own, else its `validation`.

    `validation` is `fold`'s, else `validation_split`, else the source's own where it has both, else a part held out of
    train, else (validation_fraction=0) absent. Where a set has neither, as some have only train, test (a tenth) is held
    out of train too, the same whatever validation is. Splits whose first label is negative count as absent: ImageNet's
    `test` is published without labels. What `exclude` names is left out before all else.

    Args:
      data: validated.
      progress: told while labels are read.
      kept: the splits of a run that exists, as Source.record_numbers had them: they are its splits for good.
    """
    kind, _, rest = data.name.partition(":")
    if data.name == "digits":
        stored = open_digits()
    elif kind == "tfds" and rest:
        stored = open_tfds(data.name, rest, data.dir)
    else:
        valid = ["digits", *(f"tfds:{name}" for name in prepared_sets(tfds_directory(data.dir)))]
        raise UserError(
            f"data.name={data.name!r} is no known data set: {nearest(data.name, valid)}; "
            "a set that TFDS has prepared is named tfds:NAME"
        )
    image_shape = _run_shape(data, stored.image_shape)
    _check_expected(data, stored)
    exclusion = None if data.exclude is None else read_exclusion(data.exclude)
    available, num_excluded = stored.splits, 0
    if exclusion is not None:
        available, num_excluded = without(stored.splits, exclusion, data.name)
    if kept is None:
        splits = assign_splits(data, available, progress)
    else:
        splits = restore_splits(kept, stored.splits, stored.fingerprint)
    return Source(
        name=data.name,
        class_names=stored.class_names,
        image_shape=image_shape,
        splits=splits,
        fingerprint=stored.fingerprint,
        record_numbers=record_numbers(splits, stored.splits, stored.fingerprint),
        num_excluded=num_excluded,
        exclusion_digest=None if exclusion is None else exclusion.digest,
    )


def stand_in_source(data: DataConfig) -> Source | None:
    """The shapes of a set that is not here, from what the config expects of it; None where it says too little.

    It has no images to read: for a dry run.
    """
    if not (data.expected_examples and data.expected_classes and data.image_size and data.mean and data.std):
        return None
    nothing = ImagesInMemory("", np.empty((data.expected_examples, 0)), np.zeros(data.expected_examples, np.int32))
    # Of the other splits nothing is known, and train_split may be a slice: it stands for itself.
    named = None if data.validation_split is None else "validation"
    sizes = {"train": data.expected_examples, "test": 0} | ({} if named is None else {named: 0})
    stored = {name: Split(nothing, np.arange(size)) for name, size in sizes.items()}
    plain = dataclasses.replace(data, train_split="train", validation_split=None, test_split=None, stratify=False)
    return Source(
        name=data.name,
        class_names=tuple(str(number) for number in range(data.expected_classes)),
        image_shape=(data.image_size, data.image_size, len(data.mean)),
        splits=assign_splits(plain, stored),
        fingerprint="",
    )


def _check_expected(data: DataConfig, stored: StoredSet) -> None:
    found = len(named_split(data, "train_split", stored.splits)) if data.expected_examples is not None else None
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
