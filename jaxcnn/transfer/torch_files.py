"""PyTorch's files of tensors, read without PyTorch and without running what a pickle asks for.

A pickle is a program. It is run here by a machine of ours, which knows the opcodes of a state dict and the five names
that put a tensor together; anything else ends the reading. Every size is checked against the bytes that are there.
"""

import io
import math
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
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
MOST_STEPS = 1_000_000  # of all pickles in a file; a model of 1,700 tensors has 120,000
MOST_MEMBERS = 100_000  # of a zip file
MOST_AXES = 16
MOST_NAME = 1_000  # letters
MOST_EXPANDED = 4  # times the file's size that its tensors may come to: some are views of the same bytes


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
    """Tensor of a pickle: a view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A read-only view; nothing is copied, so that a small file cannot ask for much memory."""
        values = self.storage.values()
        if not _is_size(self.offset):
            raise ValueError("a tensor's offset is none")
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


class _Machine:
    """Reads pickles of tensors: the few opcodes that state dicts are made of, and a handful of names.

    What it holds grows with the opcodes alone, of which it reads so many and no more; nothing of the file is called,
    compared or hashed but text and small numbers.
    """

    def __init__(self, storages: dict[str, _Storage]):
        self._storages = storages
        self._steps = MOST_STEPS
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self, file: BinaryIO) -> Any:
        """The object that the pickle at the file's position describes; the next one may follow.

        Raises UserError for what is no tensor, ValueError for what is no pickle.
        """
        self._stack, self._marks, self._memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(file):
            self._spend(1)
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise ValueError("a pickle without an end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in ("SHORT_BINSTRING", "BINSTRING"):  # text of Python 2
            self._stack.append(argument.encode("latin-1").decode())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self._stack.append(tuple(self._taken(int(name[5:]) if name[5:] else None)))
        elif name in ("APPEND", "APPENDS"):
            values = self._taken(1 if name == "APPEND" else None)
            self._top(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            _set_items(self._taken(2 if name == "SETITEM" else None), self._top(dict))
        elif name == "GLOBAL":
            self._stack.append(_allowed(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self._stack.append(_allowed(*self._taken(2)))
        elif name == "BINPERSID":
            self._stack.append(self._storage(self._pop()))
        elif name == "REDUCE":
            function, arguments = self._taken(2)
            self._stack.append(self._called(function, arguments))
        elif name == "BUILD":  # what modules return has a _metadata of no use here
            self._pop()
            self._top(OrderedDict)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"a pickle's {name}, which no state dict has")

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise ValueError(f"its pickle has more than {MOST_STEPS:,} steps")

    def _pop(self) -> Any:
        return self._taken(1)[0]

    def _taken(self, count: int | None) -> list[Any]:
        """The last values, in their order: so many, or those since the last mark."""
        start = self._marks.pop() if count is None else len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise ValueError("a pickle takes more than it has")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise ValueError(f"a pickle adds to what is no {kind.__name__}")
        return self._stack[-1]

    def _storage(self, pid: Any) -> _Storage:
        """The storage that ("storage", type, key, location, size, ...) names, to be filled later."""
        if not (type(pid) is tuple and 5 <= len(pid) <= 6 and type(pid[0]) is str and pid[0] == "storage"):
            raise ValueError("it refers to something that is no storage")
        _, kind, key, _, size, *view = pid
        if not (isinstance(kind, _Name) and kind.endswith("Storage")):
            raise ValueError("a storage has no type")
        if kind not in _STORAGES:
            raise _RefusedError(f"it holds tensors of a kind that is not read here: {kind}"[:160])
        if not (type(key) is str and _is_size(size)):
            raise ValueError("a storage has no size")
        whole = self._storages.setdefault(key, _Storage(np.dtype(_STORAGES[kind]), size))
        if (whole.dtype, whole.size) != (_STORAGES[kind], size):
            raise ValueError("a storage has two types or sizes")
        if not view or view[0] is None:
            return whole
        if not (type(view[0]) is tuple and len(view[0]) == 3):
            raise ValueError("a part of a storage has no place")
        _, offset, view_size = view[0]  # of the legacy format alone
        return _Storage(whole.dtype, view_size, offset, whole)

    def _called(self, function: Any, arguments: Any) -> Any:
        """Result of a call of one of the five names that there are."""
        if not (isinstance(function, _Name) and type(arguments) is tuple):
            raise ValueError("a pickle calls what is no function")
        if function == "OrderedDict":
            made: OrderedDict[Any, Any] = OrderedDict()
            for pair in arguments[0] if arguments and type(arguments[0]) is list else ():  # as Python 2 wrote it
                self._spend(1)
                _set_items(pair, made)
            return made
        if function == "Size" and len(arguments) == 1:
            return _axes(arguments[0])
        if function == "_rebuild_parameter" and arguments:
            return arguments[0]
        if function in ("_rebuild_tensor", "_rebuild_tensor_v2") and len(arguments) >= 4:
            storage, offset, shape, strides = arguments[:4]
            if isinstance(storage, _Storage):
                return _Tensor(storage, offset, _axes(shape), _axes(strides))
        raise ValueError(f"a {function} that is none")


class _Name(str):
    """A name of PyTorch's in a pickle. Text of the file is never one."""


_VALUES = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)
_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_NAMES = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}


def _allowed(module: Any, name: Any) -> _Name:
    """Raises UserError for all names but a handful."""
    if not (type(module) is str and type(name) is str):
        raise ValueError("a name that is no text")
    if (module, name) in _NAMES or (module in ("torch", "torch.storage") and re.fullmatch(r"\w{1,40}Storage", name)):
        return _Name(name)
    raise _RefusedError(f"it holds more than tensors: a {module}.{name}"[:160])


def _set_items(values: Any, mapping: dict[Any, Any]) -> None:
    """Sets keys and values in turn. Keys are text or small numbers: others can be made to take for ever to hash."""
    if type(values) not in (list, tuple) or len(values) % 2:
        raise ValueError("a pickle's dictionary has a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not (type(key) is str or (type(key) is int and 0 <= key < 2**31)):
            raise _RefusedError("a dictionary in it has a key that is no name")
        mapping[key] = value


def _axes(sizes: Any) -> tuple[int, ...]:
    if not (type(sizes) in (list, tuple) and len(sizes) <= MOST_AXES and all(map(_is_size, sizes))):
        raise ValueError("a tensor's sizes are no sizes")
    return tuple(sizes)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def read_torch_file(content: bytes, name: str) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` or `.pt` by their names, as read-only views of what is in the file.

    Raises:
      UserError: it is no state dict: it holds code, or other objects, or is of a kind that is not read here.
      RunError: it is damaged.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            state = _read_zip(content)
        elif content[:2] == b"PK":
            raise ValueError("its end is missing")
        else:
            state = _read_legacy(content)
        tensors = dict(_tensors(state))
        _check_total(tensors, len(content))
        return {key: tensor.array() for key, tensor in tensors.items()}
    except _RefusedError as error:
        raise UserError(
            f"{name} is not read: {error}; in PyTorch save only the tensors, torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # whatever a damaged or malicious file makes of the unpickler
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RunError(f"{name} is damaged, or no PyTorch file ({reason}); fetch it again") from None


def _read_zip(content: bytes) -> Any:
    """Reads the zip that torch.save writes since 1.6: `NAME/data.pkl`, and a member `NAME/data/KEY` per storage."""
    if content.count(b"PK\x01\x02") > MOST_MEMBERS:
        raise ValueError(f"it has more than {MOST_MEMBERS:,} members")
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        _check_members(archive.infolist(), len(content))
        pickled = next((member for member in members if member.endswith("data.pkl")), None)
        if pickled is None:
            raise _RefusedError("it is a zip file without a data.pkl, which is none of torch.save's")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise _RefusedError("it is a TorchScript program")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in members else "little"
        state = _Machine(storages).load(io.BytesIO(archive.read(pickled)))
        for key, storage in storages.items():
            storage.data = _numbers(archive.read(members[f"{folder}data/{key}"]), storage, order)  # checks its CRC-32
    return state


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Checks that members are whole, distinct and do not overlap: what is read is no more than the file's bytes."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member is compressed, which torch.save never does")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member is there twice")
    if sum(max(member.file_size, member.compress_size) for member in members) > size:
        raise ValueError("its members are larger than the file")


def _read_legacy(content: bytes) -> Any:
    """Reads files from before 1.6: magic number, version, system, object, storages' keys; each one's size and bytes."""
    file = io.BytesIO(content)
    storages: dict[str, _Storage] = {}
    machine = _Machine(storages)
    if machine.load(file) != _LEGACY_MAGIC or machine.load(file) != _LEGACY_VERSION:
        raise ValueError("it does not begin as one")
    system = machine.load(file)
    order = "little" if system.get("little_endian", True) else "big"
    found, keys = machine.load(file), machine.load(file)
    if not (type(keys) is list and all(type(key) is str for key in keys)):
        raise ValueError("its storages have no names")
    for key in keys:
        storage = storages[key]
        size = int.from_bytes(file.read(8), order)  # type: ignore[arg-type]
        if size != storage.size:
            raise ValueError("a storage is not as long as it says")
        storage.data = _numbers(file.read(size * storage.dtype.itemsize), storage, order)
    return found


def _numbers(content: bytes, storage: _Storage, order: str) -> np.ndarray:
    if order not in ("little", "big"):
        raise ValueError("its numbers are of no known order")
    if len(content) < storage.size * storage.dtype.itemsize:
        raise ValueError("it ends too early")
    values = np.frombuffer(content, storage.dtype, storage.size)
    return values if order == sys.byteorder else values.byteswap()


_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net", "weights")  # of whoever saves more beside it


def _tensors(state: Any) -> Iterator[tuple[str, _Tensor]]:
    """The tensors of a state dict, or of the one that a training script's checkpoint wraps."""
    if not isinstance(state, dict):
        raise _RefusedError(f"it holds no state dict but a {type(state).__name__.lstrip('_').lower()}")
    state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
    if not any(isinstance(value, _Tensor) for value in state.values()):
        raise _RefusedError("there are no tensors in it")
    for name, value in state.items():
        if isinstance(value, _Tensor):
            yield str(name), value


def _check_total(tensors: dict[str, _Tensor], size: int) -> None:
    """Raises ValueError for what is no name, and where views of a small file would be large once copied."""
    if long := next((name for name in tensors if len(name) > MOST_NAME), None):
        raise ValueError(f"a tensor's name has {len(long):,} letters")
    total = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in tensors.values())
    if total > MOST_EXPANDED * size:
        raise ValueError(f"its tensors come to {total:,} bytes, and the file has {size:,}")
