"""Geometry of an image: mirrored, shifted, or read along an affine map. One image [H, W, C] and its key each.

Mirroring and shifting keep the type; what interpolates gives float32 levels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

FLIP_STREAM = 13  # of the run's key: the coins of alternating flips; the step has streams of its own


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors [H, W, C] left-right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def alternating_mirror(key: jax.Array, index: jax.Array, epoch: jax.Array) -> jax.Array:
    """Mask of the examples to mirror, bool [B]: each by a coin of its own in the first epoch, then every other time.

    In any two epochs on end both sides of every image are seen (Jordan 2024, arXiv:2404.00498).

    Args:
      key: constant over the run.
      index: int32 [B], which example of the train split each is.
      epoch: int32 [B], counted from 0.
    """
    first = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i)))(index)
    return first ^ (epoch % 2 == 1)


def mirrored(key: jax.Array, batch: Mapping[str, Any]) -> jax.Array | None:
    """Which examples of a batch `alternating_mirror` mirrors; None where it does not say which these are.

    `key` is the run's.
    """
    if "epoch" not in batch:
        return None
    return alternating_mirror(jax.random.fold_in(key, FLIP_STREAM), batch["index"], batch["epoch"])


def pad_and_crop(key: jax.Array, image: jax.Array, *, padding: int) -> jax.Array:
    """Shifts [H, W, C] by up to `padding` pixels each way; what comes into view is the reflected image."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def affine(
    image: jax.Array,
    *,
    rotation: jax.Array | float,
    shift: jax.Array,
    shear: jax.Array | float,
    zoom: jax.Array | float,
    fill: str,
    read: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """Affine map: zoom, shear, rotation about the centre, then shift, in one interpolation.

    Args:
      image: [H, W, C].
      rotation: degrees, counter-clockwise.
      shift: [2], down and to the right, as fractions of height and width.
      shear: degrees by which vertical lines lean to the right, downwards.
      zoom: factor; above 1 enlarges.
      fill: see `sample`.
      read: what reads between pixels; none: `sample`.
    """
    height, width, _ = image.shape
    turn, slope = jnp.deg2rad(rotation), jnp.tan(jnp.deg2rad(shear))
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    rows = jnp.arange(height)[:, None] - middle_row - shift[0] * height
    columns = jnp.arange(width) - middle_column - shift[1] * width
    down = (jnp.sin(turn) * columns + jnp.cos(turn) * rows) / zoom
    right = (jnp.cos(turn) * columns - jnp.sin(turn) * rows) / zoom - slope * down
    return (read or sample)(image, down + middle_row, right + middle_column, fill=fill)


def sample(image: jax.Array, rows: jax.Array, columns: jax.Array, *, fill: str) -> jax.Array:
    """Reads [H, W, C] between its pixels, bilinearly, at positions that broadcast to [h, w]; float32 [h, w, C].

    Four gathers of whole pixels: on CPUs 7 x faster than jax.scipy.ndimage.map_coordinates.

    Args:
      image: [H, W, C].
      rows: where 0 is the first row's centre.
      columns: the same.
      fill: what lies outside: "constant" black, "nearest" the edge, "reflect" the mirror image, edge included, "wrap"
        the image again.
    """
    rows, columns = jnp.broadcast_arrays(rows, columns)
    top, left = jnp.floor(rows), jnp.floor(columns)
    below, beside = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    corners = [[_pixels(image, top + i, left + j, fill).astype(jnp.float32) for j in (0, 1)] for i in (0, 1)]
    upper, lower = ((1 - beside) * left_one + beside * right_one for left_one, right_one in corners)
    return (1 - below) * upper + below * lower


def sample_labels(labels: jax.Array, rows: jax.Array, columns: jax.Array, *, fill: str, void: int) -> jax.Array:
    """Labels [h, w, 1] of the pixels whose centres are nearest to positions, as `sample` has them; `void` outside."""
    rows, columns = (jnp.floor(x + 0.5).astype(jnp.int32) for x in jnp.broadcast_arrays(rows, columns))
    if fill != "constant":
        return _pixels(labels, rows, columns, fill)
    inside = (rows >= 0) & (rows < labels.shape[0]) & (columns >= 0) & (columns < labels.shape[1])
    found = _pixels(labels, rows, columns, "nearest")
    return jnp.where(inside[..., None], found, jnp.array(void, labels.dtype))


def sample_nearest(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The pixels [h, w, C] in which positions lie, where 0 is the first row's upper edge; black outside the image."""
    rows, columns = (jnp.floor(x).astype(jnp.int32) for x in jnp.broadcast_arrays(rows, columns))
    return _pixels(image, rows, columns, "constant")


def _pixels(image: jax.Array, rows: jax.Array, columns: jax.Array, fill: str) -> jax.Array:
    height, width, channels = image.shape
    row, column = _within(rows, height, fill), _within(columns, width, fill)
    pixels = jnp.take(image.reshape(-1, channels), row * width + column, axis=0, mode="clip")
    if fill != "constant":
        return pixels
    inside = (row == rows) & (column == columns)
    return jnp.where(inside[..., None], pixels, jnp.zeros((), image.dtype))


def _within(index: jax.Array, size: int, fill: str) -> jax.Array:
    """Index within a line, for an index into a line that continues beyond its ends."""
    if fill == "wrap":
        return index % size
    if fill == "reflect":
        index = index % (2 * size)
        return jnp.minimum(index, 2 * size - 1 - index)
    return jnp.clip(index, 0, size - 1)
