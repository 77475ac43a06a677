"""Lists the models: python -m jaxcnn.models [--filter PATTERN] [--json]

Figures are as published (jaxcnn/models/published.py says where); a model without any has its parameters counted.
"""

import dataclasses
import fnmatch
from typing import Any

from absl import flags
from rich.table import Table

from jaxcnn.command import HELP_FLAGS, flags_help, parse_flags, run_command, show_help
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import to_json
from jaxcnn.models import MODELS
from jaxcnn.models.published import PUBLISHED, Published
from jaxcnn.terminal import PatientConsole


def main(argv: list[str], start: float) -> int:
    """Prints a row a model; returns the exit code."""
    del start
    values = flags.FlagValues()
    flags.DEFINE_string("filter", "*", "of names, as of files: 'resnet*', '*50*'", flag_values=values)
    flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    parse_flags(values, argv, takes_arguments=False)
    names = [name for name in MODELS if fnmatch.fnmatchcase(name, values.filter)]
    if not names:
        raise UserError(f"--filter={values.filter}: no model is named so; {nearest(values.filter.strip('*'), MODELS)}")
    figures = {name: PUBLISHED.get(name) or _count_parameters(name) for name in names}
    console = PatientConsole()
    if not console.is_terminal:  # a pipe has no width
        console.width = 140
    if values.json:
        rows = [{"name": name, **dataclasses.asdict(each)} for name, each in figures.items()]
        console.print(to_json(rows, indent=2), soft_wrap=True)
    else:
        console.print(_table(figures))
        console.print(
            "parameters for 1000 classes (at 28 and 32 pixels: 10); macs: multiplications with addition, those with "
            "a ~ counted here; top 1: ImageNet's validation, as published",
            soft_wrap=True,
        )
    return 0


def _count_parameters(name: str) -> Published:
    """Figures of a model that nothing is published of: its parameters, by an abstract trace."""
    import jax

    size = 224
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    model = MODELS[name](num_classes=1000)
    variables: Any = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Published("", size, num_params, None, None, "parameters counted by a trace")


def _table(figures: dict[str, Published]) -> Table:
    table = Table(title=f"{len(figures)} models", title_justify="left")
    for column, justify in (
        ("--config.model.name", "left"),
        ("parameters", "right"),
        ("pixels", "right"),
        ("10^9 macs", "right"),
        ("top 1, %", "right"),
        ("paper", "left"),
    ):
        table.add_column(column, justify=justify, no_wrap=column != "paper")  # type: ignore[arg-type]
    for name, each in figures.items():
        macs = "" if each.macs is None else f"{'~' if 'counted' in each.source else ''}{each.macs:.3f}"
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.2f}"
        table.add_row(name, f"{each.num_params:,}", str(each.image_size), macs, accuracy, each.paper)
    return table


if __name__ == "__main__":
    run_command(main)
