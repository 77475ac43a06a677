"""oneDNN's shared library: where it lies, whether it can be used here, and the calls that plans are made of.

The wheel onednn-cpu-gomp has the library and nothing else; its C API is that of oneDNN 3 (oneapi-src.github.io/oneDNN).
"""

import ctypes
import os
import platform
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE, VERSION = "onednn-cpu-gomp", (3, 2)  # the version whose constants are below
INSTALL = "pip install 'jaxcnn[onednn]'"

Pointer = ctypes.c_void_p
Dims = ctypes.c_int64 * 12

# dnnl_types.h: what the arguments of a primitive are, what is asked of its descriptor, and options of convolutions.
SRC, DST, WEIGHTS, SCRATCHPAD, DIFF_SRC, DIFF_DST, DIFF_WEIGHTS = 1, 17, 33, 80, 129, 145, 161
FROM, TO = SRC, DST  # of a reorder
QUERY_DIFF_WEIGHTS, QUERY_WEIGHTS, QUERY_SCRATCHPAD = 132, 131, 136
QUERY_IMPLEMENTATION = 8
FLOAT32, ANY_FORMAT = 3, 1
FORWARD_TRAINING, DIRECT_CONVOLUTION = 64, 1
_CPU_ENGINE, _SCRATCHPAD_BY_USER, _DEFAULT_STREAM = 1, 1, 1
_STATUS = {
    1: "out of memory", 2: "invalid arguments", 3: "unimplemented", 4: "last implementation reached", 5: "runtime error"
}  # fmt: skip


class OneDNNError(Exception):
    """oneDNN cannot be used here, or refused what it was asked for; the message is one line."""


class NotForThisMachineError(OneDNNError):
    """No oneDNN helps here."""


class Argument(ctypes.Structure):
    """One argument of a primitive: what it is, and its memory."""

    _fields_ = [("what", ctypes.c_int), ("memory", Pointer)]


class _Version(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("patch", ctypes.c_int),
        ("hash", ctypes.c_char_p),
        ("cpu_runtime", ctypes.c_uint),
        ("gpu_runtime", ctypes.c_uint),
    ]


@dataclass(frozen=True)
class Library:
    """The loaded library, with what every plan needs of it.

    Python's lock is let go of in `calls`, which may compute for long, and kept in `quick`: to get it back from a thread
    that is busy takes the time of a small convolution.
    """

    calls: ctypes.CDLL
    quick: ctypes.PyDLL
    version: str
    threads: int  # OpenMP's, in every call: a kernel's gradient has the same bits for the same number
    set_threads: Any  # of the calling thread
    process: int
    engine: Pointer
    stream: Pointer
    attributes: Pointer

    def made(self, function: str, *arguments: Any) -> Pointer:
        """What a constructor of the C API makes. Raises OneDNNError."""
        made = Pointer()
        self.check(getattr(self.calls, f"dnnl_{function}")(ctypes.byref(made), *arguments), function)
        return made

    def check(self, status: int, what: str) -> None:
        """Raises OneDNNError unless a call succeeded."""
        if status:
            raise OneDNNError(f"oneDNN {self.version}: {what}: {_STATUS.get(status, f'status {status}')}")

    def strided(self, shape: Sequence[int], order: Sequence[int]) -> Pointer:
        """The descriptor of float32 numbers [shape] whose axes lie in memory in `order`, the outermost first."""
        strides, step = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis], step = step, step * shape[axis]
        sizes = (len(shape), Dims(*shape), FLOAT32, Dims(*strides))
        return self.made("memory_desc_create_with_strides", *sizes)

    def any_order(self, shape: Sequence[int]) -> Pointer:
        """The descriptor of float32 numbers [shape] in whatever order a primitive likes best."""
        return self.made("memory_desc_create_with_tag", len(shape), Dims(*shape), FLOAT32, ANY_FORMAT)

    def size(self, descriptor: Pointer) -> int:
        """Bytes of an array."""
        return int(self.calls.dnnl_memory_desc_get_size(descriptor))

    def asked(self, primitive: Pointer, query: int) -> Pointer | None:
        """One of the descriptors that a primitive's descriptor owns; None where it has none."""
        found = self.calls.dnnl_primitive_desc_query_md(primitive, query, 0)
        return Pointer(found) if found else None

    def implementation(self, primitive: Pointer) -> str:
        """What oneDNN calls its way of computing a primitive, e.g. `jit:avx2` or `gemm:jit`."""
        name = ctypes.c_char_p()
        self.calls.dnnl_primitive_desc_query(primitive, QUERY_IMPLEMENTATION, 0, ctypes.byref(name))
        return (name.value or b"?").decode()


