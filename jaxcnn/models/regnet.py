"""RegNet (Radosavovic et al. 2020, arXiv:2003.13678): a few numbers give the width of every block (section 3.3).

X: bottlenecks of one width, with grouped convolutions. Y: with squeeze-and-excitation too. Numbers are those of
appendix D as torchvision has them; initialisation as there: He-normal by fan-out, the head's deviation 0.01.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import (
    Activation,
    ConvNorm,
    Layer,
    Layers,
    StochasticDepth,
    global_average,
    strides_for,
    symmetric_conv,
    to_multiple,
)
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.models.resnet import projection_shortcut
from jaxcnn.models.squeeze_excitation import SqueezeExcitation


def stages_of(depth: int, initial: int, slope: float, step: float, group_width: int) -> list[tuple[int, int]]:
    """(channels, blocks) of each stage, by equations 2 to 4: widths on a line, then on powers of a step.

    Args:
      depth: blocks in all: the paper's d.
      initial: width of the first: w_0.
      slope: by which the line grows a block: w_a.
      step: between stages: w_m.
      group_width: channels of a group, of which a wider stage has a whole number.
    """
    line = initial + slope * np.arange(depth)
    exponents = np.round(np.log(line / initial) / np.log(step))
    widths, num_blocks = np.unique(8 * np.round(initial * step**exponents / 8), return_counts=True)
    return [
        (to_multiple(int(width), min(group_width, int(width))), int(number))
        for width, number in zip(widths, num_blocks, strict=True)
    ]


class Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions of one width: figure 4; as the Y block, with attention before the last."""

    features: int
    stride: int
    changes: bool  # whether the shape does
    layers: Layers
    groups: int
    attention: Layer | None = None
    drop_rate: float = 0.0  # of the branch: stochastic depth

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        conv, norm, activation = self.layers
        y = conv(self.features, 1, name="conv1")(x)
        y = activation(norm(name="norm1")(y))
        y = conv(self.features, 3, self.stride, groups=self.groups, name="conv2")(y)
        y = activation(norm(name="norm2")(y))
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        y = conv(self.features, 1, name="conv3")(y)
        y = norm(name="norm3")(y)
        y = StochasticDepth(self.drop_rate, name="drop")(y, train=train)
        return activation(y + (projection_shortcut(x, y.shape[-1], self.stride, self.layers) if self.changes else x))


class RegNet(nn.Module):
    """A 3x3 stem and stages that each halve the sides."""

    num_classes: int
    stages: tuple[tuple[int, int], ...]  # channels and blocks
    group_width: int  # channels of a group of the 3x3 convolutions
    width: float = 1.0  # times the paper's channels; whole groups
    depth: float = 1.0  # times the paper's blocks, rounded up
    squeeze: float = 0.0  # units of squeeze-and-excitation, times the block's input channels; 0: none
    stem: str = "imagenet"  # small: the stem and the first stage keep their size
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    stochastic_depth: float = 0.0  # of the last block; linear from 0 at the first
    dropout_rate: float = 0.0  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        layers = Layers(partial(symmetric_conv, dtype=self.dtype), norm, self.activation)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        strides = strides_for(self.stem, [2] * (1 + len(self.stages)))
        stages = [
            (to_multiple(features * self.width, min(self.group_width, features)), math.ceil(num_blocks * self.depth))
            for features, num_blocks in self.stages
        ]
        number, last = 0, max(1, sum(num_blocks for _, num_blocks in stages) - 1)
        inputs = 32  # of a block

        x = ConvNorm(inputs, 3, layers, strides[0], name="stem")(images)
        for stage, (features, num_blocks) in enumerate(stages, start=1):
            for index in range(1, num_blocks + 1):
                hidden = round(self.squeeze * inputs)
                stride = strides[stage] if index == 1 else 1
                x = block(
                    features,
                    stride,
                    stride > 1 or inputs != features,
                    layers,
                    groups=features // min(self.group_width, features),
                    attention=partial(SqueezeExcitation, hidden=hidden, dtype=self.dtype) if hidden else None,
                    drop_rate=self.stochastic_depth * number / last,
                    name=f"stage{stage}_block{index}",
                )(x, train)
                number, inputs = number + 1, features
            x = tap(self, f"stage{stage}", x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        head_init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=head_init, name="head")(x)


def _x(depth: int, initial: int, slope: float, step: float, group_width: int) -> partial[RegNet]:
    stages = tuple(stages_of(depth, initial, slope, step, group_width))
    return partial(RegNet, stages=stages, group_width=group_width)


def _y(depth: int, initial: int, slope: float, step: float, group_width: int) -> partial[RegNet]:
    return partial(_x(depth, initial, slope, step, group_width), squeeze=0.25)


regnet_x_400mf = _x(22, 24, 24.48, 2.54, 16)
regnet_x_800mf = _x(16, 56, 35.73, 2.28, 16)
regnet_x_1_6gf = _x(18, 80, 34.01, 2.25, 24)
regnet_x_3_2gf = _x(25, 88, 26.31, 2.25, 48)
regnet_x_8gf = _x(23, 80, 49.56, 2.88, 120)
regnet_x_16gf = _x(22, 216, 55.59, 2.1, 128)
regnet_x_32gf = _x(23, 320, 69.86, 2.0, 168)
regnet_y_400mf = _y(16, 48, 27.89, 2.09, 8)
regnet_y_800mf = _y(14, 56, 38.84, 2.4, 16)
regnet_y_1_6gf = _y(27, 48, 20.71, 2.65, 24)
regnet_y_3_2gf = _y(21, 80, 42.63, 2.66, 24)
regnet_y_8gf = _y(17, 192, 76.82, 2.19, 56)
regnet_y_16gf = _y(18, 200, 106.23, 2.48, 112)
regnet_y_32gf = _y(20, 232, 115.89, 2.53, 232)
regnet_y_128gf = _y(27, 456, 160.83, 2.52, 264)
