"""Texts of sets that TFDS has prepared as ArrayRecord, with their labels: all of them, read without TensorFlow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcnn.data.tfds import RECORD_LIMIT, open_prepared, pair_of, prepared_splits
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.terminal import short_line

_AT_ONCE = 4096  # records whose bytes are in memory together
LARGEST_SET = 4 << 30  # bytes of texts, which are all in memory


@dataclass(frozen=True)
class PreparedTexts:
    """The texts of one split, in the order of its records."""

    texts: tuple[str, ...]
    labels: np.ndarray  # int32 [n]


def read_tfds_texts(
    full_name: str, rest: str, data_dir: str | None, column: str | None = None
) -> tuple[tuple[str, ...], dict[str, PreparedTexts]]:
    """(names of the classes, the splits that have labels) of the set `tfds:REST`.

    Args:
      column: the feature that is read; none: the set's supervised pair has it, or there is but one.

    Raises:
      NotPreparedError: it is not on this disk.
      UserError: it has no texts with class labels.
      RunError: what is there is damaged.
    """
    folder, builder = open_prepared(full_name, rest, data_dir)
    info: Any = builder.info
    text_key, label_key = pair_of(full_name, info, "text")
    if column is not None:
        texts = [name for name, feature in info.features.items() if type(feature).__name__ == "Text"]
        if column not in texts:
            raise UserError(f"text.column={column!r}: {full_name} has no such text; {nearest(column, texts)}")
        text_key = column
    names = tuple(info.features[label_key].names or ())
    if not names:
        raise RunError(f"{full_name}: what describes the set in {folder} is damaged: it declares no classes")
    splits = {}
    for split, name, _, _, serialized in prepared_splits(full_name, builder):
        found = list(_read(name, serialized, text_key, label_key, len(names)))
        labels = np.array([label for _, label in found], np.int32)
        if (labels >= 0).all():  # else it is published without labels
            splits[split] = PreparedTexts(tuple(text for text, _ in found), labels)
    return names, splits


def _read(name: str, serialized: Any, text_key: str, label_key: str, num_classes: int) -> Iterator[tuple[str, int]]:
    """Each record's (text, class; -1 where it has none). Raises RunError at one that is damaged."""
    from tensorflow_datasets.proto import tf_example_pb2

    size = 0
    for start in range(0, len(serialized), _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, len(serialized)))
        for record, content in zip(numbers, _contents(name, serialized, numbers), strict=True):
            size += len(content)
            if size > LARGEST_SET:
                raise UserError(f"{name} has more than {LARGEST_SET:,} bytes of texts, which are held in memory")
            try:
                if len(content) > RECORD_LIMIT:
                    raise ValueError(f"{len(content):,} bytes, of at most {RECORD_LIMIT:,}")
                features = tf_example_pb2.Example.FromString(content).features.feature
                text = features[text_key].bytes_list.value[0].decode()
                label = features[label_key].int64_list.value[0]
                if not -1 <= label < num_classes:
                    raise ValueError(f"label {label} of {num_classes} classes")
            except Exception as error:
                raise _damaged(name, record, error) from error
            yield text, label


def _contents(name: str, serialized: Any, numbers: Sequence[int]) -> Iterator[bytes]:
    try:
        yield from serialized.__getitems__(list(numbers))
    except Exception as error:
        raise _damaged(name, numbers[0], error) from error


def _damaged(name: str, record: int, error: Exception) -> RunError:
    return RunError(f"{name}: record {record} is damaged ({short_line(error)}); prepare the set again")
