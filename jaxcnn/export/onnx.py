"""A traced network as an ONNX file: the walk over its jaxpr, and what onnxruntime makes of the file.

Opset 17. Inputs are as our own networks take them, [batch, height, width, channels]; inside, convolutions are stored
channels first. The batch may be of any size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend import core

from jaxcnn.errors import RunError, UserError
from jaxcnn.export.onnx_folding import fold
from jaxcnn.export.onnx_graph import BATCH, Graph, Node, Operand, Value, in_order, size_of, stored_sizes
from jaxcnn.export.onnx_rules import DTYPES, RULES, UnsupportedError, layer_norm
from jaxcnn.layers.plain import LAYER_NORM

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12, 2022: what phones and browsers have by now
LIMIT = 2**31 - 1  # bytes of a file, of protobuf's making
NUMPY: dict[str, Callable[..., Any]] = {  # what JAX would compile for each shape anew
    "add": np.add,
    "convert_element_type": np.asarray,
    "div": np.divide,
    "mul": np.multiply,
    "neg": np.negative,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "sub": np.subtract,
}
CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "remat",
    "remat2", "checkpoint",
}  # fmt: skip


def to_onnx(
    function: Callable[[Any, Any], jax.Array],
    variables: Any,
    example: Any,
    *,
    name: str = "image",
    output: str = "logits",
    facts: dict[str, str] | None = None,
) -> Any:
    """The onnx.ModelProto of function(variables, inputs), traced as it is: see layers/plain.py.

    Args:
      function: inputs [batch, …] to outputs [batch, …].
      variables: a tree of arrays, which become constants of the file.
      example: shape and dtype of one example's inputs, without the batch's axis.
      name, output: what the file calls them.
      facts: text by name, the file's metadata.

    Raises:
      UserError: an operation has no counterpart in ONNX here, or onnx is not installed.
    """
    onnx = _needed("onnx")
    graph, result = traced(function, variables, example, name=name)
    _rename(graph, result, output)
    fold(graph, output)
    return _model(onnx, graph, example, name, output, facts or {})


def traced(
    function: Callable[[Any, Any], jax.Array], variables: Any, example: Any, *, name: str = "image"
) -> tuple[Graph, str]:
    """(the graph of a function, not folded yet; the name of its output). Raises UserError as `to_onnx`."""
    (batch,) = jax_export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)
    closed = jax.make_jaxpr(function)(variables, inputs)
    graph = Graph()
    graph.sizes[name] = stored_sizes(inputs.shape, in_order(len(inputs.shape)))
    graph.nodes.append(Node("Shape", [name], [BATCH], {"start": 0, "end": 1}))
    image = Value(name, in_order(len(inputs.shape)), closed.jaxpr.invars[-1].aval)
    walk = _Walk(graph)
    known = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    (result,) = walk.run(closed.jaxpr, closed.consts, [*known, image])
    if walk.unknown:
        raise UserError(
            f"ONNX: no rule here for {', '.join(walk.unknown)}, which the model uses; export it with --to stablehlo"
        )
    return graph, graph.whole(result, closed.jaxpr.outvars[0].aval)


def run_onnx(content: bytes, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """What onnxruntime makes of the file's one input, on the CPU. Raises UserError where it is not installed."""
    onnxruntime = _needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([session.run(None, {given.name: batch})[0] for batch in batches])


