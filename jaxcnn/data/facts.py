"""Facts of every record that checking needs, gathered in one pass and small enough to keep: about 500 bytes each.

Images are decoded, measured and let go. Judges nothing.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcnn.data.encoded import inspect
from jaxcnn.data.records import DamagedRecordError, Example, Progress, Records, Split, read_or_error
from jaxcnn.data.streaming import num_cores
from jaxcnn.errors import RunError

UNKNOWN_LABEL = np.iinfo(np.int32).min
THUMBNAIL = 16  # side in pixels; kept of every record, in grey

_CHUNK = 128  # records a thread measures at a time
_MAX_THREADS = 16
_SIDE = 32  # of the picture that hash and thumbnail are made of
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Facts:
    """Arrays over the records of all splits [N], split by split; zeros where an image cannot be read."""

    split_names: tuple[str, ...]
    split: np.ndarray  # int16, into split_names
    record: np.ndarray  # int64, its number in the split's Records
    label: np.ndarray  # int32; UNKNOWN_LABEL where neither the set nor the record says it
    shape: np.ndarray  # int32 [N, 3]: height, width, channels
    digest: np.ndarray  # uint64 [N, 2]: of the decoded pixels
    hash: np.ndarray  # uint64 [N, 2]: perceptual, of the image and of its mirror image
    thumbnail: np.ndarray  # uint8 [N, 16, 16]
    deviation: np.ndarray  # float32, of the grey levels 0..255
    constant: np.ndarray  # bool: every pixel is the same
    colour: np.ndarray  # uint8: the largest difference between a pixel's channels; 0 where there is one
    stored: np.ndarray  # how the file stores colours: "grey", "RGB", "CMYK", …; empty where there is no file
    unreadable: dict[int, str]  # what the reader said, by position
    damaged: dict[int, str]  # what is wrong with the file itself, whether or not the reader is content with it

    def __len__(self) -> int:
        return len(self.split)


def gather(splits: Mapping[str, Split], *, progress: Progress | None = None) -> Facts:
    """Reads every record of the splits once; what cannot be read is a fact, too."""
    total = sum(map(len, splits.values()))
    parts: list[dict[str, Any]] = []
    unreadable: dict[int, str] = {}
    damaged: dict[int, str] = {}
    done = 0
    for number, split in enumerate(splits.values()):
        labels = _labels(split)
        for part in in_chunks(split, _measure):
            size = len(part["record"])
            unreadable |= {done + position: reason for position, reason in part.pop("unreadable").items()}
            damaged |= {done + position: reason for position, reason in part.pop("damaged").items()}
            part["split"] = np.full(size, number, np.int16)
            if labels is not None:
                part["label"] = labels[part["record"]]
            parts.append(part)
            done += size
            if progress is not None:
                progress(done, total)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Facts(split_names=tuple(splits), unreadable=unreadable, damaged=damaged, **arrays)


def in_chunks(split: Split, measure: Callable[[Records, np.ndarray], Any]) -> Iterator[Any]:
    """Results of `measure(records, numbers)` over a split's records, in chunks, in order, by all cores."""
    chunks = [split.indices[start : start + _CHUNK] for start in range(0, len(split), _CHUNK)]
    with ThreadPoolExecutor(min(num_cores(), _MAX_THREADS)) as threads:  # OpenCV works without holding Python's lock
        try:
            yield from threads.map(lambda numbers: measure(split.records, numbers), chunks)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def label_of(example: Example) -> int:
    """Class of a label; of a soft one the likeliest."""
    label = example["label"]
    return int(np.argmax(label) if np.ndim(label) else label)


def _labels(split: Split) -> np.ndarray | None:
    """Labels int32 of all records, soft ones as their likeliest class. None where the records must be read for them."""
    try:
        labels = np.asarray(split.records.labels())
    except RunError:
        return None
    return (labels if labels.ndim == 1 else labels.argmax(axis=1)).astype(np.int32)


