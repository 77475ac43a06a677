"""What forecasters share: which part of a window is its past, and what the calendar of the coming steps adds.

A window is [batch, length + horizon, inputs]; of each step its value and whether it was observed, both 0 in the
horizon, then its calendar: tasks/forecasting/windows.py.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn


def past_of(inputs: jax.Array, horizon: int) -> jax.Array:
    """The steps before the horizon, [batch, length, inputs]."""
    return inputs[:, : inputs.shape[1] - horizon]


class Calendar(nn.Module):
    """A linear map of each coming step's calendar, the same for all steps; zeros where there is none."""

    num_classes: int
    horizon: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Windows [batch, length + horizon, inputs] to what is added to forecasts, float32 [batch, num_classes]."""
        calendar = inputs[:, -self.horizon :, 2:]
        if not calendar.shape[-1]:
            return jnp.zeros((len(inputs), self.num_classes), jnp.float32)
        features = self.num_classes // self.horizon
        dense = nn.Dense(features, use_bias=False, dtype=jnp.float32, name="dense")
        return dense(calendar).reshape(len(inputs), self.num_classes)
