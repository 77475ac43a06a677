"""The ledger of results: what a row of docs/results.json is, its command, its statistics, and its tables.

A row's scores come from finished runs (ledger_runs.py). One of before the ledger says so, and has none.
"""

import math
import re
import shlex
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from etils import epath

from jaxcnn.ablation.statistics import student
from jaxcnn.config import RESUMABLE_FIELDS, Config, flatten
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import read_json, to_json, write_atomically
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.plain_data import Number
from jaxcnn.plain_data import check as check_schema
from jaxcnn.terminal import one_line

BEFORE = "before the ledger"  # what such a row says in `from`
Row = dict[str, Any]  # as _ROW has it
_COUNT = Number(0, 2**31 - 1, integer=True)
_SCORE = Number(-1e15, 1e15)
_ROW: Row = {
    "name": str,
    "experiment": str,
    "overrides": {str: object},  # of the experiment's fields, by their paths
    "command": [str],  # what follows python -m jaxcnn.main
    "config_digest": (str, None),
    "data": {"name": str, "fingerprint": (str, None), "words": str},
    "metric": str,
    "split": str,
    "seeds": ([_COUNT], None),
    "scores": ([_SCORE], None),
    "n": Number(1, 10**6, integer=True),
    "mean": _SCORE,
    "std": (Number(0, 1e15), None),  # with n - 1; none: of one run
    "interval": ([Number()], None),  # 95 % of the mean, by Student's t
    "train_seconds": [Number(0)],
    "versions": {str: str},
    "hardware": str,
    "commit": (str, None),
    "date": (str, None),
    "from?": str,
}
# What a run's result does not depend on, but for rounding, or what is a row's own; the others make the digest.
APART = (set(RESUMABLE_FIELDS) - {"metrics", "distill.teacher", "data.exclude"}) | {"seed"}


# ---- the file


def read_rows(file: epath.Path) -> list[Row]:
    """The rows of a ledger, in order. Raises UserError where it is none, or a row does not agree with itself."""
    try:
        content = read_json(file)
        check_schema(content, {"rows": [_ROW]}, "it")
        for row in content["rows"]:
            _check_row(row)
    except FileNotFoundError:
        raise UserError(f"there is no {file}; run from the project's root, or pass --root") from None
    except Exception as error:
        raise UserError(f"{file} is no ledger: {one_line(error)}") from None
    names = [row["name"] for row in content["rows"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file} is no ledger: two rows are named {twice[0]!r}")
    return content["rows"]


def _check_row(row: Row) -> None:
    """Raises ValueError unless what a row says follows from what it was made of."""
    name = repr(row["name"])
    if row["command"] != command_of(row["experiment"], row["overrides"]):
        raise ValueError(f"the command of row {name} is not that of its experiment and overrides")
    if (row["std"] is None) != (row["n"] == 1) or not row["train_seconds"]:
        raise ValueError(f"row {name} has a standard deviation of one run, none of many, or no training time")
    derived = {"interval": interval_of(row["mean"], row["std"], row["n"])}
    if row["scores"] is not None or row.get("from") != BEFORE:
        seeds, scores = row["seeds"] or [], row["scores"] or []
        if not len(scores) == len(set(seeds)) == len(seeds) == row["n"]:
            raise ValueError(f"row {name} has not one seed and one score for each of its {row['n']} runs")
        derived = statistics_of(scores)
    for part, value in derived.items():
        if not _close(row[part], value):
            raise ValueError(f"the {part} of row {name} does not follow from its scores")


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return one == other or (None not in (one, other) and math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12))


def write_rows(file: epath.Path, rows: Sequence[Row]) -> None:
    """Writes a ledger. Raises OSError."""
    write_atomically(file, to_json({"rows": list(rows)}, indent=1, ensure_ascii=False) + "\n")


def find_row(rows: Sequence[Row], name: str) -> Row:
    """Raises UserError where there is none of that name."""
    for row in rows:
        if row["name"] == name:
            return row
    raise UserError(f"the ledger has no row {name!r}; {nearest(name, [row['name'] for row in rows])}")


# ---- the command of a row


