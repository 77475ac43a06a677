"""Faults of a set of images: how severe they are, what to do about them, and which records to leave out.

Reads only; what it finds is the person's to decide upon.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from jaxcnn.data.duplicates import groups_of_equals, near_pairs
from jaxcnn.data.facts import UNKNOWN_LABEL, Facts, gather
from jaxcnn.data.records import Split, StoredSet
from jaxcnn.data.splits import Progress

HELD_OUT = ("validation", "valid", "val", "test")  # published splits; what a run is measured on, the most trusted last

_NEAR_BLANK = 2.0  # levels of 255: deviation of the grey levels
_GREY = 4  # levels: largest difference between a pixel's channels in a grey image, of which JPEG makes some
_RARE = 0.05  # share of a set below which grey images, or another way to store colours, are remarked upon
_ODD_AREA = 16.0  # times the median, or a part of it
_ODD_ASPECT = 3.0  # the same
_FEW_IMAGES = 10  # a class
_IMBALANCE = 10.0  # largest class / smallest class


@dataclass(frozen=True)
class Kind:
    """Kind of fault: severity, title and remedy."""

    severity: str  # error: fix it before training; warning: look at it; note: good to know
    title: str
    remedy: str


KINDS = {
    "unreadable": Kind("error", "cannot be read or decoded", "replace or exclude: training stops at them"),
    "truncated": Kind("error", "file is damaged, part of the image is missing", "get the file again, or exclude it"),
    "label_range": Kind("error", "label is no class of the set", "correct the label, or exclude"),
    "channels": Kind("error", "another number of channels than the set", "convert the files, or exclude them"),
    "leak": Kind("error", "same picture in two splits", "exclude from train: results on the other split are too good"),
    "label_conflict": Kind("error", "same picture under two labels", "correct the labels, or exclude all of them"),
    "near_leak": Kind("warning", "nearly the same picture in two splits", "look at them; exclude from train"),
    "near_label_conflict": Kind("warning", "nearly the same picture under two labels", "look: one may be mislabelled"),
    "duplicate": Kind("warning", "same picture again in its split", "keep one"),
    "blank": Kind("warning", "every pixel is the same", "replace or exclude"),
    "empty_class": Kind("warning", "class without an image in a split", "add some, or drop the class"),
    "few_images": Kind("warning", f"class of fewer than {_FEW_IMAGES} images", "add some, or merge classes"),
    "near_duplicate": Kind("note", "nearly the same picture again in its split", "harmless in train, unless many"),
    "near_blank": Kind("note", "hardly any contrast", "look at them"),
    "size": Kind("note", f"{_ODD_AREA:g} times smaller or larger than most", "look: icons, thumbnails, scans?"),
    "aspect": Kind("note", f"{_ODD_ASPECT:g} times longer or narrower than most", "look: a crop keeps little of them"),
    "grey": Kind("note", "grey image among coloured ones", "harmless; they may tell a class by its source"),
    "colours": Kind("note", "file stores its colours unlike most", "look: CMYK, alpha and palettes are converted"),
    "imbalance": Kind("note", f"largest class is {_IMBALANCE:g} times the smallest or more", "weight the classes"),
}
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Fault:
    """One finding. Of a pair, `identifier` is the record to look at or leave out, `other` the one it resembles."""

    kind: str
    identifier: str  # empty where it is a class's
    split: str
    label: str
    other: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Result of a check: the faults of a set."""

    num_images: Mapping[str, int]  # by split
    faults: list[Fault] = field(default_factory=list)  # by kind in the order of KINDS

    def counts(self) -> dict[str, int]:
        """Number of faults of each kind that was found."""
        counts = Counter(fault.kind for fault in self.faults)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    @property
    def has_errors(self) -> bool:
        """Whether something must be mended before training."""
        return any(KINDS[fault.kind].severity == "error" for fault in self.faults)


def check(stored: StoredSet, *, false_alarms: float = 1.0, progress: Progress = lambda *_: None) -> Report:
    """Reads every record once, and files that look alike never again.

    Args:
      stored: the set with its own splits.
      false_alarms: among near duplicates, to be expected in all; 0 looks for none.
      progress: told while it reads.
    """
    splits = {name: split for name, split in stored.splits.items() if len(split)}
    facts = gather(splits, progress=lambda done, total: progress("checking images", done, total))
    names = _Names(stored, splits, facts)
    faults = [
        *_damaged(names, facts),
        *_alike(names, facts, false_alarms, progress),
        *_plain(names, facts),
        *_odd_shapes(names, facts),
        *_odd_colours(names, facts),
        *_classes(stored, facts),
    ]
    order = list(KINDS)
    faults.sort(key=lambda fault: order.index(fault.kind))
    return Report({name: len(split) for name, split in splits.items()}, faults)


