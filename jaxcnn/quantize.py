"""Quantises a run to int8: python -m jaxcnn.quantize --workdir DIR OUT.onnx [--calibration entropy] [--sensitivity] …

Writes an ONNX file of int8 weights and activations, calibrated on images of train alone, and compares it with the float
one on test: accuracy, size, speed here. docs/compression.md says what the numbers mean. Exit codes as jaxcnn.main's.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from jaxcnn.command import HELP_FLAGS, check_outputs, check_step, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import from_dict
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import check_writable, read_bytes, to_json, write_atomically
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog

CALIBRATIONS = ("minmax", "percentile", "entropy")
LARGEST_FILE = 2**31  # bytes: protobuf's limit


def main(argv: list[str], start: float) -> int:
    """Parses, quantises, compares, writes; returns the exit code."""
    del start
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # options may stand after the file
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("step", "best", "which checkpoint: best (on validation), last, or its step", flag_values=values)
    flags.DEFINE_string("calibration", "minmax", f"of activations: {', '.join(CALIBRATIONS)}", flag_values=values)
    flags.DEFINE_integer("images", 512, "of train, that it is calibrated on", 1, 10**6, flag_values=values)
    flags.DEFINE_multi_string("exclude", [], "pattern of layers that stay float", flag_values=values)
    flags.DEFINE_integer(
        "weight_bits", 7, "7: the same answers on every CPU; 8: some cut off large sums", 7, 8, flag_values=values
    )
    flags.DEFINE_bool("sensitivity", False, "also what quantising each layer alone loses", flag_values=values)
    flags.DEFINE_string("data_dir", None, "where prepared sets lie, if not where they did", flag_values=values)
    flags.DEFINE_string("json", None, "write the numbers there", flag_values=values)
    flags.DEFINE_bool("force", False, "overwrite what is there", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    output = _check(values, parse_flags(values, argv))

    from jaxcnn.training.parallel import set_up

    set_up(None, compilation_cache=True)
    log = RunLog(workdir_lib.resolve(values.workdir), tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:
        content, facts = _quantised(values, Path(folder), log)
    try:
        write_atomically(output, content)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; choose another place") from None
    if values.json:
        write_atomically(values.json, to_json(facts, indent=2) + "\n")
    log.say(f"{output}: int8, calibrated by {values.calibration} on {facts['calibration']['images']:,} images of train")
    return 0


def _check(values: flags.FlagValues, given: list[str]) -> Any:
    """The place of the file. Raises UserError for a command that cannot be meant; JAX is not imported."""
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    if len(given) != 1:
        raise UserError(f"one file is written; give its name, e.g. model.onnx; got {' '.join(given) or 'none'}")
    if values.calibration not in CALIBRATIONS:
        raise UserError(f"--calibration={values.calibration} is not known; {nearest(values.calibration, CALIBRATIONS)}")
    check_step(values.step)
    check_outputs(values, "json")
    output = workdir_lib.resolve(given[0])
    try:
        check_writable(output)
    except OSError as error:
        raise UserError(f"{given[0]} cannot be written: {error.strerror}; choose another place") from None
    if output.exists() and not values.force:
        raise UserError(f"{given[0]} exists; choose another name, or --force to overwrite what is there")
    folder = workdir_lib.resolve(values.workdir)
    task = from_dict(workdir_lib.read_config(folder)["config"]).task
    if task != "classification":
        raise UserError(f"{folder} holds a run of task={task}; int8 files are made of classification's, of images")
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed; install it: pip install 'jaxcnn[quantize]'")
    return output


def _quantised(values: flags.FlagValues, folder: Path, log: RunLog) -> tuple[bytes, dict[str, Any]]:
    """(the int8 file, what it is worth as plain data), after tables of it are shown."""
    from jaxcnn.compression import int8, int8_of_run
    from jaxcnn.results.members import load_members, open_measured

    before, after = folder / "float.onnx", folder / "int8.onnx"
    (member,), _ = load_members([values.workdir], [values.step], tta="none")
    measured = open_measured([member], split=None, data=None, data_dir=values.data_dir, progress=log.work)
    given = _write_float(values, before)
    exclude = int8.excluded(int8.layers(before), values.exclude)
    shown = int8_of_run.batches_of(
        measured, "train", size=int8_of_run.CALIBRATION_BATCH, limit=values.images, progress=log.work
    )
    images = min(values.images, len(measured.source.splits["train"]))
    ranges = int8.calibrate(
        before, (given(batch) for batch, _ in shown), folder / "ranges.json", method=values.calibration
    )
    int8.quantise(before, after, ranges, exclude=exclude, weight_bits=values.weight_bits)
    checked = int8_of_run.check(before, after, measured, given, progress=log.work)
    for table in int8_of_run.tables_of(checked):
        log.console.print(table)
    losses = None
    if values.sensitivity:
        losses = int8_of_run.sensitivity(
            before, ranges, measured, given, weight_bits=values.weight_bits, progress=log.work
        )
        log.console.print(int8_of_run.sensitivity_table(losses))
    calibration = {
        "method": values.calibration,
        "images": images,
        "exclude": exclude,
        "weight_bits": values.weight_bits,
    }
    facts = {"source": member.model.source, "calibration": calibration, **int8_of_run.facts_of(checked, losses)}
    return read_bytes(after, limit=LARGEST_FILE), facts


def _write_float(values: flags.FlagValues, file: Path) -> Callable[[Any], Any]:
    """Writes the float file that is quantised; returns what makes its inputs of images uint8 [n, H, W, C]."""
    from jaxcnn.compression import int8, int8_of_run
    from jaxcnn.export import network
    from jaxcnn.export.onnx import to_onnx

    exported = network.load(values.workdir, step=values.step)
    model = to_onnx(exported.function, exported.variables, exported.example, facts=exported.text())
    names = int8_of_run.layer_names(exported.function, exported.variables, exported.example)
    int8.write_float(model, file, names)
    return exported.given


if __name__ == "__main__":
    run_command(main)
