"""Sections about a study: its table, differences to the base, what fields do, curves, what failed, how it was run."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np

from jaxcnn.data.sheet import spread
from jaxcnn.files import to_json
from jaxcnn.report import study_figures
from jaxcnn.report.files import printable, shown_name
from jaxcnn.report.page import (
    Cell,
    Section,
    absent,
    code,
    escape,
    figure,
    folded,
    grid,
    paragraph,
    table,
    tiles,
    words,
)
from jaxcnn.report.study_figures import BandLine, Ends, Estimate
from jaxcnn.report.study_files import StudyFiles, band_of
from jaxcnn.report.svg import to_png, to_svg

STRONG = 8  # variants in colours, the base and those with the best means; the others are grey
MOST_ROWS = 60  # variants with a row of their own in a figure
MOST_LINES = 100  # grey ones
LARGEST_GRID = 20  # values of a field that a heat map has
VERDICTS = "better", "worse", "no difference shown", "cannot decide"


def sections(study: StudyFiles) -> dict[str, Callable[[], Section]]:
    """What makes each section, by its title."""
    made = _Sections(study, unit_of(study.metric))
    failed = {"Not finished": made.failures} if made.not_finished else {}
    fields = {"What the fields do": made.fields} if made.numeric or made.grid else {}
    return {
        "Results": made.results,
        "Differences": made.differences,
        **fields,
        "Training": made.training,
        **failed,
        "How it was run": made.record,
    }


@dataclass(frozen=True)
class Unit:
    """How values of a metric are written."""

    metric: str
    scale: float
    form: str
    suffix: str  # of a value
    of_difference: str  # in the head of a column, or on an axis

    def words(self, value: float | None) -> str:
        """A value."""
        return "—" if value is None else f"{format(self.scale * value, self.form)}{self.suffix}"

    def difference(self, value: float | None) -> str:
        """One with its sign."""
        return "—" if value is None else format(self.scale * value, f"+{self.form}")

    def between(self, ends: Ends | None) -> str:
        """An interval."""
        return "—" if ends is None else " – ".join(format(self.scale * end, self.form) for end in ends)

    def signed(self, ends: Ends | None) -> str:
        """An interval of a difference."""
        return "—" if ends is None else " to ".join(map(self.difference, ends))

    def scaled(self, ends: Ends | None) -> Ends | None:
        """An interval as it is drawn."""
        return None if ends is None else (self.scale * ends[0], self.scale * ends[1])

    @property
    def label(self) -> str:
        """The metric, with the unit in which it is drawn."""
        return f"{self.metric}, %" if self.suffix else self.metric


def unit_of(metric: str) -> Unit:
    """Accuracies are in per cent, their differences in points of it; other metrics as they are."""
    if metric == "accuracy":
        return Unit(metric, 100, ".2f", " %", " (points)")
    return Unit(metric, 1, ".4g", "", "")


def overview(study: StudyFiles) -> Section:
    """The study in a sentence and in large numbers."""
    result, unit = study.result, unit_of(study.metric)
    runs = [run for each in study.variants.values() for run in each["runs"]]
    finished = sum(run["status"] == "finished" for run in runs)
    folds = "" if result["folds"] is None else f", {result['folds']} folds"
    sentence = (
        f"Experiment {result['experiment']}: {len(study.variants):,} variants, {len(result['seeds']):,} seeds{folds}, "
        f"compared by {study.metric} on {result['split']}. {_direction(study)}."
    )
    base, best = study.variants[result["base"]], study.ranked[0]
    verdicts = [(each["versus_base"] or {}).get("verdict") for each in study.variants.values()]
    said = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in verdicts)
    of_best = study.variants[best]
    values = [
        ("the base's mean", unit.words(base["mean"]), _interval_note(unit, base)),
        ("the best mean", unit.words(of_best["mean"]), f"{shown_name(best)}; {_interval_note(unit, of_best)}"),
        ("variants", f"{len(study.variants):,}", said),
        ("runs", f"{finished:,}", "all finished" if finished == len(runs) else f"finished, of {len(runs):,}"),
    ]
    return Section("Overview", paragraph(words(printable(sentence)), css="soft") + tiles(values))


def _interval_note(unit: Unit, variant: Mapping[str, Any]) -> str:
    interval = "no interval" if variant["interval"] is None else unit.between(variant["interval"])
    return f"{interval}; n = {variant['n']}"


def _direction(study: StudyFiles) -> str:
    return "Higher is better" if study.result["higher_is_better"] else "Lower is better"


@dataclass(frozen=True)
class _Sections:
    study: StudyFiles
    unit: Unit

    # ---- the table

    def results(self) -> Section:
        """A row a variant, and what is to be known about them."""
        study, unit = self.study, self.unit
        split = study.result["split"]
        columns = [
            "variant", "n", f"mean {study.metric}", "95 % interval", f"to the base{unit.of_difference}",
            "95 % by BCa", "95 % by t", "p (Holm)", "verdict",
        ]  # fmt: skip
        body = "".join(paragraph(escape(printable(note)), css="note") for note in study.result["notes"])
        body = (
            table(
                columns,
                [self._row(name) for name in study.variants],
                caption=f"{study.metric} on {split}: means over runs, and differences paired by seed",
                sortable=True,
            )
            + body
        )
        rows = [
            [shown_name(name), ", ".join(f"{field}={to_json(value)}" for field, value in each["overrides"].items())]
            for name, each in study.variants.items()
        ]
        sets = table(["variant", "sets"], rows, names=2, label="what each variant sets")
        return Section("Results", body + folded("What each variant sets", sets))

    def _row(self, name: str) -> list[str | Cell]:
        variant, unit = self.study.variants[name], self.unit
        versus = variant["versus_base"]
        row: list[str | Cell] = [
            shown_name(name), Cell(f"{variant['n']:,}", variant["n"]),
            Cell(unit.words(variant["mean"]), variant["mean"]), unit.between(variant["interval"]),
        ]  # fmt: skip
        if versus is None:
            return [*row, "—", "—", "—", "—", "base" if name == self.study.result["base"] else "—"]
        p = versus["p_holm"]
        return [
            *row, Cell(unit.difference(versus["difference"]), versus["difference"]), unit.signed(versus["bca"]),
            unit.signed(versus["interval"]),
            "—" if p is None else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p), versus["verdict"],
        ]  # fmt: skip

    # ---- differences

    def differences(self) -> Section:
        """Each variant's difference to the base, and all scores behind."""
        drawings: list[str] = []
        pictures: dict[str, bytes] = {}
        for make in (self._forest, self._strips):
            chart, caption, name = make()
            if chart is None:
                drawings.append(absent(caption))
                continue
            drawings.append(figure(to_svg(chart, describe=caption), caption))
            pictures[name] = to_png(chart)
        return Section("Differences", grid(drawings), pictures)

    def _forest(self) -> tuple[Any, str, str]:
        study, unit = self.study, self.unit
        versus = {name: each["versus_base"] for name, each in study.variants.items() if each["versus_base"]}
        sign = -1 if study.result["higher_is_better"] else 1
        known = [name for name, each in versus.items() if each["difference"] is not None]
        order = sorted(known, key=lambda name: sign * versus[name]["difference"])
        if not order:
            return None, "No differences: no variant has a run of a seed that the base has a run of, too.", ""
        shown, left_out = _some(order)
        rows = [
            Estimate(
                printable(name), unit.scale * versus[name]["difference"], unit.scaled(_ends(versus[name])),
                versus[name]["verdict"],
            )
            for name in shown
        ]  # fmt: skip
        kinds = {"BCa bootstrap" if versus[name]["bca"] else "Student's t" for name in shown if _ends(versus[name])}
        how = " or ".join(sorted(kinds)) or "none: too few pairs"
        caption = (
            f"Differences in {study.metric} to the base{self._base}, paired by seed, with 95 % intervals ({how}). "
            "Blue is better, orange worse, a ring a difference that is not shown. "
            f"{_direction(study)}.{left_out}"
        )
        label = f"difference in {study.metric}{unit.of_difference.replace(' (', ', ').rstrip(')')}"
        return study_figures.forest(rows, x_label=label), caption, "differences.png"

    @property
    def _base(self) -> str:
        base = str(self.study.result["base"])
        return "" if base == "base" else f" ({shown_name(base)})"

    def _strips(self) -> tuple[Any, str, str]:
        study = self.study
        scored = [name for name in study.ranked if study.variants[name]["mean"] is not None]
        if not scored:
            return None, "No scores: no run has finished yet.", ""
        shown, left_out = _some(scored, keep=study.result["base"])
        caption = (
            f"The {study.metric} of every run on {study.result['split']}, a dot each, and each variant's mean as a "
            f"bar; the dashed line is the base's mean.{left_out}"
        )
        rows = [self._estimate(name) for name in shown]
        base = printable(study.result["base"])
        return study_figures.strips(rows, x_label=self.unit.label, base=base), caption, "scores.png"

    def _estimate(self, name: str) -> Estimate:
        variant, unit = self.study.variants[name], self.unit
        dots = [unit.scale * run["score"] for run in variant["runs"] if run["score"] is not None]
        return Estimate(printable(name), unit.scale * variant["mean"], unit.scaled(variant["interval"]), dots=dots)

    # ---- fields

    def fields(self) -> Section:
        """The means of a grid of two fields, and those against each numeric field."""
        drawings: list[str] = []
        pictures: dict[str, bytes] = {}
        for name, chart, caption in [*([self._heat_map()] if self.grid else []), *map(self._response, self.numeric)]:
            drawings.append(figure(to_svg(chart, describe=caption), caption))
            pictures[name] = to_png(chart)
        return Section("What the fields do", grid(drawings), pictures)

    @cached_property
    def grid(self) -> dict[tuple[str, str], str]:
        """Variants by the values, as JSON, of the two fields that vary; empty where they are no grid."""
        study = self.study
        if len(study.varied) != 2:
            return {}
        cells = {}
        for name in study.variants:
            one, other = (to_json(study.fields_of(name)[field]) for field in study.varied)
            if study.variants[name]["mean"] is not None:
                cells[one, other] = name
        rows, columns = ({each[place] for each in cells} for place in (0, 1))
        is_cross = len(cells) <= len(rows) + len(columns) - 1  # one field at a time says nothing of both
        return {} if is_cross or max(len(rows), len(columns)) > LARGEST_GRID else cells

    def _heat_map(self) -> tuple[str, Any, str]:
        study, unit, cells = self.study, self.unit, self.grid
        rows, columns = (sorted({each[place] for each in cells}, key=_by_size) for place in (0, 1))
        means = np.full((len(rows), len(columns)), np.nan)
        for (row, column), name in cells.items():
            means[rows.index(row), columns.index(column)] = unit.scale * study.variants[name]["mean"]
        down, across = study.varied
        chart = study_figures.heat_map(
            means, [each.strip('"') for each in rows], [each.strip('"') for each in columns],
            fields=(printable(down), printable(across)), form=unit.form,
            low_is_best=not study.result["higher_is_better"],
        )  # fmt: skip
        caption = (
            f"Mean {unit.label} of each pair of {down} (down) and {across} (across), the better the stronger. Where "
            "rows differ in which column is best, the two fields interact, as far as the intervals in the table allow."
        )
        return "interaction.png", chart, printable(caption)

    @cached_property
    def numeric(self) -> list[str]:
        """The fields that have three numbers or more in variants that differ from the base in nothing else."""
        return [field for field in self.study.varied if len(self._along(field)) >= 3]

    def _along(self, field: str) -> list[tuple[float, str]]:
        """(value, variant) of those that differ from the base in this field alone, by value."""
        study, found = self.study, {}
        base = study.fields_of(study.result["base"])
        for name, variant in study.variants.items():
            fields = study.fields_of(name)
            value = fields[field]
            if isinstance(value, bool) or not isinstance(value, int | float):
                return []
            if to_json(fields | {field: base[field]}) == to_json(base) and variant["mean"] is not None:
                found[float(value)] = name
        return sorted(found.items())

    def _response(self, field: str) -> tuple[str, Any, str]:
        xs, names = zip(*self._along(field), strict=True)
        rows = [self._estimate(name) for name in names]
        chart = study_figures.response(xs, rows, x_label=printable(field), y_label=self.unit.label)
        caption = f"Mean {self.study.metric} against {field}, all else as in the base, with 95 % intervals"
        return f"{re.sub('[^a-z_.]', '-', field)}.png", chart, printable(f"{caption}. {_direction(self.study)}.")

    # ---- curves

    def training(self) -> Section:
        """Validation over epochs: means over runs with their bands."""
        study, unit = self.study, self.unit
        drawings: list[str] = []
        pictures: dict[str, bytes] = {}
        for name in dict.fromkeys((study.metric, "loss")):
            scale = unit.scale if name == study.metric else 1.0
            lines, several = self._lines(name, scale)
            if not lines:
                drawings.append(absent(f"No {name}: no run has a row of validation with it."))
                continue
            label = unit.label if name == study.metric else name
            if all(len(line.xs) == 1 for line in lines):
                chart, caption = self._once(name, scale, label)
            else:
                chart, caption = self._over_epochs(name, lines, several, label)
            drawings.append(figure(to_svg(chart, describe=caption), caption))
            pictures[f"{name}.png"] = to_png(chart)
        return Section("Training", grid(drawings), pictures)

    def _over_epochs(self, name: str, lines: list[BandLine], several: bool, label: str) -> tuple[Any, str]:
        band = "; the bands are 95 % intervals by Student's t" if several else ""
        others = len(lines) - STRONG
        behind = f" In colours are the base and the best means, grey {others:,} others." if others > 0 else ""
        caption = (
            f"Validation {name} over the epochs, means over the runs of a variant while all of them go on{band}."
            f" The axis is that of the last three quarters.{behind}"
        )
        return study_figures.bands(lines, y_label=f"validation {label}"), caption

    def _once(self, name: str, scale: float, label: str) -> tuple[Any, str]:
        """What stands in a curve's place where the runs of each variant share one evaluation."""
        study, base = self.study, self.study.result["base"]
        bands = {variant: band_of(study.curves[variant], name) for variant in study.ranked}
        shown, left_out = _some([variant for variant in study.ranked if len(bands[variant].epochs)], keep=base)
        rows = []
        for variant in shown:
            (epoch,), (mean,) = bands[variant].epochs, bands[variant].mean
            dots = [curve.values[name][curve.epochs.index(epoch)] for curve in study.curves[variant]]
            rows.append(Estimate(printable(variant), scale * mean, dots=[scale * dot for dot in dots]))
        caption = (
            f"Validation {name} of every run, a dot each, and each variant's mean as a bar. The runs share one "
            f"evaluation, so there are no curves.{left_out}"
        )
        return study_figures.strips(rows, x_label=f"validation {label}", base=printable(base)), caption

    def _lines(self, name: str, scale: float) -> tuple[list[BandLine], bool]:
        """The lines, those behind first; and whether any has a band."""
        study = self.study
        base = study.result["base"]
        strong = [base, *[each for each in study.ranked if each != base][: STRONG - 1]]
        behind = [each for each in study.ranked if each not in strong]
        behind = [behind[place] for place in spread(len(behind), MOST_LINES)] if behind else []
        lines = []
        for variant in [*behind, *strong]:
            band = band_of(study.curves[variant], name)
            number = strong.index(variant) if variant in strong else None
            if len(band.epochs):
                mean, low, high = ((scale * each).tolist() for each in (band.mean, band.low, band.high))
                lines.append(BandLine(printable(variant), band.epochs.tolist(), mean, low, high, number))
        return lines, any(np.isfinite(line.low).any() for line in lines)

    # ---- runs

    @property
    def not_finished(self) -> list[tuple[str, Mapping[str, Any]]]:
        """(variant, run) of those that have no score."""
        return [
            (name, run)
            for name, each in self.study.variants.items()
            for run in each["runs"]
            if run["status"] != "finished"
        ]

    def failures(self) -> Section:
        """The runs that have no score, with what they said."""
        rows = [
            [shown_name(name), run["folder"], run["status"], printable(run.get("reason") or "—")]
            for name, run in self.not_finished
        ]
        body = paragraph("They count nowhere above; a variant that lost some of its runs may look better than it is.")
        return Section(
            "Not finished",
            body + table(["variant", "run", "status", "reason"], rows, names=4, label="runs not finished"),
        )

    def record(self) -> Section:
        """What it takes to make the study again."""
        study, result = self.study, self.study.result
        runs = sum(len(each["runs"]) for each in study.variants.values())
        rows = [
            ["experiment", result["experiment"]],
            ["runs", f"{runs:,}"],
            ["seeds", ", ".join(map(str, result["seeds"]))],
            ["folds", "—" if result["folds"] is None else str(result["folds"])],
            ["compared", f"{result['metric']} on {result['split']}"],
            ["fields that vary", ", ".join(study.varied) or "—"],
            ["base config's digest", study.digest],
        ]
        body = paragraph(f"The study lies in {words(str(study.folder))}; its numbers are those of study.json.")
        if command := study.command:
            module = PurePath(command[0]).stem.replace("__main__", PurePath(command[0]).parent.name)
            body += code(f"python -m jaxcnn.{module} {shlex.join(command[1:])}")
        body += table(["", ""], rows, names=2, label="the study")
        fields = [[name, to_json(value)] for name, value in study.base_config.items()]
        config = table(["field", "value"], fields, names=2, label="base config")
        return Section("How it was run", body + folded(f"The base config, all {len(fields)} fields", config))


def _by_size(value: str) -> tuple[float, str]:
    """The key by which values, as JSON, are sorted: numbers by size, others by name."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _ends(versus: Mapping[str, Any]) -> Ends | None:
    """The interval of a difference: BCa's where there is one, else Student's."""
    ends = versus["bca"] or versus["interval"]
    return None if ends is None else (ends[0], ends[1])


def _some(names: Sequence[str], keep: str | None = None) -> tuple[list[str], str]:
    """The first of the names that a figure has room for, with one that must be there; and a sentence on the others."""
    if len(names) <= MOST_ROWS:
        return list(names), ""
    shown = list(names[:MOST_ROWS])
    if keep in names and keep not in shown:
        shown[-1] = str(keep)
    return shown, f" Of {len(names):,} variants the best {MOST_ROWS}; the table has all."
