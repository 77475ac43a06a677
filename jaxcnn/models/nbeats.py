"""N-BEATS: Oreshkin et al. 2020, Neural basis expansion analysis for interpretable time series forecasting,
arXiv:1905.10437. Its generic architecture, of fewer blocks than the paper's 30.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation
from jaxcnn.layers.features import tap
from jaxcnn.layers.forecast import Calendar, past_of


class Block(nn.Module):
    """Dense layers that explain some of the past, and add what follows from it to the forecast: section 3.1."""

    num_classes: int
    hidden: Sequence[int]
    activation: Activation
    dropout_rate: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, observed: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """What it explains of the past [batch, length], and its forecast [batch, num_classes]."""
        y = jnp.concatenate([x, observed], axis=-1)
        for number, features in enumerate(self.hidden, start=1):
            y = self.activation(nn.Dense(features, dtype=self.dtype, name=f"dense{number}")(y))
            y = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{number}")(y)
        backcast = nn.Dense(x.shape[-1], dtype=self.dtype, name="backcast")(y)
        return backcast, nn.Dense(self.num_classes, dtype=jnp.float32, name="forecast")(y)


class NBeats(nn.Module):
    """Blocks one after the other, each given what those before have not explained; the forecast is their sum."""

    num_classes: int  # numbers that it answers with: horizon times quantiles
    horizon: int
    num_blocks: int = 6
    hidden: Sequence[int] = (128, 128, 128, 128)  # units of a block's dense layers
    activation: Activation = nn.relu
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Windows [batch, length + horizon, inputs] to forecasts [batch, num_classes]."""
        past = past_of(inputs, self.horizon).astype(self.dtype)
        left, observed = past[..., 0], past[..., 1]
        forecast = Calendar(self.num_classes, self.horizon, name="head_calendar")(inputs)
        for number in range(1, self.num_blocks + 1):
            name = "head" if number == self.num_blocks else f"stage{number}_block"
            block = Block(self.num_classes, self.hidden, self.activation, self.dropout_rate, self.dtype, name=name)
            backcast, more = block(
                tap(self, f"stage{number}", left, as_map=lambda x: x[:, None, :, None]), observed, train=train
            )
            left, forecast = left - backcast, forecast + more
        return forecast
