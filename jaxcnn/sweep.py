"""Runs a study: python -m jaxcnn.sweep --config FILE --over FIELD=VALUE,VALUE [--over …] [--seeds 5] [--workdir DIR]

Or a study's own module, `--study FILE`, or what a folder holds, `--workdir DIR` alone. The same command again goes on,
and on several hosts at once it shares the work. Exit codes: 0 all finished, 1 some failed, 2 wrong, 75 stopped, saved.
"""

import contextlib
import os
import statistics
from collections import Counter
from collections.abc import Sized
from dataclasses import replace
from pathlib import Path

from absl import flags
from etils import epath
from rich.table import Table

from jaxcnn.ablation.board import Board, duration, predicted_seconds, words
from jaxcnn.ablation.running import Job, Standing, forget_failures, stand, work
from jaxcnn.ablation.study import PLAN, Study, check_study, read_plan, write_plan
from jaxcnn.ablation.variation import (
    MOST_VARIANTS,
    default_folder,
    grid,
    load_study,
    one_at_a_time,
    parse_axes,
    parse_seeds,
)
from jaxcnn.ablation.workers import shares, supervise
from jaxcnn.command import HELP_FLAGS, flags_help, parse_flags, run_command, show_help
from jaxcnn.config.command_line import experiment_name, load_config, take_overrides
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.files import is_remote
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import PatientConsole, complain


def main(argv: list[str], start: float) -> int:
    """Parses, plans, runs; returns the exit code."""
    values = _flags()
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n  --config: the base's experiment, FILE or FILE:ARG\n{flags_help(values)}")
        return 0
    study, experiment, folder = _study(argv, values)
    check_study(study)
    if values.in_one_program and values.workers > 1:
        raise UserError("--in_one_program trains in one process; leave --workers out")
    parts = shares(values.workers, study.config.platform) if values.workers > 1 else []
    console = PatientConsole(soft_wrap=True)
    if values.dry_run:
        _show(study, folder, console, workers=values.workers)
        return 0
    runs, place = list(study.runs()), Path(folder)
    is_new = not (place / PLAN).exists()
    write_plan(folder, study, experiment=experiment)
    if values.retry_failed:
        forget_failures(runs, place)
    board = Board(stand(runs, place), place, console, workers=values.workers)
    try:
        if board.standing.left:
            job = Job(study, experiment, place, wait=values.wait, fresh=not board.standing.finished)
            if parts:
                supervise(job, parts, board)
            elif values.in_one_program:
                _in_one_program(job, board, console)
            else:
                work(job, board.standing.left, tell=board.look)
        board.look(now=True)
    except UserError:
        if is_new and not (place / "runs").exists():  # what was refused leaves nothing behind
            _forget_plan(place)
        raise
    finally:
        board.close()
    return _close(board.standing, folder, console)


def _in_one_program(job: Job, board: Board, console: PatientConsole) -> None:
    """What has no checkpoint yet by programs of many runs; the rest, and what others leave, one by one."""
    from jaxcnn.ablation.one_program import work_in_one_program

    new = [run for run in board.standing.left if workdir_lib.newest_step(epath.Path(job.folder / run.folder)) is None]
    work_in_one_program(job, new, tell=board.look, say=console.print)
    board.look(now=True)
    if board.standing.left:
        work(job, board.standing.left, tell=board.look)


def _forget_plan(folder: Path) -> None:
    (folder / PLAN).unlink()
    with contextlib.suppress(OSError):  # it holds something else, too
        folder.rmdir()


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text, number, switch = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
    text("study", None, "a module with get_study(), FILE or FILE:ARG, in --config's place", flag_values=values)
    flags.DEFINE_multi_string(
        "over", [], "a field and its values, FIELD=VALUE,VALUE; once for each field", flag_values=values
    )
    text("seeds", None, "a number of seeds, as 5, or seeds, as 3,5,8; a study's own, else 6", flag_values=values)
    number("folds", None, "each seed in each of so many folds of train", 2, 10**6, flag_values=values)
    switch("one_at_a_time", False, "the base, and each value alone, for the grid", flag_values=values)
    number("random", None, "so many of the grid, drawn by the config's seed", 1, MOST_VARIANTS, flag_values=values)
    text("metric", None, "what is compared; default: what chooses the weights", flag_values=values)
    flags.DEFINE_enum("split", None, ["test", "validation"], "what it is measured on; else test", flag_values=values)
    text("workdir", None, "the study's folder; default runs/<experiment>-<fields>", flag_values=values)
    switch("dry_run", False, "list the variants, time and memory, and run nothing", flag_values=values)
    number("workers", 1, "processes on this host, each on its share of it", 1, 4096, flag_values=values)
    switch("in_one_program", False, "runs that differ in what can be traced, as one program", flag_values=values)
    switch("retry_failed", False, "run again what has failed", flag_values=values)
    switch("wait", True, "at the end wait for runs that other processes have", flag_values=values)
    return values


# ---- which study


