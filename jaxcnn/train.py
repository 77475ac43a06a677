"""A run, from its config and its folder to its summary: what `main` does once it has read its command line."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etils import epath
from rich.console import Console

from jaxcnn.config import Config, check_unread, flatten, to_dict
from jaxcnn.errors import UserError
from jaxcnn.hosts import job
from jaxcnn.machine import versions
from jaxcnn.run import trackers
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog, closing_table
from jaxcnn.terminal import complain


@dataclass(frozen=True)
class Order:
    """What is to be trained, and where it is kept."""

    config: Config  # validated
    experiment: str
    workdir: epath.Path
    study: str = ""  # that it is a run of


def train(
    order: Order,
    *,
    start: float,
    console: Console | None = None,
    build: Callable[..., Any] | None = None,
    after_evaluation: Callable[[int, float], str | None] = lambda number, value: None,
) -> dict[str, Any]:
    """Trains to the end, from wherever the folder stands, and returns the summary; of a finished run, what it holds.

    Args:
      order: what is to be trained.
      start: time.perf_counter() when the command began.
      console: where its lines go; none: the terminal.
      build: makes its pieces, as training/kept.py does of runs before; none: training/build.py.
      after_evaluation: may end the run early, as `training.loop.AfterEvaluation` has it.

    Raises:
      UserError: the config or the folder is wrong; nothing was started.
      RunError: the run failed.
      Preempted: a signal came, and everything is saved.
    """
    config, workdir = order.config, order.workdir
    job.check_same("settings", lambda: [order.experiment, os.fspath(workdir), to_dict(config), versions()])
    job.from_first(lambda: _check(order))
    log = RunLog(
        workdir,
        tensorboard=config.tensorboard,
        trackers=trackers_of(order),
        console=console,
        start=start,
    )
    summary = job.from_first(lambda: workdir_lib.read_summary(workdir))
    if summary is not None:
        log.say(f"{workdir} holds this run, finished:")
        closing_table(log.console, summary)
        return summary
    job.from_first(lambda: _check_weights(order))
    from jaxcnn.training.build import build as build_anew  # imports JAX; what is wrong above was said in less time
    from jaxcnn.training.parallel import set_up

    set_up(config.platform, compilation_cache=config.compilation_cache)
    with contextlib.ExitStack() as stack:

        def claim() -> dict[str, Any]:
            stack.enter_context(workdir_lib.claimed(workdir))
            workdir_lib.check(workdir, order.experiment, config)  # again, now that nobody else can write there
            saved = workdir_lib.saved_data(workdir)
            return {"facts": saved, "kept_splits": workdir_lib.read_splits(workdir) if saved else None}

        before = job.from_first(claim)
        stack.enter_context(contextlib.closing(log))
        with job.together():
            run, feed = (build or build_anew)(config, progress=log.work, **before)
        job.check_same("data", run.data_facts)
        stack.enter_context(contextlib.closing(feed))
        return _train(run, feed, order, log, start, after_evaluation)


def show(order: Order, *, start: float, console: Console | None = None) -> None:
    """What the run would be: everything is resolved and printed, nothing trained. Raises UserError."""
    config = order.config
    _check(order)
    _check_weights(order)
    from jaxcnn.training.build import build
    from jaxcnn.training.parallel import set_up
    from jaxcnn.training.preview import preview

    set_up(config.platform, compilation_cache=config.compilation_cache)
    log = RunLog(order.workdir, tensorboard=False, console=console, start=start)
    run, _ = build(config, progress=log.work, stand_in=True)
    preview(run, log.console, experiment=order.experiment, workdir=order.workdir)


def _check(order: Order) -> None:
    """Raises UserError where the folder cannot hold this run."""
    config, workdir = order.config, order.workdir
    if "\\" in os.fspath(workdir):
        raise UserError(
            f"workdir {workdir}: checkpoints cannot lie below a name with a backslash; pass another --workdir"
        )
    if not workdir_lib.check(workdir, order.experiment, config):
        check_unread(config)
    workdir_lib.check_excluded(workdir, config.data.exclude, _exclusion_digest(config))
    trackers.check(config.trackers, workdir)


def trackers_of(order: Order) -> Callable[[list[dict[str, Any]]], trackers.Trackers] | None:
    """What opens the run's trackers, by its rows so far; None where it has none."""
    if not order.config.trackers:
        return None
    return lambda rows: trackers.Trackers(
        order.config.trackers, order.workdir, rows, study=order.study, config=flatten(order.config)
    )


