"""An ONNX graph while it is built: its nodes, its constants, and where the axes of a traced array lie in a stored one.

Convolutions are stored [batch, channels, height, width], as ONNX has them, while the trace has channels last. So a
value carries the places of its axes, and an array is turned only where an operation needs another order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Sizes = tuple[int | None, ...]  # None: the batch's
BATCH = "batch_size"  # the int64 [1] that a graph has where something is repeated for each example


@dataclass
class Node:
    """An operation of ONNX."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class Value(NamedTuple):
    """An array that depends on the network's input.

    The stored array has 1 where the traced one is longer if it repeats along that axis: elementwise operations do the
    same in both.
    """

    name: str
    places: tuple[int, ...]  # axis i of the traced array is axis places[i] of the stored one
    aval: Any  # of the traced array: its shape, with a symbolic batch, and its dtype

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.places)


Operand = Value | np.ndarray  # or an array that is known; its axes may be 1 where they repeat, too


def size_of(dimension: Any) -> int | None:
    """A traced dimension as Sizes have it."""
    return int(dimension) if isinstance(dimension, int | np.integer) else None


def in_order(rank: int) -> tuple[int, ...]:
    """The places of an array that is stored as it is traced."""
    return tuple(range(rank))


def channels_first(rank: int) -> tuple[int, ...]:
    """The places of [batch, …, channels] stored as [batch, channels, …]."""
    return (0, *range(2, rank), 1)


