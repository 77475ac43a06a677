"""Parts of the blocks of many papers, bound once in the top module: convolution, norm and activation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.conv import Conv

Layer = Callable[..., Callable[[jax.Array], jax.Array]]  # constructor keywords -> a module from array to array
Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "hard_swish": nn.hard_swish,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
}

he_normal_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, by fan-out
layer_norm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)  # of each pixel or token alone


class Layers(NamedTuple):
    """A model's choices, handed to its blocks."""

    conv: Layer
    norm: Layer
    activation: Activation


def symmetric_conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    dtype: DTypeLike,
    name: str,
    groups: int = 1,
    dilation: int = 1,
    use_bias: bool = False,
    kernel_init: nn.initializers.Initializer = he_normal_out,
) -> Conv:
    """Pads both sides alike, as PyTorch does: output size is input size / stride, rounded up. No bias before a norm."""
    return Conv(
        features,
        kernel_size=(size, size),
        strides=stride,
        padding=dilation * (size - 1) // 2,
        dilation=dilation,
        groups=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def same_conv(features: int, size: int, stride: int = 1, *, dtype: DTypeLike, name: str, groups: int = 1) -> Conv:
    """Pads as TensorFlow's SAME does, by the input's size: of an odd number of pixels one more below and to the right.

    Output size is input size / stride, rounded up, as `symmetric_conv`'s is. No bias before a norm.
    """
    return Conv(
        features,
        kernel_size=(size, size),
        strides=stride,
        padding="SAME",
        groups=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=he_normal_out,
        name=name,
    )


def check_stem(model: str, stem: str, images: jax.Array, *, smallest: Mapping[str, int]) -> None:
    """Raises UserError when images [batch, height, width, channels] are too small for a model with this stem.

    Args:
      model: its name, for the message.
      smallest: the smallest side in pixels, for every stem that it has.

    Raises:
      UserError: also for an unknown stem.
    """
    if stem not in smallest:
        raise UserError(f"model.stem is {stem!r}: {nearest(stem, sorted(smallest))}")
    height, width = images.shape[1:3]
    if min(height, width) < smallest[stem]:
        other = " or set --config.model.stem=small" if smallest["small"] <= min(height, width) else ""
        raise UserError(
            f"{model} needs images of at least {smallest[stem]}x{smallest[stem]} pixels and got {height}x{width}: "
            f"enlarge them with --config.data.image_size={smallest[stem]}{other}"
        )


class ConvNorm(nn.Module):
    """A convolution without bias, a norm, an activation."""

    features: int
    size: int
    layers: Layers
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        x = self.layers.conv(self.features, self.size, self.stride, groups=self.groups, name="conv")(x)
        return self.layers.activation(self.layers.norm(name="norm")(x))


class PatchConv(nn.Module):
    """A convolution with bias whose stride is its size: the dense layer over patches that do not overlap."""

    features: int
    size: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h // size, w // size, features]; incomplete patches are dropped."""
        batch, height, width, channels = x.shape
        rows, columns = height // self.size, width // self.size
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        x = x[:, : rows * self.size, : columns * self.size].astype(self.dtype)
        patches = x.reshape(batch, rows, self.size, columns, self.size, channels)
        return jnp.einsum("brpcqi,pqio->brco", patches, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def strides_for(stem: str, strides: Sequence[int]) -> list[int]:
    """The paper's strides, from the first layer on; of the small stem, the first two that are 2 become 1.

    Raises:
      UserError: there is no such stem.
    """
    if stem not in ("imagenet", "small"):
        raise UserError(f"model.stem is {stem!r}: {nearest(stem, ['imagenet', 'small'])}")
    halvings = [index for index, stride in enumerate(strides) if stride == 2]
    left_out = halvings[:2] if stem == "small" else []
    return [1 if index in left_out else stride for index, stride in enumerate(strides)]


def to_multiple(channels: float, divisor: int = 8) -> int:
    """The nearest multiple, but at least the divisor and 0.9 of the channels: how mobile networks round a width."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def identity(x: jax.Array) -> jax.Array:
    """Identity, for `Layers.activation` where a block has none."""
    return x


def global_average(x: jax.Array) -> jax.Array:
    """Mean over height and width: [batch, height, width, channels] to float32 [batch, channels]."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class StochasticDepth(nn.Module):
    """Drops whole residual branches, example by example, in training (Huang et al. 2016, arXiv:1603.09382).

    What survives is divided by its chance, so that evaluation needs no factor.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Same shape and dtype."""
        if not train or self.rate == 0:
            return x
        return nn.Dropout(self.rate, broadcast_dims=tuple(range(1, x.ndim)), deterministic=False, name="dropout")(x)
