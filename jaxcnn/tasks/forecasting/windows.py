"""Windows of series: what a forecast is made of, and what it is compared with.

A window at an origin t has the steps before t as its past and those from t on as its future. Everything but `value` and
`observed` is made of the past and of stamps alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxcnn.data.records import ArraySpec, Example
from jaxcnn.data.records import Progress as Counter
from jaxcnn.tasks.forecasting.clock import Clock
from jaxcnn.tasks.forecasting.series import Series

BASELINES = ("naive", "seasonal_naive", "drift")
AT_ONCE = 4096  # windows that are made together
LEAST_SCALE = 1e-9  # of the largest value of the past: what varies less is constant


@dataclass(frozen=True)
class Shape:
    """What every window of a run has."""

    length: int  # steps of the past
    horizon: int
    season: int
    centre: str  # what is subtracted: none, mean, last
    scale: str  # what is divided by: none, mean_absolute, std
    clock: Clock
    calendar: bool  # whether time of day, week and year are inputs

    @property
    def num_inputs(self) -> int:
        """Of each step: the value, whether it was observed, the calendar."""
        return 2 + (self.clock.num_features if self.calendar else 0)

    @property
    def example(self) -> dict[str, ArraySpec]:
        """The arrays of a window; all in its own scale but `shift`, `scale` and `error_scale`."""
        steps, horizon, number = self.length + self.horizon, (self.horizon,), ()
        shapes = {
            "inputs": (steps, self.num_inputs),  # value and observed of the horizon are 0
            "value": horizon,  # the truth, 0 where it is not observed
            "observed": horizon,
            "baselines": (len(BASELINES), self.horizon),
            "shift": number,  # a value is shift + scale * what stands here
            "scale": number,
            "error_scale": number,  # the seasonal naive forecast's mean absolute error in the past; 0: there is none
        }
        return {name: ArraySpec(shape, np.float32) for name, shape in shapes.items()}


class Windows:
    """Windows of many series, in memory: records of the feed. Picklable."""

    files: tuple[Path, ...] = ()

    def __init__(self, name: str, series: Sequence[Series], shape: Shape, places: np.ndarray):
        """`places`, int [n, 2]: the series and the origin of each window."""
        self.name, self.shape, self.places = name, shape, places
        self.series = tuple(series)
        lengths = np.array([len(each) for each in series])
        self._begins = np.cumsum(lengths) - lengths
        self._lengths, self._starts = lengths, np.array([each.start for each in series])
        self._values = np.concatenate([each.values for each in series])
        self._observed = np.concatenate([each.observed for each in series])
        sums = [_season_errors(each, shape.season) for each in series]
        self._errors, self._counts = (np.concatenate(each) for each in zip(*sums, strict=True))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, record: int) -> Example:
        return next(self.read([record]))

    @property
    def example(self) -> dict[str, ArraySpec]:
        """The arrays of one window."""
        return self.shape.example

    def labels(self, progress: Counter | None = None) -> np.ndarray:
        """All of one class."""
        return np.zeros(len(self), np.int32)

    def identifier(self, record: int) -> str:
        """`sales@2024-01-31`: the series, and the last stamp of the past."""
        series, origin = self.places[record]
        return f"{self.series[series].name}@{self.stamp(series, origin - 1)}"

    def stamp(self, series: int, place: int) -> str:
        """The stamp of a series' place, which may lie beyond its end."""
        return self.shape.clock.stamp(int(self._starts[series] + place * self.shape.clock.step))

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The windows in the order asked."""
        records = np.asarray(records)
        for start in range(0, len(records), AT_ONCE):
            arrays = self.arrays(records[start : start + AT_ONCE])
            names = list(arrays)
            yield from (dict(zip(names, row, strict=True)) for row in zip(*arrays.values(), strict=True))

    def arrays(self, records: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of some windows, float32 [n, ...] each, as `Shape.example` has them; made in float64."""
        shape, (series, origin) = self.shape, self.places[records].T
        begin, length = self._begins[series], self._lengths[series]
        steps = origin[:, None] + np.arange(-shape.length, shape.horizon)  # places in the series, [n, length + horizon]
        is_past, is_there = steps < origin[:, None], (steps >= 0) & (steps < length[:, None])
        where = begin[:, None] + np.clip(steps, 0, length[:, None] - 1)
        value, observed = self._values[where], self._observed[where] & is_there
        past, known = value[:, : shape.length], observed[:, : shape.length]
        shift, scale = scaling(past, known, centre=shape.centre, scale=shape.scale)
        scaled = (value - shift[:, None]) / scale[:, None]
        inputs = [np.where(is_there & is_past, scaled, 0), observed & is_past]
        if shape.calendar:
            calendar = shape.clock.calendar(self._starts[series][:, None] + steps * shape.clock.step)
            inputs += list(np.moveaxis(calendar, -1, 0))
        future = observed[:, shape.length :]
        count = self._counts[begin + origin - 1]
        baselines = (self._baselines(begin, origin) - shift[:, None, None]) / scale[:, None, None]
        made = {
            "inputs": np.stack(inputs, axis=-1),
            "value": np.where(future, scaled[:, shape.length :], 0),
            "observed": future,
            "baselines": baselines,
            "shift": shift,
            "scale": scale,
            "error_scale": self._errors[begin + origin - 1] / np.maximum(count, 1),
        }
        return {name: array.astype(np.float32) for name, array in made.items()}

    def _baselines(self, begin: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Forecasts without a model, [n, 3, horizon]: Hyndman & Athanasopoulos 2021, section 5.2, of the whole past."""
        season, ahead = self.shape.season, np.arange(self.shape.horizon)
        first, last = self._values[begin], self._values[begin + origin - 1]
        naive = np.repeat(last[:, None], len(ahead), axis=1)
        before = origin[:, None] - season + ahead % season
        seasonal = np.where(origin[:, None] >= season, self._values[begin[:, None] + np.maximum(before, 0)], naive)
        slope = (last - first) / np.maximum(origin - 1, 1)
        return np.stack([naive, seasonal, naive + slope[:, None] * (ahead + 1)], axis=1)


def scaling(past: np.ndarray, observed: np.ndarray, *, centre: str, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """(what is subtracted, what is divided by), [n] each, of the past of windows [n, length] alone.

    A constant past is divided by its absolute value, one of zeros by 1.
    """
    count = np.maximum(observed.sum(axis=1), 1)
    mean = (past * observed).sum(axis=1) / count
    size = (np.abs(past) * observed).sum(axis=1) / count
    if scale == "std":
        size = np.sqrt((((past - mean[:, None]) * observed) ** 2).sum(axis=1) / count)
    largest = np.abs(past).max(axis=1)
    size = np.where(size > LEAST_SCALE * largest, size, np.where(largest > 0, largest, 1))
    shift = {"none": np.zeros_like(mean), "mean": mean, "last": past[:, -1]}[centre]
    return shift, np.ones_like(size) if scale == "none" else size


def _season_errors(series: Series, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to each place: the sum of the seasonal naive forecast's absolute errors, and how many these are."""
    errors, count = np.zeros(len(series)), np.zeros(len(series))
    if season < len(series):
        both = series.observed[season:] & series.observed[:-season]
        errors[season:] = np.abs(series.values[season:] - series.values[:-season]) * both
        count[season:] = both
    return np.cumsum(errors), np.cumsum(count)
