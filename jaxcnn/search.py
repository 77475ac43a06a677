"""Searches a space: python -m jaxcnn.search --config FILE --space optimizer.learning_rate=log:1e-3:1 --trials 50

Each trial is a run in DIR/trials/, compared by validation; test is not measured. The same command again goes on, or
shows what was found; started several times at once, the processes share the trials. Exit codes as jaxcnn.main's.
"""

import dataclasses
import importlib.util
import os

from absl import flags
from etils import epath

from jaxcnn.ablation.search import (
    PRUNERS,
    SAMPLERS,
    Goal,
    Search,
    Searching,
    check_pruner,
    claim,
    find_goal,
    open_study,
    read_goal,
)
from jaxcnn.ablation.search_results import found_by, show_found, write_found
from jaxcnn.ablation.space import DRAWS, parse_space
from jaxcnn.command import HELP_FLAGS, flags_help, run_command, show_help
from jaxcnn.config import Config
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import Preempted, RunError, UserError, nearest
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog
from jaxcnn.terminal import PatientConsole

MOST_TRIALS = 10**6


def main(argv: list[str], start: float) -> int:
    """Parses, checks, runs trials, prints; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_multi_string(
        "space", [], "a field, and what it may be: FIELD=LOW:HIGH, LOW:HIGH:STEP, log:LOW:HIGH or A,B,C, and maybe "
        "' if FIELD=A,B'; once for each field", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("trials", 50, "how many, of all processes", 1, MOST_TRIALS, flag_values=values)
    flags.DEFINE_string("sampler", "tpe", f"what suggests them: {', '.join(SAMPLERS)}", flag_values=values)
    flags.DEFINE_string("pruner", "none", f"what ends poor ones: {', '.join(PRUNERS)}", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the sampler; a run's own is config.seed", 0, 2**31 - 1, flag_values=values)
    flags.DEFINE_string("metric", None, "of validation; default config.checkpoint.best_metric", flag_values=values)
    flags.DEFINE_string("workdir", None, "the search's folder; default runs/<experiment>-search", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "check everything and show the space, run nothing", flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n  --config: the experiment, FILE or FILE:ARG\n{flags_help(values)}")
        return 0
    config, experiment = load_config(argv, flag_values=values)
    for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if values[name].value not in known:
            raise UserError(f"--{name}={values[name].value} is not known; {nearest(str(values[name].value), known)}")
    if importlib.util.find_spec("optuna") is None:
        raise UserError("a search needs optuna, which is not installed: pip install 'jaxcnn[search]'")
    if values.workdir == "":
        raise UserError("--workdir is empty; leave it out for runs/<experiment>-search")
    space = parse_space(values.space, _base(config, values.metric))
    search = Search(experiment, space, values.sampler, values.pruner, values.seed)
    total = _num_trials(search, values.trials)
    folder = workdir_lib.resolve(values.workdir or os.path.join("runs", f"{experiment}-search"))
    goal = read_goal(folder, search)
    console = PatientConsole(soft_wrap=True)
    if goal is None:
        goal = _checked_goal(search, start)
    if values.dry_run:
        _show(console, search, goal, folder, total)
        return 0
    _search(search, goal, folder, total, console)
    return 0


def _base(config: Config, metric: str | None) -> Config:
    """What every trial has: weights that the metric chooses, and no test."""
    checkpoint = config.checkpoint if metric is None else dataclasses.replace(config.checkpoint, best_metric=metric)
    return dataclasses.replace(config, measure_test=False, checkpoint=checkpoint)


def _num_trials(search: Search, asked: int) -> int:
    """The trials that there can be. Raises UserError where some would have to be the same."""
    if search.sampler == "grid":
        search.space.points()  # refused, where there is no end of them
        return search.space.size(most=asked)
    size = search.space.size(most=asked)
    if size < asked:
        raise UserError(f"--trials={asked} of a space of {size} points; --sampler=grid tries each once")
    return asked


def _checked_goal(search: Search, start: float) -> Goal:
    """What a new search compares by. Raises UserError where the base config, a model's name or the pruner is wrong."""
    from jaxcnn.training.parallel import set_up  # imports JAX

    set_up(search.config.platform, compilation_cache=search.config.compilation_cache)
    log = RunLog(epath.Path("."), tensorboard=False, start=start)  # writes nothing: it is not told to resume
    goal = find_goal(search.space, progress=log.work)
    check_pruner(search, goal)
    return goal


def _show(console: PatientConsole, search: Search, goal: Goal, folder: epath.Path, total: int) -> None:
    """The space, and how much of it is possible."""
    way = "highest" if goal.higher_is_better else "lowest"
    console.print(f"{total:,} trials in {folder}, by {search.sampler}; pruner {search.pruner}")
    console.print(
        f"{way} validation {goal.metric}, of up to {goal.evaluations:,} evaluations a trial; test not measured"
    )
    for each in search.space.dimensions:
        console.print(f"  {each.text}")
    wrong = [message for _, message in search.space.draws() if message is not None]
    console.print(
        f"of {DRAWS} configs drawn at random {DRAWS - len(wrong)} are possible"
        + (f"; one that is not: {wrong[0]}" if wrong else "")
    )


def _search(search: Search, goal: Goal, folder: epath.Path, total: int, console: PatientConsole) -> None:
    claim(folder, search, goal)
    study = open_study(folder, search, goal)
    searching = Searching(folder, search, goal, total, study, say=console.print)
    if ended := searching.num_ended():
        console.print(f"{folder} holds this search: {ended:,} of {max(total, ended):,} trials have ended")
    try:
        searching.go_on()
    except Preempted as error:
        ended = searching.num_ended()
        raise Preempted(f"{error}; {ended:,} of {total:,} trials have ended, the same command goes on") from None
    found = found_by(searching)
    write_found(folder, search, goal, found)
    if found.best is None:
        raise RunError(f"no trial has finished; the last one: {found.rows[-1].error}")
    show_found(console, folder, search, goal, found)


if __name__ == "__main__":
    run_command(main)
