"""Duplicates in a set of images: the same picture pixel for pixel, or nearly so, mirrored or not.

Knows nothing of files, labels or splits: digests, hashes and thumbnails in, pairs of positions out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MIN_CORRELATION = 0.85  # of two thumbnails below which no pair is called alike, however rare it is
MAX_HASH_DISTANCE = 10  # bits of 64

_NEIGHBOURS = 20  # nearest ones of an image that tell how crowded its surroundings are
_SKIPPED = 5  # of them, which copies of the image itself may be
_SAMPLE = 2000  # images among which neighbours are looked for
_MAX_DIMENSION = 20.0  # of the images' distances; few images would have it measured as anything
_BLOCK = 1 << 21  # pairs compared at a time


@dataclass(frozen=True)
class Pairs:
    """Pairs of positions, the lower one first, in order."""

    positions: np.ndarray  # int64 [P, 2]
    correlation: np.ndarray  # float32 [P], of the thumbnails
    mirrored: np.ndarray  # bool [P]: one resembles the mirror image of the other


def groups_of_equals(digests: np.ndarray) -> list[np.ndarray]:
    """Positions that share a digest, [N, words], where there is more than one; each group in order."""
    order = np.lexsort(digests.T)
    ends = np.flatnonzero((digests[order[1:]] != digests[order[:-1]]).any(axis=1)) + 1
    groups = [np.sort(group) for group in np.split(order, ends) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray, *, false_alarms: float) -> Pairs:
    """Pairs more alike than chance allows.

    Candidates are pairs whose perceptual hashes differ in at most 10 bits. How much alike two images are by chance
    depends on the set: handwritten ones are, photographs are not. So a pair counts when, of all pairs of the set, fewer
    than `false_alarms` are expected to be as close (Desolneux, Moisan & Morel 2000, "Meaningful alignments", section
    2): of n images about n q (r / s)^D lie within the distance r of one, where a share q lies within s, and D is the
    dimension of the set (Levina & Bickel 2004). s, q and D are measured on neighbours in a sample.

    Args:
      hashes: uint64 [N, 2], of each image and of its mirror image.
      thumbnails: uint8 [N, side, side], none of them constant.
      false_alarms: of those expected among all pairs; more finds more.
    """
    count = len(hashes)
    if count < 5:  # too few to say what is alike by chance
        return _best_of_each(np.zeros((0, 4)))
    vectors = _normalised(thumbnails)
    scale, share, dimension = _surroundings(vectors)
    # (r / s)^D n^2 q < false_alarms: n^2 / 2 pairs, each as it is and mirrored.
    reach = scale * (false_alarms / (count**2 * share)) ** (1 / dimension)
    coarse = _coarse(vectors)
    rows = [np.zeros((0, 4))]
    for mirrored in (False, True):
        others = _normalised(thumbnails[:, :, ::-1]) if mirrored else vectors
        coarse_others = _coarse(others)
        for left, right in _candidates(hashes[:, 0], hashes[:, int(mirrored)]):
            limit = np.minimum(reach[left], reach[right])
            possible = ((coarse[left] - coarse_others[right]) ** 2).sum(axis=1) < limit**2
            left, right, limit = left[possible], right[possible], limit[possible]
            correlation = np.einsum("ij,ij->i", vectors[left], others[right])
            distance = np.sqrt(np.maximum(2 - 2 * correlation, 0))
            near = (distance < limit) & (correlation >= MIN_CORRELATION)
            rows.append(np.stack([left[near], right[near], correlation[near], np.full(near.sum(), mirrored)], axis=1))
    return _best_of_each(np.concatenate(rows))


def _normalised(thumbnails: np.ndarray) -> np.ndarray:
    """Vectors of mean 0 and length 1, so that products are correlations. float32 [N, side * side]"""
    vectors = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def _coarse(vectors: np.ndarray) -> np.ndarray:
    """16 numbers whose distances are never larger than those of the vectors: the means of 16 areas, times 4."""
    side = int(vectors.shape[1] ** 0.5)
    return vectors.reshape(-1, 4, side // 4, 4, side // 4).mean(axis=(2, 4)).reshape(-1, 16) * np.float32(side / 4)


def _surroundings(vectors: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Each image's distance to a neighbour [N], the share of images within it, and the dimension of the set."""
    count = len(vectors)
    sample = np.random.default_rng(0).permutation(count)[:_SAMPLE]
    last = min(_NEIGHBOURS, (len(sample) - 1) // 2)
    first = min(_SKIPPED, (last + 1) // 2)
    scale = np.empty(count, np.float32)
    logarithms = np.empty(count, np.float32)
    for start in range(0, count, 1000):
        rows = np.arange(start, min(start + 1000, count))
        correlation = vectors[rows] @ vectors[sample].T
        correlation[rows[:, None] == sample] = -1  # the image itself
        nearest = -np.sort(np.partition(-correlation, last - 1, axis=1)[:, :last], axis=1)
        distances = np.sqrt(np.maximum(2 - 2 * nearest, 1e-6))
        scale[rows] = distances[:, (first + last) // 2 - 1]
        logarithms[rows] = np.log(distances[:, last - 1] / distances[:, first - 1])
    # The k-th neighbour's distance has D log(d_last / d_first) = sum of 1 / k between them, on average.
    expected = (1 / np.arange(first, last)).sum()
    dimension = min(_MAX_DIMENSION, float(expected / max(logarithms.mean(), 1e-6)))
    return scale, ((first + last) // 2) / len(sample), dimension


def _candidates(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (i, j), i < j, where left[i] and right[j], uint64 [N], differ in at most 10 bits; each pair once.

    Only hashes with one of their eight bytes in common are compared (Norouzi, Punjani & Fleet 2012, "Fast search in
    Hamming space with multi-index hashing"): no pair up to 7 bits is missed, and of those with 10 one in forty.
    """
    left_bytes, right_bytes = (hashes[:, None].view(np.uint8) for hashes in (left, right))
    for byte in range(8):
        order = np.argsort(right_bytes[:, byte], kind="stable")
        starts = np.searchsorted(right_bytes[order, byte], np.arange(257))
        for value in range(256):
            rows = np.flatnonzero(left_bytes[:, byte] == value)
            columns = order[starts[value] : starts[value + 1]]
            step = max(1, _BLOCK // max(1, len(columns)))
            for start in range(0, len(rows) if len(columns) else 0, step):
                piece = rows[start : start + step]
                difference = left[piece, None] ^ right[columns]
                i, j = np.nonzero(np.bitwise_count(difference) <= MAX_HASH_DISTANCE)
                unseen = (difference[i, j][:, None].view(np.uint8)[:, :byte] != 0).all(axis=1)  # in an earlier byte
                unseen &= piece[i] < columns[j]
                if unseen.any():
                    yield piece[i[unseen]], columns[j[unseen]]


def _best_of_each(rows: np.ndarray) -> Pairs:
    """Best row (i, j, correlation, mirrored) of each pair."""
    rows = rows[np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))]
    first = np.r_[True, (rows[1:, :2] != rows[:-1, :2]).any(axis=1)] if len(rows) else np.zeros(0, bool)
    rows = rows[first]
    return Pairs(rows[:, :2].astype(np.int64), rows[:, 2].astype(np.float32), rows[:, 3].astype(bool))
