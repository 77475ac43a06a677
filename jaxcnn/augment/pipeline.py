"""Augmentation of a training batch: the order of its operations, and their random keys; it ends in normalise.

Each piece folds a constant of its own into the example's key, so turning one on leaves the draws of the others as they
are, and an example looks the same in whatever batch and on whatever device it lies.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxcnn.augment import boxes, colour, geometry, mixing, policies
from jaxcnn.augment.views import make_normalise
from jaxcnn.config import AugmentConfig
from jaxcnn.errors import UserError

Augment = Callable[..., tuple[jax.Array, jax.Array]]  # (keys, images, labels, mirrored) -> (images, labels)

# What each folds into an example's key. Never renumbered: a run's draws depend on them.
_FLIP = 1
_CROP = 2
_CUTOUT = 3
_RESIZED_CROP = 4
_ROTATION = 5
_SHIFT = 6
_SHEAR = 7
_ZOOM = 8
_RANDAUGMENT = 9
_TRIVIAL_AUGMENT = 10
_BRIGHTNESS = 11
_CONTRAST = 12
_SATURATION = 13
_HUE = 14
_GRAYSCALE = 15
_BLUR = 16
_NOISE = 17
_RANDOM_ERASING = 18
_MIX = 19


def make_augment(
    augment: AugmentConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    cropped_at_decode: bool = False,
) -> Augment:
    """(keys [B], images uint8 [B, H, W, C], labels) to (images float32, labels); with all off, normalise and no more.

    Args:
      augment: what is on. With `alternating_flip` the function takes a fourth argument, bool [B], which says which to
        mirror: `alternating_mirror`'s. With `mixup` or `cutmix` labels become float32 [B, num_classes].
      mean: a channel, in 0..1.
      std: the same.
      image_shape: of the images that it will be given.
      num_classes: only mixing needs it.
      cropped_at_decode: `random_resized_crop` was done there, from the image as stored.
    """
    check_augment(augment, image_shape)
    mixes = augment.mixup > 0 or augment.cutmix > 0
    if mixes and num_classes is None:
        raise UserError("augment.mixup and augment.cutmix mix labels too: make_augment needs num_classes")
    normalise = make_normalise(mean, std)
    crops_here = augment.random_resized_crop and not cropped_at_decode

    def augment_image(key: jax.Array, image: jax.Array, mirrored: jax.Array | None) -> jax.Array:
        image = _move(key, image, mirrored, augment, crops=crops_here)
        image = _apply_policy(key, image, augment)
        return _erase(key, normalise(_change_colours(key, image, augment)), augment)

    def augment_batch(
        keys: jax.Array, images: jax.Array, labels: jax.Array, mirrored: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        _check_mirrored(augment, mirrored)
        images = jax.vmap(augment_image)(keys, images, mirrored)
        if not mixes:
            return images, labels
        keys = jax.vmap(partial(jax.random.fold_in, data=_MIX))(keys)
        return mixing.mix(
            keys, images, labels, mixup=augment.mixup, cutmix=augment.cutmix, num_classes=num_classes or 0
        )

    return augment_batch


def make_augment_masks(
    augment: AugmentConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_shape: tuple[int, int, int],
    void: int,
) -> Augment:
    """(keys [B], images uint8 [B, H, W, C], classes of pixels uint8 [B, H, W], mirrored) to (images float32, classes).

    Classes move as their image does, and each pixel keeps one that was there; `void` is what comes in from outside.
    Arguments as for `make_augment`; nothing is mixed, and policies, which would move images alone, are not applied.
    """
    check_augment(augment, image_shape)
    normalise = make_normalise(mean, std)
    nearest = partial(geometry.sample_labels, void=void)

    def augment_both(
        key: jax.Array, image: jax.Array, classes: jax.Array, mirrored: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        crops = augment.random_resized_crop
        image = _move(key, image, mirrored, augment, crops=crops)
        classes = _move(key, classes[..., None], mirrored, augment, crops=crops, read=nearest)[..., 0]
        return _erase(key, normalise(_change_colours(key, image, augment)), augment), classes

    def augment_batch(
        keys: jax.Array, images: jax.Array, classes: jax.Array, mirrored: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        _check_mirrored(augment, mirrored)
        return jax.vmap(augment_both)(keys, images, classes, mirrored)

    return augment_batch


def _check_mirrored(augment: AugmentConfig, mirrored: jax.Array | None) -> None:
    if augment.alternating_flip and mirrored is None:
        raise UserError("augment.alternating_flip needs batches that say which examples they hold, and in which epoch")


def _move(
    key: jax.Array,
    image: jax.Array,
    mirrored: jax.Array | None,
    augment: AugmentConfig,
    *,
    crops: bool,
    read: Callable[..., jax.Array] = geometry.sample,
) -> jax.Array:
    """Geometry alone: the same of anything [H, W, C] of an example, by its key; `read` reads between pixels."""
    if augment.alternating_flip:
        image = jnp.where(jnp.asarray(mirrored), image[:, ::-1], image)
    if augment.flip:
        image = geometry.flip(jax.random.fold_in(key, _FLIP), image)
    if augment.crop_padding:
        image = geometry.pad_and_crop(jax.random.fold_in(key, _CROP), image, padding=augment.crop_padding)
    if crops:
        crop_key = jax.random.fold_in(key, _RESIZED_CROP)
        image = boxes.random_resized_crop(
            crop_key, image, area=augment.crop_area, aspect=augment.crop_aspect, read=read
        )
    return _apply_affine(key, image, augment, read)


def _erase(key: jax.Array, image: jax.Array, augment: AugmentConfig) -> jax.Array:
    """Parts of a normalised image set to the mean."""
    if augment.cutout:
        image = boxes.cutout(jax.random.fold_in(key, _CUTOUT), image, size=augment.cutout)
    if augment.random_erasing:
        erasing_key = jax.random.fold_in(key, _RANDOM_ERASING)
        image = boxes.random_erasing(erasing_key, image, probability=augment.random_erasing)
    return image


def _apply_affine(
    key: jax.Array, image: jax.Array, augment: AugmentConfig, read: Callable[..., jax.Array]
) -> jax.Array:
    """Applies rotation, shift, shear and zoom as one affine map; where all are off, the image."""
    if not (augment.rotation or augment.shift or augment.shear or augment.zoom):
        return image

    def draw(constant: int, limit: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, constant), shape, minval=-limit, maxval=limit)

    return geometry.affine(
        image,
        rotation=draw(_ROTATION, augment.rotation),
        shift=draw(_SHIFT, augment.shift, (2,)),
        shear=draw(_SHEAR, augment.shear),
        zoom=1 + draw(_ZOOM, augment.zoom),
        fill=augment.fill,
        read=read,
    )


def _apply_policy(key: jax.Array, image: jax.Array, augment: AugmentConfig) -> jax.Array:
    """Applies RandAugment or TrivialAugment, on levels rounded to uint8."""
    if not (augment.randaugment_ops or augment.trivial_augment):
        return image
    if image.dtype != jnp.uint8:
        image = jnp.rint(image).astype(jnp.uint8)
    if augment.trivial_augment:
        return policies.trivial_augment(jax.random.fold_in(key, _TRIVIAL_AUGMENT), image)
    return policies.randaugment(
        jax.random.fold_in(key, _RANDAUGMENT),
        image,
        num_operations=augment.randaugment_ops,
        magnitude=augment.randaugment_magnitude,
    )


def _change_colours(key: jax.Array, image: jax.Array, augment: AugmentConfig) -> jax.Array:
    """Changes light, colour, blur and noise of float32 levels 0..255; the image unchanged where all are off."""
    for constant, strength, adjust in (
        (_BRIGHTNESS, augment.brightness, colour.adjust_brightness),
        (_CONTRAST, augment.contrast, colour.adjust_contrast),
        (_SATURATION, augment.saturation, colour.adjust_saturation),
    ):
        if strength:
            factor = colour.draw_factor(jax.random.fold_in(key, constant), strength)
            image = adjust(image.astype(jnp.float32), factor)
    if augment.hue:
        turn = jax.random.uniform(jax.random.fold_in(key, _HUE), minval=-augment.hue, maxval=augment.hue)
        image = colour.adjust_hue(image.astype(jnp.float32), turn)
    if augment.grayscale:
        grey_key = jax.random.fold_in(key, _GRAYSCALE)
        image = colour.random_grayscale(grey_key, image.astype(jnp.float32), probability=augment.grayscale)
    if augment.blur:
        sigma = jax.random.uniform(jax.random.fold_in(key, _BLUR), maxval=augment.blur)
        image = colour.adjust_blur(image.astype(jnp.float32), sigma, radius=colour.blur_radius(augment.blur))
    if augment.noise:
        noise_key = jax.random.fold_in(key, _NOISE)
        image = colour.gaussian_noise(noise_key, image.astype(jnp.float32), sigma=augment.noise)
    return image


def check_augment(
    augment: AugmentConfig, image_shape: tuple[int, int, int], *, device_batch: int | None = None
) -> None:
    """Raises UserError where the images, or a device's part of the batch, do not suit the config."""
    side, channels = min(image_shape[:2]), image_shape[2]
    size = f"{image_shape[0]} x {image_shape[1]}"
    if augment.crop_padding >= side:
        raise UserError(
            f"augment.crop_padding={augment.crop_padding}: images of {size} have too few pixels to reflect; "
            f"at most {side - 1}"
        )
    if augment.cutout > side:
        raise UserError(f"augment.cutout={augment.cutout}: larger than the images of {size}; at most {side}")
    if colour.blur_radius(augment.blur) >= side:
        raise UserError(
            f"augment.blur={augment.blur:g}: images of {size} have too few pixels to reflect; "
            f"at most {(side - 1) / colour.BLUR_SIGMAS:.4g}"
        )
    for name, wanted in (
        ("saturation", augment.saturation),
        ("hue", augment.hue),
        ("grayscale", augment.grayscale),
    ):
        if wanted and channels != 3:
            raise UserError(f"augment.{name}={wanted:g} is for images of 3 channels, not {channels}; set it to 0")
    for name, wanted, off in (
        ("contrast", augment.contrast > 0, 0),
        ("randaugment_ops", augment.randaugment_ops > 0, 0),
        ("trivial_augment", augment.trivial_augment, "false"),
    ):
        if wanted and channels not in (1, 3):
            raise UserError(f"augment.{name} is for images of 1 or 3 channels, not {channels}; set it to {off}")
    if (augment.randaugment_ops or augment.trivial_augment) and side < 3:
        raise UserError(f"augment: images of {size} are too small for the policies, which smooth over 3 x 3 pixels")
    if device_batch is not None and (augment.mixup or augment.cutmix):
        mixing.check_pairs(device_batch)
