"""Studies and searches as their folders hold them, made without training: plain data for the tests that show them."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from scipy import stats

from jaxcnn.ablation.study import Study, write_plan
from jaxcnn.config import Config, to_dict


def make_study(
    folder: Path, variants: dict[str, dict[str, Any]], *, seeds: int = 6, epochs: int = 8, metric: str = "accuracy",
    failed: tuple[tuple[str, int], ...] = (), notes: tuple[str, ...] = (), train_rows: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A study's folder: plan.json, study.json, and of each run metrics.jsonl and config.json. Returns study.json."""
    study = Study(Config(), variants, tuple(range(seeds)), metric=metric)
    write_plan(epath.Path(folder), study, experiment="digits")
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.004, seeds)  # what the seeds share, so that pairs tell more than means
    told: dict[str, Any] = {}
    for number, (name, fields) in enumerate(variants.items()):
        runs: list[dict[str, Any]] = []
        level = 0.95 + 0.01 * np.sin(number)
        for run in study.runs():
            if run.variant != name:
                continue
            score: float | None = float(level + noise[run.seed] + draw.normal(0, 0.002))
            lost = (name, run.seed) in failed
            entry = {"seed": run.seed, "fold": None, "folder": run.folder, "status": "finished", "score": score}
            if lost:
                entry |= {"status": "failed", "score": None, "reason": "loss is not finite at step 12"}
            runs.append(entry)
            rows = []
            for epoch in range(1, epochs + 1):
                rows += [
                    {"step": epoch, "epoch": float(epoch), "split": "train", "loss": 1 / epoch}
                    for _ in range(train_rows)
                ]
                value = float(score or 0.5) - 0.5 * np.exp(-epoch) + draw.normal(0, 0.003)
                rows.append(
                    {"step": epoch, "epoch": float(epoch), "split": "validation", "loss": 1 - value, metric: value}
                )
            path = folder / run.folder
            path.mkdir(parents=True)
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            command = ["/somewhere/jaxcnn/sweep.py", "--config", "experiments/digits.py"]
            saved = {"command": command, "config": to_dict(study.config_of(run))}
            (path / "config.json").write_text(json.dumps(saved))
        told[name] = {"overrides": fields, "runs": runs, **_statistics([each["score"] for each in runs])}
    base = next(iter(variants))
    for name, each in told.items():
        each["versus_base"] = None if name == base else _versus(told[base]["runs"], each["runs"])
    result = {
        "study": folder.name, "experiment": "digits", "metric": metric, "higher_is_better": metric == "accuracy",
        "split": "test", "base": base, "seeds": list(range(seeds)), "folds": None, "notes": list(notes),
        "variants": told,
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(result))
    return result


def _statistics(scores: list[float | None]) -> dict[str, Any]:
    known = [score for score in scores if score is not None]
    mean, std = (float(np.mean(known)) if known else None), (float(np.std(known, ddof=1)) if len(known) > 1 else None)
    ends = (
        None
        if std is None
        else [float(end) for end in stats.t.interval(0.95, len(known) - 1, mean, std / len(known) ** 0.5)]
    )
    return {"n": len(known), "mean": mean, "std": std, "interval": ends, "bootstrap": ends}


def _versus(base: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    pairs = [b["score"] - a["score"] for a, b in zip(base, runs, strict=True) if None not in (a["score"], b["score"])]
    if not pairs:
        return None
    found = _statistics(pairs)
    decided = found["interval"] is not None and found["interval"][0] * found["interval"][1] > 0
    verdict = ("better" if found["mean"] > 0 else "worse") if decided else "no difference shown"
    return {
        "pairs": len(pairs), "difference": found["mean"], "interval": found["interval"], "bca": found["interval"],
        "p_sign_flip": 0.03, "p_t": 0.02, "p_holm": 0.02 if decided else 0.6, "cohen_d": 1.0, "pairs_for_80": 12,
        "verdict": "cannot decide" if len(pairs) < 6 else verdict,
    }  # fmt: skip


def grid(**fields: list[Any]) -> dict[str, dict[str, Any]]:
    """The variants of a grid, the config's own first; a key `a__b` is the field a.b."""
    paths = [name.replace("__", ".") for name in fields]
    cells = [dict(zip(paths, values, strict=True)) for values in itertools.product(*fields.values())]
    return {" ".join(f"{name.rpartition('.')[2]}={value}" for name, value in cell.items()): cell for cell in cells}


def make_search(folder: Path, *, trials: int = 40) -> dict[str, Any]:
    """A search's folder: search.json and search_result.json. Returns the latter."""
    draw = np.random.default_rng(1)
    told: list[dict[str, Any]] = []
    for number in range(trials):
        rate, width = float(10 ** draw.uniform(-3, 0)), float(draw.uniform(0.5, 2))
        params: dict[str, Any] = {
            "optimizer.learning_rate": rate, "model.width": width, "model.name": str(draw.choice(["cnn", "resnet20"])),
            "augment.flip": bool(draw.integers(2)),
        }  # fmt: skip
        if params["model.name"] == "cnn":
            params["model.dropout_rate"] = float(draw.uniform(0, 0.5))
        status = ("pruned", "failed", "running")[number % 3] if number % 5 == 4 else "finished"
        value = 0.9 - 0.05 * abs(np.log10(rate) + 1.3) + 0.01 * width + draw.normal(0, 0.005)
        told.append(
            {
                "trial": number,
                "status": status,
                "value": float(value) if status == "finished" else None,
                "fields": params,
            }
        )
    result = {
        "metric": "accuracy", "higher_is_better": True, "trials": told[::-1],
        "best": max((each for each in told if each["value"] is not None), key=lambda each: each["value"]),
        "importances": {"optimizer.learning_rate": 0.8, "model.width": 0.15, "augment.flip": 0.03, "model.name": 0.02},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.json").write_text("{}")
    (folder / "search_result.json").write_text(json.dumps(result))
    return result
