"""ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164): half of the channels pass untouched, then all are shuffled.

Table 5. Convolutions start He-normal by fan-out, of which the paper says nothing.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import (
    Activation,
    ConvNorm,
    Layer,
    Layers,
    global_average,
    identity,
    strides_for,
    symmetric_conv,
    to_multiple,
)
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import max_pool


def channel_shuffle(x: jax.Array) -> jax.Array:
    """The first of each half of the channels, the second of each, and so on; [..., channels]."""
    halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    return halves.swapaxes(-1, -2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions of half of the channels: figure 3c.

    With a stride of 2, where the channels change, of all of them, beside a second branch: figure 3d.
    """

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        linear, half = self.layers._replace(activation=identity), self.features // 2
        if self.stride == 1:
            kept, x = jnp.split(x, 2, axis=-1)
        else:
            channels = x.shape[-1]
            kept = ConvNorm(channels, 3, linear, self.stride, groups=channels, name="shortcut_depthwise")(x)
            kept = ConvNorm(half, 1, self.layers, name="shortcut_pointwise")(kept)
        x = ConvNorm(half, 1, self.layers, name="pointwise1")(x)
        x = ConvNorm(half, 3, linear, self.stride, groups=half, name="depthwise")(x)
        x = ConvNorm(half, 1, self.layers, name="pointwise2")(x)
        return channel_shuffle(jnp.concatenate([kept, x], axis=-1))


class ShuffleNetV2(nn.Module):
    """Stages 2 to 4 of table 5, each halving the sides, between one convolution and another."""

    num_classes: int
    features: Sequence[int]  # of the stages and of conv5
    stage_sizes: Sequence[int] = (4, 8, 4)
    width: float = 1.0  # times these features, in even numbers
    stem: str = "imagenet"  # small: stride 1, and no pool
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    dropout_rate: float = 0.0  # before the head
    remat: bool = False  # compute each unit again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        layers = Layers(partial(symmetric_conv, dtype=self.dtype), norm, self.activation)
        unit = nn.remat(ShuffleUnit) if self.remat else ShuffleUnit
        stem_stride, pool_stride = strides_for(self.stem, (2, 2))

        widths = [to_multiple(features * self.width, 2) for features in self.features]
        x = ConvNorm(24, 3, layers, stem_stride, name="stem")(images)
        if pool_stride > 1:
            x = max_pool(x, 3, strides=2, padding=1)
        for stage, (features, num_units) in enumerate(zip(widths[:-1], self.stage_sizes, strict=True), start=2):
            for index in range(1, num_units + 1):
                x = unit(features, 2 if index == 1 else 1, layers, name=f"stage{stage}_block{index}")(x)
            x = tap(self, f"stage{stage}", x)
        x = ConvNorm(widths[-1], 1, layers, name="conv5")(x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


shufflenet_v2_x0_5 = partial(ShuffleNetV2, features=(48, 96, 192, 1024))
shufflenet_v2_x1_0 = partial(ShuffleNetV2, features=(116, 232, 464, 1024))
shufflenet_v2_x1_5 = partial(ShuffleNetV2, features=(176, 352, 704, 1024))
shufflenet_v2_x2_0 = partial(ShuffleNetV2, features=(244, 488, 976, 2048))
