"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381): inverted residuals with linear bottlenecks (table 2).

Strided convolutions pad both sides alike and norms have epsilon 1e-5, as in torchvision; in the original one side,
and 1e-3. Convolutions start He-normal by fan-out, the head with standard deviation 0.01, as in torchvision.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import (
    Activation,
    ConvNorm,
    Layer,
    Layers,
    StochasticDepth,
    global_average,
    identity,
    strides_for,
    symmetric_conv,
    to_multiple,
)
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm


class InvertedResidual(nn.Module):
    """1x1 to more channels, a depthwise convolution, 1x1 to few without activation: figure 3b.

    The first is left out where the channels are not expanded. A shortcut joins the ends where they have one shape.
    """

    inputs: int  # channels, before any are pruned
    expanded: int  # channels of the depthwise convolution
    features: int
    size: int  # of the depthwise convolution, in pixels
    stride: int
    layers: Layers
    attention: Layer | None = None  # over the expanded channels
    drop_rate: float = 0.0  # of the branch: stochastic depth

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        y = x
        if self.expanded != self.inputs:
            y = ConvNorm(self.expanded, 1, self.layers, name="expand")(y)
        y = ConvNorm(self.expanded, self.size, self.layers, self.stride, groups=self.expanded, name="depthwise")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        y = ConvNorm(self.features, 1, self.layers._replace(activation=identity), name="project")(y)
        if self.stride == 1 and self.features == self.inputs:
            y = x + StochasticDepth(self.drop_rate, name="drop")(y, train=train)
        return y


class Row(NamedTuple):
    """A row of table 2: t, c, n and s."""

    expansion: int  # of the channels
    features: int
    num_blocks: int
    stride: int  # of the first block


ROWS = (
    Row(1, 16, 1, 1),
    Row(6, 24, 2, 2),
    Row(6, 32, 3, 2),
    Row(6, 64, 4, 2),
    Row(6, 96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """A stage for each row of table 2."""

    num_classes: int
    rows: tuple[Row, ...] = ROWS
    stem: str = "imagenet"  # small: the stem and the second stage keep their size
    depth: float = 1.0  # times the paper's blocks, rounded up
    width: float = 1.0  # times the paper's channels; the last layer has no fewer than the paper's
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu6
    stochastic_depth: float = 0.0  # of the last block; linear from 0 at the first
    dropout_rate: float = 0.2  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        layers = Layers(partial(symmetric_conv, dtype=self.dtype), norm, self.activation)
        block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        strides = strides_for(self.stem, (2, *(row.stride for row in self.rows)))
        stage_sizes = [math.ceil(row.num_blocks * self.depth) for row in self.rows]
        number, last = 0, max(1, sum(stage_sizes) - 1)
        inputs = to_multiple(32 * self.width)  # of a block

        x = ConvNorm(inputs, 3, layers, strides[0], name="stem")(images)
        for stage, row in enumerate(self.rows, start=1):
            features = to_multiple(row.features * self.width)
            for index in range(1, stage_sizes[stage - 1] + 1):
                x = block(
                    inputs=inputs,
                    expanded=row.expansion * inputs,
                    features=features,
                    size=3,
                    stride=strides[stage] if index == 1 else 1,
                    layers=layers,
                    drop_rate=self.stochastic_depth * number / last,
                    name=f"stage{stage}_block{index}",
                )(x, train)
                number, inputs = number + 1, features
            x = tap(self, f"stage{stage}", x)
        x = ConvNorm(to_multiple(1280 * max(1.0, self.width)), 1, layers, name="last")(x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        head_init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=head_init, name="head")(x)


mobilenet_v2 = MobileNetV2
