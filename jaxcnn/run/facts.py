"""Content of a run's folder, for diagnosis and reports. Without JAX, and also while the run goes on."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from etils import epath

from jaxcnn.errors import UserError
from jaxcnn.files import read_json, read_text
from jaxcnn.plain_data import Number, check
from jaxcnn.run.log import read_rows
from jaxcnn.run.workdir import read_config, read_splits, read_summary
from jaxcnn.terminal import one_line

# What `python -m jaxcnn.data check --json` writes, as far as it is read here.
_DATA_CHECK = {"kinds": {str: {"count": Number(0, 2**53, integer=True), "title": str}}}


Row = Mapping[str, Any]


@dataclass(frozen=True)
class SavedPredictions:
    """The predictions of one split, by example: predictions.csv."""

    identifiers: Sequence[str]
    labels: Sequence[str]
    predictions: Sequence[str]
    confidences: Sequence[float]  # the probability of the prediction


@dataclass(frozen=True)
class Facts:
    """Content of a run's folder; None for a file that is not there."""

    config: Mapping[str, Any]  # config.json's `config`
    data: Mapping[str, Any]  # config.json's `data`
    rows: Sequence[Row]  # metrics.jsonl
    timing: Sequence[Row] = ()
    summary: Mapping[str, Any] | None = None
    telemetry: Sequence[Row] | None = None
    predictions: SavedPredictions | None = None
    data_check: Mapping[str, Any] | None = None  # what `python -m jaxcnn.data check --json` wrote
    shared: Mapping[tuple[str, str], int] | None = None  # examples that two splits have in common
    workdir: str = "DIR"  # for the commands in remedies

    @cached_property
    def train(self) -> list[Row]:
        """Rows of training, without those in which something is not finite: that is a finding of its own."""
        return self._finite("train", "learning_rate")

    @cached_property
    def validation(self) -> list[Row]:
        """Rows of validation, without those in which something is not finite."""
        averaged = any("ema_loss" in row for row in self.rows if row["split"] == "validation")
        return self._finite("validation", *(["ema_loss"] if averaged else []))

    def _finite(self, split: str, *names: str) -> list[Row]:
        rows = [row for row in self.rows if row["split"] == split and not not_finite_in(row)]
        return [row for row in rows if all(name in row for name in names)]

    def option(self, path: str) -> Any:
        """A field of the config by its path; None where the run is older than the field."""
        node: Any = self.config
        for name in path.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return node

    @property
    def guessing_loss(self) -> float:
        """Cross entropy of giving all classes the same probability."""
        return math.log(max(2, len(self.data["class_names"])))

    @property
    def guessing_accuracy(self) -> float:
        """Accuracy of always predicting the largest class, as far as its share is known."""
        counts = (self.data.get("class_counts") or {}).get("validation")
        return max(counts.values()) / max(1, sum(counts.values())) if counts else 1 / len(self.data["class_names"])

    @property
    def has_accuracy(self) -> bool:
        """Whether it is measured of classes: of numbers there is none, and of tokens it says something else."""
        return bool(self.data["class_names"]) and all(
            "accuracy" in row for row in (*self.train[-1:], *self.validation[-1:])
        )

    @property
    def has_images(self) -> bool:
        """Whether examples are images."""
        return self.data.get("image_shape", ()) is not None

    @property
    def accuracy(self) -> str:
        """Name of the result's accuracy: the average's, where one is kept."""
        return "ema_accuracy" if self.validation and "ema_accuracy" in self.validation[0] else "accuracy"

    def error_of(self, accuracy: float, split: str = "validation") -> float:
        """Standard error of an accuracy on a split."""
        count = max(1, self.data["num_examples"].get(split, 1))
        return math.sqrt(max(accuracy * (1 - accuracy), 1 / count) / count)

    def trained(self, name: str, evaluation: int) -> float:
        """Mean of a training metric over the steps between an evaluation, by its number, and the one before it."""
        until = self.validation[evaluation]["step"]
        after = self.validation[evaluation - 1]["step"] if evaluation else 0
        starts = [0, *(row["step"] for row in self.train[:-1])]
        rows = [
            (row["step"] - start, row[name])
            for start, row in zip(starts, self.train, strict=True)
            if after < row["step"] <= until
        ]
        if not rows:  # none was written in between
            return float(next((row for row in reversed(self.train) if row["step"] <= until), self.train[0])[name])
        return sum(steps * value for steps, value in rows) / sum(steps for steps, _ in rows)


def is_finite(value: Any) -> bool:
    """Whether it is a number, and finite; readers have None for one that is not."""
    return isinstance(value, int | float) and math.isfinite(value)


def not_finite_in(row: Row) -> list[str]:
    """Names of the values in a row of metrics that are not finite."""
    return [name for name, value in row.items() if name not in ("split", "step", "epoch") and not is_finite(value)]


def read_facts(workdir: epath.Path) -> Facts:
    """Content of a run's folder, for `diagnosis.diagnose`. Raises UserError: it is none, or a file is damaged."""
    saved = read_config(workdir)
    splits = read_splits(workdir)
    return Facts(
        config=saved["config"],
        data=saved["data"],
        rows=read_rows(workdir / "metrics.jsonl"),
        timing=read_rows(workdir / "timing.jsonl"),
        summary=read_summary(workdir),
        telemetry=read_rows(workdir / "telemetry.jsonl") or None,
        predictions=read_predictions(workdir / "predictions.csv"),
        data_check=_read_data_check(workdir / "data_check.json"),
        shared=None if splits is None else _shared_examples(splits),
        workdir=os.fspath(workdir),
    )


def _read_data_check(file: epath.Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        found: dict[str, Any] = read_json(file)
        check(found, _DATA_CHECK, "it")
        return found
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None


_WITHOUT_CLASSES = {"tokens", "perplexity"}, {"truth_1", "forecast_1"}  # columns of language models, and of forecasts


def read_predictions(file: epath.Path) -> SavedPredictions | None:
    """Content of a file that `evaluate` wrote; None without one, or of no classes. Raises UserError: it is damaged."""
    if not file.exists():
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
        if rows and {"label", "prediction"} <= rows[0].keys() and "confidence" not in rows[0]:
            return None  # of numbers
        if rows and any(columns <= rows[0].keys() for columns in _WITHOUT_CLASSES):
            return None
        columns = [[row[name] for row in rows] for name in ("identifier", "label", "prediction")]
        confidences = [float(row["confidence"]) for row in rows]
        if not rows or any(None in column for column in columns) or not all(map(math.isfinite, confidences)):
            raise ValueError("a row is not whole")
        identifiers, labels, predictions = columns
        return SavedPredictions(identifiers, labels, predictions, confidences)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(file, error) from None


def _shared_examples(splits: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Number of records that two splits of a run share, from splits.npz (data/splits.py:record_numbers)."""
    records: dict[str, dict[str, Any]] = {}
    for key, differences in splits.items():
        if key != "fingerprint":
            split, _, stored = key.split("/", 2)
            records.setdefault(split, {})[stored] = np.cumsum(differences)
    return {
        (one, other): sum(
            len(np.intersect1d(numbers, records[other].get(stored, ()))) for stored, numbers in records[one].items()
        )
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"))
        if one in records and other in records
    }


def _damaged(file: epath.Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {one_line(error)}"
    return UserError(f"{file} is damaged ({reason}); make it anew, or delete it")
