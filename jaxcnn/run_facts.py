"""Reads all that a run's folder says, for diagnosis and reports. Without JAX, and also while the run goes on."""

import csv
import io
import math
import os
from typing import Any

import numpy as np
from etils import epath

from jaxcnn.diagnosis import Facts, Predictions
from jaxcnn.errors import UserError
from jaxcnn.files import read_json, read_text
from jaxcnn.logs import read_rows
from jaxcnn.schema import Number, check
from jaxcnn.terminal import one_line
from jaxcnn.workdir import read_config, read_splits, read_summary

# What `python -m jaxcnn.data check --json` writes, as far as it is read here.
_DATA_CHECK = {"kinds": {str: {"count": Number(0, 2**53, integer=True), "title": str}}}


def read_facts(workdir: epath.Path) -> Facts:
    """All that a run's folder says, for `diagnosis.diagnose`. Raises UserError: it is none, or a file is damaged."""
    saved = read_config(workdir)
    splits = read_splits(workdir)
    return Facts(
        config=saved["config"],
        data=saved["data"],
        rows=read_rows(workdir / "metrics.jsonl"),
        timing=read_rows(workdir / "timing.jsonl"),
        summary=read_summary(workdir),
        telemetry=read_rows(workdir / "telemetry.jsonl") or None,
        predictions=_read_predictions(workdir / "predictions.csv"),
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


def _read_predictions(file: epath.Path) -> Predictions | None:
    if not file.exists():
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
        columns = [[row[name] for row in rows] for name in ("identifier", "label", "prediction")]
        confidences = [float(row["confidence"]) for row in rows]
        if not rows or any(None in column for column in columns) or not all(map(math.isfinite, confidences)):
            raise ValueError("a row is not whole")
        identifiers, labels, predictions = columns
        return Predictions(identifiers, labels, predictions, confidences)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(file, error) from None


def _shared_examples(splits: dict[str, Any]) -> dict[tuple[str, str], int]:
    """How many records each two splits of a run have in common, from splits.npz (data/splits.py:record_numbers)."""
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
