"""The figures of studies and searches, as those of figures.py: plain data in, a Figure out, one function each.

A difference that is shown to be none stays grey, and so do the many that are not among the best.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from jaxcnn.report.figures import (
    NARROW,
    TEXT,
    WIDTH,
    Line,
    blank,
    decades,
    name_ends,
    rgb,
    short,
    spans_much,
    thinned,
)
from jaxcnn.report.palette import ACCENT, INK, LINE, PAPER, RIGHT, SOFT, WRONG, colour, series
from jaxcnn.terminal import shown

ROW, HIGH_ROW = 0.24, 0.38  # inches a variant has in a figure with a row for each; with two lines of its name
LONGEST_LINE = 24  # letters of a line of its name there
CELL = 0.4  # inches: height of a cell of a heat map
SETTLED = 0.25  # of the epochs; the axis of curves is that of what follows
POINTS = 150  # of a line among many
MOST_CATEGORIES = 6  # of a parameter that are named on its axis

Ends = tuple[float, float]  # of an interval


@dataclass(frozen=True)
class BandLine:
    """A mean over runs with its band; `series` none: one of those behind, without name and band."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    series: int | None


@dataclass(frozen=True)
class Estimate:
    """A row of a figure: a variant's mean or difference, with its interval where it has one."""

    name: str
    value: float
    interval: Ends | None = None
    verdict: str = ""
    dots: Sequence[float] = ()  # of its runs


def bands(lines: Sequence[BandLine], *, y_label: str) -> Figure:
    """Means over epochs with their bands. The axis is that of the means once they have settled: see SETTLED.

    The strong ones are named at their ends, or, where a name is too long for that, beneath.
    """
    strong = [line for line in lines if line.series is not None]
    beneath = any(short(line.name) != shown(line.name) for line in strong)
    figure, axes = blank(0.62 + beneath * 0.2 * len(strong) / NARROW, NARROW)
    epochs = np.concatenate([line.xs for line in lines])
    means = np.concatenate([line.ys for line in lines])
    means = means[epochs >= epochs.min() + SETTLED * np.ptp(epochs)]
    if spans_much(means):
        axes.set_yscale("log", nonpositive="clip")
        decades(axes.yaxis, means)
    for line in lines:
        if line.series is None:
            axes.plot(*thinned(line.xs, line.ys, POINTS), color=colour(SOFT), linewidth=0.7, alpha=0.3, zorder=1)
            continue
        xs, ys = thinned(line.xs, line.ys)
        low, high = (thinned(line.xs, each)[1] for each in (line.low, line.high))
        marker, shade = "o" if len(xs) <= 40 else None, series(line.series)
        label = middle_out(line.name, 2 * LONGEST_LINE)
        axes.plot(xs, ys, color=shade, linewidth=1.8, marker=marker, markersize=2.6, zorder=3, label=label)
        axes.fill_between(xs, low, high, color=shade, alpha=0.16, linewidth=0, zorder=2)
    axes.set_ylim(*_around(means, logarithmic=axes.get_yscale() == "log"))
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch")
    axes.set_title(y_label, loc="left", fontsize=TEXT, color=colour(INK))
    if beneath:
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.02, -0.22), frameon=False, fontsize=TEXT, labelcolor=colour(INK),
            handlelength=1.2, borderaxespad=0, labelspacing=0.3,
        )  # fmt: skip
    else:
        ends = [np.clip(line.ys[-1:], *axes.get_ylim()).tolist() for line in strong]
        name_ends(
            axes, [Line(line.name, line.xs[-1:], end, line.series or 0) for line, end in zip(strong, ends, strict=True)]
        )
    return figure


def _around(values: np.ndarray, *, logarithmic: bool) -> Ends:
    """Ends of an axis with some room about the values."""
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        return low / 1.25, high * 1.25
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def forest(rows: Sequence[Estimate], *, x_label: str) -> Figure:
    """Differences to the base with their intervals about a line at zero, a row each, the first on top."""
    figure, axes = _rows([row.name for row in rows])
    axes.axvline(0, color=colour(INK), linewidth=1)
    for place, row in enumerate(rows):
        shade = colour({"better": RIGHT, "worse": WRONG}.get(row.verdict, SOFT))
        if row.interval is not None:
            axes.plot(row.interval, [place, place], color=shade, linewidth=1.8, solid_capstyle="round")
        filled = row.verdict in ("better", "worse")
        face = shade if filled else colour(PAPER)
        axes.plot([row.value], [place], "o", color=shade, markersize=5, markerfacecolor=face, markeredgewidth=1.4)
    axes.set_xlabel(x_label)
    return figure


