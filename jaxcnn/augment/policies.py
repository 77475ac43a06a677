"""RandAugment and TrivialAugment: Pillow's operations, drawn at random, with torchvision's magnitudes. uint8 levels.

An operation is not chosen by a switch, which under vmap computes all fourteen. Each is a warp, a table of 256 levels a
channel, or a blend with another image; so one of each is computed, of the image as it came, whatever the operation.
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
    """Several operations in sequence, each drawn from the fourteen (Cubuk et al. 2020); uint8 [H, W, C], C 1 or 3.

    `magnitude` 0..30 is that of them all. As in torchvision, warps read the nearest pixel, and black outside the image.
    """
    magnitudes = jnp.asarray(randaugment_magnitudes(image.shape)[magnitude])

    def apply_drawn(image: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        operation_key, sign_key = jax.random.split(key)
        operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
        return apply_operation(image, operation, _with_sign(sign_key, operation, magnitudes[operation])), None

    return jax.lax.scan(apply_drawn, image, jax.random.split(key, num_operations))[0]


def trivial_augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """One operation of any magnitude (Müller & Hutter 2021, the wide ranges); uint8 [H, W, C], C 1 or 3."""
    operation_key, magnitude_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
    number = jax.random.randint(magnitude_key, (), 0, NUM_MAGNITUDES)
    magnitude = jnp.asarray(trivial_augment_magnitudes())[number, operation]
    return apply_operation(image, operation, _with_sign(sign_key, operation, magnitude))


def randaugment_magnitudes(shape: tuple[int, ...]) -> np.ndarray:
    """Magnitudes of torchvision's RandAugment, float32 [31, 14]; translations scale with the image's size."""
    height, width = shape[0], shape[1]
    return _magnitudes(
        shear=0.3, translate_x=150 / 331 * width, translate_y=150 / 331 * height, rotate=30, factor=0.9, posterize=4
    )


def trivial_augment_magnitudes() -> np.ndarray:
    """Magnitudes of the paper's wide ranges, as in torchvision's TrivialAugmentWide, float32 [31, 14]."""
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
    """Applies the operation of this number in OPERATIONS, as Pillow does; uint8 [H, W, C] to the same.

    Magnitudes: shears as slopes, translations in pixels, rotate in degrees counter-clockwise, brightness, color,
    contrast and sharpness as what is added to a factor of 1, posterize in bits kept, solarize the threshold.
    """
    by_table = _table(image, operation, magnitude)
    warped = _warp(image, {name: jnp.where(operation == code, magnitude, 0) for name, code in _CODES.items()})
    mapped = jnp.take_along_axis(by_table[None], warped.astype(jnp.int32), axis=1, mode="clip")
    smooths, greys = operation == _CODES["sharpness"], operation == _CODES["color"]
    blended = _towards(jnp.where(smooths, _smooth(image), _grey(image)), image, 1 + magnitude)
    return jnp.where(smooths | greys, blended, mapped)


def _warp(image: jax.Array, set_to: dict[str, jax.Array]) -> jax.Array:
    """Rotation about the centre, shear from the upper left corner, or translation."""
    height, width, _ = image.shape
    turn = jnp.deg2rad(set_to["rotate"])
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
    down, right = y - height / 2, x - width / 2
    rows = jnp.cos(turn) * down + jnp.sin(turn) * right + height / 2 + set_to["shear_y"] * x - set_to["translate_y"]
    columns = jnp.cos(turn) * right - jnp.sin(turn) * down + width / 2 + set_to["shear_x"] * y - set_to["translate_x"]
    return sample_nearest(image, rows, columns)


def _table(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Lookup table of levels, uint8 [256, C]; the identity, where the operation changes no levels."""
    levels = jnp.arange(256)[:, None]
    mean = jnp.floor(_grey(image).astype(jnp.int32).sum() / (image.shape[0] * image.shape[1]) + 0.5)
    counts = _counts(image)
    coarse = 2 ** (8 - jnp.clip(magnitude, 1, 8).astype(jnp.int32))
    tables = {
        "brightness": _towards(jnp.zeros_like(levels), levels, 1 + magnitude),
        "contrast": _towards(mean, levels, 1 + magnitude),
        "posterize": levels - levels % coarse,
        "solarize": jnp.where(levels < magnitude, levels, 255 - levels),
        "autocontrast": _autocontrast(counts),
        "equalize": _equalize(counts),
    }
    chosen = jnp.stack([operation == _CODES[name] for name in tables])
    chosen = jnp.append(chosen, ~chosen.any())
    rows = [jnp.broadcast_to(table, counts.shape).reshape(-1) for table in (*tables.values(), levels)]
    # A product, exact as all are whole numbers up to 255: XLA would compute a selection anew for each pixel it is read.
    table = chosen.astype(jnp.float32) @ jnp.stack(rows).astype(jnp.float32)
    return table.reshape(counts.shape).astype(jnp.uint8)


def _counts(image: jax.Array) -> jax.Array:
    """Histogram of the levels: int32 [256, C]."""
    channels = image.shape[-1]
    places = image.astype(jnp.int32) * channels + jnp.arange(channels)
    return jnp.zeros(256 * channels, jnp.int32).at[places.reshape(-1)].add(1, mode="clip").reshape(256, channels)


def _autocontrast(counts: jax.Array) -> jax.Array:
    """Stretches each channel from its darkest to its brightest level over 0..255."""
    low, high = (counts > 0).argmax(axis=0), 255 - (counts[::-1] > 0).argmax(axis=0)
    levels = jnp.arange(256)[:, None]
    scale = 255 / jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip((levels - low) * scale + 1e-4, 0, 255).astype(jnp.int32), levels)


def _equalize(counts: jax.Array) -> jax.Array:
    """Spreads each channel's levels so that all are about as frequent, by Pillow's integers."""
    levels = jnp.arange(256)[:, None]
    brightest = 255 - (counts[::-1] > 0).argmax(axis=0, keepdims=True)
    step = (counts.sum(axis=0) - jnp.take_along_axis(counts, brightest, axis=0)) // 255
    below = jnp.cumsum(counts, axis=0) - counts
    spread = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, spread, levels)


def _grey(image: jax.Array) -> jax.Array:
    """Luminance [H, W, 1], by Pillow's integers."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).astype(jnp.uint8)


def _smooth(image: jax.Array) -> jax.Array:
    """Pillow's SMOOTH: 3x3, the middle weighs 5 of 13; the outermost pixels stay."""
    height, width, _ = image.shape
    levels = image.astype(jnp.int32)
    padded = jnp.pad(levels, ((1, 1), (1, 1), (0, 0)))
    columns = padded[:-2] + padded[1:-1] + padded[2:]
    total = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * levels
    y, x = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inner, (2 * total + 13) // 26, levels).astype(jnp.uint8)


def _towards(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's blend: other + factor (image - other), cut to 0..255 and to whole levels; at 1 the image."""
    other = other.astype(jnp.float32)
    return jnp.clip(other + factor * (image.astype(jnp.float32) - other), 0, 255).astype(jnp.uint8)
