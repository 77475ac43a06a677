"""What each of JAX's operations is in ONNX, opset 17: RULES, by the primitive's name.

A rule is (graph, equation of the jaxpr, its operands) -> its results. It may look at what made its operands, and say in
one node what they say in several: a softmax, a mean, an activation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.export.onnx_graph import Graph, Operand, Sizes, Value, channels_first, in_order, size_of

Rule = Callable[[Graph, Any, list[Any]], list[Operand]]
# numbers of onnx.TensorProto, https://onnx.ai/onnx/intro/concepts.html#element-type
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}


class UnsupportedError(Exception):
    """A case of an operation that its rule does not know; the message names it."""


def _aval(equation: Any) -> Any:
    return equation.outvars[0].aval


def _same(x: Value, aval: Any) -> list[Operand]:
    """The same stored array, as another traced one."""
    return [Value(x.name, x.places, aval)]


def _is_float(aval: Any) -> bool:
    return bool(np.issubdtype(aval.dtype, np.floating))


# ---- elementwise: what one node says


def _elementwise(kind: str, **attributes: Any) -> Rule:
    return lambda graph, equation, operands: [graph.elementwise(kind, operands, _aval(equation), **attributes)]


def _alias(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    """What moves no value: barriers, copies."""
    return [
        Value(x.name, x.places, out.aval) if isinstance(x, Value) else x
        for x, out in zip(operands, equation.outvars, strict=True)
    ]


def _cast(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,), aval = operands, _aval(equation)
    if x.aval.dtype == aval.dtype:
        return _same(x, aval)
    if str(aval.dtype) not in DTYPES:
        raise UnsupportedError(f"convert_element_type to {aval.dtype}")
    return [graph.elementwise("Cast", [x], aval, to=DTYPES[str(aval.dtype)])]


# ---- elementwise: sums, products, and what they add up to


def _all_are(array: Any, number: float) -> bool:
    return isinstance(array, np.ndarray) and bool((np.abs(array - number) <= 1e-6 * abs(number)).all())


def _constant_last(operands: list[Any]) -> list[Any]:
    first, second = operands
    return operands if isinstance(first, Value) else [second, first]


def _add(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    return [graph.elementwise("Add", _constant_last(operands), _aval(equation))]


def _sub(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    first, second = operands
    if isinstance(second, np.ndarray) and _is_float(_aval(equation)):
        return _add(graph, equation, [first, np.asarray(-second)])
    return [graph.elementwise("Sub", operands, _aval(equation))]


def _mul(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x, factor), aval = _constant_last(operands), _aval(equation)
    if isinstance(factor, np.ndarray):
        return [_scaled(graph, x, factor, aval)]
    for one, other in ((x, factor), (factor, x)):  # x * hard_sigmoid(x)
        node = graph.by(other.name)
        if node.kind == "HardSigmoid" and node.inputs == [one.name]:
            return [Value(graph.op("HardSwish", [one.name], graph.sizes[one.name]), one.places, aval)]
    return [graph.elementwise("Mul", [x, factor], aval)]


def _div(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x, divisor), aval = operands, _aval(equation)
    if isinstance(divisor, np.ndarray) and _is_float(aval) and divisor.all():
        return [_scaled(graph, x, np.asarray(1 / divisor.astype(np.float64)), aval)]
    if isinstance(x, Value) and isinstance(divisor, Value) and (softmax := _softmax(graph, x, divisor)):
        return _same(softmax, aval)
    return [graph.elementwise("Div", operands, aval)]


def _neg(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    return [_scaled(graph, operands[0], np.asarray(-1, operands[0].aval.dtype), _aval(equation))]


def _scaled(graph: Graph, x: Value, factor: np.ndarray, aval: Any) -> Value:
    """X * factor; of a sum its mean, of relu6(x + 3) / 6 the hard sigmoid."""
    node = graph.by(x.name)
    if node.kind == "ReduceSum":
        axes = graph.axes_of(node)
        count = [graph.sizes[node.inputs[0]][axis] for axis in axes]
        if None not in count and _all_are(factor, 1 / math.prod(size or 1 for size in count)):
            keepdims = node.attributes["keepdims"]
            name = graph.op("ReduceMean", node.inputs[:1], graph.sizes[x.name], axes=list(axes), keepdims=keepdims)
            return Value(name, x.places, aval)
    if _all_are(factor, 1 / 6) and (inner := _hard_sigmoid_of(graph, x.name)):
        name = graph.op("HardSigmoid", [inner], graph.sizes[inner], alpha=1 / 6, beta=0.5)
        return Value(name, x.places, aval)
    return graph.elementwise("Mul", [x, factor], aval)


def _hard_sigmoid_of(graph: Graph, name: str) -> str | None:
    """The x of a stored relu6(x + 3)."""
    clip = graph.by(name)
    if clip.kind != "Clip" or not _all_are(graph.known(clip.inputs[2]), 6):
        return None
    add = graph.by(clip.inputs[0])
    if add.kind != "Add" or not _all_are(graph.known(add.inputs[1]), 3):
        return None
    return add.inputs[0]


def _softmax(graph: Graph, x: Value, divisor: Value) -> Value | None:
    """The softmax that exp(y - max y) over its sum is."""
    exp, total = graph.by(x.name), graph.by(divisor.name)
    if exp.kind != "Exp" or total.kind != "ReduceSum" or total.inputs[0] != x.name or x.places != divisor.places:
        return None
    shifted = graph.by(exp.inputs[0])
    if shifted.kind != "Sub" or not total.attributes["keepdims"]:
        return None
    y, largest = shifted.inputs[0], graph.by(shifted.inputs[1])
    axes = graph.axes_of(total)
    if largest.kind != "ReduceMax" or largest.inputs != [y] or graph.axes_of(largest) != axes or len(axes) != 1:
        return None
    return Value(graph.op("Softmax", [y], graph.sizes[y], axis=axes[0]), x.places, x.aval)


# ---- elementwise: activations, powers, choices


def _max(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x, bound), aval = _constant_last(operands), _aval(equation)
    if isinstance(bound, np.ndarray) and (bound == -np.inf).all():
        return _same(x, aval)
    if isinstance(bound, np.ndarray) and _is_float(aval) and (bound == 0).all():
        return [graph.elementwise("Relu", [x], aval)]
    return [graph.elementwise("Max", [x, bound], aval)]


def _min(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x, bound), aval = _constant_last(operands), _aval(equation)
    node = graph.by(x.name)
    if node.kind == "Relu" and isinstance(bound, np.ndarray) and (bound == bound.flat[0]).all():
        return [_clipped(graph, Value(node.inputs[0], x.places, aval), 0.0, bound.flat[0], aval)]
    return [graph.elementwise("Min", [x, bound], aval)]


def _clamp(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    low, x, high = operands
    if any(isinstance(each, Value) or each.size != 1 for each in (low, high)):
        raise UnsupportedError("clamp by arrays")
    return [_clipped(graph, x, low.item(), high.item(), _aval(equation))]


def _clipped(graph: Graph, x: Value, low: Any, high: Any, aval: Any) -> Value:
    bounds = [graph.constant(np.asarray(each, aval.dtype)) for each in (low, high)]
    return Value(graph.op("Clip", [x.name, *bounds], graph.sizes[x.name]), x.places, aval)


def _integer_pow(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,), y = operands, equation.params["y"]
    if y == 2:
        return [graph.elementwise("Mul", [x, x], _aval(equation))]
    return [graph.elementwise("Pow", [x, np.asarray(y, x.aval.dtype)], _aval(equation))]


def _square(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    return [graph.elementwise("Mul", operands * 2, _aval(equation))]


def _exp2(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    return [_scaled_exp(graph, operands[0], math.log(2), _aval(equation))]


def _scaled_exp(graph: Graph, x: Value, factor: float, aval: Any) -> Value:
    return graph.elementwise("Exp", [_scaled(graph, x, np.asarray(factor, np.float64), aval)], aval)


def _expm1(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    exp = graph.elementwise("Exp", operands, _aval(equation))
    return [graph.elementwise("Add", [exp, np.asarray(-1, np.float32)], _aval(equation))]


def _log1p(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    more = graph.elementwise("Add", [operands[0], np.asarray(1, np.float32)], _aval(equation))
    return [graph.elementwise("Log", [more], _aval(equation))]


def _rsqrt(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    root = graph.elementwise("Sqrt", operands, _aval(equation))
    return [graph.elementwise("Reciprocal", [root], _aval(equation))]


def _erf(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    return [_erf_of(graph, operands[0], 1.0, _aval(equation))]


def _erfc(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    """1 + erf(-x): with it GELU reads as onnxruntime knows it."""
    negative = _erf_of(graph, operands[0], -1.0, _aval(equation))
    return [graph.elementwise("Add", [negative, np.asarray(1, np.float32)], _aval(equation))]


def _erf_of(graph: Graph, x: Value, factor: float, aval: Any) -> Value:
    """erf(factor * x), with numbers before it in one division."""
    name, node = x.name, graph.by(x.name)
    while node.kind == "Mul" and (known := graph.known(node.inputs[1])) is not None and known.size == 1:
        name, factor = node.inputs[0], factor * known.item()
        node = graph.by(name)
    inner = Value(name, x.places, aval)
    if factor != 1:
        inner = graph.elementwise("Div", [inner, np.asarray(1 / factor, np.float64)], aval)
    return graph.elementwise("Erf", [inner], aval)


def _select(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    which, *cases = operands
    aval = _aval(equation)
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise UnsupportedError("select_n among several")
    no, yes = cases
    if slope := _slope(graph, which, yes, no):
        return [graph.elementwise("LeakyRelu", [yes], aval, alpha=slope)]
    return [graph.elementwise("Where", [which, yes, no], aval)]


def _slope(graph: Graph, which: Any, yes: Any, no: Any) -> float | None:
    """The slope where it is x if x >= 0, else slope * x."""
    if not all(isinstance(each, Value) for each in (which, yes, no)):
        return None
    compare, product = graph.by(which.name), graph.by(no.name)
    if compare.kind != "GreaterOrEqual" or product.kind != "Mul" or compare.inputs[0] != product.inputs[0]:
        return None
    zero, slope = graph.known(compare.inputs[1]), graph.known(product.inputs[1])
    if yes.name != product.inputs[0] or zero is None or zero.any() or slope is None or slope.size != 1:
        return None
    return float(slope.item())


# ---- the order and number of axes


def _broadcast(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    """Repeats nothing: each use is elementwise, and repeats by itself, or asks for the whole."""
    (x, *_), aval, dimensions = operands, _aval(equation), equation.params["broadcast_dimensions"]
    rank = len(aval.shape)
    if isinstance(x, np.ndarray):
        sizes = [1] * rank
        for axis, place in enumerate(dimensions):
            sizes[place] = x.shape[axis]
        return [x.reshape(sizes)]
    if tuple(dimensions) == in_order(rank):
        return _same(x, aval)
    if kept := _reduced_and_kept(graph, x, dimensions, aval):
        return [kept]
    name = graph.stored(x, in_order(x.rank))
    found: list[int | None] = [1] * rank
    for axis, place in enumerate(dimensions):
        found[place] = graph.sizes[name][axis]
    return [Value(graph.reshape(name, tuple(found)), in_order(rank), aval)]


def _reduced_and_kept(graph: Graph, x: Value, dimensions: Sequence[int], aval: Any) -> Value | None:
    """The reduction that x is, with its reduced axes kept, where that is all that a broadcast undoes."""
    node, rank = graph.by(x.name), len(aval.shape)
    if not node.kind.startswith("Reduce") or node.attributes["keepdims"]:
        return None
    whole, reduced = graph.sizes[node.inputs[0]], graph.axes_of(node)
    if len(whole) != rank or len(reduced) != rank - len(dimensions):
        return None
    kept = [axis for axis in range(rank) if axis not in reduced]
    places = dict(zip(dimensions, (kept[place] for place in x.places), strict=True))
    places |= zip((axis for axis in range(rank) if axis not in dimensions), reduced, strict=True)
    sizes = tuple(1 if axis in reduced else size for axis, size in enumerate(whole))
    name = graph.op(node.kind, node.inputs, sizes, **{**node.attributes, "keepdims": 1})
    return Value(name, tuple(places[axis] for axis in range(rank)), aval)


def _sizes_of(aval: Any, equation: Any) -> Sizes:
    return _one_batch(tuple(map(size_of, aval.shape)), equation)


def _one_batch(sizes: Sizes, equation: Any) -> Sizes:
    if sizes.count(None) > 1:
        raise UnsupportedError(f"{equation.primitive.name} with the batch in several axes")
    return sizes


def _reshape(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    """Parts and unites axes where they are stored, and turns no more than brings those that are united together."""
    x, aval = operands[0], _aval(equation)
    sizes = _sizes_of(aval, equation)
    groups = _groups(tuple(map(size_of, x.aval.shape)), sizes)
    if groups is None:
        return [Value(graph.reshape(graph.whole(x, x.aval), sizes), in_order(len(sizes)), aval)]
    groups.sort(key=lambda group: min(x.places[axis] for axis in group[0]))
    before, after = ([axis for group in groups for axis in group[side]] for side in (0, 1))
    name = graph.reshape(graph.whole(x, x.aval, _places(before)), tuple(sizes[axis] for axis in after))
    return [Value(name, _places(after), aval)]


def _groups(before: Sizes, after: Sizes) -> list[tuple[list[int], list[int]]] | None:
    """The fewest axes each that have the same product before and after a reshape; None where that is not sure."""
    groups: list[tuple[list[int], list[int]]] = []
    old = new = 0
    while old < len(before) and new < len(after):
        ends = [old + 1, new + 1]
        while (products := [_product(before[old : ends[0]]), _product(after[new : ends[1]])])[0] != products[1]:
            shorter = products.index(min(products))
            ends[shorter] += 1
            if ends[0] > len(before) or ends[1] > len(after):
                return None
        groups.append((list(range(old, ends[0])), list(range(new, ends[1]))))
        old, new = ends
    if not groups or _product(before[old:]) != (0, 1) or _product(after[new:]) != (0, 1):
        return None
    groups[-1][0].extend(range(old, len(before)))  # 1 each
    groups[-1][1].extend(range(new, len(after)))
    return groups


def _product(sizes: Sizes) -> tuple[int, int]:
    """(how often the batch is in it, the product of the rest)."""
    return sizes.count(None), math.prod(size or 1 for size in sizes)


def _transpose(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,) = operands
    return [Value(x.name, tuple(x.places[axis] for axis in equation.params["permutation"]), _aval(equation))]


def _pad(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x, filling), config = operands, equation.params["padding_config"]
    if isinstance(filling, Value) or any(inside or low < 0 or high < 0 for low, high, inside in config):
        raise UnsupportedError("pad between elements, or by less than none")
    if not any(low or high for low, high, _ in config):
        return _same(x, _aval(equation))
    name = graph.whole(x, x.aval, x.places)
    ends = [[0] * x.rank, [0] * x.rank]
    for axis, (low, high, _) in enumerate(config):
        ends[0][x.places[axis]], ends[1][x.places[axis]] = low, high
    inputs = [name, graph.numbers(*ends[0], *ends[1]), graph.constant(filling)]
    return [graph.value("Pad", inputs, x.places, _aval(equation))]


def _concatenate(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    leader = next(each for each in operands if isinstance(each, Value))
    names = [
        graph.whole(each, variable.aval, leader.places)
        for each, variable in zip(operands, equation.invars, strict=True)
    ]
    axis = leader.places[equation.params["dimension"]]
    return [graph.value("Concat", names, leader.places, _aval(equation), axis=axis)]


def _split(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,), sizes = operands, equation.params["sizes"]
    axis = x.places[equation.params["axis"]]
    whole = graph.whole(x, x.aval, x.places)
    each = [tuple(size if a == axis else old for a, old in enumerate(graph.sizes[whole])) for size in sizes]
    names = graph.add("Split", [whole, graph.numbers(*sizes)], *each, axis=axis)
    return [Value(name, x.places, out.aval) for name, out in zip(names, equation.outvars, strict=True)]


# ---- parts of an array


def _part(graph: Graph, x: Value, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int], aval: Any) -> Value:
    """From `starts` to before `ends`, in steps, along each traced axis but the batch's, which is whole."""
    shape = x.aval.shape
    axes = [
        axis
        for axis in range(x.rank)
        if size_of(shape[axis]) is not None and (starts[axis], ends[axis], steps[axis]) != (0, shape[axis], 1)
    ]
    if not axes:
        return Value(x.name, x.places, aval)
    where = [[each[axis] for axis in axes] for each in (starts, ends)]
    inputs = [graph.whole(x, x.aval, x.places), *(graph.numbers(*each) for each in where)]
    inputs += [graph.numbers(*(x.places[axis] for axis in axes)), graph.numbers(*(steps[axis] for axis in axes))]
    return graph.value("Slice", inputs, x.places, aval)


