"""Initialisers by name, for any model: its kernels drawn anew from another distribution than the paper's."""

import zlib
from typing import Any

import jax
from flax import linen as nn

INITIALIZERS: dict[str, nn.initializers.Initializer] = {
    "normal": nn.initializers.normal(0.01),  # Krizhevsky et al. 2012, section 5
    "uniform": nn.initializers.uniform(0.1),  # 0 to 0.1
    "truncated_normal": nn.initializers.truncated_normal(0.02),
    "xavier_normal": nn.initializers.xavier_normal(),  # Glorot and Bengio 2010
    "xavier_uniform": nn.initializers.xavier_uniform(),
    "he_normal": nn.initializers.he_normal(),  # He et al. 2015
    "he_uniform": nn.initializers.he_uniform(),
    "lecun_normal": nn.initializers.lecun_normal(),  # LeCun et al. 1998
    "orthogonal": nn.initializers.orthogonal(),  # Saxe et al. 2014
}


def draw_kernels(params: Any, key: jax.Array, *, initializer: str) -> Any:
    """`params` with every `kernel` drawn from the initialiser of that name, each by a key of its own path."""

    def draw(path: Any, leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            return leaf
        own_key = jax.random.fold_in(key, zlib.crc32("/".join(names).encode()))
        return INITIALIZERS[initializer](own_key, leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)
