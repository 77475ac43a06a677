"""onnxruntime-web's files for a page: of one version, from npm's registry, kept in the machine's cache.

What is used has the SHA-256 that is pinned here, wherever it came from.
"""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from typing import Any

from jaxcnn.errors import RunError, UserError
from jaxcnn.files import read_bytes, write_atomically
from jaxcnn.machine import private_cache
from jaxcnn.run import workdir as workdir_lib

VERSION = "1.30.0"  # MIT licence
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SIZE = 33_106_585  # bytes
SHA512 = (  # npm's `integrity`, in hexadecimal
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
FILES = {  # of the package's dist/, each with its SHA-256
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MOST = 64 << 20  # bytes of a file
TIMEOUT = (20, 60)  # seconds to connect, and to wait for the next bytes
BY_HAND = f"fetch it elsewhere (npm pack onnxruntime-web@{VERSION}), unpack it, and pass its dist folder as --runtime"


def runtime_files(folder: str | None = None, *, progress: Any = None) -> dict[str, bytes]:
    """The content of FILES: from a folder, which is then not looked for elsewhere, the cache, or npm's registry.

    Raises:
      UserError: the folder does not have them, or others.
      RunError: the registry cannot be reached, or sends something else.
    """
    if folder is not None:
        return _checked(_in_folder(folder), folder)
    cache = private_cache(f"onnxruntime-web-{VERSION}")
    if cache is not None and all((cache / name).is_file() for name in FILES):
        found = _in_folder(str(cache))
        if all(_is_pinned(name, content) for name, content in found.items()):
            return found
    if progress:
        progress(f"fetching onnxruntime-web {VERSION} ({SIZE / 2**20:.0f} MiB)", 0, 0)
    files = _unpacked(_fetched())
    for name, content in files.items() if cache is not None else ():
        write_atomically(cache / name, content)  # type: ignore[operator]
    return files


def _is_pinned(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == FILES[name]


def _in_folder(folder: str) -> dict[str, bytes]:
    place = workdir_lib.resolve(folder)
    try:
        return {name: read_bytes(place / name, limit=MOST) for name in FILES}
    except (OSError, ValueError) as error:
        raise UserError(
            f"--runtime={folder} has not the files of onnxruntime-web {VERSION} ({error}); {BY_HAND}"
        ) from None


def _checked(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    for name, content in files.items():
        if not _is_pinned(name, content):
            raise UserError(f"--runtime={folder}: {name} is not that of onnxruntime-web {VERSION}; {BY_HAND}")
    return dict(files)


def _fetched() -> bytes:
    """The package, as npm's registry sends it."""
    import requests

    content = io.BytesIO()
    try:
        with requests.get(URL, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            for piece in response.iter_content(1 << 20):
                content.write(piece)
                if content.tell() > SIZE:
                    break
    except requests.RequestException as error:
        reason = type(error).__name__
        raise RunError(f"cannot download {URL} ({reason}); {BY_HAND}") from None
    if hashlib.sha512(content.getvalue()).hexdigest() != SHA512:
        raise RunError(f"{URL} is not what it was: its SHA-512 is another; {BY_HAND}")
    return content.getvalue()


def _unpacked(package: bytes) -> dict[str, bytes]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        for name in FILES:
            member = archive.extractfile(f"package/dist/{name}")
            files[name] = member.read(MOST) if member is not None else b""
    return files
