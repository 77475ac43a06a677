"""The order of the data as a pure function of (seed, step), so there is nothing to checkpoint.

Training reads the endless concatenation of one fresh permutation an epoch, the same whether the host makes it or a
compiled program does. Never touches the data itself; imports no JAX.
"""

from functools import lru_cache
from typing import Any

import numpy as np

# First words of every random stream of the data, so that holding one still does not hold another; jax's are elsewhere.
SHUFFLE_STREAM = 1
AUGMENT_STREAM = 2
HOLDOUT_STREAM = 3


def permutation(seed: Any, epoch: Any, num_examples: int, *, xp: Any = np) -> Any:
    """An epoch's order, [num_examples]: its examples sorted by the hash of (stream, seed, epoch, example).

    With `xp=jax.numpy`, seed and epoch may be traced. No two examples have one hash (each step of it can be undone), so
    any sort gives the same order.
    """
    return xp.argsort(_murmur3(SHUFFLE_STREAM, seed, epoch, np.arange(num_examples, dtype=np.uint32), xp=xp))


def _murmur3(*words: Any, xp: Any) -> Any:
    """MurmurHash3_x86_32 (Appleby 2011, public domain), with seed 0, of 32-bit words, which broadcast: uint32 [n]."""
    state = xp.zeros(1, np.uint32)
    for word in words:
        block = xp.asarray(word).astype(np.uint32).reshape(-1)  # arrays wrap around; numpy's scalars warn
        block = _rotate(block * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
        state = _rotate(state ^ block, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    state = state ^ np.uint32(4 * len(words))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ (state >> np.uint32(shift))) * np.uint32(factor)
    return state ^ (state >> np.uint32(16))


def _rotate(x: Any, bits: int) -> Any:
    return (x << np.uint32(bits)) | (x >> np.uint32(32 - bits))


@lru_cache(maxsize=4)  # a batch rarely spans more epochs than two, and ImageNet's permutation takes 10 MB
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order: np.ndarray = permutation(seed, epoch, num_examples)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, *, num_examples: int, batch_size: int) -> np.ndarray:
    """Examples of batch `step`: int64 [batch_size], read-only when it lies within one epoch.

    Batches follow one another without a gap, so one may hold the end of an epoch and the beginning of the next.
    """
    position = int(step) * batch_size
    stop = position + batch_size
    pieces = []
    while position < stop:
        epoch, start = divmod(position, num_examples)
        pieces.append(_permutation(seed, epoch, num_examples)[start : start + stop - position])
        position += len(pieces[-1])
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
