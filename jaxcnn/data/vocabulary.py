"""Text as numbers: a vocabulary of words, characters or bytes, made of the training text alone.

Numbers 0, 1 and 2 are padding, what is unknown, and the end of a text; the rest is by frequency. Plain data, which a
run's folder keeps.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxcnn.plain_data import check

LEVELS = ("character", "word", "byte")
SPECIAL = ("<padding>", "<unknown>", "<end>")
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]|\n")  # words, with the apostrophes inside; marks; ends of lines
_NO_SPACE_BEFORE, _NO_SPACE_AFTER = frozenset(".,;:!?)]}%\n'’"), frozenset("([{\n'’")


@dataclass(frozen=True)
class Vocabulary:
    """What each number from 3 on stands for: words in lower case, characters, or bytes (all 256, whatever the text)."""

    padding, unknown, end = 0, 1, 2

    level: str  # one of LEVELS
    entries: tuple[str, ...]  # of number 3, 4, …; none where these are bytes

    @staticmethod
    def of(
        texts: Iterable[str],
        level: str,
        size: int | None = None,
        minimum_count: int = 1,
        *,
        leave_out: str | None = None,
    ) -> "Vocabulary":
        """The most frequent entries of some texts, which should be those of train alone; of equals the first in order.

        Args:
          texts: they may be many; each is read once.
          level: one of LEVELS.
          size: at most so many numbers, the special ones included; None: no limit.
          minimum_count: what is seen less often is unknown.
          leave_out: an entry that is none, such as an end of a line that a text's end stands for.
        """
        assert level in LEVELS, level
        if level == "byte":
            return Vocabulary(level, ())
        counts = Counter[str]()
        for text in texts:
            counts.update(pieces(text, level))
        if leave_out is not None:
            counts.pop(leave_out, None)
        frequent = sorted((entry for entry, n in counts.items() if n >= minimum_count), key=lambda e: (-counts[e], e))
        return Vocabulary(level, tuple(frequent[: None if size is None else max(0, size - len(SPECIAL))]))

    def __len__(self) -> int:
        return len(SPECIAL) + (256 if self.level == "byte" else len(self.entries))

    def encode(self, text: str) -> np.ndarray:
        """Numbers of a text, int32 [n], without an end; what is not known is `unknown`."""
        if self.level == "byte":
            data = text.encode("utf-8", "surrogateescape")
            return np.frombuffer(data, np.uint8).astype(np.int32) + len(SPECIAL)
        if self.level == "character":
            points, (known, numbers) = _points(text), self._points
            place = np.minimum(np.searchsorted(known, points), len(known) - 1)
            if not len(known):
                return np.full(len(points), self.unknown, np.int32)
            return np.where(known[place] == points, numbers[place], self.unknown).astype(np.int32)
        return np.array([self._numbers.get(piece, self.unknown) for piece in pieces(text, self.level)], np.int32)

    def decode(self, numbers: Sequence[int] | np.ndarray) -> str:
        """Text of some numbers, up to the first end; padding is nothing, what is unknown �.

        Words are joined by spaces, marks by what is usual: the text's own spaces are not known any more. Bytes that are
        no UTF-8 are �.
        """
        kept = [int(number) for number in np.asarray(numbers).tolist()]
        kept = kept[: kept.index(self.end)] if self.end in kept else kept
        kept = [number for number in kept if number != self.padding]
        if self.level == "byte":
            parts = ("�".encode() if n < len(SPECIAL) else bytes([n - len(SPECIAL)]) for n in kept)
            return b"".join(parts).decode("utf-8", "replace")
        words = ["�" if n < len(SPECIAL) else self.entries[n - len(SPECIAL)] for n in kept]
        return _joined(words) if self.level == "word" else "".join(words)

    def name(self, number: int) -> str:
        """What a number stands for, for people: `the`, `<unknown>`, and of bytes `0x41`."""
        if number < len(SPECIAL):
            return SPECIAL[number]
        entry = number - len(SPECIAL)
        return f"0x{entry:02x}" if self.level == "byte" else self.entries[entry]

    def to_plain(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {"level": self.level, "entries": list(self.entries)}

    @staticmethod
    def from_plain(data: Any) -> "Vocabulary":
        """The inverse of `to_plain`. Raises ValueError where it is none."""
        check(data, {"level": str, "entries": [str]}, "vocabulary")
        level, entries = data["level"], data["entries"]
        if level not in LEVELS:
            raise ValueError(f"vocabulary.level is {level[:40]!r}, not one of {', '.join(LEVELS)}")
        if len(set(entries)) != len(entries):
            raise ValueError("vocabulary.entries has one twice")
        if level == "byte" and entries:
            raise ValueError("vocabulary.entries is not empty, and its level is byte")
        if level == "character" and any(len(entry) != 1 for entry in entries):
            raise ValueError("vocabulary.entries has one that is no single character")
        return Vocabulary(level, tuple(entries))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {entry: number for number, entry in enumerate(self.entries, start=len(SPECIAL))}

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """(code points in order, their numbers)."""
        points = _points("".join(self.entries))
        order = np.argsort(points)
        return points[order], order + len(SPECIAL)


def pieces(text: str, level: str) -> Sequence[str]:
    """What a text is made of: its characters; or its words, in lower case, marks and ends of lines."""
    return [piece.lower() for piece in _WORD.findall(text)] if level == "word" else text


def starts(text: str, level: str) -> np.ndarray:
    """The place in a text, in characters, at which each of its tokens begins, int64 [n]."""
    if level == "word":
        return np.array([match.start() for match in _WORD.finditer(text)], np.int64)
    if level == "character":
        return np.arange(len(text))
    points = _points(text)
    is_byte = (points >= 0xDC80) & (points <= 0xDCFF)  # that is no UTF-8
    sizes = 1 + (points >= 0x80).astype(int) + (points >= 0x800) + (points >= 0x10000)
    return np.repeat(np.arange(len(text)), np.where(is_byte, 1, sizes))


def _points(text: str) -> np.ndarray:
    """Code points, uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _joined(words: Sequence[str]) -> str:
    text = ""
    for word in words:
        glued = not text or word in _NO_SPACE_BEFORE or text[-1] in _NO_SPACE_AFTER
        text += word if glued else f" {word}"
    return text
