"""Text files as windows of tokens, in the text's order: train first, validation behind it, test at the end.

Windows of train follow one another, so that a model may carry on from one to the next. Those of the other splits
overlap by `language.context` tokens, which are read and not counted: each token counts once, with that much before it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config import Config, DataConfig
from jaxcnn.data.records import ArraySpec, Example, Source, Split
from jaxcnn.data.splits import record_numbers, restore_splits
from jaxcnn.data.vocabulary import Vocabulary, starts
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import read_bytes, user_path
from jaxcnn.fingerprints import fingerprint_of

LARGEST_FILE = 256 << 20  # bytes
LEAST_KNOWN = 2  # entries of a vocabulary that there is something to learn of
Progress = Callable[[str, int, int], None]

_NOT_FOR_TEXTS = "fold", "split_seed"  # options of the data that a text, which is cut where it is, has no use for


@dataclass(frozen=True)
class Windows:
    """Windows of a text: `tokens`, one more than are predicted, 0 behind the end, and the `characters` of what counts.

    Window i is of tokens i * stride … i * stride + length; the first `context` of those predicted do not count.
    """

    name: str
    tokens: np.ndarray  # int32 [n]: of a split, with the tokens before it that are its context
    ends: np.ndarray  # int64 [n]: the place in the text, in characters, behind each
    length: int
    context: int
    count: int
    first: int = 0  # of the whole text's tokens, for what a window is called
    files: tuple[Path, ...] = ()

    @property
    def stride(self) -> int:
        """Tokens from a window to the next, and that count in one."""
        return self.length - self.context

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, record: int) -> Example:
        start = record * self.stride
        tokens = np.zeros(self.length + 1, np.int32)
        found = self.tokens[start : start + self.length + 1]
        tokens[: len(found)] = found
        last = start + len(found) - 1
        return {"tokens": tokens, "characters": np.float32(self.ends[last] - self.ends[start + self.context])}

    @property
    def example(self) -> dict[str, ArraySpec]:
        """A window."""
        return {"tokens": ArraySpec((self.length + 1,), np.int32), "characters": ArraySpec((), np.float32)}

    def labels(self, progress: Any = None) -> np.ndarray:
        """All of one class, int32 [n]."""
        return np.zeros(len(self), np.int32)

    def identifier(self, record: int) -> str:
        """`token:128`, the first that counts."""
        return f"token:{self.first + record * self.stride + self.context + 1}"

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The windows in the order asked."""
        return (self[int(record)] for record in records)


@dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """A text, its vocabulary, and its splits."""

    vocabulary: Vocabulary
    sizes: dict[str, int]  # tokens that count, by split
    unknown: dict[str, float]  # the share of those that the vocabulary lacks

    def facts(self) -> dict[str, Any]:
        """With the vocabulary."""
        text = {"vocabulary": self.vocabulary.to_plain(), "tokens": self.sizes, "unknown": self.unknown}
        return {**super().facts(), "language": text}

    def words(self) -> str:
        """`3,960,000 / 440,000 / 440,000 characters, a vocabulary of 98`."""
        sizes = " / ".join(f"{size:,}" for size in self.sizes.values())
        return f"{sizes} {self.vocabulary.level}s, a vocabulary of {len(self.vocabulary):,}"


def open_source(
    config: Config, *, progress: Progress | None = None, kept: dict[str, np.ndarray] | None = None
) -> TextSource:
    """Reads the texts that data.name names, and cuts them into windows.

    Args:
      config: validated.
      progress: told what is left out or unknown.
      kept: the splits of a run that exists, which say what its text was.

    Raises:
      UserError: there is no such text, or nothing can be learned of it as it is.
    """
    data, options = config.data, config.language
    for option in _NOT_FOR_TEXTS:
        if getattr(data, option) != getattr(DataConfig(), option):
            raise UserError(f"data.{option} is not for texts, which are cut in their own order; leave it as it is")
    files = _files(data)
    texts = [_read(file, options.level) for file in files]
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
    fingerprint = fingerprint_of("text", digest)
    pieces = [starts(text, options.level) for text in texts]
    after = int(options.end == "file")  # each file's end
    cuts = _cuts(data.name, sum(len(each) + after for each in pieces), config)
    vocabulary = Vocabulary.of(
        _beginning(texts, pieces, after, cuts["train"]), options.level, options.vocabulary_size, options.minimum_count,
        leave_out="\n" if options.end == "line" else None,
    )  # fmt: skip
    if len(vocabulary.entries) < LEAST_KNOWN and options.level != "byte":
        raise UserError(f"{data.name}: train has fewer than {LEAST_KNOWN} kinds of {options.level}s: nothing to learn")
    tokens, ends = _numbers(texts, pieces, vocabulary, end_of=options.end)
    windows = _windows(config, tokens, ends, cuts, tuple(files), progress or (lambda *_: None))
    stored = {name: Split(each, np.arange(len(each))) for name, each in windows.items()}
    splits = stored if kept is None else restore_splits(kept, stored, fingerprint)
    begin = dict(zip(cuts, [0, *cuts.values()], strict=False))
    of_split = {name: tokens[begin[name] : stop] for name, stop in cuts.items()}
    return TextSource(
        name=data.name,
        class_names=(),
        image_shape=None,
        splits=splits,
        fingerprint=fingerprint,
        record_numbers=record_numbers(splits, stored, fingerprint),
        vocabulary=vocabulary,
        sizes={name: len(each) for name, each in of_split.items()},
        unknown={name: round(float((each == Vocabulary.unknown).mean()), 6) for name, each in of_split.items()},
    )


