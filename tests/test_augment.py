"""Augmentation against numpy on real digits, its distributions, and what must not change its draws."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import augment as augmentation
from jaxcnn.augment import make_augment, make_normalise
from jaxcnn.config import AugmentConfig, DataConfig
from jaxcnn.data import open_source
from jaxcnn.errors import UserError

LEVELS: dict[str, Any] = {"mean": (0.0,), "std": (1 / 255,)}  # normalised images are then the levels 0..255 themselves
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    train = open_source(DataConfig()).splits["train"]
    return np.stack([train[index]["image"] for index in range(512)])


def keys_of(num: int, seed: int = 0) -> jax.Array:
    return jax.vmap(lambda position: jax.random.fold_in(jax.random.key(seed), position))(jnp.arange(num))


def levels_after(config: AugmentConfig, images: np.ndarray, seed: int = 0) -> np.ndarray:
    function = jax.jit(make_augment(config, **LEVELS, image_shape=images.shape[1:]))
    result, _ = function(keys_of(len(images), seed), images, jnp.zeros(len(images), jnp.int32))
    return np.rint(np.asarray(result)).astype(int)


def crops_of(image: np.ndarray, padding: int) -> dict[tuple[int, int], np.ndarray]:
    """Every crop there is, by numpy's own reflection."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    height, width, _ = image.shape
    offsets = itertools.product(range(2 * padding + 1), repeat=2)
    return {(top, left): padded[top : top + height, left : left + width] for top, left in offsets}


def test_normalise_is_what_it_says(digits: np.ndarray) -> None:
    images = np.repeat(digits, 3, axis=-1)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    result = jax.jit(make_normalise(mean, std))(images)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images / 255 - mean) / std, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [((0.1,), (0.4,)), ((0.1, 0.2, 0.3), (0.4,))])
def test_normalise_wants_one_value_a_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="3 channels"):
        make_normalise(mean, std)(jnp.zeros((2, 8, 8, 3), jnp.uint8))


def test_all_off_is_normalise_bit_for_bit(digits: np.ndarray) -> None:
    labels = jnp.arange(len(digits))
    function = jax.jit(make_augment(AugmentConfig(), mean=(0.3,), std=(0.37,), image_shape=SHAPE))
    images, same_labels = function(keys_of(len(digits)), digits, labels)
    np.testing.assert_array_equal(images, jax.jit(make_normalise((0.3,), (0.37,)))(digits))
    np.testing.assert_array_equal(same_labels, labels)


