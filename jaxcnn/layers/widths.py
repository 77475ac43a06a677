"""Models whose layers are narrower than the paper's, as pruning leaves them: features by the path of each layer.

The one place where `model.channels` acts. Norms, depthwise convolutions and whatever takes its width from its input
follow; where a topology depends on widths, models decide it by those of the paper.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import flax
from flax import linen as nn

from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.blocks import PatchConv
from jaxcnn.layers.conv import Conv
from jaxcnn.terminal import one_line

WITH_FEATURES = (Conv, PatchConv, nn.Conv, nn.Dense)  # modules whose field `features` is the width of their output


def narrowed(model: nn.Module, widths: Mapping[str, int]) -> Any:
    """The model with other widths, `stage1_block1/conv1` -> features; its names, fields and methods are as before.

    Raises UserError for a head's; and, when it is initialised, for a path that is no layer's, or widths that do not fit
    together.
    """
    if not widths:
        return model
    if heads := [path for path in widths if path.rpartition("/")[2] == "head"]:
        raise UserError(f"model.channels: {heads[0]} is as wide as there are classes; leave it out")
    fields = {name: getattr(model, name) for name in model.__dataclass_fields__ if name not in ("parent", "name")}
    base: Any = type(model)
    return _narrowed_class(base, tuple(sorted(widths.items())))(**fields, parent=None)


def alone(module: nn.Module, model: Any) -> Any:
    """A module of a model that was just called, without its parent; narrow where it is in the model."""
    path = "/".join(module.path) + "/"
    inner = {name.removeprefix(path): n for name, n in getattr(model, "widths", {}).items() if name.startswith(path)}
    return narrowed(module.clone(parent=None, name=None), inner)


@lru_cache(maxsize=256)  # modules that are alike stay equal, and are compiled once
def _narrowed_class(base: Any, items: tuple[tuple[str, int], ...]) -> Any:
    widths_of_layers = dict(items)

    class Narrowed(base):
        @nn.nowrap  # the base's own call is the one that flax sees
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            met: set[str] = set()
            with nn.intercept_methods(partial(_narrow, widths_of_layers, met)):
                if not self.is_initializing():
                    return base.__call__(self, *arguments, **keywords)
                try:
                    outputs = base.__call__(self, *arguments, **keywords)
                except (TypeError, ValueError, ArithmeticError, flax.errors.FlaxError) as error:
                    raise UserError(
                        f"model.channels: these widths do not fit together ({one_line(error)[:160]})"
                    ) from None
            strangers = sorted(widths_of_layers.keys() - met)
            if strangers and keywords.get("train"):  # else auxiliary heads are not met
                known = ["/".join(path[:-1]) for path in flax.traverse_util.flatten_dict(self.variables["params"])]
                raise UserError(f"model.channels: there is no layer {strangers[0]!r}; {nearest(strangers[0], known)}")
            return outputs

    Narrowed.widths = widths_of_layers
    Narrowed.__name__, Narrowed.__qualname__, Narrowed.__module__ = base.__name__, base.__qualname__, base.__module__
    return Narrowed


def _narrow(
    widths: Mapping[str, int], met: set[str], next_method: Callable, arguments: Any, keywords: Any, context: Any
) -> Any:
    """Gives a layer its width before it is called. It lives for this call of its model alone, so it may be changed."""
    module, path = context.module, "/".join(context.module.path)
    if path in widths and context.method_name == "__call__" and isinstance(module, WITH_FEATURES):
        met.add(path)
        if 1 < getattr(module, "groups", 1) == module.features:  # a depthwise convolution stays one
            object.__setattr__(module, "groups", widths[path])
        object.__setattr__(module, "features", widths[path])
    return next_method(*arguments, **keywords)
