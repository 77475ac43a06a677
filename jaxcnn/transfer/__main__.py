"""Hands a run's weights to others, or probes its features: python -m jaxcnn.transfer export|probe [--flags]

export --workdir DIR [--to FORMAT] FILE.safetensors writes the weights that evaluating takes: the best on validation,
averaged where an average is kept. FORMAT is torchvision or timm, their names and layouts, or jaxcnn, for
config.init_from of any model.
probe --workdir DIR fits a linear classifier on the features of a run's weights, on the run's own data; probe --config
FILE --config.init_from=WEIGHTS --config.init_head=new does so on the features that a run would begin with.
"""

import contextlib
import re
from collections.abc import Callable
from typing import Any

from absl import flags
from etils import epath
from rich.table import Table

from jaxcnn.command import HELP_FLAGS, check_outputs, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import Config, from_dict
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import check_writable, to_json, write_atomically
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import PatientConsole

FORMATS = ("torchvision", "timm", "jaxcnn")
CLASSIFIERS = ("logistic", "svm")


def main(argv: list[str], start: float) -> int:
    """Runs the subcommand that argv[1] names; returns the exit code."""
    del start
    name = argv[1] if len(argv) > 1 else ""
    if HELP_FLAGS & set(argv):
        names = [name] if name in COMMANDS else list(COMMANDS)
        show_help(f"{__doc__}\n" + "\n\n".join(_help(each) for each in names))
        return 0
    if name not in COMMANDS:
        given = f"{name!r} is no command" if name else "no command given"
        raise UserError(f"{given}: {nearest(name, COMMANDS)}, e.g. python -m jaxcnn.transfer export --workdir DIR FILE")
    values = flags.FlagValues()
    command, define = COMMANDS[name]
    define(values)
    return command(["jaxcnn.transfer", *argv[2:]], values)


def _help(name: str) -> str:
    values = flags.FlagValues()
    COMMANDS[name][1](values)
    return f"{name}:\n{flags_help(values)}"


# ---- export


def _export_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("to", "torchvision", f"whose names: {', '.join(FORMATS)}", flag_values=values)
    flags.DEFINE_bool("force", False, "overwrite the file", flag_values=values)


def export(argv: list[str], values: flags.FlagValues) -> int:
    """Writes a run's weights to a safetensors file."""
    rest = parse_flags(values, argv)
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    if values.to not in FORMATS:
        raise UserError(f"--to={values.to} is not known; {nearest(values.to, FORMATS)}")
    if len(rest) != 1 or not rest[0].endswith(".safetensors"):
        raise UserError(f"export writes one file, FILE.safetensors; got {' '.join(rest) or 'none'}")
    file = workdir_lib.resolve(rest[0])
    if file.exists() and not values.force:
        raise UserError(f"{file} exists; choose another name, or --force to overwrite it")
    workdir = workdir_lib.resolve(values.workdir)
    try:
        check_writable(file)
    except OSError as error:
        raise UserError(f"{rest[0]} cannot be written: {error.strerror}; choose another place") from None
    model = workdir_lib.read_config(workdir)["config"]["model"]["name"]

    from jaxcnn.transfer import timm, torchvision  # imports JAX

    namings = {"torchvision": torchvision.NAMINGS, "timm": timm.NAMINGS, "jaxcnn": {model}}
    if model not in namings[values.to]:
        raise UserError(f"--to={values.to}: its names for {model} are not known; use --to jaxcnn")
    _write(file, workdir, model, values.to, namings[values.to])
    return 0


def _write(file: epath.Path, workdir: epath.Path, model: str, to: str, namings: Any) -> None:
    from flax import traverse_util

    from jaxcnn.transfer.pretrained import run_arrays
    from jaxcnn.transfer.state_dicts import write_safetensors
    from jaxcnn.transfer.torchvision import export_state_dict

    tensors, _ = run_arrays(workdir)
    arrays = tensors.arrays
    if to != "jaxcnn":
        arrays = export_state_dict(traverse_util.unflatten_dict(arrays, sep="/"), namings[model])
    # PyTorch's libraries look for the format
    write_safetensors(file, arrays, {"format": "pt", "model": model, "source": tensors.source})
    size = sum(array.nbytes for array in arrays.values()) / 2**20
    show_help(f"{file}: {len(arrays):,} arrays, {size:,.1f} MiB, of {tensors.source}, named as {to} does")


