"""A model as a graph: which module's output goes where. Read off an abstract call: nothing is computed.

A module without modules in it is one node; what stands between modules (an activation, a sum) is a node by the name of
its operation, in the scope of the module where it stands.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

IMAGES = "images"  # the node where it begins
# Operations that only give their input another form; the graph leads through them.
_FORMS = ("reshape", "transpose", "squeeze", "convert_element_type", "broadcast_in_dim", "copy", "expand_dims")


@dataclass
class Node:
    """A module, or an operation between modules."""

    name: str  # stage1_block1/conv1: its place in the model
    operation: str  # the module's class, or the operation's name
    inputs: list[str] = field(default_factory=list)  # names of nodes
    shape: tuple[int, ...] = ()  # of what it gives, the batch first, of one image
    num_params: int = 0


def module_graph(model: nn.Module, variables: Any, image_shape: tuple[int, ...]) -> list[Node]:
    """The nodes in the order in which images meet them.

    Args:
      model: called as in evaluation.
      variables: `params` and `batch_stats`; shapes are enough.
    """
    if getattr(model, "remat", False):  # a block that is computed again would be one node
        model = model.clone(remat=False)
    modules: dict[str, Node] = {}

    def record(next_method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        result = next_method(*arguments, **keywords)
        if context.method_name == "__call__" and context.module.path:
            name = "/".join(context.module.path)
            num_params = sum(leaf.size for leaf in jax.tree.leaves(context.module.variables.get("params", {})))
            shape = jnp.shape(jax.tree.leaves(result)[0])  # of several arrays the first's
            modules[name] = Node(name, type(context.module).__name__, [], shape, num_params)
        return result

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(record):
        traced = jax.make_jaxpr(partial(model.apply, train=False))(variables, images).jaxpr
    inner = {name.rpartition("/")[0] for name in modules}  # modules that have modules in them
    leaves = {name: node for name, node in modules.items() if name not in inner}

    nodes = {IMAGES: Node(IMAGES, "Images", [], images.shape)}
    made_by = {traced.invars[-1]: IMAGES}  # variable -> node; parameters and constants are made by none
    for equation in traced.eqns:
        sources = [made_by[v] for v in equation.invars if not hasattr(v, "val") and v in made_by]
        scope = str(equation.source_info.name_stack).partition("/")[2]  # without the model's own name
        leaf = next((name for name in leaves if scope == name or scope.startswith(name + "/")), None)
        if leaf is None and not sources:
            continue
        if leaf is None and equation.primitive.name in _FORMS:
            made_by.update(dict.fromkeys(equation.outvars, sources[0]))
            continue
        node = nodes.setdefault(leaf, leaves[leaf]) if leaf else _operation(equation, scope, nodes)
        node.inputs += [name for name in sources if name != node.name and name not in node.inputs]
        if sources:
            made_by.update(dict.fromkeys(equation.outvars, node.name))
    return list(nodes.values())


def _operation(equation: Any, scope: str, nodes: dict[str, Node]) -> Node:
    """New node for an operation between modules, under a name that no other has."""
    operation = str(equation.params.get("name", equation.primitive.name))
    if "call_jaxpr" in equation.params:  # a function with a derivative of its own
        operation = equation.params["call_jaxpr"].jaxpr.debug_info.func_name.strip("_<>") or operation
    path = f"{scope}/{operation}" if scope else operation
    name, number = path, 0
    while name in nodes:
        number += 1
        name = f"{path}_{number}"
    nodes[name] = Node(name, operation, [], tuple(equation.outvars[0].aval.shape))
    return nodes[name]