class _Names:
    """Names of records by their position in the facts."""

    def __init__(self, stored: StoredSet, splits: Mapping[str, Split], facts: Facts):
        self._class_names, self._splits, self._facts = stored.class_names, splits, facts
        self.channels = stored.image_shape[2]
        self.num_classes = len(stored.class_names)

    def split(self, position: int) -> str:
        return self._facts.split_names[self._facts.split[position]]

    def identifier(self, position: int) -> str:
        return self._splits[self.split(position)].records.identifier(int(self._facts.record[position]))

    def label(self, position: int) -> str:
        label = int(self._facts.label[position])
        if label == UNKNOWN_LABEL:
            return ""
        return self._class_names[label] if 0 <= label < self.num_classes else str(label)

    def fault(self, kind: str, position: int, *, other: int | None = None, detail: str = "") -> Fault:
        return Fault(
            kind,
            self.identifier(position),
            self.split(position),
            self.label(position),
            "" if other is None else self.identifier(other),
            detail,
        )

    def encoded(self, position: int) -> bytes | None:
        encoded = getattr(self._splits[self.split(position)].records, "encoded", None)
        return None if encoded is None else next(iter(encoded([int(self._facts.record[position])])))

    def trust(self, position: int) -> tuple[int, int]:
        """Rank of a record among copies: test stays before validation, then train; within a split the first."""
        split = self.split(position)
        return (HELD_OUT.index(split) if split in HELD_OUT else -1, -position)


def _sound(facts: Facts) -> np.ndarray:
    """Mask of the images that are worth comparing with others, bool [N]."""
    sound = facts.shape[:, 0] > 0
    sound[list(facts.damaged)] = False
    return sound


def _damaged(names: _Names, facts: Facts) -> Iterator[Fault]:
    out_of_range = (facts.label != UNKNOWN_LABEL) & ((facts.label < 0) | (facts.label >= names.num_classes))
    for position in np.flatnonzero(out_of_range).tolist():
        detail = f"label {facts.label[position]} of {names.num_classes} classes"
        yield names.fault("label_range", position, detail=detail)
    for position in sorted(facts.unreadable.keys() | facts.damaged.keys()):
        damage = facts.damaged.get(position, "")
        if facts.stored[position] and damage:  # known by the file, for decoders differ in what they let pass
            yield names.fault("truncated", position, detail=damage)
        elif not out_of_range[position]:  # its reader refuses such a label
            yield names.fault("unreadable", position, detail=facts.unreadable.get(position, damage))
    for position in np.flatnonzero(_sound(facts) & (facts.shape[:, 2] != names.channels)).tolist():
        detail = f"{facts.shape[position, 2]} channels, the set has {names.channels}"
        yield names.fault("channels", position, detail=detail)


def _alike(names: _Names, facts: Facts, false_alarms: float, progress: Progress) -> Iterator[Fault]:
    comparable = np.flatnonzero(_sound(facts) & ~facts.constant)
    alone = np.ones(len(comparable), bool)
    for members in groups_of_equals(facts.digest[comparable]):
        first, *rest = sorted(comparable[members].tolist(), key=names.trust, reverse=True)
        alone[members] = comparable[members] == first
        for position in rest:
            same_file = (stored := names.encoded(first)) is not None and stored == names.encoded(position)
            detail = "the same file" if same_file else "the same pixels"
            across = facts.split[position] != facts.split[first]
            yield names.fault("leak" if across else "duplicate", position, other=first, detail=detail)
        for position in (first, *rest):
            unlike = [other for other in (first, *rest) if facts.label[other] != facts.label[position]]
            if unlike:
                detail = f"{names.label(position)} here, {names.label(unlike[0])} there"
                yield names.fault("label_conflict", position, other=unlike[0], detail=detail)
    comparable = comparable[alone & (facts.deviation[comparable] >= _NEAR_BLANK)]
    if false_alarms <= 0:
        return
    progress(f"comparing {len(comparable):,} images", 0, 0)
    pairs = near_pairs(facts.hash[comparable], facts.thumbnail[comparable], false_alarms=false_alarms)
    for pair, correlation, mirrored in zip(
        comparable[pairs.positions].tolist(), pairs.correlation, pairs.mirrored, strict=True
    ):
        other, position = sorted(pair, key=names.trust, reverse=True)
        detail = f"correlation {correlation:.3f}{', mirrored' if mirrored else ''}"
        across = facts.split[position] != facts.split[other]
        yield names.fault("near_leak" if across else "near_duplicate", position, other=other, detail=detail)
        if facts.label[position] != facts.label[other]:
            labels = f"{names.label(position)} here, {names.label(other)} there"
            yield names.fault("near_label_conflict", position, other=other, detail=f"{labels}; {detail}")


