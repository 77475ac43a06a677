"""A network as StableHLO, for CPUs, CUDA and TPUs at once: a file that numpy reads and JAX alone runs.

It is numpy's .npz: `program`, of jax.export; `facts`, JSON; then the arrays that the program takes first, in order.
JAX reads programs of up to six months before; weights outlast that, so they stand beside it.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from jaxcnn.files import from_json, to_json
from jaxcnn.run.checkpoint import flatten

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    function: Callable[[Any, jax.Array], jax.Array], variables: Any, example: Any, facts: dict[str, Any]
) -> bytes:
    """The content of a file whose program is ([arrays], inputs [batch, …]) -> outputs [batch, …], for any batch.

    Args:
      function: (variables, inputs) to outputs, traced as it is: see layers/plain.py.
      variables: a tree of arrays.
      example: shape and dtype of one example's inputs, without the batch's axis.
      facts: plain data.
    """
    structure = jax.tree.structure(variables)
    (batch,) = jax_export.symbolic_shape("batch")
    inputs = jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)
    arrays = {name: np.asarray(array) for name, array in flatten(variables).items()}
    return pack(lambda leaves, given: function(jax.tree.unflatten(structure, leaves), given), arrays, [inputs], facts)


def pack(
    function: Callable[..., Any], arrays: dict[str, np.ndarray], inputs: Sequence[Any], facts: dict[str, Any]
) -> bytes:
    """The content of a file whose program is function([arrays], *inputs).

    Args:
      function: of lists of arrays and of arrays alone, so that who reads it needs no class of ours or optax's.
      arrays: what the file holds, in the order of the list.
      inputs: shapes and dtypes, which may have a symbolic batch.
      facts: plain data.
    """
    like = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays.values()]
    program = jax_export.export(jax.jit(function), platforms=PLATFORMS)(like, *inputs)
    content = io.BytesIO()
    serialised = np.frombuffer(program.serialize(), np.uint8)
    np.savez(content, program=serialised, facts=np.array(to_json(facts)), **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def unpack(content: bytes) -> tuple[jax_export.Exported, dict[str, Any], dict[str, np.ndarray]]:
    """(the program, the facts, the arrays in the program's order) of a file's content."""
    with np.load(io.BytesIO(content)) as file:
        program = jax_export.deserialize(bytearray(file["program"].tobytes()))
        names = [name for name in file.files if name not in ("program", "facts")]
        return program, from_json(str(file["facts"])), {name: file[name] for name in names}


def run_stablehlo(content: bytes, inputs: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """What JAX makes of the file alone."""
    program, _, arrays = unpack(content)
    leaves = list(arrays.values())
    batches = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
    return np.concatenate([np.asarray(program.call(leaves, batch)) for batch in batches])
