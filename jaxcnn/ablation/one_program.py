"""Runs of a study that differ in what can be traced, as one program: seeds, folds, the rate, decay and smoothing.

Each still gets the folder that it would have had by itself; what is in it is equal to rounding. Nothing is on disk
before the program ends.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxcnn.ablation.claims import Claim, Claims
from jaxcnn.ablation.running import CLAIMS, Failure, Job, check_first, claim_name, leave, outcome_of, write_failure
from jaxcnn.ablation.study import StudyRun
from jaxcnn.command import is_out_of_memory
from jaxcnn.config import Config, to_dict
from jaxcnn.errors import RunError, UserError
from jaxcnn.files import appending, to_json
from jaxcnn.run import trackers
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.run.log import EXAMPLES_PER_SECOND, RunLog
from jaxcnn.run.workdir import OWN_LINES, TakenError, claimed, is_taken
from jaxcnn.tasks.metric import AVERAGED
from jaxcnn.terminal import PatientConsole, complain
from jaxcnn.train import Order, begin_folder, summary_of, trackers_of
from jaxcnn.training.build import Run, peak_rate
from jaxcnn.training.feed import ResidentFeed
from jaxcnn.training.kept import Kept
from jaxcnn.training.patience import Watch
from jaxcnn.training.whole_run import Hyperparameters, Pieces, means, pieces_of, train_and_choose, train_run

TRIED_STEPS = 8  # that each way is timed over; the first call compiles and is not timed


@dataclass(frozen=True)
class Member:
    """One run of a program."""

    order: Order
    built: Run  # of its fold and its config
    rate: float  # of its learning rate, on the schedule in `built`


@dataclass(frozen=True)
class Group:
    """Runs that one program trains, which differ in what is traced alone."""

    members: list[Member]
    base: Run  # whose program it is
    data: dict[str, Any]  # split -> arrays in host memory; of folds, those of train and validation together
    places: dict[str, np.ndarray]  # split -> [runs, n]: each run's examples; empty without folds


def work_in_one_program(
    job: Job, left: list[StudyRun], *, tell: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Runs what is left and nobody else has, each group of runs as one program; `tell` is called after each group.

    Raises:
      UserError: something of the config is not for one program; it is named.
      Preempted: a signal came; what had not ended begins anew.
    """
    from jaxcnn.training.parallel import set_up

    config = job.study.config
    set_up(config.platform, compilation_cache=config.compilation_cache)
    kept, groups = Kept(), grouped(job, left)
    check_first(job, kept)
    for runs in groups:  # all, before the first is trained
        order = job.order(runs[0])
        trackers.check(order.config.trackers, order.workdir)
        _check(order.config, kept.build(order.config)[0], folds=runs[0].fold is not None)
    claims = Claims(job.folder / CLAIMS)
    for runs in groups:
        with contextlib.ExitStack() as stack:
            mine = [run for run in runs if _take(job, run, claims, stack)]
            for group in _built(job, mine, kept):
                _train(group, say)
                tell()


def grouped(job: Job, runs: Sequence[StudyRun]) -> list[list[StudyRun]]:
    """Runs that differ in seeds, folds, the learning rate, weight decay and label smoothing alone, together."""
    groups: dict[str, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault(to_json(to_dict(_untraced(job.order(run).config))), []).append(run)
    return list(groups.values())


def _untraced(config: Config) -> Config:
    decays = bool(config.optimizer.weight_decay)  # without, the optimizer lacks the link
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0, weight_decay=float(decays))
    data = dataclasses.replace(config.data, fold=None)
    loss = dataclasses.replace(config.loss, label_smoothing=0.0)
    return dataclasses.replace(config, seed=0, data=data, optimizer=optimizer, loss=loss)


def _take(job: Job, run: StudyRun, claims: Claims, stack: contextlib.ExitStack) -> bool:
    """Claims a run until the stack is left; whether nobody else has it."""
    workdir = job.folder / run.folder
    if outcome_of(workdir) is not None or not claims.is_free(claim_name(run)) or is_taken(epath.Path(workdir)):
        return False
    claim = claims.take(claim_name(run), step=0)
    if claim is None:
        return False
    stack.callback(_release, claims, claim)
    stack.enter_context(claims.held(claim, overtaken=partial(leave, run)))
    return True


