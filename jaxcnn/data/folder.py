"""A user's own image files: `folder:PATH`, where folders are classes, and `csv:PATH`, a list of files and labels.

Opening lists the files and reads the header of each; every mistake that can be seen so is said before a run begins.
"""

import csv
import io
import logging
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxcnn.config.choices import SOURCES, TABLES
from jaxcnn.data.decoding import FILE_LIMIT, decode_any, read_header
from jaxcnn.data.records import DamagedRecordError, Example, Split, StoredSet
from jaxcnn.data.resident import Progress
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.files import open_regular, read_bytes, read_text, user_path
from jaxcnn.fingerprints import content_digest, fingerprint_of_files
from jaxcnn.terminal import short_line

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".heic",
    ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}

_LAYOUT = "expected PATH/CLASS/IMAGE or PATH/SPLIT/CLASS/IMAGE, where SPLIT is train, validation or test"
_NOT_DATA = frozenset(("thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin"))
_NOT_IN_LISTS = re.compile("[\n\r\ud800-\udfff]")  # ends of lines, and what is no UTF-8
_LARGEST_LIST = 1 << 28  # bytes of a CSV: some millions of lines
_LONGEST_HEADING = 1 << 16  # characters of a CSV's first line
_LONGEST_FIELD = 4096  # characters of a path, as Linux has it, or of a label
_CHUNK = 256  # headers a thread reads at a time
_PATIENCE = 2.0  # seconds before progress is told

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileRecords:
    """A split's images, each a file of its own."""

    name: str
    root: str
    paths: tuple[str, ...]  # below root, with /
    classes: np.ndarray  # int32 [N]
    image_shape: tuple[int | None, int | None, int]
    class_by_class: ClassVar[bool] = True  # so that slices are of another order: splits.py

    @property
    def files(self) -> tuple[Path, ...]:
        """Every image."""
        return tuple(Path(self.root, path) for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, record: int) -> Example:
        path = self.paths[record]
        encoded = self._bytes(record)
        try:
            image = decode_any(encoded, self.image_shape[2])
        except ValueError as error:
            raise self._unreadable(record, error) from error
        if any(known not in (None, size) for known, size in zip(self.image_shape, image.shape, strict=True)):
            raise DamagedRecordError(
                f"{self.name}: {path} has changed since the run began: its shape is {image.shape} now; run it again"
            )
        return {"image": image, "label": int(self.classes[record])}

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """int32 [N]."""
        return self.classes

    def identifier(self, record: int) -> str:
        """The path below the set's folder, as `train/cat/001.jpg`."""
        return self.paths[record]

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked."""
        return (self[int(record)] for record in records)

    def encoded(self, records: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The files as they are, in the order asked."""
        return (self._bytes(int(record)) for record in records)

    def _bytes(self, record: int) -> bytes:
        try:
            return read_bytes(os.path.join(self.root, self.paths[record]), limit=FILE_LIMIT)
        except (OSError, ValueError) as error:
            raise self._unreadable(record, error) from error

    def _unreadable(self, record: int, error: Exception) -> DamagedRecordError:
        return DamagedRecordError(
            f"{self.name}: {self.paths[record]} cannot be read ({_reason(error)}); replace or remove it"
        )


@dataclass(frozen=True)
class _File:
    path: str  # below the root, with /
    class_name: str
    where: str = ""  # what a message puts before the path


