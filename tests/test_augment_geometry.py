"""Affine maps against scipy and Pillow, boxes against Pillow and the streaming side's, on real photographs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from jaxcnn.augment import affine, random_erasing, random_resized_crop
from jaxcnn.augment.boxes import Box, draw_box
from jaxcnn.data import streaming
from tests.photos import photo

SCIPY_MODES = {"constant": "grid-constant", "nearest": "nearest", "reflect": "reflect", "wrap": "grid-wrap"}


def by_scipy(image: np.ndarray, rotation: float, shift: np.ndarray, shear: float, zoom: float, mode: str) -> np.ndarray:
    """The forward map, piece by piece in (row, column), inverted by numpy."""
    turn = np.deg2rad(rotation)
    forward = (
        np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        @ np.array([[1, 0], [np.tan(np.deg2rad(shear)), 1]])
        @ np.diag([zoom, zoom])
    )
    size = np.array(image.shape[:2])
    inverse, middle = np.linalg.inv(forward), (size - 1) / 2
    offset = middle - inverse @ (middle + shift * size)
    channels = [
        ndimage.affine_transform(channel.astype(float), inverse, offset, order=1, mode=mode)
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("fill", SCIPY_MODES)
def test_affine_is_scipys(fill: str) -> None:
    image, generator = photo("china.jpg", 45, 60), np.random.default_rng(0)
    rotation, shear = generator.uniform(-180, 180, 12), generator.uniform(-40, 40, 12)
    shift, zoom = generator.uniform(-0.6, 0.6, (12, 2)), generator.uniform(0.4, 1.8, 12)
    rotation[:4] = shift[:4] = shear[:4] = 0  # the first four: one each alone
    zoom[:4] = 1
    rotation[0], shift[1], shear[2], zoom[3] = 30, (0.1, -0.3), 20, 1.5

    def one(rotation: jax.Array, shift: jax.Array, shear: jax.Array, zoom: jax.Array) -> jax.Array:
        return affine(jnp.asarray(image), rotation=rotation, shift=shift, shear=shear, zoom=zoom, fill=fill)

    result = jax.jit(jax.vmap(one))(*(jnp.asarray(x, jnp.float32) for x in (rotation, shift, shear, zoom)))
    for case in range(12):
        wanted = by_scipy(image, rotation[case], shift[case], shear[case], zoom[case], SCIPY_MODES[fill])
        np.testing.assert_allclose(result[case], wanted, atol=0.05, err_msg=str(case))


def test_positive_angles_turn_counter_clockwise_as_pillows() -> None:
    image = photo("flower.jpg", 64, 64)
    levels = jnp.asarray(image)
    turn = jax.jit(lambda angle: affine(levels, rotation=angle, shift=jnp.zeros(2), shear=0.0, zoom=1.0, fill="wrap"))
    ours = turn(25.0)
    theirs = np.asarray(Image.fromarray(image).rotate(25, Image.Resampling.BILINEAR), float)
    inner = ndimage.binary_erosion(theirs.max(axis=-1) > 0, iterations=2)
    assert np.abs(np.asarray(ours) - theirs)[inner].mean() < 1
    other_way = np.asarray(Image.fromarray(image).rotate(-25, Image.Resampling.BILINEAR), float)
    assert np.abs(np.asarray(ours) - other_way)[inner].mean() > 10


def test_resized_crop_is_pillows_crop_resized() -> None:
    height, width = 40, 56
    image = photo("china.jpg", height, width)
    ranges: Any = {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)}

    @jax.jit
    @jax.vmap
    def crop(key: jax.Array) -> tuple[jax.Array, Box]:
        return random_resized_crop(key, jnp.asarray(image), **ranges), draw_box(key, (height, width), **ranges)

    result, boxes = crop(jax.random.split(jax.random.key(0), 24))
    assert result.dtype == jnp.float32
    for number, (top, left, box_height, box_width) in enumerate(np.stack(boxes[:4], axis=1).tolist()):
        box = Image.fromarray(image).crop((left, top, left + box_width, top + box_height))
        theirs = np.asarray(box.resize((width, height), Image.Resampling.BILINEAR), float)
        np.testing.assert_allclose(result[number], theirs, atol=1.05)  # Pillow rounds twice


def test_boxes_are_distributed_as_the_streaming_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Area and aspect by Kolmogorov and Smirnov; places uniform over what is left."""
    shape, area, aspect = (60, 80), (0.2, 0.9), (0.5, 2.5)
    theirs: list[tuple[int, int]] = []
    monkeypatch.setattr(streaming, "resize_image", lambda box, *size: theirs.append(box.shape[:2]))
    image = np.zeros((*shape, 3), np.uint8)
    for seed in range(2000):
        streaming.random_resized_crop(np.random.default_rng(seed), image, (8, 8, 3), area=area, aspect=aspect)
    draw = jax.jit(jax.vmap(lambda key: draw_box(key, shape, area=area, aspect=aspect)))
    top, left, height, width, fits = map(np.asarray, draw(jax.random.split(jax.random.key(1), 4000)))
    assert fits.all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 80).all()
    their_height, their_width = np.array(theirs).T
    for ours, other in ((height * width, their_height * their_width), (width / height, their_width / their_height)):
        assert stats.ks_2samp(ours, other).pvalue > 1e-3
    for start, rest in ((top, 60 - height), (left, 80 - width)):
        place = (start[rest > 9] + 0.5) / (rest[rest > 9] + 1)
        assert stats.kstest(place, "uniform").statistic < 0.06


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    box = jax.jit(lambda key: draw_box(key, (20, 30), area=(0.9, 1.0), aspect=(9.0, 9.0)))(jax.random.key(0))
    assert [int(x) for x in box] == [0, 0, 20, 30, 0]