def _release(claims: Claims, claim: Claim) -> None:
    with contextlib.suppress(OSError):  # others then find out once this process is gone
        claims.release(claim)


# ---- what a program is made of


def _built(job: Job, runs: list[StudyRun], kept: Kept) -> list[Group]:
    """Groups of as many examples and steps: folds may differ by one. Raises UserError."""
    pieces: dict[str, tuple[Run, ResidentFeed]] = {}  # by fold
    members: dict[tuple[int, ...], list[Member]] = {}
    for run in runs:
        order = job.order(run)
        fold = str(order.config.data.fold)
        if fold not in pieces:
            built, feed = kept.build(order.config)
            _check(order.config, built, folds=run.fold is not None)
            assert isinstance(feed, ResidentFeed)
            pieces[fold] = built, feed
        of_fold = pieces[fold][0]
        rate = peak_rate(order.config) / peak_rate(of_fold.config)
        sizes = tuple(len(each) for each in of_fold.source.splits.values())
        members.setdefault(sizes, []).append(Member(order, of_fold.with_seed(order.config), rate))
    return [_group(each, pieces) for each in members.values()]


def _check(config: Config, run: Run, *, folds: bool) -> None:
    """Raises UserError where one program cannot do what the run's config asks for."""
    pieces_of(run)
    for name, asked in (
        ("distill.teacher", config.distill.teacher is not None),
        ("profile.steps", config.profile.steps is not None),
        ("telemetry.every_steps", bool(config.telemetry.every_steps)),
        ("model.name", run.task.sample is not None),
    ):
        if asked:
            raise UserError(f"{name} is not for --in_one_program; leave one of them out")
    if folds and config.loss.class_weights != "none":
        raise UserError("loss.class_weights are of each fold's own train; leave --in_one_program out")
    if folds and not all(isinstance(value, tuple) for value in run.facts.values()):
        raise UserError(f"folds of {run.task.learns} cannot be traced; leave --in_one_program out")


def _group(members: list[Member], pieces: dict[str, tuple[Run, ResidentFeed]]) -> Group:
    base, feed = pieces[str(members[0].order.config.data.fold)]
    seen = [split for split in base.source.splits if split != "test" or base.config.measure_test]
    data = {split: {**feed.arrays(split)[0], "valid": feed.arrays(split)[1]} for split in seen}
    if feed.count_damaged():
        raise UserError(f"{base.source.name} has damaged records; leave --in_one_program out")
    places: dict[str, np.ndarray] = {}
    if len({member.order.config.data.fold for member in members}) > 1:
        data, places = _with_places(members, data)
    return Group(members, base, data, places)


