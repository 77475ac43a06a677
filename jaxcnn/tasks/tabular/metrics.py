"""Metrics of regression: of outputs [B, 1] and standardised targets, in the target's own unit."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.tasks.metric import Metric

LEAST_VARIANCE = 1e-6  # of the mean square: below it, float32 cannot tell a target from a constant


def _error(outputs: jax.Array, targets: dict[str, jax.Array]) -> jax.Array:
    return outputs[:, 0].astype(jnp.float32) - targets["value"]


def _absolute(outputs: Any, targets: Any, losses: jax.Array) -> jax.Array:
    return jnp.abs(_error(outputs, targets)) * targets["unit"]


def _squares(outputs: Any, targets: Any, losses: jax.Array) -> jax.Array:
    """Squared error, and what a standard deviation is in the target's unit, [B, 2]."""
    return jnp.stack([_error(outputs, targets) ** 2, targets["unit"]], axis=-1)


def _root(means: Any) -> Any:
    return means[..., 0] ** 0.5 * means[..., 1]


def _moments(outputs: Any, targets: Any, losses: jax.Array) -> jax.Array:
    """Squared error, the target, its square, [B, 3]."""
    value = targets["value"]
    return jnp.stack([_error(outputs, targets) ** 2, value, value**2], axis=-1)


def _determination(means: Any) -> Any:
    """1 - the mean squared error / the target's variance; 0 where that is 0, as scikit-learn has it."""
    error, value, square = means[..., 0], means[..., 1], means[..., 2]
    variance = square - value**2
    varies = variance > LEAST_VARIANCE * square
    return jnp.where(varies, 1 - error / jnp.where(varies, variance, 1), 0.0)


def metrics_for(unit: str) -> tuple[Metric, ...]:
    """Mean absolute error, root of the mean squared error, coefficient of determination; `unit` names the target's."""
    return (
        Metric("rmse", _squares, higher_is_better=False, unit=unit, size=2, finish=_root),
        Metric("mae", _absolute, higher_is_better=False, unit=unit),
        Metric("r2", _moments, higher_is_better=True, size=3, finish=_determination),
    )
