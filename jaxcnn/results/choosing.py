"""The network that a command's flags name: a run's checkpoint, or weights of ImageNet without a run.

JAX is not imported until it is opened.
"""

from typing import Any

from absl import flags

from jaxcnn.command import check_step
from jaxcnn.errors import UserError
from jaxcnn.transfer.finding import find


def define_flags(values: flags.FlagValues) -> None:
    """--workdir and --step, or --init_from and --model."""
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("step", "best", "which checkpoint: best (on validation), last, or its step", flag_values=values)
    flags.DEFINE_string(
        "init_from", None, "instead of a run: ImageNet's weights, FILE, torchvision:NAME, …", flag_values=values
    )
    flags.DEFINE_string("model", None, "init_from: whose weights they are, a config's model.name", flag_values=values)


def check(values: flags.FlagValues) -> None:
    """Raises UserError where the flags name no network, or two."""
    if values.init_from is None:
        if not values.workdir:
            raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
        if values.model is not None:
            raise UserError(f"--model={values.model} is for --init_from; a run knows its model")
        check_step(values.step)
        return
    if values.workdir:
        raise UserError("--workdir and --init_from are both weights; give one of them")
    if values.model is None:
        raise UserError(f"--init_from={values.init_from}: say whose weights they are, e.g. --model efficientnet_lite0")
    if values["step"].present:
        raise UserError(f"--step={values.step} is of a run's checkpoints; --init_from has none")
    find(values.init_from)


def open_model(values: flags.FlagValues) -> Any:
    """The results.trained.TrainedModel that checked flags name. Raises UserError, RunError."""
    from jaxcnn.results import trained

    if values.init_from is not None:
        return trained.of_weights(values.init_from, values.model)
    return trained.load(values.workdir, step=values.step)
