"""Our convolution and max pooling equal XLA's own, gradients too, wherever a network of the zoo may use them."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxcnn.layers import conv_cpu
from jaxcnn.layers.conv import Conv, computed_by, conv
from jaxcnn.layers.pool import adaptive_avg_pool, max_pool


@pytest.fixture(autouse=True)
def products():
    """conv_cpu.py's ways; oneDNN's have tests/test_onednn.py."""
    with computed_by("products"):
        yield


def plain(images, kernel, *, strides=1, padding="SAME", dilation=1, groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        padding if isinstance(padding, str) else [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


def draw(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def assert_same(function, images, kernel, tolerance=3e-6, **options):
    """Result and both gradients, relative to their largest entry."""
    shape = jax.eval_shape(partial(plain, **options), images, kernel)
    (dy,) = draw(shape.shape, dtype=shape.dtype)

    def result_and_gradients(each):
        result, back = jax.vjp(partial(each, **options), images, kernel)
        return (result, *back(dy))

    found, expected = (jax.jit(partial(result_and_gradients, each))() for each in (function, plain))
    for name, a, b in zip(("result", "by images", "by kernel"), found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max() + 1e-12, name


# (batch, height, width), channels in, out, kernel, options. Each way of conv.py, at its edges.
CASES: dict[str, tuple[Any, ...]] = {
    "3x3": ((5, 9, 8), 64, 64, 3, {}),
    "3x3 unlike channels": ((5, 9, 8), 16, 128, 3, {"padding": 1}),
    "3x3 odd sizes": ((3, 7, 5), 64, 128, 3, {}),
    "3x3 valid": ((3, 9, 8), 64, 32, 3, {"padding": "VALID"}),
    "3x3 padded by 2": ((3, 7, 7), 64, 128, 3, {"padding": 2}),
    "3x3 padded by 3": ((3, 7, 7), 64, 128, 3, {"padding": 3}),
    "3x3 of 1 pixel": ((4, 1, 1), 128, 128, 3, {"padding": 1}),
    "3x3 few channels": ((4, 9, 9), 16, 16, 3, {}),
    "3x3 of 3 channels": ((4, 32, 32), 3, 64, 3, {}),
    "3x3 stride 2": ((5, 9, 8), 16, 32, 3, {"strides": 2, "padding": 1}),
    "3x3 stride 2 same": ((5, 9, 8), 64, 128, 3, {"strides": 2}),
    "3x3 stride 2, rest unseen": ((2, 10, 10), 16, 32, 3, {"strides": 2, "padding": "VALID"}),
    "3x3 dilated": ((4, 12, 12), 16, 16, 3, {"padding": 2, "dilation": 2}),
    "3x3 dilated, stride 2": ((4, 13, 12), 16, 16, 3, {"padding": 2, "dilation": 2, "strides": 2}),
    "5x5 LeNet": ((4, 28, 28), 1, 6, 5, {"padding": 2}),
    "5x5 LeNet valid": ((4, 14, 14), 6, 16, 5, {"padding": "VALID"}),
    "5x5": ((4, 9, 9), 48, 32, 5, {}),
    "5x5 stride 2": ((4, 9, 9), 16, 32, 5, {"strides": 2, "padding": 2}),
    "7x7 stem": ((2, 32, 31), 3, 64, 7, {"strides": 2, "padding": 3}),
    "11x11 AlexNet": ((2, 63, 63), 3, 64, 11, {"strides": 4, "padding": 2}),
    "4x4 ConvNeXt stem": ((2, 32, 32), 3, 96, 4, {"strides": 4, "padding": 0}),
    "2x2": ((4, 12, 12), 3, 24, 2, {"padding": "VALID"}),
    "3x3 of 3 channels, bands that do not fit": ((2, 6, 31), 3, 24, 3, {"padding": 0}),
    "2x2 same": ((4, 12, 12), 12, 24, 2, {}),
    "1x1": ((4, 7, 6), 24, 40, 1, {}),
    "1x1 stride 2": ((4, 7, 6), 24, 40, 1, {"strides": 2}),
    "1x1 padded": ((4, 7, 6), 24, 40, 1, {"padding": 1}),
    "depthwise 3x3": ((4, 9, 8), 24, 24, 3, {"groups": 24}),
    "depthwise 3x3 stride 2": ((4, 9, 8), 24, 24, 3, {"groups": 24, "strides": 2, "padding": 1}),
    "depthwise 5x5 stride 2 same": ((4, 10, 9), 8, 8, 5, {"groups": 8, "strides": 2}),
    "depthwise 7x7": ((2, 9, 9), 16, 16, 7, {"groups": 16, "padding": 3}),
    "depthwise dilated": ((2, 9, 9), 16, 16, 3, {"groups": 16, "padding": 2, "dilation": 2}),
    "depthwise, 2 for each": ((4, 9, 8), 8, 16, 3, {"groups": 8}),
    "grouped": ((4, 9, 8), 32, 64, 3, {"groups": 4}),
    "grouped, many": ((2, 8, 8), 128, 128, 3, {"groups": 32, "padding": 1}),
    "grouped, stride 2": ((4, 9, 8), 64, 64, 3, {"groups": 16, "strides": 2, "padding": 1}),
    "grouped 1x1": ((4, 9, 8), 48, 24, 1, {"groups": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_convolution(case):
    sizes, inputs, outputs, size, options = CASES[case]
    images, kernel = draw((*sizes, inputs), (size, size, inputs // options.get("groups", 1), outputs))
    assert_same(conv, images, kernel, **options)


@pytest.mark.parametrize("batch", [6, 7])
@pytest.mark.parametrize("case", ["3x3 odd sizes", "3x3 few channels", "5x5 LeNet", "3x3 stride 2", "depthwise 3x3"])
def test_in_parts_of_the_batch(monkeypatch, case, batch):
    """Parts that divide the batch, and parts that leave a rest."""
    sizes, inputs, outputs, size, options = CASES[case]
    images, kernel = draw((batch, *sizes[1:], inputs), (size, size, inputs // options.get("groups", 1), outputs))
    calls = []

    def parts(batch, floats):
        calls.append(batch)
        return 3, batch // 3

    monkeypatch.setattr(conv_cpu, "_parts", parts)
    assert_same(conv, images, kernel, **options)
    assert calls


def test_parts_fill_the_cache_and_divide_the_batch_where_they_can():
    megabyte = 2**20 // 4
    assert conv_cpu._parts(128, megabyte) == (8, 16)
    assert conv_cpu._parts(200, megabyte) == (8, 25)
    assert conv_cpu._parts(100, megabyte) == (5, 20)
    assert conv_cpu._parts(127, megabyte) == (8, 15)  # a prime: one part is smaller
    assert conv_cpu._parts(4, megabyte) == (4, 1)
    assert conv_cpu._parts(4, 100 * megabyte) == (1, 4)


@pytest.mark.parametrize("case", ["3x3", "5x5 LeNet", "3x3 stride 2", "depthwise 3x3", "grouped"])
def test_in_a_loop(case):
    """As it stands in a scanned train step."""
    sizes, inputs, outputs, size, options = CASES[case]
    images, kernel = draw((*sizes, inputs), (size, size, inputs // options.get("groups", 1), outputs))

    def looped(function):
        loss = lambda kernel: (function(images, kernel, **options) ** 2).mean()
        step = lambda kernel, _: (kernel - 0.01 * jax.grad(loss)(kernel), loss(kernel))
        return jax.jit(lambda kernel: lax.scan(step, kernel, length=3))(kernel)

    for a, b in zip(looped(conv), looped(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bits(dtype):
    """In and out; in between it may be more exact than XLA's own."""
    images, kernel = draw((4, 9, 8, 32), (3, 3, 32, 32), dtype=dtype)
    assert_same(conv, images, kernel, tolerance=0.02)


