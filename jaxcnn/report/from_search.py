"""Sections about a search: how it went on, which values the best trials share, what mattered, the best ten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxcnn.data.sheet import spread
from jaxcnn.files import to_json
from jaxcnn.report import study_figures
from jaxcnn.report.files import printable, shown_name
from jaxcnn.report.from_study import Unit, unit_of
from jaxcnn.report.page import Cell, Section, absent, figure, grid, paragraph, table, tiles, words
from jaxcnn.report.study_figures import scale_of
from jaxcnn.report.study_files import SearchFiles
from jaxcnn.report.svg import to_png, to_svg

MOST_SCALES = 7  # parameters in parallel coordinates
MOST_LINES = 300
MOST_BARS = 20
BEST = 10  # trials in the table


def sections(search: SearchFiles) -> dict[str, Callable[[], Section]]:
    """What makes each section, by its title."""
    made = _Sections(search, unit_of(search.metric))
    return {"Search": made.course, "Best trials": made.best}


def overview(search: SearchFiles) -> Section:
    """The search in a sentence and in large numbers."""
    unit, trials = unit_of(search.metric), search.trials
    count = {status: sum(trial["status"] == status for trial in trials) for status in _statuses(trials)}
    sentence = f"A search of {len(trials):,} trials for the best {search.metric}. {_direction(search)}."
    values = [("trials", f"{len(trials):,}", ", ".join(f"{number:,} {status}" for status, number in count.items()))]
    if search.ranked:
        best = search.ranked[0]
        values.insert(0, (f"best {search.metric}", unit.words(best["value"]), f"trial {best['trial']:,}"))
    return Section("Overview", paragraph(words(printable(sentence)), css="soft") + tiles(values))


def _statuses(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(trial["status"] for trial in trials))


def _direction(search: SearchFiles) -> str:
    return "Higher is better" if search.result["higher_is_better"] else "Lower is better"


@dataclass(frozen=True)
class _Sections:
    search: SearchFiles
    unit: Unit

    def course(self) -> Section:
        """Its figures."""
        if not self.search.ranked:
            return Section("Search", absent("No trial has finished yet."))
        drawings: list[str] = []
        pictures: dict[str, bytes] = {}
        for name, make in (("trials", self._values), ("importances", self._bars), ("parameters", self._parallel)):
            chart, caption = make()
            drawings.append(absent(caption) if chart is None else figure(to_svg(chart, describe=caption), caption))
            pictures |= {} if chart is None else {f"{name}.png": to_png(chart)}
        return Section("Search", grid(drawings[:2]) + drawings[2], pictures)

    def _values(self) -> tuple[Any, str]:
        done = sorted(self.search.ranked, key=lambda trial: trial["trial"])
        values = [self.unit.scale * trial["value"] for trial in done]
        chart = study_figures.best_so_far(
            [trial["trial"] for trial in done],
            values,
            lower=not self.search.result["higher_is_better"],
            y_label=self.unit.label,
        )
        left_out = len(self.search.trials) - len(done)
        without = f"; {left_out:,} trials that were pruned or have no value are left out" if left_out else ""
        return (
            chart,
            f"The {self.search.metric} of each trial, and the best one so far{without}. {_direction(self.search)}.",
        )

    def _bars(self) -> tuple[Any, str]:
        shares = self.search.result.get("importances")
        if not shares or not max(shares.values()):
            return None, "No importances: the search has not computed any; it needs some trials that differ."
        order = sorted(shares, key=lambda name: -shares[name])[:MOST_BARS]
        chart = study_figures.bars([printable(name) for name in order], [shares[name] for name in order])
        return chart, (
            f"How much of the variance of {self.search.metric} over the space each parameter explains, as far as these "
            "trials tell."
        )

    def _parallel(self) -> tuple[Any, str]:
        ranked, names = self.search.ranked, self._names()
        if not names:
            return None, "No parameters: the trials have none."
        best = max(1, len(ranked) // 10)
        kept = [*range(best), *(best + spread(len(ranked) - best, MOST_LINES))] if len(ranked) > best else range(best)
        drawn = [ranked[number] for number in kept]
        scales = [
            scale_of(printable(name.rpartition(".")[2]), [t["fields"].get(name) for t in drawn]) for name in names
        ]
        scales.append(scale_of(self.search.metric, [self.unit.scale * trial["value"] for trial in drawn]))
        more = len(self._names(most=None)) - len(names)
        caption = (
            f"A line for each trial from its parameters to its {self.search.metric}, the best tenth ({best:,} of "
            f"{len(ranked):,}) in blue. Parameters that span much are by their logarithm."
        ) + (f" {more} parameters of less weight are left out." if more else "")
        return study_figures.parallel_coordinates(scales, list(range(best))), caption

    def _names(self, most: int | None = MOST_SCALES) -> list[str]:
        """The parameters, those of most weight first."""
        names = dict.fromkeys(name for trial in self.search.ranked for name in trial["fields"])
        shares = self.search.result.get("importances") or {}
        return sorted(names, key=lambda name: -shares.get(name, 0.0))[:most]

    def best(self) -> Section:
        """The best ten, with their parameters."""
        ranked = self.search.ranked[:BEST]
        if not ranked:
            return Section("Best trials", absent("No trial has finished yet."))
        names = self._names(most=None)
        rows: list[list[str | Cell]] = [
            [
                f"{trial['trial']:,}", Cell(self.unit.words(trial["value"]), trial["value"]),
                *(_value_words(trial["fields"].get(name)) for name in names),
            ]
            for trial in ranked
        ]  # fmt: skip
        columns = ["trial", self.search.metric, *map(shown_name, names)]
        body = table(columns, rows, label="the best trials", names=1, sortable=True)
        return Section("Best trials", body)


def _value_words(value: Any) -> str:
    if value is None:
        return "—"
    return (
        f"{value:.4g}" if isinstance(value, float) else printable(value if isinstance(value, str) else to_json(value))
    )
