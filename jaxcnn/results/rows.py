"""Rows of `predict`: an image each, as a table, as CSV or as JSON, written as they come.

COLUMNS is the one list of what a row has. All three forms are made from it.
"""

import contextlib
import csv
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from jaxcnn.errors import Preempted
from jaxcnn.files import to_json, write_atomically, writing
from jaxcnn.terminal import PatientConsole, complain, named, one_line

_TABLE_ROWS = 500  # after so many a table is printed, and another begun

Row = dict[str, Any]  # by a column's name; of a ranked column a list


@dataclass(frozen=True)
class Classified:
    """An image, its likeliest classes, and its explanation."""

    path: str
    likeliest: Sequence[tuple[str, float]]  # (class, probability), the likeliest first
    explanation: str | None = None  # path of the drawing; none: not asked for


@dataclass(frozen=True)
class Column:
    """A column, in every form of the rows."""

    name: str
    value: Callable[[Classified], Any]
    ranked: bool = False  # a value for each of the likeliest classes, in a list; such columns stand side by side
    shown: Callable[[Any], str] | None = None  # a value in the terminal's table; none: the column is not there
    justify: Literal["left", "right"] = "left"


COLUMNS = (
    Column("path", lambda image: image.path, shown=named),
    Column("class", lambda image: [name for name, _ in image.likeliest], ranked=True, shown=str),
    Column(
        "confidence",
        lambda image: [round(probability, 6) for _, probability in image.likeliest],
        ranked=True,
        shown="{:.4f}".format,
        justify="right",
    ),
)
EXPLANATION = Column("explanation", lambda image: image.explanation)


class Rows(Iterator[Row]):
    """A row an image, in their order; what cannot be read is told on stderr and counted instead.

    Args:
      model: a results.trained.TrainedModel.
      answers: of its `answers`; their values are (probabilities, heat map or None).
      top_k: how many of the likeliest classes a row has.
      explain: a folder to draw explanations in; none: no explanations.
      images_folder: what all images lie in, whose folders `explain` repeats.
    """

    def __init__(
        self, model: Any, answers: Iterator[Any], *, top_k: int, explain: str | None = None, images_folder: str = ""
    ):
        self.num_rows = self.num_faults = 0
        self.columns = (*COLUMNS, EXPLANATION) if explain is not None else COLUMNS
        self._model, self._answers, self._top_k = model, answers, top_k
        self._explain, self._images_folder = explain, images_folder

    def __next__(self) -> Row:
        for answer in self._answers:
            fault = answer.fault
            if fault is None:
                try:
                    row = self._row(answer)
                    self.num_rows += 1
                    return row
                except OSError as error:
                    fault = f"its explanation cannot be written to {one_line(error)}"
            self.num_faults += 1
            complain(f"{named(answer.name)}: {fault}")
        raise StopIteration

    def _row(self, answer: Any) -> Row:
        probabilities, heat = answer.values
        explanation = None
        if self._explain is not None:
            explanation = _draw_explanation(self._explain, answer.name, self._images_folder, answer.image, heat)
        image = Classified(answer.name, self._model.likeliest(probabilities, self._top_k), explanation)
        return {column.name: column.value(image) for column in self.columns}


def _draw_explanation(folder: str, name: str, images_folder: str, image: np.ndarray, heat: np.ndarray) -> str:
    """Draws Grad-CAM's heat map below `folder` where the image lies below `images_folder`; returns the PNG's path."""
    from PIL import Image

    from jaxcnn.data.sheet import png
    from jaxcnn.results.explain import overlay

    path = Path(folder, os.path.relpath(name, images_folder) + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(Image.fromarray(overlay(image, heat))))
    return str(path)


# ---- the terminal


def print_tables(console: PatientConsole, rows: Iterator[Row]) -> None:
    """A table; of many rows several, so that they come while others are still being computed."""
    columns = [column for column in COLUMNS if column.shown is not None]
    while batch := list(itertools.islice(rows, _TABLE_ROWS)):
        table = Table()
        for column in columns:
            overflow: Literal["fold", "ellipsis"] = "fold" if column.justify == "left" else "ellipsis"
            table.add_column(column.name, justify=column.justify, overflow=overflow)
        for row in batch:
            table.add_row(*(_shown(column, row[column.name]) for column in columns))
        console.print(table)


def _shown(column: Column, value: Any) -> str:
    assert column.shown is not None
    return "\n".join(map(column.shown, value if column.ranked else [value]))


# ---- files


def write(rows: Iterator[Row], outputs: Iterable[tuple[str | None, Any]]) -> None:
    """Each row to each output (path, `as_csv` or `as_json`), as it comes.

    A counter stands on the terminal, where nothing else is written to it.
    """
    counter = Progress(
        SpinnerColumn(),
        TextColumn("{task.completed:,} images", markup=False),
        console=PatientConsole(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty() or any(path == "-" for path, _ in outputs),
    )
    ended: BaseException | None = None
    with contextlib.suppress(BrokenPipeError), contextlib.ExitStack() as stack:
        writers = [stack.enter_context(make(stack.enter_context(writing(path)))) for path, make in outputs if path]
        try:
            for row in stack.enter_context(counter).track(rows, description="classifying"):
                for write_row in writers:
                    write_row(row)
        except (Preempted, Exception) as error:  # what there is, is kept
            ended = error
    if ended is not None and not isinstance(ended, BrokenPipeError):  # whoever read has left
        raise ended


@contextlib.contextmanager
def as_csv(file: TextIO, *, columns: Sequence[Column], top_k: int) -> Iterator[Callable[[Row], None]]:
    """A line a row; ranked columns come again for each further class: class_2, confidence_2, …"""
    places = _places(columns, top_k)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([f"{column.name}_{rank + 1}" if rank else column.name for column, rank in places])

    def write_row(row: Row) -> None:
        writer.writerow([row[column.name][rank] if column.ranked else row[column.name] for column, rank in places])

    yield write_row


def _places(columns: Sequence[Column], top_k: int) -> list[tuple[Column, int]]:
    """(column, rank) of each cell of a line, from left to right."""
    ranked = [column for column in columns if column.ranked]
    places = []
    for column in columns:
        if not column.ranked:
            places.append((column, 0))
        elif column is ranked[0]:
            places += [(each, rank) for rank in range(top_k) for each in ranked]
    return places


@contextlib.contextmanager
def as_json(file: TextIO, *, columns: Sequence[Column], top_k: int) -> Iterator[Callable[[Row], None]]:
    """A list, a line a row, which is whole however it ends."""
    separator = "["

    def write_row(row: Row) -> None:
        nonlocal separator
        file.write(f"{separator}\n{to_json(_nested(row, columns, top_k))}")
        separator = ","

    try:
        yield write_row
    finally:
        file.write("[]\n" if separator == "[" else "\n]\n")


def _nested(row: Row, columns: Sequence[Column], top_k: int) -> dict[str, Any]:
    """The JSON of a row: of ranked columns the first class's values, and with several classes all in `top`."""
    ranked = [column.name for column in columns if column.ranked]
    nested = {}
    for column in columns:
        nested[column.name] = row[column.name][0] if column.ranked else row[column.name]
        if top_k > 1 and ranked and column.name == ranked[-1]:
            nested["top"] = [{name: row[name][rank] for name in ranked} for rank in range(top_k)]
    return nested
