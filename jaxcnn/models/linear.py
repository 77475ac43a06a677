"""DLinear: Zeng et al. 2023, Are Transformers Effective for Time Series Forecasting?, arXiv:2205.13504.

The baseline that shows what a deeper forecaster is worth.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.features import tap
from jaxcnn.layers.forecast import Calendar, past_of


class Linear(nn.Module):
    """A linear map of the past's trend, one of what is left of it, and one of each coming step's calendar."""

    num_classes: int  # numbers that it answers with: horizon times quantiles
    horizon: int
    window: int = 25  # steps that the trend is a mean over
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Windows [batch, length + horizon, inputs] to forecasts [batch, num_classes]."""
        values = past_of(inputs, self.horizon)[..., 0]
        trend = moving_mean(values, self.window)
        x = tap(self, "pooled", jnp.concatenate([trend, values - trend], axis=-1))
        outputs = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        return outputs + Calendar(self.num_classes, self.horizon, name="head_calendar")(inputs)


def moving_mean(values: jax.Array, window: int) -> jax.Array:
    """Mean over a window around each step, [batch, time], the ends repeated beyond both."""
    before = (window - 1) // 2
    padded = jnp.pad(values, ((0, 0), (before, window - 1 - before)), mode="edge")
    sums = jnp.cumsum(jnp.pad(padded, ((0, 0), (1, 0))), axis=1)
    return (sums[:, window:] - sums[:, :-window]) / window
