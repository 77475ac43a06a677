"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244): inverted residuals with squeeze-and-excitation and hard-swish.

Strided convolutions pad both sides alike, where the original's "SAME" pads one. Convolutions start He-normal by
fan-out, the dense layers with standard deviation 0.01, as in torchvision.
"""

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
    """A row "bneck" of tables 1 and 2."""

    size: int  # of the depthwise convolution, in pixels
    expanded: int  # its channels: "exp size"
    features: int
    squeezes: bool  # SE
    nonlinearity: str  # NL
    stride: int


RE, HS = "relu", "hard_swish"

LARGE = (  # table 1
    Row(3, 16, 16, False, RE, 1),
    Row(3, 64, 24, False, RE, 2),
    Row(3, 72, 24, False, RE, 1),
    Row(5, 72, 40, True, RE, 2),
    Row(5, 120, 40, True, RE, 1),
    Row(5, 120, 40, True, RE, 1),
    Row(3, 240, 80, False, HS, 2),
    Row(3, 200, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 480, 112, True, HS, 1),
    Row(3, 672, 112, True, HS, 1),
    Row(5, 672, 160, True, HS, 2),
    Row(5, 960, 160, True, HS, 1),
    Row(5, 960, 160, True, HS, 1),
)

SMALL = (  # table 2
    Row(3, 16, 16, True, RE, 2),
    Row(3, 72, 24, False, RE, 2),
    Row(3, 88, 24, False, RE, 1),
    Row(5, 96, 40, True, HS, 2),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 240, 40, True, HS, 1),
    Row(5, 120, 48, True, HS, 1),
    Row(5, 144, 48, True, HS, 1),
    Row(5, 288, 96, True, HS, 2),
    Row(5, 576, 96, True, HS, 1),
    Row(5, 576, 96, True, HS, 1),
)


class MobileNetV3(nn.Module):
    """A block for each row; a stage's features are those before the sides are halved again."""

    num_classes: int
    rows: tuple[Row, ...]
    hidden: int  # units of the dense layer before the head
    stem: str = "imagenet"  # small: the stem, and the first block that halves the sides, keep their size
    width: float = 1.0  # times the paper's channels
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation | None = None  # of all layers; none: the paper's, ReLU and then hard-swish
    stochastic_depth: float = 0.0  # of the last block; linear from 0 at the first
    dropout_rate: float = 0.2  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        conv = partial(symmetric_conv, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype, epsilon=1e-3)
        layers = {
            RE: Layers(conv, norm, self.activation or nn.relu),
            HS: Layers(conv, norm, self.activation or nn.hard_swish),
        }
        block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        strides = strides_for(self.stem, (2, *(row.stride for row in self.rows)))
        stage, inputs = 0, to_multiple(16 * self.width)  # inputs: of a block

        x = ConvNorm(inputs, 3, layers[HS], strides[0], name="stem")(images)
        for number, row in enumerate(self.rows, start=1):
            if row.stride == 2 and number > 1:
                stage += 1
                x = tap(self, f"stage{stage}", x)
            expanded = to_multiple(row.expanded * self.width)
            squeeze = partial(
                SqueezeExcitation, hidden=to_multiple(expanded // 4), gate=nn.hard_sigmoid, dtype=self.dtype
            )
            features = to_multiple(row.features * self.width)
            x = block(
                inputs=inputs,
                expanded=expanded,
                features=features,
                size=row.size,
                stride=strides[number],
                layers=layers[row.nonlinearity],
                attention=squeeze if row.squeezes else None,
                drop_rate=self.stochastic_depth * (number - 1) / max(1, len(self.rows) - 1),
                name=f"block{number}",
            )(x, train)
            inputs = features
        x = tap(self, f"stage{stage + 1}", x)
        x = ConvNorm(6 * inputs, 1, layers[HS], name="last")(x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        dense = partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))
        x = layers[HS].activation(dense(to_multiple(self.hidden * self.width), dtype=self.dtype, name="hidden")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        return dense(self.num_classes, dtype=jnp.float32, name="head")(x)


mobilenet_v3_large = partial(MobileNetV3, rows=LARGE, hidden=1280)
mobilenet_v3_small = partial(MobileNetV3, rows=SMALL, hidden=1024)
