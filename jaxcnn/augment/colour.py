"""Changes of an image's levels: light, colour, blur, noise. All take and return one image float32 [H, W, C], 0..255.

`adjust_*` do what they are told; the others draw how much from a key.
"""

import math

import jax
import jax.numpy as jnp

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow, torchvision and TensorFlow have it
BLUR_SIGMAS = 3  # the kernel ends so many sigmas from its middle


def draw_factor(key: jax.Array, strength: float) -> jax.Array:
    """Uniform in [max(0, 1 - strength), 1 + strength], as torchvision's ColorJitter draws."""
    return jax.random.uniform(key, minval=max(0.0, 1 - strength), maxval=1 + strength)


def luminance(image: jax.Array) -> jax.Array:
    """Luminance [H, W, 1] of an image [H, W, 3]; an image of one channel is returned as it is."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., i : i + 1] for i in range(3))  # a sum over so short an axis is slow on CPUs
    return LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue


def blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """Weighted mean of two images, `factor` of the first; factors above 1 lead away from the other. In 0..255."""
    return jnp.clip(factor * image + (1 - factor) * other, 0, 255)


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Brightness times a factor: 0 is black, 1 the image."""
    return blend(image, jnp.zeros_like(image), factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Contrast times a factor: 0 is the grey of the image's mean luminance, 1 the image."""
    return blend(image, luminance(image.mean(axis=(0, 1), keepdims=True)), factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Saturation times a factor: 0 is grey, 1 the image."""
    return blend(image, luminance(image), factor)


def adjust_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns the colours of [H, W, 3] by a fraction of the circle of hues, at the same value and saturation (HSV)."""
    red, green, blue = (image[..., i] for i in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    positions = (first + sixths + 6 * turn for first in (5, 3, 1))
    positions = (position - 6 * jnp.floor(position / 6) for position in positions)  # % is slow on CPUs
    turned = [value - chroma * jnp.clip(jnp.minimum(position, 4 - position), 0, 1) for position in positions]
    return jnp.where(turn == 0, image, jnp.stack(turned, axis=-1))


def random_grayscale(key: jax.Array, image: jax.Array, *, probability: float) -> jax.Array:
    """Turns the image grey with this probability, keeping the number of channels."""
    return jnp.where(jax.random.bernoulli(key, probability), luminance(image), image)


def blur_radius(blur: float) -> int:
    """Pixels that the kernel of the largest sigma reaches; the image must be larger."""
    return math.ceil(BLUR_SIGMAS * blur)


def adjust_blur(image: jax.Array, sigma: jax.Array, *, radius: int) -> jax.Array:
    """Gaussian blur of `sigma` pixels, cut `radius` pixels away; at the edges the image is reflected."""
    distance = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 1e-3)) ** 2)  # below 1e-3 the same: only the pixel itself
    weights = weights / weights.sum()
    for axis in (0, 1):
        padding = [(0, 0)] * image.ndim
        padding[axis] = (radius, radius)
        padded, size = jnp.pad(image, padding, mode="reflect"), image.shape[axis]
        parts = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * radius + 1)]
        image = sum((weight * part for weight, part in zip(weights, parts, strict=True)), jnp.zeros(()))
    return image


def gaussian_noise(key: jax.Array, image: jax.Array, *, sigma: float) -> jax.Array:
    """Adds noise of standard deviation `sigma`, a fraction of the levels' range; clipped to 0..255."""
    return jnp.clip(image + 255 * sigma * jax.random.normal(key, image.shape), 0, 255)