def _with_places(members: list[Member], data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train and validation as one set of all examples, and of each run which of these it has."""
    splits = ("train", "validation")
    numbers = np.concatenate([members[0].built.source.splits[split].indices for split in splits])
    order = np.argsort(numbers)
    whole = {name: np.concatenate([data[split][name] for split in splits])[order] for name in data["train"]}
    places = {
        split: np.stack(
            [np.searchsorted(numbers[order], member.built.source.splits[split].indices) for member in members]
        ).astype(np.int32)
        for split in splits
    }
    for split, found in places.items():
        for member, each in zip(members, found, strict=True):
            assert np.array_equal(numbers[order][each], member.built.source.splits[split].indices)
    return {**data, "train": whole, "validation": whole}, places


def traced(group: Group) -> Hyperparameters:
    """What differs between the runs, [runs]; None where they are alike."""
    configs = [member.order.config for member in group.members]
    base = group.base.config

    def varying(of: Callable[[Config], float]) -> np.ndarray | None:
        values = np.array([of(config) for config in configs], np.float32)
        return None if (values == np.float32(of(base))).all() else values

    rates = varying(lambda config: peak_rate(config) / peak_rate(base))
    facts = None
    if group.places:
        names = group.base.facts
        facts = {name: np.array([member.built.facts[name] for member in group.members], np.float32) for name in names}
    return Hyperparameters(
        learning_rate=rates,
        weight_decay=varying(lambda config: config.optimizer.weight_decay),
        label_smoothing=varying(lambda config: config.loss.label_smoothing),
        facts=facts,
    )


# ---- training them


def _train(group: Group, say: Callable[[str], None]) -> None:
    """Trains a group and writes its folders."""
    start = time.perf_counter()
    parallel, pieces = group.base.parallel, pieces_of(group.base)
    keep_best = bool(group.base.config.checkpoint.keep_best)
    seeds = np.array([member.order.config.seed for member in group.members], np.uint32)
    arguments = [parallel.replicate(each) for each in (seeds, group.data, traced(group), group.places)]
    way = _faster_way(group, pieces, arguments, say)
    one = partial(train_and_choose, pieces=pieces, keep_best=keep_best)
    compiled: Any = parallel.compile(_of_all(one, way), sharded={})
    if parallel.mode == "jit":
        compiled = compiled.lower(*arguments).compile()
    set_up = time.perf_counter() - start
    start = time.perf_counter()
    results = parallel.unreplicate(compiled(*arguments))
    seconds = {"setup": set_up / len(seeds), "train": (time.perf_counter() - start) / len(seeds)}
    for number, member in enumerate(group.members):
        own = jax.tree.map(lambda each, number=number: np.asarray(each[number]), results)
        _write(member, own, pieces, seconds, keep_best=keep_best)


def _of_all(one: Callable, way: str) -> Callable:
    """A function of one run's (seed, data, hyperparameters, places), of all runs, which share the data."""

    def of_all(seeds: Any, data: Any, hyperparameters: Any, places: Any) -> Any:
        if way == "vmap":
            return jax.vmap(one, in_axes=(0, None, 0, 0))(seeds, data, hyperparameters, places)
        return jax.lax.map(lambda each: one(each[0], data, *each[1:]), (seeds, hyperparameters, places))

    return of_all


def _faster_way(group: Group, pieces: Pieces, arguments: list[Any], say: Callable[[str], None]) -> str:
    """`vmap` or `lax.map`, whichever does a few steps of all runs sooner here."""
    count = len(group.members)
    if count == 1:
        return "lax.map"
    steps = min(TRIED_STEPS, pieces.total_steps)
    short = dataclasses.replace(pieces, total_steps=steps, eval_every_steps=steps)

    def one(seed: Any, data: Any, hyperparameters: Any, places: Any) -> Any:
        return train_run(seed, {"train": data["train"]}, hyperparameters, places, pieces=short)[1]

    milliseconds = {}
    for way in ("lax.map", "vmap"):
        call = group.base.parallel.compile(_of_all(one, way), sharded={})
        try:
            jax.block_until_ready(call(*arguments))
            before = time.perf_counter()
            jax.block_until_ready(call(*arguments))
        except Exception as error:
            if way == "lax.map" or not is_out_of_memory(error):
                raise
            continue
        milliseconds[way] = (time.perf_counter() - before) * 1000 / steps / count
    best = min(milliseconds, key=milliseconds.__getitem__)
    told = ", ".join(f"{way} {each:.2f}" for way, each in milliseconds.items())
    say(f"{count} runs in one program by {best}: {told} ms a step and run")
    return best


# ---- what each leaves behind


def _write(member: Member, results: Any, pieces: Pieces, seconds: dict[str, float], *, keep_best: bool) -> None:
    """A run's folder, as it would have written it; of one whose loss was not finite, why it failed."""
    workdir = Path(member.order.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    last, result, curves, _ = results
    sums = curves["train"]
    bad = np.flatnonzero(~np.isfinite(sums.loss.total))
    weights = [leaf for leaf in jax.tree.leaves((last, result)) if leaf.dtype.kind == "f"]
    if not len(bad) and not all(np.isfinite(leaf).all() for leaf in weights):
        bad = np.array([int(last.step)])
    with appending(workdir / OWN_LINES) as lines:
        console = PatientConsole(file=lines, width=120)
        if len(bad):
            failure = Failure(
                f"NaN or Inf at step {bad[0] + 1:,}. Lower optimizer.learning_rate, or set optimizer.clip_norm=1",
                RunError.exit_code,
            )
            console.print(failure.line)
            write_failure(workdir, failure)
            return
        with contextlib.suppress(TakenError), claimed(epath.Path(workdir)):  # taken: by a command of its own, since
            if outcome_of(workdir) is None:
                _write_finished(member, results, pieces, seconds, console, keep_best=keep_best)


def _write_finished(
    member: Member,
    results: Any,
    pieces: Pieces,
    seconds: dict[str, float],
    console: PatientConsole,
    *,
    keep_best: bool,
) -> None:
    last, result, curves, test = results
    run, order, config = member.built, member.order, member.order.config
    log = RunLog(order.workdir, tensorboard=config.tensorboard, trackers=trackers_of(order), console=console)
    with contextlib.closing(log):
        num_params = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))
        begin_folder(run, order, log, num_params)
        log.resume(0)
        rows = _write_rows(member, curves, pieces, log)
        took = {"setup": 0.0, "compile": 0.0, "evaluate": 0.0, "save": 0.0, **seconds}
        _save(member, last, result, rows, took)
        step = int(last.step)
        ema = ", ema" if run.learning.average is not None else ""
        chosen = keep_best and "validation" in run.source.splits
        best = f"best validation {run.learning.selections.best.metric.name}{ema}"
        splits = {}
        for split in run.measured_splits:
            values = rows[int(result.step)] if split == "validation" else means(test)
            splits[split] = {**_of_result(run, values), "num_examples": len(run.source.splits[split])}
        log.summary(
            summary_of(
                run,
                order,
                {
                    "step": step,
                    "epochs": round(step / run.learning.steps_per_epoch, 4),
                    "weights": best if chosen else f"last{ema}",
                    "splits": splits,
                    "seconds": took,
                    EXAMPLES_PER_SECOND: step * config.batch_size / max(seconds["train"], 1e-9),
                },
                num_params,
            )
        )


