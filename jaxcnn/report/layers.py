"""Costs of each layer of a model: parameters, multiply-adds counted in its trace, time measured alone.

A layer is what the model's top module names: a convolution, a block, the head.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layers.widths import alone

REPEATS = 9  # timed calls, of which the median counts
SECONDS = 0.5  # or as many as fit into this, at least three


@dataclass(frozen=True)
class Layer:
    """A layer in evaluation; what it costs is of all calls of it."""

    name: str
    kind: str
    output: tuple[int, ...]  # its shape, without the batch
    num_params: int
    multiply_adds: int  # an image
    seconds: float  # a batch, compiled and run alone


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    arguments: tuple[Any, ...]  # shapes in the place of arrays
    keywords: dict[str, Any]
    output: tuple[int, ...]


def layers(
    model: nn.Module, variables: Any, image_shape: tuple[int, int, int], *, batch_size: int
) -> tuple[list[Layer], Layer]:
    """The layers in the order in which images meet them, and the whole model, each compiled on the default device."""
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    by_name: dict[str, Layer] = {}
    for call in _calls(model, variables, images):
        of_layer = {kind: tree[call.name] for kind, tree in variables.items() if call.name in tree}
        macs, seconds = _cost(call.module, of_layer, call.arguments, call.keywords)
        before = by_name.get(call.name)
        by_name[call.name] = Layer(
            name=call.name,
            kind=type(call.module).__name__.removeprefix("Checkpoint"),
            output=call.output,
            num_params=_size(of_layer.get("params")),
            multiply_adds=macs // batch_size + (before.multiply_adds if before else 0),
            seconds=seconds + (before.seconds if before else 0.0),
        )
    macs, seconds = _cost(model, variables, (images,), {"train": False})
    output = jax.eval_shape(partial(model.apply, train=False), variables, images).shape[1:]
    size = _size(variables["params"])
    return list(by_name.values()), Layer("whole", type(model).__name__, output, size, macs // batch_size, seconds)


def _calls(model: nn.Module, variables: Any, images: Any) -> list[_Call]:
    """Calls of the modules that the model itself names; computes nothing."""
    calls: list[_Call] = []

    def record(next_method: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        result = next_method(*arguments, **keywords)
        module = context.module
        if context.method_name == "__call__" and len(module.path) == 1:
            shapes, options = jax.tree.map(_shape_of, (arguments, keywords))
            calls.append(_Call(module.path[0], alone(module, model), shapes, options, jnp.shape(result)[1:]))
        return result

    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.apply, train=False), variables, images)
    return calls


def _shape_of(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x


def _cost(module: nn.Module, variables: Any, arguments: Any, keywords: Any) -> tuple[int, float]:
    """Multiply-adds and median seconds of a call with arrays of these shapes."""
    leaves, structure = jax.tree.flatten((arguments, keywords))
    shapes = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    others = tuple(_ARRAY if isinstance(leaf, jax.ShapeDtypeStruct) else leaf for leaf in leaves)
    call = partial(_apply, module=module, structure=structure, others=others)
    macs = multiply_adds(jax.make_jaxpr(call)(variables, shapes).jaxpr)
    draw = np.random.default_rng(0)
    arrays = [jnp.asarray(draw.standard_normal(shape.shape), shape.dtype) for shape in shapes]
    jax.block_until_ready(call(variables, arrays))  # compiles it
    times: list[float] = []
    while len(times) < 3 or (len(times) < REPEATS and sum(times) < SECONDS):
        start = time.perf_counter()
        jax.block_until_ready(call(variables, arrays))
        times.append(time.perf_counter() - start)
    return macs, float(np.median(times))


_ARRAY = "array"  # stands for one among the arguments


@partial(jax.jit, static_argnames=("module", "structure", "others"))  # blocks that are alike are compiled once
def _apply(variables: Any, arrays: list[jax.Array], *, module: nn.Module, structure: Any, others: tuple) -> Any:
    remaining = iter(arrays)
    leaves = [next(remaining) if leaf is _ARRAY else leaf for leaf in others]
    arguments, keywords = jax.tree.unflatten(structure, leaves)
    return module.apply(variables, *arguments, **keywords)


def multiply_adds(jaxpr: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of a trace, those with padding's zeros too.

    An FLOP count is twice that. Where a platform has a way of its own, those of all other platforms count: a fast
    algorithm does not make the layer smaller.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out = parameters["dimension_numbers"].rhs_spec[0]
            total += int(equation.outvars[0].aval.size * np.prod(kernel) // kernel[out])
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += int(equation.outvars[0].aval.size * np.prod([shape[axis] for axis in contracted]))
        elif name == "cond":
            total += multiply_adds(parameters["branches"][-1].jaxpr)
        elif name == "scan":
            total += parameters["length"] * multiply_adds(parameters["jaxpr"].jaxpr)
        else:
            total += sum(multiply_adds(inner) for inner in jax.core.jaxprs_in_params(parameters))
    return total


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
