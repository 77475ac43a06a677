"""Averages of a run's weights: after each step a pure (ema, now, step) -> (ema, now), on trees of float arrays.

Both trees are {"params", "batch_stats"}. `step` counts the updates applied. The average is what a run's result is
measured with.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.config import OptimizerConfig

Average = Callable[[Any, Any, jax.Array], tuple[Any, Any]]


def make_average(optimizer: OptimizerConfig, *, total_steps: int) -> Average | None:
    """The one that the config asks for; None: no average is kept."""
    if optimizer.lookahead_every_steps is not None:
        return lookahead(
            optimizer.lookahead_every_steps, decay=optimizer.lookahead_decay, total_steps=total_steps
        )  # fmt: skip
    if optimizer.ema_decay is not None:
        return exponential(optimizer.ema_decay)
    return None


def averages(optimizer: OptimizerConfig) -> bool:
    """Whether the config asks for an average."""
    return optimizer.lookahead_every_steps is not None or optimizer.ema_decay is not None


def exponential(decay: float) -> Average:
    """Moves the average towards what is now; early on faster, by (1 + t) / (10 + t), as it began at the init."""

    def average(ema: Any, now: Any, step: jax.Array) -> tuple[Any, Any]:
        t = step.astype(jnp.float32)
        keep = jnp.minimum(decay, (1 + t) / (10 + t))
        # in this form what does not change stays bit for bit: frozen layers
        return jax.tree.map(lambda old, new: old + (1 - keep) * (new - old), ema, now), now

    return average


def lookahead(every_steps: int, *, decay: float, total_steps: int) -> Average:
    """Every few steps the average moves, and the weights go back to it (Zhang et al. 2019, arXiv:1907.08610).

    As in Jordan 2024 (arXiv:2404.00498) it moves all the way at first and hardly in the end: it keeps
    decay * (step / total_steps)^3 of itself. Statistics of batch norm go along; the optimizer's momenta stay.
    """

    def average(ema: Any, now: Any, step: jax.Array) -> tuple[Any, Any]:
        move = 1 - decay * (step / total_steps) ** 3
        is_time = step % every_steps == 0
        ema = jax.tree.map(lambda old, new: jnp.where(is_time, old + move * (new - old), old), ema, now)
        ema = jax.lax.optimization_barrier(ema)  # else it may be computed twice, and the two differ in the last bit
        return ema, jax.tree.map(lambda old, new: jnp.where(is_time, old, new), ema, now)

    return average
