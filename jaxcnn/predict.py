"""Classifies images by a trained run: python -m jaxcnn.predict --workdir DIR IMAGE|FOLDER|- ... [--csv FILE]

Folders are searched, too, for image files. `-` reads paths, one a line, or one image's bytes. What cannot be read is
named on stderr, and left out. Exit codes: 0 all were classified, 1 some were not, 2 wrong command or workdir.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from absl import flags
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from jaxcnn import workdir as workdir_lib
from jaxcnn.config import from_dict, validate
from jaxcnn.errors import UserError, nearest
from jaxcnn.logs import PatientConsole, complain
from jaxcnn.main import flags_help, run_command, show_help

_TABLE_ROWS = 500  # after so many a table is printed, and another begun

Row = dict[str, Any]  # as in the JSON


def main(argv: list[str], start: float) -> int:
    """Loads, classifies, prints as it goes; returns the exit code."""
    del start
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # options may stand after the images
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("step", "best", "which checkpoint: best (on validation), last, or its step", flag_values=values)
    flags.DEFINE_integer("top_k", 1, "so many of the likeliest classes are told", 1, flag_values=values)
    flags.DEFINE_string(
        "tta", None, "none, flip or flip_translate: the views averaged over; default the run's", flag_values=values
    )
    flags.DEFINE_integer("batch_size", None, "images on the device; default the run's", 1, flag_values=values)
    flags.DEFINE_string("csv", None, "a file to write, or -, instead of the table", flag_values=values)
    flags.DEFINE_string("json", None, "a file to write, or -, instead of the table", flag_values=values)
    flags.DEFINE_string("explain", None, "a folder for what Grad-CAM shows of each image, as PNG", flag_values=values)
    flags.DEFINE_string("target", None, "explain: the class to explain; default the predicted", flag_values=values)
    if {"--help", "-help", "-h", "--helpfull"} & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    try:
        given = values(argv)[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    if not given:
        raise UserError("no images given; pass files, folders, or - for a list of them on stdin")
    if values.csv == values.json == "-":
        raise UserError("--csv=- and --json=- would both write to stdout; give one of them a file")
    if values.target is not None and values.explain is None:
        raise UserError("--target is the class to explain; say where to: --explain DIR")
    saved = workdir_lib.read_config(workdir_lib.resolve(values.workdir))
    config = from_dict(saved["config"])
    config.eval_tta = values.tta or config.eval_tta
    validate(config)
    class_names = saved["data"]["class_names"]
    if values.target is not None and values.target not in class_names:
        raise UserError(f"--target={values.target}: the run has no such class; {nearest(values.target, class_names)}")
    images = _images(given)

    from jaxcnn.parallel import set_up
    from jaxcnn.trained import load

    set_up(None, compilation_cache=config.compilation_cache)
    model = load(values.workdir, step=values.step)
    probabilities, explain = model.probabilities_call(values.tta), None
    if values.explain is not None:
        explain = model.explain_call(values.target)
    call = lambda batch: (probabilities(batch), explain(batch)[0] if explain else None)
    num_faults = 0

    def rows() -> Iterator[Row]:
        nonlocal num_faults
        for answer in model.answers(call, images, batch_size=values.batch_size):
            try:
                if answer.fault is not None:
                    raise ValueError(answer.fault)
                likeliest = model.likeliest(answer.values[0], values.top_k)
                row: Row = {"path": answer.name, "class": likeliest[0][0], "confidence": likeliest[0][1]}
                if values.top_k > 1:
                    row["top"] = [{"class": name, "confidence": share} for name, share in likeliest]
                if explain:
                    row["explanation"] = _draw(values.explain, answer)
                yield row
            except (OSError, ValueError) as error:
                num_faults += 1
                complain(f"{_printable(answer.name)}: {getattr(error, 'strerror', None) or error}")

    console = PatientConsole(highlight=False)
    with contextlib.ExitStack() as stack:
        if values.csv or values.json:
            writers = [
                stack.enter_context(writer(stack.enter_context(_opened(path)), values.top_k))
                for path, writer in ((values.csv, _csv_rows), (values.json, _json_rows))
                if path
            ]
            num_rows = _write(rows(), writers)
        else:
            num_rows = _print_tables(console, rows())
    if "-" not in (values.csv, values.json):
        told = [f"{num_rows:,} images classified by {model.source}"]
        told += [f"{num_faults:,} left out"] if num_faults else []
        told += [f"written to {path}" for path in (values.csv, values.json) if path]
        told += [f"explained in {values.explain}"] if values.explain else []
        console.print("; ".join(told), markup=False, soft_wrap=True)
    return 1 if num_faults else 0
