"""The order of the data as a pure function of (seed, step), so there is nothing to checkpoint.

Training reads the endless concatenation of one fresh permutation an epoch. Never touches the data itself.
"""

from functools import lru_cache

import numpy as np

# First words of every random stream of the data, so that holding one still does not hold another; jax's are elsewhere.
SHUFFLE_STREAM = 1
AUGMENT_STREAM = 2
HOLDOUT_STREAM = 3


@lru_cache(maxsize=4)  # a batch rarely spans more epochs than two, and ImageNet's permutation takes 10 MB
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    permutation = np.random.default_rng([SHUFFLE_STREAM, seed, epoch]).permutation(num_examples)
    permutation.flags.writeable = False
    return permutation


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
