"""Augmentation on the device: pure functions of one example and its key, vmapped over the batch; ends in normalise.
And the views of an image over which a prediction may be averaged.

Each folds a constant of its own into the example's key, so turning one on leaves the draws of the others as they are,
and an example looks the same in whatever batch and on whatever device it lies.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import AugmentConfig
from jaxcnn.errors import UserError, nearest

Normalise = Callable[[jax.Array], jax.Array]
Augment = Callable[..., tuple[jax.Array, jax.Array]]  # (keys, images, labels, mirrored) -> (images, labels)
Predict = Callable[[jax.Array], jax.Array]  # images -> logits

VIEWS = ("none", "flip", "flip_translate")

# What each folds into an example's key. Never renumbered: a run's draws depend on them.
_FLIP = 1
_CROP = 2
_CUTOUT = 3


def make_normalise(mean: Sequence[float], std: Sequence[float]) -> Normalise:
    """uint8 [..., C] to float32 (x / 255 - mean) / std, with mean and std a channel in 0..1."""
    mean_array, std_array = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def normalise(images: jax.Array) -> jax.Array:
        channels = images.shape[-1]
        if mean_array.shape != (channels,) or std_array.shape != (channels,):
            raise UserError(
                f"data.mean has {mean_array.size} values and data.std {std_array.size}, but images have {channels} "
                "channels; give one value a channel, or neither to have them measured"
            )
        return (images.astype(jnp.float32) / 255 - mean_array) / std_array

    return normalise


def make_augment(
    augment: AugmentConfig, *, mean: Sequence[float], std: Sequence[float], image_shape: tuple[int, int, int]
) -> Augment:
    """(keys [B], images uint8 [B, H, W, C], labels) to (images float32, labels); with all off, normalise and no more.

    With `alternating_flip` a fourth argument, bool [B], says which to mirror: `alternating_mirror`'s.
    `random_resized_crop` is not here: it needs the image as stored, so it is done where that is decoded.
    """
    check_augment(augment, image_shape)
    normalise = make_normalise(mean, std)

    def one(key: jax.Array, image: jax.Array, mirrored: jax.Array | None) -> jax.Array:
        if augment.alternating_flip:
            image = jnp.where(jnp.asarray(mirrored), image[:, ::-1], image)
        if augment.flip:
            image = flip(jax.random.fold_in(key, _FLIP), image)
        if augment.crop_padding:
            image = pad_and_crop(jax.random.fold_in(key, _CROP), image, padding=augment.crop_padding)
        image = normalise(image)
        if augment.cutout:
            image = cutout(jax.random.fold_in(key, _CUTOUT), image, size=augment.cutout)
        return image

    def augment_batch(
        keys: jax.Array, images: jax.Array, labels: jax.Array, mirrored: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        if augment.alternating_flip and mirrored is None:
            raise UserError(
                "augment.alternating_flip needs batches that say which examples they hold, and in which epoch"
            )
        return jax.vmap(one)(keys, images, mirrored), labels

    return augment_batch


def check_augment(augment: AugmentConfig, image_shape: tuple[int, int, int]) -> None:
    """UserError where the images are too small for what is asked."""
    side = min(image_shape[:2])
    size = f"{image_shape[0]} x {image_shape[1]}"
    if augment.crop_padding >= side:
        raise UserError(
            f"augment.crop_padding={augment.crop_padding}: images of {size} have too few pixels to reflect; "
            f"at most {side - 1}"
        )
    if augment.cutout > side:
        raise UserError(f"augment.cutout={augment.cutout}: larger than the images of {size}; at most {side}")


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors [H, W, C] left-right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def alternating_mirror(key: jax.Array, index: jax.Array, epoch: jax.Array) -> jax.Array:
    """Which examples to mirror: each by a coin of its own in the first epoch, then every other time. bool [B]

    In any two epochs on end both sides of every image are seen (Jordan 2024, arXiv:2404.00498).

    Args:
      key: constant over the run.
      index: int32 [B], which example of the train split each is.
      epoch: int32 [B], counted from 0.
    """
    first = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i)))(index)
    return first ^ (epoch % 2 == 1)


def pad_and_crop(key: jax.Array, image: jax.Array, *, padding: int) -> jax.Array:
    """Shifts [H, W, C] by up to `padding` pixels each way; what comes into view is the reflected image."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def cutout(key: jax.Array, image: jax.Array, *, size: int) -> jax.Array:
    """Sets a random square to 0, the mean of normalised images; wholly inside, unlike DeVries & Taylor 2017."""
    height, width, _ = image.shape
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (), 0, height - size + 1)
    left = jax.random.randint(column_key, (), 0, width - size + 1)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return jnp.where(inside[:, :, None], 0, image)


def average_views(predict: Predict, images: jax.Array, *, views: str) -> jax.Array:
    """The logits of images [B, H, W, C], or their average over several views of each ("test-time augmentation").

    Args:
      predict: images to logits.
      views: "none": the image; "flip": and its mirror image; "flip_translate": half of that, and a quarter each of the
        same for the image shifted by one pixel along one diagonal and back, what comes into view being reflected.
    """

    def with_mirror(images: jax.Array) -> jax.Array:
        return 0.5 * predict(images) + 0.5 * predict(images[:, :, ::-1])

    match views:
        case "none":
            return predict(images)
        case "flip":
            return with_mirror(images)
        case "flip_translate":
            padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            shifted = with_mirror(padded[:, :-2, :-2]), with_mirror(padded[:, 2:, 2:])
            return 0.5 * with_mirror(images) + 0.25 * shifted[0] + 0.25 * shifted[1]
        case _:
            raise UserError(f"eval_tta is {views!r}: {nearest(views, VIEWS)}")
