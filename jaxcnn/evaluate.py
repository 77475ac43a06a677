"""Evaluates a run from its folder: python -m jaxcnn.evaluate --workdir DIR [--split test] [--step best|last|N]

Prints a table, then a line of JSON. Exit codes as jaxcnn.main's.
"""

import json

from absl import flags

from jaxcnn import workdir as workdir_lib
from jaxcnn.config import from_dict, validate
from jaxcnn.errors import UserError, nearest
from jaxcnn.logs import RunLog, complain, splits_table
from jaxcnn.main import flags_help, run_command, show_help


def main(argv: list[str], start: float) -> int:
    """Rebuilds the run, restores a checkpoint, measures a split; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("split", "test", "train, validation or test", flag_values=values)
    flags.DEFINE_string("data_dir", None, "where prepared sets lie, if not where they did", flag_values=values)
    flags.DEFINE_string("step", "best", "which checkpoint: best (on validation), last, or its step", flag_values=values)
    if {"--help", "-help", "-h", "--helpfull"} & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    try:
        rest = values(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; options are written --name=value")
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    if values.split not in ("train", "validation", "test"):
        raise UserError(
            f"--split={values.split} is not known; {nearest(values.split, ('train', 'validation', 'test'))}"
        )
    workdir = workdir_lib.resolve(values.workdir)
    saved = workdir_lib.read_config(workdir)
    config = from_dict(saved["config"])
    config.data.dir = values.data_dir or config.data.dir
    config.data.exclude = None  # what is left of it stands in the run's splits
    config.platform = config.num_devices = None  # wherever it was trained, it is evaluated here
    validate(config)

    import jax

    from jaxcnn import loop
    from jaxcnn.build import build
    from jaxcnn.checkpoint import Checkpoints
    from jaxcnn.parallel import make_parallel, set_up

    set_up(None, compilation_cache=config.compilation_cache)
    devices = make_parallel("jit").num_devices
    config.num_devices = devices if config.batch_size % (devices * config.optimizer.accumulate) == 0 else 1
    log = RunLog(workdir, tensorboard=False)
    run, feed = build(
        config,
        progress=log.work,
        statistics=(saved["data"]["mean"], saved["data"]["std"]),
        kept_splits=workdir_lib.read_splits(workdir),
    )
    workdir_lib.check_data(workdir, saved["data"], run.data_facts())
    if values.split not in run.source.splits:
        raise UserError(f"--split={values.split}: the run has none (data.validation_fraction=0)")
    folder = workdir / "checkpoints"
    if not folder.exists():
        raise UserError(f"{workdir} has no checkpoint yet")
    checkpoints = Checkpoints(folder, best_metric=loop.best_metric(run), read_only=True, report=complain)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    chosen = {"best": checkpoints.best_step() or steps[-1], "last": steps[-1]}
    step = chosen.get(values.step) or (int(values.step) if values.step.isdigit() else None)
    if step not in steps:
        raise UserError(
            f"--step={values.step}: there are checkpoints of steps {', '.join(map(str, steps))}; or best, last"
        )
    like = {"state": run.abstract_state(), "totals": jax.eval_shape(run.metrics.empty)}
    state = checkpoints.restore(step, like)[0]["state"]
    variables = run.parallel.replicate(loop.result_variables(run, state))
    (metrics,) = loop.evaluate_split(run, feed, values.split, variables)
    result = {**metrics, "num_examples": feed.num_counted(values.split)}
    feed.close()
    checkpoints.close()
    splits_table(log.console, f"{saved['experiment']}, step {step:,}", {values.split: result})
    log.say(json.dumps({"split": values.split, "step": step, **result}))
    return 0


if __name__ == "__main__":
    run_command(main)
