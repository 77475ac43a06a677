"""Time series: the steps that follow a window of a series. docs/forecasting.md is the user's page.

Each window is scaled by its own past, on the host (windows.py); a forecast is brought back to the series' own unit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import Config, LossConfig
from jaxcnn.config.choices import LOSSES, choose
from jaxcnn.errors import UserError
from jaxcnn.models import FORECASTERS
from jaxcnn.models.make import fields_of
from jaxcnn.tasks.forecasting.clock import Clock
from jaxcnn.tasks.forecasting.metrics import by_quantile, metrics_for, middle, pinball_errors
from jaxcnn.tasks.forecasting.source import SeriesSource, open_source, read, shape_of
from jaxcnn.tasks.forecasting.windows import Shape
from jaxcnn.tasks.task import Batch, Finished, Loss, Losses, Task, TaskKind


def make_task(config: Config, source: SeriesSource, **_: Any) -> Task:
    """The task of forecasting series. Raises UserError where loss or model does not suit them."""
    return _make_task(config, source.shape)


def _make_task(config: Config, shape: Shape) -> Task:
    loss = LOSSES.get(config.loss.name)
    if loss is not None and not {"numbers", "series"} & set(loss.of):
        usable = [name for name, each in LOSSES.items() if {"numbers", "series"} & set(each.of)]
        raise UserError(
            f"loss.name={config.loss.name} is for {' and '.join(loss.of)}, and series are of numbers; "
            f"set loss.name={usable[0]}, or one of: {', '.join(usable[1:])}"
        )
    if config.forecast.recursive and "recursive" not in fields_of(config.model.name):
        usable = [name for name in FORECASTERS if "recursive" in fields_of(name)]
        raise UserError(f"forecast.recursive=true is for model.name={', '.join(usable)}; set it to false")
    quantiles = quantiles_of(config)
    metrics = metrics_for(quantiles)
    count = max(1, len(quantiles))
    return Task(
        learns=f"{shape.horizon} steps",
        example=jax.ShapeDtypeStruct((shape.length + shape.horizon, shape.num_inputs), jnp.float32),
        model={
            "num_classes": shape.horizon * count, "horizon": shape.horizon, "recursive": config.forecast.recursive,
            "fed_back": middle(quantiles),
        },
        facts=lambda train_arrays: {},
        prepare=lambda facts: _prepare,
        losses=_losses,
        metrics=metrics,
        recorded=("mae", "smape", "mase", *(("pinball", "coverage") if quantiles else ())),
        best_metric="pinball" if quantiles else "mase",
        apply=partial(_in_order, count=count),
        examples="windows",
    )  # fmt: skip


def quantiles_of(config: Config) -> tuple[float, ...]:
    """Those that a run forecasts; none: one number a step."""
    return config.loss.quantiles if config.loss.name == "pinball" else ()


def _prepare(key: Any, keys: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Inputs float32 [B, length + horizon, inputs], and all else of the windows."""
    return batch["inputs"], {name: array for name, array in batch.items() if name in _TARGETS}


_TARGETS = ("value", "observed", "baselines", "shift", "scale", "error_scale")


def _in_order(model: Callable[[Any], Any], inputs: Any, *, count: int) -> Any:
    """Quantiles that do not cross: sorted, which makes no loss larger (Chernozhukov et al. 2010)."""
    outputs = model(inputs)
    return jnp.sort(by_quantile(outputs, count), axis=-1).reshape(outputs.shape) if count > 1 else outputs


# ---- losses


def pinball(outputs: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Mean over quantiles of their pinball losses (Koenker & Bassett 1978): outputs [B, Q], targets [B, 1] -> [B]."""
    errors: jax.Array = pinball_errors(outputs, targets, config.quantiles).mean(axis=-1)
    return errors


def _losses(config: LossConfig) -> Losses:
    loss: Callable[..., jax.Array] = choose("loss.name", config.name).load()

    def per_example(outputs: jax.Array, targets: dict[str, jax.Array]) -> jax.Array:
        """Mean over what was observed of a window's horizon, in the window's own scale."""
        value, observed = targets["value"], targets["observed"]
        each = outputs.astype(jnp.float32).reshape(value.size, -1)
        errors = loss(each, value.reshape(-1, 1), config).reshape(value.shape)
        return (errors * observed).sum(axis=1) / jnp.maximum(observed.sum(axis=1), 1)

    of_batch: Loss = per_example
    return Losses(train=of_batch, evaluate=of_batch)


# ---- a finished run


def _finish(config: Config, data: dict[str, Any]) -> Finished:
    if "series" not in data:
        raise UserError("config.json says nothing of the run's series; it is damaged")
    facts, quantiles = data["series"], quantiles_of(config)
    clock = Clock.of(facts["clock"])
    shape = shape_of(config.forecast, clock, facts["season"])
    return Finished(
        _make_task(config, shape),
        partial(read, options=config.forecast, data=data),
        lambda outputs, top_k: [{"outputs": each} for each in outputs],
        partial(_columns, quantiles),
        rows=partial(_rows, clock, facts["time"], quantiles),
    )


def _names(quantiles: tuple[float, ...]) -> list[str]:
    """Of the columns of a forecast: `forecast`, then `q0.1`, … but the median's."""
    return ["forecast", *(f"q{each:g}" for each in quantiles if each != 0.5)]


def _parts(quantiles: tuple[float, ...], outputs: np.ndarray) -> list[np.ndarray]:
    """What belongs to `_names`, of outputs [..., quantiles]."""
    others = [number for number, each in enumerate(quantiles) if each != 0.5]
    return [outputs[..., place] for place in (middle(quantiles), *others)]


def _rows(
    clock: Clock, time: str, quantiles: tuple[float, ...], named: dict[str, Any], arrays: dict[str, np.ndarray],
    answer: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each step to come: `series`, the stamp, `forecast` and quantiles in the series' own unit."""
    outputs = answer["outputs"].astype(np.float64).reshape(-1, max(1, len(quantiles)))
    values = np.stack(_parts(quantiles, outputs), axis=-1) * float(arrays["scale"]) + float(arrays["shift"])
    last = clock.count(named["after"])
    return [
        {"series": named["series"], time: clock.stamp(last + step * clock.step)}
        | {name: float(f"{value:.7g}") for name, value in zip(_names(quantiles), row, strict=True)}
        for step, row in enumerate(values, start=1)
    ]


def _columns(quantiles: tuple[float, ...], outputs: np.ndarray, targets: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    """Of each step of the horizon: `truth_1`, empty where nothing was observed, `forecast_1`, `q0.1_1`, …"""
    shift, scale = (targets[name].astype(np.float64)[:, None] for name in ("shift", "scale"))
    in_unit = lambda values: values * scale + shift
    made = by_quantile(outputs.astype(np.float64), max(1, len(quantiles)))
    columns: dict[str, list[Any]] = {}
    for step in range(targets["value"].shape[1]):
        there = targets["observed"][:, step] > 0
        truth = in_unit(targets["value"][:, step : step + 1])[:, 0]
        columns[f"truth_{step + 1}"] = [
            f"{value:.7g}" if is_there else "" for value, is_there in zip(truth, there, strict=True)
        ]
        for name, part in zip(_names(quantiles), _parts(quantiles, made[:, step : step + 1]), strict=True):
            columns[f"{name}_{step + 1}"] = [f"{value:.7g}" for value in in_unit(part)[:, 0]]
    return columns


FORECASTING = TaskKind(make_task, open_source, finish=_finish)
