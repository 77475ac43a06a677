"""A user's own images and masks, `folder:PATH`.

Every mask is read when the folder is opened, so that what is wrong with one is said before a run begins: a size that is
not its image's, a value that is no class's, a partner that is not there.
"""

import io
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxcnn.config import DataConfig, SegmentationConfig
from jaxcnn.data.decoding import FILE_LIMIT, read_header
from jaxcnn.data.folder import SPLITS, image_files
from jaxcnn.data.records import Split, StoredSet
from jaxcnn.data.sources import run_shape
from jaxcnn.data.splits import Progress
from jaxcnn.data.streaming import num_cores
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.files import read_bytes
from jaxcnn.fingerprints import content_digest, fingerprint_of_files
from jaxcnn.tasks.segmentation.classes import Classes, classes_of, decode_mask, is_coloured
from jaxcnn.tasks.segmentation.records import MaskedFiles, rarest_classes
from jaxcnn.terminal import short_line

LAYOUT = "expected PATH/images and PATH/masks, or PATH/SPLIT/images and PATH/SPLIT/masks, SPLIT being train or test"
IMAGES, MASKS = ("images",), ("masks", "labels", "annotations")  # folders
_MASK_ENDINGS = ("_mask", "-mask", "_label", "_seg")  # that a mask's name may have beside its image's
_PATIENCE = 2.0  # seconds before progress is told

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """An image and its mask, paths below the set's folder, with /."""

    image: str
    mask: str


def read_folder(data: DataConfig, options: SegmentationConfig, root: Path, progress: Progress) -> StoredSet:
    """Images in `images`, masks of the same names in `masks`, below folders of splits or below `root` itself."""
    listed = {split: _pairs(data.name, root, *folders) for split, folders in _folders(data.name, root).items()}
    if "train" not in listed:
        raise UserError(f"{data.name} has {' and '.join(listed)}, but no train; {LAYOUT}")
    every = [pair for pairs in listed.values() for pair in pairs]
    read = partial(_for_each, data.name, every, progress=progress)
    headers = read(partial(_header, root), what="reading the headers")
    coloured = any(read(partial(_is_coloured, root), what="reading the masks"))
    values = read(partial(_values, root, coloured=coloured, shapes=[shape for shape, _ in headers]), what="checking")
    classes = _classes(data.name, options, root, dict(zip(every, values, strict=True)), listed, coloured=coloured)
    sizes = np.array([shape[:2] for shape, _ in headers])
    height, width = (int(sizes[0, axis]) if len(set(sizes[:, axis])) == 1 else None for axis in (0, 1))
    channels = data.channels or max(shape[2] for shape, _ in headers)
    stored = StoredSet(classes.names, (height, width, channels), {}, "", sizes)
    shape, pixels = run_shape(data, stored), _pixels(classes, values)
    splits, start = {}, 0
    for split, pairs in listed.items():
        of_split = pixels[start : start + len(pairs)]
        start += len(pairs)
        images, masks = (tuple(getattr(pair, name) for pair in pairs) for name in ("image", "mask"))
        name = f"{data.name} split {split!r}"
        records = MaskedFiles(name, shape, classes, rarest_classes(of_split), str(root), images, masks)
        splits[split] = Split(records, np.arange(len(pairs)))
    facts = [(pair.image, pair.mask) for pair in every]
    counts = {split: len(pairs) for split, pairs in listed.items()}
    fingerprint = fingerprint_of_files("masks", counts, facts, contents=[digest for _, digest in headers])
    return StoredSet(classes.names, (height, width, channels), splits, fingerprint, sizes)


# ---- what there is


def _folders(name: str, root: Path) -> dict[str, tuple[Path, Path]]:
    """Of each split the folders of its images and of its masks."""

    def both(folder: Path, below: str = "") -> tuple[Path, Path] | None:
        images, masks = (
            next((folder / each / below for each in names if (folder / each / below).is_dir()), None)
            for names in (IMAGES, MASKS)
        )
        return None if images is None or masks is None else (images, masks)

    try:
        inner = [each.name for each in sorted(root.iterdir(), key=lambda each: each.name) if each.is_dir()]
        beside = both(root)
        below = [each.name for each in sorted(beside[0].iterdir()) if each.is_dir()] if beside else []
    except OSError as error:
        raise UserError(f"{name}: {error.filename} cannot be read: {error.strerror}") from None
    by_split = {each: both(root / each) for each in inner if each.lower() in SPLITS}
    if beside is not None and below and all(each.lower() in SPLITS for each in below):
        by_split = {each: both(root, each) for each in below}  # images/train, masks/train
    elif beside is not None:
        by_split = {"train": beside}
    found: dict[str, tuple[Path, Path]] = {}
    for each, folders in by_split.items():
        if folders is None:
            raise UserError(f"{name}: {each} has no {IMAGES[0]} or no {MASKS[0]}; {LAYOUT}")
        if SPLITS[each.lower()] in found:
            raise UserError(f"{name} has two folders for {SPLITS[each.lower()]}; keep one")
        found[SPLITS[each.lower()]] = folders
    if not found:
        missing = next((each for each in (*IMAGES, MASKS[0]) if each not in inner), MASKS[0])
        raise UserError(f"{name} has no folder {missing!r}; {nearest(missing, inner) if inner else LAYOUT}; {LAYOUT}")
    return found


