"""RandAugment's and TrivialAugment's operations against Pillow, their magnitudes, and how often each is drawn."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxcnn.augment import policies, randaugment, trivial_augment
from jaxcnn.augment.policies import OPERATIONS, SIGNED
from tests.photos import photo

MAGNITUDES: dict[str, tuple[float, ...]] = {
    "identity": (0.0,),
    "shear_x": (-0.31, 0.13, 0.99),
    "shear_y": (-0.99, 0.21),
    "translate_x": (-7.0, 13.0),
    "translate_y": (-32.0, 4.0),
    "rotate": (-30.0, 9.0, 135.0),
    "brightness": (-0.9, -0.27, 0.5, 0.99),
    "color": (-0.99, -0.27, 0.9),
    "contrast": (-0.99, -0.27, 0.9),
    "sharpness": (-0.99, -0.27, 0.9),
    "posterize": (2.0, 4.0, 7.0, 8.0),
    "solarize": (0.0, 110.5, 255.0, 256.0),
    "autocontrast": (0.0,),
    "equalize": (0.0,),
}
CASES = [(name, magnitude) for name, magnitudes in MAGNITUDES.items() for magnitude in magnitudes]


def by_pillow(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """As torchvision's _apply_op does it on Pillow's images."""

    def warp(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    match name:
        case "shear_x":
            return warp(1, magnitude, 0, 0, 1, 0)
        case "shear_y":
            return warp(1, 0, 0, magnitude, 1, 0)
        case "translate_x":
            return warp(1, 0, -magnitude, 0, 1, 0)
        case "translate_y":
            return warp(1, 0, 0, 0, 1, -magnitude)
        case "rotate":
            return image.rotate(magnitude)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(1 + magnitude)
        case "color":
            return ImageEnhance.Color(image).enhance(1 + magnitude)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(1 + magnitude)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(1 + magnitude)
        case "posterize":
            return ImageOps.posterize(image, int(magnitude))
        case "solarize":
            return ImageOps.solarize(image, magnitude)  # type: ignore[arg-type]
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
    return image


FEW_LEVELS = 3  # of these images: one level on the edge between two is many pixels


def images() -> list[np.ndarray]:
    """Photographs, one dull, one of few levels, and one of a single level."""
    china, flower = photo("china.jpg", 48, 70), photo("flower.jpg", 48, 70)
    return [china, flower, china // 7 + 90, flower // 64 * 60, np.full_like(china, 77)]


@pytest.fixture(scope="module")
def results() -> dict[int, np.ndarray]:
    """By number of channels: [images, cases, H, W, C]."""
    codes = jnp.array([OPERATIONS.index(name) for name, _ in CASES])
    magnitudes = jnp.array([magnitude for _, magnitude in CASES])
    apply = jax.jit(jax.vmap(jax.vmap(policies.apply_operation, (None, 0, 0)), (0, None, None)))
    stack = np.stack(images())
    return {channels: np.asarray(apply(stack[..., :channels], codes, magnitudes)) for channels in (3, 1)}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name: str, channels: int, results: dict[int, np.ndarray]) -> None:
    for number, image in enumerate(images()):
        source = Image.fromarray(image if channels == 3 else image[..., 0])
        for case, (other, magnitude) in enumerate(CASES):
            if other != name:
                continue
            theirs = np.asarray(by_pillow(source, name, magnitude), int).reshape(*image.shape[:2], channels)
            ours = results[channels][number, case]
            assert ours.dtype == np.uint8
            different = np.abs(ours.astype(int) - theirs)
            if name in ("shear_x", "shear_y", "rotate"):  # Pillow's coordinates are fixed-point
                assert (different == 0).all(axis=-1).mean() > 0.98, (number, magnitude)
            else:
                blends = name in ("brightness", "color", "contrast", "sharpness", "autocontrast")
                assert different.max() <= (1 if blends else 0), (number, magnitude)
                assert (different > 0).mean() < 0.01 or number == FEW_LEVELS, (number, magnitude)


def test_solarizing_from_0_on_is_inverting(results: dict[int, np.ndarray]) -> None:
    theirs = np.asarray(ImageOps.invert(Image.fromarray(images()[0])))
    np.testing.assert_array_equal(results[3][0, CASES.index(("solarize", 0.0))], theirs)


def test_magnitudes_are_torchvisions() -> None:
    """RandAugment's default, 9 of 0..30, and the ends; numbers from its _augmentation_space, for 32 x 64 images."""
    table = policies.randaugment_magnitudes((32, 64, 3))
    wide = policies.trivial_augment_magnitudes()
    assert table.shape == wide.shape == (31, 14)
    default = dict(zip(OPERATIONS, table[9], strict=True))
    wanted = {
        "identity": 0, "shear_x": 0.09, "shear_y": 0.09, "translate_x": 8, "translate_y": 4, "rotate": 9,
        "brightness": 0.27, "color": 0.27, "contrast": 0.27, "sharpness": 0.27, "posterize": 7, "solarize": 178.5,
        "autocontrast": 0, "equalize": 0,
    }  # fmt: skip
    assert default == pytest.approx(wanted)
    assert dict(zip(OPERATIONS, table[30], strict=True)) == pytest.approx(
        wanted | {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 29, "translate_y": 14, "rotate": 30, "posterize": 4,
                  "solarize": 0} | dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.9)
    )  # fmt: skip
    assert dict(zip(OPERATIONS, wide[30], strict=True)) == pytest.approx(
        wanted | {"shear_x": 0.99, "shear_y": 0.99, "translate_x": 32, "translate_y": 32, "rotate": 135, "posterize": 2,
                  "solarize": 0} | dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99)
    )  # fmt: skip
    assert wide[15, OPERATIONS.index("translate_x")] == 16
    assert [name for name, signed in zip(OPERATIONS, SIGNED, strict=True) if not signed] == [
        "identity", "posterize", "solarize", "autocontrast", "equalize",
    ]  # fmt: skip


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation appends its number and magnitude to [operations, 2], instead of changing an image."""

    def record(done: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
        return jnp.concatenate([done[1:], jnp.stack([operation.astype(jnp.float32), magnitude])[None]])

    monkeypatch.setattr(policies, "apply_operation", record)


def draws(policy: Any, num_operations: int, count: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Operations and magnitudes [count, operations] of as many examples."""
    keys, nothing = jax.random.split(jax.random.key(0), count), jnp.zeros((num_operations, 2))
    result = np.asarray(jax.jit(jax.vmap(lambda key: policy(key, nothing)))(keys))
    return result[..., 0].astype(int), result[..., 1]


