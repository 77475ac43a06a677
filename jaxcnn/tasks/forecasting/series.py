"""Series as people have them: a CSV file with a column of stamps, or drawn ones; each on a grid of equal steps.

What is wrong with a file is said in one line, with the column and the line of the file. Nothing is scaled or split.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxcnn.config import ForecastConfig
from jaxcnn.data.splits import Progress
from jaxcnn.errors import UserError, nearest
from jaxcnn.tasks.forecasting.clock import Clock, clock_of, read_stamps, written
from jaxcnn.tasks.tabular.table import number_of, open_csv

MOST_POINTS = 1 << 26  # of all series, with those that are filled in


@dataclass(frozen=True)
class Series:
    """Values at equal steps."""

    name: str
    start: int  # the first stamp, in units of the clock
    values: np.ndarray  # float64 [n]; where none was observed, the last one before
    observed: np.ndarray  # bool [n]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class SeriesSet:
    """Series of one file, all by one clock."""

    series: tuple[Series, ...]
    clock: Clock
    time: str  # the column of stamps
    key: str | None  # the column that names the series; none: each column is one
    columns: tuple[str, ...]  # those of values

    def digest(self) -> str:
        """Of all stamps and values."""
        digest = hashlib.sha256(f"{self.clock}".encode())
        for each in self.series:
            digest.update(f"{each.name}\0{each.start}\0{len(each)}\0".encode())
            digest.update(each.values.astype("<f8").tobytes() + each.observed.tobytes())
        return digest.hexdigest()


# ---- CSV


@dataclass(frozen=True)
class _Rows:
    """A file's cells, with the line of each row."""

    name: str
    header: list[str]
    lines: np.ndarray  # int [n]
    cells: list[list[str]]

    def column(self, name: str) -> list[str]:
        place = self.header.index(name)
        return [row[place].strip() for row in self.cells]


def read_csv(
    file: Path, options: ForecastConfig, tell: Progress, *, known: SeriesSet | None = None, name: str | None = None
) -> SeriesSet:
    """The series of a CSV file: UTF-8, commas, the first line names the columns.

    Args:
      file: it.
      options: which column is what, and what becomes of missing values.
      tell: told what is filled in.
      known: columns and clock of the run that the file is read for; none: those of the file.
      name: what the file is called in messages; none: its path.

    Raises:
      UserError: it cannot be read, or is no file of regular series.
    """
    rows = _read(file, name or str(file))
    time, key, columns = (known.time, known.key, known.columns) if known else _columns(rows, options)
    for column in (time, *([key] if key else []), *columns):
        if column not in rows.header:
            raise UserError(f"{rows.name} has no column {column!r}; {nearest(column, rows.header)}")
    stamps, form = _stamps(rows, time)
    groups = _groups(rows.column(key)) if key else {"": np.arange(len(stamps))}
    for group, places in groups.items():
        _check_order(rows, group, stamps[places], places, form)
    clock = _clock(rows, [stamps[places] for places in groups.values()], form, known)
    series = []
    total = filled = 0
    for group, places in groups.items():
        try:
            counts = clock.counts(stamps[places])
        except ValueError as error:
            raise UserError(f"{rows.name}: {error}; stamps must be regular") from None
        grid = _grid(rows, group, counts, places, clock, options)
        for column in columns:
            made, number = _series(rows, group or column, column, counts, places, grid, options)
            series.append(made)
            filled, total = filled + number, total + len(made)
            if total > MOST_POINTS:
                raise UserError(f"{rows.name}: its series span more than {MOST_POINTS:,} steps in all; leave some out")
    if filled:
        tell(f"{rows.name}: {filled:,} missing values are filled with the last one before (forecast.missing=previous); "
             "they are in no target", 0, 0)  # fmt: skip
    return SeriesSet(tuple(series), clock, time, key, columns)