def _pairs(name: str, root: Path, images: Path, masks: Path) -> list[Pair]:
    """Images with the mask of each. Raises UserError where one of the two is not there."""

    def listed(folder: Path) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in image_files(folder, _unreadable):
            stem = os.path.splitext(os.path.relpath(path, folder))[0].replace(os.sep, "/")
            below = os.path.relpath(path, root).replace(os.sep, "/")
            if stem in found:
                raise UserError(f"{name}: {found[stem]} and {below} have one name; keep one of them")
            found[stem] = below
        return found

    of_images, of_masks = listed(images), listed(masks)
    for ending in _MASK_ENDINGS:
        for stem in [stem for stem in of_masks if stem.endswith(ending) and stem not in of_images]:
            of_masks.setdefault(stem.removesuffix(ending), of_masks.pop(stem))
    if not of_images:
        raise UserError(f"{name} has no images in {images}; {LAYOUT}")
    for mine, theirs, what, other in ((of_images, of_masks, "mask", masks), (of_masks, of_images, "image", images)):
        if missing := [mine[stem] for stem in mine if stem not in theirs]:
            more = f", nor have {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise UserError(f"{name}: {missing[0]} has no {what} of its name in {other.name}{more}; add it, or take "
                            "the other out")  # fmt: skip
    return [Pair(of_images[stem], of_masks[stem]) for stem in sorted(of_images)]


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")


# ---- what is in the files


def _for_each(
    name: str, pairs: list[Pair], read: Callable[[int, Pair], T], *, what: str, progress: Progress
) -> list[T]:
    """What `read` says of each pair, by threads. Raises RunError, naming the first few that cannot be read."""
    faults: list[str] = []

    def tried(number: int) -> T | None:
        try:
            return read(number, pairs[number])
        except (OSError, ValueError) as error:
            faults.append(getattr(error, "strerror", None) or short_line(error))
            return None

    found, begun = [], time.monotonic()
    with ThreadPoolExecutor(num_cores()) as threads:
        for number, each in enumerate(threads.map(tried, range(len(pairs)))):
            found.append(each)
            if number % 64 == 0 and time.monotonic() - begun > _PATIENCE:
                progress(f"{what} of {name}", number, len(pairs))
    if faults:
        more = f"; so is it with {len(faults) - 1:,} more" if len(faults) > 1 else ""
        raise RunError(f"{name}: {faults[0]}{more}; mend or remove them")
    return found  # type: ignore[return-value]


def _named(path: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or short_line(error)})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {short_line(error)}") from None


def _header(root: Path, number: int, pair: Pair) -> tuple[tuple[int, int, int], str]:
    """Shape of an image, and a digest of it and of its mask."""

    def read() -> tuple[tuple[int, int, int], str]:
        encoded = read_bytes(root / pair.image, limit=FILE_LIMIT)
        mask = read_bytes(root / pair.mask, limit=FILE_LIMIT)
        digest = content_digest(io.BytesIO(encoded)) + content_digest(io.BytesIO(mask))
        return read_header(io.BytesIO(encoded)), digest

    return _named(pair.image, read)


def _is_coloured(root: Path, number: int, pair: Pair) -> bool:
    return _named(pair.mask, lambda: is_coloured(read_bytes(root / pair.mask, limit=FILE_LIMIT)))


def _values(
    root: Path, number: int, pair: Pair, *, coloured: bool, shapes: list[tuple[int, int, int]]
) -> dict[int, int]:
    """Pixels of each value of a mask."""

    def read() -> dict[int, int]:
        mask = decode_mask(read_bytes(root / pair.mask, limit=FILE_LIMIT), coloured=coloured)
        height, width, _ = shapes[number]
        if mask.shape != (height, width):
            raise ValueError(
                f"it is {mask.shape[1]} x {mask.shape[0]} pixels, and its image {width} x {height}; make them alike"
            )
        values, counts = np.unique(mask, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    return _named(pair.mask, read)


def _classes(
    name: str,
    options: SegmentationConfig,
    root: Path,
    values: Mapping[Pair, Mapping[int, int]],
    listed: Mapping[str, list[Pair]],
    *,
    coloured: bool,
) -> Classes:
    """The set's classes, which every mask's values are of. Raises UserError."""
    found: Counter[int] = Counter()
    for pair in listed["train"]:
        found.update(values[pair])
    classes = classes_of(name, options, root, found, coloured=coloured)
    for pair, of_mask in values.items():
        if unknown := classes.unknown(list(of_mask)):
            raise UserError(
                f"{name}: {pair.mask} has {of_mask[unknown[0]]:,} pixels of {classes.shown(unknown[0])}, which is no "
                f"class's; there are {_first_few(classes)}; mend the mask, or name the class in classes.txt"
            )
    return classes


def _first_few(classes: Classes) -> str:
    shown = [f"{classes.shown(value)} ({label})" for label, value in zip(classes.names, classes.values, strict=True)]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _pixels(classes: Classes, values: list[dict[int, int]]) -> np.ndarray:
    """Pixels of each class in each mask, int64 [N, K]."""
    place = {value: number for number, value in enumerate(classes.values)}
    pixels = np.zeros((len(values), len(classes)), np.int64)
    for row, of_mask in enumerate(values):
        for value, count in of_mask.items():
            if value in place:
                pixels[row, place[value]] = count
    return pixels
