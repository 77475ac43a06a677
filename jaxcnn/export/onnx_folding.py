"""Fewer nodes that compute the same: sums and products by constants go into the convolution or product before them.

So batch norm costs nothing. What is folded is computed in float64. Whatever reads a result keeps it.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from jaxcnn.export.onnx_graph import Graph, Node, broadcast


def fold(graph: Graph, output: str) -> None:
    """Folds all that can be, and leaves out what does not lead to the output."""
    _drop(graph, output)
    folding = _Folding(graph, output)
    for node in list(graph.nodes):
        folding.take_in(node)
    _drop(graph, output)
    folding = _Folding(graph, output)
    for node in list(graph.nodes):
        folding.unite(node)
    _drop(graph, output)


def _drop(graph: Graph, output: str) -> None:
    needed, kept = {output}, []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    graph.nodes = kept[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in needed}


@dataclass
class _Folding:
    graph: Graph
    output: str

    def __post_init__(self) -> None:
        self.uses = Counter(name for node in self.graph.nodes for name in node.inputs)
        self.uses[self.output] += 1
        self.by = {name: node for node in self.graph.nodes for name in node.outputs}

    def before(self, node: Node) -> Node | None:
        """The node whose only reader this one is, through its first input."""
        found = self.by.get(node.inputs[0]) if node.inputs else None
        return found if found is not None and self.uses[node.inputs[0]] == 1 else None

    def constant_of(self, node: Node) -> np.ndarray | None:
        """What a sum or a product by a constant adds or multiplies by, float64."""
        known = self.graph.known(node.inputs[1]) if node.kind in ("Add", "Mul") else None
        return None if known is None or known.dtype.kind != "f" else known.astype(np.float64)

    # ---- chains of sums and products

    def take_in(self, node: Node) -> None:
        """Unites a sum or product by a constant with what comes before it."""
        constant = self.constant_of(node)
        if constant is None:
            return
        if self._changes_nothing(node, constant):
            self._remove(node)
            return
        before = self.before(node)
        earlier = None if before is None else self.constant_of(before)
        if before is None:
            return
        if earlier is not None and before.kind == node.kind:
            both = earlier + constant if node.kind == "Add" else earlier * constant
            node.inputs = [before.inputs[0], self.graph.constant(both)]
            self.take_in(node)
        elif earlier is not None and node.kind == "Mul":  # (x + earlier) * constant = x * constant + earlier * constant
            before.kind, before.inputs[1] = "Mul", node.inputs[1]
            node.kind, node.inputs[1] = "Add", self.graph.constant(earlier * constant)
            x, factor = before.inputs
            self.graph.sizes[before.outputs[0]] = broadcast([self.graph.sizes[x], self.graph.sizes[factor]])
            self.take_in(before)
            self.take_in(node)
        elif (before.kind == "Conv" and self._into_convolution(before, node.kind, constant)) or (
            before.kind == "MatMul" and node.kind == "Mul" and self._into_product(before, constant)
        ):
            self._remove(node)

    def _changes_nothing(self, node: Node, constant: np.ndarray) -> bool:
        nothing = constant == 0 if node.kind == "Add" else np.abs(constant - 1) < 1e-12
        return bool(nothing.all()) and self.graph.sizes[node.inputs[0]] == self.graph.sizes[node.outputs[0]]

    def _into_convolution(self, convolution: Node, kind: str, constant: np.ndarray) -> bool:
        kernel = self.graph.constants[convolution.inputs[1]].astype(np.float64)
        by_channel = _by_axis(constant, 1, kernel.shape[0], kernel.ndim)
        if by_channel is None:
            return False
        bias = np.zeros(len(kernel))
        if len(convolution.inputs) > 2:
            bias = self.graph.constants[convolution.inputs[2]].astype(np.float64)
        if kind == "Add":
            bias = bias + by_channel
        else:
            kernel, bias = kernel * by_channel.reshape(-1, *[1] * (kernel.ndim - 1)), bias * by_channel
        convolution.inputs[1:] = [self.graph.constant(kernel), self.graph.constant(bias)]
        return True

    def _into_product(self, product: Node, constant: np.ndarray) -> bool:
        matrix = self.graph.known(product.inputs[1])
        if matrix is None or matrix.ndim != 2:
            return False
        by_column = _by_axis(constant, -1, matrix.shape[1], constant.ndim)
        if by_column is None:
            return False
        product.inputs[1] = self.graph.constant(matrix.astype(np.float64) * by_column)
        return True

    def _remove(self, node: Node) -> None:
        """Has who reads this node read what it reads."""
        old, new = node.outputs[0], node.inputs[0]
        uses = self.uses[old] + self.uses[new] - 1
        self.graph.nodes = [each for each in self.graph.nodes if each is not node]
        if old == self.output:  # which keeps its name
            before = self.by[new]
            before.outputs = [old if name == new else name for name in before.outputs]
            old, new = new, old
            self.by[new] = before
        self.uses[new] = uses
        for each in self.graph.nodes:
            each.inputs = [new if name == old else name for name in each.inputs]

    # ---- what is left of them

    def unite(self, node: Node) -> None:
        """Makes one node of a product and a sum: of matrices, or by numbers a channel."""
        shift, before = self.constant_of(node), self.before(node)
        if node.kind != "Add" or shift is None or before is None:
            return
        sizes = self.graph.sizes[before.inputs[0]]
        if before.kind == "MatMul":
            matrix = self.graph.known(before.inputs[1])
            if matrix is None or len(sizes) != 2:
                return
            by_column = _by_axis(shift, -1, matrix.shape[1], shift.ndim)
            if by_column is not None:
                node.kind, node.inputs = "Gemm", [*before.inputs, self.graph.constant(by_column)]
        elif before.kind == "Mul" and (factor := self.constant_of(before)) is not None:
            channels = sizes[1] if len(sizes) > 3 and max(factor.size, shift.size) > 1 else None
            if channels is None:
                return
            both = [_by_axis(each, 1, channels, len(sizes)) for each in (factor, shift)]
            if both[0] is not None and both[1] is not None and self.graph.sizes[before.outputs[0]] == sizes:
                numbers = [*both, np.zeros(channels), np.ones(channels)]
                node.kind, node.attributes = "BatchNormalization", {"epsilon": 0.0}
                node.inputs = [before.inputs[0], *(self.graph.constant(each) for each in numbers)]


def _by_axis(constant: np.ndarray, axis: int, length: int, rank: int) -> np.ndarray | None:
    """The constant's numbers along an axis, if it is one number or differs along that axis alone."""
    if constant.size == 1:
        return np.full(length, constant.item())
    if constant.ndim != rank or constant.shape[axis] != constant.size or constant.size != length:
        return None
    return constant.reshape(-1)