def open_folder(
    full_name: str,
    root: Path,
    *,
    channels: int | None = None,
    progress: Progress | None = None,
    damaged: bool = False,
    partial: bool = False,
) -> StoredSet:
    """Set of a folder per class, below folders of splits or below `root` itself. For the arguments see open_files."""
    try:
        folders = _contents(root)[0]
        splits = [name for name in folders if name.lower() in SPLITS]
        has_splits = any(_contents(root / name)[0] for name in splits)
        if splits and not has_splits and len(splits) == len(folders):
            raise UserError(f"{full_name}: the images in {splits[0]} lie in no class's folder; {_LAYOUT}")
        if not has_splits:  # a set may have a class that is called train
            listed = {"train": _list_classes(full_name, root, root, "train")}
        else:
            _check_splits(full_name, root, folders, splits)
            listed = {SPLITS[name.lower()]: _list_classes(full_name, root, root / name, name) for name in splits}
            listed = {split: classes for split, classes in listed.items() if classes}
    except OSError as error:
        raise UserError(f"{full_name}: {error.filename} cannot be read: {_reason(error)}") from None
    names = {split: set(classes) for split, classes in listed.items()}
    train = names.get("train", set())
    if len(train) == 1 and not partial:
        (only,) = train
        inner = root / folders[0]
        looks_like_set = not has_splits and sum(_has_images(inner / name) for name in _contents(inner)[0]) > 1
        advice = f"did you mean folder:{inner}?" if looks_like_set else _LAYOUT
        raise UserError(f"{full_name} has only one class, {only!r}; {advice}")
    for split, found in names.items():
        if train and not partial and (missing := _natural(train - found)):
            raise UserError(
                f"{full_name}: {split} has no class {missing[0]!r} ({len(missing)} missing); if it is to have no image "
                f"of it, make an empty folder for it"
            )
    files = {split: [file for files in classes.values() for file in files] for split, classes in listed.items()}
    return open_files(full_name, root, files, channels=channels, progress=progress, damaged=damaged, partial=partial)


def open_csv(
    full_name: str,
    file: Path,
    *,
    channels: int | None = None,
    progress: Progress | None = None,
    damaged: bool = False,
    partial: bool = False,
) -> StoredSet:
    """Set of a CSV: columns path (from the CSV's folder on), label (a name or a number) and, if given, split."""
    listed: dict[str, list[_File]] = {}
    seen: dict[str, tuple[int, str, str]] = {}
    try:
        text = read_text(file, limit=_LARGEST_LIST)
    except UnicodeDecodeError:
        raise UserError(f"{full_name} is not UTF-8; save it as CSV in UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{full_name} cannot be read: {_reason(error)}") from None
    for line, row in _rows(full_name, text):
        split = row["split"].lower()
        if split not in SPLITS:
            raise UserError(f"{full_name}: line {line} has split {row['split']!r}; {nearest(split, SPLITS)}")
        split, label = SPLITS[split], unicodedata.normalize("NFC", row["label"])
        path = _below(file.parent, row["path"].replace("\\", "/"))
        if path in seen:
            before, other, other_split = seen[path]
            what = f"labels {other!r} and {label!r}" if other != label else f"splits {other_split} and {split}"
            raise UserError(f"{full_name}: lines {before} and {line} both list {path} ({what}); keep one")
        seen[path] = line, label, split
        listed.setdefault(split, []).append(_File(path, label, f"line {line}: "))
    if not listed:
        raise UserError(f"{full_name} lists no image; it has a heading and nothing below")
    return open_files(
        full_name, file.parent, listed, channels=channels, progress=progress, damaged=damaged, partial=partial
    )