def _slice(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,), params = operands, equation.params
    starts, ends = params["start_indices"], params["limit_indices"]
    for start, end, size in zip(starts, ends, x.aval.shape, strict=True):
        if size_of(size) is None and not (size_of(start) == 0 and end == size):
            raise UnsupportedError("slice of the batch")
    return [_part(graph, x, starts, ends, params["strides"] or [1] * x.rank, _aval(equation))]


def _dynamic_slice(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    x, *starts = operands
    if not isinstance(x, Value) or any(isinstance(each, Value) for each in starts):
        raise UnsupportedError("dynamic_slice at places that are computed")
    sizes = equation.params["slice_sizes"]
    firsts = [
        0 if size_of(size) is None else min(max(int(start), 0), whole - size)
        for start, size, whole in zip(starts, sizes, x.aval.shape, strict=True)
    ]
    ends = [first if size_of(size) is None else first + size for first, size in zip(firsts, sizes, strict=True)]
    return [_part(graph, x, firsts, ends, [1] * x.rank, _aval(equation))]


def _reverse(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,), axes = operands, equation.params["dimensions"]
    starts = [-1 if axis in axes else 0 for axis in range(x.rank)]
    ends = [-(2**31) if axis in axes else size for axis, size in enumerate(x.aval.shape)]
    return [_part(graph, x, starts, ends, [-1 if axis in axes else 1 for axis in range(x.rank)], _aval(equation))]


def _gather(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    """Of the many things that it can say: one window; every so many rows of some axes; rows of one, at any places."""
    (x, places), numbers, aval = operands, equation.params["dimension_numbers"], _aval(equation)
    sizes, shape = equation.params["slice_sizes"], equation.invars[0].aval.shape
    if numbers.operand_batching_dims or (isinstance(places, Value) and len(numbers.start_index_map) != 1):
        raise UnsupportedError("gather along several axes")
    if isinstance(places, np.ndarray) and places.size == places.shape[-1]:  # one window
        return [_window(graph, x, places.reshape(-1), equation)]
    if isinstance(places, np.ndarray) and (part := _every_so_many(graph, x, places, equation)):
        return [part]
    axes = numbers.start_index_map
    others = [axis for axis in range(len(shape)) if axis not in axes]
    whole_others = all(sizes[axis] is shape[axis] or sizes[axis] == shape[axis] for axis in others)
    if len(axes) != 1 or tuple(numbers.collapsed_slice_dims) != tuple(axes) or not whole_others:
        raise UnsupportedError("gather of windows")
    (axis,), rank = axes, len(equation.invars[1].aval.shape) - 1
    if tuple(numbers.offset_dims) != tuple(d for d in range(len(aval.shape)) if not axis <= d < axis + rank):
        raise UnsupportedError("gather to other axes")
    if isinstance(places, Value):
        last = graph.whole(places, places.aval)
        index = graph.reshape(last, graph.sizes[last][:-1])
    else:
        index = graph.constant(np.clip(places[..., 0], 0, shape[axis] - 1).astype(np.int64))
    inputs = [graph.whole(x, equation.invars[0].aval), index]
    return [graph.value("Gather", inputs, in_order(len(aval.shape)), aval, axis=axis)]


def _window(graph: Graph, x: Value, first: np.ndarray, equation: Any) -> Value:
    """The part of x from `first` on, as a gather has it: axes that it drops are 1 long."""
    aval, numbers, sizes = _aval(equation), equation.params["dimension_numbers"], equation.params["slice_sizes"]
    starts, ends = [0] * x.rank, list(x.aval.shape)
    for axis, start in zip(numbers.start_index_map, first.tolist(), strict=True):
        starts[axis] = min(max(start, 0), x.aval.shape[axis] - sizes[axis])
        ends[axis] = starts[axis] + sizes[axis]
    if len(first) == 1 and len(aval.shape) == x.rank - 1:  # x[:, :, number]
        (axis,) = numbers.start_index_map
        if x.aval.shape[axis] == 1:
            return Value(graph.reshape(graph.whole(x, x.aval), _sizes_of(aval, equation)), in_order(x.rank - 1), aval)
        inputs = [graph.whole(x, x.aval), graph.constant(np.array(starts[axis], np.int64))]
        return graph.value("Gather", inputs, in_order(len(aval.shape)), aval, axis=axis)
    shape = tuple(end if size_of(end) is None else end - start for start, end in zip(starts, ends, strict=True))
    part = _part(graph, x, starts, ends, [1] * x.rank, x.aval.update(shape=shape))
    name = graph.reshape(graph.whole(part, part.aval), _sizes_of(aval, equation))
    return Value(name, in_order(len(aval.shape)), aval)


def _every_so_many(graph: Graph, x: Value, places: np.ndarray, equation: Any) -> Value | None:
    """The x[:, start::step, …] that a gather is, if it is one."""
    numbers, axes = equation.params["dimension_numbers"], equation.params["dimension_numbers"].start_index_map
    others = tuple(axis for axis in range(x.rank) if axis not in axes)
    if (
        places.ndim != len(axes) + 1
        or tuple(numbers.collapsed_slice_dims) != tuple(axes)
        or axes != tuple(sorted(axes))
    ):
        return None
    if tuple(numbers.offset_dims) != others or len(_aval(equation).shape) != x.rank:
        return None
    starts, ends, steps = [0] * x.rank, list(x.aval.shape), [1] * x.rank
    for number, axis in enumerate(axes):
        each = np.moveaxis(places[..., number], number, 0).reshape(places.shape[number], -1)
        row, gaps = each[:, 0], np.diff(each[:, 0])
        if (each != row[:, None]).any() or (gaps != gaps[:1]).any() or (gaps <= 0).any():
            return None
        steps[axis] = int(gaps[0]) if len(gaps) else 1
        starts[axis], ends[axis] = int(row[0]), int(row[-1]) + 1
    return _part(graph, x, starts, ends, steps, _aval(equation))


# ---- reductions, windows, products


def _reduce(kind: str) -> Rule:
    def rule(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
        (x,), reduced = operands, equation.params["axes"]
        name = graph.whole(x, x.aval, x.places)
        axes = sorted(x.places[axis] for axis in reduced)
        sizes = tuple(size for axis, size in enumerate(graph.sizes[name]) if axis not in axes)
        if kind == "ReduceSum":
            result = graph.op(kind, [name, graph.numbers(*axes)], sizes, keepdims=0)
        else:
            result = graph.op(kind, [name], sizes, axes=axes, keepdims=0)
        kept = [place for axis, place in enumerate(x.places) if axis not in reduced]
        return [Value(result, _places(_places(kept)), _aval(equation))]

    return rule


def _argmax(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,), (axis,), aval = operands, equation.params["axes"], _aval(equation)
    name = graph.whole(x, x.aval)
    sizes = tuple(map(size_of, aval.shape))
    found = Value(graph.op("ArgMax", [name], sizes, axis=axis, keepdims=0), in_order(len(sizes)), aval)
    return [graph.elementwise("Cast", [found], aval, to=DTYPES[str(aval.dtype)])]


def _cumsum(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x,), params = operands, equation.params
    axis = graph.constant(np.array(x.places[params["axis"]], np.int64))
    whole = graph.whole(x, x.aval, x.places)
    return [graph.value("CumSum", [whole, axis], x.places, _aval(equation), reverse=int(params["reverse"]))]


def _pooling(kind: str) -> Rule:
    def rule(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
        (x, *_), params = operands, equation.params
        window, dilation = params["window_dimensions"], (*params["base_dilation"], *params["window_dilation"])
        if x.rank < 3 or window[0] != 1 or window[-1] != 1 or set(dilation) != {1}:
            raise UnsupportedError(f"{equation.primitive.name} over {window}")
        places, pads = channels_first(x.rank), params["padding"][1:-1]
        attributes = {
            "kernel_shape": list(window[1:-1]),
            "strides": list(params["window_strides"][1:-1]),
            "pads": [low for low, _ in pads] + [high for _, high in pads],
        }
        name, aval = graph.whole(x, x.aval, places), _aval(equation)
        if kind == "MaxPool":
            return [graph.value(kind, [name], places, aval, **attributes)]
        mean = graph.value("AveragePool", [name], places, aval, count_include_pad=1, **attributes)
        return [graph.elementwise("Mul", [mean, np.asarray(math.prod(window), np.float64)], aval)]

    return rule


def _convolution(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    (x, kernel), params = operands, equation.params
    if isinstance(kernel, Value) or params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise UnsupportedError("conv_general_dilated, transposed or by a computed kernel")
    layout = params["dimension_numbers"]  # of each its traced axes in the order batch, channels, height, width
    weights = np.ascontiguousarray(kernel.transpose(layout.rhs_spec))
    pads = params["padding"]
    result_places = _places(layout.out_spec)
    name = graph.whole(x, equation.invars[0].aval, _places(layout.lhs_spec))
    return [
        graph.value(
            "Conv", [name, graph.constant(weights)], result_places, _aval(equation),
            kernel_shape=list(weights.shape[2:]), strides=list(params["window_strides"]),
            dilations=list(params["rhs_dilation"]), group=params["feature_group_count"],
            pads=[low for low, _ in pads] + [high for _, high in pads],
        )
    ]  # fmt: skip


def _dot(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    """A matrix product of [*batch, free, contracted] and [*batch, contracted, free].

    Without a batch the first's free axes stay as they are. What is known comes second, so that it is never turned; of
    two that are computed, they stand as fewer need to be.
    """
    contracted, batch = equation.params["dimension_numbers"]
    free = [
        [axis for axis in range(len(variable.aval.shape)) if axis not in (*contracted[side], *batch[side])]
        for side, variable in enumerate(equation.invars)
    ]

    def groups(one: int, other: int) -> tuple[list[Any], list[Any]]:
        left = [[each] for each in batch[one]] + ([free[one]] if batch[one] else [[each] for each in free[one]])
        return [*left, contracted[one]], [*([each] for each in batch[other]), contracted[other], free[other]]

    def turned(sides: tuple[int, int]) -> int:
        if any(isinstance(each, np.ndarray) for each in operands):
            return isinstance(operands[sides[0]], np.ndarray)
        each = zip(sides, groups(*sides), strict=True)
        return sum([operands[side].places[axis] for group in part for axis in group] != sorted(operands[side].places)
                   for side, part in each)  # fmt: skip

    one, other = sides = min(((0, 1), (1, 0)), key=turned)
    names = [
        _grouped(graph, operands[side], equation.invars[side].aval, part)
        for side, part in zip(sides, groups(one, other), strict=True)
    ]
    made = (*graph.sizes[names[0]][:-1], graph.sizes[names[1]][-1])
    # the traced result has the axes of the batch, those free in the first operand, those free in the second
    ends = np.cumsum([len(batch[0]), len(free[0]), len(free[1])]).tolist()
    axes = [range(ends[0]), range(ends[0], ends[1]), range(ends[1], ends[2])]
    order = [*axes[0], *axes[1 + one], *axes[1 + other]]
    aval = _aval(equation)
    sizes = _one_batch(tuple(size_of(aval.shape[axis]) for axis in order), equation)
    name = graph.reshape(graph.op("MatMul", names, made), sizes)
    return [Value(name, _places(order), aval)]


def _grouped(graph: Graph, operand: Operand, aval: Any, groups: list[Sequence[int]]) -> str:
    """An operand whose axes are turned into these groups, each united to one axis."""
    name = graph.whole(operand, aval, _places([axis for group in groups for axis in group]))
    each = [[size_of(aval.shape[axis]) for axis in group] for group in groups]
    sizes = tuple(None if None in group else math.prod(size or 1 for size in group) for group in each)
    known = graph.known(name)
    if known is None:
        return graph.reshape(name, sizes)
    return graph.constant(known.reshape([size or 1 for size in sizes]))


def _places(order: Sequence[int]) -> tuple[int, ...]:
    """Places of the axes that are stored in this order."""
    return tuple(int(each) for each in np.argsort(order))


def layer_norm(graph: Graph, equation: Any, operands: list[Any]) -> list[Operand]:
    """The call that layers/plain.py makes of a layer norm."""
    x, scale, bias, epsilon = operands
    inputs = [graph.whole(x, equation.invars[0].aval), graph.constant(scale), graph.constant(bias)]
    places = in_order(len(_aval(equation).shape))
    return [
        graph.value("LayerNormalization", inputs, places, _aval(equation), axis=-1, epsilon=float(np.asarray(epsilon)))
    ]


RULES: dict[str, Rule] = {
    "abs": _elementwise("Abs"),
    "add": _add,
    "add_any": _add,
    "and": _elementwise("And"),
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast,
    "ceil": _elementwise("Ceil"),
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "copy": _alias,
    "copy_p": _alias,
    "cos": _elementwise("Cos"),
    "cumsum": _cumsum,
    "div": _div,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "eq": _elementwise("Equal"),
    "erf": _erf,
    "erfc": _erfc,
    "exp": _elementwise("Exp"),
    "exp2": _exp2,
    "expm1": _expm1,
    "floor": _elementwise("Floor"),
    "gather": _gather,
    "ge": _elementwise("GreaterOrEqual"),
    "gt": _elementwise("Greater"),
    "integer_pow": _integer_pow,
    "le": _elementwise("LessOrEqual"),
    "log": _elementwise("Log"),
    "log1p": _log1p,
    "logistic": _elementwise("Sigmoid"),
    "lt": _elementwise("Less"),
    "max": _max,
    "min": _min,
    "mul": _mul,
    "name": _alias,
    "neg": _neg,
    "not": _elementwise("Not"),
    "optimization_barrier": _alias,
    "or": _elementwise("Or"),
    "pad": _pad,
    "pow": _elementwise("Pow"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _pooling("MaxPool"),
    "reduce_window_sum": _pooling("AveragePool"),
    "reshape": _reshape,
    "rev": _reverse,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "sign": _elementwise("Sign"),
    "sin": _elementwise("Sin"),
    "slice": _slice,
    "split": _split,
    "sqrt": _elementwise("Sqrt"),
    "square": _square,
    "squeeze": _reshape,
    "stop_gradient": _alias,
    "sub": _sub,
    "tanh": _elementwise("Tanh"),
    "transpose": _transpose,
}