def _check_weights(order: Order) -> None:
    """Raises UserError where weights that the run needs are not there."""
    begins = not workdir_lib.has_checkpoints(order.workdir)
    for option, weights in (
        ("init_from", order.config.init_from if begins else None),
        ("distill.teacher", order.config.distill.teacher),
    ):
        if weights is not None:
            from jaxcnn.transfer.finding import find

            find(weights, option=option)


def _exclusion_digest(config: Config) -> str | None:
    if config.data.exclude is None:
        return None
    from jaxcnn.data.exclusion import read_exclusion

    return read_exclusion(config.data.exclude).digest


def _train(
    run: Any,
    feed: Any,
    order: Order,
    log: RunLog,
    start: float,
    after_evaluation: Callable[[int, float], str | None],
) -> dict[str, Any]:
    import jax

    from jaxcnn.results.media import Media
    from jaxcnn.run.checkpoint import Checkpoints
    from jaxcnn.training import loop

    config, workdir = order.config, order.workdir
    num_params = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))
    job.from_first(lambda: begin_folder(run, order, log, num_params))
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
        result = loop.train(
            run, feed, log, checkpoints, begin=media.begin, end=media.end, after_evaluation=after_evaluation
        )
    finally:
        checkpoints.close()
    result["seconds"] = {"setup": set_up_seconds, **result["seconds"]}
    summary = summary_of(run, order, result, num_params)
    log.summary(summary)
    closing_table(log.console, summary)
    log.say(f"everything is in {workdir}")
    return summary


def summary_of(run: Any, order: Order, result: dict[str, Any], num_params: int) -> dict[str, Any]:
    """What summary.json says: `result` is what training.loop.train gives, with the seconds of the set-up."""
    import jax

    return {
        "experiment": order.experiment,
        "status": "finished",
        "examples": run.task.examples,
        **result,
        "num_params": num_params,
        "platform": run.parallel.devices[0].platform,
        "num_devices": run.parallel.num_devices,
        "num_processes": jax.process_count(),
        "seed": order.config.seed,
        "versions": versions(),
    }


def begin_folder(run: Any, order: Order, log: RunLog, num_params: int) -> None:
    """Makes the folder this run's, and says what it is. Raises UserError."""
    from jaxcnn.training.preview import describe

    config, workdir = order.config, order.workdir
    pretrained = None if workdir_lib.has_checkpoints(workdir) else run.pretrained
    before = workdir_lib.saved_convolutions(workdir)
    workdir_lib.write_config(
        workdir,
        order.experiment,
        config,
        run.data_facts(),
        versions(),
        pretrained=None if pretrained is None else pretrained.facts(),
        teacher=None if run.task.constants is None else run.task.constants.facts(),
        best=run.learning.selections.best.facts(),
        convolutions=run.convolutions,
    )
    workdir_lib.write_splits(workdir, run.source.record_numbers)
    log.say(describe(run, order.experiment, num_params))
    if before is not None and run.convolutions not in (None, before):
        log.say(f"convolutions were computed by {before}: this run goes on equal up to rounding, not bit for bit")
    if pretrained is not None:
        log.console.print(pretrained.table())
    if run.learning.finetuning.layers:
        log.console.print(run.learning.finetuning.table(run.learning.steps_per_epoch))
