"""Which parameters train, from which step on, and how fast: freezing, gradual unfreezing, rates by layer.

What is frozen gets no gradient and no optimizer state, and its batch norms stay as they are in evaluation. All of it is
a function of the step, within one compiled program. Nothing here knows where weights come from.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.table import Table

from jaxcnn.config import FinetuneConfig
from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.norm import BatchNorm

HEAD = "head"


@dataclass(frozen=True)
class Layer:
    """Some of a model's topmost modules that are one layer, as a convolution and its norm are."""

    modules: tuple[str, ...]
    rate: float  # times the schedule's
    start: int | None  # the step from which it trains; none: never
    num_params: int
    num_trained: int  # of these, sooner or later


@dataclass(frozen=True)
class Finetuning:
    """What the optimizer and the step ask, of parameters by their path `stage1_block1/conv1/kernel`."""

    layers: tuple[Layer, ...] = ()  # in the order in which images meet them
    starts: Mapping[str, int | None] = field(default_factory=dict)  # path -> first step of training; none: frozen
    rates: Mapping[str, float] = field(default_factory=dict)  # path -> factor on the learning rate

    def trained(self, params: Any) -> Any:
        """The parameters that ever train; None in the place of the others."""
        return _map(lambda path, leaf: None if self.starts.get(path, 0) is None else leaf, params)

    def whole(self, trained: Any, params: Any) -> Any:
        """`trained`, and what is None there from `params`."""
        return jax.tree.map(lambda old, new: old if new is None else new, params, trained)

    def gradients(self, grads: Any, params: Any, step: jax.Array) -> Any:
        """Of all parameters: zero where they do not train at this step. `grads` is None where `trained` is."""

        def one(path: str, leaf: Any, grad: Any) -> Any:
            if grad is None:
                return jnp.zeros_like(leaf)
            start = self.starts.get(path, 0)
            return jnp.where(step >= start, grad, 0) if start else grad

        return _map(one, params, grads)

    def labels(self, params: Any) -> Any:
        """A tree like params: `frozen`, or `from_STEP`."""
        return _map(lambda path, _: "frozen" if self.starts[path] is None else f"from_{self.starts[path]}", params)

    def scale(self, updates: Any) -> Any:
        """Updates times the rates of their layers."""
        return _map(lambda path, update: update if self.rates[path] == 1 else self.rates[path] * update, updates)

    @contextmanager
    def norms_held(self, step: jax.Array) -> Iterator[None]:
        """Within it, batch norms of which no parameter trains at this step normalise and stay as in evaluation."""
        starts: dict[str, list[int | None]] = {}
        for path, start in self.starts.items():
            starts.setdefault(path.rpartition("/")[0], []).append(start)

        def hold(next_method: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
            module = context.module
            if isinstance(module, BatchNorm) and context.method_name == "__call__":
                own = [start for start in starts["/".join(module.path)] if start is not None]
                held = (step < min(own) if min(own) else False) if own else True
                keywords = {**keywords, "held": held}
            return next_method(*arguments, **keywords)

        if not any(start != 0 for start in self.starts.values()):
            yield
            return
        with nn.intercept_methods(hold):
            yield

    def table(self, steps_per_epoch: float) -> Table:
        """A row a layer: what of it trains, from when, how fast."""
        table = Table(title="what trains", title_justify="left", caption=self._total(), caption_justify="left")
        for column in ("layer", "parameters", "trained", "from epoch", "rate x"):
            table.add_column(column, justify="left" if column == "layer" else "right", overflow="fold")
        for layer in self.layers:
            trains = layer.start is not None
            table.add_row(
                ", ".join(layer.modules),
                f"{layer.num_params:,}",
                "all" if layer.num_trained == layer.num_params else f"{layer.num_trained:,}" if trains else "frozen",
                f"{layer.start / steps_per_epoch:.4g}" if layer.start is not None else "",
                f"{layer.rate:.4g}" if trains else "",
                style=None if trains else "dim",
            )
        return table

    def _total(self) -> str:
        trained, total = (sum(getattr(each, name) for each in self.layers) for name in ("num_trained", "num_params"))
        return f"{trained:,} of {total:,} parameters train"


EVERYTHING = Finetuning()  # all of it, from the beginning, at one rate


def make_finetuning(finetune: FinetuneConfig, params: Mapping[str, Any], *, steps_per_epoch: float) -> Finetuning:
    """What the config asks of a model.

    Args:
      finetune: validated.
      params: shapes, on top in the order in which images meet them.
      steps_per_epoch: need not be whole.

    Raises:
      UserError: a pattern that matches nothing, nothing left to train, more epochs than stages, epochs too close.
    """
    sizes: dict[str, int] = {}
    _map(lambda path, leaf: sizes.__setitem__(path, leaf.size), dict(params))
    frozen = _frozen(finetune.frozen, list(sizes))
    if len(frozen) == len(sizes):
        raise UserError(f"finetune.frozen={finetune.frozen} leaves nothing to train; end it with what does, '!head'")
    layers = layers_of(params)
    owner = {module: number for number, layer in enumerate(layers) for module in layer}
    layer_of = {path: owner[path.partition("/")[0]] for path in sizes}
    trained = {number for path, number in layer_of.items() if path not in frozen}
    layer_starts = _starts(finetune.unfreeze_epochs, layers, trained, steps_per_epoch)
    layer_rates = [finetune.layer_decay ** (len(layers) - 1 - number) for number in range(len(layers))]
    layer_rates[-1] *= finetune.head_rate
    return Finetuning(
        layers=tuple(
            Layer(
                modules=layer,
                rate=layer_rates[number],
                start=layer_starts[number] if number in trained else None,
                num_params=sum(size for path, size in sizes.items() if layer_of[path] == number),
                num_trained=sum(
                    size for path, size in sizes.items() if layer_of[path] == number and path not in frozen
                ),
            )
            for number, layer in enumerate(layers)
        ),
        starts={path: None if path in frozen else layer_starts[layer_of[path]] for path in sizes},
        rates={path: layer_rates[layer_of[path]] for path in sizes},
    )


def layers_of(params: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A model's topmost names as layers, from the first that images meet to the head.

    A norm belongs to the convolution (or head) of its name; one that has none, and an array that is no module (tokens,
    positions), to the layer before. Auxiliary heads belong to the head, and so does a last norm (final_norm).
    """
    layers: dict[str, list[str]] = {}
    named = {_layer_name(name) for name, value in params.items() if _has_kernels(value)}
    last = ""
    for name in params:
        key = _layer_name(name)
        if key not in named:
            key = last or key
        layers.setdefault(key, []).append(name)
        last = key
    head = layers.pop(HEAD, None) or layers.pop(last)
    return [*map(tuple, layers.values()), tuple(head)]


def _layer_name(name: str) -> str:
    """`stage1_conv2` and `stage1_norm2` -> `stage1_2`; `downsample2_norm` -> `downsample2`."""
    if name.startswith("auxiliary") or name == "final_norm":
        return HEAD
    return re.sub(r"_?(conv|norm)(\d*)$", r"_\2", name).strip("_")


def _has_kernels(value: Any) -> bool:
    """Whether it is a module of which something is more than a vector."""
    return isinstance(value, Mapping) and any(leaf.ndim > 1 for leaf in jax.tree.leaves(value))


def _stage(layer: tuple[str, ...]) -> str:
    """`stage1_block2` -> `stage1`, `inception4a` -> `inception4`; others are stages of their own."""
    match = re.match(r"[a-z]+\d+(?=[a-z_])", layer[0])
    return match[0] if match else layer[0]


def _starts(
    epochs: tuple[float, ...], layers: Sequence[tuple[str, ...]], trained: set[int], steps_per_epoch: float
) -> list[int]:
    """The step from which each layer trains: gradual unfreezing (Howard and Ruder 2018, section 3.3), a stage an epoch.

    The last of the epochs unfreezes all that is left. Stages of which nothing ever trains are passed over.
    """
    steps = [round(epoch * steps_per_epoch) for epoch in epochs]
    if any(later <= earlier for earlier, later in zip([0, *steps], steps, strict=False)):
        raise UserError(
            f"finetune.unfreeze_epochs={epochs} must each be a later step than the one before; an epoch has "
            f"{steps_per_epoch:.4g} steps"
        )
    below = [_stage(layers[number]) for number in range(len(layers) - 2, -1, -1) if number in trained]
    stages = list(dict.fromkeys(below))  # from the head down
    if len(steps) > len(stages):
        raise UserError(
            f"finetune.unfreeze_epochs={epochs} has {len(steps)} epochs, and below the head {len(stages)} stages train"
            + (f": {', '.join(stages)}" if stages else "")
        )
    if not steps:
        return [0] * len(layers)
    starts = {stage: steps[min(place, len(steps) - 1)] for place, stage in enumerate(stages)}
    return [*(starts.get(_stage(layer), 0) for layer in layers[:-1]), 0]


def _frozen(patterns: tuple[str, ...], paths: list[str]) -> set[str]:
    """The paths that the patterns freeze, the last that matches deciding; a pattern may name a module."""
    frozen: set[str] = set()
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        matching = {path for path in paths if any(fnmatchcase(each, wanted) for each in _beginnings(path))}
        if not matching:
            names = {each for path in paths for each in _beginnings(path)} - set(paths)
            top = {name for name in names if "/" not in name}
            raise UserError(
                f"finetune.frozen: {pattern!r} matches no parameter; {nearest(wanted, names if '/' in wanted else top)}"
            )
        frozen = frozen - matching if pattern.startswith("!") else frozen | matching
    return frozen


def _beginnings(path: str) -> list[str]:
    """`a/b/c` -> a, a/b, a/b/c."""
    names = path.split("/")
    return ["/".join(names[:length]) for length in range(1, len(names) + 1)]


def _map(function: Callable, tree: Any, *others: Any) -> Any:
    """jax.tree.map of function(path, leaf, …), paths like `a/b/c`."""

    def one(path: tuple[Any, ...], *leaves: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="/"), *leaves)

    return jax.tree_util.tree_map_with_path(one, tree, *others)
