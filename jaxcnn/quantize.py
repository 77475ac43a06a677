"""Quantises a run to int8: python -m jaxcnn.quantize --workdir DIR OUT.onnx [--calibration entropy] [--sensitivity] …

Writes an ONNX file of int8 weights and activations, calibrated on images of train alone, and compares it with the float
one on test: accuracy, size, speed here. Weights without a run: --init_from FILE --model NAME --calibrate_on IMAGES
[--on OTHERS], compared by answers alone. docs/compression.md says what the numbers mean. Exit codes as jaxcnn.main's.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from jaxcnn.command import HELP_FLAGS, check_outputs, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import from_dict
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import check_writable, read_bytes, to_json, write_atomically
from jaxcnn.results import choosing
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog

CALIBRATIONS = ("minmax", "percentile", "entropy")
LARGEST_FILE = 2**31  # bytes: protobuf's limit
MOST_JUDGED = 1000  # images without labels that both files answer


def main(argv: list[str], start: float) -> int:
    """Parses, quantises, compares, writes; returns the exit code."""
    del start
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # options may stand after the file
    choosing.define_flags(values)
    flags.DEFINE_string("calibration", "minmax", f"of activations: {', '.join(CALIBRATIONS)}", flag_values=values)
    flags.DEFINE_integer("images", 512, "of train, that it is calibrated on", 1, 10**6, flag_values=values)
    flags.DEFINE_string(
        "calibrate_on",
        None,
        "init_from: a file, a folder or a data set, whose images stand for train",
        flag_values=values,
    )
    flags.DEFINE_string(
        "on", None, "init_from: what both files answer; what they are calibrated on", flag_values=values
    )
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
    log = RunLog(output, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:
        content, facts = _quantised(values, Path(folder), log)
    try:
        write_atomically(output, content)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; choose another place") from None
    if values.json:
        write_atomically(values.json, to_json(facts, indent=2) + "\n")
    seen = facts["calibration"]
    log.say(f"{output}: int8, calibrated by {values.calibration} on {seen['images']:,} images of {seen['of']}")
    return 0


def _check(values: flags.FlagValues, given: list[str]) -> Any:
    """The place of the file. Raises UserError for a command that cannot be meant; JAX is not imported."""
    choosing.check(values)
    if len(given) != 1:
        raise UserError(f"one file is written; give its name, e.g. model.onnx; got {' '.join(given) or 'none'}")
    if values.calibration not in CALIBRATIONS:
        raise UserError(f"--calibration={values.calibration} is not known; {nearest(values.calibration, CALIBRATIONS)}")
    check_outputs(values, "json")
    output = workdir_lib.resolve(given[0])
    try:
        check_writable(output)
    except OSError as error:
        raise UserError(f"{given[0]} cannot be written: {error.strerror}; choose another place") from None
    if output.exists() and not values.force:
        raise UserError(f"{given[0]} exists; choose another name, or --force to overwrite what is there")
    _check_images(values)
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed; install it: pip install 'jaxcnn[quantize]'")
    return output


def _check_images(values: flags.FlagValues) -> None:
    """Raises UserError where there is nothing to calibrate on, or no labels of what is asked for."""
    if values.init_from is not None:
        if values.calibrate_on is None:
            raise UserError("weights do not say what images they are for; pass --calibrate_on, e.g. photos/")
        if values.sensitivity:
            raise UserError("--sensitivity is of a run, whose validation images have labels; leave it out")
        return
    for name in ("calibrate_on", "on"):
        if values[name].value is not None:
            raise UserError(f"--{name} is for --init_from; a run is calibrated on its train, and judged on its test")
    folder = workdir_lib.resolve(values.workdir)
    task = from_dict(workdir_lib.read_config(folder)["config"]).task
    if task != "classification":
        raise UserError(f"{folder} holds a run of task={task}; int8 files are made of classification's, of images")


def _quantised(values: flags.FlagValues, folder: Path, log: RunLog) -> tuple[bytes, dict[str, Any]]:
    """(the int8 file, what it is worth as plain data), after tables of it are shown."""
    from jaxcnn.compression import int8

    before, after = folder / "float.onnx", folder / "int8.onnx"
    of = _of_run if values.init_from is None else _of_weights
    network, shown, worth = of(values, log)
    _write_float(network, before)
    exclude = int8.excluded(int8.layers(before), values.exclude)
    batches = (network.given(batch) for batch in shown.batches())
    ranges = int8.calibrate(before, batches, folder / "ranges.json", method=values.calibration)
    int8.quantise(before, after, ranges, exclude=exclude, weight_bits=values.weight_bits)
    calibration = {
        "method": values.calibration,
        "images": shown.num_images,
        "of": shown.what,
        "exclude": exclude,
        "weight_bits": values.weight_bits,
    }
    facts = {"source": network.facts["source"], "calibration": calibration, **worth(before, after, ranges)}
    return read_bytes(after, limit=LARGEST_FILE), facts


class Shown(NamedTuple):
    """Images that ranges are taken from."""

    batches: Callable[[], Iterable[Any]]  # uint8 [n, H, W, C]
    num_images: int
    what: str


Worth = Callable[[Path, Path, Any], dict[str, Any]]  # (float file, int8 file, ranges) -> facts, after tables are shown


def _of_run(values: flags.FlagValues, log: RunLog) -> tuple[Any, Shown, Worth]:
    """The network, its images of train, and what is lost on test."""
    from jaxcnn.compression import int8_of_run
    from jaxcnn.export import network
    from jaxcnn.results.members import load_members, open_measured

    (member,), _ = load_members([values.workdir], [values.step], tta="none")
    measured = open_measured([member], split=None, data=None, data_dir=values.data_dir, progress=log.work)
    exported = network.load(values.workdir, step=values.step)

    def batches() -> Iterable[Any]:
        size = int8_of_run.CALIBRATION_BATCH
        found = int8_of_run.batches_of(measured, "train", size=size, limit=values.images, progress=log.work)
        return (images for images, _ in found)

    def worth(before: Path, after: Path, ranges: Any) -> dict[str, Any]:
        checked = int8_of_run.check(before, after, measured, exported.given, progress=log.work)
        log.console.print(*int8_of_run.tables_of(checked), sep="\n")
        losses = None
        if values.sensitivity:
            bits = values.weight_bits
            losses = int8_of_run.sensitivity(
                before, ranges, measured, exported.given, weight_bits=bits, progress=log.work
            )
            log.console.print(int8_of_run.sensitivity_table(losses))
        return int8_of_run.facts_of(checked, losses)

    count = min(values.images, len(measured.source.splits["train"]))
    return exported, Shown(batches, count, "train"), worth


def _of_weights(values: flags.FlagValues, log: RunLog) -> tuple[Any, Shown, Worth]:
    """The network, the images that are named, and how far the files agree."""
    from jaxcnn.compression import int8_of_run, int8_of_weights
    from jaxcnn.export import network, parity

    exported = network.of_weights(values.init_from, values.model)
    open_images = partial(parity.images_at, network=exported, data_dir=values.data_dir, progress=log.work)
    seen = open_images(values.calibrate_on, values.images, split="train")
    size = int8_of_run.CALIBRATION_BATCH

    def worth(before: Path, after: Path, ranges: Any) -> dict[str, Any]:
        del ranges
        judged = seen if values.on is None else open_images(values.on, MOST_JUDGED)
        agreement = int8_of_weights.compare(before, after, judged.images, exported.given)
        log.say(f"compared on {judged.what}{', which it is calibrated on' if values.on is None else ''}")
        log.console.print(*int8_of_weights.tables_of(agreement), sep="\n")
        return int8_of_weights.facts_of(agreement)

    shown = lambda: (seen.images[at : at + size] for at in range(0, len(seen.images), size))
    return exported, Shown(shown, len(seen.images), seen.what.removeprefix("images of ")), worth


def _write_float(exported: Any, file: Path) -> None:
    """Writes the float file that is quantised."""
    from jaxcnn.compression import int8, int8_of_run
    from jaxcnn.export.onnx import to_onnx

    model = to_onnx(exported.function, exported.variables, exported.example, facts=exported.text())
    names = int8_of_run.layer_names(exported.function, exported.variables, exported.example)
    int8.write_float(model, file, names)


if __name__ == "__main__":
    run_command(main)
