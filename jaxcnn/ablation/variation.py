"""What varies, from a command line to a study: `--over FIELD=VALUE,VALUE`, seeds, or a study's own module."""

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn.ablation.study import Study
from jaxcnn.config import Config, flatten
from jaxcnn.config.command_line import call_file, override, split_values
from jaxcnn.errors import UserError

MOST_VARIANTS = 10_000
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Axis:
    """A field of the config, and the values that it takes."""

    path: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The end of the path that no other field of the config shares: `learning_rate`, but `model.name`."""
        fields, parts = flatten(Config()), self.path.split(".")
        tails = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        return next(tail for tail in tails if sum(f".{each}".endswith(f".{tail}") for each in fields) == 1)


def parse_axis(text: str) -> Axis:
    """An axis of `FIELD=VALUE,VALUE`; values are read as `--config.FIELD=VALUE` is. Raises UserError."""
    path, _, listed = text.partition("=")
    words = split_values(listed)
    if not re.fullmatch(r"[\w.]+", path) or not all(words):
        raise UserError(f"--over={text} names no values; write --over FIELD=VALUE,VALUE")
    if path in ("seed", "data.fold"):
        raise UserError(f"--over={text}: {path} is varied by --{'seeds' if path == 'seed' else 'folds'}")
    values = [flatten(override(Config(), [f"--config.{path}={word}"]))[path] for word in words]
    for number, value in enumerate(values):
        if value in values[:number]:
            raise UserError(f"--over={text} names {_word(value)} twice; leave one of them out")
    return Axis(path, tuple(values))


def parse_axes(texts: Iterable[str]) -> list[Axis]:
    """An axis of each text. Raises UserError, also where two are of one field."""
    axes = [parse_axis(text) for text in texts]
    for first, second in itertools.combinations(axes, 2):
        if first.path == second.path:
            raise UserError(f"--over names {first.path} twice; give all its values at once")
    return axes


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds of `5`, which are 0 to 4, or of `3,5,8`, which are those. Raises UserError."""
    words = text.split(",")
    if not all(re.fullmatch("[0-9]{1,10}", word) and int(word) <= LARGEST_SEED for word in words):
        raise UserError(f"--seeds={text} is neither a number of seeds, as 5, nor seeds, as 3,5,8")
    numbers = tuple(map(int, words))
    if len(numbers) > 1:
        if len(set(numbers)) < len(numbers):
            raise UserError(f"--seeds={text} names a seed twice; leave one of them out")
        return numbers
    if not 1 <= numbers[0] <= MOST_VARIANTS:
        raise UserError(f"--seeds={text}: a study has 1 to {MOST_VARIANTS:,} seeds")
    return tuple(range(numbers[0]))


# ---- variants


def grid(config: Config, axes: list[Axis], *, count: int | None = None) -> dict[str, dict[str, Any]]:
    """Every combination of values, or `count` of them, drawn by the config's seed; a larger count draws more beside.

    The base config comes first where it is among them. Raises UserError where there are too many, or too few to draw.
    """
    size = math.prod(len(axis.values) for axis in axes)
    if count is not None and count > size:
        raise UserError(f"--random={count}: there are {size} combinations; leave --random out")
    if (count or size) > MOST_VARIANTS:
        raise UserError(f"{count or size:,} variants, of at most {MOST_VARIANTS:,}; draw some of them with --random=20")
    base = _index_of(config, axes)
    chosen = dict.fromkeys([] if base is None else [base])
    generator = random.Random(config.seed)
    following = itertools.count() if count is None else iter(lambda: generator.randrange(size), -1)
    while len(chosen) < (count or size):
        chosen[next(following)] = None
    return {_name(axes, values): values for values in (_combination(axes, index) for index in chosen)}


def one_at_a_time(config: Config, axes: list[Axis]) -> dict[str, dict[str, Any]]:
    """The base config, and it with each other value of an axis alone."""
    fields = flatten(config)
    variants: dict[str, dict[str, Any]] = {"base": {}}
    for axis in axes:
        for value in axis.values:
            if value != fields[axis.path]:
                variants[_name([axis], {axis.path: value})] = {axis.path: value}
    return variants


def _combination(axes: list[Axis], index: int) -> dict[str, Any]:
    """The values of one of the grid, the last axis changing fastest."""
    values = {}
    for axis in reversed(axes):
        index, place = divmod(index, len(axis.values))
        values[axis.path] = axis.values[place]
    return {axis.path: values[axis.path] for axis in axes}


def _index_of(config: Config, axes: list[Axis]) -> int | None:
    """Which of the grid the config itself is, if any."""
    fields, index = flatten(config), 0
    for axis in axes:
        if fields[axis.path] not in axis.values:
            return None
        index = index * len(axis.values) + axis.values.index(fields[axis.path])
    return index


def _name(axes: list[Axis], values: Mapping[str, Any]) -> str:
    """`learning_rate=0.02, dropout_rate=0.3`; of no values, the base."""
    return ", ".join(f"{axis.name}={_word(values[axis.path])}" for axis in axes) or "base"


def _word(value: Any) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_word, value))})"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# ---- studies


def load_study(path: str, overrides: list[str]) -> Study:
    """The study that a module's `get_study()` returns, with `--config.a.b=v` laid over its base. Raises UserError."""
    study = call_file(path, "get_study")
    if not isinstance(study, Study):
        raise UserError(f"{path}: get_study() must return a jaxcnn.ablation.Study, not {type(study).__name__}")
    return dataclasses.replace(study, config=override(study.config, overrides))


def default_folder(experiment: str, axes: list[Axis], *, folds: int | None, drawn: bool, one_at_a_time: bool) -> str:
    """`runs/digits-learning_rate-dropout_rate`: the same fields are one study, which may grow; others are others."""
    parts = [experiment, *(axis.name for axis in axes)] if axes else [experiment, "seeds"]
    parts += [f"{folds}-folds"] if folds else []
    parts += ["random"] if drawn else []
    parts += ["one-at-a-time"] if one_at_a_time else []
    return str(Path("runs") / "-".join(parts))