@cache
def library() -> Library:
    """Loads oneDNN, once in a process. Raises OneDNNError, with the reason, where it cannot be used."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NotForThisMachineError("there is oneDNN for Linux on x86-64 alone")
    if "avx2" not in _processor_flags():
        raise NotForThisMachineError("this processor has no AVX2, and without it oneDNN gains nothing")
    path = _path()
    try:
        with _passive_waiting():
            calls, quick, openmp = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path)), ctypes.PyDLL("libgomp.so.1")
    except OSError as error:
        hint = "; install libgomp1 (apt install libgomp1)" if "libgomp" in str(error) else ""
        raise OneDNNError(f"oneDNN does not load: {error}{hint}") from None
    calls.dnnl_version.restype = ctypes.POINTER(_Version)
    version = calls.dnnl_version().contents
    if (version.major, version.minor) != VERSION:
        wanted = ".".join(map(str, VERSION))
        raise OneDNNError(f"oneDNN {version.major}.{version.minor} is installed, and {wanted} is needed: {INSTALL}")
    _declare(calls)
    _declare(quick)
    return _begun(calls, quick, openmp, f"{version.major}.{version.minor}.{version.patch}")


def _begun(calls: ctypes.CDLL, quick: ctypes.PyDLL, openmp: ctypes.PyDLL, version: str) -> Library:
    none = Pointer()
    bare = Library(calls, quick, version, num_threads(), openmp.omp_set_num_threads, os.getpid(), none, none, none)
    engine = bare.made("engine_create", _CPU_ENGINE, ctypes.c_size_t(0))
    stream = bare.made("stream_create", engine, _DEFAULT_STREAM)
    attributes = bare.made("primitive_attr_create")
    bare.check(calls.dnnl_primitive_attr_set_scratchpad_mode(attributes, _SCRATCHPAD_BY_USER), "scratchpad mode")
    return replace(bare, engine=engine, stream=stream, attributes=attributes)


def num_threads() -> int:
    """OpenMP threads of a call: the cores that this process may use, or $OMP_NUM_THREADS where that is fewer."""
    cores = len(os.sched_getaffinity(0))
    for path in ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        try:
            quota, *period = Path(path).read_text().split()
            share = int(quota) / int(period[0] if period else 100_000)
        except (OSError, ValueError):  # not there, or "max"
            continue
        if share > 0:
            cores = min(cores, max(1, round(share)))
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) > 0 else cores


def _path() -> Path:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise OneDNNError(f"convolutions would be faster with oneDNN: {INSTALL}") from None
    for file in files:
        if file.name.startswith("libdnnl.so.3"):
            return Path(str(file.locate()))
    raise OneDNNError(f"{PACKAGE} is installed without its library: install it again, {INSTALL}")


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@contextmanager
def _passive_waiting() -> Any:
    """OpenMP's threads sleep between calls: spinning, they would take XLA's cores. Read when the library is loaded."""
    name = "OMP_WAIT_POLICY"
    given = os.environ.get(name)
    os.environ.setdefault(name, "passive")
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]


def _declare(calls: ctypes.CDLL) -> None:
    """The types of what is called without a check, or often."""
    calls.dnnl_memory_desc_get_size.argtypes, calls.dnnl_memory_desc_get_size.restype = [Pointer], ctypes.c_size_t
    calls.dnnl_primitive_desc_query_md.argtypes = [Pointer, ctypes.c_int, ctypes.c_int]
    calls.dnnl_primitive_desc_query_md.restype = Pointer
    calls.dnnl_memory_set_data_handle.argtypes = [Pointer, Pointer]
    calls.dnnl_primitive_execute.argtypes = [Pointer, Pointer, ctypes.c_int, ctypes.POINTER(Argument)]
