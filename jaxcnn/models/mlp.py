"""A multilayer perceptron: the baseline that shows what convolutions are worth."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, Layer
from jaxcnn.layers.features import tap


class MLP(nn.Module):
    """Dense layers on all pixels, or all columns of a table, at once."""

    num_classes: int
    hidden: Sequence[int] = (512, 512)
    activation: Activation = nn.relu
    norm: Layer | None = None  # between each hidden layer and its activation
    dropout_rate: float = 0.0  # after each hidden layer
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels], or anything else, flattened, to logits [batch, num_classes]."""
        x = images.reshape(images.shape[0], -1)
        for number, features in enumerate(self.hidden, start=1):
            x = nn.Dense(features, use_bias=self.norm is None, dtype=self.dtype, name=f"dense{number}")(x)
            if self.norm is not None:
                x = self.norm(use_running_average=not train, dtype=self.dtype, name=f"norm{number}")(x)
            x = self.activation(x)
            x = tap(self, f"stage{number}", x, as_map=lambda x: x[:, None, None, :])
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = tap(self, "pooled", x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