def _measure(records: Records, numbers: np.ndarray) -> dict[str, Any]:
    size = len(numbers)
    facts: dict[str, Any] = {
        "record": np.asarray(numbers, np.int64),
        "label": np.full(size, UNKNOWN_LABEL, np.int32),
        "shape": np.zeros((size, 3), np.int32),
        "digest": np.zeros((size, 2), np.uint64),
        "constant": np.zeros(size, bool),
        "stored": np.zeros(size, "U30"),
        "unreadable": {},
        "damaged": {},
    }
    small = np.zeros((size, _SIDE, _SIDE, 3), np.uint8)
    for position, example in enumerate(read_or_error(records, numbers)):
        if isinstance(example, DamagedRecordError):
            facts["unreadable"][position] = str(example)
            continue
        image = example.pop("image")
        facts["label"][position] = label_of(example)
        facts["shape"][position] = image.shape
        facts["digest"][position] = _digest(image)
        small[position] = _small(image)
        if (small[position] == small[position, 0, 0]).all():
            facts["constant"][position] = (image == image[0, 0]).all()
        del image
    for position, stored in enumerate(_stored_files(records, numbers)):
        if stored is not None:
            facts["stored"][position], damage = inspect(stored)
            if damage is not None:
                facts["damaged"][position] = damage
    red, green, blue = np.moveaxis(small, 3, 0)
    brightest, darkest = np.maximum(red, np.maximum(green, blue)), np.minimum(red, np.minimum(green, blue))
    grey = small @ _GREY
    factor = _SIDE // THUMBNAIL
    thumbnails = grey.reshape(size, THUMBNAIL, factor, THUMBNAIL, factor).mean(axis=(2, 4))
    return {
        **facts,
        "hash": perceptual_hashes(grey),
        "thumbnail": thumbnails.round().astype(np.uint8),
        "deviation": grey.std(axis=(1, 2)),
        "colour": (brightest - darkest).max(axis=(1, 2)),
    }


def _stored_files(records: Records, numbers: np.ndarray) -> Iterator[bytes | None]:
    """Files as they are stored; None for one that cannot be read. Nothing where records are no files."""
    encoded = getattr(records, "encoded", None)
    if encoded is None:
        return
    done = 0
    while done < len(numbers):
        try:
            for stored in encoded(numbers[done:]):
                yield stored
                done += 1
        except RunError:
            yield None
            done += 1


def perceptual_hashes(grey: np.ndarray) -> np.ndarray:
    """64 bits of each picture and of its mirror image: float [N, 32, 32] to uint64 [N, 2].

    The signs about their median of the 8 x 8 lowest frequencies of the cosine transform ("pHash", Zauner 2010, section
    3.2.1). Mirrored, the odd ones of the horizontal frequencies change their sign.
    """
    import cv2

    waves = cv2.dct(np.eye(grey.shape[-1], dtype=np.float32), flags=cv2.DCT_ROWS).T[:8]  # a frequency a row
    spectra = waves @ grey @ waves.T
    both = np.stack([spectra, spectra * np.array([1, -1] * 4, np.float32)], axis=1).reshape(len(grey), 2, 64)
    bits = both > np.median(both[:, :, 1:], axis=2, keepdims=True)  # without the first, which is the brightness
    return np.packbits(bits, axis=2).view(np.uint64)[:, :, 0]


def _digest(image: np.ndarray) -> np.ndarray:
    """128 bits of shape and pixels: uint64 [2]."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, salt=repr(image.shape).encode()[:16])
    return np.frombuffer(digest.digest(), np.uint64)


def _small(image: np.ndarray) -> np.ndarray:
    """Image reduced to [32, 32, 3], by the mean over areas."""
    import cv2

    if image.shape[2] in (1, 2):  # grey, and grey with alpha
        image = image[:, :, :1]
    elif image.shape[2] != 3:
        image = image[:, :, :3]
    small = cv2.resize(np.ascontiguousarray(image), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.broadcast_to(small.reshape(_SIDE, _SIDE, -1), (_SIDE, _SIDE, 3))