def strips(rows: Sequence[Estimate], *, x_label: str, base: str) -> Figure:
    """A dot for every run's score, and the mean of each variant as a bar across, with a line of the base's mean."""
    figure, axes = _rows([row.name for row in rows])
    for place, row in enumerate(rows):
        shade = colour(INK if row.name == base else ACCENT)
        heights = place + np.resize([0, -0.16, 0.16, -0.08, 0.08], len(row.dots))  # dots of equal scores stay apart
        axes.scatter(row.dots, heights, s=13, color=shade, alpha=0.55, linewidth=0)
        axes.plot([row.value] * 2, [place - 0.33, place + 0.33], color=shade, linewidth=2, solid_capstyle="butt")
        if row.name == base:
            axes.axvline(row.value, color=colour(SOFT), linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlabel(x_label)
    return figure


def _rows(names: Sequence[str], width: float = WIDTH) -> tuple[Figure, Axes]:
    """Axes with a row for each name, the first on top."""
    told = [_lines_of(name) for name in names]
    row = HIGH_ROW if any("\n" in each for each in told) else ROW
    figure, axes = blank((0.75 + row * len(names)) / width, width)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), told, color=colour(INK), linespacing=1.0)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=colour(LINE), linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _lines_of(name: str) -> str:
    """A name in one line or two."""
    lines = textwrap.wrap(middle_out(name, 2 * LONGEST_LINE), LONGEST_LINE)
    return "\n".join(lines if len(lines) <= 2 else [lines[0], short(" ".join(lines[1:]), LONGEST_LINE)])


def middle_out(name: str, longest: int) -> str:
    """A name without its middle where it is too long: what tells names apart stands at either end."""
    name, half = shown(name), longest // 2
    return name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"


def heat_map(
    means: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    fields: tuple[str, str],
    form: str,
    low_is_best: bool,
) -> Figure:
    """Means of a grid of two fields, float [rows, columns], the better the darker; NaN is a cell without runs."""
    height, width = means.shape
    figure, axes = blank((0.8 + CELL * height) / NARROW, NARROW)
    known = means[np.isfinite(means)]
    span = float(known.max() - known.min()) or 1.0
    for row, column in np.argwhere(np.isfinite(means)):
        value = means[row, column]
        share = (value - known.min()) / span
        strength = 0.06 + 0.94 * float(1 - share if low_is_best else share)
        axes.add_patch(
            Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, linewidth=0, facecolor=(*rgb(ACCENT), strength))
        )
        if width <= 8:
            shade = colour(PAPER if strength > 0.6 else INK)
            axes.text(
                column, row, format(value, form), ha="center", va="center_baseline", fontsize=TEXT - 1, color=shade
            )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    turned = 0 if sum(map(len, columns)) <= 40 else 45
    axes.set_xticks(
        range(width), [short(name) for name in columns], rotation=turned, ha="right" if turned else "center"
    )
    axes.set_yticks(range(height), [short(name) for name in rows])
    axes.set_title(fields[0], loc="left", fontsize=TEXT, color=colour(INK))
    axes.set_xlabel(fields[1])
    return figure


def response(xs: Sequence[float], rows: Sequence[Estimate], *, x_label: str, y_label: str) -> Figure:
    """Means with their intervals against a field's values, which increase."""
    figure, axes = blank(0.62, NARROW)
    if spans_much(xs):
        axes.set_xscale("log")
        decades(axes.xaxis, xs)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    for x, row in zip(xs, rows, strict=True):
        if row.interval is not None:
            axes.plot([x, x], row.interval, color=series(0), linewidth=1.6, alpha=0.55, solid_capstyle="round")
    axes.plot(xs, [row.value for row in rows], color=series(0), linewidth=1.8, marker="o", markersize=4)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", fontsize=TEXT, color=colour(INK))
    return figure


# ---- of a search


