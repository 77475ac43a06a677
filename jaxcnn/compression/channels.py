"""Which channels of a model must go together, read off its own trace; nothing here computes with arrays.

Every array carries marks: the number of a channel along an axis. Operations move marks or unite them: a sum, a
depthwise convolution or a gate unites what meets, a convolution unites its inputs with its kernel's. What is averaged
over channels, compared with others or reaches the output is fixed, and so is whatever an unknown operation sees.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.extend import core

from jaxcnn.layers.conv import by
from jaxcnn.layers.features import AUXILIARY
from jaxcnn.layers.norm import BatchNorm, NoNorm
from jaxcnn.layers.widths import WITH_FEATURES

Path = tuple[str, ...]  # ("params", "stage1_block1", "conv1", "kernel")
Place = tuple[Path, int]  # an array, and one of its axes
Mark = np.ndarray  # numbers of channels, broadcastable to an array: of size 1 along all axes but theirs
Marks = list[Mark]

FOLLOWERS = (BatchNorm, NoNorm)  # modules whose arrays are as wide as their input


@dataclass(frozen=True)
class Group:
    """Channels of which each may go without the others, and then from all of these places."""

    places: dict[Place, np.ndarray]  # int [channels, entries that a channel has along that axis]

    def __len__(self) -> int:
        return len(next(iter(self.places.values())))


@dataclass(frozen=True)
class Channels:
    """A model's channels."""

    groups: list[Group]  # those that may go
    owners: dict[Path, type]  # of each array, the module that has it
    num_fixed: int  # channels of layers but heads that may not: whoever reads them would see their number
    unknown: frozenset[str]  # operations that no rule is for, and whose channels are fixed for that


def find_channels(model: nn.Module, variables: Any, example: Any) -> Channels:
    """The channels of a model.

    Args:
      model: traced as in training, where auxiliary heads take part.
      variables: `params` and `batch_stats`; shapes are enough.
      example: shape and dtype of the inputs of one example.
    """
    if getattr(model, "remat", False):
        model = model.clone(remat=False)
    owners: dict[Path, type] = {}

    def record(next_method: Callable, arguments: Any, keywords: Any, context: Any) -> Any:
        owners[context.module.path] = type(context.module)
        return next_method(*arguments, **keywords)

    def call(variables: Any, images: Any) -> Any:
        keys = {"dropout": jax.random.key(0)}
        with nn.intercept_methods(record):
            outputs, seen = model.apply(variables, images, train=True, mutable=["batch_stats", AUXILIARY], rngs=keys)
        return outputs, seen.get(AUXILIARY, {})

    variables = {kind: tree for kind, tree in variables.items() if kind in ("params", "batch_stats")}
    images = jax.ShapeDtypeStruct((2, *example.shape), example.dtype)
    traced = jax.make_jaxpr(by("xla", call))(variables, images)
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    paths: list[Path] = [tuple(entry.key for entry in path) for path, _ in leaves]
    of_arrays = {path: owners.get(path[1:-1], nn.Module) for path in paths}
    tracer = _Tracer()
    own = [tracer.of_array(leaf.shape) for _, leaf in leaves]
    for path, marks in zip(paths, own, strict=True):
        if not issubclass(of_arrays[path], (*WITH_FEATURES, *FOLLOWERS)):
            tracer.fix(marks)
    image_marks = tracer.fixed(images.shape)
    for marks in tracer.run(traced.jaxpr, traced.consts, [*own, image_marks]):
        tracer.fix(marks)
    return _channels(tracer, dict(zip(paths, own, strict=True)), of_arrays)


def is_layer(path: Path, owners: dict[Path, type]) -> bool:
    """Whether an array is the kernel of a layer that has a width, which is the kernel's last axis."""
    return path[-1] == "kernel" and issubclass(owners[path], WITH_FEATURES)


def _channels(tracer: "_Tracer", own: dict[Path, Marks], owners: dict[Path, type]) -> Channels:
    members: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path, marks in own.items():
        for mark in marks:
            (axis,) = _axes(mark)
            for index, root in enumerate(tracer.roots(mark.ravel()).tolist()):
                members[root][path, axis].append(index)
    fixed, alike, num_fixed = tracer.fixed_roots(), defaultdict(list), 0
    for root, places in members.items():
        widths = [place for place in places if is_layer(place[0], owners) and place[1] == _last_axis(own, place)]
        if not widths or any("head" in path for path, _ in widths):  # the classes
            continue
        if root in fixed:
            num_fixed += 1
        else:
            alike[tuple(sorted((place, len(entries)) for place, entries in places.items()))].append(places)
    groups = [
        Group({place: np.array([each[place] for each in channels]) for place, _ in key})
        for key, channels in alike.items()
        if len(channels) > 1
    ]
    return Channels(groups, owners, num_fixed, frozenset(tracer.unknown))


