"""DenseNet-BC (Huang et al. 2017, arXiv:1608.06993): each layer sees all before it; for ImageNet (table 1) and CIFAR.

Layers have bottlenecks of 4 k features, and transitions halve the features. With the small stem, for 32x32 pixels, a
3x3 convolution of stride 1 alone stands before the first stage. Convolutions start He-normal, as in the paper.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, Layer, Layers, check_stem, global_average, symmetric_conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import max_pool

he_normal_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # He et al. 2015


class DenseLayer(nn.Module):
    """Norm, activation, 1x1 convolution to 4 k features; norm, activation, 3x3 convolution to k."""

    growth_rate: int  # the paper's k
    layers: Layers
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, earlier: Sequence[jax.Array], train: bool) -> jax.Array:
        """Maps what the stage holds so far, each [batch, h, w, features], to k features more.

        They are concatenated in here, so that with `remat` a stage keeps each once (Pleiss et al. 2017).
        """
        conv, norm, activation = self.layers
        x = jnp.concatenate(earlier, axis=-1)
        x = conv(4 * self.growth_rate, 1, name="conv1")(activation(norm(name="norm1")(x)))
        x = conv(self.growth_rate, 3, name="conv2")(activation(norm(name="norm2")(x)))
        return nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)


class Transition(nn.Module):
    """Norm, activation, 1x1 convolution to half the features, average of 2x2 pixels."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h // 2, w // 2, c // 2]."""
        conv, norm, activation = self.layers
        x = conv(x.shape[-1] // 2, 1, name="conv")(activation(norm(name="norm")(x)))
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    """Stem, stages of densely connected layers with transitions between, a last norm and activation, head."""

    num_classes: int
    stage_sizes: Sequence[int]  # layers in each stage
    growth_rate: int = 32  # features of a layer: the paper's k
    stem_features: int = 64
    stem: str = "imagenet"
    width: float = 1.0  # times the paper's features
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    dropout_rate: float = 0.0  # after each layer; the paper has 0.2 where images are not augmented
    remat: bool = False  # compute each layer again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        halvings = 2 ** (len(self.stage_sizes) - 1)
        check_stem("densenet", self.stem, images, smallest={"imagenet": 4 * halvings - 3, "small": halvings})
        conv = partial(symmetric_conv, kernel_init=he_normal_in, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        layers = Layers(conv, norm, self.activation)
        layer_class = nn.remat(DenseLayer, static_argnums=(2,)) if self.remat else DenseLayer

        features = round(self.stem_features * self.width)
        if self.stem == "imagenet":
            x = conv(features, 7, 2, name="stem_conv")(images)
            x = self.activation(norm(name="stem_norm")(x))
            x = max_pool(x, 3, strides=2, padding=1)
        else:
            x = conv(features, 3, name="stem_conv")(images)
        for stage, num_layers in enumerate(self.stage_sizes, start=1):
            if stage > 1:
                x = Transition(layers, name=f"transition{stage - 1}")(x)
            held = [x]
            for index in range(1, num_layers + 1):
                layer = layer_class(
                    round(self.growth_rate * self.width), layers, self.dropout_rate, name=f"stage{stage}_layer{index}"
                )
                held.append(layer(held, train))
            x = jnp.concatenate(held, axis=-1)
            if stage == len(self.stage_sizes):
                x = self.activation(norm(name="final_norm")(x))
            x = tap(self, f"stage{stage}", x)
        x = global_average(x)
        x = tap(self, "pooled", x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


densenet121 = partial(DenseNet, stage_sizes=(6, 12, 24, 16))
densenet161 = partial(DenseNet, stage_sizes=(6, 12, 36, 24), growth_rate=48, stem_features=96)
densenet169 = partial(DenseNet, stage_sizes=(6, 12, 32, 32))
densenet201 = partial(DenseNet, stage_sizes=(6, 12, 48, 32))
densenet_bc_100_12 = partial(  # for CIFAR: 100 layers, k = 12 (table 2)
    DenseNet, stage_sizes=(16, 16, 16), growth_rate=12, stem_features=24, stem="small"
)
