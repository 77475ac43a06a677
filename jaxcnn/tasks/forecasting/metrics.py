"""Metrics of forecasts, of a model's and of the forecasts without a model that stand beside it.

All are means over what was observed of the horizons. Outputs are [B, horizon * quantiles], in each window's own scale.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.tasks.forecasting.windows import BASELINES
from jaxcnn.tasks.metric import Metric

Targets = dict[str, Any]  # the arrays of windows.py:Shape.example but the inputs, [B, ...]
Errors = Callable[[Any, Targets], jax.Array]  # (forecast [B, horizon] in the window's scale, targets) -> [B, horizon]


def by_quantile(outputs: Any, count: int) -> Any:
    """[B, horizon * count] as [B, horizon, count]."""
    return outputs.reshape(len(outputs), -1, count)


def middle(quantiles: tuple[float, ...]) -> int:
    """The place of the median, which is the forecast where there are quantiles."""
    return quantiles.index(0.5) if quantiles else 0


# ---- errors, in the series' own unit or free of it


def absolute(forecast: Any, targets: Targets) -> jax.Array:
    """|error|, in the series' unit."""
    return jnp.abs(forecast - targets["value"]) * targets["scale"][:, None]


def squared(forecast: Any, targets: Targets) -> jax.Array:
    """Squared error, in the unit's square."""
    return absolute(forecast, targets) ** 2


def symmetric(forecast: Any, targets: Targets) -> jax.Array:
    """200 |error| / (|truth| + |forecast|), in %; 0 where both are 0 (Makridakis & Hibon 2000, The M3-Competition)."""
    shift, scale = targets["shift"][:, None], targets["scale"][:, None]
    size = jnp.abs(shift + scale * targets["value"]) + jnp.abs(shift + scale * forecast)
    return 200 * absolute(forecast, targets) / jnp.where(size > 0, size, 1)


def scaled(forecast: Any, targets: Targets) -> jax.Array:
    """|error| / that of the seasonal naive forecast, as a mean over the past (Hyndman & Koehler 2006)."""
    scale = targets["error_scale"][:, None]
    return absolute(forecast, targets) / jnp.where(scale > 0, scale, 1)


# name: (errors, whether a window without an error scale is left out, what the mean becomes, unit)
_ERRORS: dict[str, tuple[Errors, bool, Callable[[Any], Any], str]] = {
    "mae": (absolute, False, lambda mean: mean, ""),
    "rmse": (squared, False, lambda mean: mean**0.5, ""),
    "smape": (symmetric, False, lambda mean: mean, "%"),
    "mase": (scaled, True, lambda mean: mean, ""),
}


def metrics_for(quantiles: tuple[float, ...]) -> tuple[Metric, ...]:
    """The metrics of forecasts, each with those of the naive, the seasonal naive and the drift forecast after it.

    With quantiles also their mean `pinball` loss in the series' unit, and `coverage`: the share of truths between the
    lowest and the highest, whose aim is the difference of the two.
    """
    count, place = max(1, len(quantiles)), middle(quantiles)
    found = []
    for name, (errors, needs_scale, finish, unit) in _ERRORS.items():
        ratio = _ratio(finish)
        of_model = lambda outputs, targets: by_quantile(outputs, count)[..., place]
        found.append(Metric(name, _mean_of(errors, of_model, needs_scale), False, unit, size=2, finish=ratio))
        for number, baseline in enumerate(BASELINES):
            without = lambda outputs, targets, number=number: targets["baselines"][:, number]
            counted = _mean_of(errors, without, needs_scale)
            found.append(Metric(f"{baseline}_{name}", counted, False, unit, 2, ratio, chooses=False))
    if quantiles:
        found += [
            Metric("pinball", _pinball(quantiles), higher_is_better=False, size=2, finish=_ratio(lambda mean: mean)),
            Metric(
                "coverage",
                _coverage(count),
                True,
                f"aim {quantiles[-1] - quantiles[0]:g}",
                2,
                _ratio(lambda mean: mean),
                chooses=False,
            ),
        ]
    return tuple(found)


def pinball_errors(outputs: Any, truth: Any, quantiles: tuple[float, ...]) -> Any:
    """Koenker & Bassett's (1978) loss: max(q e, (q - 1) e) of the error e = truth - output; all [..., quantiles]."""
    levels = jnp.asarray(quantiles, jnp.float32)
    error = truth - outputs
    return jnp.maximum(levels * error, (levels - 1) * error)


def _mean_of(errors: Errors, forecast: Callable[[Any, Targets], Any], needs_scale: bool) -> Callable[..., jax.Array]:
    def of_examples(outputs: Any, targets: Targets, losses: jax.Array) -> jax.Array:
        counted = targets["observed"] * (targets["error_scale"][:, None] > 0 if needs_scale else 1)
        return _sums(errors(forecast(outputs.astype(jnp.float32), targets), targets), counted)

    return of_examples


def _pinball(quantiles: tuple[float, ...]) -> Callable[..., jax.Array]:
    def of_examples(outputs: Any, targets: Targets, losses: jax.Array) -> jax.Array:
        made = by_quantile(outputs.astype(jnp.float32), len(quantiles))
        errors = pinball_errors(made, targets["value"][..., None], quantiles).mean(axis=-1)
        return _sums(errors * targets["scale"][:, None], targets["observed"])

    return of_examples


def _coverage(count: int) -> Callable[..., jax.Array]:
    def of_examples(outputs: Any, targets: Targets, losses: jax.Array) -> jax.Array:
        made = jnp.sort(by_quantile(outputs.astype(jnp.float32), count), axis=-1)
        truth = targets["value"]
        return _sums((made[..., 0] <= truth) & (truth <= made[..., -1]), targets["observed"])

    return of_examples


def _sums(values: Any, counted: Any) -> jax.Array:
    """What a mean over what counts is made of: the sum over the horizon, and how many there are, [B, 2]."""
    return jnp.stack([(values * counted).sum(axis=-1), counted.sum(axis=-1)], axis=-1).astype(jnp.float32)


def _ratio(finish: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def of_means(means: Any) -> Any:
        total, count = means[..., 0], means[..., 1]
        return finish(jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan))

    return of_means
