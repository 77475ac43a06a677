"""Classifies images by a trained run: python -m jaxcnn.predict --workdir DIR IMAGE|FOLDER|- ... [--csv FILE]

Folders are searched, too, for image files. `-` reads paths, one a line, or one image's bytes. What cannot be read is
named on stderr, and left out. Exit codes: 0 all were classified, 1 some were not, 2 wrong command or workdir.
"""

import contextlib
import csv
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from absl import flags
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table

from jaxcnn.command import check_outputs, check_step, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import from_dict, validate
from jaxcnn.config.choices import TASKS, load_function
from jaxcnn.data.folder import SUFFIXES
from jaxcnn.data.given import Given, each_image
from jaxcnn.errors import Preempted, UserError, nearest
from jaxcnn.files import to_json, write_atomically, writing
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import PatientConsole, complain, named, one_line

_TABLE_ROWS = 500  # after so many a table is printed, and another begun

Row = dict[str, Any]  # as in the JSON


def main(argv: list[str], start: float) -> int:
    """Loads, classifies, prints as it goes; returns the exit code."""
    del start
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # options may stand after the images
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("step", "best", "which checkpoint: best (on validation), last, or its step", flag_values=values)
    flags.DEFINE_integer("top_k", 1, "so many of the likeliest classes are told", 1, 10**6, flag_values=values)
    flags.DEFINE_string(
        "tta", None, "none, flip, shifts or flip_translate: views averaged over; default the run's", flag_values=values
    )
    flags.DEFINE_integer("batch_size", None, "images on the device; default the run's", 1, 10**6, flag_values=values)
    flags.DEFINE_string("csv", None, "a file to write, or -, instead of the table", flag_values=values)
    flags.DEFINE_string("json", None, "a file to write, or -, instead of the table", flag_values=values)
    flags.DEFINE_string("explain", None, "a folder for what Grad-CAM shows of each image, as PNG", flag_values=values)
    flags.DEFINE_string("target", None, "explain: the class to explain; default the predicted", flag_values=values)
    if {"--help", "-help", "-h", "--helpfull"} & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    given = parse_flags(values, argv)
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    command: Callable[..., int] = load_function(TASKS[_task_of(values.workdir)].predict)
    return command(values, given)


def _task_of(workdir: str) -> str:
    """Of a run; where it cannot be read, classification, which says so in its turn."""
    try:
        return str(workdir_lib.read_config(workdir_lib.resolve(workdir))["config"]["task"])
    except UserError:
        return "classification"


def predict_images(values: flags.FlagValues, given: list[str]) -> int:
    """The command for classification's runs."""
    if not given:
        raise UserError("no images given; pass files, folders, or - for a list of them on stdin")
    if values.csv == values.json == "-":
        raise UserError("--csv=- and --json=- would both write to stdout; give one of them a file")
    check_step(values.step)
    check_outputs(values, "csv", "json")
    check_outputs(values, "explain", folder=True)
    _keep_images(values, given)
    if values.target is not None and values.explain is None:
        raise UserError("--target is the class to explain; say where to: --explain DIR")
    saved = workdir_lib.read_config(workdir_lib.resolve(values.workdir))
    config = from_dict(saved["config"])
    config.eval_tta = values.tta or config.eval_tta
    validate(config, unread=False)
    class_names = saved["data"]["class_names"]
    if values.target is not None and values.target not in class_names:
        raise UserError(f"--target={values.target}: the run has no such class; {nearest(values.target, class_names)}")
    top_k = min(values.top_k, len(class_names))
    images = _images(given)
    first = next(images, None)
    if first is None:
        raise UserError("no images given: there is no path on stdin")

    import cv2

    from jaxcnn.results.trained import load
    from jaxcnn.training.parallel import set_up

    set_up(None, compilation_cache=config.compilation_cache)
    cv2.setNumThreads(1)  # its own threads would wait for one another between ours
    model = load(values.workdir, step=values.step)
    probabilities = model.probabilities_call(values.tta)
    heat = None if values.explain is None else model.explain_call(values.target)
    answers = model.answers(
        lambda batch: (probabilities(batch), heat(batch)[0] if heat else None),
        itertools.chain([first], images),
        batch_size=values.batch_size,
    )
    rows = _Rows(model, answers, top_k=top_k, explain=values.explain, top=_top(given))
    console = PatientConsole()
    if not console.is_terminal:  # a pipe has no width
        console.width = 140
    if not (values.csv or values.json):
        _print_tables(console, rows)
    else:
        _write(rows, ((values.csv, partial(_csv, top_k=top_k, explain=values.explain)), (values.json, _json)))
    if "-" not in (values.csv, values.json):
        told = [f"{rows.num_rows:,} classified by {model.source}"]
        told += [f"{rows.num_faults:,} left out"] if rows.num_faults else []
        told += [f"written to {path}" for path in (values.csv, values.json) if path]
        told += [f"explained in {values.explain}"] if values.explain else []
        console.print("; ".join(told), soft_wrap=True)
    return 1 if rows.num_faults else 0


# ---- what is given


