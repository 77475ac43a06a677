"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842): inception modules, and two auxiliary heads in training.

As in torchvision with batch norm, without local response normalisation, and what the paper calls 5x5 is 3x3. Sides
are pooled rounding up. The small stem is for 32x32 pixels: its first convolution is 3x3 with stride 1, and it has no
pooling. Kernels start normal with 0.01, as in torchvision.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, ConvNorm, Layer, Layers, check_stem, global_average, symmetric_conv
from jaxcnn.layers.features import AUXILIARY, tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import adaptive_avg_pool, max_pool

kernel_init = nn.initializers.normal(0.01)


class Inception(nn.Module):
    """Four branches side by side: figure 2b."""

    features: Sequence[int]  # as in table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h, w, the sum of the branches' features]."""
        one, reduce3, three, reduce5, five, projection = self.features
        conv = partial(ConvNorm, layers=self.layers)
        branches = [
            conv(one, 1, name="branch1")(x),
            conv(three, 3, name="branch2")(conv(reduce3, 1, name="branch2_reduce")(x)),
            conv(five, 3, name="branch3")(conv(reduce5, 1, name="branch3_reduce")(x)),
            conv(projection, 1, name="branch4")(max_pool(x, 3, strides=1, padding=1)),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """Averages to 4x4 places, 1x1 convolution, a dense layer, dropout, logits: section 5."""

    num_classes: int
    layers: Layers
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to logits [batch, num_classes]; in training only."""
        x = ConvNorm(128, 1, self.layers, name="conv")(adaptive_avg_pool(x, 4)).reshape(x.shape[0], -1)
        x = self.layers.activation(nn.Dense(1024, kernel_init=kernel_init, dtype=self.dtype, name="dense1")(x))
        x = nn.Dropout(0.7, deterministic=False, name="dropout")(x)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, dtype=jnp.float32, name="head")(x)


class GoogLeNet(nn.Module):
    """Three convolutions, nine inception modules in three stages, an average, head: table 1."""

    num_classes: int
    stages: Sequence[Sequence[Sequence[int]]]  # an inception module's features, 3a to 5b
    stem: str = "imagenet"
    norm: Layer = BatchNorm  # lacks only use_running_average and epsilon; its dtype is this module's
    activation: Activation = nn.relu
    dropout_rate: float = 0.4  # before the head; torchvision has 0.2
    auxiliary_weight: float = 0.3  # times the auxiliary heads' losses; 0: no such heads
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        check_stem("googlenet", self.stem, images, smallest={"imagenet": 15, "small": 4})
        layers = Layers(
            partial(symmetric_conv, kernel_init=kernel_init, dtype=self.dtype),
            partial(self.norm, use_running_average=not train, epsilon=1e-3, dtype=self.dtype),
            self.activation,
        )
        conv = partial(ConvNorm, layers=layers)
        pool = partial(max_pool, strides=2, ceil_mode=True)
        block_class = nn.remat(Inception) if self.remat else Inception

        large = self.stem == "imagenet"
        x = conv(64, 7 if large else 3, stride=2 if large else 1, name="conv1")(images)
        x = tap(self, "stage1", x)
        x = pool(x, 3) if large else x
        x = conv(64, 1, name="conv2")(x)
        x = conv(192, 3, name="conv3")(x)
        x = tap(self, "stage2", x)
        x = pool(x, 3) if large else x
        for stage, blocks in enumerate(self.stages, start=3):
            if stage > 3:
                x = pool(x, 3 if stage == 4 else 2)
            for letter, features in zip("abcde", blocks, strict=False):
                x = block_class(features, layers, name=f"inception{stage}{letter}")(x)
                if train and self.auxiliary_weight and f"{stage}{letter}" in ("4a", "4d"):
                    name = "auxiliary1" if letter == "a" else "auxiliary2"
                    logits = AuxiliaryHead(self.num_classes, layers, self.dtype, name=name)(x)
                    tap(self, f"{name}_logits", logits, collection=AUXILIARY)
            x = tap(self, f"stage{stage}", x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, dtype=jnp.float32, name="head")(x)


googlenet = partial(
    GoogLeNet,
    stages=(
        ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
        (
            (192, 96, 208, 16, 48, 64),
            (160, 112, 224, 24, 64, 64),
            (128, 128, 256, 24, 64, 64),
            (112, 144, 288, 32, 64, 64),
            (256, 160, 320, 32, 128, 128),
        ),
        ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
    ),
)
