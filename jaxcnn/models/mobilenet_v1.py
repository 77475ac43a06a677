"""MobileNet (Howard et al. 2017, arXiv:1704.04861): depthwise separable convolutions (table 1).

As everybody builds it, the last block has stride 1; table 1 says 2. Strided convolutions pad both sides alike, where
the original's "SAME" pads one. Convolutions start He-normal by fan-out, of which the paper says nothing.
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
    strides_for,
    symmetric_conv,
)
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 one of them together: figure 3, right."""

    features: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        channels = x.shape[-1]
        x = ConvNorm(channels, 3, self.layers, self.stride, groups=channels, name="depthwise")(x)
        return ConvNorm(self.features, 1, self.layers, name="pointwise")(x)


class MobileNetV1(nn.Module):
    """Stages of separable blocks, each but the first halving the sides and doubling the channels."""

    num_classes: int
    stage_sizes: Sequence[int] = (1, 2, 2, 6, 2)
    stem: str = "imagenet"  # small: the stem and the second stage keep their size
    width: float = 1.0  # times the paper's channels: its alpha
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    dropout_rate: float = 0.0  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        layers = Layers(partial(symmetric_conv, dtype=self.dtype), norm, self.activation)
        block = nn.remat(DepthwiseSeparable) if self.remat else DepthwiseSeparable
        strides = strides_for(self.stem, (2, 1, 2, 2, 2, 2))

        x = ConvNorm(round(32 * self.width), 3, layers, strides[0], name="stem")(images)
        for stage, num_blocks in enumerate(self.stage_sizes, start=1):
            for index in range(1, num_blocks + 1):
                features = round(32 * 2**stage * self.width)
                stride = strides[stage] if index == 1 else 1
                x = block(features, stride, layers, name=f"stage{stage}_block{index}")(x)
            x = tap(self, f"stage{stage}", x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


mobilenet_v1 = MobileNetV1
