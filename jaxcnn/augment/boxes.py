"""Boxes of an image: cropped and enlarged, or blotted out. One image [H, W, C] and its key each."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.augment.geometry import sample

ERASED_AREA, ERASED_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # Zhong et al. 2017, section 4.3
_TRIES = 10  # boxes drawn for one that fits, as torchvision does

Range = tuple[float, ...]  # (low, high)


class Box(NamedTuple):
    """Box in pixels, int32; `fits` is False where no draw lay in the image: the box is then the whole image."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    fits: jax.Array


def draw_box(key: jax.Array, shape: tuple[int, int], *, area: Range, aspect: Range) -> Box:
    """A box anywhere in an image of `shape`: the first of ten that fits.

    Args:
      key: of the example.
      shape: height and width in pixels.
      area: share of the image's, uniform between these.
      aspect: width / height, log-uniform between these.
    """
    height, width = shape
    draws = jax.random.uniform(key, (2 * _TRIES + 2,))
    area_draws, aspect_draws, (top_draw, left_draw) = draws[:_TRIES], draws[_TRIES:-2], draws[-2:]
    areas = height * width * (area[0] + (area[1] - area[0]) * area_draws)
    aspects = jnp.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * aspect_draws)
    heights = jnp.rint(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    widths = jnp.rint(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    fit = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first, fits = fit.argmax(), fit.any()
    box_height, box_width = jnp.where(fits, heights[first], height), jnp.where(fits, widths[first], width)
    top = (top_draw * (height - box_height + 1)).astype(jnp.int32)
    left = (left_draw * (width - box_width + 1)).astype(jnp.int32)
    return Box(top, left, box_height, box_width, fits)


def random_resized_crop(
    key: jax.Array, image: jax.Array, *, area: Range, aspect: Range, read: Callable[..., jax.Array] = sample
) -> jax.Array:
    """A box of the image, enlarged to the image's size (Szegedy et al. 2015, section 6), bilinearly and in float32.

    `read`: what reads between pixels in place of that.
    """
    height, width, _ = image.shape
    box = draw_box(key, (height, width), area=area, aspect=aspect)
    rows = _positions(box.top, box.height, height)[:, None]
    return read(image, rows, _positions(box.left, box.width, width), fill="nearest")


def _positions(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Positions at which a line is read so that `length` pixels from `start` on become `size`; never beyond those."""
    index = jnp.arange(size)
    return start + jnp.clip(index + (index + 0.5) * (length - size) / size, 0, length - 1)


def cutout(key: jax.Array, image: jax.Array, *, size: int) -> jax.Array:
    """Sets a random square to 0, the mean of normalised images; wholly inside, unlike DeVries & Taylor 2017."""
    height, width, _ = image.shape
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (), 0, height - size + 1)
    left = jax.random.randint(column_key, (), 0, width - size + 1)
    return jnp.where(inside((height, width), top, left, size, size)[:, :, None], 0, image)


def random_erasing(key: jax.Array, image: jax.Array, *, probability: float) -> jax.Array:
    """With this probability sets a box to 0, the mean of normalised images (Zhong et al. 2017)."""
    coin_key, box_key = jax.random.split(key)
    shape = image.shape[0], image.shape[1]
    box = draw_box(box_key, shape, area=ERASED_AREA, aspect=ERASED_ASPECT)
    erased = inside(shape, *box[:4]) & box.fits & jax.random.bernoulli(coin_key, probability)
    return jnp.where(erased[:, :, None], 0, image)


def inside(
    shape: tuple[int, int], top: jax.Array, left: jax.Array, height: jax.Array | int, width: jax.Array | int
) -> jax.Array:
    """Mask of the pixels that lie in a box: bool [H, W]."""
    rows, columns = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
