"""Recurrent forecasters: the past through an RNN, LSTM or GRU (layers/recurrent.py), the horizon from what it carries.

Directly, all steps at once; or recursively, a step at a time, each forecast being the next step's input (Sutskever et
al. 2014, arXiv:1409.3215, with the same cell before and after), in training as in evaluation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError
from jaxcnn.layers.features import tap
from jaxcnn.layers.forecast import Calendar, past_of
from jaxcnn.layers.recurrent import Recurrent


class ForecastRecurrent(nn.Module):
    """Layers of a cell, and a dense head."""

    num_classes: int  # numbers that it answers with: horizon times quantiles
    horizon: int
    cell: str = "lstm"
    hidden: Sequence[int] = (64,)  # units of each layer, all alike
    dropout_rate: float = 0.0  # between layers, and before the head
    recursive: bool = False
    fed_back: int = 0  # which of the quantiles is the next step's input
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Names the layers. Raises UserError where they are not alike."""
        if len(set(self.hidden)) != 1:
            raise UserError(
                f"model.hidden={tuple(self.hidden)}: layers of a recurrent forecaster are alike, e.g. '(64, 64)'"
            )
        self.recurrent = Recurrent(
            self.cell, self.hidden[0], len(self.hidden), dropout_rate=self.dropout_rate, dtype=self.dtype
        )
        self.head_dropout = nn.Dropout(self.dropout_rate)
        outputs = self.num_classes // self.horizon if self.recursive else self.num_classes
        self.head = nn.Dense(outputs, dtype=jnp.float32)
        if not self.recursive:
            self.head_calendar = Calendar(self.num_classes, self.horizon)

    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Windows [batch, length + horizon, inputs] to forecasts [batch, num_classes]."""
        outputs, carry = self.recurrent(past_of(inputs, self.horizon), train=train)
        outputs = tap(self, "stage1", outputs, as_map=lambda x: x[:, None])
        last = tap(self, "pooled", self.head_dropout(outputs[:, -1], deterministic=not train))
        first = self.head(last)
        if not self.recursive:
            return first + self.head_calendar(inputs)
        steps = jnp.moveaxis(inputs[:, -self.horizon :, 2:], 1, 0)[: self.horizon - 1]
        scan = nn.scan(
            partial(ForecastRecurrent._step, train=train), variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
        )  # fmt: skip
        _, rest = scan(self, (carry, first), steps)
        return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, 1).reshape(len(inputs), -1)

    def _step(self, state: Any, calendar: jax.Array, *, train: bool) -> Any:
        """One more step, whose value is the forecast before and whose calendar is known."""
        carry, before = state
        value = before[:, self.fed_back, None]
        step = jnp.concatenate([value, jnp.ones_like(value), calendar], axis=-1)
        outputs, carry = self.recurrent(step[:, None], carry, train=train)
        forecast = self.head(self.head_dropout(outputs[:, 0], deterministic=not train))
        return (carry, forecast), forecast


forecast_rnn, forecast_lstm, forecast_gru = (partial(ForecastRecurrent, cell=cell) for cell in ("rnn", "lstm", "gru"))
