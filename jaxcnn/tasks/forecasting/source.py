"""The series of a run, and which of their windows are learned from, chosen by and measured: split by time.

Of each series the last steps are test's, those before validation's, those before train's: no step is a target in two
splits, and no window of train sees anything of what comes later.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxcnn.config import Config, ForecastConfig, parse_fold
from jaxcnn.config.choices import SERIES
from jaxcnn.data.folder import find_path
from jaxcnn.data.records import Source, Split
from jaxcnn.data.splits import Progress, record_numbers, restore_splits
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import user_path
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.tasks.forecasting.clock import Clock
from jaxcnn.tasks.forecasting.series import Series, SeriesSet, read_csv
from jaxcnn.tasks.forecasting.windows import Shape, Windows

TEST_FRACTION = 0.1  # of a series' steps, unless forecast.origins says how many windows
SHOWN = 5  # series that a message names


@dataclass(frozen=True, kw_only=True)
class SeriesSource(Source):
    """Series and their windows by split."""

    series: SeriesSet
    shape: Shape

    def facts(self) -> dict[str, Any]:
        """With what the file's columns are, and how its time goes."""
        series, shape = self.series, self.shape
        return {
            **super().facts(),
            "series": {
                "time": series.time, "key": series.key, "columns": list(series.columns), "season": shape.season,
                "clock": series.clock.to_plain(), "num_series": len(series.series),
            },
        }  # fmt: skip

    def words(self) -> str:
        """`3 series, 48 steps to forecast 24`."""
        return f"{len(self.series.series):,} series, {self.shape.length} steps to forecast {self.shape.horizon}"


def open_source(
    config: Config, *, progress: Progress | None = None, kept: dict[str, np.ndarray] | None = None
) -> SeriesSource:
    """Reads series, and splits their windows by time.

    Args:
      config: validated.
      progress: told what is filled in.
      kept: the splits of a run that exists, as Source.record_numbers had them: they are its splits for good.

    Raises:
      UserError: there is no such file, it holds no regular series, or they are too short for the windows.
    """
    series = open_series(config, progress or (lambda *_: None))
    shape = shape_of(config.forecast, series.clock)
    least = config.forecast.least or shape.length
    too_short = [each for each in series.series if len(each) < least + shape.horizon]
    if too_short:
        raise UserError(_too_short(config.data.name, too_short, series.series, least, shape.horizon))
    origins = [np.arange(least, len(each) - shape.horizon + 1) for each in series.series]
    places = np.stack(
        [np.repeat(np.arange(len(origins)), [len(each) for each in origins]), np.concatenate(origins)], axis=1
    )
    windows = Windows(config.data.name, series.series, shape, places)
    stored = {"train": Split(windows, np.arange(len(windows)))}
    fingerprint = fingerprint_of("series", config.data.name.partition(":")[0], series.digest())
    splits = _splits(config, windows, least) if kept is None else restore_splits(kept, stored, fingerprint)
    return SeriesSource(
        name=config.data.name,
        class_names=(),
        image_shape=None,
        splits=splits,
        fingerprint=fingerprint,
        record_numbers=record_numbers(splits, stored, fingerprint),
        series=series,
        shape=shape,
    )


def open_series(config: Config, tell: Progress) -> SeriesSet:
    """The series that data.name names. Raises UserError."""
    data = config.data
    kind, colon, rest = data.name.partition(":")
    choice = SERIES.get(kind)
    if choice is None or bool(colon) != (choice.takes != ""):
        if not colon and data.name.lower().endswith(".csv"):
            raise UserError(f"data.name={data.name!r} says not of what kind it is: did you mean csv:{data.name}?")
        valid = [f"{name}:PATH" if each.takes else name for name, each in SERIES.items()]
        name = f"{kind}:PATH" if colon else data.name
        raise UserError(f"data.name={data.name!r} are no known series: {nearest(name, valid)}")
    load: Callable[..., SeriesSet] = choice.load()
    if choice.takes:
        return load(find_path(data.name, kind, rest, data.dir), config.forecast, tell, name=data.name)
    return load(data.split_seed)


def shape_of(options: ForecastConfig, clock: Clock, season: int | None = None) -> Shape:
    """What every window of a run has. `season`: as the run has it; none: by the config, or the clock."""
    if options.calendar and not clock.num_features:
        raise UserError("forecast.calendar=true is for stamps that are dates, and not a year apart; set it to false")
    season = season or options.season or clock.season
    return Shape(options.length, options.horizon, season, options.centre, options.scale, clock, options.calendar)


def _too_short(name: str, short: list[Series], series: tuple[Series, ...], least: int, horizon: int) -> str:
    names = ", ".join(f"{each.name!r} ({len(each):,})" for each in short[:SHOWN]) + (
        ", …" if len(short) > SHOWN else ""
    )
    return (
        f"{name}: {len(short):,} of {len(series):,} series are shorter than a window of {least} + {horizon} steps: "
        f"{names}; set forecast.least (windows are padded), forecast.length or horizon lower, or leave them out"
    )


