"""Files of named arrays, as others write them: PyTorch's `.pth`, `.pt` and `.bin`, and `.safetensors`."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from jaxcnn.errors import RunError, UserError
from jaxcnn.files import read_bytes, write_atomically
from jaxcnn.transfer.torch_files import MOST_NAME, read_torch_file

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
WEIGHTS_LIMIT = 8 << 30  # bytes of a file; the largest model here has 2.6e9
HEADER_LIMIT = 8 << 20  # bytes of what a safetensors file says of its tensors
_PUBLISHED_HASH = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt)$")  # as torch.hub names its files
_DTYPES: dict[str, Any] = {  # safetensors' names; its own reading with numpy lacks BF16
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Tensors:
    """Arrays that were read, and their source."""

    arrays: dict[str, np.ndarray]  # by the names of whoever wrote them; may be read-only views
    source: str  # the file, or the folder and step of a run
    sha256: str  # of the file; of a run, of its arrays


def read_file(path: epath.Path) -> Tensors:
    """The arrays in a file, whose suffix says what it is.

    Raises:
      UserError: there is none, or it holds something else.
      RunError: it is damaged.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is not read: weights are {', '.join(SUFFIXES)}, or a run's folder")
    try:
        content = read_bytes(path, limit=WEIGHTS_LIMIT)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from None
    sha256 = hashlib.sha256(content).hexdigest()
    published = _PUBLISHED_HASH.search(path.name)
    if published and not sha256.startswith(published[1]):
        raise RunError(
            f"{path} is damaged: its SHA-256 begins with {sha256[: len(published[1])]}, not with what its name says; "
            "fetch it again"
        )
    arrays = (
        read_safetensors(content, str(path)) if path.suffix == ".safetensors" else read_torch_file(content, str(path))
    )
    return Tensors(arrays, str(path), sha256)


def read_safetensors(content: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays in a safetensors file. Raises RunError if it is damaged, UserError for types that are not read."""
    import safetensors

    arrays: dict[str, np.ndarray] = {}
    try:
        if (header := int.from_bytes(content[:8], "little")) > HEADER_LIMIT:
            raise ValueError(f"it begins with {header:,} bytes of names")
        for key, each in safetensors.deserialize(content):
            if len(key) > MOST_NAME:
                raise ValueError(f"a tensor's name has {len(key):,} letters")
            if each["dtype"] not in _DTYPES:
                raise UserError(f"{name}: {key!r} is of a type that is not read here: {each['dtype']}")
            arrays[key] = np.ndarray(each["shape"], _DTYPES[each["dtype"]], each["data"])
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"{name} is damaged, or no safetensors file ({reason}); fetch it again") from None
    return arrays


def write_safetensors(path: epath.Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all. Raises UserError where it cannot be written."""
    from safetensors import numpy as safetensors_numpy

    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    content = safetensors_numpy.save(contiguous, metadata)
    try:
        write_atomically(path, content)
    except Exception as error:
        raise UserError(f"{path} cannot be written: {' '.join(str(error).split())}") from None


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array: Any = np.ascontiguousarray(arrays[name])
        sha256.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()