def _read(file: Path, name: str) -> _Rows:
    header, following = open_csv(file)
    lines, cells = [], []
    for line, row in following:
        if len(row) != len(header):
            raise UserError(f"{name}, line {line:,}, has {len(row)} cells, and the header {len(header)}; mend it")
        lines.append(line)
        cells.append(row)
    if not lines:
        raise UserError(f"{name} has a header and no rows")
    return _Rows(name, header, np.array(lines), cells)


def _columns(rows: _Rows, options: ForecastConfig) -> tuple[str, str | None, tuple[str, ...]]:
    """(the column of stamps, that of names or None, those of values) as the config has them."""
    time = options.time if options.time is not None else rows.header[0]
    key = options.series
    for field, column in (("time", time), ("series", key), *(("values", each) for each in options.values)):
        if column is not None and column not in rows.header:
            raise UserError(
                f"forecast.{field}={column!r}: {rows.name} has no such column; {nearest(column, rows.header)}"
            )
    columns = options.values or tuple(name for name in rows.header if name not in (time, key))
    if len({time, key, *columns}) < 2 + len(columns):
        raise UserError("forecast.time, forecast.series and forecast.values must name different columns")
    if not columns:
        raise UserError(
            f"{rows.name} has no column beside the stamps {time!r}" + (f" and the names {key!r}" if key else "")
        )
    if key is not None and len(columns) > 1:
        raise UserError(
            f"{rows.name}: forecast.series={key!r} names the series, so that one column has their values; there are "
            f"{len(columns)}: set forecast.values=\"('{columns[0]}',)\""
        )
    return time, key, columns


