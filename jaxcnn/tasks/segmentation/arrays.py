"""A user's own arrays of images and masks: `npz:FILE` with images and masks, or x_train and y_train, and so on."""

import hashlib
from pathlib import Path

import numpy as np

from jaxcnn.config import DataConfig, SegmentationConfig
from jaxcnn.data.arrays import Names, levels, load_pairs, scale_of
from jaxcnn.data.decoding import with_channels
from jaxcnn.data.records import Split, StoredSet
from jaxcnn.data.splits import Progress
from jaxcnn.errors import UserError
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.tasks.segmentation.classes import classes_of
from jaxcnn.tasks.segmentation.records import MaskedArrays, rarest_classes

MASKS: Names = (("x_{}", "y_{}"), ("{}_images", "{}_masks"), ("images", "masks"), ("x", "y"))
_LARGEST = 65535  # value of a mask


def read_npz(data: DataConfig, options: SegmentationConfig, file: Path, progress: Progress) -> StoredSet:
    """Images uint8 [N, H, W] or [N, H, W, C]; masks int [N, H, W] or [N, H, W, 1]. Raises UserError, RunError."""
    del progress
    keys, read = load_pairs(data.name, file, MASKS)
    scale = scale_of([read[images] for images, _ in keys.values()])
    images = {split: levels(data.name, key, read.pop(key), scale) for split, (key, _) in keys.items()}
    masks = {split: _values(data.name, key, read.pop(key), images[split]) for split, (_, key) in keys.items()}
    values, counts = np.unique(masks["train"], return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    names = read.get("class_names")
    if names is not None and not options.classes:
        options = SegmentationConfig(tuple(map(str, names.tolist())), options.void)
    classes = classes_of(data.name, options, None, found, coloured=False)
    for split, mask in masks.items():
        if unknown := classes.unknown(np.unique(mask)):
            raise UserError(
                f"{data.name}: {keys[split][1]} has pixels of {unknown[0]}, which is no class's; there are "
                f"{', '.join(map(str, classes.values[:8]))}; mend it, or name the class in segmentation.classes"
            )
    side, splits, facts = data.image_size, {}, []
    for split, of_split in images.items():
        if data.channels is not None:
            of_split = with_channels(of_split, data.channels)
        labels = classes.numbers(masks[split])
        contents = [hashlib.sha256(np.ascontiguousarray(each).data).hexdigest() for each in (of_split, labels)]
        facts.append((split, of_split.shape, contents))
        shape = of_split.shape[1:] if side is None else (side, side, of_split.shape[3])
        pixels = (labels[..., None] == np.arange(len(classes), dtype=np.uint8)).sum(axis=(1, 2))
        name = f"{data.name} split {split!r}"
        records = MaskedArrays(name, shape, classes, rarest_classes(pixels), split, of_split, labels)
        splits[split] = Split(records, np.arange(len(labels)))
    shapes = {split.records.shape for split in splits.values()}  # type: ignore[attr-defined]
    if len(shapes) > 1:
        raise UserError(f"{data.name}: its splits have images of other shapes: {' and '.join(map(str, shapes))}")
    return StoredSet(classes.names, shapes.pop(), splits, fingerprint_of("masks", classes.to_plain(), facts))


def _values(name: str, key: str, array: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Masks int32 [N, H, W]. Raises UserError where they are none, or not of their images' size."""
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    if array.dtype.kind not in "bui" or array.shape != images.shape[:3]:
        raise UserError(
            f"{name}: {key} is {array.dtype} of shape {array.shape}; expected masks of whole numbers, "
            f"{images.shape[:3]}, a value a class"
        )
    if array.min() < 0 or array.max() > _LARGEST:
        raise UserError(f"{name}: {key} has values from {array.min()} to {array.max()}; expected 0 to {_LARGEST:,}")
    return array.astype(np.int32)