def _keep_images(values: flags.FlagValues, given: Sequence[str]) -> None:
    """Raises UserError where what is written would take the place of an image."""
    for name in ("csv", "json"):
        path = values[name].value
        if path is not None and os.path.isfile(path):
            is_given = any(os.path.exists(each) and os.path.samefile(each, path) for each in given)
            if is_given or path.lower().endswith(SUFFIXES):
                raise UserError(f"--{name}={path} is an image; choose another name")


def _images(arguments: list[str]) -> Iterator[Given]:
    """Every image of the command's arguments. Raises UserError at once where one is not there, or has no image."""
    for argument in arguments:
        if argument != "-":
            next(each_image(argument))
    return itertools.chain.from_iterable(_from_stdin() if each == "-" else each_image(each) for each in arguments)


def _from_stdin() -> Iterator[Given]:
    """One image's bytes, which have a zero among them; no path has, so that all else is paths, one a line."""
    stdin = sys.stdin.buffer
    if b"\0" in stdin.peek():  # type: ignore[union-attr]
        yield "-", stdin.read()
        return
    for line in stdin:
        path = os.fsdecode(line.rstrip(b"\r\n"))
        try:
            yield from each_image(path) if path else ()
        except UserError as error:
            yield path, ValueError(str(error))


def _top(arguments: list[str]) -> str:
    """The deepest folder that all of the images lie in."""
    if "-" in arguments:
        return os.path.abspath(os.sep)
    return os.path.commonpath(
        os.path.abspath(each) if os.path.isdir(each) else os.path.dirname(os.path.abspath(each)) for each in arguments
    )


# ---- what comes of it


class _Rows(Iterator[Row]):
    """A row an image, in their order; what cannot be read is told on stderr and counted instead."""

    def __init__(self, model: Any, answers: Iterator[Any], *, top_k: int, explain: str | None, top: str):
        self.num_rows = self.num_faults = 0
        self._model, self._answers, self._top_k = model, answers, top_k
        self._explain, self._top = explain, top

    def __next__(self) -> Row:
        for answer in self._answers:
            fault = answer.fault
            if fault is None:
                probabilities, heat = answer.values
                top = [(name, round(share, 6)) for name, share in self._model.likeliest(probabilities, self._top_k)]
                row: Row = {"path": answer.name, "class": top[0][0], "confidence": top[0][1]}
                if self._top_k > 1:
                    row["top"] = [{"class": name, "confidence": share} for name, share in top]
                try:
                    if self._explain is not None:
                        row["explanation"] = _draw(self._explain, answer.name, self._top, answer.image, heat)
                    self.num_rows += 1
                    return row
                except OSError as error:
                    fault = f"its explanation cannot be written to {one_line(error)}"
            self.num_faults += 1
            complain(f"{named(answer.name)}: {fault}")
        raise StopIteration


def _draw(folder: str, name: str, top: str, image: np.ndarray, heat: np.ndarray) -> str:
    """Draws what Grad-CAM shows, below `folder` where the image lies below `top`; returns the PNG's path."""
    from PIL import Image

    from jaxcnn.data.sheet import png
    from jaxcnn.results.explain import overlay

    path = Path(folder, os.path.relpath(name, top) + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(Image.fromarray(overlay(image, heat))))
    return str(path)


def _print_tables(console: PatientConsole, rows: Iterator[Row]) -> None:
    """A table; of many rows several, so that they come while others are still being computed."""
    while some := list(itertools.islice(rows, _TABLE_ROWS)):
        table = Table("path", "class", Column("confidence", justify="right"))
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        for row in some:
            top = row.get("top", [row])
            names = "\n".join(each["class"] for each in top)
            shares = "\n".join(f"{each['confidence']:.4f}" for each in top)
            table.add_row(named(row["path"]), names, shares)
        console.print(table)


def _write(rows: Iterator[Row], outputs: Iterable[tuple[str | None, Any]]) -> None:
    """Each row to each output, as it comes; with a counter on the terminal, where nothing else is written to it."""
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
                for write in writers:
                    write(row)
        except (Preempted, Exception) as error:  # what there is, is kept
            ended = error
    if ended is not None and not isinstance(ended, BrokenPipeError):  # whoever read has left
        raise ended


@contextlib.contextmanager
def _csv(file: TextIO, *, top_k: int, explain: str | None) -> Iterator[Callable[[Row], None]]:
    """Columns path, class, confidence; class_2, confidence_2, …; explanation."""
    writer = csv.writer(file, lineterminator="\n")
    more = [f"{column}_{place}" for place in range(2, top_k + 1) for column in ("class", "confidence")]
    writer.writerow(["path", "class", "confidence", *more, *(["explanation"] if explain else [])])

    def write(row: Row) -> None:
        rest = [value for each in row.get("top", [])[1:] for value in each.values()]
        writer.writerow(
            [row["path"], row["class"], row["confidence"], *rest, *([row["explanation"]] if explain else [])]
        )

    yield write


@contextlib.contextmanager
def _json(file: TextIO) -> Iterator[Callable[[Row], None]]:
    """A list, a line a row, which is whole however it ends."""
    separator = "["

    def write(row: Row) -> None:
        nonlocal separator
        file.write(f"{separator}\n{to_json(row)}")
        separator = ","

    try:
        yield write
    finally:
        file.write("[]\n" if separator == "[" else "\n]\n")


if __name__ == "__main__":
    run_command(main, less_memory="lower --batch_size")