def _plain(names: _Names, facts: Facts) -> Iterator[Fault]:
    for position in np.flatnonzero(facts.constant).tolist():
        yield names.fault("blank", position)
    hardly = _sound(facts) & ~facts.constant & (facts.deviation < _NEAR_BLANK)
    for position in np.flatnonzero(hardly).tolist():
        detail = f"grey levels deviate by {facts.deviation[position]:.2f} of 255"
        yield names.fault("near_blank", position, detail=detail)


def _odd_shapes(names: _Names, facts: Facts) -> Iterator[Fault]:
    sound = np.flatnonzero(_sound(facts))
    if not len(sound):
        return
    height, width = facts.shape[sound, 0].astype(float), facts.shape[sound, 1].astype(float)
    for kind, value, limit in (("size", height * width, _ODD_AREA), ("aspect", width / height, _ODD_ASPECT)):
        ratio = value / np.median(value)
        for position in sound[(ratio >= limit) | (ratio <= 1 / limit)].tolist():
            yield names.fault(kind, position, detail=f"{facts.shape[position, 1]} x {facts.shape[position, 0]} pixels")


def _odd_colours(names: _Names, facts: Facts) -> Iterator[Fault]:
    sound = _sound(facts) & (facts.shape[:, 2] == names.channels)
    grey = sound & ~facts.constant & (facts.colour <= _GREY)
    if names.channels == 3 and grey.sum() < _RARE * sound.sum():
        for position in np.flatnonzero(grey).tolist():
            yield names.fault("grey", position, detail=f"stored as {facts.stored[position] or 'an array'}")
    ways = Counter(facts.stored[sound & (facts.stored != "")].tolist())
    for way, count in ways.items():
        if count < _RARE * sound.sum():
            for position in np.flatnonzero((facts.stored == way) & sound & ~grey).tolist():
                yield names.fault("colours", position, detail=f"{way}; most are {ways.most_common(1)[0][0]}")


def _classes(stored: StoredSet, facts: Facts) -> Iterator[Fault]:
    for number, split in enumerate(facts.split_names):
        labels = facts.label[facts.split == number]
        valid = labels[(labels >= 0) & (labels < len(stored.class_names))]
        counts = np.bincount(valid, minlength=len(stored.class_names))
        for name, count in zip(stored.class_names, counts.tolist(), strict=True):
            if count == 0:
                yield Fault("empty_class", "", split, name)
            elif count < _FEW_IMAGES and split not in HELD_OUT:
                yield Fault("few_images", "", split, name, detail=f"{count} images")
        if split not in HELD_OUT and counts.any():
            least = int(np.argmin(np.where(counts, counts, counts.max())))
            most = int(np.argmax(counts))
            if counts[most] >= _IMBALANCE * counts[least]:
                names = stored.class_names
                detail = f"{counts[most]:,} of {names[most]}, {counts[least]:,} of {names[least]}"
                yield Fault("imbalance", "", split, names[least], detail=detail)


# ---- what comes of a report

CLEAN_LIST_WORDS = (
    "Records to leave out, by python -m jaxcnn.data check. Use: --config.data.exclude=THIS_FILE",
    "Splits that results are measured on (validation, test) stay as published, but for what cannot be read, has no",
    "valid label or has another number of channels. Of a picture in two splits, or nearly, train's copy goes; of one",
    "that train has twice the first stays; of one under two labels train's copies all go. Blank ones in train go.",
    "Near duplicates within a split stay.",
)


def to_exclude(report: Report) -> list[tuple[str, str]]:
    """Records to leave out, as (identifier, reason), each once; CLEAN_LIST_WORDS has the rules."""
    always = ("unreadable", "truncated", "label_range", "channels")
    from_train = ("label_conflict", "leak", "near_leak", "duplicate", "blank")
    chosen: dict[str, str] = {}
    for kind in (*always, *from_train):
        for fault in report.faults:
            if fault.kind == kind and (kind in always or fault.split not in HELD_OUT):
                chosen.setdefault(fault.identifier, f"{kind}: {KINDS[kind].title}")
    return list(chosen.items())


def as_csv(faults: Iterable[Fault]) -> str:
    """A row a fault, under its field's names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["severity", *Fault.__dataclass_fields__], lineterminator="\n")
    writer.writeheader()
    for fault in faults:
        writer.writerow({"severity": KINDS[fault.kind].severity, **asdict(fault)})
    return text.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """Plain data: counts and every fault."""
    return {
        "num_images": dict(report.num_images),
        "kinds": {kind: {**asdict(KINDS[kind]), "count": count} for kind, count in report.counts().items()},
        "faults": [asdict(fault) for fault in report.faults],
    }
