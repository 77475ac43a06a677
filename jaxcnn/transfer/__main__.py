"""Writes a run's weights for others: python -m jaxcnn.transfer export --workdir DIR [--to FORMAT] FILE.safetensors

The weights are those that evaluating takes: the best on validation, averaged where an average is kept.
FORMAT is torchvision or timm, their names and layouts, or jaxcnn, for config.init_from of any model.

Or measures what a linear classifier makes of features: python -m jaxcnn.transfer probe --config FILE
--config.init_from=WEIGHTS --config.init_head=new [--layer pooled] [--classifier logistic|svm] [--json FILE]
"""

import contextlib
from typing import Any

from absl import flags
from etils import epath
from rich.table import Table

from jaxcnn.command import check_outputs, flags_help, parse_flags, run_command, show_help
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import check_writable, to_json, write_atomically
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import PatientConsole

_HELP = {"--help", "-help", "-h", "--helpfull"}
FORMATS = ("torchvision", "timm", "jaxcnn")
CLASSIFIERS = ("logistic", "svm")


def main(argv: list[str], start: float) -> int:
    """Runs the subcommand that argv[1] names; returns the exit code."""
    if argv[1:2] == ["probe"]:
        return probe([argv[0], *argv[2:]], start)
    del start
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("to", "torchvision", f"whose names: {', '.join(FORMATS)}", flag_values=values)
    flags.DEFINE_bool("force", False, "overwrite the file", flag_values=values)
    if _HELP & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    name = argv[1] if len(argv) > 1 else ""
    if name not in COMMANDS:
        given = f"{name!r} is no command" if name else "no command given"
        raise UserError(
            f"{given}: {nearest(name, [*COMMANDS, 'probe'])}, e.g. python -m jaxcnn.transfer export --workdir DIR FILE"
        )
    rest = parse_flags(values, ["jaxcnn.transfer", *argv[2:]])
    return COMMANDS[name](values, rest)


def export(values: flags.FlagValues, rest: list[str]) -> int:
    """Writes a run's weights to a safetensors file."""
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


def probe(argv: list[str], start: float) -> int:
    """Prints how well a linear classifier does on the features of the weights that a config begins with."""
    values = flags.FlagValues()
    flags.DEFINE_string("layer", "pooled", "a stage, or pooled: what stands before the head", flag_values=values)
    flags.DEFINE_string("classifier", "logistic", f"of {', '.join(CLASSIFIERS)}", flag_values=values)
    flags.DEFINE_string("json", None, "a file for the result", flag_values=values)
    if _HELP & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    config, experiment = load_config(argv, flag_values=values)
    if values.classifier not in CLASSIFIERS:
        raise UserError(f"--classifier={values.classifier} is not known; {nearest(values.classifier, CLASSIFIERS)}")
    check_outputs(values, "json")
    if config.init_from is None:
        raise UserError("no weights given; pass --config.init_from, e.g. --config.init_from=runs/cifar10")

    from jaxcnn.results.probe import linear_probe
    from jaxcnn.training.build import build
    from jaxcnn.training.parallel import set_up

    set_up(config.platform, compilation_cache=config.compilation_cache)
    console = PatientConsole(soft_wrap=True)
    run, feed = build(config)
    with contextlib.closing(feed):
        result = linear_probe(run, feed, layer=values.layer, classifier=values.classifier)
    table = Table(title=f"{experiment}, {result['classifier']} on {values.layer}, C={result['C']:g}")
    for column in ("split", "accuracy", "examples"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, found in result["splits"].items():
        table.add_row(split, f"{100 * found['accuracy']:.2f} %", f"{found['num_examples']:,}")
    console.print(table)
    line = to_json({"experiment": experiment, "init_from": config.init_from, **result})
    if values.json:
        write_atomically(workdir_lib.resolve(values.json), line + "\n")
    console.print(line)
    return 0


COMMANDS = {"export": export}


if __name__ == "__main__":
    run_command(main)
