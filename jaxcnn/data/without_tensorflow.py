"""Stand-in for TensorFlow while TFDS prepares images: files, PNG and JPEG, by Python and OpenCV.

TFDS's modules and builders share one lazily imported `tensorflow`. It is made to stand for the few functions below
while a set is prepared, so that the builders are TFDS's own, and the records and their order those that it writes with
TensorFlow; images that are not lossy are the same to the pixel. Asking for anything else raises NeedsTensorFlowError.
"""

import ast
import contextlib
import glob
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from jaxcnn.files import open_regular


class NeedsTensorFlowError(AttributeError):
    """A builder asked for more of TensorFlow than is here; an AttributeError, as of a module that lacks a name."""


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Inside, `tf` is this module to TFDS and its builders. For one thread: TFDS's modules are changed."""
    from tensorflow_datasets.core.utils import lazy_imports_utils, tf_utils

    lazy = vars(lazy_imports_utils.tensorflow)
    before, run_in_graph = lazy.get("_module"), tf_utils.TFGraphRunner.run
    lazy["_module"] = _Names("tf", _TENSORFLOW)  # where etils keeps the module once it is imported
    tf_utils.TFGraphRunner.run = lambda self, function, value: function(value)
    try:
        yield
    finally:
        tf_utils.TFGraphRunner.run = run_in_graph
        del lazy["_module"]
        if before is not None:
            lazy["_module"] = before


def names_missing(source: str) -> list[str]:
    """Names of TensorFlow in a module's source that are not here, so that it is refused before it downloads."""
    missing = set()
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        known: Any = _TENSORFLOW
        for part in name.split(".")[1:] if re.fullmatch(r"tf(\.\w+)+", name) else ():
            if isinstance(known, Mapping) and part not in known:
                missing.add(name)
                break
            known = known[part] if isinstance(known, Mapping) else known
    return sorted(name for name in missing if not any(name.startswith(f"{other}.") for other in missing))


class _Names:
    """A module of the names given."""

    def __init__(self, name: str, members: Mapping[str, Any]):
        self._name = name
        for member, value in members.items():
            setattr(self, member, _Names(f"{name}.{member}", value) if isinstance(value, Mapping) else value)

    def __getattr__(self, name: str) -> Any:
        raise NeedsTensorFlowError(f"{self._name}.{name}")


class _EncodedImage(bytes):
    """Bytes with the method by which a tensor gives its value."""

    def numpy(self) -> bytes:
        return bytes(self)


def _encode(extension: str, image: np.ndarray, *settings: int) -> _EncodedImage:
    channels = image.shape[2]
    if channels not in (1, 3, 4):
        raise NeedsTensorFlowError(f"tf.image.encode of {channels} channels")
    image = np.ascontiguousarray(image)
    if channels > 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    _, encoded = cv2.imencode(extension, image, settings)
    return _EncodedImage(encoded.tobytes())


def _encode_png(image: np.ndarray) -> _EncodedImage:
    return _encode(".png", image, cv2.IMWRITE_PNG_COMPRESSION, 6)  # OpenCV's own 1 makes a tenth more


def _encode_jpeg(image: np.ndarray, format: str = "", quality: int = 95) -> _EncodedImage:
    return _encode(".jpg", image, cv2.IMWRITE_JPEG_QUALITY, quality)


def _decode(encoded: bytes, channels: int = 0) -> np.ndarray:
    """[H, W, C], with the image's own channels where `channels` is 0; ignores EXIF orientation, as TensorFlow does."""
    mode = {0: cv2.IMREAD_UNCHANGED, 1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}[channels]
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("an image that OpenCV cannot decode")
    if image.ndim == 2:
        return image[:, :, None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _open(name: str | os.PathLike, mode: str = "r") -> IO[Any]:
    if set(mode) & set("wax+"):
        return Path(name).open(mode, encoding=None if "b" in mode else "utf-8")
    file = open_regular(name)
    return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")


def _walk(top: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    for folder, folders, files in os.walk(os.fspath(top)):
        folders.sort()
        yield folder, folders, sorted(files)


def _as_text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _as_bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


class _TooManyOpenFilesError(Exception):
    """Named by TFDS in an except clause; opening raises OSError here."""


_TENSORFLOW: Mapping[str, Any] = {
    "io": {
        "encode_jpeg": _encode_jpeg,
        "gfile": {  # in the order of names, so that a set is the same on any file system
            "GFile": _open,
            "copy": lambda source, target, overwrite=False: shutil.copyfile(source, target),
            "exists": os.path.exists,
            "glob": lambda pattern: sorted(glob.glob(os.fspath(pattern))),
            "isdir": os.path.isdir,
            "listdir": lambda folder: sorted(os.listdir(folder)),
            "makedirs": lambda folder: os.makedirs(folder, exist_ok=True),
            "remove": os.remove,
            "walk": _walk,
        },
    },
    "image": {
        "decode_image": _decode,
        "decode_jpeg": _decode,
        "decode_png": _decode,
        "encode_jpeg": _encode_jpeg,
        "encode_png": _encode_png,
    },
    "compat": {"as_bytes": _as_bytes, "as_text": _as_text},
    "errors": {
        "InvalidArgumentError": ValueError,
        "NotFoundError": FileNotFoundError,
        "PermissionDeniedError": PermissionError,
        "ResourceExhaustedError": _TooManyOpenFilesError,
    },
    "shape": np.shape,
}
