"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360): AlexNet's accuracy with 50 x fewer parameters, in fire modules.

Version 1.1 is the authors' later one: half the work for the same accuracy. Sides are pooled rounding up, as in
torchvision. The small stem is for 32x32 pixels: a 3x3 convolution of stride 1, and no first pooling.
Convolutions start He-uniform, the head normal with 0.01, as in torchvision.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, Layer, check_stem, global_average, symmetric_conv
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.pool import max_pool


class Fire(nn.Module):
    """Squeezes by a 1x1 convolution, expands by a 1x1 and a 3x3 one side by side (section 3.2)."""

    squeeze: int
    expand: int  # features of either
    conv: Layer
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h, w, 2 * expand]."""
        x = self.activation(self.conv(self.squeeze, 1, name="squeeze_conv")(x))
        expanded1x1 = self.activation(self.conv(self.expand, 1, name="expand1x1_conv")(x))
        three = self.activation(self.conv(self.expand, 3, name="expand3x3_conv")(x))
        return jnp.concatenate([expanded1x1, three], axis=-1)


class SqueezeNet(nn.Module):
    """Layers conv1, fire2 to fire9, and a head of 1x1 convolution and average: table 1."""

    num_classes: int
    fires: Sequence[Sequence[tuple[int, int]]]  # squeeze and expand of each fire module, between poolings
    stem_features: int
    stem_size: int  # of the stem's convolution
    stem: str = "imagenet"
    activation: Activation = nn.relu
    dropout_rate: float = 0.5  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        smallest = {"imagenet": 14 + self.stem_size, "small": 4}
        check_stem("squeezenet", self.stem, images, smallest=smallest)
        kernel_init = nn.initializers.he_uniform()
        conv = partial(symmetric_conv, use_bias=True, kernel_init=kernel_init, dtype=self.dtype)
        fire_class = nn.remat(Fire) if self.remat else Fire
        if self.stem == "imagenet":
            conv1 = Conv(
                self.stem_features,
                (self.stem_size, self.stem_size),
                strides=2,
                padding=0,
                kernel_init=kernel_init,
                dtype=self.dtype,
                name="conv1",
            )
        else:
            conv1 = conv(self.stem_features, 3, name="conv1")

        x = self.activation(conv1(images))
        x = tap(self, "stage1", x)
        number = 2
        for stage, fires in enumerate(self.fires, start=2):
            if stage > 2 or self.stem == "imagenet":
                x = max_pool(x, 3, strides=2, ceil_mode=True)
            for squeeze, expand in fires:
                x = fire_class(squeeze, expand, conv=conv, activation=self.activation, name=f"fire{number}")(x)
                number += 1
            x = tap(self, f"stage{stage}", x)
        tap(self, "pooled", global_average(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        head_init = nn.initializers.normal(0.01)
        x = symmetric_conv(self.num_classes, 1, use_bias=True, kernel_init=head_init, dtype=jnp.float32, name="head")(x)
        return global_average(self.activation(x))


squeezenet1_0 = partial(
    SqueezeNet,
    fires=(
        ((16, 64), (16, 64), (32, 128)),
        ((32, 128), (48, 192), (48, 192), (64, 256)),
        ((64, 256),),
    ),
    stem_features=96,
    stem_size=7,
)
squeezenet1_1 = partial(
    SqueezeNet,
    fires=(
        ((16, 64), (16, 64)),
        ((32, 128), (32, 128)),
        ((48, 192), (48, 192), (64, 256), (64, 256)),
    ),
    stem_features=64,
    stem_size=3,
)
