"""Masks that a finished run of segmentation makes of new images, of any size, and what `predict` writes of them.

A run that has images of a size of its own (data.image_size) sees an image scaled, whole; any other sees it as it is, in
tiles that overlap where it is larger, whose probabilities are blended by a weight that falls to the tiles' edges.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxcnn.command import check_outputs
from jaxcnn.data.decoding import hold_back_threads, resize_image
from jaxcnn.data.given import folder_of_all
from jaxcnn.data.records import ImageShape
from jaxcnn.data.sheet import png
from jaxcnn.errors import UserError
from jaxcnn.files import write_atomically
from jaxcnn.results.finished import NOT_FINITE, OF_CLASSES, OF_MASKS, FinishedRun, check_command, load, tell
from jaxcnn.tasks.segmentation import read_whole, shape_of
from jaxcnn.tasks.segmentation.classes import Classes
from jaxcnn.tasks.segmentation.records import fit_whole, size_within
from jaxcnn.terminal import complain
from jaxcnn.training.parallel import set_up

OVERLAP = 0.5  # of a tile's side, with the next
OPACITY = 0.5  # of the classes' colours over the image


@dataclass(frozen=True)
class Segmenter:
    """A run's network as a function of whole images."""

    run: FinishedRun
    batch_size: int

    @cached_property
    def classes(self) -> Classes:
        """What it tells apart."""
        return Classes.from_plain(self.run.saved["data"].get("classes"))

    @cached_property
    def shape(self) -> ImageShape:
        """Of the images that the network sees."""
        return shape_of(self.run.saved["data"])

    @cached_property
    def _call(self) -> Callable[[np.ndarray], np.ndarray]:
        """Images uint8 [batch_size, H, W, C] -> probabilities float32 [batch_size, H, W, K]."""
        variables = jax.device_put(self.run.variables)
        call = jax.jit(lambda variables, image: jax.nn.softmax(self.run.outputs(variables, {"image": image})))
        return lambda images: np.asarray(call(variables, images))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Of an image uint8 [h, w, C] those of each pixel's classes, float32 [h, w, K].

        ValueError where the network's output is not finite.
        """
        height, width = image.shape[:2]
        if self.run.config.data.image_size is not None and (height, width) != self.shape[:2]:
            fitted = size_within((height, width), self.shape[:2])
            whole = self.of_own(fit_whole(image, self.shape[:2]))
            return resize_image(whole[: fitted[0], : fitted[1]], height, width)
        return self._tiled(image)

    def of_own(self, image: np.ndarray) -> np.ndarray:
        """The same of an image that has the network's size already."""
        (only,) = self._of_all([image])
        return only

    def _tiled(self, image: np.ndarray) -> np.ndarray:
        rows, columns = (_starts(*each) for each in zip(image.shape[:2], self.shape[:2], strict=True))
        tiles = [
            (top, left, image[top : top + self.shape[0], left : left + self.shape[1]])
            for top in rows
            for left in columns
        ]
        if len(tiles) == 1:
            return self.of_own(_filled(image, self.shape))[: image.shape[0], : image.shape[1]]
        weight = _weight(self.shape[:2])[..., None]
        total = np.zeros((*image.shape[:2], len(self.classes)), np.float32)
        weights = np.zeros((*image.shape[:2], 1), np.float32)
        found = self._of_all([_filled(tile, self.shape) for _, _, tile in tiles])
        for (top, left, tile), each in zip(tiles, found, strict=True):
            place = slice(top, top + tile.shape[0]), slice(left, left + tile.shape[1])
            total[place] += (each * weight)[: tile.shape[0], : tile.shape[1]]
            weights[place] += weight[: tile.shape[0], : tile.shape[1]]
        return total / weights

    def _of_all(self, images: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Of images of the network's size, a batch after the other, each of one size, so that it is compiled once."""
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            filled = np.stack([*batch, *[batch[0]] * (self.batch_size - len(batch))])
            found = self._call(filled)[: len(batch)]
            if not np.isfinite(found).all():
                raise ValueError(NOT_FINITE)
            yield from found


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin along a side, so that all of it is seen and neighbours overlap by half or more."""
    if size <= tile:
        return [0]
    count = 1 + int(np.ceil((size - tile) / (tile * (1 - OVERLAP))))
    return np.round(np.linspace(0, size - tile, count)).astype(int).tolist()


def _filled(image: np.ndarray, shape: ImageShape) -> np.ndarray:
    """An image at the upper left of one of `shape`; black beside it."""
    whole = np.zeros(shape, np.uint8)
    whole[: image.shape[0], : image.shape[1]] = image
    return whole


def _weight(shape: tuple[int, int]) -> np.ndarray:
    """A weight for each pixel of a tile, float32 [H, W]: 1 in the middle, falling linearly towards the edges."""
    sides = [1 - np.abs((np.arange(size) + 0.5) / size * 2 - 1) for size in shape]
    return np.asarray(np.minimum(sides[0][:, None], sides[1][None, :]), np.float32)


# ---- what is drawn


def mask_file(numbers: np.ndarray, classes: Classes) -> bytes:
    """A PNG whose pixels are the values that the set's own masks have, with the classes' colours as its palette."""
    byte_values = not classes.coloured and max(classes.values) <= 255
    values = classes.values if byte_values else tuple(range(len(classes)))
    palette = np.zeros((256, 3), np.uint8)
    palette[list(values)] = classes.colours
    picture = Image.fromarray(np.asarray(values, np.uint8)[numbers]).convert("P")
    picture.putpalette(palette.tobytes())
    return png(picture)


def overlay(image: np.ndarray, numbers: np.ndarray, classes: Classes) -> np.ndarray:
    """The image, uint8 [h, w, 3], under the colours of its pixels' classes [h, w]; the first class is left as it is."""
    levels = np.broadcast_to(image[..., :3], (*image.shape[:2], 3)).astype(np.float32)
    colours = np.asarray(classes.colours, np.float32)[numbers]
    share = np.where(numbers == 0, 0, OPACITY)[..., None]
    return np.rint(levels * (1 - share) + colours * share).astype(np.uint8)


# ---- predict


def predict_command(values: Any, given: list[str]) -> int:
    """What `python -m jaxcnn.predict` does for such a run. Raises UserError, RunError."""
    folders = _check(values, given)
    set_up(None, compilation_cache=True)
    hold_back_threads()
    run = load(values.workdir, values.step)
    segmenter = Segmenter(run, values.batch_size or min(8, run.batch_size))
    outputs = Pictures(folder_of_all(given), values.masks, values.drawn)
    rows, faults = [], 0
    for path in given:
        for name, image in read_whole(path, segmenter.shape):
            try:
                if isinstance(image, ValueError):
                    raise image
                probabilities = segmenter.probabilities(image)
                outputs.write(name, image, probabilities.argmax(axis=-1), segmenter.classes)
                rows.append({"image": name, **run.finished.answers(probabilities[None], 1)[0]})
            except ValueError as error:
                faults += 1
                complain(f"{name}: {error}")
    tell(values, run, rows, faults, folders)
    return 1 if faults else 0


def _check(values: Any, given: list[str]) -> tuple[str, ...]:
    """The folders that pictures are written to. Raises UserError for a command that cannot be meant."""
    check_command(values, given, refused=OF_CLASSES)
    for option in OF_MASKS:
        check_outputs(values, option, folder=True)
    folders = tuple(each for each in (values.masks, values.drawn) if each)
    paths = [os.path.abspath(each) for each in folders]
    if len(set(paths)) < len(paths):
        raise UserError("--masks and --drawn would write the same files; give each a folder of its own")
    for folder in paths:
        if any(os.path.commonpath((folder, os.path.abspath(each))) == folder for each in given):
            raise UserError(f"{folder} holds the images themselves; write to another folder")
    return folders


class Pictures:
    """PNGs of predictions, each below its folder as the image lies below the folder of all."""

    def __init__(self, images_folder: str, masks: str | None, drawn: str | None):
        self._images_folder, self._masks, self._drawn = images_folder, masks, drawn
        self._written: set[str] = set()

    def write(self, name: str, image: np.ndarray, numbers: np.ndarray, classes: Classes) -> None:
        """Writes an image's. ValueError where they would take the place of another image's."""
        below = os.path.splitext(os.path.relpath(name, self._images_folder))[0] + ".png"
        if below in self._written and (self._masks or self._drawn):
            raise ValueError(f"another image has been written as {below}; give one of them another name")
        self._written.add(below)
        if self._masks:
            _write(Path(self._masks, below), mask_file(numbers, classes))
        if self._drawn:
            _write(Path(self._drawn, below), png(Image.fromarray(overlay(image, numbers, classes))))


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content)
