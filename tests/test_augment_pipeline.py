"""The pieces together: on one device and four, in a scan; what a config may not say; what build makes of it."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxcnn.augment import check_augment, make_augment, make_normalise
from jaxcnn.config import AugmentConfig, Config, DataConfig, changed_fields, validate
from jaxcnn.errors import UserError
from jaxcnn.training.build import build
from tests.photos import photo
from tests.runs import small_config

STATISTICS: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
SIDE = 16
EVERYTHING = AugmentConfig(
    flip=True, crop_padding=2, random_resized_crop=True, rotation=20, shift=0.1, shear=10, zoom=0.2, fill="reflect",
    randaugment_ops=1, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, grayscale=0.2, blur=0.8, noise=0.05,
    cutout=3, random_erasing=0.5, mixup=0.4, cutmix=1.0,
)  # fmt: skip
MUCH = AugmentConfig(flip=True, crop_padding=2, rotation=20, contrast=0.3, cutout=3, mixup=0.4)
# Which constants each piece folds into an example's key: a run's draws depend on them, so they never change.
CONSTANTS: list[tuple[dict[str, Any], set[int]]] = [
    ({"flip": True}, {1}),
    ({"crop_padding": 1}, {2}),
    ({"cutout": 3}, {3}),
    ({"random_resized_crop": True}, {4}),
    *(({name: 0.2}, {5, 6, 7, 8}) for name in ("rotation", "shift", "shear", "zoom")),
    ({"randaugment_ops": 1}, {9}),
    ({"trivial_augment": True}, {10}),
    ({"brightness": 0.4}, {11}),
    ({"contrast": 0.4}, {12}),
    ({"saturation": 0.4}, {13}),
    ({"hue": 0.2}, {14}),
    ({"grayscale": 0.5}, {15}),
    ({"blur": 1.0}, {16}),
    ({"noise": 0.1}, {17}),
    ({"random_erasing": 0.5}, {18}),
    ({"mixup": 0.4}, {19}),
    ({"cutmix": 1.0}, {19}),
]


def batch(size: int) -> tuple[jax.Array, np.ndarray, jax.Array]:
    images = np.stack([photo(name, SIDE, SIDE) for name in ("china.jpg", "flower.jpg")] * (size // 2))
    return jax.random.split(jax.random.key(0), size), images, jnp.arange(size) % 10


def make(augment: AugmentConfig, **options: Any) -> Any:
    return make_augment(augment, **STATISTICS, image_shape=(SIDE, SIDE, 3), num_classes=10, **options)


def primitives(function: Any, *arguments: Any) -> list[str]:
    return re.findall(r"= (\w+)", str(jax.make_jaxpr(function)(*arguments)))


def test_all_off_is_normalise_and_no_more() -> None:
    keys, images, labels = batch(4)
    off = primitives(lambda images: make(AugmentConfig())(keys, images, labels)[0], images)
    assert off == primitives(jax.vmap(make_normalise(**STATISTICS)), images)
    cropped = AugmentConfig(random_resized_crop=True)
    assert primitives(lambda images: make(cropped, cropped_at_decode=True)(keys, images, labels)[0], images) == off
    assert len(primitives(lambda images: make(cropped)(keys, images, labels)[0], images)) > len(off)


@pytest.mark.parametrize("config", [MUCH, pytest.param(EVERYTHING, marks=pytest.mark.slow)], ids=["much", "everything"])
def test_one_device_and_four_and_a_scan_augment_alike(config: AugmentConfig) -> None:
    """And a program compiles once, and never calls the host."""
    keys, images, labels = batch(16)
    augment = make(config)
    mesh, spec = Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data")
    on_four = jax.jit(jax.shard_map(augment, mesh=mesh, in_specs=spec, out_specs=spec))

    def in_scan(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(lambda _, part: (None, augment(*part)), None, jax.tree.map(split, arrays))[1]

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(4, -1, *x.shape[1:])

    in_a_scan = jax.jit(in_scan)
    wanted = [np.asarray(x).reshape(16, *x.shape[2:]) for x in in_a_scan(keys, jnp.asarray(images), labels)]
    assert wanted[0].dtype == np.float32
    assert wanted[1].shape == (16, 10)
    for one, other in zip(wanted, on_four(keys, images, labels), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
        assert np.isfinite(one).all()
    assert (wanted[0][:2] != wanted[0][2:4]).any(axis=(1, 2, 3)).all()  # the same two images, other keys
    in_a_scan(keys[::-1], jnp.asarray(images), labels)
    assert in_a_scan._cache_size() == 1  # type: ignore[attr-defined]
    assert not any("callback" in name for name in primitives(augment, keys, images, labels))


def test_each_piece_folds_constants_of_its_own() -> None:
    keys, images, labels = batch(2)
    for piece, constants in CONSTANTS:
        text = str(jax.make_jaxpr(make(AugmentConfig(**piece)))(keys, images, labels))
        assert set(map(int, re.findall(r"random_fold_in\S* \S+ (\d+)", text))) == constants, piece


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"randaugment_ops": 2, "trivial_augment": True}, "are two policies"),
        ({"randaugment_magnitude": 5}, "read with augment.randaugment_ops only"),
        ({"randaugment_ops": 2, "randaugment_magnitude": 31}, "out of range; it must be >= 0 and <= 30"),
        ({"fill": "mirror"}, "constant, nearest, reflect, wrap"),
        ({"fill": "wrap"}, "read with augment.rotation, shift, shear or zoom only"),
        ({"crop_area": (0.5, 1.0)}, "read with augment.random_resized_crop only"),
        ({"crop_area": (0.5,), "random_resized_crop": True}, "must be two numbers, the smaller first"),
        ({"crop_aspect": (2.0, 1.0), "random_resized_crop": True}, "must be two numbers, the smaller first"),
        ({"crop_area": (0.0, 1.0), "random_resized_crop": True}, "must be > 0 and <= 1"),
        ({"hue": 0.6}, "<= 0.5"),
        ({"zoom": 1.0}, "<= 0.95"),
        ({"mixup": -0.1}, ">= 0"),
        ({"grayscale": 1.5}, "<= 1"),
    ],
)
def test_what_a_config_may_not_say(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        validate(Config(augment=AugmentConfig(**changes)))


@pytest.mark.parametrize(
    ("augment", "shape", "says"),
    [
        (AugmentConfig(hue=0.1), (8, 8, 1), "augment.hue=0.1 is for images of 3 channels, not 1"),
        (AugmentConfig(grayscale=0.1), (8, 8, 4), "augment.grayscale=0.1 is for images of 3 channels, not 4"),
        (AugmentConfig(randaugment_ops=1), (8, 8, 2), "augment.randaugment_ops is for images of 1 or 3 channels"),
        (AugmentConfig(trivial_augment=True), (2, 8, 3), "too small for the policies"),
        (
            AugmentConfig(blur=3),
            (8, 9, 3),
            "augment.blur=3: images of 8 x 9 have too few pixels to reflect; at most 2.3",
        ),
    ],
)
def test_images_that_do_not_suit_are_refused(augment: AugmentConfig, shape: tuple[int, int, int], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        check_augment(augment, shape)


def test_mixing_needs_classes_and_even_parts() -> None:
    with pytest.raises(UserError, match="num_classes"):
        make_augment(AugmentConfig(mixup=0.2), **STATISTICS, image_shape=(8, 8, 3))
    with pytest.raises(UserError, match="even part of the batch, not 3 examples"):
        build(small_config(augment__cutmix=1.0, batch_size=6, num_devices=2))


def test_a_run_goes_on_where_its_crops_are_done() -> None:
    """On the device they have other draws than at decode; without them where the data lives changes nothing."""
    for crops, changed in ((True, ["data.resident (None -> True)"]), (False, [])):
        augment = AugmentConfig(random_resized_crop=crops)
        saved, now = (Config(augment=augment, data=DataConfig(resident=resident)) for resident in (None, True))
        assert changed_fields(saved, now) == changed
        now.data.resident = False
        assert changed_fields(saved, now) == []


def test_a_run_is_built_with_it() -> None:
    """Labels become distributions; a resident set is cropped on the device, a streamed one at decode."""
    changes = {"augment__mixup": 0.2, "augment__random_resized_crop": True, "augment__crop_area": (0.3, 1.0)}
    lengths = {}
    for resident in (True, False):
        run, feed = build(small_config(data__resident=resident, num_devices=2, **changes))
        feed.close()
        assert run.resident == resident
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 24))
        shapes = jax.ShapeDtypeStruct((24, 8, 8, 1), "uint8"), jax.ShapeDtypeStruct((24,), "int32")
        batch = dict(zip(("image", "label"), shapes, strict=True))
        prepare = functools.partial(run.learning.prepare, None)
        images, labels = jax.eval_shape(prepare, keys, batch)
        assert (images.shape, images.dtype) == ((24, 8, 8, 1), jnp.float32)
        assert (labels.shape, labels.dtype) == ((24, 10), jnp.float32)
        lengths[resident] = len(primitives(prepare, keys, batch))
    assert lengths[True] > lengths[False]
    assert not build(small_config(**changes))[0].resident  # unless asked: at decode there are more pixels to crop from
