"""Trains: python -m jaxcnn.main --config experiments/cifar10.py [--config.a.b=v ...] [--workdir DIR] [--dry_run]

The same command again resumes, or prints the summary of a run that has finished. Exit codes: 0 finished, 1 failed,
2 wrong command, config or workdir, 75 stopped by a signal and saved.
"""

import contextlib
import os
import time
from typing import Any

from absl import flags

from jaxcnn.command import HELP_FLAGS, flags_help, run_command, show_help
from jaxcnn.config import Config, check_unread, flatten
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from jaxcnn.machine import versions
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog, closing_table
from jaxcnn.terminal import complain


def main(argv: list[str], start: float) -> int:
    """Parses, builds, trains, prints; returns the exit code. `start` is the clock when the command began."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder; default runs/<experiment>", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "resolve and show everything, train nothing", flag_values=values)
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
    if "\\" in os.fspath(workdir):
        raise UserError(
            f"workdir {workdir}: checkpoints cannot lie below a name with a backslash; pass another --workdir"
        )
    if not workdir_lib.check(workdir, experiment, config):
        check_unread(config)
    workdir_lib.check_excluded(workdir, config.data.exclude, _exclusion_digest(config))
    log = RunLog(workdir, tensorboard=config.tensorboard, start=start)
    summary = workdir_lib.read_summary(workdir)
    if summary is not None and not values.dry_run:
        log.say(f"{workdir} holds this run, finished:")
        closing_table(log.console, summary)
        return 0

    begins = not workdir_lib.has_checkpoints(workdir)
    for option, weights in (
        ("init_from", config.init_from if begins else None),
        ("distill.teacher", config.distill.teacher),
    ):
        if weights is not None:
            from jaxcnn.transfer.finding import find

            find(weights, option=option)
    from jaxcnn.training.build import build  # imports JAX; whatever is wrong above was said in a tenth of the time
    from jaxcnn.training.parallel import set_up

    set_up(config.platform, compilation_cache=config.compilation_cache)
    if values.dry_run:
        from jaxcnn.training.preview import preview

        run, _ = build(config, progress=log.work, stand_in=True)
        preview(run, log.console, experiment=experiment, workdir=workdir)
        return 0
    with workdir_lib.claimed(workdir), contextlib.closing(log):
        workdir_lib.check(workdir, experiment, config)  # again, now that nobody else can write there
        saved = workdir_lib.saved_data(workdir)
        run, feed = build(
            config,
            progress=log.work,
            facts=saved,
            kept_splits=workdir_lib.read_splits(workdir) if saved else None,
        )
        with contextlib.closing(feed):
            return _train(run, feed, experiment, workdir, log, start)


def _exclusion_digest(config: Config) -> str | None:
    if config.data.exclude is None:
        return None
    from jaxcnn.data.exclusion import read_exclusion

    return read_exclusion(config.data.exclude).digest


def _train(run: Any, feed: Any, experiment: str, workdir: Any, log: RunLog, start: float) -> int:
    import jax

    from jaxcnn.results.media import Media
    from jaxcnn.run.checkpoint import Checkpoints
    from jaxcnn.training import loop
    from jaxcnn.training.preview import describe

    config: Config = run.config
    num_params = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))
    pretrained = None if workdir_lib.has_checkpoints(workdir) else run.pretrained
    before = workdir_lib.saved_convolutions(workdir)
    workdir_lib.write_config(
        workdir,
        experiment,
        config,
        run.data_facts(),
        versions(),
        pretrained=None if pretrained is None else pretrained.facts(),
        teacher=None if run.task.constants is None else run.task.constants.facts(),
        best=run.learning.selections.best.facts(),
        convolutions=run.convolutions,
    )
    workdir_lib.write_splits(workdir, run.source.record_numbers)
    log.say(describe(run, experiment, num_params))
    if before is not None and run.convolutions not in (None, before):
        log.say(f"convolutions were computed by {before}: this run goes on equal up to rounding, not bit for bit")
    if pretrained is not None:
        log.console.print(pretrained.table())
    if run.learning.finetuning.layers:
        log.console.print(run.learning.finetuning.table(run.learning.steps_per_epoch))
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        **run.learning.selections.best.facts(),
        asynchronous=config.checkpoint.asynchronous,
        report=complain,
    )
    log.examples = run.task.examples
    media = Media(run, feed, log)
    set_up_seconds = time.perf_counter() - start
    try:
        result = loop.train(run, feed, log, checkpoints, begin=media.begin, end=media.end)
    finally:
        checkpoints.close()
    summary = {
        "experiment": experiment,
        "status": "finished",
        "examples": run.task.examples,
        **result,
        "num_params": num_params,
        "seconds": {"setup": set_up_seconds, **result["seconds"]},
        "platform": run.parallel.devices[0].platform,
        "num_devices": run.parallel.num_devices,
        "num_processes": jax.process_count(),
        "seed": config.seed,
        "versions": versions(),
    }
    log.summary(summary)
    closing_table(log.console, summary)
    log.say(f"everything is in {workdir}")
    return 0


if __name__ == "__main__":
    run_command(main)
