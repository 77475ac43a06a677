"""Sections about a run of forecasts: what they are worth beside forecasts without a model, and how they look."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from jaxcnn.data.sheet import spread
from jaxcnn.report import figures
from jaxcnn.report.evaluated import Evaluated
from jaxcnn.report.figures import Line
from jaxcnn.report.files import RunFiles, shown_name
from jaxcnn.report.page import Section, figure, grid, paragraph, table
from jaxcnn.report.svg import to_png, to_svg
from jaxcnn.run.log import number_in_words
from jaxcnn.tasks.forecasting.windows import BASELINES
from jaxcnn.training.feed import Progress

MOST_WINDOWS = 6  # that are drawn
MODEL = "model"


def sections(run: RunFiles, values: Any, progress: Progress) -> dict[str, Callable[[], Section]]:
    """What makes each section, by its title."""
    made = _Sections(run, values, progress)
    return {"Scores": made.scores, "Forecasts": made.forecasts}


class _Sections(Evaluated):
    """A run's forecasts of a split."""

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """What predictions.csv says of each window, [n, horizon]: `truth`, `forecast`, `q0.1`, …; NaN where nothing."""
        found: dict[str, list[list[float]]] = {}
        for name, cells in self.evaluation.columns.items():
            numbers = [float(cell) if cell else np.nan for cell in cells]
            found.setdefault(name.rpartition("_")[0], []).append(numbers)
        return {name: np.array(steps).T for name, steps in found.items()}

    @cached_property
    def windows(self) -> dict[str, np.ndarray]:
        """Their arrays, as the task has them."""
        split = self.evaluation.source.splits[self.evaluation.split]
        records: Any = split.records
        arrays: dict[str, np.ndarray] = records.arrays(split.indices[self.evaluation.places])
        return arrays

    def in_unit(self, values: np.ndarray) -> np.ndarray:
        """Numbers [n, steps] in each window's own scale, in the unit of its series."""
        shift, scale = (self.windows[name].astype(float)[:, None] for name in ("shift", "scale"))
        return np.asarray(values * scale + shift)

    def scores(self) -> Section:
        """The model's scores beside those without a model, and the error of each step ahead."""
        found = self.evaluation.scores
        forms = {name: metric.unit for name, metric in ((each.name, each) for each in self.evaluation.metrics)}
        own = [name for name in found if f"{BASELINES[0]}_{name}" in found]
        shown = lambda name: "—" if found.get(name) is None else number_in_words(found[name])
        rows = [
            [
                f"{name} ({forms[name]})" if forms[name] else name,
                *map(shown, (name, *(f"{each}_{name}" for each in BASELINES))),
            ]
            for name in own
        ]
        heads = ["", MODEL, *(each.replace("_", " ") for each in BASELINES)]
        body = paragraph(self.of_what) + table(heads, rows, caption="Lower is better")
        others = [name for name in ("pinball", "coverage") if name in found]
        if others:
            cells = [[f"{name} ({forms[name]})" if forms[name] else name, shown(name)] for name in others]
            body += table(["", MODEL], cells, caption="Of the quantiles")
        chart = figures.curves(
            self._errors_ahead(), x_label="steps ahead", y_label="mean absolute error", from_zero=True
        )
        caption = "The mean absolute error of each step ahead, of the model and of the forecasts without one."
        body += grid([figure(to_svg(chart, describe=caption), caption)])
        return Section("Scores", body, {"errors_ahead.png": to_png(chart)})

    def _errors_ahead(self) -> list[Line]:
        truth = self.columns["truth"]
        made = {MODEL: self.columns["forecast"]}
        made |= {name: self.in_unit(self.windows["baselines"][:, place]) for place, name in enumerate(BASELINES)}
        seen = ~np.isnan(truth).all(axis=0)
        steps = (np.flatnonzero(seen) + 1).tolist()
        return [
            Line(
                name.replace("_", " ").replace("seasonal", "seas."), steps,
                np.nanmean(np.abs(values - truth)[:, seen], axis=0).tolist(), number, main=name == MODEL,
            )
            for number, (name, values) in enumerate(made.items(), start=1)
        ]  # fmt: skip

    def forecasts(self) -> Section:
        """Windows from all over the split, the forecast with its interval against what came."""
        evaluation, columns = self.evaluation, self.columns
        length = evaluation.run.config.forecast.length
        inputs = self.windows["inputs"][:, :length]
        past = np.where(inputs[..., 1] > 0, self.in_unit(inputs[..., 0]), np.nan)
        quantiles = [name for name in columns if name.startswith("q")]
        drawings, pictures = [], {}
        for number in spread(len(evaluation.places), MOST_WINDOWS):
            interval = (columns[quantiles[0]][number], columns[quantiles[-1]][number]) if quantiles else None
            name = shown_name(evaluation.identifiers[number])
            chart = figures.forecast(
                past[number], columns["truth"][number], columns["forecast"][number], interval, title=name
            )
            between = f" The band lies between {quantiles[0]} and {quantiles[-1]}." if quantiles else ""
            caption = f"{name}: the forecast, and what came.{between}"
            drawings.append(figure(to_svg(chart, describe=caption), caption))
            pictures[f"forecast_{number}.png"] = to_png(chart)
        return Section("Forecasts", paragraph(self.of_what) + grid(drawings), pictures)
