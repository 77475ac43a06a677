"""AlexNet (Krizhevsky et al. 2012) in one tower (Krizhevsky 2014, arXiv:1404.5997), with torchvision's channels.

No local response normalisation, as there. The small stem is for 32x32 pixels: a 3x3 convolution of stride 1, and the
head on the average of the last map: the dense layers would have 50 of the 53 million parameters.
Kernels start uniform within 1 / sqrt(fan-in), PyTorch's default, and biases at 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, check_stem, global_average, symmetric_conv
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.pool import adaptive_avg_pool, max_pool

uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(fan-in)


class AlexNet(nn.Module):
    """Layers conv1 to conv5 with three poolings, dense1, dense2, head."""

    num_classes: int
    stem: str = "imagenet"
    width: float = 1.0  # times the paper's channels and dense units
    activation: Activation = nn.relu
    dropout_rate: float = 0.5  # before each dense layer; with the small stem before the head
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        check_stem("alexnet", self.stem, images, smallest={"imagenet": 63, "small": 15})
        size, stride, padding = (11, 4, 2) if self.stem == "imagenet" else (3, 1, 1)
        conv1 = Conv(
            round(64 * self.width),
            (size, size),
            strides=stride,
            padding=padding,
            dtype=self.dtype,
            kernel_init=uniform,
            name="conv1",
        )
        conv = partial(symmetric_conv, use_bias=True, kernel_init=uniform, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        x = self.activation(conv1(images))
        x = tap(self, "stage1", x)
        x = max_pool(x, 3, strides=2)
        x = self.activation(conv(round(192 * self.width), 5, name="conv2")(x))
        x = tap(self, "stage2", x)
        x = max_pool(x, 3, strides=2)
        x = self.activation(conv(round(384 * self.width), 3, name="conv3")(x))
        x = self.activation(conv(round(256 * self.width), 3, name="conv4")(x))
        x = self.activation(conv(round(256 * self.width), 3, name="conv5")(x))
        x = tap(self, "stage3", x)
        x = max_pool(x, 3, strides=2)

        head = nn.Dense(self.num_classes, kernel_init=uniform, dtype=jnp.float32, name="head")
        if self.stem == "small":
            x = global_average(x)
            x = tap(self, "pooled", x)
            return head(dropout(name="head_dropout")(x))
        dense = partial(nn.Dense, round(4096 * self.width), kernel_init=uniform, dtype=self.dtype)
        x = adaptive_avg_pool(x, 6).reshape(x.shape[0], -1)
        x = self.activation(dense(name="dense1")(dropout(name="dropout1")(x)))
        x = self.activation(dense(name="dense2")(dropout(name="dropout2")(x)))
        x = tap(self, "pooled", x)
        return head(x)
