"""Colour, blur and noise against Pillow, OpenCV and scipy, on real photographs."""

from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from jaxcnn.augment import colour
from tests.photos import photo

FACTORS = (0.0, 0.3, 0.85, 1.0, 1.4, 2.0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return photo("flower.jpg", 40, 56)


def over(adjust: Callable, image: np.ndarray, amounts: tuple[float, ...]) -> np.ndarray:
    levels = jnp.asarray(image, jnp.float32)
    return np.asarray(jax.jit(jax.vmap(lambda amount: adjust(levels, amount)))(jnp.array(amounts)))


@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (colour.adjust_brightness, ImageEnhance.Brightness),
        (colour.adjust_contrast, ImageEnhance.Contrast),
        (colour.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_factors_are_pillows(adjust: Callable, enhance: Callable, image: np.ndarray) -> None:
    result = over(adjust, image, FACTORS)
    assert result.min() >= 0
    assert result.max() <= 255
    for factor, ours in zip(FACTORS, result, strict=True):
        theirs = np.asarray(enhance(Image.fromarray(image)).enhance(factor), float)
        np.testing.assert_allclose(ours, theirs, atol=1 + 0.5 * abs(1 - factor))  # Pillow cuts to whole levels


def test_hue_is_opencvs(image: np.ndarray) -> None:
    turns = (-0.5, -0.2, 0.07, 0.35, 0.5)
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    for turn, ours in zip(turns, over(colour.adjust_hue, image, turns), strict=True):
        turned = hsv.copy()
        turned[..., 0] = (turned[..., 0] + 360 * turn) % 360
        np.testing.assert_allclose(ours, 255 * cv2.cvtColor(turned, cv2.COLOR_HSV2RGB), atol=0.02)


def test_grey_is_pillows_and_as_frequent_as_asked(image: np.ndarray) -> None:
    levels = jnp.asarray(image[:8, :8], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2000)
    result = np.asarray(jax.jit(jax.vmap(lambda key: colour.random_grayscale(key, levels, probability=0.2)))(keys))
    grey = (result != np.asarray(levels)).any(axis=(1, 2, 3))
    assert abs(grey.mean() - 0.2) < 5 * np.sqrt(0.16 / 2000)
    theirs = np.asarray(Image.fromarray(image[:8, :8]).convert("L"), float)
    np.testing.assert_allclose(result[grey], np.broadcast_to(theirs[:, :, None], result[grey].shape), atol=0.51)


def test_blur_is_scipys(image: np.ndarray) -> None:
    sigmas, radius = (0.05, 0.3, 1.0, 2.0), colour.blur_radius(2.0)
    assert radius == 6
    result = over(lambda levels, sigma: colour.adjust_blur(levels, sigma, radius=radius), image, sigmas)
    for sigma, ours in zip(sigmas, result, strict=True):
        theirs = ndimage.gaussian_filter(
            image.astype(float), (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0)
        )
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_noise_has_its_sigma_and_is_clipped() -> None:
    middle = jnp.full((64, 64, 3), 128.0)
    result = np.asarray(jax.jit(lambda key: colour.gaussian_noise(key, middle, sigma=0.1))(jax.random.key(0)))
    added = result - 128
    assert abs(added.mean()) < 5 * 25.5 / np.sqrt(added.size)
    assert abs(added.std() - 25.5) < 5 * 25.5 / np.sqrt(2 * added.size)
    assert abs((np.abs(added) < 25.5).mean() - 0.6827) < 0.02
    dark = np.asarray(colour.gaussian_noise(jax.random.key(1), jnp.zeros((8, 8, 1)), sigma=0.5))
    assert dark.min() == 0
    assert dark.max() <= 255


@pytest.mark.parametrize("strength", [0.4, 1.7])
def test_factors_are_uniform_and_never_negative(strength: float) -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    factors = np.asarray(jax.jit(jax.vmap(lambda key: colour.draw_factor(key, strength)))(keys))
    low, high = max(0, 1 - strength), 1 + strength
    assert low <= factors.min() < low + 0.01
    assert high - 0.01 < factors.max() <= high
    assert abs(factors.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * 4000)


def test_nothing_asked_is_nothing_done_bit_for_bit(image: np.ndarray) -> None:
    """Of levels between whole ones too, as an interpolation leaves them."""
    levels = jnp.asarray(image, jnp.float32) * 0.987

    @jax.jit
    def untouched(zero: jax.Array) -> list[jax.Array]:
        key = jax.random.key(0)
        return [
            colour.adjust_brightness(levels, 1 + zero),
            colour.adjust_contrast(levels, 1 + zero),
            colour.adjust_saturation(levels, 1 + zero),
            colour.adjust_hue(levels, zero),
            colour.adjust_blur(levels, zero, radius=6),
            colour.random_grayscale(key, levels, probability=0.0),
            colour.gaussian_noise(key, levels, sigma=0.0),
        ]

    for result in untouched(jnp.zeros(())):
        np.testing.assert_array_equal(result, levels)
    assert float(colour.draw_factor(jax.random.key(0), 0.0)) == 1
