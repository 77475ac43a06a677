"""Temporal convolutional network: Bai et al. 2018, An Empirical Evaluation of Generic Convolutional and Recurrent
Networks for Sequence Modeling, arXiv:1803.01271. Without its weight normalisation.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation
from jaxcnn.layers.features import tap
from jaxcnn.layers.forecast import Calendar, past_of


class CausalConv(nn.Module):
    """A dilated convolution over time whose output at a step sees that step and earlier ones alone.

    One product of the steps that each output sees, side by side: as fast within loops as outside.
    """

    features: int
    kernel_size: int
    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, time, channels] to [batch, time, features]."""
        time, channels = x.shape[1:]
        shape = (self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(in_axis=(0, 1)), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        reach = (self.kernel_size - 1) * self.dilation
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (reach, 0), (0, 0)))
        seen = [padded[:, place * self.dilation : place * self.dilation + time] for place in range(self.kernel_size)]
        product = jnp.concatenate(seen, axis=-1) @ kernel.reshape(-1, self.features).astype(self.dtype)
        return product + bias.astype(self.dtype)


class TemporalBlock(nn.Module):
    """Two causal convolutions around a shortcut: figure 1b."""

    features: int
    kernel_size: int
    dilation: int
    activation: Activation
    dropout_rate: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, time, channels] to [batch, time, features]."""
        y = x
        for number in (1, 2):
            y = CausalConv(self.features, self.kernel_size, self.dilation, self.dtype, name=f"conv{number}")(y)
            y = self.activation(y)
            y = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{number}")(y)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return self.activation(x + y)


class TCN(nn.Module):
    """Blocks whose dilation doubles from one to the next; the last step's features make the forecast.

    It sees 1 + 2 (kernel_size - 1) (2 ** blocks - 1) steps: 61 of four blocks of 3.
    """

    num_classes: int  # numbers that it answers with: horizon times quantiles
    horizon: int
    hidden: Sequence[int] = (32, 32, 32, 32)  # channels of each block
    kernel_size: int = 3
    activation: Activation = nn.relu
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Windows [batch, length + horizon, inputs] to forecasts [batch, num_classes]."""
        x = past_of(inputs, self.horizon).astype(self.dtype)
        for number, features in enumerate(self.hidden, start=1):
            block = TemporalBlock(
                features, self.kernel_size, 2 ** (number - 1), self.activation, self.dropout_rate, self.dtype,
                name=f"stage{number}_block",
            )  # fmt: skip
            x = tap(self, f"stage{number}", block(x, train=train), as_map=lambda x: x[:, None])
        x = tap(self, "pooled", x[:, -1])
        outputs = nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
        return outputs + Calendar(self.num_classes, self.horizon, name="head_calendar")(inputs)
