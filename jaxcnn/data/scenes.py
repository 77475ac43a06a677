"""Scenes: figures of a set of images, such as digits, placed at random on textures, with their masks.

No registry has a real set of images with masks that is small: these show whether a network learns to find things, and
serve tests and figures. They are a function of the set and a seed alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.records import Split
from jaxcnn.data.sources import open_stored
from jaxcnn.errors import UserError
from jaxcnn.fingerprints import fingerprint_of

SIDE = 64  # pixels of a scene, unless data.image_size says
MOST_FIGURES = 5  # in a scene; at least one
FIGURE_SIDES = (0.25, 0.5)  # of a figure, as a share of the scene's
MOST_SCENES = 8000  # of a split; else as many as the set has images
_THRESHOLD = 96  # level from which a pixel is the figure's


@dataclass(frozen=True)
class Scenes:
    """A split's scenes."""

    images: np.ndarray  # uint8 [N, S, S, 3]
    masks: np.ndarray  # uint8 [N, S, S]: 0 the background, then the classes of the set


def make_scenes(data: DataConfig, inner: str) -> tuple[tuple[str, ...], dict[str, Scenes], str]:
    """(names of the set's classes, the scenes of each of its splits, their fingerprint). Raises UserError."""
    set_config = DataConfig(name=inner, dir=data.dir)
    stored = open_stored(set_config)
    height, width, _ = stored.image_shape
    if height is None or width is None or max(height, width) > 64:
        raise UserError(f"data.name=scenes:{inner}: scenes are made of small images of one size, as of tfds:mnist")
    side = data.image_size or SIDE
    found, facts = {}, []
    for place, (name, split) in enumerate(sorted(stored.splits.items())):
        count = min(MOST_SCENES, len(split))
        generator = np.random.default_rng([place, count, side])
        scenes = _scenes(split, count, side, generator)
        found[name] = scenes
        facts.append(
            (name, hashlib.sha256(scenes.images.data).hexdigest(), hashlib.sha256(scenes.masks.data).hexdigest())
        )
    return stored.class_names, found, fingerprint_of("scenes", stored.fingerprint, side, facts)


def _scenes(split: Split, count: int, side: int, generator: np.random.Generator) -> Scenes:
    examples = list(split.records.read(split.indices))
    figures = [_grey(each["image"]) for each in examples]
    labels = [int(each["label"]) for each in examples]
    images, masks = np.empty((count, side, side, 3), np.uint8), np.empty((count, side, side), np.uint8)
    for number in range(count):
        chosen = generator.integers(0, len(figures), generator.integers(1, MOST_FIGURES + 1))
        images[number], masks[number] = _scene(
            [figures[each] for each in chosen], [labels[each] for each in chosen], side, generator
        )
    return Scenes(images, masks)


def _grey(image: np.ndarray) -> np.ndarray:
    return image.mean(axis=2).astype(np.uint8) if image.shape[2] > 1 else image[..., 0]


def _scene(
    figures: Sequence[np.ndarray], labels: Sequence[int], side: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of one scene; later figures lie over earlier ones."""
    image, mask = _texture(side, generator), np.zeros((side, side), np.uint8)
    for figure, label in zip(figures, labels, strict=True):
        alpha = _placed(figure, side, generator)
        seen = alpha >= _THRESHOLD
        strength = (alpha / 255.0)[..., None]
        colour = _contrasting(image[seen] if seen.any() else image, generator)
        image = image * (1 - strength) + colour * strength
        mask[seen] = label + 1
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def _texture(side: int, generator: np.random.Generator) -> np.ndarray:
    """Levels float [S, S, 3]: noise of two scales in a few colours."""
    import cv2

    coarse = generator.uniform(40, 200, (4, 4, 3)).astype(np.float32)
    fine = generator.normal(0, 12, (side // 2, side // 2, 3)).astype(np.float32)
    size = side, side
    smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth + cv2.resize(fine, size, interpolation=cv2.INTER_LINEAR), np.float64)


def _placed(figure: np.ndarray, side: int, generator: np.random.Generator) -> np.ndarray:
    """Levels of a figure, turned, scaled and moved into a scene, uint8 [S, S]."""
    import cv2

    share, angle = generator.uniform(*FIGURE_SIDES), generator.uniform(-20, 20)
    scale = share * side / max(figure.shape)
    reach = share * side / 2
    x, y = generator.uniform(reach, side - reach, 2)
    height, width = figure.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    turn[:, 2] += x - (width - 1) / 2, y - (height - 1) / 2
    return np.asarray(cv2.warpAffine(figure, turn, (side, side), flags=cv2.INTER_LINEAR))


def _contrasting(behind: np.ndarray, generator: np.random.Generator) -> Any:
    """A colour that stands out from what lies behind."""
    levels = generator.uniform(0, 70, 3)
    return 255 - levels if behind.mean() < 128 else levels