# ---- probe


def _probe_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the run whose features are probed, instead of --config", flag_values=values)
    flags.DEFINE_string("layer", "pooled", "a stage, or pooled: what stands before the head", flag_values=values)
    flags.DEFINE_string("classifier", "logistic", f"of {', '.join(CLASSIFIERS)}", flag_values=values)
    flags.DEFINE_string("json", None, "a file for the result", flag_values=values)


def probe(argv: list[str], values: flags.FlagValues) -> int:
    """Prints how well a linear classifier does on the features of a run's weights, or of those a config begins with."""
    of_a_run = any(re.match(r"--?workdir(=|$)", word) for word in argv)
    if of_a_run:
        if overrides := [word for word in argv if re.match(r"--?(no)?config\b", word)]:
            raise UserError(f"{overrides[0]}: --workdir takes the run's own config; give one of the two")
        parse_flags(values, argv, takes_arguments=False)
        if not values.workdir:
            raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
        workdir = workdir_lib.resolve(values.workdir)
        saved = workdir_lib.read_config(workdir)
        config, experiment = from_dict(saved["config"]), saved["experiment"]
    else:
        config, experiment = load_config(argv, flag_values=values)
    if values.classifier not in CLASSIFIERS:
        raise UserError(f"--classifier={values.classifier} is not known; {nearest(values.classifier, CLASSIFIERS)}")
    check_outputs(values, "json")
    if of_a_run:
        weights, result = {"workdir": str(workdir)}, _probe_run(workdir, saved, config, values)
    else:
        weights, result = {"init_from": config.init_from}, _probe_start(config, values)
    table = Table(title=f"{experiment}, {result['classifier']} on {values.layer}, C={result['C']:g}")
    for column in ("split", "accuracy", "examples"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, measured in result["splits"].items():
        table.add_row(split, f"{100 * measured['accuracy']:.2f} %", f"{measured['num_examples']:,}")
    console = PatientConsole(soft_wrap=True)
    console.print(table)
    line = to_json({"experiment": experiment, **weights, **result})
    if values.json:
        write_atomically(workdir_lib.resolve(values.json), line + "\n")
    console.print(line)
    return 0


def _probe_start(config: Config, values: flags.FlagValues) -> dict[str, Any]:
    """The probe of the weights that a run of this config begins with."""
    if config.init_from is None:
        raise UserError("no weights given; pass --config.init_from, e.g. --config.init_from=runs/cifar10")

    from jaxcnn.results.probe import linear_probe
    from jaxcnn.training.build import build
    from jaxcnn.training.parallel import set_up

    set_up(config.platform, compilation_cache=config.compilation_cache)
    run, feed = build(config)
    with contextlib.closing(feed):
        return linear_probe(run, feed, layer=values.layer, classifier=values.classifier)


def _probe_run(workdir: epath.Path, saved: dict[str, Any], config: Config, values: flags.FlagValues) -> dict[str, Any]:
    """The probe of a run's weights, as evaluating takes them, on the run's own splits."""
    from jaxcnn.results.probe import linear_probe
    from jaxcnn.results.trained import load
    from jaxcnn.training.build import build
    from jaxcnn.training.parallel import set_up

    config.platform, config.num_devices = None, 1  # wherever it was trained, it is probed here
    config.init_from = config.data.exclude = None  # the weights and the splits are the run's
    set_up(None, compilation_cache=config.compilation_cache)
    variables = load(str(workdir)).variables
    run, feed = build(config, facts=saved["data"], kept_splits=workdir_lib.read_splits(workdir))
    with contextlib.closing(feed):
        facts = {"fingerprint": run.source.fingerprint, "splits": run.source.splits_digest}
        workdir_lib.check_data(workdir, saved["data"], facts)
        return linear_probe(run, feed, layer=values.layer, classifier=values.classifier, variables=variables)


COMMANDS: dict[
    str, tuple[Callable[[list[str], flags.FlagValues], int], Callable[[flags.FlagValues], None]]
] = {
    "export": (export, _export_flags),
    "probe": (probe, _probe_flags),
}  # fmt: skip


if __name__ == "__main__":
    run_command(main)
