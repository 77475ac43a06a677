"""LeNet-5 (LeCun et al. 1998, section II.B) as it is usually built today: 61,706 parameters on 28x28 grey images.

Layers and sizes are the paper's, except that conv2 sees all maps of conv1 (the paper's table 1 wires it sparsely, to
spare parameters), pooling learns nothing, and the head is linear (the paper's is radial basis functions). Where the
paper has tanh and averages, this has ReLU and maxima: they train faster and reach higher accuracy.
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


class LeNet5(nn.Module):
    """Layers conv1, pool, conv2, pool, dense1, dense2, head: the paper's C1, S2, C3, S4, C5, F6 and output."""

    num_classes: int
    activation: Activation = nn.relu
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        height, width = images.shape[1:3]
        if min(height, width) < 12:
            raise UserError(
                f"lenet5 needs images of at least 12x12 pixels and got {height}x{width}: "
                "use --config.model.name=cnn, or enlarge them with --config.data.image_size=28"
            )
        x = images
        x = self.activation(Conv(6, (5, 5), padding=2, dtype=self.dtype, name="conv1")(x))
        x = tap(self, "stage1", x)
        x = max_pool(x, 2)
        x = self.activation(Conv(16, (5, 5), padding=0, dtype=self.dtype, name="conv2")(x))
        x = tap(self, "stage2", x)
        x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        x = self.activation(nn.Dense(120, dtype=self.dtype, name="dense1")(x))
        x = self.activation(nn.Dense(84, dtype=self.dtype, name="dense2")(x))
        x = tap(self, "pooled", x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
