"""A whole set as two arrays, for sets that fit on the device, and the cache of its decoding on disk.

A cache is trusted only while the files it was made from and its own checksums stay the same. It may always be absent:
nothing that goes wrong with it ends a run. Nothing is random here.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.decoding import fit_image, hold_back_threads
from jaxcnn.data.records import (
    DamagedRecordError,
    ImageShape,
    Progress,
    Records,
    Relabelled,
    Source,
    Split,
    example_of,
    label_array,
    label_shape,
    read_or_error,
)
from jaxcnn.files import read_json, to_json, write_atomically
from jaxcnn.fingerprints import changes_here, files_state
from jaxcnn.machine import private_cache

_FORMAT = 3  # raise when decoding or the cache's files change
_CHUNK = 512  # examples a thread decodes at a time
_ALWAYS_WHOLE = 2 << 30  # bytes: sets up to these are decoded whole, for the cache, whatever part is asked for

_log = logging.getLogger(__name__)


def load_examples(
    split: Split, *, image_shape: ImageShape | None, skip_damaged: bool = False, **options: Any
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays [N, ...] of a split in its order, by name, and bool [N]: which examples are valid, not damaged.

    The arrays of a damaged one, which is an error unless `skip_damaged`, are 0 or -1. Options as for `load_arrays`.
    """
    if image_shape is not None:
        images, labels = load_arrays(split, image_shape=image_shape, skip_damaged=skip_damaged, **options)
        valid = np.asarray((labels >= 0).reshape(len(labels), -1).all(axis=1))
        return {"image": images, "label": labels}, valid
    example = example_of(split.records, None)
    valid = np.ones(len(split), bool)
    arrays = {name: np.zeros((len(split), *spec.shape), spec.dtype) for name, spec in example.items()}
    for row, values in enumerate(read_or_error(split.records, split.indices)):
        if isinstance(values, DamagedRecordError):
            if not skip_damaged:
                raise values
            valid[row] = False
            continue
        for name in example:
            arrays[name][row] = values[name]
    return arrays, valid