def test_other_platforms_take_xlas_own():
    images, kernel = draw((4, 8, 8, 64), (3, 3, 64, 64))
    gradient = jax.jit(jax.grad(lambda kernel, images: conv(images, kernel).sum(), argnums=(0, 1)))
    for platform in ("cuda", "tpu"):
        text = gradient.trace(kernel, images).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 2  # the sum's gradient needs no forward pass
        assert "stablehlo.while" not in text
    text = gradient.trace(kernel, images).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in text


def test_vmapped_over_kernels():
    """Several seeds at once."""
    images, kernels = draw((4, 8, 8, 32), (2, 3, 3, 32, 32))
    found = jax.vmap(partial(conv, images))(kernels)
    np.testing.assert_allclose(found, jnp.stack([plain(images, kernel) for kernel in kernels]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_module_equals_flaxs(bias):
    (images,) = draw((2, 9, 8, 6))
    options = {"use_bias": bias, "padding": 1}
    ours = Conv(12, (3, 3), strides=2, groups=3, **options)
    flaxs = nn.Conv(12, (3, 3), strides=(2, 2), feature_group_count=3, **options)
    variables = ours.init(jax.random.key(0), images)
    theirs = flaxs.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs)
    np.testing.assert_array_equal(variables["params"]["kernel"], theirs["params"]["kernel"])
    variables = jax.tree.map(lambda x: x + 0.1, variables)
    found, expected = (np.asarray(each.apply(variables, images)) for each in (ours, flaxs))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "strides", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0), (2, 1, 0), (3, 2, 0)]
)
@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3)])
def test_max_pool(size, strides, padding, shape):
    (images,) = draw(shape)
    window = {"strides": (strides, strides), "padding": [(padding, padding)] * 2}
    expected, expected_back = jax.vjp(lambda x: nn.max_pool(x, (size, size), **window), images)
    found, found_back = jax.vjp(lambda x: max_pool(x, size, strides=strides, padding=padding), images)
    np.testing.assert_array_equal(found, expected)
    (dy,) = draw(expected.shape)
    np.testing.assert_allclose(found_back(dy)[0], expected_back(dy)[0], rtol=1e-5, atol=1e-6)


