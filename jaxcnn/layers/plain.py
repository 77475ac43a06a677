"""Tracing of layers as plain operations, for who reads the trace: exports to other runtimes, analyses of a model.

Ordinarily layers are traced for speed: convolutions by what is fastest at their sizes, pooling with what its gradient
needs. Inside `plainly` each layer is one operation of XLA that holds for any batch, the symbolic one too, and on any
platform. Its values are the same up to rounding; gradients are not meant to be taken of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxcnn.layers.conv import computed_by

LAYER_NORM = "plain_layer_norm"  # the name of the call that a layer norm is: (inputs, scale, bias, epsilon)

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Has layers that are traced inside be plain operations."""
    token = _plain.set(True)
    try:
        with computed_by("xla"), nn.intercept_methods(_named_layer_norm):
            yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether what is traced now is traced `plainly`."""
    return _plain.get()


def plain(function: Callable) -> Callable:
    """`function`, which is traced `plainly` wherever it is traced."""

    @wraps(function, updated=())
    def traced(*arguments: Any, **keywords: Any) -> Any:
        with plainly():
            return function(*arguments, **keywords)

    return traced


def _named_layer_norm(next_method: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
    """A layer norm over the last axis as a call of its own, which a reader knows by its name."""
    module = context.module
    if type(module) is not nn.LayerNorm or context.method_name != "__call__" or module.is_initializing():
        return next_method(*arguments, **keywords)
    if (module.reduction_axes, module.feature_axes, module.axis_name, len(arguments)) != (-1, -1, None, 1) or keywords:
        return next_method(*arguments, **keywords)
    (x,) = arguments
    params = module.variables.get("params", {})
    scale = params.get("scale", jnp.ones(x.shape[-1:], jnp.float32))
    bias = params.get("bias", jnp.zeros(x.shape[-1:], jnp.float32))
    y = _layer_norm(x.astype(jnp.float32), scale, bias, jnp.float32(module.epsilon))
    return y.astype(module.dtype or x.dtype)


def _normalised(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


_normalised.__name__ = LAYER_NORM
_layer_norm = jax.jit(_normalised)
