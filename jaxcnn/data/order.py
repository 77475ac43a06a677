"""The order of the data as a pure function of (seed, step), so there is nothing to checkpoint.

Training reads the endless concatenation of one fresh permutation an epoch, the same whether the host makes it or a
compiled program does; with balanced sampling, classes in turn, each through permutations of its own; or, where a model
carries something from batch to batch, streams in their own order. Never touches the data itself; imports no JAX.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

# First words of every random stream of the data, so that holding one still does not hold another; jax's are elsewhere.
SHUFFLE_STREAM = 1
AUGMENT_STREAM = 2
HOLDOUT_STREAM = 3
BALANCE_STREAM = 4
LIMIT_STREAM = 5

MADE_AHEAD = 100_000  # examples: of so many an epoch's order is made ahead, as 1.28 million take half a second


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


def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """An epoch's order, read-only; that of a large set is made while the epoch before runs."""
    if num_examples < MADE_AHEAD:
        return _made(seed, epoch, num_examples)
    order: np.ndarray = _being_made(os.getpid(), seed, epoch, num_examples).result()
    _being_made(os.getpid(), seed, epoch + 1, num_examples)
    return order


@lru_cache(maxsize=4)  # a batch rarely spans more epochs than two, and ImageNet's permutation takes 10 MB
def _made(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order: np.ndarray = permutation(seed, epoch, num_examples)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=4)
def _being_made(process: int, seed: int, epoch: int, num_examples: int) -> Future:
    return _thread(process).submit(_made, seed, epoch, num_examples)


@lru_cache(maxsize=1)  # a process that was forked has none of its parent's threads
def _thread(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="order")


@dataclass(frozen=True, eq=False)  # compared by identity, so that an epoch's order can be remembered for it
class DrawnGroups:
    """The examples of each class that has some: what balanced sampling draws from."""

    members: tuple[np.ndarray, ...]  # int [examples of the class], each

    @staticmethod
    def of(classes: np.ndarray) -> "DrawnGroups":
        """Groups from each example's class, int [N]; negative ones, of unreadable records, are never drawn."""
        order = np.argsort(classes, kind="stable")
        _, starts = np.unique(classes[order], return_index=True)
        return DrawnGroups(tuple(each for each in np.split(order, starts[1:]) if classes[each[0]] >= 0))


def batch_examples(
    seed: int, step: int, *, num_examples: int, batch_size: int, groups: DrawnGroups | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Examples of batch `step`, and how often each was seen before; int64 [batch_size] each.

    With `groups` every group is drawn equally often: once in each round over the groups, in an order of the round's
    own, while each group goes through permutations of its own. An epoch is still as many draws as there are examples.
    """
    position = int(step) * batch_size
    if groups is None:
        index = batch_indices(seed, step, num_examples=num_examples, batch_size=batch_size)
        return index, np.arange(position, position + batch_size) // num_examples
    draws = lambda epoch: _balanced(seed, epoch, num_examples, groups)
    index, seen = _joined(draws, position, batch_size, num_examples)
    return index, seen


def stream_examples(step: int, *, num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples of batch `step`, and how often each was seen before, where batches continue one another.

    The examples in their own order are cut into as many streams as a batch has rows, of equal length, which
    `num_examples` must divide into: row b reads the b-th from beginning to end, and again.
    """
    length = num_examples // batch_size
    epoch, place = divmod(int(step), length)
    return np.arange(batch_size) * length + place, np.full(batch_size, epoch)


def batch_indices(seed: int, step: int, *, num_examples: int, batch_size: int) -> np.ndarray:
    """Examples of batch `step`: int64 [batch_size], read-only when it lies within one epoch.

    Batches follow one another without a gap, so one may hold the end of an epoch and the beginning of the next.
    """
    order = lambda epoch: (_permutation(seed, epoch, num_examples),)
    return _joined(order, int(step) * batch_size, batch_size, num_examples)[0]


def _joined(
    order: Callable[[int], tuple[np.ndarray, ...]], position: int, length: int, num_examples: int
) -> tuple[np.ndarray, ...]:
    """`length` entries from `position` on of the concatenated epochs' arrays."""
    stop = position + length
    pieces = []
    while position < stop:
        epoch, start = divmod(position, num_examples)
        pieces.append([array[start : start + stop - position] for array in order(epoch)])
        position += len(pieces[-1][0])
    return tuple(pieces[0]) if len(pieces) == 1 else tuple(map(np.concatenate, zip(*pieces, strict=True)))


@lru_cache(maxsize=4)
def _balanced(seed: int, epoch: int, num_examples: int, groups: DrawnGroups) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's draws: examples, and how often each was seen before; int64 [num_examples] each."""
    count = len(groups.members)
    first, last = epoch * num_examples // count, -(-(epoch + 1) * num_examples // count)  # of the rounds it touches
    drawn, seen = np.empty((2, last - first, count), np.int64)
    for number, members in enumerate(groups.members):
        passes = np.arange(first // len(members), -(-last // len(members)))
        orders = _permutations(seed, 1 + number, passes, len(members))
        cut = slice(first - passes[0] * len(members), last - passes[0] * len(members))
        drawn[:, number] = members[orders].ravel()[cut]
        seen[:, number] = np.repeat(passes, len(members))[cut]
    turn = _permutations(seed, 0, np.arange(first, last), count)
    cut = slice(epoch * num_examples - first * count, (epoch + 1) * num_examples - first * count)
    drawn, seen = (np.take_along_axis(array, turn, axis=1).ravel()[cut] for array in (drawn, seen))
    drawn.flags.writeable = seen.flags.writeable = False
    return drawn, seen


def _permutations(seed: int, what: int, which: np.ndarray, length: int) -> np.ndarray:
    """Orders of `length` things, one for each of `which`: [len(which), length]."""
    things = np.tile(np.arange(length, dtype=np.uint32), len(which))
    hashes = _murmur3(BALANCE_STREAM, what, seed, np.repeat(which, length), things, xp=np)
    return np.argsort(hashes.reshape(len(which), length), axis=1)