# ---- splits


@dataclass(frozen=True)
class _Cut:
    """The windows of one series: the origins of each split."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def _splits(config: Config, windows: Windows, least: int) -> dict[str, Split]:
    """Windows by split. Raises UserError where one of them has none."""
    lengths = [len(each) for each in windows.series]
    cuts = [_cut(length, least, config) for length in lengths]
    first = np.searchsorted(windows.places[:, 0], np.arange(len(lengths)))
    splits = {}
    for name in ("train", "validation", "test"):
        wanted = [first[number] + getattr(cut, name) - least for number, cut in enumerate(cuts)]
        indices = np.concatenate(wanted).astype(np.int64)
        splits[name] = Split(windows, indices[_is_seen(windows, indices)])
    if config.data.validation_fraction == 0 and config.data.fold is None:
        del splits["validation"]
    for name, split in splits.items():
        if not len(split):
            horizon = config.forecast.horizon
            raise UserError(
                f"{config.data.name}: {name} has no window: the longest series has {max(lengths):,} steps, of which "
                f"test and validation take the last, and a window takes {least} + {horizon}; set forecast.least, "
                "length, horizon or origins lower"
            )  # fmt: skip
    return splits


def _is_seen(windows: Windows, indices: np.ndarray) -> np.ndarray:
    """Whether a window has something observed in its past, and in its future: bool [n]."""
    length, horizon = windows.shape.length, windows.shape.horizon
    seen = np.ones(len(indices), bool)
    if all(each.observed.all() for each in windows.series):
        return seen
    for place, (series, origin) in enumerate(windows.places[indices]):
        observed = windows.series[series].observed
        seen[place] = observed[max(0, origin - length) : origin].any() and observed[origin : origin + horizon].any()
    return seen


def _cut(length: int, least: int, config: Config) -> _Cut:
    """The windows of a series of so many steps, by split."""
    options, data = config.forecast, config.data
    horizon, stride = options.horizon, options.stride or options.horizon
    origins = partial(_origins, horizon=horizon, stride=stride, least=least)
    region = _region(TEST_FRACTION * length, horizon, stride, options.origins)
    test = origins(length - region, length)
    begin = int(test[0]) if len(test) else length
    if data.fold is not None:
        fold, count = parse_fold(data.fold)
        block = begin // (count + 1)
        end = begin if fold == count else block * (fold + 1)
        validation = origins(block * fold, end)
        begin = block * fold
    elif data.validation_fraction:
        region = _region(data.validation_fraction * length, horizon, stride, options.origins)
        validation = origins(begin - region, begin)
        begin = int(validation[0]) if len(validation) else begin
    else:
        validation = np.zeros(0, int)
    return _Cut(np.arange(least, begin - horizon + 1), validation, test)


def _region(steps: float, horizon: int, stride: int, origins: int | None) -> int:
    """Steps that are forecast in a split: those of so many windows, or about so many steps; at least a window."""
    return max(horizon, round(steps)) if origins is None else horizon + (origins - 1) * stride


def _origins(begin: int, end: int, *, horizon: int, stride: int, least: int) -> np.ndarray:
    """Origins of windows whose targets lie in [begin, end), the last one first placed, a stride apart; ascending."""
    found = np.arange(end - horizon, max(begin, least) - 1, -stride)
    return found[::-1]


# ---- a file to forecast


def read(
    path: str, *, options: ForecastConfig, data: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | ValueError]]:
    """Each series of a CSV file: its name and last stamp, and the window after its end, or what is wrong with it.

    `data`: of config.json. Raises UserError where the file is none that the run can read.
    """
    try:
        file = user_path(path)
    except ValueError as error:
        raise UserError(f"{path[:200]}: {error}; give the path of a CSV file") from None
    facts = data["series"]
    clock = Clock.of(facts["clock"])
    known = SeriesSet((), clock, facts["time"], facts["key"], tuple(facts["columns"]))
    series = read_csv(file, options, lambda *_: None, known=known, name=path).series
    shape = shape_of(options, clock, facts["season"])
    least = options.least or shape.length
    windows = Windows(path, series, shape, np.array([(number, len(each)) for number, each in enumerate(series)]))
    for number, each in enumerate(series):
        named = {"series": each.name, "after": windows.stamp(number, len(each) - 1)}
        if len(each) < least:
            yield named, ValueError(f"it has {len(each):,} steps, and a forecast needs {least:,}")
        elif not each.observed[-shape.length :].any():
            yield named, ValueError(f"none of its last {shape.length:,} values was observed")
        else:
            yield named, windows[number]
