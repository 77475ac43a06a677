"""Fetches what a TFDS builder asks for: downloads that go on where they stopped, verified and unpacked.

Stands in for TFDS's own download manager, in the same folders and under the same names, so that either finds what the
other has fetched. A file has its final name only once it is whole and its checksum is right.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlparse

from jaxcnn.errors import RunError, UserError
from jaxcnn.files import open_regular

Progress = Callable[[str, int, int], None]  # what, how much is done, of how much (0: unknown); 0 of 0 is just a line

CHUNK = 1 << 20  # bytes read from files at once
BLOCK = 1 << 16  # bytes read from the network at once, which is what a connection that breaks can lose
TIMEOUT = (20, 60)  # seconds to connect, and to wait for the next bytes
MOST_UNREGISTERED = 1 << 40  # bytes of a file whose size TFDS has not registered
MOST_EXPANDED = 200  # times its size that an archive may come to; text and masks come to 20
LEAST_UNPACKED = 1 << 30  # bytes that any archive may come to
MOST_MEMBERS = 20_000_000  # files in an archive
PAUSE = 1.0  # seconds before a connection that broke is tried again


class Downloads:
    """Download manager for TFDS's builders, with what `_split_generators(dl_manager)` uses of TFDS's own."""

    register_checksums = False

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        url_infos: Mapping[str, Any],
        instructions: str | None = None,
        archives: Sequence[Path] = (),
        progress: Progress,
    ):
        """`url_infos` are the builder's own sizes and checksums by URL, `instructions` how to download by hand.

        UserError when an archive cannot be meant for this set.
        """
        from etils import epath
        from tensorflow_datasets.core.download import checksums

        self._name, self._instructions, self._progress = name, instructions, progress
        self.download_dir = epath.Path(folder)
        self._own_folder = folder / name
        self._extracted = folder / "extracted" / name
        self._manual = folder / "manual"
        self._url_infos = {**checksums.get_all_url_infos(), **url_infos}
        self._paths: dict[str, Path] = {}  # of what is downloaded and verified, by URL
        self._sizes: dict[str, int] = {}
        self._archives: dict[str, Path] = {}  # by URL where the content tells, else by file name
        for archive in archives:
            self._take(Path(archive).expanduser().absolute(), url_infos)

    @property
    def downloaded_size(self) -> int:
        """Bytes of all that was downloaded, now or before."""
        return sum(self._sizes.values())

    @property
    def manual_dir(self) -> Any:
        """Folder of the files that a user must download by hand."""
        from etils import epath

        if not self._manual.is_dir() or not any(self._manual.iterdir()):
            raise UserError(self.by_hand())
        return epath.Path(self._manual)

    def by_hand(self) -> str:
        """Instructions for a set that has to be downloaded by hand, as a line."""
        return (
            f"{self._name} has to be downloaded by hand: {' '.join((self._instructions or '').split())} "
            f"Then run this command again with --archive FILE for each file, or put them into {self._manual}"
        )

    def download(self, urls: Any) -> Any:
        """Paths of the downloaded files, in the structure of the URLs: one, or lists and dicts of them."""
        self._check_space(urls, copies=2)
        return _map(lambda url: self._download(_resource(url=url)), urls)

    def extract(self, paths: Any) -> Any:
        """Paths of what the archives hold, in their structure; what is no archive is its own path."""
        return _map(lambda path: self._extract(_resource(path=path)), paths)

    def download_and_extract(self, urls: Any) -> Any:
        """Downloads, then unpacks: paths of what the archives hold, in the structure of the URLs."""

        def fetch(url: Any) -> Any:
            resource = _resource(url=url)
            resource.path = self._download(resource)
            return self._extract(resource)

        self._check_space(urls, copies=3)
        return _map(fetch, urls)

    def iter_archive(self, archive: Any) -> Iterator[tuple[str, IO[bytes]]]:
        """Name and open file of each member, each to be read before the next."""
        from tensorflow_datasets.core.download import extractor

        resource = _resource(path=archive)
        return extractor.iter_archive(resource.path, resource.extract_method)

    def download_kaggle_data(self, competition_or_dataset: str) -> Any:
        """Always refused: Kaggle wants an account."""
        raise UserError(f"{self._name} comes from Kaggle, which needs an account; prepare it with TFDS itself")

    def clear_extracted(self) -> None:
        """Removes what was unpacked; the archives stay."""
        shutil.rmtree(self._extracted, ignore_errors=True)

    def _take(self, archive: Path, url_infos: Mapping[str, Any]) -> None:
        """Puts an archive that the user has downloaded by hand where it is looked for, by its content."""
        if not (archive.is_file() or archive.is_dir()):  # a folder: some sets are to be unpacked by hand
            raise UserError(f"--archive {archive}: there is no such file")
        names = {url: info.filename or _file_name(url) for url, info in url_infos.items()}
        length = archive.stat().st_size
        is_candidate = archive.is_file() and length in [info.size for info in url_infos.values()]
        checksum = self._checksum(archive, archive.name) if is_candidate else ""
        for url, info in url_infos.items():
            if checksum == info.checksum:
                self._archives[url] = archive
                self._put_by_hand(archive, names[url])
                return
        for url, info in url_infos.items():
            if archive.name == names[url]:
                raise UserError(
                    f"--archive {archive} is not what {url} was when TFDS registered it ({info.size:,} bytes, sha256 "
                    f"{info.checksum[:12]}…): it has {length:,} bytes; download it again"
                )
        if url_infos and not self._instructions:
            listed = ", ".join(sorted(set(names.values()))[:10]) + (", …" if len(names) > 10 else "")
            raise UserError(f"--archive {archive} is none of the files that make {self._name}: {listed}")
        self._archives[archive.name] = archive
        self._put_by_hand(archive, archive.name)

    def _put_by_hand(self, archive: Path, name: str) -> None:
        """Puts an archive into the folder of files downloaded by hand, where the builder reads from there."""
        place = self._manual / name
        if self._instructions and archive != place:
            self._manual.mkdir(parents=True, exist_ok=True)
            if place.is_symlink():
                place.unlink()
            if not place.exists():
                place.symlink_to(archive)

    def _check_space(self, urls: Any, *, copies: int) -> None:
        """RunError when the disk cannot hold the downloads and `copies` - 1 of their size: unpacked, prepared."""
        missing = total = 0
        for resource in (_resource(url=url) for url in _leaves(urls)):
            info = self._url_infos.get(resource.url)
            if info and resource.url not in self._paths:
                place = self._place(resource)
                total += info.size
                missing += (
                    0 if resource.url in self._archives else info.size - max(_length(place), _length(_partial(place)))
                )
        needed, free = missing + (copies - 1) * total, shutil.disk_usage(self.download_dir).free
        if needed > free:
            raise RunError(
                f"{self._name} needs about {_gigabytes(needed)}, {_gigabytes(missing)} of them to download and the "
                f"rest to prepare, and {self.download_dir} has {_gigabytes(free)} free; free some, or name a folder "
                "on a larger disk"
            )

    def _place(self, resource: Any) -> Path:
        """Path at which TFDS keeps the download."""
        from tensorflow_datasets.core.download.resource import get_dl_fname

        info = self._url_infos.get(resource.url)
        return self._own_folder / resource.relative_download_dir / get_dl_fname(resource.url, info and info.checksum)

    def _download(self, resource: Any) -> Any:
        """The path of a verified file."""
        from etils import epath
        from tensorflow_datasets.core.download import checksums
        from tensorflow_datasets.core.download import resource as resources

        url, info = resource.url, self._url_infos.get(resource.url)
        file_name = (info and info.filename) or _file_name(url)
        if url not in self._paths:
            place = self._place(resource)
            place.parent.mkdir(parents=True, exist_ok=True)
            given = self._archives.get(url) or self._archives.get(file_name)
            if given is not None:
                if not place.exists() or not place.samefile(given):
                    place.unlink(missing_ok=True)
                    place.symlink_to(given)
            elif not place.exists() or (info and self._checksum(place, file_name) != info.checksum):
                self._fetch(url, place, info)
            size = place.stat().st_size
            checksum = info.checksum if info else self._checksum(place, file_name)
            known = checksums.UrlInfo(size=size, checksum=checksum, filename=None)
            resources.get_info_path(epath.Path(place)).unlink(missing_ok=True)
            resources.write_info_file(url, epath.Path(place), self._name, file_name, known)
            self._paths[url], self._sizes[url] = place, size
        return epath.Path(self._paths[url])

    def _fetch(self, url: str, place: Path, info: Any) -> None:
        """Downloads into a file beside `place`, from where it stopped before, and renames it when it is right."""
        partial = _partial(place)
        if info is None:
            partial.unlink(missing_ok=True)  # no checksum would tell that two parts do not belong together
        resumed = partial.exists()
        self._transfer(url, partial, info)
        if info and self._checksum(partial, _file_name(url)) != info.checksum:
            size = _length(partial)
            partial.unlink()
            if resumed:
                return self._fetch(url, place, info)
            raise RunError(
                f"{url} is not what TFDS registered ({info.size:,} bytes, sha256 {info.checksum[:12]}…): {size:,} "
                "other bytes came; try again, or find the file elsewhere and give it with --archive FILE"
            )
        partial.replace(place)

    def _transfer(self, url: str, partial: Path, info: Any) -> None:
        """Continues where `partial` ends, over as many connections as it takes while each brings something."""
        import requests

        while not info or _length(partial) < info.size:
            before = _length(partial)
            try:
                return self._receive(url, partial, info and info.size)
            except requests.RequestException as error:
                if not info or _length(partial) <= before:
                    raise RunError(
                        f"cannot download {url} ({_reason(error)}); run the command again when it can be reached, or "
                        "download it by hand and give it with --archive FILE"
                    ) from error
                time.sleep(PAUSE)

    def _receive(self, url: str, partial: Path, size: int | None) -> None:
        """Stores one answer of the server, of which no more is taken than was registered."""
        import requests

        have = _length(partial)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, stream=True, headers=headers, timeout=TIMEOUT) as response:
            if response.status_code == 416 and have:  # it ends before that: what is here is of another file
                partial.unlink()
                return self._receive(url, partial, size)
            if response.status_code not in (200, 206):
                raise RunError(
                    f"cannot download {url} (the server answers {response.status_code} {response.reason}); try again "
                    "later, or find the file elsewhere and give it with --archive FILE"
                )
            have = have if response.status_code == 206 else 0  # 200: all of it comes again
            total = size or have + _content_length(response)
            with partial.open("ab" if have else "wb") as file:
                for block in response.iter_content(BLOCK):
                    self._progress(f"downloading {_file_name(url)}, bytes", have, total)
                    have += len(block)
                    if have > (size or MOST_UNREGISTERED):
                        break
                    file.write(block)
            if have > (size or MOST_UNREGISTERED):
                partial.unlink()
                raise RunError(
                    f"{url} is not what TFDS registered: more than {size or MOST_UNREGISTERED:,} bytes came; try again "
                    "later, or find the file elsewhere and give it with --archive FILE"
                )
            self._progress(f"downloading {_file_name(url)}, bytes", have, total)

    def _extract(self, resource: Any) -> Any:
        """The folder of an archive's files, or the file of one that holds a single one without a name."""
        from etils import epath
        from tensorflow_datasets.core.download import extractor
        from tensorflow_datasets.core.download import resource as resources

        method = resource.extract_method
        if method == resources.ExtractMethod.NO_EXTRACT:
            return resource.path
        target = self._extracted / f"{method.name}.{resource.path.name}"
        if target.exists():
            return epath.Path(target)
        partial = _partial(target)
        if partial.is_dir():
            shutil.rmtree(partial)
        what = f"unpacking {resources.read_info_file(resource.path).get('original_fname', resource.path.name)}, bytes"
        with open_regular(resource.path) as archive:
            size, first = os.fstat(archive.fileno()).st_size, True
            left = max(LEAST_UNPACKED, MOST_EXPANDED * size)
            for number, (name, member) in enumerate(extractor.iter_archive(archive, method)):
                self._progress(what, 0 if first else min(archive.tell(), size - 1), size)
                first = False
                file_path = partial / name if name else partial
                file_path.parent.mkdir(parents=True, exist_ok=True)
                with file_path.open("wb") as file:
                    while left >= 0 and (block := member.read(CHUNK)):
                        left -= len(block)
                        file.write(block)
                if left < 0 or number >= MOST_MEMBERS:
                    raise RunError(
                        f"{resource.path} holds far more than its {size:,} bytes, or more than {MOST_MEMBERS:,} files, "
                        "and is not unpacked; fetch it elsewhere and give it with --archive FILE"
                    )
            self._progress(what, size, size)
        partial.replace(target)
        return epath.Path(target)

    def _checksum(self, path: Path, name: str) -> str:
        what, size, digest = f"verifying {name}, bytes", _length(path), hashlib.sha256()
        with open_regular(path) as file:
            while block := file.read(CHUNK):
                self._progress(what, file.tell() - len(block), size)
                digest.update(block)
        self._progress(what, size, size)
        return digest.hexdigest()


def _resource(**place: Any) -> Any:
    """TFDS's description of what to download or unpack, of a URL or path that may be one already."""
    from tensorflow_datasets.core.download.resource import Resource

    (value,) = place.values()
    return value if isinstance(value, Resource) else Resource(**place)


def _map(function: Callable[[Any], Any], structure: Any) -> Any:
    if isinstance(structure, Mapping):
        return {key: _map(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return [_map(function, value) for value in structure]
    return function(structure)


def _leaves(structure: Any) -> list[Any]:
    leaves: list[Any] = []
    _map(leaves.append, structure)
    return leaves


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _file_name(url: str) -> str:
    return os.path.basename(unquote(urlparse(url).path).rstrip("/")) or url


def _content_length(response: Any) -> int:
    """Length of the server's answer in bytes; 0 where the server says none, or no number."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,15}", length) else 0


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def _reason(error: Exception) -> str:
    """The innermost words of a failed request: requests wraps what urllib3 wraps."""
    while error.args and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    reason = getattr(error, "reason", None)
    return " ".join(str(reason if isinstance(reason, Exception) else error).split())[:200]
