"""Trains: python -m jaxcnn.main --config experiments/cifar10.py [--config.a.b=v ...] [--workdir DIR] [--dry_run]

The same command again resumes, or prints the summary of a run that has finished. Exit codes: 0 finished, 1 failed,
2 wrong command, config or workdir, 75 stopped by a signal and saved.
"""

import os

from absl import flags

from jaxcnn.command import HELP_FLAGS, flags_help, run_command, show_help
from jaxcnn.config import Config, flatten
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from jaxcnn.hosts.job import joined
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.train import Order, show, train


def main(argv: list[str], start: float) -> int:
    """Parses, builds, trains, prints; returns the exit code. `start` is the clock when the command began."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder; default runs/<experiment>", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "resolve and show everything, train nothing", flag_values=values)
    flags.DEFINE_string(
        "distributed",
        "auto",
        "other processes of this run: auto (SLURM, Open MPI or JAXCNN_COORDINATOR say so), off, jax (JAX looks, as on "
        "TPUs), or COORDINATOR:PORT,N,I",
        flag_values=values,
    )
    if HELP_FLAGS & set(argv):
        fields = "\n".join(f"  {name} = {value!r}" for name, value in flatten(Config()).items())
        show_help(
            f"{__doc__}\n  --config: the experiment, FILE or FILE:ARG\n{flags_help(values)}\n\n"
            "Fields, as --config.NAME=VALUE, and their defaults (jaxcnn/config/schema.py says what they are):\n\n"
            f"{fields}"
        )
        return 0
    config, experiment = load_config(argv, flag_values=values, unread=False)
    if values.workdir == "":
        raise UserError("--workdir is empty; leave it out for runs/<experiment>")
    workdir = workdir_lib.resolve(values.workdir or os.path.join("runs", experiment))
    order = Order(config, experiment, workdir)
    if values.dry_run:
        show(order, start=start)
    else:
        with joined(values.distributed):
            train(order, start=start)
    return 0


if __name__ == "__main__":
    run_command(main)
