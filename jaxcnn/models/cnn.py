"""The small network of many MNIST tutorials: two convolutions and two dense layers.

It has 824,458 parameters on 28x28 grey images, and takes any image from 4x4 pixels on, the 8x8 digits too.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError
from jaxcnn.layers.blocks import Activation
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.pool import max_pool


class CNN(nn.Module):
    """3x3 convolutions with 32 and 64 maps, each pooled by 2; 256 dense units; the head."""

    num_classes: int
    activation: Activation = nn.relu
    dropout_rate: float = 0.0  # before the head
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        height, width = images.shape[1:3]
        if min(height, width) < 4:
            raise UserError(
                f"cnn needs images of at least 4x4 pixels and got {height}x{width}: "
                "use --config.model.name=mlp, or enlarge them with --config.data.image_size=8"
            )
        x = images
        x = self.activation(Conv(32, (3, 3), padding=1, dtype=self.dtype, name="conv1")(x))
        x = tap(self, "stage1", x)
        x = max_pool(x, 2)
        x = self.activation(Conv(64, (3, 3), padding=1, dtype=self.dtype, name="conv2")(x))
        x = tap(self, "stage2", x)
        x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        x = self.activation(nn.Dense(256, dtype=self.dtype, name="dense1")(x))
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