def test_flip_mirrors_half_of_them(digits: np.ndarray) -> None:
    result = levels_after(AugmentConfig(flip=True), digits)
    flipped = (result == digits[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (result == digits).all(axis=(1, 2, 3))
    assert (flipped | kept).all()
    assert not (flipped & kept).any()  # no digit here is its own mirror image, so the counts below mean something
    assert abs(flipped.sum() - 256) < 5 * np.sqrt(512 / 4)


@pytest.mark.parametrize("padding", [1, 2, 7])
def test_crop_is_numpys_and_every_offset_occurs(digits: np.ndarray, padding: int) -> None:
    images = np.repeat(digits[:32], 32, axis=0) if padding == 2 else digits[:64]
    counts: dict[tuple[int, int], int] = {}
    for image, result in zip(images, levels_after(AugmentConfig(crop_padding=padding), images), strict=True):
        offsets = [offset for offset, crop in crops_of(image, padding).items() if (crop == result).all()]
        assert offsets, "not a crop of the reflected image"
        for offset in offsets:
            counts[offset] = counts.get(offset, 0) + 1
    if padding == 2:  # 1024 draws over 25 offsets: 41 each
        assert len(counts) == 25
        assert max(abs(count - 1024 / 25) for count in counts.values()) < 5 * np.sqrt(1024 / 25)


def test_crop_follows_its_own_key(digits: np.ndarray) -> None:
    """The draw is the documented one: fold_in(key, 2), then two integers from 0 to twice the padding."""
    keys = keys_of(64)
    result = levels_after(AugmentConfig(crop_padding=3), digits[:64])
    for key, image, cropped in zip(keys, digits[:64], result, strict=True):
        top, left = np.asarray(jax.random.randint(jax.random.fold_in(key, 2), (2,), 0, 7)).tolist()
        np.testing.assert_array_equal(cropped, crops_of(image, 3)[top, left])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_cutout_is_a_whole_square_of_the_mean_anywhere(size: int) -> None:
    images = np.full((1024, *SHAPE), 200, np.uint8)
    function = make_augment(AugmentConfig(cutout=size), mean=(0.25,), std=(0.5,), image_shape=SHAPE)
    result = np.asarray(function(keys_of(len(images)), jnp.asarray(images), jnp.zeros(len(images)))[0])[..., 0]
    cut = result == 0
    assert (cut.sum(axis=(1, 2)) == size**2).all()
    np.testing.assert_allclose(result[~cut], (200 / 255 - 0.25) / 0.5, rtol=1e-6)
    tops, lefts = cut.any(axis=2).argmax(axis=1), cut.any(axis=1).argmax(axis=1)
    for example, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        assert cut[example, top : top + size, left : left + size].all()
    num_places = (8 - size + 1) ** 2
    places, counts = np.unique(np.stack([tops, lefts]), axis=1, return_counts=True)
    assert places.shape[1] == num_places
    assert np.abs(counts - 1024 / num_places).max() <= 5 * np.sqrt(1024 / num_places)


def test_turning_one_on_leaves_the_draws_of_the_others(digits: np.ndarray) -> None:
    flipped = levels_after(AugmentConfig(flip=True), digits)
    cropped = levels_after(AugmentConfig(crop_padding=2), digits)
    both = levels_after(AugmentConfig(flip=True, crop_padding=2), digits)
    for image, flipped_image, crop, result in zip(digits, flipped, cropped, both, strict=True):
        offsets = [offset for offset, candidate in crops_of(image, 2).items() if (candidate == crop).all()]
        assert any((crops_of(flipped_image, 2)[offset] == result).all() for offset in offsets)

    white = np.full((128, *SHAPE), 255, np.uint8)
    alone = levels_after(AugmentConfig(cutout=3), white)
    np.testing.assert_array_equal(alone, levels_after(AugmentConfig(flip=True, crop_padding=2, cutout=3), white))


def test_pieces_do_not_share_their_draws(digits: np.ndarray) -> None:
    """Offset and mirror of an example would move together if both folded the same constant."""
    keys = keys_of(4096)
    columns = jnp.broadcast_to(jnp.arange(8, dtype=jnp.uint8)[None, :, None], SHAPE)
    flips = jax.vmap(lambda key: augmentation.flip(jax.random.fold_in(key, 1), columns)[0, 0, 0] > 0)(keys)
    crops = jax.vmap(
        lambda key: augmentation.pad_and_crop(jax.random.fold_in(key, 2), columns, padding=1)[0, :, 0].sum()
    )(keys)
    for total in np.unique(crops):
        share = np.asarray(flips)[np.asarray(crops) == total].mean()
        assert abs(share - 0.5) < 5 * np.sqrt(0.25 / (4096 / 3))


def test_an_example_is_the_same_in_any_batch(digits: np.ndarray) -> None:
    config = AugmentConfig(flip=True, crop_padding=2, cutout=3)
    function = jax.jit(make_augment(config, mean=(0.3,), std=(0.37,), image_shape=SHAPE))
    keys, labels = keys_of(64), jnp.arange(64)
    whole, _ = function(keys, digits[:64], labels)
    for size in (1, 7, 32):
        parts = [
            function(keys[start : start + size], digits[start : start + size], labels[start : start + size])[0]
            for start in range(0, 64 - 64 % size, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole[: 64 - 64 % size])
    backwards, _ = function(keys[::-1], digits[:64][::-1], labels)
    np.testing.assert_array_equal(backwards[::-1], whole)


def test_other_keys_other_images(digits: np.ndarray) -> None:
    config = AugmentConfig(flip=True, crop_padding=2)
    first, again, other = (levels_after(config, digits, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=(1, 2, 3)).mean() > 0.8


@pytest.mark.parametrize(
    ("config", "says"),
    [(AugmentConfig(crop_padding=8), "augment.crop_padding=8.*at most 7"), (AugmentConfig(cutout=9), "at most 8")],
)
def test_too_small_images_are_refused(config: AugmentConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_augment(config, **LEVELS, image_shape=(8, 12, 1))