@dataclass
class Graph:
    """Nodes in the order in which they run, each operation on the same inputs once."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)  # float64 ones become float32 at the end
    sizes: dict[str, Sizes] = field(default_factory=dict)  # of each stored array
    _made: dict[Any, list[str]] = field(default_factory=dict)
    _by: dict[str, Node] = field(default_factory=dict)
    _count: int = 0

    # ---- nodes and constants

    def fresh(self, kind: str) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    def add(self, kind: str, inputs: Sequence[str], *sizes: Sizes, **attributes: Any) -> list[str]:
        """The outputs of an operation, one for each of `sizes`; where a node computes it already, of that."""
        key = kind, *inputs, repr(attributes), len(sizes)
        if key not in self._made:
            node = Node(kind, list(inputs), [self.fresh(kind) for _ in sizes], attributes)
            self.nodes.append(node)
            self._made[key] = node.outputs
            self._by |= dict.fromkeys(node.outputs, node)
            self.sizes |= dict(zip(node.outputs, sizes, strict=True))
        return self._made[key]

    def op(self, kind: str, inputs: Sequence[str], sizes: Sizes, **attributes: Any) -> str:
        """The output of an operation that has one."""
        return self.add(kind, inputs, sizes, **attributes)[0]

    def constant(self, array: Any) -> str:
        """The name of a known array; of the same one, where it is small and there already."""
        array = np.asarray(array)
        key = "constant", array.dtype.str, array.shape, array.tobytes() if array.nbytes <= 4096 else id(array)
        if key not in self._made:
            name = self.fresh("constant")
            self.constants[name], self.sizes[name] = array, array.shape  # kept, so that no other has its id
            self._made[key] = [name]
        return self._made[key][0]

    def numbers(self, *values: int) -> str:
        """A constant int64 [n]: axes, shapes, places."""
        return self.constant(np.array(values, np.int64))

    def by(self, name: str) -> Node:
        """The node that computes it; of an input or a constant one of no kind."""
        return self._by.get(name) or Node("", [], [name], {})

    def known(self, name: str) -> np.ndarray | None:
        """The array of a constant."""
        return self.constants.get(name)

    # ---- layouts

    def value(self, kind: str, inputs: Sequence[str], places: Sequence[int], aval: Any, **attributes: Any) -> Value:
        """What an operation makes whose result is stored in full."""
        return Value(self.op(kind, inputs, stored_sizes(aval.shape, places), **attributes), tuple(places), aval)

    def reshape(self, name: str, sizes: Sizes) -> str:
        """The stored array with other sizes. What only unites or parts axes of one is looked through."""
        if self.sizes[name] == sizes:
            return name
        node = self.by(name)
        if node.kind == "Reshape":
            return self.reshape(node.inputs[0], sizes)
        is_reduced = node.kind.startswith("Reduce") and not node.attributes["keepdims"]
        if is_reduced and sizes == _kept(self.sizes[node.inputs[0]], self.axes_of(node)):
            return self.op(node.kind, node.inputs, sizes, **{**node.attributes, "keepdims": 1})
        return self.op("Reshape", [name, self.numbers(*(-1 if size is None else size for size in sizes))], sizes)

    def axes_of(self, node: Node) -> tuple[int, ...]:
        """The axes that a Reduce… reduces; in opset 17 those of the sum alone are an input."""
        return tuple(self.constants[node.inputs[1]].tolist() if node.kind == "ReduceSum" else node.attributes["axes"])

    def transpose(self, name: str, order: Sequence[int]) -> str:
        """The stored array with its axes in another order."""
        if tuple(order) == in_order(len(order)):
            return name
        before = self.sizes[name]
        sizes = tuple(before[axis] for axis in order)
        long = [axis for axis in order if before[axis] != 1]
        if long == sorted(long):  # nothing moves
            return self.reshape(name, sizes)
        node = self.by(name)
        if node.kind == "Transpose":
            return self.transpose(node.inputs[0], [node.attributes["perm"][axis] for axis in order])
        return self.op("Transpose", [name], sizes, perm=list(order))

    def stored(self, operand: Operand, places: Sequence[int]) -> str:
        """The operand stored by these places; where it repeats it may be 1 long."""
        axes = np.argsort(places)  # axis j of the stored array is the traced axes[j]
        if isinstance(operand, Value):
            return self.transpose(operand.name, [operand.places[axis] for axis in axes])
        return self.constant(once(operand).transpose(axes)) if operand.ndim else self.constant(operand)

    def whole(self, operand: Operand, aval: Any, places: Sequence[int] | None = None) -> str:
        """The operand stored by these places, or in order, in full."""
        places = in_order(len(aval.shape)) if places is None else places
        sizes = stored_sizes(aval.shape, places)
        if isinstance(operand, Value):
            name = self.stored(operand, places)
        else:
            full = np.broadcast_to(operand, [1 if size_of(d) is None else d for d in aval.shape])
            name = self.constant(np.ascontiguousarray(full.transpose(np.argsort(places))))
        if self.sizes[name] == sizes:
            return name
        if None not in sizes or self.sizes[name][sizes.index(None)] is None:  # Expand leaves the batch where it is
            return self.op("Expand", [name, self.numbers(*(size or 1 for size in sizes))], sizes)
        parts = [BATCH if size is None else self.numbers(size) for size in sizes]
        shape = parts[0] if len(parts) == 1 else self.op("Concat", parts, (len(parts),), axis=0)
        return self.op("Expand", [name, shape], sizes)

    def elementwise(self, kind: str, operands: Sequence[Operand], aval: Any, **attributes: Any) -> Value:
        """What an operation makes of operands that repeat along each other, stored as the longest of them is."""
        leader = max((each for each in operands if isinstance(each, Value)), key=self._leads)  # of equals the first
        names = [self.stored(each, leader.places) for each in operands]
        sizes = broadcast(self.sizes[name] for name in names)
        return Value(self.op(kind, names, sizes, **attributes), leader.places, aval)

    def _leads(self, value: Value) -> tuple[int, bool]:
        """Long arrays are not turned; of two, maps stay channels first, and tokens in order."""
        usual = channels_first(value.rank) if value.rank > 3 else in_order(value.rank)
        return sum(size != 1 for size in self.sizes[value.name]), value.places == usual


def stored_sizes(shape: Sequence[Any], places: Sequence[int]) -> Sizes:
    """Sizes of a traced shape that is stored in full by these places."""
    return tuple(size_of(shape[axis]) for axis in np.argsort(places))


def broadcast(each: Iterable[Sizes]) -> Sizes:
    """Sizes of what an elementwise operation makes."""
    found: list[int | None] = []
    for sizes in each:
        padded = (*[1] * (len(found) - len(sizes)), *sizes)
        found = [*[1] * (len(padded) - len(found)), *found]
        found = [new if old == 1 else old for old, new in zip(found, padded, strict=True)]
    return tuple(found)


def once(array: np.ndarray) -> np.ndarray:
    """The array with 1 for each axis along which it repeats: a smaller file, and what folds into convolutions."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1 and (array == array.take([0], axis)).all():
            array = array.take([0], axis)
    return array


def _kept(sizes: Sizes, axes: Sequence[int]) -> Sizes:
    return tuple(1 if axis in axes else size for axis, size in enumerate(sizes))