def test_random_erasing_blots_out_a_box_in_its_range() -> None:
    image = jnp.asarray(photo("flower.jpg", 40, 50), jnp.float32) + 1  # nowhere 0
    erase = jax.jit(jax.vmap(lambda key: random_erasing(key, image, probability=0.25)))
    result = np.asarray(erase(jax.random.split(jax.random.key(0), 1600)))
    erased = (result == 0).all(axis=-1)
    np.testing.assert_array_equal(result[~erased], np.broadcast_to(image, result.shape)[~erased])
    some = erased.any(axis=(1, 2))
    assert abs(some.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 1600)
    heights, widths = erased[some].any(axis=2).sum(axis=1), erased[some].any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(erased[some].sum(axis=(1, 2)), heights * widths)  # boxes indeed
    shares, aspects = heights * widths / 2000, widths / heights
    assert 0.015 < shares.min() < 0.04
    assert 0.34 < shares.max() < 0.43
    assert 0.25 < aspects.min() < 0.5
    assert 2 < aspects.max() < 4


def test_nothing_asked_is_nothing_done_bit_for_bit() -> None:
    key, image = jax.random.key(0), jnp.asarray(photo("china.jpg", 41, 41))

    @jax.jit
    def unmoved(zero: jax.Array) -> list[jax.Array]:
        still: Any = {"rotation": zero, "shift": jnp.stack([zero, zero]), "shear": zero, "zoom": 1 + zero}
        return [affine(image, **still, fill=fill) for fill in SCIPY_MODES]

    for result in unmoved(jnp.zeros(())):
        np.testing.assert_array_equal(result, image)

    @jax.jit
    def untouched(key: jax.Array) -> list[jax.Array]:
        whole = random_resized_crop(key, image, area=(1.0, 1.0), aspect=(1.0, 1.0))
        return [whole, random_erasing(key, image.astype(jnp.float32), probability=0.0)]

    for result in untouched(key):
        np.testing.assert_array_equal(result, image)
