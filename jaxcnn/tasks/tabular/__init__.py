"""Tables: a row's columns, and the class or the number that is its target. docs/tables.md is the user's page.

Columns, and a target that is a number, are standardised by train's mean and standard deviation, on the device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import Config, LossConfig
from jaxcnn.config.choices import LOSSES, choose
from jaxcnn.data.splits import labels_of
from jaxcnn.errors import UserError
from jaxcnn.tasks.classification import metrics as of_classes
from jaxcnn.tasks.classification.answers import class_answers, class_columns
from jaxcnn.tasks.classification.losses import class_weights, make_loss
from jaxcnn.tasks.tabular import metrics as of_numbers
from jaxcnn.tasks.tabular.source import Layout, TableRecords, TableSource, open_source
from jaxcnn.tasks.task import Batch, Finished, Loss, Losses, Prepare, Task, TaskKind

LEAST_STD = 1e-6  # of the mean: what varies less, float32 cannot tell apart


def make_task(
    config: Config,
    source: TableSource,
    *,
    resident: bool,
    device_batch: int,
    progress: Callable[..., None] | None = None,
) -> Task:
    """The task of telling a table's target from its columns. Raises UserError where the loss does not suit it."""
    del resident, device_batch
    train = source.splits["train"]
    weights = class_weights(config.loss, lambda: labels_of(train, progress), len(source.class_names))
    return _make_task(config, source.layout, partial(_statistics, source), weights)


def _make_task(
    config: Config, layout: Layout, facts: Callable[..., dict[str, Any]], weights: np.ndarray | None = None
) -> Task:
    """The same from the layout, `facts` of the task, and weights of classes in training."""
    names, loss = layout.class_names, LOSSES.get(config.loss.name)
    of = "classes" if names else "numbers"
    if loss is not None and of not in loss.of:
        usable = [name for name, each in LOSSES.items() if of in each.of]
        raise UserError(
            f"loss.name={config.loss.name} is for {' and '.join(loss.of)}, and the target {layout.target!r} is of "
            f"{of}; set loss.name={usable[0]}, or one of: {', '.join(usable[1:])}"
            + ("" if names else "; or, to learn each value as a class, table.kind=classification")
        )
    metrics = of_classes.metrics_for(len(names)) if names else of_numbers.metrics_for(layout.target)
    return Task(
        learns=f"{len(names)} classes" if names else f"a number, {layout.target!r}",
        example=jax.ShapeDtypeStruct((layout.width,), jnp.float32),
        model={"num_classes": len(names) or 1},
        facts=facts,
        prepare=partial(_make_prepare, layout=layout),
        losses=partial(_losses_of_classes, weights=weights) if names else _losses_of_numbers,
        metrics=metrics,
        recorded=tuple(metric.name for metric in metrics),
        best_metric="accuracy" if names else "rmse",
        examples="rows",
    )


def _losses_of_classes(loss: LossConfig, *, weights: np.ndarray | None) -> Losses:
    return Losses(train=make_loss(loss, weights), evaluate=make_loss(loss))


def _losses_of_numbers(config: LossConfig) -> Losses:
    loss: Callable[..., jax.Array] = choose("loss.name", config.name).load()

    def per_example(outputs: jax.Array, targets: dict[str, jax.Array]) -> jax.Array:
        return loss(outputs.astype(jnp.float32), targets["value"][:, None], config)

    of_batch: Loss = per_example
    return Losses(train=of_batch, evaluate=of_batch)


# ---- what is measured on train, and what is made of it


