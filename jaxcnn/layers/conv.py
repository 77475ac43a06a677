"""A 2-D convolution with gradients of its own, as fast inside loops as outside them, and fast on CPUs.

Off CPUs it is XLA's; on them conv_cpu.py's.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from jaxcnn.layers.conv_cpu import Window, conv_cpu, conv_xla


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
    return _conv(images, kernel, window)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    result: jax.Array = lax.platform_dependent(
        x, kernel, cpu=partial(conv_cpu, window=window), default=partial(conv_xla, window=window)
    )
    return result


def _conv_forward(x: jax.Array, kernel: jax.Array, window: Window) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, window), (x, kernel)


def _conv_backward(window: Window, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    def gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array, *, function: Callable) -> tuple[jax.Array, jax.Array]:
        dx, dkernel = jax.vjp(partial(function, window=window), x, kernel)[1](dy)
        return dx, dkernel

    result: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        *saved, dy, cpu=partial(gradients, function=conv_cpu), default=partial(gradients, function=conv_xla)
    )
    return result


_conv.defvjp(_conv_forward, _conv_backward)
