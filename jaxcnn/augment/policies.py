"""RandAugment and TrivialAugment: Pillow's operations, drawn at random, with torchvision's magnitudes. uint8 levels.

An operation is not chosen by a switch, which under vmap computes all fourteen. Each is a warp, a table of 256 levels a
channel, or a blend with another image; so every example goes through one of each, of which its operation sets one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.augment.geometry import sample_nearest

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
SIGNED = np.array([1 <= code <= 9 for code in range(len(OPERATIONS))])  # shear_x to sharpness go either way
NUM_MAGNITUDES = 31  # from none to the largest

_CODES = {name: code for code, name in enumerate(OPERATIONS)}


def randaugment(key: jax.Array, image: jax.Array, *, num_operations: int, magnitude: int) -> jax.Array:
    """So many operations one after the other, each any of the fourteen (Cubuk et al. 2020); uint8 [H, W, C], C 1 or 3.

    `magnitude` 0..30 is that of them all. As in torchvision, warps read the nearest pixel, and black outside the image.
    """
    magnitudes = jnp.asarray(randaugment_magnitudes(image.shape)[magnitude])

    def one(image: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        operation_key, sign_key = jax.random.split(key)
        operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
        return apply_operation(image, operation, _with_sign(sign_key, operation, magnitudes[operation])), None

    return jax.lax.scan(one, image, jax.random.split(key, num_operations))[0]


def trivial_augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """One operation of any magnitude (Müller & Hutter 2021, the wide ranges); uint8 [H, W, C], C 1 or 3."""
    operation_key, magnitude_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
    number = jax.random.randint(magnitude_key, (), 0, NUM_MAGNITUDES)
    magnitude = jnp.asarray(trivial_augment_magnitudes())[number, operation]
    return apply_operation(image, operation, _with_sign(sign_key, operation, magnitude))


def randaugment_magnitudes(shape: tuple[int, ...]) -> np.ndarray:
    """float32 [31, 14]: torchvision's, of which translations go with the image's size."""
    height, width = shape[0], shape[1]
    return _magnitudes(
        shear=0.3, translate_x=150 / 331 * width, translate_y=150 / 331 * height, rotate=30, factor=0.9, posterize=4
    )


def trivial_augment_magnitudes() -> np.ndarray:
    """float32 [31, 14]: the paper's wide ranges, as torchvision's TrivialAugmentWide has them."""
    return _magnitudes(shear=0.99, translate_x=32, translate_y=32, rotate=135, factor=0.99, posterize=6)


def _magnitudes(
    *, shear: float, translate_x: float, translate_y: float, rotate: float, factor: float, posterize: int
) -> np.ndarray:
    share = np.linspace(0, 1, NUM_MAGNITUDES)
    of = {
        "shear_x": shear * share,
        "shear_y": shear * share,
        "translate_x": np.trunc(translate_x * share + 1e-9),  # whole pixels
        "translate_y": np.trunc(translate_y * share + 1e-9),
        "rotate": rotate * share,  # degrees
        "brightness": factor * share,  # what these four add to a factor of 1
        "color": factor * share,
        "contrast": factor * share,
        "sharpness": factor * share,
        "posterize": 8 - np.round(posterize * share),  # bits kept
        "solarize": 255 - 255 * share,  # threshold
    }
    none = np.zeros(NUM_MAGNITUDES)
    return np.stack([of.get(name, none) for name in OPERATIONS], axis=1).astype(np.float32)


def _with_sign(key: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    negative = jax.random.bernoulli(key) & jnp.asarray(SIGNED)[operation]
    return jnp.where(negative, -magnitude, magnitude)


def apply_operation(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """The operation of this number in OPERATIONS, as Pillow does it; uint8 [H, W, C] to the same.

    Magnitudes: shears as slopes, translations in pixels, rotate in degrees counter-clockwise, brightness, color,
    contrast and sharpness as what is added to a factor of 1, posterize in bits kept, solarize the threshold.
    """
    set_to = {name: jnp.where(operation == code, magnitude, 0) for name, code in _CODES.items()}
    image = _warp(image, set_to)
    image = jnp.take_along_axis(_table(image, operation, magnitude)[None], image.astype(jnp.int32), axis=1, mode="clip")
    smoothed = operation == _CODES["sharpness"]
    other = jnp.where(smoothed, _smooth(image), _grey(image))
    return _towards(other, image, 1 + set_to["color"] + set_to["sharpness"])


def _warp(image: jax.Array, set_to: dict[str, jax.Array]) -> jax.Array:
    """Rotated about the centre, or sheared from the upper left corner, or translated."""
    height, width, _ = image.shape
    turn = jnp.deg2rad(set_to["rotate"])
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
    down, right = y - height / 2, x - width / 2
    rows = jnp.cos(turn) * down + jnp.sin(turn) * right + height / 2 + set_to["shear_y"] * x - set_to["translate_y"]
    columns = jnp.cos(turn) * right - jnp.sin(turn) * down + width / 2 + set_to["shear_x"] * y - set_to["translate_x"]
    return sample_nearest(image, rows, columns)


def _table(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """uint8 [256, C]: what each level becomes; itself, where the operation is none of these."""
    levels = jnp.arange(256)[:, None]
    mean = jnp.floor(_grey(image).astype(jnp.float32).mean() + 0.5).astype(jnp.int32)
    coarse = 2 ** (8 - jnp.clip(magnitude, 1, 8).astype(jnp.int32))
    tables = {
        "brightness": _towards(jnp.zeros_like(levels), levels, 1 + magnitude),
        "contrast": _towards(mean, levels, 1 + magnitude),
        "posterize": levels - levels % coarse,
        "solarize": jnp.where(levels < magnitude, levels, 255 - levels),
        "autocontrast": _autocontrast(image),
        "equalize": _equalize(image),
    }
    shape = 256, image.shape[-1]
    chosen = [operation == _CODES[name] for name in tables]
    return jnp.select(
        chosen,
        [jnp.broadcast_to(table.astype(jnp.uint8), shape) for table in tables.values()],
        jnp.broadcast_to(levels.astype(jnp.uint8), shape),
    )


def _autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel from its darkest to its brightest level over 0..255."""
    low, high = (x.astype(jnp.float32) for x in (image.min(axis=(0, 1)), image.max(axis=(0, 1))))
    levels = jnp.arange(256)[:, None]
    scale = 255 / jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip((levels - low) * scale + 1e-4, 0, 255).astype(jnp.int32), levels)


