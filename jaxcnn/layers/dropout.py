"""Dropout drawn by example: a mask depends on the example's position in the global batch, not on its device.

So a run with dropout is the same on any number of devices. It holds for every `flax.linen.Dropout` of a model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax


@contextmanager
def drawn_by_example(positions: jax.Array) -> Iterator[None]:
    """Inside, dropout draws the mask of each row by the example that it belongs to.

    Args:
      positions: int [batch], of each example in the step's global batch. An input has as many rows, or a whole number
        of rows an example, one example's after another's.
    """

    def draw(next_method: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        if not isinstance(module, nn.Dropout) or context.method_name != "__call__" or module.rate == 0:
            return next_method(*arguments, **keywords)
        inputs, *rest = arguments
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(module.make_rng(module.rng_collection), positions)
        rows = inputs.reshape(len(positions), -1, *inputs.shape[1:])
        dropped = jax.vmap(lambda key, row: next_method(row, *rest, **{**keywords, "rng": key}))(keys, rows)
        return dropped.reshape(inputs.shape)

    with nn.intercept_methods(draw):
        yield
