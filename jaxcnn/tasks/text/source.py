"""Texts as a run has them: their splits, the vocabulary of train's alone, and each text as numbers of one length.

Texts are padded with 0 to the longest, and cut at text.max_length; what is cut, and what is not known, is told.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config import Config, TextConfig
from jaxcnn.data.chosen import choose_splits
from jaxcnn.data.records import ArraySpec, Example, Source, Split
from jaxcnn.data.records import Progress as Counter
from jaxcnn.data.splits import Progress, labels_of
from jaxcnn.data.vocabulary import Vocabulary
from jaxcnn.errors import UserError
from jaxcnn.files import user_path
from jaxcnn.run.workdir import read_config
from jaxcnn.tasks.text.texts import csv_rows, open_texts, read_file
from jaxcnn.transfer.finding import find

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRecords:
    """The texts of one split as numbers, in memory."""

    name: str
    tokens: np.ndarray  # int32 [n, length]; 0 behind the end of a text
    classes: np.ndarray  # int32 [n]
    identifiers: tuple[str, ...]
    class_by_class: bool = True
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, record: int) -> Example:
        return {"tokens": self.tokens[record], "label": self.classes[record]}

    @property
    def example(self) -> dict[str, ArraySpec]:
        """A text's numbers, and its class."""
        return {"tokens": ArraySpec(self.tokens.shape[1:], np.int32), "label": ArraySpec((), np.int32)}

    def labels(self, progress: Counter | None = None) -> np.ndarray:
        """Classes, int32 [n]."""
        return self.classes

    def identifier(self, record: int) -> str:
        """As the set calls it."""
        return self.identifiers[record]

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked."""
        return (self[int(record)] for record in records)


@dataclass(frozen=True)
class Coverage:
    """How far a vocabulary and a length reach."""

    length: int  # tokens of the longest text, after cutting
    cut: dict[str, int]  # of each split, how many texts were longer than text.max_length
    known: dict[str, float]  # of each split, the share of its tokens that the vocabulary has

    @staticmethod
    def of(tokens: dict[str, list[np.ndarray]], vocabulary: Vocabulary, *, most: int) -> "Coverage":
        """Of the texts of each split as numbers, uncut."""
        longest = max(len(each) for texts in tokens.values() for each in texts)
        known = {name: np.concatenate(texts) != vocabulary.unknown for name, texts in tokens.items()}
        return Coverage(
            length=max(1, min(longest, most)),
            cut={name: sum(len(each) > most for each in texts) for name, texts in tokens.items()},
            known={name: round(float(each.mean()), 6) if len(each) else 1.0 for name, each in known.items()},
        )

    def tell(self, name: str, vocabulary: Vocabulary, options: TextConfig, tell: Progress) -> None:
        """Says it in a line, and in another what is cut."""
        what = {"word": "words", "character": "characters", "byte": "bytes"}[vocabulary.level]
        shares = ", ".join(f"{share:.1%} of {split}'s" for split, share in self.known.items())
        tell(f"{name}: a vocabulary of {len(vocabulary):,} {what} knows {shares}", 0, 0)
        if any(self.cut.values()):
            cut = ", ".join(f"{count:,} of {split}" for split, count in self.cut.items() if count)
            tell(f"{name}: texts of more than {options.max_length:,} {what} are cut: {cut} (text.max_length)", 0, 0)


@dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """Texts and their splits."""

    vocabulary: Vocabulary
    coverage: Coverage

    def facts(self) -> dict[str, Any]:
        """With the vocabulary, and how far it reaches."""
        return {**super().facts(), "vocabulary": self.vocabulary.to_plain(), "text": vars(self.coverage)}

    def words(self) -> str:
        """`at most 56 of 5,000 tokens, 2 classes`."""
        length, size = self.coverage.length, len(self.vocabulary)
        return f"at most {length:,} of {size:,} tokens, {len(self.class_names)} classes"


def open_source(
    config: Config,
    *,
    progress: Progress | None = None,
    kept: dict[str, np.ndarray] | None = None,
    vocabulary: Vocabulary | None = None,
) -> TextSource:
    """Reads texts, splits them as sets of images are, and numbers their words.

    Args:
      config: validated.
      progress: told of the vocabulary, and of texts that are cut.
      kept: the splits of a run that exists, as Source.record_numbers had them: they are its splits for good.
      vocabulary: of a run that exists; none: that of the run it begins with (init_from), else train's.

    Raises:
      UserError: there are no such texts, or nothing can be learned of them as they are.
    """
    data, tell = config.data, progress or (lambda *_: None)
    stored = open_texts(data, config.text)
    chosen = choose_splits(
        data, stored.splits, stored.fingerprint, kept=kept, progress=progress, check=partial(_check_texts, data.name)
    )
    splits = chosen.splits
    vocabulary = vocabulary or _vocabulary_of(config) or _vocabulary_of_train(config.text, splits["train"])
    tokens = {name: [vocabulary.encode(text) for text in _texts(split)] for name, split in splits.items()}
    coverage = Coverage.of(tokens, vocabulary, most=config.text.max_length)
    coverage.tell(data.name, vocabulary, config.text, tell)
    numbered = {name: _numbered(splits[name], each, coverage.length) for name, each in tokens.items()}
    return TextSource(
        name=data.name,
        class_names=stored.class_names,
        image_shape=None,
        splits=numbered,
        fingerprint=stored.fingerprint,
        class_counts={name: _counts(split, stored.class_names) for name, split in numbered.items()},
        record_numbers=chosen.record_numbers,
        num_excluded=chosen.num_excluded,
        exclusion_digest=chosen.exclusion_digest,
        vocabulary=vocabulary,
        coverage=coverage,
    )


def _check_texts(name: str, splits: dict[str, Split]) -> None:
    """Raises UserError where a text is empty, or holds what no text does."""
    for split in splits.values():
        faults = [
            (split.records.identifier(int(record)), fault)
            for record, text in zip(split.indices, _texts(split), strict=True)
            if (fault := fault_of(text))
        ]
        if faults:
            (first, fault), more = faults[0], len(faults) - 1
            others = f", and so are {more:,} more" if more else ""
            raise UserError(
                f"{name}: {first} {fault}{others}; mend it, or leave it out: data.exclude=FILE with {first} in a line"
            )


def _vocabulary_of_train(options: TextConfig, train: Split) -> Vocabulary:
    return Vocabulary.of(_texts(train), options.level, options.vocabulary_size, options.minimum_count)


def _vocabulary_of(config: Config) -> Vocabulary | None:
    """That of the run whose weights this one begins with; None where it begins with no run's, or with none of texts.

    Raises UserError where its tokens are of another kind than the config's.
    """
    folder = None if config.init_from is None else find(config.init_from)
    if folder is None or not folder.is_dir():
        return None
    data = read_config(folder)["data"]
    plain = data.get("vocabulary") or data.get("language", {}).get("vocabulary")
    if plain is None:
        return None
    vocabulary = vocabulary_of(plain)
    if vocabulary.level != config.text.level:
        raise UserError(
            f"text.level={config.text.level}, and the vocabulary of init_from={config.init_from} is of another; set "
            f"text.level={vocabulary.level}"
        )
    return vocabulary


def vocabulary_of(plain: Any) -> Vocabulary:
    """A vocabulary as config.json has it. Raises UserError where it is none."""
    try:
        return Vocabulary.from_plain(plain)
    except ValueError as error:
        raise UserError(f"the run's config.json is damaged: {error}; train it again") from None


def fault_of(text: str) -> str | None:
    """What makes a text useless, in words."""
    if not text.strip():
        return "is empty"
    return "has a NUL byte, which is no text" if "\0" in text else None


def _texts(split: Split) -> list[str]:
    return [example["text"] for example in split.records.read(split.indices)]


def _numbered(split: Split, tokens: Sequence[np.ndarray], length: int) -> Split:
    """The same examples as numbers, in records of their own."""
    identifiers = tuple(split.records.identifier(int(record)) for record in split.indices)
    records = TokenRecords(
        split.records.name, np.stack([padded(each, length) for each in tokens]), labels_of(split), identifiers
    )
    return Split(records, np.arange(len(records)))


def padded(tokens: np.ndarray, length: int) -> np.ndarray:
    """The first `length` tokens, int32 [length]; 0 behind the last."""
    row = np.zeros(length, np.int32)
    row[: len(tokens)] = tokens[:length]
    return row


def _counts(split: Split, class_names: tuple[str, ...]) -> dict[str, int]:
    found = np.bincount(labels_of(split), minlength=len(class_names)).tolist()
    return dict(zip(class_names, found, strict=True))


# ---- new texts


def read_new(
    given: str, vocabulary: Vocabulary, options: TextConfig
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | ValueError]]:
    """Texts to predict: what each is called, and its `tokens` int32 [text.max_length], or what is wrong with it.

    `given` is a CSV file with the text's column, any other file, which is one text, or, where there is no such file
    and it has a space, the text itself. Raises UserError where it is none of these.
    """
    for named, text in _given(given, options):
        fault = fault_of(text)
        tokens = vocabulary.encode(text)
        if fault is None and len(tokens) > options.max_length:
            _log.warning(
                "%s: of %s tokens the first %s are read (text.max_length)",
                ", ".join(f"{name} {value}" for name, value in named.items()) or given[:80],
                f"{len(tokens):,}",
                f"{options.max_length:,}",
            )
        yield named, ValueError(f"it {fault}") if fault else {"tokens": padded(tokens, options.max_length)}


def _given(given: str, options: TextConfig) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        path = user_path(given)
    except ValueError as error:
        if " " not in given:
            raise UserError(f"{given[:200]}: {error}; give a text, or the path of a .txt or CSV file") from None
        yield {}, given
        return
    if path.is_file() and path.suffix.lower() == ".csv":
        for line, (text, _, _) in csv_rows(path, options.column or "text", None):
            yield {"line": line}, text
    elif path.is_file():
        yield {}, read_file(path)
    elif " " in given.strip():
        yield {}, given
    else:
        raise UserError(f"there is no file {given!r}; give a .txt or CSV file, or a text of several words in quotes")
