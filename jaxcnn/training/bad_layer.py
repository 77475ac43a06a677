"""Says in which layer a step first met a number that is not finite. Runs once, after the run has failed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layers.dropout import drawn_by_example
from jaxcnn.layers.norm import without_axis
from jaxcnn.tasks.task import Loss, Prepare
from jaxcnn.training.step import TrainState, batch_size, dropout_key, example_keys


def first_bad_layer(
    state: TrainState, batch: Mapping[str, Any], key: jax.Array, *, model: nn.Module, loss: Loss, prepare: Prepare
) -> str:
    """Repeats the step on one device, layer by layer, from the state as it was before it.

    Args:
      state: host arrays, before the step that failed.
      batch: the whole global batch of that step.
      key: the run's key.

    Returns:
      The end of a sentence, such as "first in the output of layer stage1_block1/conv1".
    """
    bad = _first_bad(_in_order(state.params))
    if bad:
        return f"first in the parameters of {bad}, by the update before"
    step, positions = int(state.step), jnp.arange(batch_size(batch))
    inputs, targets = prepare(key, example_keys(key, step, positions), dict(batch))
    if not _finite(inputs):
        return "first in the inputs, as augmented"

    finite_outputs: list[
        tuple[str, bool]
    ] = []  # (layer, all of its output is finite); not the outputs, which are large

    def record(next_method: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        result = next_method(*arguments, **keywords)
        if context.method_name == "__call__" and context.module.path:
            finite_outputs.append(("/".join(context.module.path), _finite(result)))
        return result

    with (
        nn.intercept_methods(record),
        drawn_by_example(positions),
    ):  # in this order: what is recorded is the whole batch
        goes_on = {} if state.carried is None else {"carry": state.carried}
        outputs, _ = without_axis(model).apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key(key, step)},
            **goes_on,
        )
        outputs = outputs[0] if goes_on else outputs
    bad = next((name for name, finite in finite_outputs if not finite), None)
    if bad:
        return f"first in the output of layer {bad}"
    if not np.isfinite(loss(outputs, targets)).all():
        return "first in the loss itself; all layers' outputs are finite"
    return "no layer on its own repeats it; the devices' sums differ here"


def _in_order(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from _in_order(node, f"{prefix}{name}/")
        else:
            yield prefix.rstrip("/"), node


def _first_bad(named: Iterator[tuple[str, Any]]) -> str | None:
    return next((name for name, tree in named if not _finite(tree)), None)


def _finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))
