"""File access: what is read is a regular file of bounded size, what is written is UTF-8, whole and lasting.

Nothing else in the package opens a file by itself; `tests/test_architecture.py` holds that.
"""

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from etils import epath

TEXT_LIMIT = 1 << 30  # bytes of a text file: lists and tables of millions of rows fit


def open_regular(path: epath.PathLike, *, limit: int | None = None) -> IO[bytes]:
    """A file to read. Never waits for a FIFO's writer, and refuses what is no regular file, such as /dev/zero.

    Raises:
      OSError: it cannot be opened, or is of another kind.
      ValueError: it has more than `limit` bytes.
    """
    if is_remote(path):  # whole: what etils opens there is no file that can be sought in, where TensorFlow is installed
        remote = epath.Path(path)
        if limit is not None and remote.stat().length > limit:
            raise ValueError(f"{remote.stat().length:,} bytes, of at most {limit:,}")
        file: IO[bytes] = io.BytesIO(remote.read_bytes())
    else:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            kind = "a folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "a device or pipe"
            os.close(descriptor)
            raise OSError(f"{kind}, not a file")
        file = open(descriptor, "rb")  # noqa: SIM115 - the caller closes it
    try:
        check_size(file, limit)
    except BaseException:
        file.close()
        raise
    return file


def check_size(file: IO[bytes], limit: int | None) -> None:
    """Raises ValueError where an open file has more than `limit` bytes."""
    if limit is None:
        return
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > limit:
        raise ValueError(f"{size:,} bytes, of at most {limit:,}")


def read_bytes(path: epath.PathLike, *, limit: int) -> bytes:
    """All of a file. Raises as open_regular."""
    with open_regular(path, limit=limit) as file:
        size = file.seek(0, os.SEEK_END)  # read(limit) would take that much memory, however short the file
        file.seek(0)
        return file.read(min(size, limit))


def read_sizeless(path: epath.PathLike, *, limit: int) -> bytes:
    """All of a file of the kernel's, such as /proc/self/stat, which says no size; at most `limit` bytes of it."""
    with open_regular(path) as file:
        return file.read(limit)


def read_text(path: epath.PathLike, *, limit: int = TEXT_LIMIT) -> str:
    """All of a UTF-8 file, with its own ends of lines and without a byte-order mark. Raises as open_regular."""
    return read_bytes(path, limit=limit).decode("utf-8-sig")


def read_json(path: epath.PathLike, *, limit: int = 256 << 20) -> Any:
    """Content of a JSON file. Raises OSError, or ValueError for what is no JSON, nested too deep, or too large."""
    return from_json(read_text(path, limit=limit))


def from_json(text: str) -> Any:
    """The inverse of to_json. NaN and Infinity, which are no JSON, but which runs of before may hold, are read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def to_json(value: Any, **options: Any) -> str:
    """JSON in which what is not finite is null. `options` are those of json.dumps."""
    return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """A tree of plain data with None for every float that is not finite, as JSON has no word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file, which holds either its old content or all of `content`, whenever the process or the machine stops.

    A link at `path` is replaced, not followed; a device or a pipe (/dev/stdout) is written to. Raises OSError.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        partial = epath.Path(path).parent / f".{epath.Path(path).name}.{os.getpid()}.partial"
        partial.write_bytes(data)
        partial.replace(path)
        return
    with _replacing(os.fspath(path)) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[TextIO]:
    """A text file for rows as they come, at its local place once the block has ended well; `-` is stdout.

    Ends of lines are as they are written, and names that are no UTF-8 keep their bytes. Raises OSError.
    """
    with open(sys.stdout.fileno(), "wb", closefd=False) if path == "-" else _replacing(os.fspath(path)) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        yield text
        text.detach()


def check_writable(path: epath.PathLike, *, folder: bool = False) -> None:
    """Raises the OSError that a file, or one in a `folder` that need not be there yet, would end in. Remote: none."""
    if is_remote(path):
        return
    place = os.path.abspath(path)
    if folder:
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        inside = place
    elif os.path.isdir(place):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    elif _is_device(place):
        return
    else:
        inside = os.path.dirname(place)
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # its name may be too long
    partial = os.path.join(inside, _partial(""))
    try:
        os.close(_create(partial))
        os.unlink(partial)
    except OSError as error:
        error.filename = path
        raise


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, or the device that is there."""
    folder, name = os.path.split(os.path.abspath(path))
    partial = path if _is_device(path) else os.path.join(folder, _partial(name))
    try:
        with open(_open_device(path) if partial == path else _create(partial), "wb") as file:
            yield file
            if partial != path:
                file.flush()
                os.fsync(file.fileno())
        if partial != path:
            os.replace(partial, path)
    except BaseException as error:
        if partial != path:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        if isinstance(error, OSError) and error.filename in (None, partial):
            error.filename, error.filename2 = path, None  # a name that the user knows
        raise
    _sync_folder(folder)


def _partial(name: str) -> str:
    return f".{name[:50]}.{secrets.token_hex(6)}.partial"


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)


def user_path(text: epath.PathLike, folder: epath.PathLike = "") -> Path:
    """The path that a user has typed, from `folder` on where it is relative; ~ is a home.

    Raises ValueError where no file can have it.
    """
    path = _at_home(folder) / _at_home(text)
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("the name is too long") from None
    except ValueError:
        raise ValueError("a path has no NUL") from None
    return path


def _at_home(path: epath.PathLike) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder of {os.fspath(path).split('/')[0]!r}") from None


def append(path: epath.PathLike, text: str) -> None:
    """Adds to the end of a local file. A link is not followed. Raises OSError."""
    with open(_open_no_link(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
        file.write(text.encode())


def create(path: epath.PathLike, text: str) -> None:
    """Makes a local file that is not there: of all who try at once, on hosts that share the folder too, one does.

    Others may see it empty for a moment. Raises FileExistsError, OSError.
    """
    descriptor = _create(os.fspath(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode())
    except OSError:  # a disk that is full: an empty file would be taken for one that is being written
        os.unlink(path)
        raise


@contextlib.contextmanager
def appending(path: epath.PathLike) -> Iterator[TextIO]:
    """A local text file that lines are added to as they come. A link is not followed. Raises OSError."""
    with open(
        _open_no_link(path, os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8", errors="replace", buffering=1
    ) as file:
        yield file


@contextlib.contextmanager
def locked(path: epath.PathLike) -> Iterator[None]:
    """A local file that one process at a time has, this one until the end of the block or of the process.

    It is made where there is none, and may be deleted by who has it. What is in it stays, and a link is not followed.

    Raises:
      BlockingIOError: another process has it.
      OSError: it cannot be made.
    """
    descriptor = _lock(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: epath.PathLike) -> int:
    while True:
        descriptor = _open_no_link(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who had it before has deleted it since it was opened here


def _open_no_link(path: epath.PathLike, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, which is not followed", os.fspath(path)) from None
        raise


def _open_device(path: str) -> int:
    """Descriptor of a device. Raises OSError for a pipe that nobody reads, where opening would wait for a reader."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    os.set_blocking(descriptor, True)
    return descriptor


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is a URL that can be written to, as gs://bucket/run; anything else is a local name."""
    return os.fspath(path).startswith(("gs://", "s3://", "az://", "hf://"))


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    redirected = os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))  # maybe to a regular file
    return redirected or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _sync_folder(folder: str) -> None:
    """Syncs a folder, so that a new name outlasts a loss of power, where the system can promise it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
