"""Texts with their classes, as people have them: CSV files, folders of `class/*.txt`, sets that TFDS has prepared.

Each source is a function here, named by an entry of config/choices.py:TEXTS. What is wrong with a file is said in one
line, with the line or the file it is about.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxcnn.config import DataConfig, TextConfig
from jaxcnn.config.choices import TEXTS
from jaxcnn.data.folder import SPLITS, find_path
from jaxcnn.data.records import Example, Split
from jaxcnn.data.records import Progress as Counter
from jaxcnn.data.tfds_texts import read_tfds_texts
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import read_text
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.tasks.tabular.table import open_csv
from jaxcnn.terminal import short_line

LARGEST_FILE = 64 << 20  # bytes of a text file
LAYOUT = "expected PATH/CLASS/TEXT.txt or PATH/SPLIT/CLASS/TEXT.txt, where SPLIT is train, validation or test"
Row = tuple[str, str, str]  # what it is called, the text, its class


@dataclass(frozen=True)
class TextRecords:
    """Texts of a split as they are stored, in memory."""

    name: str
    texts: tuple[str, ...]
    classes: np.ndarray  # int32 [n]
    identifiers: tuple[str, ...]
    class_by_class: bool = True  # they may stand so, and slices are of another order: data/splits.py
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, record: int) -> Example:
        return {"text": self.texts[record], "label": int(self.classes[record])}

    def labels(self, progress: Counter | None = None) -> np.ndarray:
        """Classes, int32 [n]."""
        return self.classes

    def identifier(self, record: int) -> str:
        """`line:7` of a CSV, `train/pos/7.txt` of a folder, `train:7` of a set of TFDS."""
        return self.identifiers[record]

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked."""
        return (self[int(record)] for record in records)


@dataclass(frozen=True)
class StoredTexts:
    """A set of texts as it is stored, before a run chooses its splits."""

    class_names: tuple[str, ...]
    splits: dict[str, Split]  # as the source names them, each with TextRecords of its own
    fingerprint: str


def open_texts(data: DataConfig, options: TextConfig) -> StoredTexts:
    """The set that data.name means. Raises UserError, RunError."""
    kind, colon, rest = data.name.partition(":")
    if kind not in TEXTS or not colon or (TEXTS[kind].takes == "NAME" and not rest):
        valid = [f"{name}:{'NAME' if each.takes == 'NAME' else 'PATH'}" for name, each in TEXTS.items()]
        is_folder = not colon and os.path.isdir(data.name)
        guess = "folder" if is_folder else "csv" if data.name.lower().endswith(".csv") else None
        if not colon and guess:
            raise UserError(f"data.name={data.name!r} says not of what kind it is: did you mean {guess}:{data.name}?")
        raise UserError(f"data.name={data.name!r} is no known set of texts: one of {', '.join(valid)}")
    where = rest if TEXTS[kind].takes == "NAME" else find_path(data.name, kind, rest, data.dir)
    stored: StoredTexts = TEXTS[kind].load()(data, options, where)
    if "train" not in stored.splits:
        raise UserError(f"{data.name} has {' and '.join(stored.splits)}, but no train; {LAYOUT}")
    if len(stored.class_names) < 2:
        raise UserError(f"{data.name}: all texts are {stored.class_names[0]!r}: there is nothing to tell apart")
    return stored


# ---- the sources: (DataConfig, TextConfig, what stands after the colon) -> StoredTexts


def read_csv(data: DataConfig, options: TextConfig, file: Path) -> StoredTexts:
    """A CSV file: columns of the text, of its class and, if there is one, `split`."""
    listed: dict[str, list[Row]] = {}
    for line, cells in csv_rows(file, options.column or "text", options.label):
        text, label, split = cells
        if not label.strip():
            raise UserError(f"{file}, line {line:,}, column {options.label!r} is empty; give the text a class")
        if split.lower() not in SPLITS:
            raise UserError(f"{file}, line {line:,}, has the split {split!r}; {nearest(split, SPLITS)}")
        listed.setdefault(SPLITS[split.lower()], []).append((f"line:{line}", text, label.strip()))
    if not listed:
        raise UserError(f"{file} has a header and no rows")
    return _stored(data.name, listed)