def _equalize(image: jax.Array) -> jax.Array:
    """Spreads each channel's levels so that all are about as frequent, by Pillow's integers."""
    channels = image.shape[-1]
    counts = jnp.zeros((256, channels), jnp.int32)
    counts = counts.at[image.reshape(-1, channels).astype(jnp.int32), jnp.arange(channels)].add(1, mode="clip")
    levels = jnp.arange(256)[:, None]
    of_brightest = jnp.take_along_axis(counts, image.max(axis=(0, 1))[None].astype(jnp.int32), axis=0)
    step = (counts.sum(axis=0) - of_brightest) // 255
    below = jnp.cumsum(counts, axis=0) - counts
    spread = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, spread, levels)


def _grey(image: jax.Array) -> jax.Array:
    """Luminance [H, W, 1], by Pillow's integers."""
    if image.shape[-1] == 1:
        return image
    weighted = image.astype(jnp.int32) * jnp.array([19595, 38470, 7471])
    return ((weighted.sum(axis=-1, keepdims=True) + 2**15) >> 16).astype(jnp.uint8)


def _smooth(image: jax.Array) -> jax.Array:
    """Pillow's SMOOTH: 3x3, the middle weighs 5 of 13; the outermost pixels stay."""
    height, width, _ = image.shape
    wide = image.astype(jnp.int32)
    total = 4 * wide[1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            total += wide[i : height - 2 + i, j : width - 2 + j]
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


def _towards(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's blend: other + factor (image - other), cut to 0..255 and to whole levels; at 1 the image."""
    other = other.astype(jnp.float32)
    return jnp.clip(other + factor * (image.astype(jnp.float32) - other), 0, 255).astype(jnp.uint8)