def test_max_pool_rounding_up():
    (images,) = draw((2, 8, 9, 3))
    # size, strides, padding, and how far the last windows reach beyond it; of 2 and 3 a fourth would begin beyond it
    cases = [(3, 2, 0, (1, 0)), (2, 2, 0, (0, 1)), (3, 2, 1, (1, 0)), (2, 3, 0, (0, 0))]

    def both(images, size, strides, padding, beyond):
        window = {"strides": (strides, strides), "padding": [(padding, padding + more) for more in beyond]}
        expected, expected_back = jax.vjp(lambda x: nn.max_pool(x, (size, size), **window), images)
        found, back = jax.vjp(lambda x: max_pool(x, size, strides=strides, padding=padding, ceil_mode=True), images)
        dy = jnp.arange(expected.size, dtype=jnp.float32).reshape(expected.shape)
        return found, expected, back(dy)[0], expected_back(dy)[0]

    for found, expected, gradient, expected_gradient in jax.jit(lambda x: [both(x, *case) for case in cases])(images):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


def test_adaptive_average_is_the_mean_of_each_window():
    sizes = (1, 2, 4, 7, 9)
    (images,) = draw((2, 7, 5, 3))
    values = np.asarray(images)
    averages = jax.jit(lambda x: {size: adaptive_avg_pool(x, size) for size in sizes})(images)
    for size, found in averages.items():
        expected = np.empty((2, size, size, 3), np.float32)
        for i in range(size):
            for j in range(size):
                rows = slice(math.floor(i * 7 / size), math.ceil((i + 1) * 7 / size))
                columns = slice(math.floor(j * 5 / size), math.ceil((j + 1) * 5 / size))
                expected[:, i, j] = values[:, rows, columns].mean((1, 2))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(partial(adaptive_avg_pool, size=4), images.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_max_pools_gradient_goes_to_the_first_of_equals():
    images = jnp.zeros((1, 4, 4, 1)).at[0, 1, 0].set(1.0).at[0, 1, 1].set(1.0)
    gradient = jax.grad(lambda x: max_pool(x, 2).sum())(images)[0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_max_pool_passes_nan_on():
    assert jnp.isnan(max_pool(jnp.zeros((1, 2, 2, 1)).at[0, 1, 1].set(jnp.nan), 2)).all()


def test_where_the_platform_is_known_no_other_way_is_traced():
    images, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))

    def traced(platform):
        with computed_by("products", platform=platform):
            return str(jax.make_jaxpr(jax.grad(lambda kernel: conv(images, kernel).sum()))(kernel))

    assert "cond" in traced(None)
    assert "cond" not in traced("cpu") + traced("cuda")
    assert traced("cuda") != traced("cpu")