def _needed(package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed; install it: pip install 'jaxcnn[export]'") from None


# ---- the walk


class _Walk:
    """Operations of a jaxpr in their order; what has no rule is noted, so that all of it can be told at once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.unknown: dict[str, None] = {}

    def run(self, jaxpr: Any, constants: Sequence[Any], operands: Sequence[Operand]) -> list[Operand]:
        """The results of a jaxpr."""
        values: dict[Any, Operand] = {}

        def read(atom: Any) -> Operand:
            return np.asarray(atom.val) if isinstance(atom, core.Literal) else values[atom]

        values |= zip(jaxpr.constvars, map(np.asarray, constants), strict=True)
        values |= zip(jaxpr.invars, operands, strict=True)
        for equation in jaxpr.eqns:
            results = self._results(equation, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: Any, operands: list[Operand]) -> list[Operand]:
        name, params = equation.primitive.name, equation.params
        are_known = all(isinstance(each, np.ndarray) for each in operands)
        if name in ("jit", "pjit") and params["name"] == LAYER_NORM and not are_known:
            return layer_norm(self.graph, equation, operands)
        if name in CALLS:
            inner = next(each for each in params.values() if hasattr(each, "eqns"))
            closed = isinstance(inner, core.ClosedJaxpr)
            return self.run(inner.jaxpr if closed else inner, inner.consts if closed else (), operands)
        try:
            if are_known and name != "broadcast_in_dim":
                return _computed(equation, operands)
            if name not in RULES:
                raise UnsupportedError(name)
            return RULES[name](self.graph, equation, operands)
        except UnsupportedError as error:
            self.unknown[str(error)] = None
            return [self._stand_in(out.aval) for out in equation.outvars]

    def _stand_in(self, aval: Any) -> Value:
        places = in_order(len(aval.shape))
        return self.graph.value("Unknown", [], places, aval, number=len(self.graph.nodes))


def _computed(equation: Any, arrays: Sequence[Any]) -> list[Operand]:
    """What is known before the network runs; of a batch of any size it is one row, which repeats."""

    def of_one(value: Any) -> Any:
        return tuple(1 if size_of(each) is None else each for each in value) if _is_shape(value) else value

    if (quick := NUMPY.get(equation.primitive.name)) and _is_float(equation):
        return [np.asarray(quick(*arrays), np.float32)]
    params = {name: of_one(value) for name, value in equation.params.items()}
    full = [
        np.broadcast_to(array, of_one(atom.aval.shape)) for array, atom in zip(arrays, equation.invars, strict=True)
    ]
    results = equation.primitive.bind(*map(jnp.asarray, full), **params)
    return [np.asarray(each) for each in (results if equation.primitive.multiple_results else [results])]


def _is_float(equation: Any) -> bool:
    """Whether all that goes in and comes out is float32."""
    return all(atom.aval.dtype == np.float32 for atom in (*equation.invars, *equation.outvars))


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and any(jax_export.is_symbolic_dim(each) for each in value)


# ---- the file


def _rename(graph: Graph, old: str, new: str) -> None:
    if not graph.by(old).kind:
        raise UserError("ONNX: the network's output is its input, or a constant; there is nothing to export")
    for node in graph.nodes:
        node.inputs = [new if name == old else name for name in node.inputs]
        node.outputs = [new if name == old else name for name in node.outputs]
    graph.sizes[new] = graph.sizes[old]


def _model(onnx: Any, graph: Graph, example: Any, name: str, output: str, facts: dict[str, str]) -> Any:
    constants = {
        key: array.astype(np.float32) if array.dtype == np.float64 else array for key, array in graph.constants.items()
    }
    if sum(array.nbytes for array in constants.values()) > LIMIT:
        raise UserError("ONNX: the weights are more than the 2 GiB that a file holds; export with --to stablehlo")
    made = onnx.helper.make_graph(
        [onnx.helper.make_node(node.kind, node.inputs, node.outputs, **node.attributes) for node in graph.nodes],
        "jaxcnn",
        [onnx.helper.make_tensor_value_info(name, DTYPES[str(example.dtype)], ["batch", *example.shape])],
        [onnx.helper.make_tensor_value_info(output, DTYPES["float32"], ["batch", *graph.sizes[output][1:]])],
        [onnx.numpy_helper.from_array(np.asarray(array, order="C"), key) for key, array in constants.items()],
    )
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="jaxcnn"
    )
    onnx.helper.set_model_props(model, facts)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunError(f"ONNX: the file is not sound: {' '.join(str(error).split())[:200]}") from None
    return model
