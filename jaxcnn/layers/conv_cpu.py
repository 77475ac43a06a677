"""Convolutions on CPUs as matrix products, and XLA's own.

XLA's CPU compiler speeds up convolutions in one layout only and outside loops only, and computes the gradient of a
kernel at a quarter of the machine's rate. Here everything is matrix products over parts of the batch that stay in the
cache: Winograd's F(2x2, 3x3) (Lavin and Gray 2016, arXiv:1509.09308, section 4.1), bands, or patches.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")  # of images, kernel and result: the one that XLA's CPU compiler is fast in
CACHE_BYTES = 8 * 2**20  # of the largest intermediate of one part
WINOGRAD_CHANNELS = 32 * 32  # inputs x outputs from which its fewer products outweigh its transforms


class Window(NamedTuple):
    """Geometry of a convolution: how its kernel moves over an image."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right) rows and columns of zeros
    dilation: tuple[int, int]  # of the kernel
    groups: int


def conv_xla(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """XLA's own convolution: images [batch, height, width, in], kernel [height, width, in / groups, out]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=window.groups,
    )


def conv_cpu(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The same convolution as matrix products where they are faster, which is decided from the shapes alone."""
    dtype = x.dtype
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)  # 16-bit convolutions are slower there
    if window.groups == 1:
        y = _dense(x, kernel, window)
    elif kernel.shape[2] == 1 and kernel.shape[3] == window.groups:
        y = _depthwise(x, kernel[:, :, 0], window)
    else:
        y = _grouped(x, kernel, window)
    return y.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    if _is_pointwise(kernel, window):
        return _every(x, window.strides) @ kernel[0, 0]
    if suits_winograd(kernel.shape, window):
        return _winograd(x, kernel, window.padding)
    if _suits_bands(kernel, window):
        return _banded(x, kernel, window)
    return conv_xla(x, kernel, window)


def _dense_forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dense(x, kernel, window), (x, kernel)


