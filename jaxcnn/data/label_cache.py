"""Keeps on disk what labels a set of records has, where they are read out of the records themselves.

Trusted only while the files they came from stay the same; zip's own checksum tells damage. May always be absent.
"""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxcnn.data.resident import cache_dir, files_state

_FORMAT = 1  # raise when what is stored changes

_log = logging.getLogger(__name__)


def cached_labels(name: str, files: Sequence[Path], count: int, read: Callable[[], np.ndarray]) -> np.ndarray:
    """What `read` answers, [count, ...], or what it answered before about the same files."""
    key = hashlib.sha256(json.dumps([_FORMAT, name, files_state(files)]).encode()).hexdigest()[:16]
    readable = "".join(letter if letter.isalnum() else "-" for letter in files[0].name.split(".")[0])
    file = cache_dir() / "labels" / f"{readable}-{key}.npz"
    try:
        with np.load(file) as stored:
            labels = stored["labels"]
        if len(labels) == count:
            return labels
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        _log.warning("the labels kept in %s are damaged; reading them again", file)
    labels = read()
    _save(file, labels)
    return labels


def _save(file: Path, labels: np.ndarray) -> None:
    """Writes aside, then renames: a reader sees all or nothing."""
    aside = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=".writing-", dir=file.parent)
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, labels=labels)
        os.replace(aside, file)
        aside = None
    except OSError as error:
        _log.warning("labels are not kept: cannot write %s (%s)", file, error.strerror or error)
    finally:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
