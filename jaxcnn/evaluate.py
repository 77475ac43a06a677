"""Evaluates runs from their folders: python -m jaxcnn.evaluate --workdir DIR [--workdir DIR2] [--split test] …

Several checkpoints (--step=100,best) or folders make an ensemble. Prints tables, then a line of JSON. Writes
evaluation.json and predictions.csv; what is not as by default follows the name: evaluation-validation-tta-flip.json.
Exit codes as jaxcnn.main's. docs/evaluation.md says what the numbers mean.
"""

from typing import Any

from absl import flags

from jaxcnn.command import HELP_FLAGS, check_outputs, check_step, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import Config, from_dict, validate
from jaxcnn.config.choices import TASKS, load_function
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import to_json
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog


def main(argv: list[str], start: float) -> int:
    """Parses, measures, writes, prints; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_multi_string("workdir", None, "a run's folder; several make an ensemble", flag_values=values)
    flags.DEFINE_string("split", None, "train, validation or test; test, or all of --data", flag_values=values)
    flags.DEFINE_string("data", None, "other data, as config.data.name has them: folder:PATH", flag_values=values)
    flags.DEFINE_string("data_dir", None, "where prepared sets lie, if not where they did", flag_values=values)
    flags.DEFINE_string(
        "step", "best", "checkpoints: best (on validation), last, or steps; 100,200", flag_values=values
    )
    flags.DEFINE_string("tta", None, "views that are averaged; none: as the run's eval_tta", flag_values=values)
    flags.DEFINE_integer("resamples", 1000, "of the bootstrap's intervals; 0: none", 0, 10**6, flag_values=values)
    flags.DEFINE_integer("batch_size", None, "images on the devices; default the run's", 1, 10**6, flag_values=values)
    flags.DEFINE_bool(
        "calibrate", True, "fit on validation: a temperature; of several labels, thresholds", flag_values=values
    )
    flags.DEFINE_string("output", None, "folder of the files; the first --workdir", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    parse_flags(values, argv, takes_arguments=False)
    workdirs, _ = _check(values)
    command: Any = load_function(TASKS[_config(workdirs[0]).task].evaluate)
    return int(command(values, argv))


def evaluate_images(values: flags.FlagValues, argv: list[str]) -> int:
    """The command for classification's runs."""
    workdirs, steps = _check(values)

    from jaxcnn.results import tables, written
    from jaxcnn.results.measure import evaluate_run
    from jaxcnn.training.parallel import set_up

    set_up(None, compilation_cache=_config(workdirs[0]).compilation_cache)
    log = RunLog(workdirs[0], tensorboard=False)
    evaluation = evaluate_run(
        workdirs,
        steps=steps,
        split=values.split,
        data=values.data,
        data_dir=values.data_dir,
        tta=values.tta,
        eval_batch_size=values.batch_size,
        resamples=values.resamples,
        calibrate=values.calibrate,
        progress=log.work,
    )
    tables.show(evaluation, log.console)
    output = workdir_lib.resolve(values.output) if values.output else workdirs[0]
    suffix = written.suffix_of(evaluation, workdirs, steps=steps, data=values.data, tta=values.tta)
    files = written.save(evaluation, output, suffix, command=argv)
    log.say(f"everything is in {' and '.join(map(str, files))}")
    log.say(to_json(written.line_of(evaluation)))
    return 0


def _check(values: flags.FlagValues) -> tuple[list[Any], list[str]]:
    """(folders, steps) as asked for. Raises UserError; JAX is not imported."""
    if not values.workdir or not all(values.workdir):
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    splits = ("train", "validation", "test")
    if values.data is None and values.split not in (None, *splits):
        raise UserError(f"--split={values.split} is not known; {nearest(values.split, splits)}")
    check_outputs(values, "output", folder=True)
    if values.resamples == 1:
        raise UserError(f"--resamples={values.resamples}: give many, e.g. 1000, or 0 for no intervals")
    steps = [step.strip() for step in values.step.split(",")]
    for step in steps:
        check_step(step)
    workdirs = [workdir_lib.resolve(each) for each in values.workdir]
    for workdir in workdirs:
        config = _config(workdir)
        if values.tta is not None:
            config.eval_tta = values.tta
            try:
                validate(config, unread=False)
            except UserError as error:
                raise UserError(str(error).replace("eval_tta", "--tta")) from None
    return workdirs, steps


def _config(workdir: Any) -> Config:
    config = from_dict(workdir_lib.read_config(workdir)["config"])
    config.platform = config.num_devices = None  # wherever it was trained, it is evaluated here
    return config


if __name__ == "__main__":
    run_command(main, less_memory="lower --batch_size")
