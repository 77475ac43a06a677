"""A study and a search by the files in their folder: plain data, without JAX, as far as a page tells them.

Folders may come from anybody: of what is read here types are right, and no path leads out of the folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath

from jaxcnn.ablation.results import Asked, read_study
from jaxcnn.ablation.statistics import student
from jaxcnn.ablation.study import PLAN, read_plan
from jaxcnn.ablation.tables import json_of
from jaxcnn.config import flatten
from jaxcnn.errors import UserError
from jaxcnn.files import finite, from_json, read_json, to_json
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.plain_data import Number
from jaxcnn.plain_data import check as check_schema
from jaxcnn.run.log import read_rows
from jaxcnn.terminal import one_line

STUDY, SEARCH, FOUND = "study.json", "search.json", "search_result.json"
_COUNT = Number(0, 2**53, integer=True)
_VALUE, _INTERVAL = (Number(), None), ([Number()], None)
_STUDY_FIELDS: dict[str, Any] = {
    "study": str,
    "experiment": str,
    "metric": str,
    "higher_is_better": bool,
    "split": str,
    "base": str,
    "seeds": [_COUNT],
    "folds": (_COUNT, None),
    "notes": [str],
    "variants": {
        str: {
            "overrides": {},
            "runs": [
                {
                    "seed": _COUNT,
                    "fold": (_COUNT, None),
                    "folder": str,
                    "status": str,
                    "score": _VALUE,
                    "reason?": (str, None),
                }
            ],
            "n": _COUNT,
            "mean": _VALUE,
            "std": _VALUE,
            "interval": _INTERVAL,
            "versus_base": (
                {
                    "pairs": _COUNT,
                    "difference": _VALUE,
                    "interval": _INTERVAL,
                    "bca": _INTERVAL,
                    "p_holm": _VALUE,
                    "pairs_for_80": _VALUE,
                    "verdict": str,
                },
                None,
            ),
        }
    },
}
_FOUND_FIELDS: dict[str, Any] = {
    "metric": str,
    "higher_is_better": bool,
    "trials": [{"trial": _COUNT, "status": str, "value?": _VALUE, "fields": {}}],
    "importances?": ({str: Number(0)}, None),
}


@dataclass(frozen=True)
class Curve:
    """What a run's evaluations gave."""

    epochs: Sequence[float]
    values: Mapping[str, Sequence[float]]  # by the metric's name, as many as epochs; NaN where there is none


@dataclass(frozen=True)
class StudyFiles:
    """A study, as far as its folder's files tell."""

    folder: epath.Path
    result: Mapping[str, Any]  # study.json
    base_config: Mapping[str, Any]  # fields by their paths
    digest: str  # of the base config

    @property
    def metric(self) -> str:
        """What is compared, as rows of metrics.jsonl call it; of the weights' average where that is measured."""
        return str(self.result["metric"]).removeprefix("ema_")

    @property
    def variants(self) -> Mapping[str, Mapping[str, Any]]:
        """What is said of each, by its name; the base is the first."""
        return self.result["variants"]

    @property
    def ranked(self) -> list[str]:
        """Names of the variants, the best mean first; those without one last."""
        sign = -1 if self.result["higher_is_better"] else 1
        means = {name: each["mean"] for name, each in self.variants.items()}
        return sorted(means, key=lambda name: (means[name] is None, sign * (means[name] or 0.0)))

    def fields_of(self, name: str) -> dict[str, Any]:
        """The values of the varied fields in a variant."""
        return {field: self.variants[name]["overrides"].get(field, self.base_config.get(field)) for field in self._set}

    @property
    def varied(self) -> list[str]:
        """The fields that have different values in different variants."""
        return [
            field for field in self._set if len({to_json(self.fields_of(name)[field]) for name in self.variants}) > 1
        ]

    @cached_property
    def _set(self) -> list[str]:
        return list(dict.fromkeys(field for each in self.variants.values() for field in each["overrides"]))

    @cached_property
    def curves(self) -> dict[str, list[Curve]]:
        """Validation of each variant's runs: of those that have finished, else of all."""
        found = {}
        for name, each in self.variants.items():
            finished = [run for run in each["runs"] if run["status"] == "finished"]
            read = [self._curve(run["folder"]) for run in finished or each["runs"]]
            found[name] = [curve for curve in read if curve.epochs]
        return found

    def _curve(self, folder: str) -> Curve:
        rows = read_rows(self.folder / folder / "metrics.jsonl", having='"validation"')
        rows = [row for row in rows if row["split"] == "validation"]
        averaged = "ema_" if any("ema_loss" in row for row in rows) else ""
        values = {name: [_number(row.get(averaged + name)) for row in rows] for name in {self.metric, "loss"}}
        return Curve([row["epoch"] for row in rows], values)

    @property
    def command(self) -> list[str]:
        """The command that made it, as its first run says; empty where none does."""
        for each in self.variants.values():
            for run in each["runs"]:
                try:
                    command = read_json(self.folder / run["folder"] / "config.json")["command"]
                    check_schema(command, [str], "it")
                except Exception:  # a run that has not begun, or strangers' files
                    continue
                return command
        return []


