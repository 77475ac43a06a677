"""Exclusion lists: text files of record identifiers, one a line, that a run leaves out.

`#` begins a comment where it is a line's first character. A line ends with a line feed, and with a carriage return
before it in lists from other editors; within one there are no control characters. Nothing here changes the data.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxcnn.data.records import Records, Split
from jaxcnn.errors import UserError
from jaxcnn.files import read_text, user_path, write_atomically
from jaxcnn.terminal import short_line

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Exclusion:
    """Content of an exclusion list."""

    file: str
    identifiers: tuple[str, ...]  # in the file's order, each once

    @property
    def digest(self) -> str:
        """Digest of the records that are named; not of order or comments."""
        return hashlib.sha256("\n".join(sorted(self.identifiers)).encode()).hexdigest()[:16]


def read_exclusion(file: str) -> Exclusion:
    """Exclusion list of a file. Raises UserError where it cannot be read."""
    try:
        lines = read_text(user_path(file)).split("\n")
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.exclude={file!r} cannot be read ({short_line(error)}); give a text file of record "
            "identifiers, one a line"
        ) from None
    named: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        identifier = line.strip()
        if not identifier or line.startswith("#"):
            continue
        if control := _CONTROL.search(identifier):
            raise UserError(
                f"data.exclude={file!r}: line {number} has the control character {control[0]!r}, which no record's "
                "name has in a list; write the list anew, a name a line"
            )
        named[identifier] = None
    return Exclusion(file, tuple(named))


def write_exclusion(file: Path, entries: Iterable[tuple[str, str]], *, comments: Sequence[str] = ()) -> None:
    """Writes a list, whole or not at all; a file of that name is replaced.

    Args:
      file: where.
      entries: (identifier, reason); a reason stands as a comment above the identifiers that follow one another with it.
      comments: lines for the top.

    Raises:
      UserError: an identifier cannot stand in a list.
      OSError: it cannot be written.
    """
    lines = [f"# {comment}" for comment in comments]
    reason_before = ""
    for identifier, reason in entries:
        unusable = not identifier or identifier != identifier.strip() or identifier.startswith(("#", "\ufeff"))
        if unusable or _CONTROL.search(identifier):
            raise UserError(f"the record {identifier!r} cannot stand in an exclusion list; rename its file")
        if reason != reason_before:
            lines.append(f"# {short_line(reason)}")
            reason_before = reason
        lines.append(identifier)
    write_atomically(file, "".join(f"{line}\n" for line in lines))


def without(stored: dict[str, Split], exclusion: Exclusion, set_name: str) -> tuple[dict[str, Split], int]:
    """The splits without the records named, and how many these were. UserError where there are no such records."""
    missing = set(exclusion.identifiers)
    excluded: dict[int, np.ndarray] = {}  # by id of the records, which several splits may share
    for split in stored.values():
        if id(split.records) not in excluded:
            numbers, named = _numbers(split.records, exclusion.identifiers)
            excluded[id(split.records)] = numbers
            missing -= named
    if missing:
        first = next(name for name in exclusion.identifiers if name in missing)
        split = next(iter(stored.values()))
        raise UserError(
            f"data.exclude={exclusion.file!r} names {len(missing):,} records that {set_name} does not have, the first "
            f"{first!r}; its records are named like {split.records.identifier(int(split.indices[0]))!r}"
        )
    kept = {
        name: Split(split.records, split.indices[~np.isin(split.indices, excluded[id(split.records)])])
        for name, split in stored.items()
    }
    return kept, sum(map(len, excluded.values()))


def _numbers(records: Records, identifiers: Sequence[str]) -> tuple[np.ndarray, set[str]]:
    """Numbers of the records that are named, int [M], and their names."""
    wanted, numbers, named = set(identifiers), [], set()
    for number in range(len(records)):
        identifier = records.identifier(number)
        if identifier in wanted:
            numbers.append(number)
            named.add(identifier)
    return np.array(numbers, np.int64), named
