"""Time as a series has it: stamps as whole numbers of steps, the step that a file has, stamps to come, the calendar.

Nothing is guessed across a file: one way of writing stamps, one step.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.files import to_json

# How stamps may be written; the finest unit that each tells apart.
FORMATS = {
    "%Y-%m-%d %H:%M:%S": "second", "%Y-%m-%dT%H:%M:%S": "second", "%Y-%m-%dT%H:%M:%SZ": "second",
    "%Y-%m-%d %H:%M": "second", "%Y-%m-%dT%H:%M": "second", "%Y-%m-%d": "second", "%Y/%m/%d": "second",
    "%Y-%m": "month",
}  # fmt: skip
DAY = 86_400  # seconds
LARGEST_STAMP = 10**15
# Steps of a season, by the step in seconds or in months: a day of what is finer, a week of days, a year of the rest.
SEASONS = {("second", DAY): 7, ("second", 7 * DAY): 52, ("month", 1): 12, ("month", 3): 4}
SEASONS |= {("second", step): DAY // step for step in (60, 300, 600, 900, 1200, 1800, 3600, 7200, 10_800, 21_600)}


@dataclass(frozen=True)
class Clock:
    """What a stamp is, and how far the next one is. Plain data, which config.json keeps."""

    unit: str  # number: whole numbers; second: since 1970; month: since the year 0
    step: int  # units from one stamp to the next
    form: str = ""  # a key of FORMATS; none: whole numbers
    day: int = 1  # month: of the month, 0 for its last
    second: int = 0  # month: of the day

    def to_plain(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)

    @staticmethod
    def of(plain: dict[str, Any]) -> "Clock":
        """From `to_plain`. Raises UserError where that is no clock."""
        clock = Clock(**plain)
        finest = FORMATS.get(clock.form) if clock.form else "number"
        if clock.unit != finest and (clock.unit, finest) != ("month", "second"):
            raise UserError(f"config.json: {to_json(plain)} is no clock; it is damaged")
        return clock

    @property
    def season(self) -> int:
        """Steps after which time is alike again; 1 where the step says nothing of it."""
        return SEASONS.get((self.unit, self.step), 1)

    def count(self, stamp: str) -> int:
        """A stamp as a whole number of units. Raises ValueError where it is none of this clock's."""
        return int(self.counts(_parsed([stamp], self.form))[0])

    def counts(self, seconds: np.ndarray) -> np.ndarray:
        """Whole numbers of units, int64 [n], of what `_parsed` gave. Raises ValueError where some are off the clock."""
        if self.unit != "month":
            return seconds
        months, days, rest = _months(seconds)
        expected = np.full(len(days), self.day) if self.day else _last_days(months)
        off = np.flatnonzero((days != expected) | (rest != self.second))
        if len(off):
            raise ValueError(
                f"{written(int(seconds[off[0]]), self.form)} is not at the place of its month that others are"
            )
        return months

    def stamp(self, count: int) -> str:
        """A whole number of units as it is written."""
        if self.unit == "month":
            month = np.datetime64(count - 1970 * 12, "M")
            day = self.day or int(_last_days(np.array([count]))[0])
            count = int((month.astype("datetime64[D]").astype(int) + day - 1) * DAY + self.second)
        return written(count, self.form)

    def calendar(self, counts: np.ndarray) -> np.ndarray:
        """What time of the day, week and year it is, float32 [..., features]: sine and cosine of each that can change.

        A function of the stamps alone, so that it is known of the horizon too.
        """
        parts = []
        if self.unit == "month":
            if self.step % 12:
                parts.append(counts % 12 / 12)
        elif self.unit == "second":
            if self.step % DAY:
                parts.append(counts % DAY / DAY)
            if self.step % (7 * DAY):
                parts.append((counts // DAY + 3) % 7 / 7)  # 1970 began on a Thursday
            days = (counts // DAY).astype("datetime64[D]")
            parts.append((days - days.astype("datetime64[Y]").astype("datetime64[D]")).astype(int) / 366)
        turns = [2 * np.pi * part for part in parts]
        waves = [wave(turn) for turn in turns for wave in (np.sin, np.cos)]
        return np.stack(waves, axis=-1).astype(np.float32) if waves else np.zeros((*counts.shape, 0), np.float32)

    @property
    def num_features(self) -> int:
        """Of the calendar."""
        return int(self.calendar(np.zeros(1, np.int64)).shape[-1])


def read_stamps(cells: Sequence[str]) -> tuple[np.ndarray, str]:
    """(stamps as whole numbers or seconds, int64 [n]; how they are written). ValueError(place) where one is none."""
    form = ""
    if not _is_whole(cells[0]):
        form = next((each for each in FORMATS if _fits(cells[0], each)), "")
        if not form:
            raise NoStampError(0, cells[0], "")
    return _parsed(cells, form), form


class NoStampError(ValueError):
    """A cell that is no stamp; `place` of it."""

    def __init__(self, place: int, cell: str, form: str):
        known = "2024-01-31, 2024-01-31 13:00, 2024-01 or whole numbers"
        super().__init__(
            f"{cell[:40]!r} is no stamp as the first one ({form or 'a whole number'})" if place else
            f"{cell[:40]!r} is no stamp that is known: {known}"
        )  # fmt: skip
        self.place = place


def clock_of(groups: Sequence[np.ndarray], form: str) -> Clock:
    """The clock of several series' stamps, each as `read_stamps` has them, in order and without repeats.

    Raises UserError where no two stamps of a series tell the step.
    """
    unit = FORMATS.get(form, "number")
    day, second = 1, 0
    if form:
        months, days, rest = _months(np.concatenate(groups))
        is_last = bool((days == _last_days(months)).all())
        if len(np.unique(rest)) == 1 and (is_last or len(np.unique(days)) == 1) and len(np.unique(months)) > 1:
            unit, day, second = "month", 0 if is_last and days.max() > 28 else int(days[0]), int(rest[0])
    clock = Clock(unit, 1, form, day, second)
    gaps = [np.diff(clock.counts(group)) for group in groups]
    steps, numbers = np.unique(np.concatenate(gaps) if gaps else [], return_counts=True)
    if not len(steps):
        raise UserError("no series has two stamps, so that nothing tells how far one is from the next")
    return Clock(unit, int(steps[numbers.argmax()]), form, day, second)  # the most frequent


def written(count: int, form: str) -> str:
    """A stamp: seconds in a form, or the whole number. Raises UserError beyond the year 9999."""
    try:
        return datetime.fromtimestamp(count, UTC).strftime(form) if form else str(count)
    except (ValueError, OverflowError, OSError):
        raise UserError(f"a stamp lies {count:,} seconds from 1970, in no year that can be written") from None


def _parsed(cells: Sequence[str], form: str) -> np.ndarray:
    found = np.empty(len(cells), np.int64)
    for place, cell in enumerate(cells):
        try:
            if form:
                found[place] = int(datetime.strptime(cell, form).replace(tzinfo=UTC).timestamp())
            elif _is_whole(cell) and abs(int(float(cell))) <= LARGEST_STAMP:
                found[place] = int(float(cell))
            else:
                raise ValueError
        except (ValueError, OverflowError):
            raise NoStampError(place, cell, form) from None
    return found


def _is_whole(cell: str) -> bool:
    try:
        return float(cell).is_integer()
    except (ValueError, OverflowError):
        return False


def _fits(cell: str, form: str) -> bool:
    try:
        datetime.strptime(cell, form)
    except ValueError:
        return False
    return True


def _months(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(months since the year 0, day of the month, second of the day), int64 [n] each."""
    days = (seconds // DAY).astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    return months.astype(np.int64) + 1970 * 12, (days - months.astype("datetime64[D]")).astype(int) + 1, seconds % DAY


def _last_days(months: np.ndarray) -> np.ndarray:
    """The last day of each month, by months since the year 0."""
    first = (months - 1970 * 12).astype("datetime64[M]")
    return ((first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")).astype(int)
