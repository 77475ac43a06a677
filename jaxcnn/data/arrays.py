"""A user's own arrays: `npz:PATH`, as Keras (x_train, y_train, …) and MedMNIST (train_images, …) write them."""

import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxcnn.data.decoding import with_channels
from jaxcnn.data.records import Example, Progress, Split, StoredSet
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.files import open_regular
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.terminal import short_line

# Where the images and what is said of them may stand; {} is the split's name, and without it a set has no splits.
Names = tuple[tuple[str, str], ...]
LABELS: Names = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("images", "labels"), ("x", "y"))
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_CLASS_NAMES = "class_names"  # may stand in the file too

_MOST_CLASSES = 100_000  # or as many as there are images
_ALWAYS_TAKEN = 1 << 30  # bytes of arrays, however small the file
_SUM_TOLERANCE = 1e-3  # of a soft label's shares
_EXACT = 1e-3  # levels by which float32 misses
_EXACT_FLOAT16 = 0.13


@dataclass(frozen=True)
class ArrayRecords:
    """A split's images and labels."""

    name: str
    split: str
    images: np.ndarray  # uint8 [N, H, W, C]
    targets: np.ndarray  # int32 [N], or soft: float32 [N, K]
    files: tuple[Path, ...] = ()  # none: nothing is decoded that a cache could keep

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a label: () or (K,)."""
        return self.targets.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, record: int) -> Example:
        target = self.targets[record]
        return {"image": self.images[record], "label": target if target.ndim else int(target)}

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """Labels int32 [N], or soft float32 [N, K]."""
        return self.targets

    def identifier(self, record: int) -> str:
        """`SPLIT:NUMBER`."""
        return f"{self.split}:{record}"

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked."""
        return (self[int(record)] for record in records)


def open_npz(full_name: str, file: Path, *, channels: int | None = None, partial: bool = False) -> StoredSet:
    """Images uint8 [N, H, W] or [N, H, W, C], or floats that are exactly levels of 8 bits; labels int or one-hot.

    Labels float [N, K] whose rows sum to one stay soft. `partial`: it is measured on, not learned from: as open_files.
    """
    keys, read = load_pairs(full_name, file, LABELS, partial=partial)
    names = read[_CLASS_NAMES].tolist() if _CLASS_NAMES in read else None
    arrays = {split: (read.pop(images), read.pop(labels)) for split, (images, labels) in keys.items()}
    scale = scale_of([images for images, _ in arrays.values()])
    targets = {split: _targets(full_name, keys[split][1], labels) for split, (_, labels) in arrays.items()}
    labelled = {keys[split][1]: targets[split] for split in keys}
    class_names = _class_names(full_name, names, labelled, partial=partial)
    splits, facts = {}, []
    for split, (key, _) in keys.items():
        images, labels = levels(full_name, key, arrays.pop(split)[0], scale), targets[split]
        contents = [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in (images, labels)]
        facts.append((split, images.shape, contents))
        images = images if channels is None else with_channels(images, channels)
        splits[split] = Split(
            ArrayRecords(f"{full_name} split {split!r}", split, images, labels), np.arange(len(labels))
        )
    shapes = {split.records.images.shape[1:] for split in splits.values()}  # type: ignore[attr-defined]
    if len(shapes) > 1:
        raise UserError(
            f"{full_name}: its splits have images of other shapes: {' and '.join(map(str, sorted(shapes)))}"
        )
    return StoredSet(class_names, shapes.pop(), splits, fingerprint_of("npz", class_names, facts))


def scale_of(images: Sequence[np.ndarray]) -> int:
    """What the images of all splits are multiplied by to be levels: 255 where they are floats up to 1."""
    brightest = max((float(each.max()) for each in images if each.dtype.kind == "f"), default=0.0)
    return 255 if brightest <= 1 else 1


