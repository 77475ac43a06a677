"""Tries learning rates: python -m jaxcnn.lr_find --config FILE [--config.a.b=v ...] [--min 1e-5 --max 10 --steps 100]

One short run whose rate grows with each step, by the experiment's own train step; says which rate to train with. Writes
nothing unless --output is given. Exit codes as jaxcnn.main's.
"""

import contextlib
import dataclasses
from typing import Any

from absl import flags
from etils import epath
from rich.table import Table

from jaxcnn.command import HELP_FLAGS, check_outputs, flags_help, run_command, show_help
from jaxcnn.config import Config, EarlyStopConfig, ScheduleConfig
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from jaxcnn.files import to_json, write_atomically
from jaxcnn.machine import versions
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog

FEWEST_STEPS = 20
RATES = (1e-30, 1e30)  # lowest and highest: float32 has them, and their squares nearly


def main(argv: list[str], start: float) -> int:
    """Parses, builds, sweeps, prints; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_float("min", 1e-5, "the first step's learning rate", *RATES, flag_values=values)
    flags.DEFINE_float("max", 10.0, "the last step's", *RATES, flag_values=values)
    flags.DEFINE_integer(
        "steps", 100, "how many, unless the loss diverges before", FEWEST_STEPS, 10**6, flag_values=values
    )
    flags.DEFINE_string("output", None, "a folder for lr_find.json and lr_find.png", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    config, experiment = load_config(argv, flag_values=values)
    if not values.min < values.max:
        raise UserError(f"--min={values.min:g} --max={values.max:g}: rates must grow, e.g. --min=1e-5 --max=10")
    check_outputs(values, "output", folder=True)
    output = None if values.output is None else workdir_lib.resolve(values.output)

    import jax

    from jaxcnn.training.build import build, peak_rate
    from jaxcnn.training.parallel import set_up
    from jaxcnn.training.preview import describe
    from jaxcnn.training.rate_range import figure, growing_rates, range_test, sparkline

    set_up(config.platform, compilation_cache=config.compilation_cache)
    log = RunLog(epath.Path("."), tensorboard=False, start=start)  # writes nothing: it is not told to resume
    scale = peak_rate(config) / config.optimizer.learning_rate  # by the batch, where the config asks for it
    run, feed = build(for_range_test(config, values.steps), progress=log.work)
    with contextlib.closing(feed), contextlib.closing(log):
        num_params = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))
        log.say(describe(run, experiment, num_params))
        rates = growing_rates(values.min, values.max, values.steps)
        found = range_test(run, feed, rates, progress=log.work)
    option = f"--config.optimizer.learning_rate={found.suggested / scale:.2g}"
    table = Table(title=f"{experiment}: {len(found.rates)} steps", title_justify="left")
    for column in ("", "learning rate", "loss"):
        table.add_column(column, justify="left" if not column else "right")
    named = {"first": found.rates[0], "steepest fall": found.suggested, "least loss": found.least}
    named |= {"diverged": found.diverged} if found.diverged is not None else {"last": found.rates[-1]}
    for name, rate in named.items():
        loss = found.smoothed[abs(found.rates - rate).argmin()]
        table.add_row(name, f"{rate:.3g}", f"{loss:.4g}")
    log.say(f"loss, smoothed, from {found.rates[0]:.3g} to {found.rates[-1]:.3g}: {sparkline(found.smoothed)}")
    log.console.print(table)
    if found.still_falling:
        log.say(f"the loss still falls at --max={values.max:g}: raise it, and look again")
    by_batch = "" if scale == 1 else f", which is x {scale:g} by optimizer.reference_batch_size"
    log.say(f"suggested, where the loss falls fastest: {option}{by_batch}")
    if output is not None:
        content = {
            "experiment": experiment,
            **{name: getattr(values, name) for name in ("min", "max", "steps")},
            **{name: _plain(value) for name, value in vars(found).items()},
            "rule": "the rate at which the smoothed loss falls fastest",
            "optimizer.learning_rate": found.suggested / scale,
            "versions": versions(),
        }
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "lr_find.json", to_json(content, indent=2) + "\n")
        write_atomically(output / "lr_find.png", figure(found, experiment))
        log.say(f"written: {output / 'lr_find.json'}, {output / 'lr_find.png'}")
    return 0


def for_range_test(config: Config, steps: int) -> Config:
    """The config of one short run, without what evaluations would decide."""
    return dataclasses.replace(
        config,
        num_steps=steps,
        steps_per_call=1,
        schedule=ScheduleConfig(name="constant"),
        early_stop=EarlyStopConfig(),
        checkpoint=dataclasses.replace(config.checkpoint, keep_best=0),
    )


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return value.tolist() if hasattr(value, "tolist") else value


if __name__ == "__main__":
    run_command(main)
