"""Scenes with masks: `scenes:digits`, `scenes:tfds:mnist`; data/scenes.py makes them."""

import numpy as np

from jaxcnn.config import DataConfig, SegmentationConfig
from jaxcnn.data.records import Split, StoredSet
from jaxcnn.data.scenes import make_scenes
from jaxcnn.data.splits import Progress
from jaxcnn.errors import UserError
from jaxcnn.tasks.segmentation.classes import Classes, default_colours
from jaxcnn.tasks.segmentation.records import MaskedArrays, rarest_classes


def read_scenes(data: DataConfig, options: SegmentationConfig, inner: str, progress: Progress) -> StoredSet:
    """The scenes of a set; the background is a class. Raises UserError."""
    if options.classes:
        raise UserError(f"segmentation.classes: the classes of {data.name} are those of its set; leave it out")
    if data.channels not in (None, 3):
        raise UserError(f"data.channels={data.channels}: scenes have 3 channels; set it to none")
    progress(f"making the scenes of {data.name}", 0, 0)
    class_names, scenes, fingerprint = make_scenes(data, inner)
    names = ("background", *class_names)
    classes = Classes(names, tuple(range(len(names))), (options.void,), default_colours(len(names)))
    splits = {}
    for split, each in scenes.items():
        pixels = (each.masks[..., None] == np.arange(len(names), dtype=np.uint8)).sum(axis=(1, 2))
        name = f"{data.name} split {split!r}"
        records = MaskedArrays(
            name, each.images.shape[1:], classes, rarest_classes(pixels), split, each.images, each.masks
        )
        splits[split] = Split(records, np.arange(len(pixels)))
    return StoredSet(names, next(iter(scenes.values())).images.shape[1:], splits, fingerprint)
