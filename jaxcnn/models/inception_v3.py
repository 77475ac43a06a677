"""Inception v3 (Szegedy et al. 2016, arXiv:1512.00567): factorised convolutions; for 299x299 pixels (table 1).

Layers are as in the authors' TensorFlow model and in torchvision, and so are their names, `mixed5b` to `mixed7c`. The
small stem is for 32x32 pixels: its convolutions have stride 1 and it has no pooling. Kernels start normal with 0.1, as
in torchvision. Dropout and the auxiliary head's weight are the authors', who have them in their code.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, Layer, Layers, check_stem, global_average
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.features import AUXILIARY, tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import adaptive_avg_pool, max_pool

kernel_init = nn.initializers.normal(0.1)


class ConvNorm(nn.Module):
    """A convolution of height x width without bias, a norm, an activation; padded by zeros unless VALID."""

    features: int
    size: tuple[int, int]
    layers: Layers
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h', w', features]."""
        conv = self.layers.conv(self.features, self.size, strides=self.stride, padding=self.padding, name="conv")
        return self.layers.activation(self.layers.norm(name="norm")(conv(x)))


def _average3(x: jax.Array) -> jax.Array:
    """The mean of 3x3 pixels around each, those outside being 0."""
    return nn.avg_pool(x, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))


class InceptionA(nn.Module):
    """Figure 5: 1x1; 5x5; twice 3x3; average."""

    layers: Layers
    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h, w, 224 + pool_features]."""
        conv = partial(ConvNorm, layers=self.layers)
        five = conv(48, (1, 1), name="branch5x5_1")(x)
        twice = conv(64, (1, 1), name="branch3x3dbl_1")(x)
        twice = conv(96, (3, 3), name="branch3x3dbl_2")(twice)
        branches = [
            conv(64, (1, 1), name="branch1x1")(x),
            conv(64, (5, 5), name="branch5x5_2")(five),
            conv(96, (3, 3), name="branch3x3dbl_3")(twice),
            conv(self.pool_features, (1, 1), name="branch_pool")(_average3(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """Figure 10, halving the sides: 3x3; twice 3x3; maximum."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, (h - 1) // 2, (w - 1) // 2, 480 + c]."""
        conv = partial(ConvNorm, layers=self.layers)
        twice = conv(64, (1, 1), name="branch3x3dbl_1")(x)
        twice = conv(96, (3, 3), name="branch3x3dbl_2")(twice)
        branches = [
            conv(384, (3, 3), stride=2, padding="VALID", name="branch3x3")(x),
            conv(96, (3, 3), stride=2, padding="VALID", name="branch3x3dbl_3")(twice),
            max_pool(x, 3, strides=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """Figure 6 with n = 7: 1x1; 7x7; twice 7x7; average. Each 7x7 is a 1x7 and a 7x1 convolution."""

    layers: Layers
    features: int  # of the 7x7 convolutions but their last

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h, w, 768]."""
        conv = partial(ConvNorm, layers=self.layers)
        once = conv(self.features, (1, 1), name="branch7x7_1")(x)
        once = conv(self.features, (1, 7), name="branch7x7_2")(once)
        twice = conv(self.features, (1, 1), name="branch7x7dbl_1")(x)
        for number, size in enumerate([(7, 1), (1, 7), (7, 1)], start=2):
            twice = conv(self.features, size, name=f"branch7x7dbl_{number}")(twice)
        branches = [
            conv(192, (1, 1), name="branch1x1")(x),
            conv(192, (7, 1), name="branch7x7_3")(once),
            conv(192, (1, 7), name="branch7x7dbl_5")(twice),
            conv(192, (1, 1), name="branch_pool")(_average3(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """Halves the sides again: 3x3; 7x7 and 3x3; maximum."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, (h - 1) // 2, (w - 1) // 2, 512 + c]."""
        conv = partial(ConvNorm, layers=self.layers)
        three = conv(192, (1, 1), name="branch3x3_1")(x)
        seven = x
        for number, size in enumerate([(1, 1), (1, 7), (7, 1)], start=1):
            seven = conv(192, size, name=f"branch7x7x3_{number}")(seven)
        branches = [
            conv(320, (3, 3), stride=2, padding="VALID", name="branch3x3_2")(three),
            conv(192, (3, 3), stride=2, padding="VALID", name="branch7x7x3_4")(seven),
            max_pool(x, 3, strides=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """Figure 7: 1x1; 1x3 beside 3x1; 3x3 and then these two; average."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h, w, 2048]."""
        conv = partial(ConvNorm, layers=self.layers)
        once = conv(384, (1, 1), name="branch3x3_1")(x)
        twice = conv(448, (1, 1), name="branch3x3dbl_1")(x)
        twice = conv(384, (3, 3), name="branch3x3dbl_2")(twice)
        branches = [
            conv(320, (1, 1), name="branch1x1")(x),
            conv(384, (1, 3), name="branch3x3_2a")(once),
            conv(384, (3, 1), name="branch3x3_2b")(once),
            conv(384, (1, 3), name="branch3x3dbl_3a")(twice),
            conv(384, (3, 1), name="branch3x3dbl_3b")(twice),
            conv(192, (1, 1), name="branch_pool")(_average3(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """Averages to 5x5 places, a 1x1 and a 5x5 convolution, an average, logits: figure 8."""

    num_classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to logits [batch, num_classes]; windows shrink where h or w is below 17."""
        large = min(x.shape[1:3]) >= 17
        x = nn.avg_pool(x, (5, 5), strides=(3, 3)) if large else adaptive_avg_pool(x, 5)
        x = ConvNorm(128, (1, 1), self.layers, name="conv1")(x)
        x = ConvNorm(768, (5, 5), self.layers, padding="VALID", name="conv2")(x)
        head_init = nn.initializers.normal(0.001)
        return nn.Dense(self.num_classes, kernel_init=head_init, dtype=jnp.float32, name="head")(global_average(x))


class InceptionV3(nn.Module):
    """Five convolutions, modules in three stages, an average, head: table 1. The auxiliary head is before stage 7."""

    num_classes: int
    stages: Sequence[Sequence[partial]]  # modules 5b to 5d, 6a to 6e, 7a to 7c
    stem: str = "imagenet"
    norm: Layer = BatchNorm  # lacks only use_running_average and epsilon; its dtype is this module's
    activation: Activation = nn.relu
    dropout_rate: float = 0.2  # before the head; torchvision has 0.5
    auxiliary_weight: float = 0.4  # times the auxiliary head's loss; 0: no such head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        check_stem("inception_v3", self.stem, images, smallest={"imagenet": 75, "small": 7})
        layers = Layers(
            partial(Conv, use_bias=False, kernel_init=kernel_init, dtype=self.dtype),
            partial(self.norm, use_running_average=not train, epsilon=1e-3, dtype=self.dtype),
            self.activation,
        )
        large = self.stem == "imagenet"
        conv = partial(ConvNorm, layers=layers, padding="VALID" if large else "SAME")

        x = conv(32, (3, 3), stride=2 if large else 1, name="conv1a")(images)
        x = conv(32, (3, 3), name="conv2a")(x)
        x = conv(64, (3, 3), padding="SAME", name="conv2b")(x)
        x = tap(self, "stage1", x)
        x = max_pool(x, 3, strides=2) if large else x
        x = conv(80, (1, 1), name="conv3b")(x)
        x = conv(192, (3, 3), name="conv4a")(x)
        x = tap(self, "stage2", x)
        x = max_pool(x, 3, strides=2) if large else x
        for stage, blocks in enumerate(self.stages, start=5):
            if stage == 7 and train and self.auxiliary_weight:
                logits = AuxiliaryHead(self.num_classes, layers, name="auxiliary")(x)
                tap(self, "auxiliary_logits", logits, collection=AUXILIARY)
            for letter, block in zip("bcd" if stage == 5 else "abcde", blocks, strict=False):
                block_class = nn.remat(block.func) if self.remat else block.func
                x = block_class(layers, **block.keywords, name=f"mixed{stage}{letter}")(x)
            x = tap(self, f"stage{stage - 2}", x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, dtype=jnp.float32, name="head")(x)


inception_v3 = partial(
    InceptionV3,
    stages=(
        [partial(InceptionA, pool_features=features) for features in (32, 64, 64)],
        [partial(InceptionB), *(partial(InceptionC, features=features) for features in (128, 160, 160, 192))],
        [partial(InceptionD), partial(InceptionE), partial(InceptionE)],
    ),
)