def csv_rows(file: Path, column: str, label: str | None) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Of each row its line, and (text, label, split). Raises UserError.

    `label`: the column's name; none: there need be no labels, and they are "".
    """
    header, rows = open_csv(file)
    for name in filter(None, (column, label)):
        if name not in header:
            field = "column" if name == column else "label"
            raise UserError(f"{file} has no column {name!r}; {nearest(name, header)} (text.{field} names it)")
    places = {name: place for place, name in enumerate(header)}
    of_split = places.get("split") if label is not None and "split" not in (column, label) else None
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{file}, line {line:,}, has {len(cells)} cells, and the header {len(header)}; mend it")
        split = "train" if of_split is None else cells[of_split].strip()
        yield line, (cells[places[column]], "" if label is None else cells[places[label]], split)


def read_folder(data: DataConfig, options: TextConfig, root: Path) -> StoredTexts:
    """A folder a class, below folders of splits or below `root` itself; each text a file of its own."""
    folders = _folders(root)
    splits = [name for name in folders if name.lower() in SPLITS]
    if splits and not any(_folders(root / name) for name in splits):
        splits = []  # a class may be called train
    if splits and len(splits) < len(folders):
        other = next(name for name in folders if name not in splits)
        raise UserError(f"{data.name}: {other!r} stands beside {splits[0]!r}, and is no split; {LAYOUT}")
    listed: dict[str, list[Row]] = {}
    for split in splits or [""]:
        for name in _folders(root / split):
            for path in sorted((root / split / name).rglob("*.txt")):
                row = (path.relative_to(root).as_posix(), read_file(path), name)
                listed.setdefault(SPLITS[split.lower()] if split else "train", []).append(row)
    if not listed:
        raise UserError(f"{data.name} has no texts; {LAYOUT}")
    return _stored(data.name, listed)


def read_file(path: Path) -> str:
    """The text that a file holds. Raises UserError."""
    try:
        return read_text(path, limit=LARGEST_FILE)
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; save it again as UTF-8, or take it out") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or short_line(error)
        raise UserError(f"{path} cannot be read: {reason}; mend it, or take it out") from None


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in os.scandir(folder) if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def read_tfds(data: DataConfig, options: TextConfig, rest: str) -> StoredTexts:
    """A set that TFDS has prepared."""
    class_names, found = read_tfds_texts(data.name, rest, data.dir, options.column)
    listed = {
        split: [
            (f"{split}:{number}", text, class_names[label])
            for number, (text, label) in enumerate(zip(each.texts, each.labels.tolist(), strict=True))
        ]
        for split, each in found.items()
    }
    return _stored(data.name, listed, class_names)


def _stored(name: str, listed: dict[str, list[Row]], class_names: tuple[str, ...] = ()) -> StoredTexts:
    """The set of these texts, by split. `class_names`: of a set that says them itself, and whose texts are shuffled."""
    digest = hashlib.sha256()
    for split, rows in sorted(listed.items()):
        for row in rows:
            digest.update("\0".join((split, *row, "")).encode("utf-8", "surrogatepass"))
    names = class_names or tuple(sorted({label for rows in listed.values() for _, _, label in rows}))
    numbers = {label: number for number, label in enumerate(names)}
    splits = {}
    for split, rows in listed.items():
        identifiers, texts, labels = zip(*rows, strict=True)
        classes = np.array([numbers[label] for label in labels], np.int32)
        records = TextRecords(f"{name} split {split!r}", texts, classes, identifiers, class_by_class=not class_names)
        splits[split] = Split(records, np.arange(len(records)))
    return StoredTexts(names, splits, fingerprint_of("texts", digest.hexdigest()))