def _statistics(source: TableSource, train_arrays: Any) -> dict[str, Any]:
    """Train's `mean` and `std` of each column of numbers, 0 and 1 of text; and of a target that is a number."""
    records: Any = source.splits["train"].records
    rows: TableRecords = records
    train = source.splits["train"].indices
    layout, features = source.layout, rows.features[train].astype(np.float64)
    moments = [
        (0.0, 1.0) if column.values is not None else _moments(features[:, place], f"column {column.name!r}")
        for place, column in enumerate(layout.columns)
    ]
    facts: dict[str, Any] = {"mean": tuple(mean for mean, _ in moments), "std": tuple(std for _, std in moments)}
    if not layout.class_names:
        mean, std = _moments(rows.targets[train].astype(np.float64), f"target {layout.target!r}", constant=False)
        facts["target"] = {"mean": mean, "std": std}
    return facts


def _moments(values: np.ndarray, what: str, *, constant: bool = True) -> tuple[float, float]:
    """Mean and standard deviation of numbers, NaN left out; a constant has the deviation 1, if it may be one."""
    values = values[~np.isnan(values)]
    if not len(values):
        raise UserError(f"the {what} is empty in all rows of train; leave it out: table.drop")
    mean, std = float(values.mean()), float(values.std())
    if values.min() == values.max():
        if not constant:
            raise UserError(f"the {what} is {values[0]:g} in all rows of train: there is nothing to learn")
        return mean, 1.0
    if std <= LEAST_STD * abs(mean):
        raise UserError(
            f"the {what} has the mean {mean:g} and varies by {std:g}, too little for float32: subtract the mean"
        )
    return mean, std


def _make_prepare(facts: dict[str, Any], *, layout: Layout) -> Prepare:
    """Inputs float32 [B, width]; classes int32 [B], or standardised numbers with their unit, float32 [B] each."""
    places: list[int] = []
    codes: list[int] = []  # of each input: the column it is of, and the value of text that it stands for
    for place, column in enumerate(layout.columns):
        of_column = [-1] if column.values is None else range(len(column.values))
        places += [place] * len(of_column)
        codes += of_column
    source, code = np.array(places), np.array(codes, np.float32)
    mean, std = (np.asarray(facts[name], np.float32)[source] for name in ("mean", "std"))

    def inputs(features: jax.Array) -> jax.Array:
        x = features[:, source]
        number = jnp.where(jnp.isnan(x), 0.0, (x - mean) / std)  # what is missing is train's mean
        return jnp.where(code < 0, number, (x == code).astype(jnp.float32))

    def prepare(key: Any, keys: Any, batch: Batch) -> tuple[jax.Array, Any]:
        targets: Any = batch.get("target")  # none: to be predicted
        if targets is not None and not layout.class_names:
            own = {name: jnp.float32(value) for name, value in facts["target"].items()}
            targets = {"value": (targets - own["mean"]) / own["std"], "unit": jnp.full_like(targets, own["std"])}
        return inputs(batch["features"]), targets

    return prepare


# ---- a finished run


def _finish(config: Config, data: dict[str, Any]) -> Finished:
    layout = Layout.of(data)
    task = _make_task(config, layout, lambda _: data)
    read = partial(layout.read, fill=config.table.missing == "mean")
    if names := layout.class_names:
        return Finished(task, read, partial(class_answers, names), partial(class_columns, names), class_names=names)
    return Finished(task, read, partial(_number_answers, data["target"]), partial(_number_columns, data["target"]))


def _number_answers(target: dict[str, float], outputs: np.ndarray, top_k: int) -> list[dict[str, Any]]:
    """`prediction`, in the target's unit."""
    return [{"prediction": float(f"{number:.7g}")} for number in _numbers(target, outputs[:, 0])]


def _number_columns(target: dict[str, float], outputs: np.ndarray, targets: dict[str, Any]) -> dict[str, list[Any]]:
    own, predicted = _numbers(target, targets["value"]), _numbers(target, outputs[:, 0])
    columns = {"label": own, "prediction": predicted, "error": predicted - own}
    return {name: [f"{number:.7g}" for number in values] for name, values in columns.items()}


def _numbers(target: dict[str, float], standardised: np.ndarray) -> np.ndarray:
    return standardised.astype(np.float64) * target["std"] + target["mean"]


TABULAR = TaskKind(make_task, open_source, finish=_finish)
