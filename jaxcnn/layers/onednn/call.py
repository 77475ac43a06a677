"""A plan as an operation of JAX: XLA's typed foreign functions (xla/ffi/api/c_api.h), handled in Python.

XLA calls `instantiate` when it makes or loads a program and `execute` at each call, with a frame of pointers. Python's
lock is held for some microseconds of a call, and let go of while oneDNN computes.
"""

import ctypes
import hashlib
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import Preempted
from jaxcnn.files import read_text
from jaxcnn.layers.onednn.library import OneDNNError, Pointer, library
from jaxcnn.layers.onednn.plan import Convolution, Plan, convolution_of, plan_of

TARGET = "jaxcnn.onednn"
SWITCH_SECONDS = 0.0002
_API_MAJOR = 0  # the layout of the structures below
_METADATA, _INTERNAL = 1, 13  # a kind of extension; an error's code


class _Error(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("extension", Pointer), ("message", ctypes.c_char_p), ("code", ctypes.c_int)]


class _Version(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", Pointer),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _Api(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", Pointer),
        ("version", _Version),
        ("internal", Pointer),
        ("make_error", ctypes.CFUNCTYPE(Pointer, ctypes.POINTER(_Error))),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
        ("state", ctypes.c_int64),
    ]


class _Extension(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("next", Pointer),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", Pointer),
        ("count", ctypes.c_int64),
        ("kinds", Pointer),
        ("items", Pointer),
    ]


class _Attributes(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", Pointer),
        ("count", ctypes.c_int64),
        ("kinds", Pointer),
        ("names", Pointer),
        ("items", Pointer),
    ]


class _Frame(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", Pointer),
        ("api", ctypes.POINTER(_Api)),
        ("context", Pointer),
        ("stage", ctypes.c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", Pointer),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_size_t),
        ("rank", ctypes.c_int64),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Scalar(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("value", Pointer)]


class _Text(ctypes.Structure):
    _fields_ = [("start", Pointer), ("length", ctypes.c_size_t)]


_Two = ctypes.c_size_t * 2  # every call has two arguments, two results, two attributes
_Address, _Integer = ctypes.c_size_t, ctypes.c_int64
_DATA, _VALUE = _Buffer.data.offset, _Scalar.value.offset
_HANDLER = ctypes.CFUNCTYPE(Pointer, ctypes.c_size_t)
_instances: dict[int, Plan] = {}  # by the number that a program carries


def convolved(convolution: Convolution, first: jax.Array, second: jax.Array, result: tuple[int, ...]) -> jax.Array:
    """A convolution or a gradient of it, of two float32 arrays in the order that `Convolution.which` says."""
    _register()
    text = convolution.text()
    plan = plan_of(text)
    results = jax.ShapeDtypeStruct(result, jnp.float32), jax.ShapeDtypeStruct((plan.scratch,), jnp.uint8)
    call = jax.ffi.ffi_call(TARGET, results, vmap_method="sequential")
    computed: jax.Array = call(first, second, number=np.int64(_number(text)), text=text)[0]
    axes = varying(first) | varying(second)  # of foreign functions JAX believes that no device's result differs
    return jax.lax.pcast(computed, tuple(axes), to="varying") if axes else computed


def varying(x: jax.Array) -> frozenset[str]:
    """The axes of a shard_map over which an array differs, where it checks them."""
    return frozenset(getattr(jax.typeof(x).manual_axis_type, "varying", ()))


@cache
def why_not() -> OneDNNError | None:
    """Why oneDNN cannot be used here; None where it can."""
    try:
        library()
        _check_interface()
    except OneDNNError as error:
        return error
    return None


def flops(program: str) -> float:
    """FLOPs of all calls in a compiled program's text: XLA counts none for foreign functions."""
    calls = re.findall(rf'custom_call_target="{re.escape(TARGET)}".*?text = "(.*?)"', program)
    return sum(2.0 * convolution_of(text.replace("\\22", '"')).multiply_adds for text in calls)


def _check_interface() -> None:
    """Raises OneDNNError where this jaxlib's foreign functions are not those of this file."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        found = re.search(r"#define XLA_FFI_API_MAJOR (\d+)", read_text(header))
    except OSError:
        found = None
    if found is None or int(found[1]) != _API_MAJOR:
        raise OneDNNError("this jaxlib calls foreign functions in a way that is not known here")


def _number(text: str) -> int:
    """What a plan is looked up by at each call: the first bits of a digest of its text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@cache
def _register() -> None:
    _check_interface()
    # A thread that is busy in Python gives the lock away after this time; the default of 5 ms is that of many calls.
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
    handlers = {"instantiate": _handler(_instantiate), "execute": _handler(_execute)}
    capsules = {stage: jax.ffi.pycapsule(ctypes.cast(handler, Pointer)) for stage, handler in handlers.items()}
    jax.ffi.register_ffi_target(TARGET, capsules, platform="cpu")


_kept: list[Any] = []  # what XLA calls must outlive every program


def _handler(function: Callable[[_Frame], None]) -> Any:
    def handle(address: int) -> int | None:
        frame = _Frame.from_address(address)
        try:
            if not _told(frame):
                function(frame)
        except Preempted:
            raise  # is lost here, as run/stopping.py expects, and ends the process after a second
        except BaseException as error:  # what would be printed and lost becomes the program's error; Ctrl-C too
            words = str(error) or type(error).__name__
            message = _Error(ctypes.sizeof(_Error), None, words.encode(), _INTERNAL)
            made: int | None = frame.api.contents.make_error(ctypes.byref(message))
            return made
        return None

    handler = _HANDLER(handle)
    _kept.append(handler)
    return handler


def _told(frame: _Frame) -> bool:
    """Whether a call asks only for the version of this side, and was told."""
    if not frame.extension:
        return False
    extension = _Extension.from_address(frame.extension)
    if extension.kind != _METADATA:
        return False
    about, here = extension.metadata.contents, frame.api.contents.version
    about.version.major, about.version.minor, about.traits = here.major, here.minor, 0
    return True


def _instantiate(frame: _Frame) -> None:
    number, text = _Two.from_address(frame.attributes.items)  # in the order of their names
    span = _Text.from_address(text)
    _instances[_number_of(number)] = plan_of(ctypes.string_at(span.start, span.length).decode())


def _execute(frame: _Frame) -> None:
    plan = _instances[_number_of(_Two.from_address(frame.attributes.items)[0])]
    _check_process()
    address = _Address.from_address
    buffers = [*_Two.from_address(frame.arguments.items), *_Two.from_address(frame.results.items)]
    plan.run([address(buffer + _DATA).value for buffer in buffers])


def _check_process() -> None:
    """Raises OneDNNError in the child of a fork, where OpenMP would wait for threads that are not there."""
    if os.getpid() != library().process:
        raise OneDNNError("oneDNN was loaded before this process was forked: begin a process with spawn")


def _number_of(scalar: int) -> int:
    return _Integer.from_address(_Address.from_address(scalar + _VALUE).value).value
