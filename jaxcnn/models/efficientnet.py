"""EfficientNet (Tan and Le 2019, arXiv:1905.11946): B0 of table 1, and B1 to B7 scaled from it.

Strided convolutions pad both sides alike and norms have torchvision's epsilon; in the original one side, and 1e-3.
Convolutions start He-normal by fan-out, the head uniform within 1 / sqrt(num_classes), as in torchvision.
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
    global_average,
    strides_for,
    symmetric_conv,
    to_multiple,
)
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.models.mobilenet_v2 import InvertedResidual
from jaxcnn.models.squeeze_excitation import SqueezeExcitation


class Row(NamedTuple):
    """A row "MBConv" of table 1."""

    expansion: int  # of the channels
    size: int  # of the depthwise convolution, in pixels
    stride: int  # of the first block
    features: int
    num_blocks: int


ROWS = (
    Row(1, 3, 1, 16, 1),
    Row(6, 3, 2, 24, 2),
    Row(6, 5, 2, 40, 2),
    Row(6, 3, 2, 80, 3),
    Row(6, 5, 1, 112, 3),
    Row(6, 5, 2, 192, 4),
    Row(6, 3, 1, 320, 1),
)


class EfficientNet(nn.Module):
    """A stage for each row of table 1; the paper counts the stem as the first."""

    num_classes: int
    rows: tuple[Row, ...] = ROWS
    stem: str = "imagenet"  # small: the stem and the second stage keep their size
    width: float = 1.0  # times the channels of B0
    depth: float = 1.0  # times the blocks of B0
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    norm_epsilon: float = 1e-5
    activation: Activation = nn.silu
    stochastic_depth: float = 0.2  # of the last block; linear from 0 at the first
    dropout_rate: float = 0.2  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype, epsilon=self.norm_epsilon)
        layers = Layers(partial(symmetric_conv, dtype=self.dtype), norm, self.activation)
        block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        strides = strides_for(self.stem, (2, *(row.stride for row in self.rows)))
        stage_sizes = [math.ceil(row.num_blocks * self.depth) for row in self.rows]
        number, last = 0, max(1, sum(stage_sizes) - 1)
        inputs = to_multiple(32 * self.width)  # of a block

        x = ConvNorm(inputs, 3, layers, strides[0], name="stem")(images)
        for stage, (row, num_blocks) in enumerate(zip(self.rows, stage_sizes, strict=True), start=1):
            features = to_multiple(row.features * self.width)
            for index in range(1, num_blocks + 1):
                x = block(
                    inputs=inputs,
                    expanded=to_multiple(inputs * row.expansion),
                    features=features,
                    size=row.size,
                    stride=strides[stage] if index == 1 else 1,
                    layers=layers,
                    # a quarter of the block's input, not of the expanded channels
                    attention=partial(
                        SqueezeExcitation, hidden=max(1, inputs // 4), activation=self.activation, dtype=self.dtype
                    ),
                    drop_rate=self.stochastic_depth * number / last,
                    name=f"stage{stage}_block{index}",
                )(x, train)
                number, inputs = number + 1, features
            x = tap(self, f"stage{stage}", x)
        x = ConvNorm(4 * inputs, 1, layers, name="last")(x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        head_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=head_init, name="head")(x)


efficientnet_b0 = EfficientNet
efficientnet_b1 = partial(EfficientNet, depth=1.1)
efficientnet_b2 = partial(EfficientNet, width=1.1, depth=1.2, dropout_rate=0.3)
efficientnet_b3 = partial(EfficientNet, width=1.2, depth=1.4, dropout_rate=0.3)
efficientnet_b4 = partial(EfficientNet, width=1.4, depth=1.8, dropout_rate=0.4)
efficientnet_b5 = partial(EfficientNet, width=1.6, depth=2.2, dropout_rate=0.4, norm_epsilon=1e-3)
efficientnet_b6 = partial(EfficientNet, width=1.8, depth=2.6, dropout_rate=0.5, norm_epsilon=1e-3)
efficientnet_b7 = partial(EfficientNet, width=2.0, depth=3.1, dropout_rate=0.5, norm_epsilon=1e-3)
