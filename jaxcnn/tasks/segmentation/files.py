"""A user's own images and masks, `folder:PATH`.

Every mask is read when the folder is opened, so that what is wrong with one is said before a run begins: a size that is
not its image's, a value that is no class's, a partner that is not there.
"""

import io
import os
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
from jaxcnn.tasks.segmentation.classes import Classes, classes_of, decode_mask, look_at_mask
from jaxcnn.tasks.segmentation.records import MaskedFiles, rarest_classes
from jaxcnn.terminal import short_line

LAYOUT = "expected PATH/images and PATH/masks, or PATH/SPLIT/images and PATH/SPLIT/masks, SPLIT being train or test"
IMAGES, MASKS = ("images",), ("masks", "labels", "annotations")  # folders
_MASK_ENDINGS = ("_mask", "-mask", "_label", "_seg")  # that a mask's name may have beside its image's
_PATIENCE = 2.0  # seconds before progress is told


@dataclass(frozen=True)
class Pair:
    """An image and its mask, paths below the set's folder, with /."""

    image: str
    mask: str


@dataclass(frozen=True)
class Look:
    """What a pass over the files says of a pair."""

    shape: tuple[int, int, int]  # of the image
    digest: str  # of both files
    coloured: bool  # the mask has colours that are no greys
    pixels: dict[int, int]  # of each value of the mask


def read_folder(data: DataConfig, options: SegmentationConfig, root: Path, progress: Progress) -> StoredSet:
    """Images in `images`, masks of the same names in `masks`, below folders of splits or below `root` itself.

    What is wrong with a pair is an error unless damaged ones are skipped, or a list names what is left out, which may
    name it: then reading it is.
    """
    name, tolerant = data.name, data.damaged == "skip" or data.exclude is not None
    listed = {split: _pairs(name, root, *folders) for split, folders in _folders(name, root).items()}
    if "train" not in listed:
        raise UserError(f"{name} has {' and '.join(listed)}, but no train; {LAYOUT}")
    looks = _looks(name, root, [pair for pairs in listed.values() for pair in pairs], tolerant, progress)
    classes = _classes(name, options, root, {pair: looks[pair] for pair in listed["train"] if pair in looks})
    if not tolerant:
        _check_values(name, classes, looks)
    sizes = np.array([look.shape[:2] for look in looks.values()])
    height, width = (int(sizes[0, axis]) if len(set(sizes[:, axis])) == 1 else None for axis in (0, 1))
    channels = data.channels or max(look.shape[2] for look in looks.values())
    stored = StoredSet(classes.names, (height, width, channels), {}, _fingerprint(listed, looks), sizes)
    shape, splits = run_shape(data, stored), {}
    for split, pairs in listed.items():
        images, masks = (tuple(getattr(pair, kind) for pair in pairs) for kind in ("image", "mask"))
        rarest = rarest_classes(_pixels(classes, [looks[pair].pixels if pair in looks else {} for pair in pairs]))
        records = MaskedFiles(f"{name} split {split!r}", shape, classes, rarest, str(root), images, masks)
        splits[split] = Split(records, np.arange(len(pairs)))
    return replace(stored, splits=splits)


def _fingerprint(listed: Mapping[str, list[Pair]], looks: Mapping[Pair, Look]) -> str:
    every = [pair for pairs in listed.values() for pair in pairs]
    counts = {split: len(pairs) for split, pairs in listed.items()}
    facts = [(pair.image, pair.mask) for pair in every]
    return fingerprint_of_files(
        "masks", counts, facts, contents=[looks[pair].digest if pair in looks else "" for pair in every]
    )


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


def _looks(name: str, root: Path, pairs: list[Pair], tolerant: bool, progress: Progress) -> dict[Pair, Look]:
    """What one pass over the files, by threads, says of each pair; of those that can be read, where that is enough.

    Raises RunError.
    """
    looks: dict[Pair, Look] = {}
    faults: list[str] = []
    begun = time.monotonic()
    with ThreadPoolExecutor(num_cores()) as threads:
        for number, (pair, found) in enumerate(zip(pairs, threads.map(partial(_look, root), pairs), strict=True)):
            if isinstance(found, str):
                faults.append(found)
            else:
                looks[pair] = found
            if number % 64 == 0 and time.monotonic() - begun > _PATIENCE:
                progress(f"reading the masks of {name}", number, len(pairs))
    if faults and (not tolerant or not looks):
        more = f"; so is it with {len(faults) - 1:,} more" if len(faults) > 1 else ""
        raise RunError(f"{name}: {faults[0]}{more}; mend or remove them")
    if not any(look.coloured for look in looks.values()):
        return looks
    # Where some have colours, values of the others are colours too: greys, or a palette's entries.
    return {
        pair: look if look.coloured else replace(look, coloured=True, pixels=_pixels_of(root / pair.mask))
        for pair, look in looks.items()
    }


def _look(root: Path, pair: Pair) -> Look | str:
    """What the files of a pair say, or what is wrong with one of them."""
    path = pair.image
    try:
        image = read_bytes(root / path, limit=FILE_LIMIT)
        shape = read_header(io.BytesIO(image))
        path = pair.mask
        encoded = read_bytes(root / path, limit=FILE_LIMIT)
        mask, coloured = look_at_mask(encoded)
        if mask.shape != shape[:2]:
            (height, width), (of_image, beside) = mask.shape, shape[:2]
            raise ValueError(f"it is {width} x {height} pixels, and its image {beside} x {of_image}; make them alike")
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or short_line(error)})"
    except ValueError as error:
        return f"{path}: {short_line(error)}"
    digest = content_digest(io.BytesIO(image)) + content_digest(io.BytesIO(encoded))
    return Look(shape, digest, coloured, _counted(mask))


def _counted(mask: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(mask, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _pixels_of(file: Path) -> dict[int, int]:
    return _counted(decode_mask(read_bytes(file, limit=FILE_LIMIT), coloured=True))


def _classes(name: str, options: SegmentationConfig, root: Path, of_train: Mapping[Pair, Look]) -> Classes:
    found: Counter[int] = Counter()
    for look in of_train.values():
        found.update(look.pixels)
    return classes_of(name, options, root, found, coloured=any(look.coloured for look in of_train.values()))


def _check_values(name: str, classes: Classes, looks: Mapping[Pair, Look]) -> None:
    """Raises UserError where a mask has a value that is no class's."""
    for pair, look in looks.items():
        if unknown := classes.unknown(list(look.pixels)):
            raise UserError(
                f"{name}: {pair.mask} has {look.pixels[unknown[0]]:,} pixels of {classes.shown(unknown[0])}, which is "
                f"no class's; there are {_first_few(classes)}; mend the mask, or name the class in classes.txt"
            )


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
