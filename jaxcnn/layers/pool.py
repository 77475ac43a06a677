"""Max pooling whose gradient is elementwise work, and averages to any size.

XLA's own gradient of max pooling, select-and-scatter, is a scalar loop on CPUs (3 to 10 x slower).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.layers.plain import is_plain


def max_pool(
    x: jax.Array, size: int, *, strides: int | None = None, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
    """Maximum of each `size` x `size` window of [batch, height, width, channels]; incomplete windows are dropped.

    Args:
      x: any floating dtype.
      size: of the window, in pixels.
      strides: between windows; none: `size`.
      padding: rows and columns on every side, which are never the maximum.
      ceil_mode: windows that end outside count too, if they begin inside, as in PyTorch.

    The gradient goes to the first maximum of a window, row by row, as in PyTorch.
    """
    strides = strides or size
    beyond = [_beyond(length, size, strides, padding) if ceil_mode else 0 for length in x.shape[1:3]]
    pads = (padding, padding + beyond[0]), (padding, padding + beyond[1])
    if is_plain():
        window, steps = (1, size, size, 1), (1, strides, strides, 1)
        return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, steps, ((0, 0), *pads, (0, 0)))
    return _max_pool(x, size, strides, pads)


def _beyond(length: int, size: int, strides: int, padding: int) -> int:
    """Pixels by which PyTorch's last window, where their number is rounded up, reaches beyond the padding."""
    count = -((size - length - 2 * padding) // strides) + 1
    if (count - 1) * strides >= length + padding:  # it would begin in the padding
        count -= 1
    return max(0, (count - 1) * strides + size - length - 2 * padding)


Pads = tuple[tuple[int, int], tuple[int, int]]  # above and below, left and right


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, size: int, strides: int, pads: Pads) -> jax.Array:
    return _forward(x, size, strides, pads)[0]


def _forward(x: jax.Array, size: int, strides: int, pads: Pads) -> tuple[jax.Array, Any]:
    shape = x.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-np.inf)
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


def _backward(size: int, strides: int, pads: Pads, saved: Any, dy: jax.Array) -> tuple[jax.Array]:
    which, shape = saved
    height, width = (length + sum(pad) for length, pad in zip(shape[1:3], pads, strict=True))
    rows, columns = dy.shape[1:3]
    total: Any = 0.0
    for i in range(size):
        for j in range(size):
            tap = jnp.where(which == i * size + j, dy, 0)
            down = (i, height - i - ((rows - 1) * strides + 1), strides - 1)
            right = (j, width - j - ((columns - 1) * strides + 1), strides - 1)
            total += lax.pad(tap, jnp.zeros((), dy.dtype), ((0, 0, 0), down, right, (0, 0, 0)))
    (top, _), (left, _) = pads
    return (total[:, top : top + shape[1], left : left + shape[2]],)


_max_pool.defvjp(_forward, _backward)


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages [batch, height, width, channels] to [batch, size, size, channels] as PyTorch does.

    Window i of a side of n pixels is from floor(i n / size) to ceil((i + 1) n / size): windows may overlap, and where
    n < size they repeat pixels.
    """
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = (jnp.asarray(_windows(length, size)) for length in x.shape[1:3])
    means = jnp.einsum("ih,bhwc,jw->bijc", rows, x.astype(jnp.float32), columns, precision="highest")
    return means.astype(x.dtype)


def _windows(length: int, size: int) -> np.ndarray:
    """Weights of each pixel in each window's mean: [size, length]."""
    index = np.arange(size)[:, None]
    starts, ends = index * length // size, -(-(index + 1) * length // size)
    inside = (np.arange(length) >= starts) & (np.arange(length) < ends)
    return (inside / (ends - starts)).astype(np.float32)