def open_files(
    full_name: str,
    root: Path,
    listed: dict[str, list[_File]],
    *,
    channels: int | None = None,
    progress: Progress | None = None,
    damaged: bool = False,
    partial: bool = False,
) -> StoredSet:
    """The set of these files.

    Args:
      full_name: of the set, for messages.
      root: below it lie the files.
      listed: the files of each split.
      channels: 1 or 3; none: 1 where every image is grey, else 3.
      progress: told while headers are read, when that takes long.
      damaged: files whose header cannot be read stay in the set; else they are a RunError.
      partial: it is measured on, not learned from: it may have a single class, no train, and in each split others.
    """
    if not listed.get("train") and not partial:
        raise UserError(f"{full_name} has {' and '.join(listed)}, but no train; {_LAYOUT}")
    of_classes = [file for files in listed.values() for file in files] if partial else listed["train"]
    class_names = _natural({file.class_name for file in of_classes})
    if len(class_names) == 1 and not partial:
        raise UserError(f"{full_name} has only one class, {class_names[0]!r}: there is nothing to tell apart")
    numbers = {name: number for number, name in enumerate(class_names)}
    for split, files in listed.items():
        extra = _natural({file.class_name for file in files} - numbers.keys())
        if extra:
            raise UserError(
                f"{full_name}: {split} has class {extra[0]!r}, which train has not; {nearest(extra[0], class_names)}"
            )
    listed = {split: sorted(files, key=lambda f: (numbers[f.class_name], f.path)) for split, files in listed.items()}
    every = [file for files in listed.values() for file in files]
    for file in every:
        if _NOT_IN_LISTS.search(file.path):
            raise UserError(f"{full_name}: the name of {file.path!a} cannot be written in a list; rename it")
    num_bytes, contents, shapes = _read_headers(full_name, root, every, progress, damaged=damaged)
    known = shapes[shapes[:, 2] > 0]
    height, width = (int(known[0, axis]) if len(set(known[:, axis])) == 1 else None for axis in (0, 1))
    image_shape = (height, width, channels or int(known[:, 2].max()))
    splits = {}
    for split, files in listed.items():
        labels = np.array([numbers[file.class_name] for file in files], np.int32)
        paths = tuple(file.path for file in files)
        splits[split] = Split(
            FileRecords(f"{full_name} split {split!r}", str(root), paths, labels, image_shape), np.arange(len(files))
        )
    facts = [(file.path, file.class_name, size) for file, size in zip(every, num_bytes.tolist(), strict=True)]
    sizes = {split: len(files) for split, files in listed.items()}
    fingerprint = fingerprint_of_files("files", sizes, facts, contents=contents)
    return StoredSet(class_names, image_shape, splits, fingerprint, known[:, :2])


def find_path(full_name: str, kind: str, rest: str, data_dir: str | None) -> Path:
    """The folder or file of `kind:REST`, from data_dir on where REST is relative. UserError where it is not there."""
    if not rest:
        raise UserError(f"data.name={full_name!r} names no {kind}; pass --config.data.name={kind}:PATH")
    if "://" in rest or "://" in (data_dir or ""):
        raise UserError(f"{full_name}: files are read at random, which only a local disk serves; copy them first")
    try:
        path = Path(os.path.abspath(user_path(rest, data_dir or "")))
    except ValueError as error:
        raise UserError(f"{full_name[:200]}: {error}; give the path of a {kind}") from None
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{full_name} is a link that leads nowhere")
    if not os.path.exists(path):
        parent = next(above for above in path.parents if os.path.exists(above))
        missing = path.relative_to(parent).parts[0]
        there = [name for name in _names(parent) if name.endswith(f".{kind}") or (parent / name).is_dir()]
        there = [name for name in there if not _is_hidden(name)]
        hint = nearest(missing, there) if there else "nothing like it is there"
        raise UserError(f"{full_name}: there is no {missing!r} in {parent}: {hint}")
    suffix = path.suffix.lower()
    is_file = {**TABLES, **SOURCES}[kind].takes == "FILE"
    if not is_file and not path.is_dir():
        advice = {
            **{f".{other}": f"did you mean {other}:{rest}?" for other in SOURCES if SOURCES[other].takes == "FILE"},
            **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"), "unpack it first"),
        }
        raise UserError(f"{full_name} is a file, not a folder; {advice.get(suffix, _LAYOUT)}")
    if is_file and path.is_dir():
        raise UserError(f"{full_name} is a folder, not a file; did you mean folder:{rest}?")
    if not is_file and path.stat().st_dev in _kernels_devices():
        raise UserError(f"{full_name} is the system's own, where no images lie; name another folder")
    return path


@cache
def _kernels_devices() -> frozenset[int]:
    """Devices of /proc and /sys, which hold no data, and whose links lead everywhere."""
    return frozenset(os.stat(folder).st_dev for folder in ("/proc", "/sys") if os.path.ismount(folder))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


