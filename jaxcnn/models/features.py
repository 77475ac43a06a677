"""What a model shows of its inside: the features of its stages, and the logits of auxiliary heads.

Models say `tap(self, name, x)`; unless somebody asks, that is nothing at all, and costs nothing.
"""

from typing import Any

import jax
from flax import linen as nn

FEATURES, AUXILIARY = "features", "auxiliary"  # flax collections


def tap(module: nn.Module, name: str, x: jax.Array, *, collection: str = FEATURES) -> None:
    """Shows x by this name: a stage's output [batch, height, width, channels], or `pooled` [batch, channels]."""
    if module.is_initializing():  # else it would count as a variable of the model
        return
    module.sow(collection, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def feature_pyramid(model: nn.Module, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
    """What each stage makes of images [batch, height, width, channels], from the first stage to `pooled`.

    In evaluation mode. XLA drops whatever lies behind the features that are used.
    """
    _, shown = model.apply(variables, images, train=False, mutable=[FEATURES])
    features: dict[str, jax.Array] = shown[FEATURES]
    return features