@dataclass(frozen=True)
class SearchFiles:
    """A search, as far as its folder's files tell."""

    folder: epath.Path
    result: Mapping[str, Any]  # search_result.json

    @property
    def metric(self) -> str:
        """What the search is for; of the weights' average where that is measured."""
        return str(self.result["metric"]).removeprefix("ema_")

    @property
    def trials(self) -> list[Mapping[str, Any]]:
        """In the order of their numbers."""
        return sorted(self.result["trials"], key=lambda trial: trial["trial"])

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """The trials that have finished, the best first."""
        sign = -1 if self.result["higher_is_better"] else 1
        done = [trial for trial in self.trials if trial["status"] == "finished" and trial.get("value") is not None]
        return sorted(done, key=lambda trial: sign * trial["value"])


def holds_study(folder: epath.Path) -> bool:
    """Whether a folder is that of a study or a search, not of a run."""
    return any((folder / name).exists() for name in (PLAN, SEARCH))


def study_of(folder: epath.Path) -> StudyFiles | None:
    """The study that a folder holds, as it was compared, or as it stands; none where it has no plan.

    Raises UserError: a file is damaged, or no run has finished yet.
    """
    if not (folder / PLAN).exists():
        return None
    study, _ = read_plan(folder)
    if (folder / STUDY).exists():
        result = _read(folder / STUDY, _STUDY_FIELDS, "")
    else:
        result = from_json(json_of(read_study(folder, Asked())))
    _check_result(folder / STUDY, result)
    fields = flatten(study.config)
    return StudyFiles(folder, result, fields, fingerprint_of(fields))


def search_of(folder: epath.Path) -> SearchFiles | None:
    """The search that a folder holds; none where there is none. Raises UserError."""
    if not (folder / SEARCH).exists():
        return None
    return SearchFiles(folder, _read(folder / FOUND, _FOUND_FIELDS, "let the search finish a trial first"))


def _read(file: epath.Path, expected: Any, remedy: str) -> dict[str, Any]:
    try:
        content = finite(read_json(file))
        check_schema(content, expected, "it")
    except FileNotFoundError:
        raise UserError(f"{file} is not there; {remedy}") from None
    except Exception as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}); make it anew") from None
    return content


def _check_result(file: epath.Path, result: Mapping[str, Any]) -> None:
    """Raises UserError unless what study.json says fits together."""
    if result["base"] not in result["variants"]:
        raise UserError(f"{file}: the base {result['base']!r} is none of its variants; make it anew")
    for each in result["variants"].values():
        intervals = [each["interval"], *((each["versus_base"] or {}).get(name) for name in ("interval", "bca"))]
        if any(interval is not None and len(interval) != 2 for interval in intervals):
            raise UserError(f"{file}: an interval has two ends; make it anew")
        for run in each["runs"]:
            path = PurePosixPath(run["folder"])
            if path.parts[:1] != ("runs",) or len(path.parts) != 3 or ".." in path.parts:
                raise UserError(f"{file}: the run {run['folder']!r} is none of the study's; make it anew")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


@dataclass(frozen=True)
class Band:
    """A mean over runs, epoch by epoch, and its 95 % interval by Student's t; of one run the interval is NaN."""

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band_of(curves: Sequence[Curve], name: str) -> Band:
    """The mean of runs and its band, at the epochs where all of them have a value."""
    if not curves:
        return Band(*np.zeros((4, 0)))
    values = [dict(zip(curve.epochs, curve.values[name], strict=True)) for curve in curves]
    epochs = np.array(sorted(set(values[0]).intersection(*values[1:])), float)
    array = np.array([[each[epoch] for epoch in epochs] for each in values], float)
    kept = np.isfinite(array).all(axis=0)
    epochs, array, count = epochs[kept], array[:, kept], len(curves)
    mean, half = array.mean(axis=0), np.full(len(epochs), np.nan)
    if count > 1:
        half = student(count) * array.std(axis=0, ddof=1) / np.sqrt(count)
    return Band(epochs, mean, mean - half, mean + half)