# ---- folders


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        listed = sorted((entry.name, entry.is_dir()) for entry in entries if not _is_hidden(entry.name))
    return [name for name, is_folder in listed if is_folder], [name for name, is_folder in listed if not is_folder]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NOT_DATA


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def image_files(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[str]:
    """Every image file below, told by its suffix: of each folder first its own, sorted. Hidden ones are left out.

    `on_error` is told of each folder that cannot be read.
    """
    return filter(_is_image, _walk(folder, on_error=on_error))


def _raise(error: OSError) -> None:
    raise error


def _walk(
    folder: Path, above: Iterable[tuple[int, int]] = (), *, on_error: Callable[[OSError], None] = _raise
) -> Iterator[str]:
    """Every file below. Links to folders are followed, but none is entered twice, nor one `above`, nor /proc."""
    seen, waiting = set(above), [folder]
    while waiting:
        here = waiting.pop()
        try:
            identity = _identity(here)
            if identity in seen or identity[0] in _kernels_devices():
                continue
            seen.add(identity)
            folders, files = _contents(here)
        except OSError as error:
            on_error(error)
            continue
        yield from (os.path.join(here, name) for name in files)
        waiting += [here / name for name in reversed(folders)]


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _has_images(folder: Path) -> bool:
    return any(map(_is_image, _walk(folder)))


def _check_splits(full_name: str, root: Path, folders: list[str], splits: list[str]) -> None:
    for name in folders:
        if name not in splits and _has_images(root / name):
            raise UserError(
                f"{full_name} has splits ({', '.join(splits)}) and beside them {name!r}, which is none; "
                f"{nearest(name, ('train', 'validation', 'test'))}"
            )
    for name, count in Counter(SPLITS[name.lower()] for name in splits).items():
        if count > 1:
            raise UserError(f"{full_name} has {count} folders for {name}: {', '.join(splits)}; keep one")


def _list_classes(full_name: str, root: Path, folder: Path, split: str) -> dict[str, list[_File]]:
    """The images of each class in a split's folder; none of a test that is published without labels."""
    folders, files = _contents(folder)
    loose = [name for name in files if _is_image(name)]
    above = (_identity(root), _identity(folder))
    classes: dict[str, list[_File]] = {}
    other: list[str] = []
    for name in folders:
        class_name = unicodedata.normalize("NFC", name)
        if class_name in classes:
            raise UserError(f"{full_name} has two folders that are both spelled {class_name!r}; merge them")
        files_below = list(_walk(folder / name, above))
        images = [os.path.relpath(path, root) for path in files_below if _is_image(path)]
        other += [path for path in files_below if not _is_image(path)]
        classes[class_name] = [_File(path.replace(os.sep, "/"), class_name) for path in images]
    if not any(classes.values()):
        if loose and folder != root and SPLITS[split.lower()] == "test":
            _log.warning("%s: %s lies in no class's folders and counts as absent", full_name, split)
            return {}
        if loose:
            raise UserError(
                f"{full_name}: the images in {folder} ({_first_few(loose)}) lie in no class's folder, so they have no "
                f"label; {_LAYOUT}, or list them in a CSV (csv:PATH)"
            )
        raise UserError(f"{full_name}: no images in {folder} ({_other_content([*files, *other], folders)}); {_LAYOUT}")
    empty = [name for name, images in classes.items() if not images]
    if empty and SPLITS.get(split.lower()) == "train":
        files_below = list(_walk(folder / empty[0], above))
        raise UserError(
            f"{full_name}: class {empty[0]!r} of train has no images ({_other_content(files_below, [])}); "
            "fill its folder or remove it"
        )
    if loose:
        _log.warning("%s: %s of %s lie in no class's folder and are left out", full_name, _first_few(loose), split)
    return classes


def _other_content(files: Iterable[str], folders: Iterable[str]) -> str:
    """Words for what a folder without images holds."""
    suffixes = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in files)
    counts = [f"{count:,} {suffix}" for suffix, count in suffixes.most_common(3)]
    counts += [f"folders {_first_few(list(folders))}"] if folders else []
    return f"found {', '.join(counts)}" if counts else "it is empty"


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _natural(names: Iterable[str]) -> tuple[str, ...]:
    """Key of the order that people expect: class2 before class10."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name.casefold())
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name

    return tuple(sorted(names, key=key))


# ---- CSV


def _below(root: Path, path: str) -> str:
    """A path as it is written from `root` on, where it lies below it."""
    path = os.path.normpath(path)
    return os.path.relpath(path, root) if os.path.isabs(path) and Path(path).is_relative_to(root) else path


def _rows(full_name: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number, path, label and split of each row; the heading tells the delimiter: comma, semicolon or tab."""
    lines = io.StringIO(text, newline="")
    delimiter, columns = _heading(full_name, lines.readline())
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the same answer whatever else was read before
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        for values in reader:
            line = reader.line_num + 1
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(columns):
                raise UserError(
                    f"{full_name}: line {line} has {len(values)} fields, not the {len(columns)} of the heading"
                )
            fields = {"split": "train", **dict(zip(columns, values, strict=True))}
            row = {name: _field(full_name, line, name, fields[name]) for name in ("path", "label", "split")}
            yield line, row
    except csv.Error as error:
        raise UserError(f"{full_name}: line {reader.line_num + 1} is no CSV: {short_line(error)}") from None


