"""EfficientNet-Lite 0 to 4: EfficientNet (Tan and Le 2019, arXiv:1905.11946) for phones, as tensorflow/tpu has it.

No squeeze-and-excitation, ReLU6 for SiLU; stem, last layer and the blocks of the first and the last stage do not scale.
Convolutions pad as TensorFlow's, which published weights need: of an odd number of pixels one side has one more. Norms
have epsilon 1e-3, their statistics there a momentum of 0.99 (model.batch_norm_momentum). Begins as EfficientNet does.
"""

import math
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
    same_conv,
    strides_for,
    to_multiple,
)
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.models.efficientnet import ROWS, Row
from jaxcnn.models.mobilenet_v2 import InvertedResidual


class EfficientNetLite(nn.Module):
    """A stage for each row of EfficientNet's table 1."""

    num_classes: int
    rows: tuple[Row, ...] = ROWS
    stem: str = "imagenet"  # small: the stem and the second stage keep their size
    width: float = 1.0  # times the channels of Lite0, those of stem and last layer excepted
    depth: float = 1.0  # times the blocks of Lite0, those of the first and the last stage excepted
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    norm_epsilon: float = 1e-3
    activation: Activation = nn.relu6
    stochastic_depth: float = 0.2  # of the last block; linear from 0 at the first
    dropout_rate: float = 0.2  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype, epsilon=self.norm_epsilon)
        layers = Layers(partial(same_conv, dtype=self.dtype), norm, self.activation)
        block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        strides = strides_for(self.stem, (2, *(row.stride for row in self.rows)))
        stage_sizes = stage_sizes_of(self.depth, self.rows)
        number, last = 0, max(1, sum(stage_sizes) - 1)
        inputs = 32  # of a block

        x = ConvNorm(inputs, 3, layers, strides[0], name="stem")(images)
        for stage, (row, num_blocks) in enumerate(zip(self.rows, stage_sizes, strict=True), start=1):
            features = to_multiple(row.features * self.width)
            for index in range(1, num_blocks + 1):
                x = block(
                    inputs=inputs,
                    expanded=inputs * row.expansion,
                    features=features,
                    size=row.size,
                    stride=strides[stage] if index == 1 else 1,
                    layers=layers,
                    drop_rate=self.stochastic_depth * number / last,
                    name=f"stage{stage}_block{index}",
                )(x, train)
                number, inputs = number + 1, features
            x = tap(self, f"stage{stage}", x)
        x = ConvNorm(1280, 1, layers, name="last")(x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        head_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=head_init, name="head")(x)


def stage_sizes_of(depth: float, rows: tuple[Row, ...] = ROWS) -> list[int]:
    """Blocks of each stage: the rows' times `depth`, rounded up, but of the first and the last as they are."""
    ends = (0, len(rows) - 1)
    return [row.num_blocks if n in ends else math.ceil(row.num_blocks * depth) for n, row in enumerate(rows)]


DEPTHS = {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.4, 4: 1.8}  # by the variant's number

efficientnet_lite0 = EfficientNetLite
efficientnet_lite1 = partial(EfficientNetLite, depth=DEPTHS[1])
efficientnet_lite2 = partial(EfficientNetLite, width=1.1, depth=DEPTHS[2], dropout_rate=0.3)
efficientnet_lite3 = partial(EfficientNetLite, width=1.2, depth=DEPTHS[3], dropout_rate=0.3)
efficientnet_lite4 = partial(EfficientNetLite, width=1.4, depth=DEPTHS[4], dropout_rate=0.3)