def _groups(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of each series, in the order in which the series come."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name, []).append(place)
    return {name: np.array(places) for name, places in groups.items()}


def _stamps(rows: _Rows, time: str) -> tuple[np.ndarray, str]:
    try:
        return read_stamps(rows.column(time))
    except ValueError as error:
        place = getattr(error, "place", 0)
        raise UserError(f"{rows.name}, line {rows.lines[place]:,}, column {time!r}: {error}") from None


def _check_order(rows: _Rows, group: str, stamps: np.ndarray, places: np.ndarray, form: str) -> None:
    """Raises UserError where a stamp comes twice, or before another that is later."""
    wrong = np.flatnonzero(np.diff(stamps) <= 0)
    if not len(wrong):
        return
    place = wrong[0] + 1
    what, of = written(int(stamps[place]), form), f" of series {group!r}" if group else ""
    line = rows.lines[places[place]]
    if stamps[place] in stamps[:place]:
        raise UserError(
            f"{rows.name}, line {line:,}: the stamp {what}{of} stands there a second time; leave one of them out, or "
            "name the column that tells the series apart: forecast.series"
        )
    before = written(int(stamps[place - 1]), form)
    raise UserError(f"{rows.name}, line {line:,}: the stamp {what}{of} comes after {before}; sort the rows by time")


def _clock(rows: _Rows, groups: Sequence[np.ndarray], form: str, known: SeriesSet | None) -> Clock:
    if known is None:
        try:
            return clock_of(groups, form)
        except UserError as error:
            raise UserError(f"{rows.name}: {error}") from None
    if form != known.clock.form:
        raise UserError(f"{rows.name} writes stamps as {form or 'whole numbers'}, and the run has learned "
                        f"{known.clock.form or 'whole numbers'}")  # fmt: skip
    return known.clock


def _grid(
    rows: _Rows, group: str, counts: np.ndarray, places: np.ndarray, clock: Clock, options: ForecastConfig
) -> np.ndarray:
    """The place of each row on the grid of equal steps. Raises UserError where stamps are irregular, or missing."""
    gaps = np.diff(counts)
    of = f" of series {group!r}" if group else ""
    off = np.flatnonzero(gaps % clock.step)
    told = lambda place: f"{clock.stamp(int(counts[place]))} and {clock.stamp(int(counts[place + 1]))}"
    if len(off):
        raise UserError(
            f"{rows.name}, line {rows.lines[places[off[0] + 1]]:,}: the stamps{of} are irregular: between "
            f"{told(off[0])} lie {_in_words(int(gaps[off[0]]), clock)}, and the step is "
            f"{_in_words(clock.step, clock)}; bring them to equal steps"
        )
    wide = np.flatnonzero(gaps > clock.step)
    if len(wide) and options.missing == "error":
        number = int((gaps[wide] // clock.step - 1).sum())
        raise UserError(
            f"{rows.name}, line {rows.lines[places[wide[0] + 1]]:,}: {number:,} stamps{of} are missing, the first "
            f"between {told(wide[0])}; set forecast.missing=previous to fill them with the last value before"
        )
    grid: np.ndarray = (counts - counts[0]) // clock.step
    if grid[-1] >= MOST_POINTS:
        raise UserError(f"{rows.name}: the stamps{of} span {grid[-1] + 1:,} steps, more than {MOST_POINTS:,}")
    return grid


def _in_words(units: int, clock: Clock) -> str:
    """`3 months`, `1 hour`, `2.5 days`."""
    if clock.unit != "second":
        return f"{units:,}" if clock.unit == "number" else f"{units:,} month{'s' * (units != 1)}"
    size, word = next(
        (size, word) for size, word in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")) if units >= size
    )
    return f"{units / size:g} {word}{'s' * (units != size)}"


def _series(
    rows: _Rows,
    name: str,
    column: str,
    counts: np.ndarray,
    places: np.ndarray,
    grid: np.ndarray,
    options: ForecastConfig,
) -> tuple[Series, int]:
    """(a column of a group on its grid, how many values were filled in). Where gaps are filled, empty ends are cut."""
    place = rows.header.index(column)
    values = np.full(int(grid[-1]) + 1, np.nan)
    for row, to in zip(places, grid, strict=True):
        try:
            values[to] = number_of(rows.cells[row][place])
        except ValueError as error:
            raise UserError(f"{rows.name}, line {rows.lines[row]:,}, column {column!r}: {error}") from None
    observed = ~np.isnan(values)
    empty = np.isnan(values[grid])
    if empty.all():
        raise UserError(f"{rows.name}: the series {name!r} has no value at all; leave it out")
    if empty.any() and options.missing == "error":
        raise UserError(
            f"{rows.name}, line {rows.lines[places[empty.argmax()]]:,}: {int(empty.sum()):,} values of series {name!r} "
            "are missing; set forecast.missing=previous to fill them with the last one before"
        )
    first, last = observed.argmax(), len(observed) - observed[::-1].argmax()
    step = int(counts[1] - counts[0]) // max(1, int(grid[1])) if len(grid) > 1 else 0
    values, observed = values[first:last], observed[first:last]
    latest = np.maximum.accumulate(np.where(observed, np.arange(len(values)), 0))
    return Series(name, int(counts[0]) + int(first) * step, values[latest], observed), int((~observed).sum())


# ---- drawn


def make_seasonal(seed: int) -> SeriesSet:
    """Three hourly series of 1,500 points: a day and a week, a trend, noise of a tenth; drawn by the seed."""
    generator, step = np.random.default_rng([7, seed]), 3600
    hours = np.arange(1500)
    series = []
    for number in range(3):
        day, week, phase = generator.uniform(1, 3), generator.uniform(0.5, 2), generator.uniform(0, 2 * np.pi)
        values = 20 + 5 * number + 0.002 * hours + day * np.sin(2 * np.pi * hours / 24 + phase)
        values += week * np.sin(2 * np.pi * hours / 168) + generator.normal(0, 0.1 * day, len(hours))
        series.append(Series(f"series{number}", 1_704_067_200, values, np.ones(len(hours), bool)))  # 2024-01-01
    clock = Clock("second", step, "%Y-%m-%d %H:%M")
    return SeriesSet(tuple(series), clock, "time", None, tuple(each.name for each in series))