def _last_axis(own: dict[Path, Marks], place: Place) -> int:
    return own[place[0]][0].ndim - 1


def _axes(mark: Mark) -> tuple[int, ...]:
    """The axes along which a mark differs."""
    return tuple(axis for axis, size in enumerate(mark.shape) if size > 1)


# ---- marks through a trace


class _Tracer:
    """Numbers of channels, which of them are one, and the rules of operations."""

    def __init__(self) -> None:
        self._parent, self._fixed = np.zeros(0, np.int64), np.zeros(0, bool)
        self.unknown: set[str] = set()

    # -- numbers

    def new(self, shape: Sequence[int]) -> Mark:
        """Numbers that no channel has yet."""
        start, count = len(self._parent), int(np.prod(shape))
        self._parent = np.append(self._parent, np.arange(start, start + count))
        self._fixed = np.append(self._fixed, np.zeros(count, bool))
        return np.arange(start, start + count).reshape(shape)

    def of_array(self, shape: Sequence[int]) -> Marks:
        """Marks of an array's channels: its last two axes. One channel alone has none: it stays."""
        axes = [axis for axis in range(max(0, len(shape) - 2), len(shape)) if shape[axis] > 1]
        return [self.new([size if each == axis else 1 for each, size in enumerate(shape)]) for axis in axes]

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """One number for all those that are one channel."""
        while True:
            above = self._parent[numbers]
            if np.array_equal(above, numbers):
                return numbers
            numbers = self._parent[above]

    def unite(self, first: Mark, second: Mark) -> None:
        """Makes one channel of the numbers that meet."""
        pairs = np.stack([self.roots(each.ravel()) for each in np.broadcast_arrays(first, second)])
        for pair in np.unique(pairs[:, pairs[0] != pairs[1]], axis=1).T:
            low, high = sorted(self.roots(pair).tolist())
            self._parent[high] = low

    def fix(self, marks: Marks) -> Marks:
        """Has these channels stay; they are not followed any further."""
        for mark in marks:
            self._fixed[mark.ravel()] = True
        return []

    def fixed(self, shape: Sequence[int]) -> Marks:
        """Marks of an array whose last axis is nobody's to cut."""
        marks = [mark for mark in self.of_array(shape) if _axes(mark) == (len(shape) - 1,)]
        self.fix(marks)
        return marks

    def fixed_roots(self) -> set[int]:
        """The channels of which one number is fixed."""
        return set(self.roots(np.flatnonzero(self._fixed)).tolist())

    # -- operations

    def run(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Marks]) -> list[Marks]:
        """Marks of a trace's outputs."""
        known: dict[Any, Marks] = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= {variable: [] for variable in jaxpr.constvars}
        del constants

        def read(variable: Any) -> Marks:
            return [] if isinstance(variable, core.Literal) else known[variable]

        for equation in jaxpr.eqns:
            given = [read(variable) for variable in equation.invars]
            outputs = self._apply(equation, given) if any(given) else [[] for _ in equation.outvars]
            known |= zip(equation.outvars, outputs, strict=True)
        return [read(variable) for variable in jaxpr.outvars]

    def _apply(self, equation: Any, given: list[Marks]) -> list[Marks]:
        name = equation.primitive.name
        if name in _CALLS:
            inner = next(equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params)
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
        rule = _RULES.get(name)
        if rule is None:
            self.unknown.add(name)
            for marks in given:
                self.fix(marks)
            return [self.fixed(variable.aval.shape) for variable in equation.outvars]
        outputs = rule(self, equation, given)
        return list(outputs) if isinstance(outputs, tuple) else [outputs] * len(equation.outvars)

    def merged(self, given: Sequence[Marks], rank: int) -> Marks:
        """Of arrays that meet element by element: marks along the same axes are one."""
        merged: Marks = []
        for mark in (mark for marks in given for mark in marks if mark.ndim == rank):
            same = next((each for each in merged if set(_axes(each)) & set(_axes(mark))), None)
            if same is None:
                merged.append(mark)
            else:
                self.unite(same, mark)
                if mark.size > same.size:
                    merged = [mark if each is same else each for each in merged]
        return merged

    def only(self, marks: Marks, keep: Callable[[Mark], bool]) -> Marks:
        """The marks that a condition holds for; the others are fixed."""
        self.fix([mark for mark in marks if not keep(mark)])
        return [mark for mark in marks if keep(mark)]


