"""A 2-D convolution with gradients of its own, as fast inside loops as outside them, and fast on CPUs.

Off CPUs it is XLA's; on them oneDNN's or conv_cpu.py's, whichever is faster: this file chooses, when it is traced.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from jaxcnn.layers.conv_cpu import Window, conv_cpu, conv_xla, suits_winograd
from jaxcnn.layers.conv_onednn import conv_onednn
from jaxcnn.layers.onednn.call import why_not
from jaxcnn.layers.onednn.library import library
from jaxcnn.layers.onednn.plan import FORWARD, Convolution

AUTO = "auto"
ON_CPUS: dict[str, Callable[..., jax.Array]] = {
    "onednn": conv_onednn,
    "products": conv_cpu,
    "xla": conv_xla,
}
# Multiply-adds from which oneDNN is chosen: below, Python's part of a call outweighs its gain. A kernel of one pixel is
# one matrix product, in which XLA is as fast until it is large; with few inputs x outputs Winograd's products
# (conv_cpu.py) are small and quick; with many there are so much fewer that they outweigh oneDNN's.
# docs/performance.md has the figures.
ONEDNN_FROM, ONEDNN_FROM_POINTWISE, ONEDNN_FROM_FEW_CHANNELS = 2_000_000, 16_000_000, 32_000_000
FEW_CHANNELS, MANY_CHANNELS = 64 * 64, 128 * 128  # inputs x outputs, where Winograd's method suits

_asked: ContextVar[str] = ContextVar("convolution", default=AUTO)
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def computed_by(way: str, *, platform: str | None = None) -> Iterator[None]:
    """Has convolutions on CPUs that are traced inside computed by a key of ON_CPUS, or by the fastest: `auto`.

    `platform`: the only one that the program is for, where that is known: then no other's way is traced.
    """
    tokens = _asked.set(way), _platform.set(platform)
    try:
        yield
    finally:
        _asked.reset(tokens[0])
        _platform.reset(tokens[1])


def by(way: str, function: Callable, *, platform: str | None = None) -> Callable:
    """`function`, whose convolutions are `computed_by` this way wherever it is traced."""

    @wraps(function, updated=())
    def traced(*arguments: Any, **keywords: Any) -> Any:
        with computed_by(way, platform=platform):
            return function(*arguments, **keywords)

    return traced


def way_of(convolution: Convolution) -> str:
    """The key of ON_CPUS by which a convolution and its gradients are computed."""
    asked, count = _asked.get(), convolution.multiply_adds
    if asked == "onednn":
        return "onednn" if count else "xla"  # none: there is nothing to compute
    if asked != AUTO:
        return asked
    *size, inputs, outputs = convolution.kernel
    winograd = suits_winograd(convolution.kernel, convolution.window)
    pointwise = size == [1, 1] and convolution.window.groups == 1
    few, many = winograd and inputs * outputs < FEW_CHANNELS, winograd and inputs * outputs >= MANY_CHANNELS
    enough = ONEDNN_FROM_FEW_CHANNELS if few else ONEDNN_FROM_POINTWISE if pointwise else ONEDNN_FROM
    worth_it = count >= enough and not many
    return "onednn" if worth_it and jax.default_backend() == "cpu" and why_not() is None else "products"


def words(way: str) -> str:
    """What computes a run's convolutions on CPUs, asked for in this way."""
    if way in (AUTO, "onednn") and why_not() is None:
        here = library()
        threads = f"{here.threads} thread{'' if here.threads == 1 else 's'}"
        return f"oneDNN {here.version} on {threads}{' or as matrix products, by their shapes' if way == AUTO else ''}"
    return "XLA's own" if way == "xla" else "matrix products"


class Conv(nn.Module):
    """Parameters `kernel` [height, width, in / groups, features] and `bias`, as flax's own nn.Conv has them."""

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int | str = "SAME"  # zeros on every side; or SAME, VALID
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[batch, height, width, channels] to [batch, height', width', features], in `dtype`."""
        shape = (*self.kernel_size, images.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        outputs = conv(
            images.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.use_bias:
            outputs += self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(
                self.dtype
            )
        return outputs


def conv(
    images: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: int | str = "SAME",
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolves images [batch, height, width, in] with a kernel [height, width, in / groups, out].

    Has reverse-mode derivatives only. Results and gradients equal `jax.lax.conv_general_dilated`'s up to rounding.
    """
    if isinstance(padding, str):
        effective = [(size - 1) * dilation + 1 for size in kernel.shape[:2]]
        pads = lax.padtype_to_pads(images.shape[1:3], effective, (strides, strides), padding)
    else:
        pads = [(padding, padding)] * 2
    (top, bottom), (left, right) = pads
    window = Window((strides, strides), ((top, bottom), (left, right)), (dilation, dilation), groups)
    way, platform = way_of(Convolution(FORWARD, images.shape, kernel.shape, window)), _platform.get()
    if platform not in (None, "cpu"):
        way = "xla"
    return _conv(images, kernel, window, way, way == "xla" or platform is not None)


# `everywhere`: the way serves all platforms that the program is for. Both are jitted so that convolutions of one shape
# are traced once: a ResNet-50 has 53 of 23 shapes.


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: jax.Array, kernel: jax.Array, window: Window, way: str, everywhere: bool) -> jax.Array:
    return _forward(x, kernel, window=window, way=way, everywhere=everywhere)


@partial(jax.jit, static_argnames=("window", "way", "everywhere"))
def _forward(x: jax.Array, kernel: jax.Array, *, window: Window, way: str, everywhere: bool) -> jax.Array:
    function = partial(ON_CPUS[way], window=window)
    if everywhere:
        return function(x, kernel)
    result: jax.Array = lax.platform_dependent(x, kernel, cpu=function, default=partial(conv_xla, window=window))
    return result


@partial(jax.jit, static_argnames=("window", "way", "everywhere"))
def _gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, window: Window, way: str, everywhere: bool
) -> tuple[jax.Array, jax.Array]:
    def gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, *, function: Callable) -> tuple[jax.Array, jax.Array]:
        dx, dkernel = jax.vjp(partial(function, window=window), x, kernel)[1](dy)
        return dx, dkernel

    of_cpus, of_others = (partial(gradients, function=function) for function in (ON_CPUS[way], conv_xla))
    if everywhere:
        return of_cpus(x, kernel, dy)
    result: tuple[jax.Array, jax.Array] = lax.platform_dependent(x, kernel, dy, cpu=of_cpus, default=of_others)
    return result


def _conv_forward(
    x: jax.Array, kernel: jax.Array, window: Window, way: str, everywhere: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, window, way, everywhere), (x, kernel)


def _conv_backward(
    window: Window, way: str, everywhere: bool, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _gradients(*saved, dy, window=window, way=way, everywhere=everywhere)


_conv.defvjp(_conv_forward, _conv_backward)