def command_of(experiment: str, overrides: dict[str, Any]) -> list[str]:
    """What follows `python -m jaxcnn.main` for an experiment of `experiments/`, by its name, with other fields.

    `cifar10-resnet18` is `experiments/cifar10.py:resnet18`. Raises UserError for what can be no name.
    """
    if not re.fullmatch(r"\w+(-.+)?", experiment):
        raise UserError(f"{experiment!r} names no experiment")
    stem, _, argument = experiment.partition("-")
    path = f"experiments/{stem}.py" + (f":{argument}" if argument else "")
    return ["--config", path, *(f"--config.{name}={_value(value)}" for name, value in overrides.items())]


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"  # 3 epochs, as people write them
    return str(tuple(value)) if isinstance(value, list | tuple) else str(value)


def config_of(root: epath.Path, command: Sequence[str], *more: str) -> Config:
    """The config of a row's command, with `more` arguments; `root` is the project's folder. Raises UserError."""
    argv = ["main", command[0], str(root / command[1]), *command[2:], *more]
    return load_config(argv, flag_values=flags.FlagValues())[0]


def digest_of(config: Config) -> str:
    """Of all that a result depends on but the seed: the same however often, and wherever, it is run."""
    return fingerprint_of({name: plain(value) for name, value in flatten(config).items() if name not in APART})


def plain(value: Any) -> Any:
    """A field's value as JSON and a command line give it alike: 3 epochs are 3.0."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# ---- statistics


def statistics_of(scores: Sequence[float]) -> Row:
    """A row's `scores`, `n`, `mean`, `std` and `interval`."""
    mean, std = statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None
    interval = interval_of(mean, std, len(scores))
    return {"scores": list(scores), "n": len(scores), "mean": mean, "std": std, "interval": interval}


def interval_of(mean: float, std: float | None, n: int) -> list[float] | None:
    """The 95 % interval of the mean of n scores, by Student's t; of one score there is none."""
    if std is None:
        return None
    half = student(n) * std / math.sqrt(n)
    return [mean - half, mean + half]


def expected(row: Row, k: int) -> tuple[float, float]:
    """The 95 % prediction interval for the mean of k new runs, given the row's n. Raises UserError for n = 1."""
    if row["std"] is None:
        raise UserError(
            f"row {row['name']!r} is of one run, which does not say how far another may lie; add runs of other seeds "
            "by --add first"
        )
    half = student(row["n"]) * row["std"] * math.sqrt(1 / row["n"] + 1 / k)
    return row["mean"] - half, row["mean"] + half


def new_seeds(row: Row, k: int) -> list[int]:
    """So many seeds that are not the row's; of rows that do not tell theirs, far from those that people begin with."""
    first = max(row["seeds"] or [999]) + 1
    return list(range(first, first + k))


# ---- tables


def percent_of(metric: str) -> bool:
    """Whether a metric is told in percent."""
    return metric.endswith("accuracy")


def score_words(row: Row, *values: float) -> str:
    """Numbers of a row's metric, to the digits that its standard deviation leaves: `99.54 %`, `98.6 to 99.2 %`."""
    scale = 100 if percent_of(row["metric"]) else 1
    std = scale * (row["std"] or 0)
    form = f".{min(6, max(0, 1 - math.floor(math.log10(std))))}f" if std else ".4g"
    return " to ".join(f"{scale * value:{form}}" for value in values) + (" %" if scale == 100 else "")


def result_words(row: Row) -> str:
    """`99.54 ± 0.16 %`, the standard deviation with two digits; of one run `74.1 %`."""
    mean = score_words(row, row["mean"])
    if row["std"] is None:
        return mean
    number, _, unit = mean.partition(" ")
    return f"{number} ± {score_words(row, row['std']).partition(' ')[0]}" + (f" {unit}" if unit else "")


def _result(row: Row) -> str:
    told = (row["metric"], row["split"]) != ("accuracy", "test")
    return result_words(row) + (f" ({row['metric']}, {row['split']})" if told else "")


def _training(row: Row) -> str:
    seconds = min(row["train_seconds"])
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _measured(row: Row) -> str:
    if row["scores"] is None:
        return BEFORE
    return f"{row['date']}, {row['commit'] or 'no commit'}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "row": lambda row: row["name"],
    "command": lambda row: f"`{shlex.join(row['command'])}`",
    "data": lambda row: row["data"]["words"],
    "n": lambda row: str(row["n"]),
    "test accuracy": _result,
    "95 % interval": lambda row: score_words(row, *row["interval"]) if row["interval"] else "",
    "training": _training,
    "hardware": lambda row: row["hardware"],
    "measured": _measured,
}


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A table of some of COLUMNS."""
    lines = [columns, ["---"] * len(columns), *([_cell(COLUMNS[name](row)) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|").replace("<!--", "&lt;!--")  # which would end the table, or its cell
