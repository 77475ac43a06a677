"""Description of a set: counts, sizes, statistics of its pixels, as data and as tables. Reads every record once."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxcnn.data.decoding import fit_image
from jaxcnn.data.facts import in_chunks, label_of
from jaxcnn.data.records import Records, Split, StoredSet, read_or_error
from jaxcnn.data.resident import channel_counts, statistics_of_counts
from jaxcnn.data.splits import Progress
from jaxcnn.errors import RunError

_MOST_CLASSES = 40  # in a table; of more, the largest and the smallest
_BAR = 24  # characters
_SMALL = 1 << 16  # values of an image that is counted together with others


@dataclass(frozen=True)
class Range:
    """Minimum, median and maximum of a number over the images."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class SplitDescription:
    """Description of a split as it is stored; mean and std as a run would see its images."""

    num_images: int
    num_unreadable: int
    class_counts: dict[str, int]
    imbalance: float | None  # largest class / smallest; None where a class has no image
    height: Range  # pixels
    width: Range
    aspect: Range  # width / height
    channels: dict[str, int]  # images of each number of channels
    mean: tuple[float, ...]  # a channel, in 0..1, over all pixels
    std: tuple[float, ...]
    decoded_bytes: int
    file_bytes: int | None  # None where it has no files of its own


@dataclass(frozen=True)
class Description:
    """A whole set."""

    name: str
    fingerprint: str
    num_classes: int
    image_size: int | None  # pixels, to which images were fitted for mean and std
    splits: dict[str, SplitDescription]


def describe(
    name: str, stored: StoredSet, *, image_size: int | None = None, progress: Progress = lambda *_: None
) -> Description:
    """Measures every split; images that cannot be read are counted and left out."""
    names = sorted(stored.splits, key=lambda split_name: split_name != "train")  # which comes first
    splits = {split_name: stored.splits[split_name] for split_name in names if len(stored.splits[split_name])}
    total, done = sum(map(len, splits.values())), 0
    described = {}
    for split_name, split in splits.items():
        parts = []
        for part in in_chunks(split, lambda records, numbers: _measure(records, numbers, stored, image_size)):
            parts.append(part)
            done += part["num_read"] + part["num_unreadable"]
            progress("describing images", done, total)
        described[split_name] = _summary(parts, split, stored)
    return Description(name, stored.fingerprint, len(stored.class_names), image_size, described)


def _measure(records: Records, numbers: np.ndarray, stored: StoredSet, image_size: int | None) -> dict[str, Any]:
    channels = stored.image_shape[2]
    shapes, labels, small = [], [], []
    levels = np.zeros((channels, 256), np.int64)
    unreadable = 0
    for example in read_or_error(records, numbers):
        if isinstance(example, RunError):
            unreadable += 1
            continue
        image = example.pop("image")
        shapes.append(image.shape)
        labels.append(label_of(example))
        if image.shape[2] == channels:
            image = fit_image(image, (image_size, image_size, channels)) if image_size else image
            if image.size > _SMALL:  # one of full size is not kept
                levels += channel_counts(image)
            else:
                small.append(image)
        del image
    together = len({image.shape for image in small}) == 1
    for images in [np.stack(small)] if together else small:  # at once takes a tenth of the time of one by one
        levels += channel_counts(images)
    return {
        "shapes": np.array(shapes, np.int64).reshape(-1, 3),
        "labels": np.array(labels, np.int64),
        "levels": levels,
        "num_read": len(shapes),
        "num_unreadable": unreadable,
    }


def _summary(parts: list[dict[str, Any]], split: Split, stored: StoredSet) -> SplitDescription:
    shapes, labels = (np.concatenate([part[key] for part in parts]) for key in ("shapes", "labels"))
    if not len(shapes):
        raise RunError(f"{split.records.name}: not one of its {len(split):,} images can be read")
    valid = labels[(labels >= 0) & (labels < len(stored.class_names))]
    counts = np.bincount(valid, minlength=len(stored.class_names))
    mean, std = statistics_of_counts(sum(part["levels"] for part in parts))
    numbers, times = np.unique(shapes[:, 2], return_counts=True)
    files = split.records.files
    return SplitDescription(
        num_images=len(split),
        num_unreadable=sum(part["num_unreadable"] for part in parts),
        class_counts=dict(zip(stored.class_names, counts.tolist(), strict=True)),
        imbalance=float(counts.max() / counts.min()) if counts.min() else None,
        height=_range(shapes[:, 0]),
        width=_range(shapes[:, 1]),
        aspect=_range(shapes[:, 1] / shapes[:, 0]),
        channels=dict(zip(map(str, numbers.tolist()), times.tolist(), strict=True)),
        mean=mean,
        std=std,
        decoded_bytes=int(shapes.prod(axis=1).sum()),
        file_bytes=sum(file.stat().st_size for file in files) if files else None,
    )


def _range(values: np.ndarray) -> Range:
    return Range(float(values.min()), float(np.median(values)), float(values.max()))


def as_json(description: Description) -> dict[str, Any]:
    """Plain data."""
    return asdict(description)


def print_tables(console: Console, description: Description) -> None:
    """Prints a table of the splits, then one of the classes with bars of the first split."""
    table = Table(title=f"{description.name}, {description.num_classes} classes", title_justify="left")
    for column in (
        "split",
        "images",
        "width x height",
        "aspect",
        "channels",
        "decoded",
        "on disk",
        "largest / smallest",
    ):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in description.splits.items():
        unreadable = f" ({split.num_unreadable:,} unreadable)" if split.num_unreadable else ""
        table.add_row(
            name,
            f"{split.num_images:,}{unreadable}",
            f"{_shown(split.width)} x {_shown(split.height)}",
            _shown(split.aspect, digits=2),
            ", ".join(split.channels),
            _size(split.decoded_bytes),
            "" if split.file_bytes is None else _size(split.file_bytes),
            "a class is empty" if split.imbalance is None else f"{split.imbalance:.2f}",
        )
    console.print(table)
    console.print(_classes_table(description))
    first_name, first = next(iter(description.splits.items()))
    fitted = f", fitted to {description.image_size} pixels" if description.image_size else ""
    statistics = f"mean ({_numbers(first.mean)}), std ({_numbers(first.std)}) a channel, of pixels in 0..1"
    console.print(f"of {first_name}{fitted}: {statistics}", soft_wrap=True)


def _classes_table(description: Description) -> Table:
    table = Table(
        "class", *(f"{name}" for name in description.splits), "", title="images a class", title_justify="left"
    )
    for column in table.columns[1:-1]:
        column.justify = "right"
    counts = next(iter(description.splits.values())).class_counts
    names = list(counts)
    if len(names) > _MOST_CLASSES:
        by_size = sorted(names, key=lambda name: -counts[name])
        names = by_size[: _MOST_CLASSES // 2] + by_size[-_MOST_CLASSES // 2 :]
        table.title = f"images a class: the {_MOST_CLASSES // 2} largest and the {_MOST_CLASSES // 2} smallest"
    largest = max(counts.values()) or 1
    for name in names:
        bar = "█" * max(round(_BAR * counts[name] / largest), int(counts[name] > 0))
        table.add_row(name, *(f"{split.class_counts[name]:,}" for split in description.splits.values()), bar)
    return table


def _shown(values: Range, digits: int = 0) -> str:
    if values.min == values.max:
        return f"{values.min:.{digits}f}"
    return f"{values.min:.{digits}f}–{values.median:.{digits}f}–{values.max:.{digits}f}"


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
