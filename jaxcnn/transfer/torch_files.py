"""PyTorch's files of tensors, read without PyTorch and without running what a pickle asks for.

A pickle names functions to call. Of those only the few that put a tensor together are known here, as methods of ours;
any other name ends the reading. What is not a tensor of plain numbers is never made.
"""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxcnn.errors import RunError, UserError

_STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6 began with it
_LEGACY_VERSION = 1001


class _RefusedError(UserError):
    """Something in the file is not of the kind that is read here; the message says what."""


@dataclass
class _Storage:
    """A flat piece of memory that tensors share."""

    dtype: np.dtype
    size: int  # in elements
    offset: int = 0  # in elements of the one whose part it is
    whole: "_Storage | None" = None  # the one whose part it is
    data: np.ndarray | None = None  # filled once its bytes are read

    def values(self) -> np.ndarray:
        owner = self.whole or self
        if owner.data is None:
            raise ValueError("a tensor's bytes are missing")
        if not 0 <= self.offset <= self.offset + self.size <= len(owner.data):
            raise ValueError("a part of a storage lies outside it")
        return owner.data[self.offset : self.offset + self.size]


@dataclass
class _Tensor:
    """What a pickle says of a tensor: a view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A read-only view; nothing is copied, so that a small file cannot ask for much memory."""
        values = self.storage.values()
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(each) is int and 0 <= each < 2**62 for each in numbers):
            raise ValueError("a tensor's sizes are no sizes")
        if len(self.shape) != len(self.strides):
            raise ValueError("a tensor has not as many strides as axes")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        empty = 0 in self.shape
        if not empty and last >= len(values):
            raise ValueError("a tensor lies outside its storage")
        if empty:
            return np.zeros(self.shape, values.dtype)
        strides = tuple(stride * values.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Knows how tensors are put together, and nothing else."""

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the pickle. Raises UserError for all but a handful."""
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor_v2,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return name  # a string cannot be called
        raise _RefusedError(f"it holds more than tensors: a {module}.{name}"[:160])

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that ("storage", type, key, location, size, ...) names, to be filled later."""
        kind, name, key, _, size, *view = pid
        if kind != "storage":
            raise ValueError("it refers to something that is no storage")
        if name not in _STORAGES:
            raise _RefusedError(f"it holds tensors of a kind that is not read here: {name}"[:160])
        if not (isinstance(key, str) and type(size) is int and 0 <= size < 2**62):
            raise ValueError("a storage has no size")
        whole = self._storages.setdefault(key, _Storage(np.dtype(_STORAGES[name]), size))
        if not view or view[0] is None:
            return whole
        _, offset, view_size = view[0]  # of the legacy format alone
        return _Storage(whole.dtype, view_size, offset, whole)

    def _rebuild_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _rebuild_tensor_v2(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        return self._rebuild_tensor(storage, offset, shape, strides)

    def _rebuild_parameter(self, data: Any, *_: Any) -> Any:
        return data


def read_torch_file(content: bytes, name: str) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` or `.pt` by their names, as read-only views of what is in the file.

    Raises:
      UserError: it is no state dict: it holds code, or other objects, or is of a kind that is not read here.
      RunError: it is damaged.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            found = _read_zip(content)
        elif content[:2] == b"PK":
            raise ValueError("its end is missing")
        else:
            found = _read_legacy(content)
        return {key: tensor.array() for key, tensor in _tensors(found)}
    except _RefusedError as error:
        raise UserError(
            f"{name} is not read: {error}; in PyTorch save only the tensors, torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # whatever a damaged or malicious file makes of the unpickler
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RunError(f"{name} is damaged, or no PyTorch file ({reason}); fetch it again") from None


def _read_zip(content: bytes) -> Any:
    """What torch.save writes since 1.6: `NAME/data.pkl`, and a member `NAME/data/KEY` a storage."""
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickled = next((member for member in members if member.endswith("data.pkl")), None)
        if pickled is None:
            raise _RefusedError("it is a zip file without a data.pkl, which is none of torch.save's")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise _RefusedError("it is a TorchScript program")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in members else "little"
        _check_stored(members[pickled])
        found = _Unpickler(io.BytesIO(archive.read(pickled)), storages).load()
        for key, storage in storages.items():
            member = members[f"{folder}data/{key}"]
            _check_stored(member)
            storage.data = _numbers(archive.read(member), storage, order)  # zipfile checks its CRC-32
    return found


def _check_stored(member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("a member is compressed, which torch.save never does")


def _read_legacy(content: bytes) -> Any:
    """Before 1.6: magic number, version, system, the object, the storages' keys; then each storage's size and bytes."""
    file = io.BytesIO(content)
    storages: dict[str, _Storage] = {}
    load = lambda: _Unpickler(file, storages).load()
    if load() != _LEGACY_MAGIC or load() != _LEGACY_VERSION:
        raise ValueError("it does not begin as one")
    system = load()
    order = "little" if system.get("little_endian", True) else "big"
    found, keys = load(), load()
    for key in keys:
        storage = storages[key]
        size = int.from_bytes(file.read(8), order)  # type: ignore[arg-type]
        if size != storage.size:
            raise ValueError("a storage is not as long as it says")
        storage.data = _numbers(file.read(size * storage.dtype.itemsize), storage, order)
    return found


def _numbers(content: bytes, storage: _Storage, order: str) -> np.ndarray:
    if len(content) < storage.size * storage.dtype.itemsize:
        raise ValueError("it ends too early")
    values = np.frombuffer(content, storage.dtype, storage.size)
    return values if order == sys.byteorder else values.byteswap()


_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net", "weights")  # of whoever saves more beside it


def _tensors(found: Any) -> Iterator[tuple[str, _Tensor]]:
    """The tensors of a state dict, or of the one that a training script's checkpoint wraps."""
    if not isinstance(found, dict):
        raise _RefusedError(f"it holds no state dict but a {type(found).__name__.lstrip('_').lower()}")
    if not any(isinstance(value, _Tensor) for value in found.values()):
        wrapped = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if wrapped is None:
            raise _RefusedError("there are no tensors in it")
        found = wrapped
    for name, value in found.items():
        if isinstance(value, _Tensor):
            yield str(name), value
