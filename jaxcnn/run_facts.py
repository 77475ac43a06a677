"""Reads all that a run's folder says, for diagnosis and reports. Without JAX, and also while the run goes on."""

import csv
import io
import json
import os
from typing import Any

import numpy as np
from etils import epath

from jaxcnn.diagnosis import Facts, Predictions
from jaxcnn.errors import UserError
from jaxcnn.logs import read_rows
from jaxcnn.workdir import read_config, read_splits, read_summary


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
        data_check=_read_json(workdir / "data_check.json"),
        shared=None if splits is None else _shared_examples(splits),
        workdir=os.fspath(workdir),
    )


def _read_json(file: epath.Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(file, error) from None


def _read_predictions(file: epath.Path) -> Predictions | None:
    if not file.exists():
        return None
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
        return Predictions(
            identifiers=[row["identifier"] for row in rows],
            labels=[row["label"] for row in rows],
            predictions=[row["prediction"] for row in rows],
            confidences=[float(row["confidence"]) for row in rows],
        )
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
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UserError(f"{file} is damaged ({reason}); make it anew, or delete it")
