"""The machine that a process runs on: its private cache, its GPUs, the versions of what is installed, how the process
begins. By the standard library alone: the launcher imports it, too.
"""

import functools
import importlib.util
import locale
import logging
import os
import platform
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from jaxcnn.run import stopping

_log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("jaxcnn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {"python": platform.python_version(), **found}


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def cache_dir() -> Path:
    """$JAXCNN_CACHE_DIR, else jaxcnn below $XDG_CACHE_HOME, else ~/.cache/jaxcnn."""
    own = os.environ.get("JAXCNN_CACHE_DIR")
    return Path(os.path.expanduser(own or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxcnn")))


def private_cache(what: str) -> Path | None:
    """The cache's folder for `what`; none, which is said once, where it cannot be made or others may write to it.

    What lies in it is believed: images are trained on, and compiled programs run.
    """
    folder = cache_dir()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for each in (folder, folder / what):
            each.mkdir(mode=0o700, exist_ok=True)
            if not _is_private(each):
                _warn(
                    f"nothing is kept in {folder / what}: others may write to {each}; empty it and make it yours alone "
                    "(chmod 700), or set JAXCNN_CACHE_DIR to another folder"
                )
                return None
        with tempfile.TemporaryFile(dir=folder / what):
            return folder / what
    except OSError as error:
        _warn(f"nothing is kept: cannot write in {folder / what} ({error.strerror or error})")
        return None


def _is_private(folder: Path) -> bool:
    """Whether the folder is the user's, and nobody else can write to it; what others could is taken from them."""
    if not hasattr(os, "getuid"):
        return True
    state = folder.stat()
    if state.st_uid == os.getuid() and state.st_mode & 0o022:  # as versions before made it under a umask of 002
        folder.chmod(0o700)
        state = folder.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


@functools.cache
def _warn(words: str) -> None:
    """Once each."""
    _log.warning("%s", words)


def cuda_devices() -> list[str]:
    """Names, as CUDA_VISIBLE_DEVICES has them, of the GPUs that JAX would use; none where it has no part for them."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each for each in visible.split(",") if each]
    found = (re.fullmatch("nvidia([0-9]+)", each.name) for each in Path("/dev").iterdir())
    return sorted((match[1] for match in found if match), key=int)


def begin_anew() -> None:
    """Begins the process anew, once, with what Python and glibc read at a program's start alone.

    Names on disk are UTF-8, whatever the locale; what is printed stays in the terminal's encoding. glibc asks for pages
    of 2 MiB: a step on a CPU takes all its memory from the system anew, and in pages of 4 KiB that took up to 45 % of
    its time.
    """
    wanted = {}
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        wanted["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    is_utf8 = locale.getpreferredencoding(False).lower() in ("utf-8", "utf8")
    if not is_utf8 and os.environ.get("PYTHONUTF8") != "1":
        wanted |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": getattr(sys.stdout, "encoding", None) or "utf-8"}
    if wanted:
        os.environ.update(wanted)
        stopping.hold()
        if sys.stdout is not None:  # closed by who called us
            sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)


def quiet_libraries() -> None:
    """Only our own lines reach the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's C++ log
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the traceback of what it then raises
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
