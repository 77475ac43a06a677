"""Cache on disk for labels that are read out of the records themselves.

Trusted only while the files they came from stay the same; zip's own checksum tells damage. May always be absent.
"""

import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxcnn.files import open_regular, write_atomically
from jaxcnn.fingerprints import content_of, files_state, fingerprint_of
from jaxcnn.machine import private_cache

_FORMAT = 2  # raise when what is stored changes

_log = logging.getLogger(__name__)


def cached_labels(name: str, files: Sequence[Path], count: int, read: Callable[[], np.ndarray]) -> np.ndarray:
    """Result of `read`, [count, ...], or its earlier result for the same files."""
    folder = private_cache("labels")
    if folder is None:
        return read()
    key = fingerprint_of(_FORMAT, name, files_state(files), content_of(files))
    readable = "".join(letter if letter.isalnum() else "-" for letter in files[0].name.split(".")[0])
    file = folder / f"{readable[:100]}-{key}.npz"
    try:
        with open_regular(file) as opened, np.load(opened) as stored:
            labels = stored["labels"]
        if len(labels) == count:
            return labels
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        _log.warning("the labels kept in %s are damaged; reading them again", file)
    labels = read()
    content = io.BytesIO()
    np.savez(content, labels=labels)
    try:
        write_atomically(file, content.getvalue())
    except OSError as error:
        _log.warning("labels are not kept: cannot write %s (%s)", file, error.strerror or error)
    return labels
