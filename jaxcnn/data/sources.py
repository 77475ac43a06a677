"""What a data set's name means: the source behind it, in the shape and the splits of the run.

Each kind of source is a function here, named by an entry of config/choices.py. Opening never downloads, prepares or
needs TensorFlow.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.config.choices import SOURCES
from jaxcnn.data.arrays import open_npz
from jaxcnn.data.chosen import choose_splits
from jaxcnn.data.decoding import with_channels
from jaxcnn.data.digits import open_digits
from jaxcnn.data.folder import find_path, open_csv, open_folder
from jaxcnn.data.records import ChosenClasses, ImageShape, ImagesInMemory, Source, Split, StoredSet, classes_of
from jaxcnn.data.splits import (
    Progress,
    assign_splits,
    class_numbers,
    labels_of,
    named_split,
    only_classes,
)
from jaxcnn.data.tfds import TfdsRecords, open_tfds, prepared_sets, tfds_directory
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import user_path

_log = logging.getLogger(__name__)


def open_source(
    data: DataConfig,
    *,
    progress: Progress | None = None,
    kept: dict[str, np.ndarray] | None = None,
    damaged: bool = False,
    partial: bool = False,
) -> Source:
    """Finds the set and its splits: `test` is `test_split`, else the source's own, else its `validation`.

    `validation` is `fold`'s, else `validation_split`, else the source's own where it has both, else a part held out of
    train, else (validation_fraction=0) absent. Where a set has neither, as some have only train, test (a tenth) is held
    out of train too, the same whatever validation is. Splits whose first label is negative count as absent: ImageNet's
    `test` is published without labels. What `exclude` names, and all but `classes`, is left out before all else.

    Args:
      data: validated.
      progress: told while labels, or the headers of many image files, are read.
      kept: the splits of a run that exists, as Source.record_numbers had them: they are its splits for good.
      damaged: files whose header cannot be read stay in the set, for who looks for them; else they are a RunError.
      partial: splits need not have the same classes, nor more than one, as `open_files` has it.
    """
    tolerant = damaged or data.damaged == "skip" or data.exclude is not None  # which may name the damaged ones
    stored = open_stored(data, progress=progress, damaged=tolerant, partial=partial)
    image_shape = run_shape(data, stored)
    numbers = class_numbers(data, stored.class_names)
    if numbers:
        chosen = only_classes(stored.splits, numbers, data.name, progress)
        stored = replace(stored, splits=chosen, class_names=tuple(stored.class_names[number] for number in numbers))
    _check_expected(data, stored)
    chosen_splits = choose_splits(data, stored.splits, stored.fingerprint, kept=kept, progress=progress)
    splits = chosen_splits.splits
    if numbers:
        splits = {name: Split(ChosenClasses(each.records, numbers), each.indices) for name, each in splits.items()}
    prepared = data.name.startswith("tfds:")  # shuffled, and its labels take a pass over all records, once
    if not partial and (not prepared or data.train_split not in stored.splits):
        _tell_of_classes_without_examples(data, stored.class_names, splits["train"], progress)
    return Source(
        name=data.name,
        class_names=stored.class_names,
        image_shape=image_shape,
        splits=splits,
        fingerprint=stored.fingerprint,
        class_counts=None if prepared else _class_counts(stored.class_names, splits),
        stored_sizes=stored.stored_sizes,
        record_numbers=chosen_splits.record_numbers,
        num_excluded=chosen_splits.num_excluded,
        exclusion_digest=chosen_splits.exclusion_digest,
    )


def open_stored(
    data: DataConfig, *, progress: Progress | None = None, damaged: bool = False, partial: bool = False
) -> StoredSet:
    """Finds the set as it is stored, with its own splits and sizes. Arguments as for open_source and open_files."""
    if data.channels == 2:
        raise UserError("data.channels=2: images have 1 channel (grey) or 3 (RGB)")
    kind, colon, rest = data.name.partition(":")
    choice = SOURCES.get(kind)
    if choice is None or (colon and not choice.takes) or (choice.takes == "NAME" and not rest):
        raise _unknown_name(data)
    of_files = choice.takes in ("FOLDER", "FILE")
    where = find_path(data.name, kind, rest, data.dir) if of_files else rest
    stored = choice.load()(data, where, Opening(progress, damaged, partial))
    return _force_channels(stored, data)


def _unknown_name(data: DataConfig) -> UserError:
    of_files = [kind for kind, choice in SOURCES.items() if choice.takes in ("FOLDER", "FILE")]
    there = False
    with contextlib.suppress(ValueError):
        there = os.path.exists(user_path(data.name))
    if there:
        suffix = os.path.splitext(data.name)[1].lower().removeprefix(".")
        kind = suffix if suffix in of_files else "folder"
        return UserError(f"data.name={data.name!r} says not of what kind it is: did you mean {kind}:{data.name}?")
    valid = [kind for kind, choice in SOURCES.items() if not choice.takes]
    valid += [f"{kind}:PATH" for kind in of_files]
    valid += [f"{kind}:NAME" for kind, choice in SOURCES.items() if choice.takes == "NAME" and kind != "tfds"]
    valid += [f"tfds:{name}" for name in prepared_sets(tfds_directory(data.dir))]
    kind, colon, _ = data.name.partition(":")
    name = f"{kind}:PATH" if colon and kind != "tfds" else data.name  # of a path, only the kind can be misspelled
    return UserError(
        f"data.name={data.name!r} is no known data set: {nearest(name, valid)}; "
        "a set that TFDS has prepared is named tfds:NAME, and a folder of your own folder:PATH"
    )


# ---- the kinds: (config, what stands after the colon, opening) -> the set as it is stored


class Opening(NamedTuple):
    """How a set is opened; each kind reads what it knows of. The arguments of open_stored."""

    progress: Progress | None
    damaged: bool
    partial: bool


def digits(data: DataConfig, where: str, opening: Opening) -> StoredSet:
    """Scikit-learn's digits."""
    return open_digits()