def load_arrays(
    split: Split,
    *,
    fingerprint: str,
    image_shape: ImageShape,
    cache: bool,
    progress: Progress | None = None,
    skip_damaged: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels int32 [N], or soft ones float32 [N, K], of a split, in its order.

    With a cache all records are decoded, so that the other splits of the same records find them; without, only those
    of the split. Either way each record is decoded once. A damaged one is an error or, with `skip_damaged`, a black
    image with the label -1.
    """
    if isinstance(split.records, Relabelled):  # the cache is of the whole set
        images, labels = load_arrays(
            Split(split.records.whole, split.indices),
            fingerprint=fingerprint,
            image_shape=image_shape,
            cache=cache,
            progress=progress,
            skip_damaged=skip_damaged,
        )
        return images, split.records.relabelled(labels)
    home = private_cache("decoded") if cache and split.records.files else None
    folder = None if home is None else home / _cache_name(split.records, fingerprint, image_shape)
    arrays = None if folder is None else _load_cached(folder, split.records, image_shape)
    if arrays is None:
        whole = len(split.records) * math.prod(image_shape)
        if folder is None or whole > max(_ALWAYS_WHOLE, 2 * len(split) * math.prod(image_shape)):
            return _decode(split.records, split.indices, image_shape, progress, skip_damaged)
        files = changes_here(split.records.files)
        # Damaged records that this split has not are not its concern: those that an exclusion list names, for instance.
        arrays = _decode(split.records, np.arange(len(split.records)), image_shape, progress, skip_damaged=True)
        _save_cached(folder, *arrays, files)
    images, labels = arrays[0][split.indices], arrays[1][split.indices]
    if not skip_damaged:
        for record in split.indices[labels.reshape(len(labels), -1)[:, 0] < 0]:
            split.records[int(record)]  # raises
    return images, labels


def channel_counts(images: np.ndarray) -> np.ndarray:
    """How often each of the 256 levels occurs: [..., C] uint8 to int64 [C, 256]."""
    channels = images.shape[-1]
    pixels = images.reshape(-1, channels)
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(pixels), 1 << 18):  # bincount widens to eight bytes, so a piece that stays in the cache
        for channel, levels in enumerate(pixels[start : start + (1 << 18)].T):
            counts[channel] += np.bincount(levels, minlength=256)
    return counts


def statistics_of_counts(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in 0..1, of int64 [C, 256].

    The deviation is at least one level (1/255), so that a constant channel becomes zeros and not NaN.
    """
    levels = np.arange(256, dtype=np.float64) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(axis=1)
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, in 0..1, over all pixels of uint8 [N, H, W, C]; exact in float64."""
    return statistics_of_counts(channel_counts(images))


def resident_bytes(source: Source) -> int:
    """Size of the decoded set: all splits, all arrays."""
    return sum(len(split) for split in source.splits.values()) * example_bytes(source)


def example_bytes(source: Source) -> int:
    """Size of one decoded example."""
    return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in source.example.values())


def _decode(
    records: Records, indices: np.ndarray, image_shape: ImageShape, progress: Progress | None, skip_damaged: bool
) -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((len(indices), *image_shape), np.uint8)
    labels = label_array(np.full((len(indices), *label_shape(records)), -1), records)

    def decode_chunk(start: int) -> int:
        for offset, example in enumerate(read_or_error(records, indices[start : start + _CHUNK])):
            if isinstance(example, DamagedRecordError):
                if skip_damaged:
                    continue
                raise example
            images[start + offset] = fit_image(example.pop("image"), image_shape)
            labels[start + offset] = example["label"]
        return min(start + _CHUNK, len(indices))

    hold_back_threads()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # OpenCV decodes without holding Python's lock
        starts = range(0, len(indices), _CHUNK)
        try:
            for done in threads.map(decode_chunk, starts):
                if progress is not None:
                    progress(done, len(indices))
        except BaseException:
            threads.shutdown(cancel_futures=True)  # a damaged record ends it now, not after the rest
            raise
    return images, labels


# ---- the cache: one folder a set of records, with images.npy, labels.npy and facts.json


def _cache_name(records: Records, fingerprint: str, image_shape: ImageShape) -> str:
    key = json.dumps([_FORMAT, fingerprint, records.name, files_state(records.files), image_shape])
    readable = "".join(letter if letter.isalnum() else "-" for letter in records.files[0].name.split(".")[0])
    return f"{readable[:100]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _load_cached(folder: Path, records: Records, image_shape: ImageShape) -> tuple[np.ndarray, np.ndarray] | None:
    """The arrays, mapped, not read; none where there is no cache, or it is damaged or of files that changed since."""
    if not folder.exists():
        return None
    try:
        facts = read_json(folder / "facts.json", limit=1 << 10)
        if facts["files"] != changes_here(records.files):
            return None
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        sound = (
            (images.shape, images.dtype) == ((len(records), *image_shape), np.uint8)
            and (labels.shape, labels.dtype) == ((len(records), *label_shape(records)), label_array([], records).dtype)
            and facts["checksums"] == _checksums(images, labels)
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        sound = False
    if not sound:
        _log.warning("the cache of decoded images in %s is damaged; decoding again", folder)
        return None
    return images, labels


def _save_cached(folder: Path, images: np.ndarray, labels: np.ndarray, files: str) -> None:
    """Writes aside, then renames: a reader sees all or nothing, and of two writers the later wins.

    `files`: what changes_here said of them before they were decoded.
    """
    aside = replaced = None
    try:
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        replaced = aside.with_name(f"{aside.name}-replaced")
        np.save(aside / "images.npy", images)
        np.save(aside / "labels.npy", labels)
        facts = {"checksums": _checksums(images, labels), "files": files}
        write_atomically(aside / "facts.json", to_json(facts))
        if folder.exists():  # damaged, of files that changed, or just written by another process
            folder.rename(replaced)
        aside.rename(folder)
    except OSError as error:
        if not folder.exists():  # else another process was faster
            _log.warning("no cache of decoded images: cannot write %s (%s)", folder, error.strerror or error)
    finally:
        for leftover in filter(None, (aside, replaced)):
            shutil.rmtree(leftover, ignore_errors=True)


def _checksums(*arrays: np.ndarray) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(array).data) for array in arrays]
