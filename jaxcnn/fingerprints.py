"""Whether data are those of before: the fingerprint of a set, which travels with a run, and the state of files here.

A fingerprint is of names, sizes and content, and the same on every machine. Fingerprints of files have two halves,
LISTING-CONTENT: runs of before have the first alone, and it is all that they are held to.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from jaxcnn.errors import UserError
from jaxcnn.files import open_regular

_WHOLE = 1 << 16  # bytes of a file that is read whole
_PIECES, _PIECE = 3, 1 << 12  # of a larger one: so many, evenly spaced, of so many bytes


def fingerprint_of(*parts: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint_of_files(*listing: Any, contents: Iterable[str]) -> str:
    """Of a set that is files: plain data with their names and sizes, and the digest of each."""
    return f"{fingerprint_of(*listing)}-{fingerprint_of(*contents)}"


def content_digest(file: IO[bytes]) -> str:
    """Of all bytes of a small file; of a larger one's size and of pieces from its beginning to its end.

    Images of a million files are told apart without reading them: compressed ones differ nearly everywhere where their
    pixels do. Leaves the file at its beginning.
    """
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    starts = [0] if size <= _WHOLE else [number * (size - _PIECE) // (_PIECES - 1) for number in range(_PIECES)]
    for start in starts:
        file.seek(start)
        digest.update(file.read(_WHOLE if size <= _WHOLE else _PIECE))
    file.seek(0)
    return digest.hexdigest()


def same_data(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same data, by what both of them say."""
    (listing, _, content), (other_listing, _, other_content) = one.partition("-"), other.partition("-")
    return listing == other_listing and (not content or not other_content or content == other_content)


def check_same_data(saved: str, found: str, run: str = "the run") -> None:
    """Raises UserError unless the data with the fingerprint `found` are those that a run has `saved`."""
    if same_data(saved, found):
        return
    if saved.partition("-")[0] == found.partition("-")[0]:
        raise UserError(
            f"the data have changed since {run} was trained: files of the same names and sizes have other content; "
            "bring those of then back, train in another --workdir, or measure on these as on others (evaluate --data)"
        )
    raise UserError(
        f"the data are not those that {run} was trained on; pass another --workdir, or say where the run's data "
        "lie (training: --config.data.dir, evaluating: --data_dir)"
    )


def files_state(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of each file: the same for a copy that keeps times, as rsync's."""
    states = [(path.name, path.stat()) for path in files]
    return [(name, each.st_size, each.st_mtime_ns) for name, each in states]


def changes_here(files: Sequence[Path]) -> str:
    """A short hash of when each file last changed on this disk (ctime), which nobody can set, as the other time can be.

    The numbers of files would say more, but some systems give new ones with every mount.
    """
    return fingerprint_of([path.stat().st_ctime_ns for path in files])


def content_of(files: Sequence[Path]) -> list[str]:
    """The digest of each file."""
    digests = []
    for path in files:
        with open_regular(path) as file:
            digests.append(content_digest(file))
    return digests