def _dense_backward(window: Window, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if _is_pointwise(kernel, window):
        taps = _every(x, window.strides)
        dkernel = lax.dot_general(_rows(taps), _rows(dy), (((0,), (0,)), ((), ())))[None, None]
        return _spread(dy @ kernel[0, 0].T, window.strides, x.shape), dkernel
    if _suits_bands(kernel, window):
        return _banded_gradients(x, kernel, dy, window)

    # The gradient by the images is a convolution too: of dy, its rows and columns `strides` apart, by the kernel turned
    # by 180 degrees, with the padding that makes the sizes match.
    reach = [(size - 1) * step for size, step in zip(kernel.shape[:2], window.dilation, strict=True)]
    before = [r - low for r, (low, _) in zip(reach, window.padding, strict=True)]
    after = [
        size + r - pad - ((rows - 1) * stride + 1)
        for size, r, pad, rows, stride in zip(x.shape[1:3], reach, before, dy.shape[1:3], window.strides, strict=True)
    ]
    padding = tuple(zip(before, after, strict=True))
    if suits_winograd(kernel.shape, window) and min(before) >= 0 and min(after) >= 0:
        dx = _winograd(dy, kernel[::-1, ::-1], padding, contract=1)
        return dx, _winograd_kernel_gradient(x, dy, window.padding)
    if window.strides == (1, 1):
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        dx = lax.conv_general_dilated(
            dy, turned, (1, 1), padding, rhs_dilation=window.dilation, dimension_numbers=LAYOUT
        )
    else:
        dx = _image_gradient(kernel, dy, x.shape, window)
    return dx, _kernel_gradient(x, dy, kernel.shape, window)


_dense.defvjp(_dense_forward, _dense_backward)


def _is_pointwise(kernel: jax.Array, window: Window) -> bool:
    return kernel.shape[:2] == (1, 1) and window.padding == ((0, 0), (0, 0))


def suits_winograd(kernel: Sequence[int], window: Window) -> bool:
    """Whether a convolution by a kernel [height, width, in / groups, out] is computed by Winograd's method."""
    height, width, inputs, outputs = kernel
    return (
        (height, width, window.groups) == (3, 3, 1)
        and window.strides == window.dilation == (1, 1)
        and min(inputs, outputs) >= 16
        and inputs * outputs >= WINOGRAD_CHANNELS
    )


def _suits_bands(kernel: jax.Array, window: Window) -> bool:
    return window.strides == window.dilation == (1, 1) and kernel.shape[2] <= 8


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _every(x: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return x if strides == (1, 1) else x[:, :: strides[0], :: strides[1]]


def _spread(x: jax.Array, strides: tuple[int, int], shape: Sequence[int]) -> jax.Array:
    """The opposite of `_every`: zeros between."""
    if strides == (1, 1):
        return x
    gaps = [
        (0, size - ((rows - 1) * stride + 1), stride - 1)
        for size, rows, stride in zip(shape[1:3], x.shape[1:3], strides, strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *gaps, (0, 0, 0)))


def _map(function: Callable[..., jax.Array], floats_each: int, *arrays: jax.Array) -> jax.Array:
    """`function` of one part of the batch after another; `floats_each`: of its largest array, for one example."""
    size, count = _parts(arrays[0].shape[0], floats_each)
    if count <= 1:
        return function(*arrays)
    whole = [a[: count * size].reshape(count, size, *a.shape[1:]) for a in arrays]
    results = lax.map(lambda part: function(*part), whole)
    results = results.reshape(-1, *results.shape[2:])
    rest = [a[count * size :] for a in arrays]
    return jnp.concatenate([results, function(*rest)]) if rest[0].shape[0] else results


def _sum(function: Callable[..., Any], floats_each: int, *arrays: jax.Array) -> Any:
    """The sum of `function` over the parts of the batch."""
    size, count = _parts(arrays[0].shape[0], floats_each)
    if count <= 1:
        return function(*arrays)
    whole = [a[: count * size].reshape(count, size, *a.shape[1:]) for a in arrays]
    rest = [a[count * size :] for a in arrays]
    shapes = jax.eval_shape(function, *(a[0] for a in whole))
    start = function(*rest) if rest[0].shape[0] else jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None), start, whole)[0]