def _elementwise(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    return tracer.merged(given, equation.outvars[0].aval.ndim)


def _broadcast(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    rank, places = equation.outvars[0].aval.ndim, equation.params["broadcast_dimensions"]
    sizes = [dict(zip(places, mark.shape, strict=True)) for mark in given[0]]
    return [
        mark.reshape([size.get(axis, 1) for axis in range(rank)]) for mark, size in zip(given[0], sizes, strict=True)
    ]


def _reshape(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    marks = []
    for mark in given[0]:
        mark = tracer.roots(np.broadcast_to(mark, old).reshape(new))
        for axis, size in enumerate(new):
            first = mark.take([0], axis)
            if size > 1 and (mark == first).all():
                mark = first
        if len(_axes(mark)) > 1:  # channels were cut into parts, which must keep as many: the same of each
            for axis in _axes(mark)[:-1]:
                first = mark.take([0], axis)
                tracer.unite(mark, first)
                mark = first
        marks.append(mark)
    return marks


def _transpose(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    return [mark.transpose(equation.params["permutation"]) for mark in given[0]]


def _squeeze(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    return [mark.squeeze(tuple(equation.params["dimensions"])) for mark in given[0]]


def _reverse(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    return tracer.only(given[0], lambda mark: not set(_axes(mark)) & set(equation.params["dimensions"]))


def _reduce(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    """A mean over channels knows their number, and a maximum is one of theirs: they stay."""
    axes = equation.params["axes"]
    return [mark.squeeze(axes) for mark in tracer.only(given[0], lambda mark: not set(_axes(mark)) & set(axes))]


def _window(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    sizes = equation.params["window_dimensions"]
    return tracer.only(given[0], lambda mark: all(sizes[axis] == 1 for axis in _axes(mark)))


def _slice(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    """Of channels that the model counts out, none goes."""
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    tracer.fix([mark for mark in given[0] if any(before[axis] != after[axis] for axis in _axes(mark))])
    starts, steps = equation.params["start_indices"], equation.params["strides"] or (1,) * len(before)
    cuts = [slice(*each) for each in zip(starts, equation.params["limit_indices"], steps, strict=True)]
    cut = lambda mark: mark[tuple(cuts[axis] if axis in _axes(mark) else slice(None) for axis in range(mark.ndim))]
    return [left for left in map(cut, given[0]) if left.size > 1]


def _dynamic_slice(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return tracer.only(given[0], lambda mark: all(before[axis] == after[axis] for axis in _axes(mark)))


def _gather(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    """Whole rows of channels, from some places; what else is gathered by is no channel's affair."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    left = [axis for axis in range(len(sizes)) if axis not in gone]
    shape, rank = equation.invars[0].aval.shape, equation.outvars[0].aval.ndim
    for marks in given[1:]:
        tracer.fix(marks)
    whole = tracer.only(given[0], lambda mark: all(axis in left and sizes[axis] == shape[axis] for axis in _axes(mark)))
    place = dict(zip(numbers.offset_dims, left, strict=True))
    return [mark.reshape([mark.shape[place[axis]] if axis in place else 1 for axis in range(rank)]) for mark in whole]


def _split(tracer: _Tracer, equation: Any, given: list[Marks]) -> tuple[Marks, ...]:
    """Equal parts, which the model cuts wherever their middle is: they keep the same channels each."""
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    whole = [mark for mark in given[0] if axis not in _axes(mark)]
    cut = [mark for mark in given[0] if axis in _axes(mark)]
    if len(set(sizes)) > 1 or sizes[0] == 1 or any(len(_axes(mark)) > 1 for mark in cut):
        cut = tracer.fix(cut)
    parts = [np.split(mark, len(sizes), axis) for mark in cut]
    for each in parts:
        for part in each[1:]:
            tracer.unite(each[0], part)
    return tuple([*whole, *(each[number] for each in parts)] for number in range(len(sizes)))


def _concatenate(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    axis, rank = equation.params["dimension"], equation.outvars[0].aval.ndim
    if not any(axis in _axes(mark) for marks in given for mark in marks):
        return tracer.merged(given, rank)
    parts = []
    for variable, marks in zip(equation.invars, given, strict=True):
        along = tracer.only(marks, lambda mark: _axes(mark) == (axis,))
        if not along:  # of one channel, or of none that is followed
            along = [tracer.new([variable.aval.shape[axis] if each == axis else 1 for each in range(rank)])]
            tracer.fix(along)
        parts.append(along[0])
    return [np.concatenate(parts, axis)]


def _pad(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    """Zeros beside channels are channels too, which no array has."""
    pads = equation.params["padding_config"]
    marks = []
    for mark in tracer.only(given[0], lambda mark: all(min(pads[axis]) >= 0 == pads[axis][2] for axis in _axes(mark))):
        for axis in _axes(mark):
            before, after = (
                tracer.new([pads[axis][side] if each == axis else size for each, size in enumerate(mark.shape)])
                for side in (0, 1)
            )
            mark = np.concatenate([before, mark, after], axis)
        marks.append(mark)
    return marks


def _convolution(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    (image, kernel), rank = (variable.aval.shape for variable in equation.invars), equation.outvars[0].aval.ndim
    in_axis, out_axis = numbers.rhs_spec[1], numbers.rhs_spec[0]
    x = [mark.ravel() for mark in tracer.only(given[0], lambda mark: _axes(mark) == (numbers.lhs_spec[1],))]
    inputs = [mark.ravel() for mark in given[1] if _axes(mark) == (in_axis,)]
    outputs = [mark.ravel() for mark in given[1] if _axes(mark) == (out_axis,)]
    tracer.fix([mark for mark in given[1] if _axes(mark) not in ((in_axis,), (out_axis,))])
    depthwise = groups == image[numbers.lhs_spec[1]] == kernel[out_axis]
    if groups == 1 and x and inputs:
        tracer.unite(x[0], inputs[0])
    elif groups > 1 and depthwise and x and outputs:
        tracer.unite(x[0], outputs[0])
    elif groups > 1 and not depthwise and x and inputs and outputs:  # every group keeps the same of its channels
        tracer.unite(x[0].reshape(groups, -1), inputs[0])
        tracer.unite(outputs[0].reshape(groups, -1), outputs[0].reshape(groups, -1)[:1])
    else:
        tracer.fix([*x, *inputs, *(outputs if groups > 1 else [])])
    return [mark.reshape([-1 if axis == numbers.out_spec[1] else 1 for axis in range(rank)]) for mark in outputs]


def _product(tracer: _Tracer, equation: Any, given: list[Marks]) -> Marks:
    """A matrix product: what is summed over is one; what is not passes on. Products of a batch of both stay whole."""
    contracted, batched = equation.params["dimension_numbers"]
    shapes = [variable.aval.shape for variable in equation.invars]
    free = [
        [axis for axis in range(len(shape)) if axis not in contracted[side] and axis not in batched[side]]
        for side, shape in enumerate(shapes)
    ]
    summed = [[mark for mark in given[side] if set(_axes(mark)) <= set(contracted[side])] for side in (0, 1)]
    if batched[0] or not (summed[0] and summed[1]):
        tracer.fix([*summed[0], *summed[1]])
    else:
        first, second = (_moved(summed[side][0], contracted[side]) for side in (0, 1))
        tracer.unite(first, second)
        tracer.fix([*summed[0][1:], *summed[1][1:]])
    start, marks = len(batched[0]), []
    for side in (0, 1):
        passing = [mark for mark in given[side] if not any(mark is each for each in summed[side])]
        tracer.fix([mark for mark in passing if not set(_axes(mark)) <= set(free[side])])
        for mark in (mark for mark in passing if set(_axes(mark)) <= set(free[side])):
            shape = [1] * equation.outvars[0].aval.ndim
            for number, axis in enumerate(free[side]):
                shape[start + number] = mark.shape[axis]
            marks.append(mark.reshape(shape))
        start += len(free[side])
    return marks


def _moved(mark: Mark, axes: Sequence[int]) -> Mark:
    """A mark along these axes alone, in their order."""
    rest = [axis for axis in range(mark.ndim) if axis not in axes]
    return mark.transpose([*rest, *axes]).reshape([mark.shape[axis] for axis in axes])


_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2")
_ELEMENTWISE = """abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv erfc
exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul name ne neg not or pow
reduce_precision rem round rsqrt select_n sign sin sqrt square stop_gradient sub tan tanh xor"""
_RULES: dict[str, Callable[[_Tracer, Any, list[Marks]], Any]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"), _reduce),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "rev": _reverse,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
}