def _write_rows(member: Member, curves: Any, pieces: Pieces, log: RunLog) -> dict[int, dict[str, float]]:
    """The rows of metrics.jsonl, at the steps where the loop has some; validation's by step."""
    run, validation = member.built, dict[int, dict[str, float]]()
    total, evaluated = pieces.total_steps, pieces.eval_steps
    schedule = np.asarray(jax.jit(jax.vmap(run.learning.schedule))(np.arange(total)))
    before = 0
    for step in pieces.row_steps:
        sums = jax.tree.map(lambda each, start=before, end=step: each[start:end].sum(0), curves["train"])
        values = {name: float(value) for name, value in sums.compute().items()}
        values["learning_rate"] = float(schedule[step - 1] * np.float32(member.rate))
        epoch = step / run.learning.steps_per_epoch
        log.metrics(step, epoch, "train", values)
        before = step
        if step in evaluated and "validation" in curves:
            place = evaluated.index(step)
            of_step = jax.tree.map(lambda each, place=place: each[place], curves["validation"])
            validation[step] = {name: float(value) for name, value in means(of_step).items()}
            log.metrics(step, epoch, "validation", validation[step])
    return validation


def _of_result(run: Run, values: dict[str, Any]) -> dict[str, float]:
    """Of an evaluation those of the weights that are the result: of their average, where there is one."""
    averaged = run.learning.average is not None
    names = [name for name in values if name.startswith(AVERAGED) == averaged]
    return {name.removeprefix(AVERAGED): float(values[name]) for name in names}


def _save(member: Member, last: Any, result: Any, rows: dict[int, dict[str, float]], seconds: dict[str, float]) -> None:
    """The checkpoints that the loop would keep: of the result, and of the end."""
    run, config = member.built, member.order.config
    selection = run.learning.selections.best
    checkpoints = Checkpoints(
        member.order.workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        **selection.facts(),
        asynchronous=False,
        report=complain,
    )
    best = rows[int(result.step)][selection.name] if config.checkpoint.keep_best and rows else None
    watch = Watch(evaluations=len(rows)).saved()
    with contextlib.closing(checkpoints):
        for step, state in sorted({int(each.step): each for each in (result, last)}.items()):
            extra = {"best": best, "watch": watch, "seconds": seconds, "steps_timed": step}
            host = {"state": state, "totals": run.learning.metrics.empty()}
            checkpoints.save(step, jax.tree.map(np.asarray, host), extra, rows.get(step))
        checkpoints.wait()