def assert_uniform(values: np.ndarray, num: int) -> None:
    counts = np.bincount(values, minlength=num)
    assert len(counts) == num
    assert np.abs(counts - len(values) / num).max() < 5 * np.sqrt(len(values) / num)


@pytest.mark.usefixtures("recorded")
def test_randaugment_draws_all_alike_and_anew_each_time() -> None:
    operations, magnitudes = draws(partial(randaugment, num_operations=2, magnitude=9), 2)
    assert_uniform((14 * operations[:, 0] + operations[:, 1]), 14 * 14)
    table = policies.randaugment_magnitudes((2, 2))[9]
    np.testing.assert_array_equal(np.abs(magnitudes), table[operations])
    signed = SIGNED[operations] & (table[operations] > 0)
    assert (magnitudes[~signed] >= 0).all()
    assert abs((magnitudes[signed] < 0).mean() - 0.5) < 5 * np.sqrt(0.25 / signed.sum())


@pytest.mark.usefixtures("recorded")
def test_trivial_augment_draws_operation_magnitude_and_sign_alike() -> None:
    operations, magnitudes = (x[:, 0] for x in draws(trivial_augment, 1))
    assert_uniform(operations, 14)
    table = policies.trivial_augment_magnitudes()
    for name in ("rotate", "sharpness", "solarize"):
        code = OPERATIONS.index(name)
        found = magnitudes[operations == code]
        numbers = np.abs(np.abs(found)[:, None] - table[:, code]).argmin(axis=1)
        np.testing.assert_array_equal(np.abs(found), table[numbers, code])
        assert_uniform(numbers, 31)
        share = (found < 0).mean()
        assert share == 0 if name == "solarize" else abs(share - 15 / 31) < 5 * np.sqrt(0.25 / len(found))


def test_operations_follow_one_another(request: pytest.FixtureRequest) -> None:
    """The images are those of the recorded operations, one after the other, bit for bit; of none, the image itself."""
    image, count = photo("china.jpg", 24, 24), 64
    start = jnp.asarray(image)
    policy = partial(randaugment, num_operations=2, magnitude=9)
    keys = jax.random.split(jax.random.key(0), count)
    results = jax.jit(jax.vmap(lambda key: [policy(key, start), policy(key, start, num_operations=0)]))(keys)
    apply = jax.jit(jax.vmap(policies.apply_operation))
    magnitudes_of = policies.randaugment_magnitudes
    request.getfixturevalue("monkeypatch").setattr(
        policies, "randaugment_magnitudes", lambda _: magnitudes_of(image.shape)
    )
    request.getfixturevalue("recorded")
    operations, magnitudes = draws(policy, 2, count)
    expected = np.stack([image] * count)
    np.testing.assert_array_equal(results[1], expected)
    for number in range(2):
        expected = apply(expected, operations[:, number], magnitudes[:, number])
    np.testing.assert_array_equal(results[0], expected)
    assert (np.asarray(expected) != image).any(axis=(1, 2, 3)).mean() > 0.8
