"""A space of configs: the fields that a search varies, their bounds or values, and under which conditions.

A point of it is {field: parameter}: a number, or of values the text that they were given as. Imports neither Optuna nor
JAX.
"""

import math
import random
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jaxcnn.ablation.study import overridden
from jaxcnn.config import RESUMABLE_FIELDS, Config, check_fields, flatten, validate
from jaxcnn.config.command_line import declared_type, parse_value, split_values
from jaxcnn.errors import UserError

FORMS = "FIELD=LOW:HIGH, FIELD=LOW:HIGH:STEP, FIELD=log:LOW:HIGH or FIELD=A,B,C, and behind it maybe ' if FIELD=A,B'"
DRAWS = 100  # points that are drawn to see whether any is possible
MOST_STEPS = 10**6  # of one range
# What these hold is what trials are compared by: the question, the data that answer it, luck.
NOT_SEARCHED = (
    "task", "seed", "measure_test", "checkpoint.best_metric", "data.name", "data.train_split", "data.validation_split",
    "data.test_split", "data.validation_fraction", "data.fold", "data.stratify", "data.split_seed", "data.classes",
)  # fmt: skip
Point = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, which belong to it."""

    low: float
    high: float
    step: float | None = None  # none: every number, of integers every one
    log: bool = False  # drawn on a logarithmic scale
    integer: bool = False

    def points(self) -> Iterator[float] | None:
        """All numbers, from the lowest; None where they are endless."""
        step = self.step or (1 if self.integer else None)
        if step is None:
            return None
        count = round((self.high - self.low) / step) + 1
        return (self._tidy(self.low + number * step) for number in range(count))

    def parameters_of(self, value: float) -> list[float]:
        """The integer itself, where it is one of them."""
        return [value] if self.low <= value <= self.high and (value - self.low) % (self.step or 1) == 0 else []

    def _tidy(self, value: float) -> float:
        return round(value) if self.integer else float(f"{value:.12g}")  # 0.3, not 0.30000000000000004

    def drawn(self, generator: random.Random) -> float:
        """One of them."""
        if self.step is not None:
            return self._tidy(self.low + self.step * generator.randint(0, round((self.high - self.low) / self.step)))
        value = generator.uniform(*((math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)))
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.integer else value


@dataclass(frozen=True)
class Values:
    """Single values."""

    by_text: Mapping[str, Any]  # as they were given -> as the config has them

    def points(self) -> Iterator[str]:
        """All of them, in their order."""
        return iter(self.by_text)

    def parameters_of(self, value: Any) -> list[str]:
        """What stands for a value."""
        return [text for text, each in self.by_text.items() if each == value]

    def drawn(self, generator: random.Random) -> str:
        """One of them."""
        return generator.choice(list(self.by_text))


@dataclass(frozen=True)
class Condition:
    """What another dimension must be."""

    field: str
    parameters: frozenset[Any]


@dataclass(frozen=True)
class Dimension:
    """One field that is varied."""

    field: str
    text: str  # what was given of it
    kind: Range | Values
    condition: Condition | None = None

    def is_met(self, point: Mapping[str, Any]) -> bool:
        """Whether the field is varied at all, with what was chosen before it; if not it stays the base config's."""
        return self.condition is None or point.get(self.condition.field) in self.condition.parameters