def tfds(data: DataConfig, where: str, opening: Opening) -> StoredSet:
    """A set that TFDS has prepared."""
    return open_tfds(data.name, where, data.dir)


def folder(data: DataConfig, where: Path, opening: Opening) -> StoredSet:
    """Image files, a folder a class."""
    return _open_files(open_folder, data, where, opening)


def csv(data: DataConfig, where: Path, opening: Opening) -> StoredSet:
    """Image files that a list names."""
    return _open_files(open_csv, data, where, opening)


def npz(data: DataConfig, where: Path, opening: Opening) -> StoredSet:
    """Arrays of images."""
    return open_npz(data.name, where, channels=data.channels, partial=opening.partial)


def _open_files(open_set: Callable[..., StoredSet], data: DataConfig, where: Path, opening: Opening) -> StoredSet:
    def headers_read(done: int, total: int) -> None:
        if opening.progress is not None:
            opening.progress(f"reading the headers of {data.name}", done, total)

    return open_set(
        data.name,
        where,
        channels=data.channels,
        progress=headers_read,
        damaged=opening.damaged,
        partial=opening.partial,
    )


def _force_channels(stored: StoredSet, data: DataConfig) -> StoredSet:
    """The set with its images decoded to data.channels, unless its source has done that; none: as they are stored."""
    height, width, own = stored.image_shape
    channels = data.channels
    if channels in (None, own):
        return stored
    if own not in (1, 3):
        raise UserError(f"data.channels={channels}: the images have {own} channels, which have no grey; set it to none")
    splits = {}
    for name, split in stored.splits.items():
        records = split.records
        if isinstance(records, TfdsRecords):
            records = replace(records, image_shape=(height, width, channels))
        elif isinstance(records, ImagesInMemory):
            records = replace(records, images=with_channels(records.images, channels))
        else:
            raise UserError(
                f"data.channels={channels}: {data.name} has images of {own} channels, and its source converts none; "
                "set it to none"
            )
        splits[name] = Split(records, split.indices)
    return replace(stored, image_shape=(height, width, channels), splits=splits)


def _tell_of_classes_without_examples(
    data: DataConfig, class_names: tuple[str, ...], train: Split, progress: Progress | None
) -> None:
    absent = np.setdiff1d(np.arange(len(class_names)), classes_of(labels_of(train, progress)))
    if len(absent):
        named = ", ".join(class_names[number] for number in absent[:3]) + (", …" if len(absent) > 3 else "")
        _log.warning(
            "%s: train has no example of %d of %d classes (%s), which are not learned; data.classes names those that "
            "are meant", data.name, len(absent), len(class_names), named,
        )  # fmt: skip


def _class_counts(class_names: tuple[str, ...], splits: dict[str, Split]) -> dict[str, dict[str, int]] | None:
    counts = {}
    for name, split in splits.items():
        labels = split.records.labels()
        if labels.ndim > 1:  # soft
            return None
        found = np.bincount(labels[split.indices], minlength=len(class_names)).tolist()
        counts[name] = dict(zip(class_names, found, strict=True))
    return counts


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
    plain = replace(
        data, train_split="train", validation_split=None, test_split=None, stratify=False, examples_per_class=None
    )
    splits = assign_splits(plain, stored)
    if data.examples_per_class is not None:
        count = min(len(splits["train"]), data.examples_per_class * data.expected_classes)
        splits["train"] = Split(nothing, splits["train"].indices[:count])
    return Source(
        name=data.name,
        class_names=tuple(str(number) for number in range(data.expected_classes)),
        image_shape=(data.image_size, data.image_size, len(data.mean)),
        splits=splits,
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


def run_shape(data: DataConfig, stored: StoredSet) -> ImageShape:
    """The shape that a run's images have. Raises UserError where they have many, and the config chooses none."""
    height, width, channels = stored.image_shape
    if data.image_size is not None:
        return data.image_size, data.image_size, channels
    if height is None or width is None:
        sizes = stored.stored_sizes
        if sizes is None:
            raise UserError(f"{data.name} has images of many sizes: set data.image_size, for instance to 224")
        (low_height, low_width), (high_height, high_width) = sizes.min(axis=0), sizes.max(axis=0)
        median = int(np.median(sizes.min(axis=1)))
        raise UserError(
            f"{data.name} has images of many sizes, {low_height} to {high_height} pixels high and {low_width} to "
            f"{high_width} wide (median of the shorter side {median}): set data.image_size, for instance to "
            f"{min(224, median)}"
        )
    return height, width, channels
