"""Taps: the features of a model's stages, and the logits of its auxiliary heads, shown to who asks.

Models say `x = tap(self, name, x)`; unless somebody asks, that is x, and costs nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

FEATURES, AUXILIARY, PERTURBATIONS = "features", "auxiliary", "perturbations"  # flax collections


def tap(
    module: nn.Module,
    name: str,
    x: jax.Array,
    *,
    collection: str = FEATURES,
    as_map: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Shows x by this name: a stage's output [batch, height, width, channels], or `pooled` [batch, channels].

    Args:
      as_map: linear, what is shown of an x that is no such map.

    Returns:
      x; plus, where the variables have one by this name, a perturbation of what is shown, for gradients by it.
    """
    if module.is_initializing():  # else it would count as a variable of the model
        return x
    module.sow(collection, name, as_map(x), reduce_fn=lambda _, new: new, init_fn=lambda: None)
    if module.has_variable(PERTURBATIONS, name):
        perturbation: jax.Array = module.get_variable(PERTURBATIONS, name)
        x = x + jax.linear_transpose(as_map, x)(perturbation)[0]  # back to its places in x
    return x


def feature_pyramid(model: nn.Module, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Features of each stage for images [batch, height, width, channels], from the first stage to `pooled`.

    In evaluation mode; of a model without taps nothing. XLA drops whatever lies behind the features that are used.
    """
    _, shown = model.apply(variables, images, train=False, mutable=[FEATURES])
    features: dict[str, jax.Array] = shown.get(FEATURES, {})
    return features
