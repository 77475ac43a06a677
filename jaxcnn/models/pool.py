"""Max pooling whose gradient is elementwise work.

XLA's own gradient of it, select-and-scatter, is a scalar loop on CPUs (3 to 10 x slower).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def max_pool(x: jax.Array, size: int, *, strides: int | None = None, padding: int = 0) -> jax.Array:
    """Maximum of each `size` x `size` window of [batch, height, width, channels]; incomplete windows are dropped.

    Args:
      x: any floating dtype.
      size: of the window, in pixels.
      strides: between windows; none: `size`.
      padding: rows and columns on every side, which are never the maximum.

    The gradient goes to the first maximum of a window, row by row, as in PyTorch.
    """
    return _max_pool(x, size, strides or size, padding)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, size: int, strides: int, padding: int) -> jax.Array:
    return _forward(x, size, strides, padding)[0]


def _forward(x: jax.Array, size: int, strides: int, padding: int) -> tuple[jax.Array, Any]:
    shape = x.shape
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=-np.inf)
    rows, columns = ((length - size) // strides + 1 for length in x.shape[1:3])
    taps = [
        x[:, i : i + (rows - 1) * strides + 1 : strides, j : j + (columns - 1) * strides + 1 : strides]
        for i in range(size)
        for j in range(size)
    ]
    best, which = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
    for number, tap in enumerate(taps[1:], start=1):
        which = jnp.where(tap > best, jnp.uint8(number), which)
        best = jnp.maximum(best, tap)
    return best, (which, shape)


def _backward(size: int, strides: int, padding: int, saved: Any, dy: jax.Array) -> tuple[jax.Array]:
    which, shape = saved
    height, width = (length + 2 * padding for length in shape[1:3])
    rows, columns = dy.shape[1:3]
    total: Any = 0.0
    for i in range(size):
        for j in range(size):
            tap = jnp.where(which == i * size + j, dy, 0)
            down = (i, height - i - ((rows - 1) * strides + 1), strides - 1)
            right = (j, width - j - ((columns - 1) * strides + 1), strides - 1)
            total += lax.pad(tap, jnp.zeros((), dy.dtype), ((0, 0, 0), down, right, (0, 0, 0)))
    return (total[:, padding : padding + shape[1], padding : padding + shape[2]],)


_max_pool.defvjp(_forward, _backward)