def _study(argv: list[str], values: flags.FlagValues) -> tuple[Study, str, epath.Path]:
    """The study that a command line asks for, its name, its folder. Raises UserError."""
    others, overrides = take_overrides(argv)
    has_config = any(word.split("=")[0] in ("--config", "-config") for word in others)
    if has_config:
        study, name, default = _varied(argv, values)
    else:
        parse_flags(values, others, takes_arguments=False)
        given = [name for name in ("over", "one_at_a_time", "random") if values[name].value]
        if given:
            raise UserError(f"--{given[0]} varies a config; pass --config experiments/digits.py, too")
        if values.study is not None:
            name = experiment_name(values.study)
            study, default = _asked(load_study(values.study, overrides), values), f"runs/{name}-study"
        elif values.workdir:
            study, name = read_plan(_folder(values.workdir))
            if overrides:
                raise UserError(f"{overrides[0]} changes a config; pass that with --config or --study, too")
            study, default = _asked(study, values), ""
        else:
            raise UserError("no study given; pass --config experiments/digits.py --over FIELD=VALUE,VALUE, or --study")
    if values.workdir == "":
        raise UserError(f"--workdir is empty; leave it out for {default}")
    return study, name, _folder(values.workdir or default)


def _varied(argv: list[str], values: flags.FlagValues) -> tuple[Study, str, str]:
    """A study of `--config` and `--over`, its name, and its default folder. Raises UserError."""
    config, experiment = load_config(argv, flag_values=values, unread=False)
    if values.study is not None:
        raise UserError("--study has a config of its own; leave --config or --study out")
    axes = parse_axes(values.over)
    if values.one_at_a_time and values.random:
        raise UserError("--one_at_a_time and --random choose from the grid each in its own way; leave one of them out")
    if not axes and (values.one_at_a_time or values.random):
        raise UserError("there is no grid to choose from; pass --over FIELD=VALUE,VALUE")
    variants = one_at_a_time(config, axes) if values.one_at_a_time else grid(config, axes, count=values.random)
    folder = default_folder(
        experiment,
        axes,
        folds=values.folds,
        drawn=values.random is not None,
        one_at_a_time=values.one_at_a_time,
    )
    return _asked(Study(config, variants), values), experiment, folder


def _asked(study: Study, values: flags.FlagValues) -> Study:
    """A study with the seeds, folds, metric and split of the command line, where it has them. Raises UserError."""
    if values.seeds is not None:
        study = replace(study, seeds=parse_seeds(values.seeds))
    given = {name: values[name].value for name in ("folds", "metric", "split")}
    return replace(study, **{name: value for name, value in given.items() if value is not None})


def _folder(workdir: str) -> epath.Path:
    folder = workdir_lib.resolve(workdir)
    if is_remote(folder):
        raise UserError(f"--workdir={workdir}: a study lies in a local folder, or one that hosts share as such")
    return folder


# ---- what a person sees


def _show(study: Study, folder: epath.Path, console: PatientConsole, *, workers: int) -> None:
    """The variants, how far they are, and what is left to pay. Compiles the base's step. Raises UserError."""
    standing = stand(study.runs(), Path(folder))
    finished, failed, left = (
        Counter(run.variant for run in runs) for runs in (standing.finished, standing.failed, standing.left)
    )
    seconds: dict[str, list[float]] = {variant: [] for variant in study.variants}
    for run, each in standing.finished.items():
        seconds[run.variant].append(each)
    table = Table(title=os.fspath(folder), title_justify="left")
    for column in ("variant", "runs", "finished", "failed", "a run takes"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name in study.variants:
        counts = (finished[name] + failed[name] + left[name], finished[name], failed[name])
        takes = duration(statistics.median(seconds[name])) if seconds[name] else "not known"
        table.add_row(name, *(f"{count:,}" for count in counts), takes)
    console.print(table)
    rest = predicted_seconds(standing.finished.values(), len(standing.left), workers)
    total = len(standing.finished) + len(standing.failed) + len(standing.left)
    console.print(
        f"{total:,} runs, {len(standing.left):,} left: "
        + ("how long they take is not known before one has finished" if rest is None else f"about {duration(rest)}")
    )
    _show_memory(study, console)


def _show_memory(study: Study, console: PatientConsole) -> None:
    from jaxcnn.training.build import build
    from jaxcnn.training.parallel import set_up
    from jaxcnn.training.preview import step_cost

    config = study.config_of(next(study.runs()))
    set_up(config.platform, compilation_cache=config.compilation_cache)
    run, _ = build(config, stand_in=True)
    console.print(f"predicted peak a device, of {study.base!r}: {step_cost(run)[1]}")


def _close(standing: Standing, folder: epath.Path, console: PatientConsole) -> int:
    """Says how the study stands; returns the exit code."""
    for run, line in standing.failed.items():
        console.print(f"failed: {words(run)}: {line}")
    counts: dict[str, Sized] = {
        "finished": standing.finished,
        "failed": standing.failed,
        "left to others": standing.left,
    }
    console.print(", ".join(f"{len(runs):,} {what}" for what, runs in counts.items() if runs or what == "finished"))
    if standing.finished and not standing.left:
        _compare(folder, console)
    console.print(f"everything is in {os.fspath(folder)}")
    if standing.failed:
        complain(f"{len(standing.failed):,} of the runs failed; --retry_failed runs them again")
    if standing.left:
        complain("other processes have the runs that are left; the same command goes on")
        return Preempted.exit_code
    return RunError.exit_code if standing.failed else 0


def _compare(folder: epath.Path, console: PatientConsole) -> None:
    """Prints and writes what jaxcnn.compare would."""
    from jaxcnn.ablation import tables
    from jaxcnn.ablation.results import Asked, read_study

    results = read_study(folder, Asked())
    names = tables.order(results, by_mean=False)
    tables.show(results, names, console)
    tables.write(results, names, folder)


if __name__ == "__main__":
    run_command(main)
