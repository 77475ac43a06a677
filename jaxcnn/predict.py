"""Classifies images by a trained run: python -m jaxcnn.predict --workdir DIR IMAGE|FOLDER|- ... [--csv FILE]

Or by weights of ImageNet without a run: --init_from FILE --model NAME. Folders are searched, too, for image files. `-`
reads paths, one a line, or one image's bytes. What cannot be read is named on stderr, and left out. Exit codes: 0 all
were classified, 1 some were not, 2 wrong command or workdir.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from absl import flags

from jaxcnn.command import HELP_FLAGS, check_outputs, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import Config, from_dict, validate
from jaxcnn.config.choices import TASKS, load_function
from jaxcnn.data.folder import SUFFIXES
from jaxcnn.data.given import Given, each_image, folder_of_all
from jaxcnn.errors import UserError, nearest
from jaxcnn.results import choosing
from jaxcnn.results.rows import Rows, as_csv, as_json, print_tables, write
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import PatientConsole
from jaxcnn.transfer import imagenet


def main(argv: list[str], start: float) -> int:
    """Loads, classifies, prints as it goes; returns the exit code."""
    del start
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # options may stand after the images
    _define_flags(values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    given = parse_flags(values, argv)
    choosing.check(values)
    if values.init_from is not None:
        return predict_images(values, given)
    command: Callable[..., int] = load_function(TASKS[_task_of(values.workdir)].predict)
    return command(values, given)


def _task_of(workdir: str) -> str:
    """The task of a run; where it cannot be read, classification, which says so in its turn."""
    try:
        return str(workdir_lib.read_config(workdir_lib.resolve(workdir))["config"]["task"])
    except UserError:
        return "classification"


def predict_images(values: flags.FlagValues, given: list[str]) -> int:
    """The command for classification's runs, and for weights without a run."""
    _check(values, given)
    config, class_names = _classes_of(values)
    images = _images(given)
    first = next(images, None)
    if first is None:
        raise UserError("no images given: there is no path on stdin")

    import cv2

    from jaxcnn.training.parallel import set_up

    set_up(None, compilation_cache=config.compilation_cache)
    cv2.setNumThreads(1)  # its own threads would wait for one another between ours
    model = choosing.open_model(values)
    answers = _answers(model, itertools.chain([first], images), values)
    top_k = min(values.top_k, len(class_names))
    rows = Rows(model, answers, top_k=top_k, explain=values.explain, images_folder=folder_of_all(given))
    console = PatientConsole()
    if not console.is_terminal:  # a pipe has no width
        console.width = 140
    if values.csv or values.json:
        forms = ((values.csv, as_csv), (values.json, as_json))
        write(rows, [(path, partial(form, columns=rows.columns, top_k=top_k)) for path, form in forms])
    else:
        print_tables(console, rows)
    if "-" not in (values.csv, values.json):
        console.print(_closing_line(rows, model, values), soft_wrap=True)
    return 1 if rows.num_faults else 0


def _define_flags(values: flags.FlagValues) -> None:
    choosing.define_flags(values)
    flags.DEFINE_integer("top_k", 1, "so many of the likeliest classes are told", 1, 10**6, flag_values=values)
    flags.DEFINE_string(
        "tta", None, "none, flip, shifts or flip_translate: views averaged over; default the run's", flag_values=values
    )
    flags.DEFINE_integer("batch_size", None, "images on the device; default the run's", 1, 10**6, flag_values=values)
    flags.DEFINE_string("csv", None, "a file to write, or -, instead of the table", flag_values=values)
    flags.DEFINE_string("json", None, "a file to write, or -, instead of the table", flag_values=values)
    flags.DEFINE_string("explain", None, "a folder for what Grad-CAM shows of each image, as PNG", flag_values=values)
    flags.DEFINE_string("masks", None, "segmentation: a folder for the mask of each image, as PNG", flag_values=values)
    flags.DEFINE_string("drawn", None, "segmentation: a folder for images with masks drawn in", flag_values=values)
    flags.DEFINE_string("target", None, "explain: the class to explain; default the predicted", flag_values=values)


def _check(values: flags.FlagValues, given: Sequence[str]) -> None:
    """Raises UserError for a command that cannot be meant; JAX is not imported."""
    if not given:
        raise UserError("no images given; pass files, folders, or - for a list of them on stdin")
    if values.csv == values.json == "-":
        raise UserError("--csv=- and --json=- would both write to stdout; give one of them a file")
    check_outputs(values, "csv", "json")
    check_outputs(values, "explain", folder=True)
    _keep_images(values, given)
    for option in ("masks", "drawn"):
        if values[option].value is not None:
            raise UserError(f"--{option} is for masks, and this network tells classes of images; leave it out")
    if values.target is not None and values.explain is None:
        raise UserError("--target is the class to explain; say where to: --explain DIR")


def _classes_of(values: flags.FlagValues) -> tuple[Config, Sequence[str]]:
    """(the run's config with the views that are asked for, the classes). Raises UserError where one is not known."""
    config, class_names = Config(), imagenet.class_names()
    if values.init_from is None:
        saved = workdir_lib.read_config(workdir_lib.resolve(values.workdir))
        config, class_names = from_dict(saved["config"]), saved["data"]["class_names"]
    config.eval_tta = values.tta or config.eval_tta
    validate(config, unread=False)
    if values.target is not None and values.target not in class_names:
        raise UserError(f"--target={values.target}: there is no such class; {nearest(values.target, class_names)}")
    return config, class_names


def _answers(model: Any, images: Iterator[Given], values: flags.FlagValues) -> Iterator[Any]:
    """The model's answer to each image: (probabilities, heat map or None)."""
    probabilities = model.probabilities_call(values.tta)
    heat = None if values.explain is None else model.explain_call(values.target)
    return model.answers(
        lambda batch: (probabilities(batch), heat(batch)[0] if heat else None), images, batch_size=values.batch_size
    )


def _closing_line(rows: Rows, model: Any, values: flags.FlagValues) -> str:
    parts = [f"{rows.num_rows:,} classified by {model.source}"]
    parts += [f"{rows.num_faults:,} left out"] if rows.num_faults else []
    parts += [f"written to {path}" for path in (values.csv, values.json) if path]
    parts += [f"explained in {values.explain}"] if values.explain else []
    return "; ".join(parts)


# ---- what is given


def _keep_images(values: flags.FlagValues, given: Sequence[str]) -> None:
    """Raises UserError where what is written would take the place of an image."""
    for name in ("csv", "json"):
        path = values[name].value
        if path is not None and os.path.isfile(path):
            is_given = any(os.path.exists(name) and os.path.samefile(name, path) for name in given)
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


if __name__ == "__main__":
    run_command(main, less_memory="lower --batch_size")
