"""Word vectors of others: word2vec's files, text and binary (Mikolov et al. 2013), GloVe's (Pennington et al. 2014).

Every row must have as many numbers as the first, and a file that says how many words it has must have them. Only what
the vocabulary has is kept.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.vocabulary import SPECIAL, Vocabulary
from jaxcnn.errors import UserError
from jaxcnn.files import open_regular, user_path
from jaxcnn.terminal import short_line

MOST_NUMBERS = 1 << 14  # of a vector
LONGEST_WORD, LONGEST_LINE = 1 << 12, 1 << 20  # bytes
LARGEST_FILE = 64 << 30  # bytes; it is read once, from its start to its end
PACKED = (".gz", ".zip", ".bz2", ".xz", ".7z")


@dataclass(frozen=True)
class Vectors:
    """The vectors of a vocabulary's entries that a file has."""

    table: np.ndarray  # float32 [vocabulary, size]; 0 where there is none
    found: np.ndarray  # bool [vocabulary]
    num_words: int  # that the file has

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return self.table.shape[1]

    @property
    def share(self) -> float:
        """Of the vocabulary's own entries, those that have a vector."""
        return float(self.found[len(SPECIAL) :].mean()) if len(self.found) > len(SPECIAL) else 0.0

    def init(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """The vectors; others are drawn uniformly, with the variance of those: Kim 2014, section 3.3."""
        assert shape == self.table.shape, f"{shape} for {self.table.shape}"
        bound = math.sqrt(3.0) * float(self.table[self.found].std()) if self.found.any() else 0.25
        drawn = jax.random.uniform(key, shape, dtype, -bound, bound)
        return jnp.where(self.found[:, None], jnp.asarray(self.table, dtype), drawn)


def read_vectors(name: str, vocabulary: Vocabulary) -> Vectors:
    """The vectors that a file has of a vocabulary: of each word as it is, else of how the file writes it in capitals.

    Raises UserError where there is no such file, or it is none of word vectors.
    """
    try:
        path = user_path(name)
        if path.suffix.lower() in PACKED:
            raise UserError(f"text.embeddings={name!r} is packed; unpack it first")
        with open_regular(path, limit=LARGEST_FILE) as file:
            return _kept(_rows(path, file), vocabulary)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or short_line(error)
        raise UserError(f"text.embeddings={name!r} cannot be read: {reason}") from None


def _kept(rows: "Rows", vocabulary: Vocabulary) -> Vectors:
    numbers = {entry: number for number, entry in enumerate(vocabulary.entries, start=len(SPECIAL))}
    table, found, as_it_is = None, np.zeros(len(vocabulary), bool), np.zeros(len(vocabulary), bool)
    count = 0
    for count, (word, read) in enumerate(rows, start=1):  # noqa: B007 - how many there were
        number = numbers.get(word, numbers.get(word.lower()))
        if number is None or as_it_is[number] or (found[number] and word not in numbers):
            continue  # of the same word the first counts, one in the vocabulary's own letters before others
        vector = read()
        if not np.isfinite(vector).all():
            raise ValueError(f"the vector of {word[:40]!r} is not finite")
        table = np.zeros((len(vocabulary), len(vector)), np.float32) if table is None else table
        table[number], found[number], as_it_is[number] = vector, True, word in numbers
    if table is None:
        raise ValueError(f"of its {count:,} words train has none; it must be of the same language, and text.level=word")
    return Vectors(table, found, count)


# ---- the formats: each word of a file, and what reads its vector

Rows = Iterator[tuple[str, Callable[[], np.ndarray]]]


def _rows(path: Path, file: IO[bytes]) -> Rows:
    """By the file's first line: `COUNT SIZE` is word2vec's, and what follows is text or, in .bin files, binary."""
    first = file.readline(LONGEST_LINE)
    if not first:
        raise ValueError("it is empty")
    heading = re.fullmatch(rb"\s*([0-9]{1,12})\s+([0-9]{1,6})\s*", first)
    if heading is None:
        if path.suffix.lower() == ".bin":
            raise ValueError("a .bin file of word2vec begins with its number of words and the size of a vector")
        yield from _of_text(itertools.chain([first], _lines(file)), None, 1)
        return
    count, size = int(heading[1]), int(heading[2])
    if not 0 < size <= MOST_NUMBERS:
        raise ValueError(f"vectors of {size:,} numbers, of 1 to {MOST_NUMBERS:,}")
    rows = _of_binary(file, count, size) if path.suffix.lower() == ".bin" else _of_text(_lines(file), size, 2)
    seen = 0
    for row in rows:
        seen += 1
        if seen > count:
            break
        yield row
    if seen != count:
        more = "more" if seen > count else f"{seen:,}"
        raise ValueError(f"its first line says {count:,} words, and it has {more}; it is cut short or damaged")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE):
        yield line


def _of_text(lines: Iterator[bytes], size: int | None, start: int) -> Rows:
    """`WORD NUMBER NUMBER …` in each line; the first tells the size where nothing else does. A word may have spaces."""
    for number, line in enumerate(lines, start=start):
        line = line.rstrip(b"\r\n ")
        if size is None:
            size = line.count(b" ")
            if not 0 < size <= MOST_NUMBERS:
                raise ValueError(f"line {number:,} is no word with its numbers")
        parts = line.rsplit(b" ", size)
        if len(parts) != size + 1 or not parts[0]:
            raise ValueError(f"line {number:,} has fewer than the {size} numbers of the others")
        if b" " in parts[0] and _is_number(parts[0].rpartition(b" ")[2]):  # GloVe's 840B has words with spaces
            raise ValueError(f"line {number:,} has more than the {size} numbers of the others")
        yield parts[0].decode("utf-8", "replace"), partial(_numbers, number, parts[1:])


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return b"." in text  # a word may end in a year


def _numbers(line: int, parts: list[bytes]) -> np.ndarray:
    try:
        return np.array([float(part) for part in parts], np.float32)
    except ValueError as error:
        raise ValueError(f"line {line:,}: {short_line(error)}") from None


def _of_binary(file: IO[bytes], count: int, size: int) -> Rows:
    """`WORD`, a space, and float32, one after another; a word may begin with an end of line."""
    for number in range(1, count + 1):
        word = bytearray()
        while (letter := file.read(1)) not in (b" ", b""):
            word += letter
            if len(word) > LONGEST_WORD:
                raise ValueError(f"word {number:,} does not end; its vectors are not of {size} numbers")
        vector = file.read(4 * size)
        if len(vector) != 4 * size:
            raise ValueError(f"it ends in word {number:,} of {count:,}; it is cut short, or its vectors are smaller")
        yield word.lstrip(b"\n").decode("utf-8", "replace"), partial(np.frombuffer, vector, "<f4")
    if file.read(1).strip():
        raise ValueError(f"there is more behind its {count:,} words of {size} numbers; its vectors are larger")