def _heading(full_name: str, heading: str) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns: path and label are among them, with one delimiter or another."""
    found = {}
    for delimiter in sorted(",;\t", key=heading.count, reverse=True):
        fields = next(csv.reader([heading[:_LONGEST_HEADING]], delimiter=delimiter), [])
        found[delimiter] = [name.strip().lower() for name in fields]
        if {"path", "label"} <= set(found[delimiter]):
            return delimiter, found[delimiter]
    columns = next(iter(found.values()))
    missing = "label" if "path" in columns else "path"
    raise UserError(
        f"{full_name} has no column {missing!r} in its first line; {nearest(missing, filter(None, columns))}"
    )


def _field(full_name: str, line: int, name: str, value: str) -> str:
    """A field without space around it; a label of several lines is written in one."""
    value = re.sub(r"\s*[\r\n\t]\s*", " ", value.strip()) if name == "label" else value.strip()
    if not value:
        raise UserError(f"{full_name}: line {line} has an empty {name}")
    if len(value) > _LONGEST_FIELD:
        raise UserError(
            f"{full_name}: line {line} has a {name} of {len(value):,} characters, more than {_LONGEST_FIELD:,}"
        )
    if control := re.search(r"[\x00-\x1f\x7f-\x9f]", value):
        raise UserError(f"{full_name}: line {line} has the control character {control[0]!r} in its {name}; take it out")
    return value


# ---- headers


def _read_headers(
    full_name: str, root: Path, files: Sequence[_File], progress: Progress | None, *, damaged: bool
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Sizes in bytes, int64 [N], digests, and shapes, int32 [N, 3], of all files: 0 where a header cannot be read."""
    num_bytes, shapes = np.zeros(len(files), np.int64), np.zeros((len(files), 3), np.int32)
    contents = [""] * len(files)
    faults: list[tuple[int, Exception]] = []

    def read_chunk(start: int) -> int:
        for number, each in enumerate(files[start : start + _CHUNK], start=start):
            try:
                with open_regular(os.path.join(root, each.path), limit=FILE_LIMIT) as file:
                    num_bytes[number] = os.fstat(file.fileno()).st_size
                    contents[number] = content_digest(file)
                    shapes[number] = read_header(file)
            except (OSError, ValueError) as error:
                faults.append((number, error))
        return min(start + _CHUNK, len(files))

    begun = time.monotonic()
    with ThreadPoolExecutor(16) as threads:  # most of the time is the disk's, or the network's where that is one
        for done in threads.map(read_chunk, range(0, len(files), _CHUNK)):
            if progress is not None and time.monotonic() - begun > _PATIENCE:
                progress(done, len(files))
    faults.sort(key=lambda fault: fault[0])
    for number, error in faults:
        if isinstance(error, OSError):
            each = files[number]
            raise UserError(f"{full_name}: {each.where}{each.path} cannot be read: {_reason(error)}") from None
    if faults and (not damaged or len(faults) == len(files)):
        named = [f"{files[number].path} ({_reason(error)})" for number, error in faults]
        raise RunError(
            f"{full_name}: {len(faults):,} of {len(files):,} files cannot be read: {_first_few(named)}; "
            "replace or remove them"
        )
    return num_bytes, contents, shapes


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or short_line(error)
