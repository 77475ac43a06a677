"""Layers traced as plain operations: the same values, at any batch, and nothing in it that others cannot read."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export as jax_export

from jaxcnn.layers.blocks import layer_norm
from jaxcnn.layers.conv import conv
from jaxcnn.layers.plain import LAYER_NORM, is_plain, plain, plainly
from jaxcnn.layers.pool import max_pool
from jaxcnn.models.cbam import largest


def operations(jaxpr) -> list[str]:
    """The primitives of a jaxpr, and of those within; calls by the function's name."""
    found = []
    for equation in jaxpr.eqns:
        inner = [each for each in equation.params.values() if hasattr(each, "eqns")]
        is_call = equation.primitive.name in ("jit", "pjit")
        found.append(equation.params["name"] if is_call else equation.primitive.name)
        for each in inner:
            found += operations(getattr(each, "jaxpr", each))
    return found


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


NORM = {"params": {"scale": noise(8), "bias": noise(8)}}
KERNEL, POINT = jnp.asarray(noise(3, 3, 8, 8)), jnp.asarray(noise(1, 1, 8, 4))
CASES: dict[str, tuple[Any, str]] = {
    "convolution": (partial(conv, kernel=KERNEL, padding=1), "conv_general_dilated"),
    "pointwise convolution": (partial(conv, kernel=POINT), "conv_general_dilated"),
    "max pool": (partial(max_pool, size=3, strides=2, padding=1), "reduce_window_max"),
    "max pool, rounded up": (partial(max_pool, size=3, strides=2, ceil_mode=True), "reduce_window_max"),
    "largest": (partial(largest, axis=3), "reduce_max"),
    "layer norm": (lambda x: layer_norm().apply(NORM, x), LAYER_NORM),
    "fast layer norm": (lambda x: nn.LayerNorm().apply(NORM, x), LAYER_NORM),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_is_one_operation_of_the_same_values_for_any_batch(case):
    function, operation = CASES[case]
    x = noise(2, 9, 9, 8)
    np.testing.assert_allclose(plain(function)(x), function(x), rtol=1e-5, atol=1e-5)
    (batch,) = jax_export.symbolic_shape("batch")
    found = operations(jax.make_jaxpr(plain(function))(jax.ShapeDtypeStruct((batch, 9, 9, 8), jnp.float32)).jaxpr)
    assert operation in found
    assert not {"platform_index", "cond", "select_n", "argmax", "gather", "concatenate"} & set(found)


def test_ends_with_its_block_even_in_an_error():
    assert not is_plain()
    with plainly():
        assert is_plain()
    with pytest.raises(ZeroDivisionError), plainly():
        1 / 0  # noqa: B018
    assert not is_plain()
    assert "select_n" in operations(jax.make_jaxpr(partial(max_pool, size=2))(noise(1, 4, 4, 1)).jaxpr)