def load_pairs(
    full_name: str, file: Path, names: Names, *, partial: bool = False
) -> tuple[dict[str, tuple[str, str]], dict[str, np.ndarray]]:
    """Names of each split's images and of what is said of them, and the arrays under these names; class names are str.

    Raises UserError, RunError.
    """
    try:
        with open_regular(file) as opened:
            if not zipfile.is_zipfile(opened):
                raise RunError(f"{full_name} is no npz file, or damaged; save it again by np.savez(images=…, labels=…)")
            archive = zipfile.ZipFile(opened)
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            keys = _find_keys(full_name, list(members), names, partial=partial)
            used = {name for pair in keys.values() for name in pair} | ({_CLASS_NAMES} & members.keys())
            headers = {name: _header(archive, members[name]) for name in used}
            _check_headers(full_name, keys, headers, file.stat().st_size)
            arrays = {name: _read(archive, members[name]) for name in used}
            if _CLASS_NAMES in arrays:
                arrays[_CLASS_NAMES] = _as_text(arrays[_CLASS_NAMES])
            return keys, arrays
    except OSError as error:
        raise UserError(f"{full_name} cannot be read: {error.strerror or short_line(error)}") from None
    except (ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise RunError(f"{full_name} is damaged ({short_line(error)}); save it again") from error


def _header(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """Shape and dtype of a stored array, as an array that takes no memory. ValueError where its size does not fit."""
    with archive.open(member) as file:
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        try:
            shape, _, dtype = read[np.lib.format.read_magic(file)[0]](file)
        except Exception as error:  # numpy parses it as Python, whose tokenizer has errors of its own
            raise ValueError(f"{member} begins with no header: {short_line(error)}") from None
        length = archive.getinfo(member).file_size - file.tell()
    hollow = np.broadcast_to(np.zeros((), dtype), shape)
    if hollow.nbytes != length and not dtype.hasobject:
        raise ValueError(f"{member} says that it has {hollow.nbytes:,} bytes, and has {length:,}")
    return hollow


def _read(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as file:
        return np.asarray(np.lib.format.read_array(file))  # which refuses Python objects


def _as_text(array: np.ndarray) -> np.ndarray:
    """Names as str [K]. ValueError where a character is none of Unicode's, or half of one."""
    names = np.ascontiguousarray(array.astype(str))
    if (names.view(np.uint32) > sys.maxunicode).any():
        raise ValueError(f"{_CLASS_NAMES} is no text")
    "".join(names.tolist()).encode()
    return names


def _check_headers(
    full_name: str, keys: dict[str, tuple[str, str]], headers: dict[str, np.ndarray], file_size: int
) -> None:
    """Checks the headers before anything is unpacked: an array made to fill the memory shrinks a thousandfold."""
    if any(header.dtype.hasobject for header in headers.values()):
        raise UserError(f"{full_name} holds Python objects; save plain arrays: images uint8, labels int")
    for images, labels in keys.values():
        _check_images(full_name, images, headers[images])
        number, other = len(headers[images]), (headers[labels].shape or (0,))[0]
        if number != other:
            raise UserError(f"{full_name}: {images} has {number:,} images, but {labels} has {other:,} labels")
    names = headers.get(_CLASS_NAMES)
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "Uiu"):
        raise UserError(f"{full_name}: {_CLASS_NAMES} is {names.dtype} of shape {names.shape}; expected str [K]")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = sum(header.nbytes for header in headers.values())
    most = min(max(_ALWAYS_TAKEN, 100 * file_size), memory // 2)
    if size > most:
        raise UserError(
            f"{full_name} unpacks from {file_size:,} to {size:,} bytes; at most {most:,} are taken here (half of the "
            "memory, a hundred times the file): save the images as files"
        )


def _find_keys(full_name: str, found: Sequence[str], names: Names, *, partial: bool) -> dict[str, tuple[str, str]]:
    """The names of each split's images and labels."""
    pairs = [
        (split, images.format(spelling), labels.format(spelling))
        for images, labels in names
        for split, spellings in (_SPLITS.items() if "{}" in images else [("train", ("",))])
        for spelling in spellings
    ]
    keys: dict[str, tuple[str, str]] = {}
    for split, images, labels in pairs:
        if images in found and labels in found:
            keys.setdefault(split, (images, labels))
    known = {name for _, *pair in pairs for name in pair}
    unpaired = [name for name in found if name in known and not any(name in pair for pair in keys.values())]
    if ("train" not in keys and not (partial and keys)) or unpaired:
        odd = [name for name in found if name not in known and name != _CLASS_NAMES] or unpaired or [""]
        raise UserError(
            f"{full_name} has {', '.join(found) or 'no arrays'}; expected {_words(names)}; {odd[0]!r}: "
            f"{nearest(odd[0], known)}"
        )
    return keys


def _words(names: Names) -> str:
    said = [" and ".join(each.format("train") for each in pair) for pair in names[:3]]
    return f"{', '.join(said[:-1])}, or {said[-1]}"


def _check_images(full_name: str, key: str, array: np.ndarray) -> None:
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise UserError(f"{full_name}: {key} is {array.dtype}; save it as uint8")
    if array.ndim not in (3, 4) or 0 in shape:
        raise UserError(f"{full_name}: {key} has shape {shape}; expected [N, H, W] or [N, H, W, C]")
    if array.ndim == 4 and shape[3] not in (1, 3):
        advice = "save it transposed by (0, 2, 3, 1)" if shape[1] in (1, 3) else "the last is 1 or 3 channels"
        raise UserError(f"{full_name}: {key} has shape {shape}; expected [N, H, W, C]: {advice}")


def levels(full_name: str, key: str, array: np.ndarray, scale: int) -> np.ndarray:
    """Images uint8 [N, H, W, C], from values that are exact levels after `scale`."""
    array = array if array.ndim == 4 else array[..., None]
    if array.dtype == np.uint8:
        return array
    scale = scale if array.dtype.kind == "f" else 255 if array.dtype == bool else 1
    tolerance = _EXACT if array.dtype != np.float16 else _EXACT_FLOAT16
    result = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), 1024):  # in pieces, as each takes eight times its memory
        piece = array[start : start + 1024].astype(np.float64) * scale
        rounded = np.round(piece)
        if not (np.abs(piece - rounded).max() <= tolerance and rounded.min() >= 0 and rounded.max() <= 255):  # nor NaN
            raise UserError(
                f"{full_name}: {key} is {array.dtype} from {array.min():g} to {array.max():g}, which is not exactly 8 "
                "bits a level (0 to 255, or those / 255); save the uint8 that it was made from"
            )
        result[start : start + 1024] = rounded
    return result


def _targets(full_name: str, key: str, array: np.ndarray) -> np.ndarray:
    """Labels int32 [N], from [N], [N, 1] or one-hot [N, K]; float32 [N, K] where they are soft."""
    if array.dtype.kind not in "buif" or array.ndim not in (1, 2) or 0 in array.shape:
        raise UserError(
            f"{full_name}: {key} is {array.dtype} of shape {array.shape}; expected int [N] or [N, 1], or [N, K] whose "
            "rows sum to one"
        )
    if array.ndim == 2 and array.shape[1] > 1:
        shares = array.astype(np.float32)
        if not (shares.min() >= 0 and np.abs(shares.sum(axis=1) - 1).max() <= _SUM_TOLERANCE):
            raise UserError(f"{full_name}: {key} has rows that do not sum to one; one label an image is expected")
        return shares.argmax(axis=1).astype(np.int32) if (shares.max(axis=1) == 1).all() else shares
    labels = array.reshape(-1)
    if not (labels == np.floor(labels)).all() or labels.min() < 0 or labels.max() >= 2**31:
        raise UserError(f"{full_name}: {key} has values from {labels.min()} to {labels.max()}; expected 0, 1, 2, …")
    return labels.astype(np.int32)


def _class_names(
    full_name: str, given: list[str] | None, targets: dict[str, np.ndarray], *, partial: bool
) -> tuple[str, ...]:
    """Class names of the file, else the numbers of train's labels; `partial`: of all. `targets` has train first."""
    counts = {key: array.shape[1] if array.ndim == 2 else int(array.max()) + 1 for key, array in targets.items()}
    train, count = next(iter(counts.items()))
    count = max(counts.values()) if partial else count
    if count > (most := max(_MOST_CLASSES, *map(len, targets.values()))):
        raise UserError(
            f"{full_name}: a label of {train} is {count - 1:,}, as of more than {most:,} classes; number them from 0 on"
        )
    names = given if given is not None else [str(number) for number in range(count)]
    if len(set(names)) < len(names) or len(names) < count:
        raise UserError(f"{full_name}: {_CLASS_NAMES} has {len(set(names))} names for {count} classes")
    if len(names) < 2 and not partial:
        raise UserError(f"{full_name}: {train} has only one class: there is nothing to tell apart")
    for key, array in targets.items():
        if counts[key] > len(names) or (array.ndim == 2 and array.shape[1] != len(names)):
            raise UserError(f"{full_name}: {key} has {counts[key]} classes, {train} {len(names)}")
    return tuple(names)