def _parts(batch: int, floats_each: int) -> tuple[int, int]:
    """(examples a part, parts): a divisor of the batch where it can be, since a rest means copies of the arrays."""
    most = max(1, min(batch, CACHE_BYTES // (4 * floats_each)))
    size = max(n for n in range(1, most + 1) if batch % n == 0)
    size = size if 2 * size > most else most
    return size, batch // size


# Winograd's F(2x2, 3x3): a tile of 4x4 inputs gives 2x2 outputs by 16 products a channel pair instead of 36. Written
# out as sums, each of the 16 positions of a tile is a matrix [tiles, channels] of its own.

_Tile = list[list[jax.Array]]
_ONE_WAY = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
KERNEL_TO_TILE = np.einsum("ip,jq->ijpq", _ONE_WAY, _ONE_WAY)


def _winograd(x: jax.Array, kernel: jax.Array, padding: Any, *, contract: int = 0) -> jax.Array:
    """Contracts the channels of x with those of the kernel's axis 2 + `contract`."""
    weights = jnp.tensordot(KERNEL_TO_TILE, kernel, ((2, 3), (0, 1)))
    tiles_high, tiles_wide = _count_tiles(x.shape, padding)

    def of_part(x: jax.Array) -> jax.Array:
        tiles = _input_tiles(x, padding)
        products = [
            [lax.dot_general(tiles[i][j], weights[i, j], (((1,), (contract,)), ((), ()))) for j in range(4)]
            for i in range(4)
        ]
        outputs = _both_ways(lambda m: (m[0] + m[1] + m[2], m[1] - m[2] - m[3]), products)
        cells = [[y.reshape(x.shape[0], tiles_high, tiles_wide, -1) for y in row] for row in outputs]
        y = jnp.stack([jnp.stack(row, axis=3) for row in cells], axis=2)  # [batch, high, 2, wide, 2, channels]
        y = y.reshape(x.shape[0], 2 * tiles_high, 2 * tiles_wide, -1)
        return y[:, : x.shape[1] + sum(padding[0]) - 2, : x.shape[2] + sum(padding[1]) - 2]

    return _map(of_part, 16 * tiles_high * tiles_wide * max(kernel.shape[2:]), x)


def _winograd_kernel_gradient(x: jax.Array, dy: jax.Array, padding: Any) -> jax.Array:
    tiles_high, tiles_wide = _count_tiles(x.shape, padding)

    def of_part(x: jax.Array, dy: jax.Array) -> _Tile:
        tiles, dtiles = _input_tiles(x, padding), _output_tiles(dy, tiles_high, tiles_wide)
        return [
            [lax.dot_general(tiles[i][j], dtiles[i][j], (((0,), (0,)), ((), ()))) for j in range(4)] for i in range(4)
        ]

    products = _sum(of_part, 16 * tiles_high * tiles_wide * max(x.shape[-1], dy.shape[-1]), x, dy)
    return jnp.tensordot(KERNEL_TO_TILE, jnp.stack([jnp.stack(row) for row in products]), ((0, 1), (0, 1)))


def _both_ways(transform: Callable[[list[jax.Array]], Sequence[jax.Array]], tile: _Tile) -> _Tile:
    """Transforms the columns of a tile, then its rows."""
    columns = [transform([row[j] for row in tile]) for j in range(len(tile[0]))]
    return [list(transform([column[i] for column in columns])) for i in range(len(columns[0]))]


def _count_tiles(shape: Sequence[int], padding: Any) -> tuple[int, int]:
    high, wide = (-(-(size + sum(pads) - 2) // 2) for size, pads in zip(shape[1:3], padding, strict=True))
    return high, wide


def _input_tiles(x: jax.Array, padding: Any) -> _Tile:
    batch, height, width, channels = x.shape
    high, wide = _count_tiles(x.shape, padding)
    (top, _), (left, _) = padding
    bottom, right = 2 * high + 2 - height - top, 2 * wide + 2 - width - left
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    x = x.reshape(batch, high + 1, 2, wide + 1, 2, channels)
    tile = [[x[:, i // 2 : i // 2 + high, i % 2, j // 2 : j // 2 + wide, j % 2] for j in range(4)] for i in range(4)]
    tile = _both_ways(lambda d: (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]), tile)
    return [[_rows(d) for d in row] for row in tile]


def _output_tiles(dy: jax.Array, high: int, wide: int) -> _Tile:
    batch, height, width, channels = dy.shape
    dy = jnp.pad(dy, ((0, 0), (0, 2 * high - height), (0, 2 * wide - width), (0, 0)))
    dy = dy.reshape(batch, high, 2, wide, 2, channels)
    tile = [[dy[:, :, i, :, j] for j in range(2)] for i in range(2)]
    tile = _both_ways(lambda y: (y[0], y[0] + y[1], y[0] - y[1], -y[1]), tile)
    return [[_rows(y) for y in row] for row in tile]


def _taps(x: jax.Array, size: Sequence[int], window: Window, outputs: Sequence[int]) -> list[jax.Array]:
    """Inputs at each position of a kernel: kernel height * width arrays [batch, *outputs, channels]."""
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    taps = []
    for i in range(size[0]):
        for j in range(size[1]):
            starts = i * window.dilation[0], j * window.dilation[1]
            stops = [b + (n - 1) * s + 1 for b, n, s in zip(starts, outputs, window.strides, strict=True)]
            taps.append(x[:, starts[0] : stops[0] : window.strides[0], starts[1] : stops[1] : window.strides[1]])
    return taps


def _kernel_gradient(x: jax.Array, dy: jax.Array, shape: Sequence[int], window: Window) -> jax.Array:
    """Gradient by the kernel: a matrix product of the patches with dy, summed over parts of the batch."""

    def of_part(x: jax.Array, dy: jax.Array) -> jax.Array:
        patches = jnp.concatenate(_taps(x, shape[:2], window, dy.shape[1:3]), axis=-1)
        # [out, patch]: with the smaller side first the product is up to twice as fast
        return lax.dot_general(_rows(dy), _rows(patches), (((0,), (0,)), ((), ())))

    floats_each = dy.shape[1] * dy.shape[2] * shape[0] * shape[1] * shape[2]
    return jnp.moveaxis(_sum(of_part, floats_each, x, dy), 0, 1).reshape(shape)


def _image_gradient(kernel: jax.Array, dy: jax.Array, shape: Sequence[int], window: Window) -> jax.Array:
    """Gradient by the images: a matrix product of dy per tap, added where the tap had read."""

    def of_part(dy: jax.Array) -> jax.Array:
        return _set_down([[dy @ tap.T for tap in row] for row in kernel], shape, window)

    return _map(of_part, dy.shape[1] * dy.shape[2] * kernel[..., 0].size, dy)


def _set_down(taps: list[list[jax.Array]], shape: Sequence[int], window: Window) -> jax.Array:
    """The opposite of `_taps`: sums [batch, *outputs, channels] of all taps into [batch, *shape[1:3], channels]."""
    padded = [length + sum(pads) for length, pads in zip(shape[1:3], window.padding, strict=True)]
    total: Any = 0.0
    for i, row in enumerate(taps):
        for j, tap in enumerate(row):
            places = [
                (start, length - start - ((count - 1) * stride + 1), stride - 1)
                for start, length, count, stride in zip(
                    (i * window.dilation[0], j * window.dilation[1]),
                    padded,
                    tap.shape[1:3],
                    window.strides,
                    strict=True,
                )
            ]
            total += lax.pad(tap, jnp.zeros((), tap.dtype), ((0, 0, 0), *places, (0, 0, 0)))
    (top, _), (left, _) = window.padding
    result: jax.Array = total[:, top : top + shape[1], left : left + shape[2]]
    return result


# With few channels: some neighbouring outputs of a row at a time, as the product of all that they see with a banded
# matrix. Most of it is zeros, but it is large enough to run at a fast rate.


def _banded(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    bands = _bands(x, kernel, window)
    matrix = _band_matrix(kernel, bands.together)

    def of_part(x: jax.Array) -> jax.Array:
        y = _band_inputs(x, kernel, window) @ matrix
        return y.reshape(x.shape[0], bands.high, bands.number * bands.together, -1)[:, :, : bands.wide]

    return _map(of_part, bands.floats_each, x)


def _banded_gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, window: Window) -> tuple[jax.Array, jax.Array]:
    bands = _bands(x, kernel, window)
    matrix, to_kernel = jax.vjp(partial(_band_matrix, together=bands.together), kernel)

    def rows_of(dy: jax.Array) -> jax.Array:
        rest = bands.number * bands.together - bands.wide
        return jnp.pad(dy, ((0, 0), (0, 0), (0, rest), (0, 0))).reshape(-1, matrix.shape[1])

    def by_images(dy: jax.Array) -> jax.Array:
        sees = jax.ShapeDtypeStruct((dy.shape[0], *x.shape[1:]), x.dtype)
        back = jax.linear_transpose(partial(_band_inputs, kernel=kernel, window=window), sees)
        dx: jax.Array = back(rows_of(dy) @ matrix.T)[0]
        return dx

    def by_matrix(x: jax.Array, dy: jax.Array) -> jax.Array:
        return lax.dot_general(_band_inputs(x, kernel, window), rows_of(dy), (((0,), (0,)), ((), ())))

    return _map(by_images, bands.floats_each, dy), to_kernel(_sum(by_matrix, bands.floats_each, x, dy))[0]


class _Bands(NamedTuple):
    high: int  # outputs
    wide: int
    number: int  # of bands in a row; the last may hang over its end
    together: int  # outputs of a band
    floats_each: int  # that all bands of an example see


def _bands(x: jax.Array, kernel: jax.Array, window: Window) -> _Bands:
    high, wide = (n + sum(p) - k + 1 for n, p, k in zip(x.shape[1:3], window.padding, kernel.shape[:2], strict=True))
    number = max(1, wide * kernel.shape[3] // 128)
    together = -(-wide // number)
    seen = (kernel.shape[1] + together - 1) * kernel[:, 0, :, 0].size
    return _Bands(high, wide, number, together, high * number * seen)


def _band_inputs(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Inputs of each band: [bands, kernel rows x pixels of a row x channels]."""
    bands = _bands(x, kernel, window)
    top_bottom, (left, right) = window.padding
    right += bands.number * bands.together - bands.wide
    x = jnp.pad(x, ((0, 0), top_bottom, (left, right), (0, 0)))
    starts = range(0, bands.number * bands.together, bands.together)
    pixels = kernel.shape[1] + bands.together - 1
    seen = jnp.stack([x[:, :, start : start + pixels] for start in starts], axis=2)
    seen = seen.reshape(*seen.shape[:3], -1)
    return _rows(jnp.concatenate([seen[:, i : i + bands.high] for i in range(kernel.shape[0])], axis=-1))


def _band_matrix(kernel: jax.Array, together: int) -> jax.Array:
    """Banded matrix [inputs of a band, outputs together x out]."""
    bands = [jnp.pad(kernel, ((0, 0), (n, together - 1 - n), (0, 0), (0, 0))) for n in range(together)]
    return jnp.stack(bands, axis=3).reshape(-1, together * kernel.shape[3])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Kernel [height, width, channels]: multiplied and added, a tap at a time."""
    outputs = jax.eval_shape(partial(conv_xla, window=window), x, kernel[:, :, None]).shape[1:3]

    def of_part(x: jax.Array) -> jax.Array:
        taps = _taps(x, kernel.shape[:2], window, outputs)
        return sum(tap * weight for tap, weight in zip(taps, _rows(kernel), strict=True))  # type: ignore[return-value]

    return _map(of_part, x[0].size * 2, x)


def _depthwise_forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, Any]:
    return _depthwise(x, kernel, window), (x, kernel)


def _depthwise_backward(window: Window, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size = kernel.shape[:2]

    def by_images(dy: jax.Array) -> jax.Array:
        return _set_down([[dy * weight for weight in row] for row in kernel], x.shape, window)

    def by_kernel(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(tap * dy, axis=(0, 1, 2)) for tap in _taps(x, size, window, dy.shape[1:3])])

    each = x[0].size * 2
    return _map(by_images, each, dy), _sum(by_kernel, each, x, dy).reshape(kernel.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _grouped(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Some groups at a time as one dense convolution, whose kernel is zero between groups: more products, all fast."""
    height, width, inputs, outputs = kernel.shape
    outputs //= window.groups
    together = max(n for n in range(1, window.groups + 1) if window.groups % n == 0 and (n == 1 or n * inputs <= 64))
    blocks = kernel.reshape(height, width, inputs, -1, together, outputs)
    dense = jnp.einsum("hwinto,tu->hwnuito", blocks, jnp.eye(together, dtype=kernel.dtype))
    dense = dense.reshape(height, width, -1, together * inputs, together * outputs)
    parts = jnp.split(x, window.groups // together, axis=-1)
    window = window._replace(groups=1)
    return jnp.concatenate([_dense(part, dense[:, :, n], window) for n, part in enumerate(parts)], axis=-1)
