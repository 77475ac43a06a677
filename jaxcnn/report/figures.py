"""The figures, drawn with matplotlib in the palette's light colours: plain data in, a Figure out, one function each.

What a line is stands beside it rather than in a legend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator

from jaxcnn.report.palette import ACCENT, INK, LINE, PAPER, RIGHT, SOFT, WRONG, colour, series
from jaxcnn.terminal import shown

WIDTH, NARROW = 5.6, 4.6  # inches of 72 points; narrow ones stand three to a row. A phone shows a point as a pixel
TEXT = 10.5  # points
LONGEST_NAME = 14  # letters of a name within a figure
CELLS_WITH_NUMBERS = 20  # classes up to which a confusion matrix says its numbers
LABELLED_CLASSES = 30  # classes up to which clusters are named and coloured
LOG_FROM = 20.0  # ratio of highest to lowest from which an axis is logarithmic
MOST_POINTS = 600  # of a line
FEW_EXAMPLES = 10  # bins of fewer are drawn pale


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    series: int  # its colour
    main: bool = True  # strong, with dots where they are few; else thin behind the others


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """A name as short as figures have room for."""
    name = shown(name)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def curves(
    lines: Sequence[Line], *, x_label: str, y_label: str, from_zero: bool = False, logarithmic: bool | None = None
) -> Figure:
    """Lines over one axis, each named at its end; a logarithmic axis where values span much, if it may be one."""
    figure, axes = blank(0.62, NARROW)
    lines = [_finite(line) for line in lines]
    values = np.concatenate([np.asarray(line.ys, float) for line in lines] or [np.ones(1)])
    if logarithmic is None:
        logarithmic = spans_much(values)
    if logarithmic:
        axes.set_yscale("log")
        decades(axes.yaxis, values)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if values.size and abs(values).max() >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    for line in lines:
        few = len(line.xs) <= 40
        axes.plot(
            line.xs,
            line.ys,
            color=series(line.series),
            linewidth=1.8 if line.main else 1.0,
            alpha=1.0 if line.main else 0.55,
            marker="o" if few and line.main else None,
            markersize=2.6,
            solid_capstyle="round",
            zorder=3 if line.main else 2,
        )
    axes.margins(x=0.02)
    axes.autoscale_view()
    if from_zero and not logarithmic:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", fontsize=TEXT, color=colour(INK))
    name_ends(axes, lines)
    return figure


def confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> tuple[Figure, dict[str, str]]:
    """Rows are labels, columns predictions, each cell its share of the row; and what to say of each cell by its gid."""
    count = len(names)
    figure, axes = blank(1.0)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    titles: dict[str, str] = {}
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    for side in axes.spines.values():
        side.set_visible(False)
    if count > 2 * CELLS_WITH_NUMBERS:  # too many to be shapes of their own
        cells = np.zeros((count, count, 4))
        cells[..., :3] = rgb(WRONG)
        cells[np.arange(count), np.arange(count), :3] = rgb(RIGHT)
        cells[..., 3] = np.where(share > 0, 0.35 + 0.65 * _strength(share), 0)
        axes.imshow(cells, interpolation="none", aspect="equal")
    else:
        for row, column in np.argwhere(matrix):
            strength, gid = _strength(share[row, column]), f"cell-{row}-{column}"
            right = row == column
            patch = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, linewidth=0, gid=gid)
            patch.set_facecolor((*rgb(RIGHT if right else WRONG), float(strength)))
            axes.add_patch(patch)
            titles[gid] = (
                f"{names[row]}: {matrix[row, column]:,} of {matrix[row].sum():,} ({share[row, column]:.1%}) "
                + ("predicted right" if right else f"predicted as {names[column]}")
            )
            if count <= CELLS_WITH_NUMBERS:
                axes.text(
                    column,
                    row,
                    f"{matrix[row, column]}",
                    ha="center",
                    va="center_baseline",
                    fontsize=TEXT - 1.5 if count <= 12 else TEXT - 4,
                    color=colour(PAPER if strength > 0.8 else INK),
                )
    if count <= 2 * CELLS_WITH_NUMBERS:
        size = TEXT if count <= 12 else TEXT - 3
        axes.set_xticks(range(count), [short(name) for name in names], rotation=45, ha="left", fontsize=size)
        axes.set_yticks(range(count), [short(name) for name in names], fontsize=size)
        for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            label.set_rotation_mode("anchor")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_ylabel("label")
    axes.set_xlabel("prediction")
    return figure, titles


def reliability(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> Figure:
    """Accuracy over confidence, bin by bin, with how many examples each bin has beneath."""
    figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    for axes in (above, below):
        style(axes)
    number = len(count)
    edges = np.linspace(0, 1, number + 1)
    above.plot([0, 1], [0, 1], color=colour(SOFT), linewidth=1, linestyle=(0, (4, 3)))
    for place in np.flatnonzero(count):
        start, width = edges[place] + 0.07 / number, 0.86 / number
        low, high = sorted((confidence[place], accuracy[place]))
        opacity = 1.0 if count[place] >= FEW_EXAMPLES else 0.3
        for bottom, top, name, strength in ((0.0, low, ACCENT, 0.3), (low, high, WRONG, 0.75)):
            face = (*rgb(name), strength * opacity)
            above.add_patch(Rectangle((start, bottom), width, top - bottom, facecolor=face, linewidth=0))
        ends, line = [start, start + width], [accuracy[place]] * 2
        above.plot(ends, line, color=colour(ACCENT), linewidth=2.2, solid_capstyle="butt", alpha=opacity)
    above.set_ylim(0, 1)
    above.set_xlim(0, 1)
    above.set_title("accuracy", loc="left", fontsize=TEXT, color=colour(INK))
    middles, width = (edges[:-1] + edges[1:]) / 2, 0.86 / number
    below.bar(middles, count, width=width, color=colour(SOFT), alpha=0.6, linewidth=0)
    below.set_title("examples", loc="left", fontsize=TEXT, color=colour(INK))
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True, prune="lower"))
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    below.set_xlabel("confidence: the probability of the class that is predicted")
    return figure


def embedding(points: np.ndarray, labels: np.ndarray, wrong: np.ndarray, names: Sequence[str], *, title: str) -> Figure:
    """Points [n, 2] coloured by class, the classes named where they lie; mistakes are rings around their point."""
    figure, axes = blank(0.92)
    named = len(names) <= LABELLED_CLASSES
    x, y = points.T
    if named:
        for number in np.unique(labels):
            shade, marker = series(number), "o^s"[number // 10 % 3]
            right, mistaken = (labels == number) & ~wrong, (labels == number) & wrong
            axes.scatter(x[right], y[right], s=9, color=shade, alpha=0.75, linewidth=0, marker=marker)
            axes.scatter(x[mistaken], y[mistaken], s=22, facecolor="none", edgecolor=shade, marker=marker)
    else:
        axes.scatter(x[~wrong], y[~wrong], s=7, color=colour(RIGHT), alpha=0.6, linewidth=0)
        axes.scatter(x[wrong], y[wrong], s=9, color=colour(WRONG), alpha=0.9, linewidth=0)
    axes.set_title(title, loc="left", fontsize=TEXT, color=colour(INK))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.margins(0.04)
    axes.spines["bottom"].set_visible(False)
    if named:
        _name_clusters(axes, points, labels, names)
    return figure


def forecast(
    past: Sequence[float],
    truth: Sequence[float],
    expected: Sequence[float],
    interval: tuple[Sequence[float], Sequence[float]] | None,
    *,
    title: str,
) -> Figure:
    """A series up to an origin and what follows it, the forecast of that, and a band where it has an interval.

    Values that are NaN leave a gap. Steps count from the origin: 0 is the last one of the past.
    """
    figure, axes = blank(0.5, NARROW)
    before, after = np.arange(1 - len(past), 1), np.arange(1, len(expected) + 1)
    axes.axvline(0.5, color=colour(SOFT), linewidth=1, linestyle=(0, (4, 3)))
    if interval is not None:
        low, high = (np.asarray(each, float) for each in interval)
        axes.fill_between(after, low, high, color=series(1), alpha=0.22, linewidth=0)
    axes.plot(before, past, color=colour(SOFT), linewidth=1.2)
    lines = [Line("truth", after.tolist(), list(truth), 0), Line("forecast", after.tolist(), list(expected), 1)]
    for line in lines:
        axes.plot(line.xs, line.ys, color=series(line.series), linewidth=1.8, solid_capstyle="round")
    axes.margins(x=0.01)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("steps from the forecast's origin")
    axes.set_title(title, loc="left", fontsize=TEXT, color=colour(INK))
    name_ends(axes, [_finite(line) for line in lines])
    return figure


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most so many points of a line, each the mean of as many neighbours."""
    every = -(-len(xs) // most)
    if every <= 1:
        return list(xs), list(ys)
    parts = range(0, len(xs), every)
    return [float(np.mean(xs[i : i + every])) for i in parts], [float(np.mean(ys[i : i + every])) for i in parts]


# ---- what they share


def spans_much(values: Any) -> bool:
    """Whether an axis of these values is better logarithmic."""
    values = np.asarray(values, float)
    return bool(len(values)) and values.min() > 0 and bool(values.max() / values.min() > LOG_FROM)


def decades(axis: Any, values: Any) -> None:
    """Numbers on a logarithmic axis of these values."""
    span = np.max(values) / np.min(values)
    axis.set_major_locator(LogLocator(subs=(1.0,) if span > 300 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axis.set_minor_locator(LogLocator(subs=()))


def blank(ratio: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure with nothing on it yet: inches wide, and `ratio` times that high."""
    figure = Figure(figsize=(width, width * ratio), layout="constrained")
    axes = figure.subplots()
    style(axes)
    return figure, axes


def style(axes: Axes) -> None:
    """Lines and words as all figures have them."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colour(SOFT))
    axes.tick_params(colors=colour(SOFT), labelsize=TEXT, length=0)
    axes.grid(axis="y", color=colour(LINE), linewidth=0.8)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(colour(SOFT))
        label.set_fontsize(TEXT)


def rgb(name: str) -> tuple[float, float, float]:
    """A colour of the palette, for a face that is not opaque."""
    return to_rgb(colour(name))


def _strength(share: Any) -> Any:
    """Opacity of a share: by its root, so that one mistake in a hundred is seen."""
    return np.where(np.asarray(share) > 0, 0.06 + 0.94 * np.sqrt(share), 0.0)


def _finite(line: Line) -> Line:
    kept = np.isfinite(np.asarray(line.ys, float))
    xs, ys = thinned(np.asarray(line.xs, float)[kept].tolist(), np.asarray(line.ys, float)[kept].tolist())
    return Line(line.name, xs, ys, line.series, line.main)


def name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Names right of the lines' ends, moved apart where they would overlap."""
    shown = [line for line in lines if line.name and len(line.xs)]
    if not shown:
        return
    to_share = axes.transData + axes.transAxes.inverted()
    heights = [float(to_share.transform((line.xs[-1], line.ys[-1]))[1]) for line in shown]
    for line, height in zip(shown, apart(heights, gap=0.075), strict=True):
        axes.text(
            1.01,
            height,
            short(line.name),
            transform=axes.transAxes,
            va="center",
            color=series(line.series),
            fontsize=TEXT,
            alpha=1.0 if line.main else 0.85,
        )


def apart(heights: Sequence[float], *, gap: float) -> list[float]:
    """The heights, moved as little as it takes for neighbours to be a gap apart; within 0..1 where they fit."""
    order = np.argsort(heights, kind="stable")
    placed = np.array(heights, float)[order]
    for _ in range(200):
        short_by = gap - np.diff(placed)
        if not len(short_by) or short_by.max() <= 1e-6:
            break
        for index in np.flatnonzero(short_by > 0):
            placed[index] -= short_by[index] / 2
            placed[index + 1] += short_by[index] / 2
        if gap * (len(placed) - 1) <= 1:
            placed = placed.clip(0, 1)
    result = np.empty(len(placed))
    result[order] = placed
    return [float(height) for height in result]


def _name_clusters(axes: Axes, points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    axes.autoscale_view()
    numbers = np.unique(labels)
    middles = np.array([np.median(points[labels == number], axis=0) for number in numbers])
    to_share = axes.transData + axes.transAxes.inverted()
    for number, place in zip(numbers, untangled(to_share.transform(middles), width=0.2, height=0.055), strict=True):
        axes.text(
            place[0],
            place[1],
            short(names[number]),
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=TEXT,
            color=colour(INK),
            bbox={"boxstyle": "round,pad=0.15", "facecolor": colour(PAPER), "alpha": 0.75, "linewidth": 0},
        )


def untangled(places: np.ndarray, *, width: float, height: float) -> np.ndarray:
    """Middles of labels [n, 2], moved up and down until boxes of this size do not overlap."""
    placed = places.copy()
    for _ in range(100):
        moved = False
        for label in range(len(placed)):
            for other in range(label):
                across, up = placed[label] - placed[other]
                if abs(across) < width and abs(up) < height - 1e-6:
                    push = (height - abs(up)) / 2 * (1 if up >= 0 else -1)
                    placed[label, 1] += push
                    placed[other, 1] -= push
                    moved = True
        if not moved:
            break
    return placed