@dataclass(frozen=True)
class Space:
    """A base config and the dimensions in which others differ from it."""

    config: Config
    dimensions: tuple[Dimension, ...]  # each behind the one that its condition names

    def choose(self, one: Callable[[Dimension], Any]) -> Point:
        """A point, of which `one` chooses each parameter that its conditions ask for."""
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.is_met(point):
                point[dimension.field] = one(dimension)
        return point

    def points(self) -> Iterator[Point]:
        """All points. Raises UserError where a dimension's are endless."""
        for each in self.dimensions:
            if each.kind.points() is None:
                raise UserError(
                    f"--space {each.text}: a grid needs steps or values, and this range has neither; write "
                    "LOW:HIGH:STEP, or the values: 0.001,0.01,0.1"
                )
        return _points(self.dimensions, {})

    def size(self, *, most: int) -> int:
        """The number of points, counted up to `most`, which stands for the endless too."""
        if any(each.kind.points() is None for each in self.dimensions):
            return most
        return sum(1 for _ in islice(self.points(), most))

    def fields_of(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a point, as the config has them."""
        kinds = {each.field: each.kind for each in self.dimensions}
        return {
            field: kind.by_text[parameter] if isinstance(kind := kinds[field], Values) else parameter
            for field, parameter in point.items()
        }

    def config_of(self, point: Mapping[str, Any]) -> Config:
        """The config of a point, validated. Raises UserError where its options conflict."""
        config = overridden(self.config, self.fields_of(point))
        validate(config)
        return config

    def draws(self, count: int = DRAWS) -> Iterator[tuple[Point, str | None]]:
        """Points drawn at random, always the same, each with what is wrong with its config."""
        generator = random.Random(0)
        for _ in range(count):
            point, wrong = self.choose(lambda dimension: dimension.kind.drawn(generator)), None
            try:
                self.config_of(point)
            except UserError as error:
                wrong = str(error)
            yield point, wrong


def _points(dimensions: Sequence[Dimension], point: Point) -> Iterator[Point]:
    if not dimensions:
        yield point
        return
    first, rest = dimensions[0], dimensions[1:]
    if not first.is_met(point):
        yield from _points(rest, point)
        return
    for parameter in first.kind.points() or ():
        yield from _points(rest, {**point, first.field: parameter})


# ---- from a command line


def parse_space(texts: Sequence[str], config: Config) -> Space:
    """The space that `--space` options write, checked.

    Args:
      texts: as FORMS says, each of one field.
      config: validated; what is not varied stays as it has it.

    Raises:
      UserError: one cannot be read, names no field, or goes beyond what the field takes; or no config is possible.
    """
    if not texts:
        raise UserError("nothing is searched; pass --space optimizer.learning_rate=log:1e-4:1e-1")
    given, asked = {}, {}
    for text in texts:
        field, spec, condition = _parts(text)
        if field in given:
            raise UserError(f"--space names {field} twice; write all its values in one")
        given[field] = Dimension(field, text.strip(), _kind(text, field, spec, config))
        asked[field] = condition
    for field, condition in asked.items():
        if condition is not None:
            given[field] = replace(given[field], condition=_condition(given, field, *condition, config))
    space = Space(config, _in_order(given))
    messages = (message for _, message in space.draws())
    first = next(messages)
    if first is not None and all(messages):
        raise UserError(f"no config of the space is possible: {first}")
    return space


def _parts(text: str) -> tuple[str, str, tuple[str, str] | None]:
    """Field, what it may be, and the condition's field and values."""
    match = re.fullmatch(r"([\w.]+)\s*=\s*(\S.*?)(?:\s+if\s+([\w.]+)\s*=\s*(\S.*))?", text.strip(), re.DOTALL)
    if match is None:
        raise UserError(f"--space {text[:80]!r} cannot be read; write {FORMS}")
    field = match[1]
    declared_type(field)
    if field in NOT_SEARCHED:
        raise UserError(f"--space {text[:80]}: {field} is what trials are compared by, and so the same for all of them")
    if field in RESUMABLE_FIELDS:
        raise UserError(f"--space {text[:80]}: {field} changes nothing of the result")
    return field, match[2], (match[3], match[4]) if match[3] else None


def _kind(text: str, field: str, spec: str, config: Config) -> Range | Values:
    hint = declared_type(field)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    is_number = bool({int, float} & set(options))
    match = re.fullmatch(r"(log:)?([^:,]+):([^:,]+)(?::([^:,]+))?", spec) if is_number else None
    try:
        kind = _values(field, spec) if match is None else _range(field, *match.groups(), integer=float not in options)
        ends = kind.by_text.values() if isinstance(kind, Values) else (kind.low, kind.high)
        for value in ends:
            check_fields(overridden(config, {field: value}))
    except UserError as error:
        raise UserError(f"--space {text[:200]}: {error}") from None
    return kind


def _range(field: str, log: str | None, low: str, high: str, step: str | None, *, integer: bool) -> Range:
    bounds = parse_value(field, low.strip()), parse_value(field, high.strip())
    if None in bounds or not all(map(math.isfinite, bounds)):
        raise UserError(f"{field} is searched between two numbers")
    width = parse_value(field, step.strip()) if step else None
    if bounds[0] >= bounds[1]:
        raise UserError(f"the bounds must grow; set one value by --config.{field}={low.strip()}")
    if log and (bounds[0] <= 0 or step):
        raise UserError("a logarithmic range begins above 0, and has no steps; write log:0.001:1")
    if step:
        count = (bounds[1] - bounds[0]) / width if width and math.isfinite(width) else 0
        if not 1 <= count <= MOST_STEPS or abs(count - round(count)) > 1e-6:
            raise UserError(
                f"{step.strip()} is no step that leads from {low.strip()} to {high.strip()}; write 0:1:0.25"
            )
    return Range(bounds[0], bounds[1], width, bool(log), integer)


def _values(field: str, spec: str) -> Values:
    by_text = {text: parse_value(field, text) for text in split_values(spec)}
    if len(set(map(repr, by_text.values()))) < len(split_values(spec)):
        raise UserError("a value stands there twice; write each once")
    if len(by_text) < 2:
        raise UserError(f"this is one value; set it by --config.{field}={spec}, or write several: A,B")
    return Values(by_text)


def _condition(given: Mapping[str, Dimension], field: str, on: str, spec: str, config: Config) -> Condition | None:
    """What `if ON=SPEC` asks for; None where the base config has it for good."""
    where = f"--space {given[field].text[:200]}"
    wanted = [parse_value(on, text) for text in split_values(spec)]
    if on not in given:
        value = flatten(config)[on]
        if value in wanted:
            return None
        raise UserError(f"{where}: this is never met: {on} is {value!r}, and is not varied itself")
    kind = given[on].kind
    if isinstance(kind, Range) and not kind.integer:
        raise UserError(f"{where}: {on} is a range; a condition is on integers, or on single values")
    met = [kind.parameters_of(value) for value in wanted]
    if [] in met:
        raise UserError(f"{where}: this is never met: {on} is never {wanted[met.index([])]!r}")
    return Condition(on, frozenset(parameter for each in met for parameter in each))


def _in_order(given: Mapping[str, Dimension]) -> tuple[Dimension, ...]:
    """Each behind the one that its condition names. Raises UserError where they wait for each other."""
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(given):
        free = [
            each
            for each in given.values()
            if each.field not in ordered and (each.condition is None or each.condition.field in ordered)
        ]
        if not free:
            waiting = [field for field in given if field not in ordered]
            raise UserError(f"--space: the conditions of {', '.join(waiting)} wait for each other")
        ordered |= {each.field: each for each in free}
    return tuple(ordered.values())