def best_so_far(numbers: Sequence[int], values: Sequence[float], *, lower: bool, y_label: str) -> Figure:
    """The value of each trial that finished, and the best one until then."""
    figure, axes = blank(0.62, NARROW)
    best = (np.minimum if lower else np.maximum).accumulate(np.asarray(values, float))
    if spans_much(values):
        axes.set_yscale("log")
        decades(axes.yaxis, values)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.scatter(numbers, values, s=11, color=colour(SOFT), alpha=0.55, linewidth=0)
    axes.step(numbers, best, where="post", color=series(0), linewidth=1.8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("trial")
    axes.set_title(y_label, loc="left", fontsize=TEXT, color=colour(INK))
    return figure


def bars(names: Sequence[str], shares: Sequence[float]) -> Figure:
    """Shares as bars, the first on top, each with its per cent."""
    figure, axes = _rows(names, NARROW)
    axes.barh(range(len(names)), shares, height=0.6, color=colour(ACCENT), linewidth=0)
    for place, share in enumerate(shares):
        axes.text(share, place, f" {share:.0%}", va="center", fontsize=TEXT, color=colour(INK))
    axes.set_xlim(0, 1.12 * max(shares))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return figure


@dataclass(frozen=True)
class Scale:
    """An axis of parallel coordinates: what it is, each line's place on it from 0 to 1 (NaN: none), and its words."""

    name: str
    places: np.ndarray
    words: Sequence[tuple[float, str]]  # (place, what stands there)


def scale_of(name: str, values: Sequence[Any]) -> Scale:
    """Numbers by size, by their logarithm where they span much; anything else by name. None is no value."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        logarithmic = len(set(known)) > 1 and spans_much(known)
        numbers = np.array([np.nan if value is None else value for value in values], float)
        numbers = np.log(numbers) if logarithmic else numbers
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        places = (numbers - low) / (high - low) if high > low else np.where(np.isnan(numbers), np.nan, 0.5)
        if high == low:
            return Scale(name, places, [(0.5, f"{known[0]:.3g}")])
        return Scale(name, places, [(0.0, f"{min(known):.3g}"), (1.0, f"{max(known):.3g}")])
    kinds = sorted(map(str, dict.fromkeys(map(str, known))))
    at = {kind: place / max(len(kinds) - 1, 1) if len(kinds) > 1 else 0.5 for place, kind in enumerate(kinds)}
    places = np.array([np.nan if value is None else at[str(value)] for value in values], float)
    return Scale(name, places, [(at[kind], kind) for kind in kinds] if len(kinds) <= MOST_CATEGORIES else [])


def parallel_coordinates(scales: Sequence[Scale], best: Sequence[int]) -> Figure:
    """A line for each trial through its place on each scale; those whose numbers are in `best` stand out."""
    figure, axes = blank(0.66)
    places = np.array([scale.places for scale in scales])  # [scales, lines]
    xs, chosen = np.arange(len(scales)), set(best)
    for number in [*(n for n in range(places.shape[1]) if n not in chosen), *best]:
        strong, known = number in chosen, np.isfinite(places[:, number])  # a gap is bridged
        axes.plot(
            xs[known], places[known, number], color=colour(ACCENT if strong else SOFT), zorder=3 if strong else 2,
            linewidth=1.5 if strong else 0.7, alpha=0.85 if strong else 0.3, marker="o" if strong else None,
            markersize=2.5,
        )  # fmt: skip
    for x, scale in enumerate(scales):
        axes.axvline(x, ymin=0.06, ymax=0.94, color=colour(SOFT), linewidth=0.9, zorder=1)
        for place, word in scale.words:
            end = place in (0.0, 1.0) and len(scale.words) == 2
            side = {0.0: "top", 1.0: "bottom"}.get(place, "center") if end else "center"
            axes.text(
                x, place + (0.02 if side == "bottom" else -0.02 if side == "top" else 0), short(word), ha="center",
                va=side, fontsize=TEXT - 1.5, color=colour(INK), zorder=4,
                bbox={"boxstyle": "round,pad=0.1", "facecolor": colour(PAPER), "alpha": 0.8, "linewidth": 0},
            )  # fmt: skip
    axes.set_ylim(-0.068, 1.068)
    axes.set_xlim(-0.3, len(scales) - 0.7)
    axes.set_yticks([])
    axes.set_xticks(xs, [short(scale.name) for scale in scales], rotation=30, ha="right", color=colour(INK))
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    return figure
