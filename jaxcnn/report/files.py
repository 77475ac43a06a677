"""A run by the files in its folder: plain data, without JAX, data set or network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from jaxcnn.config import Config, to_dict
from jaxcnn.files import to_json
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import read_rows

Row = dict[str, Any]
LONGEST_NAME = 72  # letters


@dataclass(frozen=True)
class RunFiles:
    """A run, as far as its folder's files tell."""

    workdir: epath.Path
    name: str  # short, and another for each run of a page
    saved: dict[str, Any]  # config.json
    summary: dict[str, Any] | None  # of a run that has finished
    metrics: list[Row]
    timing: list[Row]
    telemetry: list[Row]

    @property
    def last_step(self) -> int:
        """The last step that there are rows of."""
        return max((row["step"] for row in self.metrics), default=0)

    @property
    def failed_at(self) -> int | None:
        """The step of the row of training whose loss was not finite, with which a run ends."""
        return next((row["step"] for row in self.metrics if row["split"] == "train" and row["loss"] is None), None)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        config = self.saved["config"]
        per_epoch = self.saved["data"]["num_examples"]["train"] / config["batch_size"]
        return config.get("num_steps") or max(1, round(config["num_epochs"] * per_epoch))

    def epoch(self, step: int) -> float:
        """Epochs until a step."""
        return step * self.saved["config"]["batch_size"] / self.saved["data"]["num_examples"]["train"]

    def points(self, split: str, key: str) -> tuple[list[float], list[float]]:
        """Epochs and values of the rows of a split that have it."""
        points = [
            (row["epoch"], row[key]) for row in self.metrics if row["split"] == split and row.get(key) is not None
        ]
        return [float(x) for x, _ in points], [float(y) for _, y in points]

    def timed(self, rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
        """Epochs and values of rows that say their step alone."""
        points = [(self.epoch(row["step"]), row[key]) for row in rows if isinstance(row.get(key), int | float)]
        return [float(x) for x, _ in points], [float(y) for _, y in points]

    def averaged(self) -> bool:
        """Whether the result is that of the weights' average."""
        return any("ema_loss" in row for row in self.metrics)

    @property
    def has_images(self) -> bool:
        """Whether examples are images."""
        return self.saved["data"].get("image_shape", ()) is not None

    @property
    def main_metric(self) -> str:
        """What is shown first, beside the loss: accuracy where it is measured, else what chose the weights."""
        measured = {name for row in self.metrics for name in row}
        if "accuracy" in measured or not measured:
            return "accuracy"
        return str(workdir_lib.rank_by(self.saved)["best_metric"]).removeprefix("ema_")

    @property
    def higher_is_better(self) -> bool:
        """Of the main metric."""
        return self.main_metric == "accuracy" or bool(workdir_lib.rank_by(self.saved)["higher_is_better"])


def read_runs(workdirs: Sequence[str]) -> list[RunFiles]:
    """Raises UserError for the first folder that holds no run."""
    paths = list(dict.fromkeys(workdir_lib.resolve(each) for each in workdirs))  # one that is named twice is one
    saved = [workdir_lib.read_config(path) for path in paths]
    return [
        RunFiles(
            workdir=path,
            name=name,
            saved=each,
            summary=workdir_lib.read_summary(path),
            metrics=read_rows(path / "metrics.jsonl"),
            timing=read_rows(path / "timing.jsonl"),
            telemetry=read_rows(path / "telemetry.jsonl"),
        )
        for path, each, name in zip(paths, saved, _names(paths), strict=True)
    ]


def _names(paths: Sequence[epath.Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [[part for part in path.parts if part not in ("/", "")] or ["run"] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [shown_name("/".join(each[-depth:])) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {name}" for number, name in enumerate(names, start=1)]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optimizer.learning_rate": 0.1, …}`, as config.json has it, whichever version wrote it."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields


def differences(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """The fields in which the runs' configs differ, and each one's value of it as JSON.

    A field that is younger than a run has its default there; one that this version does not know, a dash.
    """
    configs = [flat(to_dict(Config())) | flat(run.saved["config"]) for run in runs]
    fields = list(dict.fromkeys(name for config in configs for name in config))
    said = {name: [to_json(each[name]) if name in each else "—" for each in configs] for name in fields}
    return {name: values for name, values in said.items() if len(set(values)) > 1}


def shown_name(name: str) -> str:
    """A name as it can be printed, its middle left out where it is long."""
    name = printable(name)
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def printable(text: str) -> str:
    """Anything as one line that can be encoded: classes may be named after files."""
    text = text.encode("utf-8", "replace").decode()
    joiner = "\u200d"  # holds some letters and many emoji together
    kept = "".join(letter if letter.isprintable() or letter == joiner else " " for letter in text)
    return kept.strip() or "(no name)"
