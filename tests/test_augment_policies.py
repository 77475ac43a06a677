"""RandAugment's and TrivialAugment's operations against Pillow, their magnitudes, and how often each is drawn."""

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


SIDE = 24
EVERY = len(OPERATIONS) * 2 * policies.NUM_MAGNITUDES
KINDS = [(code, sign) for code in range(14) for sign in ((1, -1) if SIGNED[code] else (1,))]
apply_batch = jax.jit(jax.vmap(policies.apply_operation))


def outcomes(stack: np.ndarray, kinds: list[tuple[int, int]], table: np.ndarray) -> np.ndarray:
    """What each operation and sign makes of each image with each magnitude of `table` [magnitudes, 14].

    [images, kinds, magnitudes, H, W, C], computed as one batch of EVERY, of which the rest is nothing.
    """
    cases = [(image, code, sign * row[code]) for image in stack for code, sign in kinds for row in table]
    cases += [(stack[0], 0, 0.0)] * (EVERY - len(cases))
    sources, codes, magnitudes = (np.stack(x) for x in zip(*cases, strict=True))
    result = np.asarray(apply_batch(sources, codes.astype(np.int32), magnitudes.astype(np.float32)))
    return result[: len(stack) * len(kinds) * len(table)].reshape(len(stack), len(kinds), len(table), *stack.shape[1:])


def test_randaugment_draws_each_operation_and_sign_alike() -> None:
    image = photo("china.jpg", SIDE, SIDE)
    table = policies.randaugment_magnitudes(image.shape)[9:10]
    once = outcomes(image[None], KINDS, table)[0, :, 0]
    flat = once.reshape(len(KINDS), -1)
    assert len(np.unique(flat, axis=0)) == len(KINDS)

    draw = jax.jit(jax.vmap(lambda key: randaugment(key, image, num_operations=1, magnitude=9)))
    results = np.asarray(draw(jax.random.split(jax.random.key(0), 2000))).reshape(2000, -1)
    number_of = {outcome.tobytes(): number for number, outcome in enumerate(flat)}
    found = np.array([number_of[result.tobytes()] for result in results])  # each is one of them
    for number, (code, _) in enumerate(KINDS):
        share = 1 / 28 if SIGNED[code] else 1 / 14
        assert abs((found == number).mean() - share) < 5 * np.sqrt(share / 2000), OPERATIONS[code]


def test_two_operations_are_one_after_the_other() -> None:
    image = photo("china.jpg", SIDE, SIDE)
    table = policies.randaugment_magnitudes(image.shape)[9:10]
    once = outcomes(image[None], KINDS, table)[0, :, 0]
    twice = outcomes(once, KINDS, table)
    draw = jax.jit(
        jax.vmap(lambda key: [randaugment(key, image, num_operations=number, magnitude=9) for number in (0, 2)])
    )
    none, results = map(np.asarray, draw(jax.random.split(jax.random.key(5), 200)))
    assert {result.tobytes() for result in results} <= {each.tobytes() for each in twice.reshape(-1, *image.shape)}
    assert np.mean([result.tobytes() not in {each.tobytes() for each in once} for result in results]) > 0.6
    np.testing.assert_array_equal(none, np.broadcast_to(image, none.shape))


def test_trivial_augment_draws_every_magnitude() -> None:
    image = photo("flower.jpg", SIDE, SIDE)
    possible = outcomes(image[None], KINDS, policies.trivial_augment_magnitudes())
    everything = {each.tobytes() for each in possible.reshape(-1, *image.shape)}
    results = np.asarray(
        jax.jit(jax.vmap(lambda key: trivial_augment(key, image)))(jax.random.split(jax.random.key(0), 3000))
    )
    distinct = {result.tobytes() for result in results}
    assert distinct <= everything
    assert len(distinct) > 0.9 * len(everything)