# ---- files


def _files(data: DataConfig) -> list[Path]:
    """The file that data.name names, or all *.txt of a folder, by name. Raises UserError."""
    kind, colon, rest = data.name.partition(":")
    if data.name == "text:":
        raise UserError("data.name=text: names no text; pass --config.data.name=text:FILE")
    if kind != "text" or not colon or not rest:
        hint = f"did you mean text:{data.name}?" if data.name.endswith(".txt") else "write text:FILE or text:FOLDER"
        raise UserError(f"data.name={data.name!r} is no text; {hint}")
    try:
        path = Path(os.path.abspath(user_path(rest, data.dir or "")))
    except ValueError as error:
        raise UserError(f"{data.name[:200]}: {error}; give the path of a file of text") from None
    if not path.exists():
        there = [each.name for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(
            f"{data.name}: there is no {path.name!r} in {path.parent}"
            + (f": {nearest(path.name, there)}" if there else "")
        )
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{data.name} is a folder without *.txt")
    return files


def _read(file: Path, level: str) -> str:
    """A file's text, its lines ending as Unix's do; bytes that are no UTF-8 as Python holds them. Raises UserError."""
    try:
        content = read_bytes(file, limit=LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not content.strip():
        raise UserError(f"{file} is empty")
    if level == "byte":
        return content.decode("utf-8", "surrogateescape")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}, line {line:,}, is no UTF-8: convert it, e.g. iconv -f latin1 -t utf-8, or set language.level=byte"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{file}, line {line:,}, has a NUL byte, which no text has; set language.level=byte to read it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---- tokens


def _cuts(name: str, count: int, config: Config) -> dict[str, int]:
    """Where each split ends, in tokens."""
    options = config.language
    num_test = round(options.test_fraction * count)
    num_validation = round(config.data.validation_fraction * (count - num_test))
    sizes = {"train": count - num_test - num_validation, "validation": num_validation, "test": num_test}
    if config.data.validation_fraction == 0:
        del sizes["validation"]
    least = max(config.batch_size * options.length + 1, options.context + 1)
    if sizes["train"] < least or not all(sizes.values()):
        raise UserError(
            f"{name} has {count:,} {options.level}s, {sizes['train']:,} for train; batch_size={config.batch_size} "
            f"windows of language.length={options.length} take {least:,}: lower one of them"
        )
    ends = np.cumsum(list(sizes.values())).tolist()
    return dict(zip(sizes, ends, strict=True))


def _beginning(texts: list[str], pieces: list[np.ndarray], after: int, count: int) -> Iterator[str]:
    """The texts as far as their first `count` tokens."""
    for text, places in zip(texts, pieces, strict=True):
        if count <= 0:
            return
        yield text if count >= len(places) else text[: places[count]]
        count -= len(places) + after


def _numbers(
    texts: list[str], pieces: list[np.ndarray], vocabulary: Vocabulary, *, end_of: str
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [n], int64 [n]: the characters up to the end of each), with an end behind each file or line."""
    numbers, ends, before = [], [], 0
    for text, places in zip(texts, pieces, strict=True):
        encoded = vocabulary.encode(text)
        behind = np.append(places[1:], len(text)) + before
        if end_of == "line":
            is_end = np.array(list(text))[places] == "\n"
            encoded = np.where(is_end, vocabulary.end, encoded)
        else:
            encoded, behind = np.append(encoded, vocabulary.end), np.append(behind, before + len(text))
        before += len(text)
        numbers.append(encoded.astype(np.int32))
        ends.append(behind)
    return np.concatenate(numbers), np.concatenate(ends)


def _windows(
    config: Config, tokens: np.ndarray, ends: np.ndarray, cuts: dict[str, int], files: tuple[Path, ...], tell: Progress
) -> dict[str, Windows]:
    options, name = config.language, config.data.name
    stop = cuts["train"]
    count = (stop - 1) // options.length
    count -= count % config.batch_size
    if left := stop - 1 - count * options.length:
        tell(f"{name}: the last {left:,} of {stop:,} {options.level}s of train make no whole batch, left out", 0, 0)
    windows = {"train": Windows(f"{name} train", tokens[:stop], ends[:stop], options.length, 0, count, 0, files)}
    length, context = options.eval_length or options.length, options.context
    for split in list(cuts)[1:]:
        begin, end = stop - context - 1, cuts[split]
        count = -(-(end - stop) // (length - context))
        windows[split] = Windows(
            f"{name} {split}", tokens[begin:end], ends[begin:end], length, context, count, begin, files
        )
        stop = end
    return windows
