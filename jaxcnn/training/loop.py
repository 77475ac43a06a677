"""The loop: restore, step, log, evaluate, save. All that touches disk, clock or signals is called from here."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxcnn.config import parse_steps
from jaxcnn.errors import Preempted, RunError
from jaxcnn.hosts import job
from jaxcnn.run.checkpoint import Checkpoints, DamagedError, flatten, unflatten
from jaxcnn.run.log import EXAMPLES_PER_SECOND, RunLog
from jaxcnn.run.stopping import ask_all, between_steps
from jaxcnn.run.tensorboard import profiling
from jaxcnn.tasks.metric import AVERAGED
from jaxcnn.training.bad_layer import first_bad_layer
from jaxcnn.training.build import Run
from jaxcnn.training.clock import Clock, Pace
from jaxcnn.training.evaluation import evaluate
from jaxcnn.training.feed import Feed
from jaxcnn.training.optim import set_rate_factor
from jaxcnn.training.patience import Watch
from jaxcnn.training.step import TrainState
from jaxcnn.training.telemetry import Telemetry

LATE = 0.2  # of its time: a process that waits longer for data is named, where the others do not

# (an evaluation's number, from 1; validation's value of the metric that chooses the weights) -> why the run ends there,
# or None: it goes on. One that is repeated by a resumed run has the number that it had.
AfterEvaluation = Callable[[int, float], str | None]


@dataclass
class Standing:
    """Where a run stands between two calls: all that a checkpoint of it holds, but the clock's."""

    step: int
    state: Any  # replicated TrainState
    totals: Any  # replicated sums of the unfinished interval's metrics
    best: float | None  # the best value so far of the metric that chooses the weights
    watch: Watch  # what evaluations have come to


def train(
    run: Run,
    feed: Feed,
    log: RunLog,
    checkpoints: Checkpoints,
    *,
    begin: Callable[[int], None] = lambda step: None,
    end: Callable[[int, dict[str, Any]], None] = lambda step, variables: None,
    after_evaluation: AfterEvaluation = lambda number, value: None,
) -> dict[str, Any]:
    """Trains to the end, from wherever the checkpoints stand, and measures the result.

    Args:
      run: with all its pieces.
      feed: of its data.
      log: opened here.
      checkpoints: of its folder.
      begin: told the step at which this begins, once the log is open.
      end: told the last step, and the variables on the host that are the run's result.
      after_evaluation: told of each evaluation; may end the run there, as early stopping does.

    Returns:
      What summary.json says of it: `step`, `epochs`, `weights`, `splits`, `seconds`, the rate of examples; and
      `stopped`, why, where it ended before its last step.

    Raises:
      RunError: the loss is not finite, data are damaged or a save failed; the last good checkpoint stays.
      Preempted: a signal came, and everything is saved.
    """
    standing, clock = _restore_or_begin(run, checkpoints, log)
    log.resume(standing.step)
    begin(standing.step)
    steps = parse_steps(run.config.profile.steps) if run.config.profile.steps is not None else None
    stepper = _Stepper(run, feed, log, clock, standing)
    log.start_progress(run.learning.total_steps, standing.step)
    with between_steps() as signals, profiling(steps, log.tensorboard, standing.step, log.say) as profile:
        while not _is_over(run, standing):
            before = standing.step
            stepper.advance(standing, profile)
            ask_all()
            evaluates, saves = is_evaluated(run, before, standing.step), _is_saved(run, before, standing.step)
            if not (evaluates or saves or signals):
                continue
            stepper.catch_up(standing)
            metrics = None
            if evaluates:
                _name_straggler(log, stepper.interval.timing)
                metrics, is_best = _validate(run, feed, log, standing, stepper)
                _sample(run, log, standing)
                if metrics is not None:
                    value = metrics[run.learning.selections.best.name]
                    standing.watch = replace(standing.watch, ended=after_evaluation(standing.watch.evaluations, value))
                saves = saves or is_best or standing.watch.is_over(run.config)
                clock.lap("evaluate", standing.step)
            if saves or signals:
                _save(run, feed, log, checkpoints, standing, clock, metrics)
            if signals:
                checkpoints.wait()
                raise Preempted(f"{signals[0]}: saved at step {standing.step:,}; the same command goes on from there")
    log.stop_progress()
    checkpoints.wait()
    return _measure(run, feed, log, checkpoints, standing, clock, end)


def _restore_or_begin(run: Run, checkpoints: Checkpoints, log: RunLog) -> tuple[Standing, Clock]:
    """Where the newest checkpoint stands, or the beginning. Metrics that it has no sums of begin here."""
    like = {"state": run.abstract_state(), "totals": run.learning.metrics.empty()}

    def newest_or_new() -> dict[str, Any]:
        restored = checkpoints.restore_newest(like, loose="totals")
        if restored is None:
            return {"step": 0, "arrays": flatten({**like, "state": run.init()}), "extra": None}
        return {"step": restored[0], "arrays": flatten(restored[1]), "extra": restored[2]}

    found = job.from_first(newest_or_new)
    step, tree, extra = found["step"], unflatten(found["arrays"], like), found["extra"]
    if extra is not None:
        best, clock = extra["best"], Clock(step, extra["seconds"], extra["steps_timed"])
        watch = Watch.of(extra.get("watch"))
        log.say(f"resuming at step {step:,} of {run.learning.total_steps:,}")
    else:
        best, clock, watch = None, Clock(step), Watch()
    replicate = run.parallel.replicate
    return Standing(step, replicate(tree["state"]), replicate(tree["totals"]), best, watch), clock


def _is_over(run: Run, standing: Standing) -> bool:
    return standing.step >= run.learning.total_steps or standing.watch.is_over(run.config)


def is_evaluated(run: Run, before: int, step: int) -> bool:
    """Whether an evaluation follows a call that goes from one step to another."""
    every = run.config.eval_every_epochs * run.learning.steps_per_epoch
    return step == run.learning.total_steps or _crossed(before, step, every)


def has_row(run: Run, before: int, step: int) -> bool:
    """Whether a call that goes from one step to another ends with a row of train."""
    return is_evaluated(run, before, step) or _crossed(before, step, run.config.log_every_steps)


def _is_saved(run: Run, before: int, step: int) -> bool:
    cadence = run.config.checkpoint
    every = cadence.every_steps or cadence.every_epochs * run.learning.steps_per_epoch
    return step == run.learning.total_steps or _crossed(before, step, every)


def _crossed(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return int(after / every + 1e-9) > int(before / every + 1e-9)


class _Stepper:
    """Hands calls to the devices, and writes what they have come to: training's rows, telemetry, the pace."""

    def __init__(self, run: Run, feed: Feed, log: RunLog, clock: Clock, standing: Standing):
        self._run, self._feed, self._log, self._clock = run, feed, log, clock
        self._key, self._data = run.parallel.replicate(jax.random.key(run.config.seed)), feed.data("train")
        self.interval = _Interval(run, feed, log, standing.watch.rate_factor)
        self._telemetry = Telemetry(
            run.calls.telemetry_call,
            run.calls.telemetry_every_steps,
            params=run.abstract_state().params,
            parallel=run.parallel,
            log=log,
            compiling=partial(clock.apart, "compile"),
        )
        self._pace = Pace(feed.max_calls_in_flight)
        self._ticket: Any = None  # of the newest call, to wait for

    def advance(self, standing: Standing, profile: Any) -> None:
        """Takes one call's steps; returns before the devices are done with them."""
        step, calls = standing.step, self._run.calls
        num_steps = min(calls.steps_per_call - step % calls.steps_per_call, self._run.learning.total_steps - step)
        with self._clock.waiting("data_wait"):
            inputs = self._feed.inputs(step, num_steps)
        profile.before(step, num_steps)
        self._telemetry.observe(step, num_steps, standing.state, self._data, inputs, self._key)
        is_first = self._ticket is None
        standing.state, standing.totals, self._ticket = calls.train_call(
            standing.state, standing.totals, self._data, inputs, self._key
        )
        before, standing.step = step, step + num_steps
        if is_first:
            jax.block_until_ready(self._ticket)
            self._log.first_step(self._clock.lap("compile", standing.step))
        with self._clock.waiting("device_wait"):
            self._pace.follow(self._ticket)
        profile.after(standing.step, self._ticket)
        self._telemetry.fetch()
        self.interval.fetch(standing.state, self._clock)
        if has_row(self._run, before, standing.step):
            standing.totals = self.interval.end(standing.step, standing.totals)

    def catch_up(self, standing: Standing) -> None:
        """Waits for the devices, and writes all that they have come to."""
        self._telemetry.fetch(wait=True)
        self.interval.fetch(standing.state, self._clock, wait=True)
        jax.block_until_ready(self._ticket)
        self._pace.caught_up()
        self._clock.lap("train", standing.step)


# ---- evaluating


def _validate(
    run: Run, feed: Feed, log: RunLog, standing: Standing, stepper: _Stepper
) -> tuple[dict[str, float] | None, bool]:
    """(validation's metrics, whether the weights are the best so far), and what follows from them; (None, False)
    where there is no validation split.
    """
    epoch, num_epochs = (step / run.learning.steps_per_epoch for step in (standing.step, run.learning.total_steps))
    if "validation" not in run.source.splits:
        log.epoch(epoch, num_epochs, {})
        return None, False
    metrics = evaluate_raw_and_ema(run, feed, standing.state, "validation")
    log.metrics(standing.step, epoch, "validation", metrics)
    log.epoch(epoch, num_epochs, metrics)
    is_best = _is_best(run, log, standing, metrics)
    if is_best:
        standing.best = metrics[run.learning.selections.best.name]
    _follow(run, log, standing, stepper, metrics)
    return metrics, is_best


def _name_straggler(log: RunLog, timing: dict[str, float]) -> None:
    """Says which process of a job waits for its data far longer than the others, which all wait for it."""
    waits = job.tell_all(timing.get("data_wait", 0.0))
    latest = max(range(len(waits)), key=waits.__getitem__)
    others = [*waits[:latest], *waits[latest + 1 :]]
    if others and waits[latest] > max(LATE, 2 * max(others)):
        log.say(
            f"{job.names()[latest]} waits {waits[latest]:.0%} of its time for data, the others at most "
            f"{max(others):.0%}: the run goes at its pace"
        )


def _sample(run: Run, log: RunLog, standing: Standing) -> None:
    """Has the log keep a sample of what a network makes, where its task has such a thing."""
    if run.task.sample is not None:
        variables = run.parallel.unreplicate(result_variables(standing.state))
        text = run.task.sample(run.learning.model, variables)
        log.sample(standing.step, standing.step / run.learning.steps_per_epoch, text)


def _is_best(run: Run, log: RunLog, standing: Standing, metrics: dict[str, float]) -> bool:
    """Whether these weights are as good as the best so far; none are where no best is kept."""
    selection = run.learning.selections.best
    value = metrics[selection.name]
    if not run.config.checkpoint.keep_best:
        return False
    if not math.isfinite(value):
        log.say(f"validation {selection.name} is not finite at step {standing.step:,}, and so never the best")
        return False
    return standing.best is None or selection.gain(value, standing.best) >= 0


def _follow(run: Run, log: RunLog, standing: Standing, stepper: _Stepper, metrics: dict[str, float]) -> None:
    """Early stopping's count, and plateau's learning rate."""
    config, selections, previous = run.config, run.learning.selections, standing.watch
    warmup_steps = round(config.schedule.warmup_epochs * run.learning.steps_per_epoch)
    standing.watch = previous.after(metrics, config, selections, warming_up=standing.step < warmup_steps)
    factor = standing.watch.rate_factor
    if factor != previous.rate_factor:
        opt_state = set_rate_factor(standing.state.opt_state, run.parallel.replicate(np.float32(factor)))
        standing.state = standing.state.replace(opt_state=opt_state)
        stepper.interval.rate_factor = factor
        log.say(f"no better validation {selections.plateau.metric.name}: learning rate x {factor:.4g}")


def evaluate_split(run: Run, feed: Feed, split: str, *variables: dict[str, Any]) -> list[dict[str, float]]:
    """Metrics of each of some replicated variables over a whole split."""
    return evaluate(
        run.calls.eval_call,
        variables,
        feed.evaluation(split, run.calls.eval_batch_size),
        metrics=run.learning.metrics,
        parallel=run.parallel,
        num_examples=lambda: feed.num_counted(split),
    )


def evaluate_raw_and_ema(run: Run, feed: Feed, state: TrainState, split: str) -> dict[str, float]:
    """Metrics of a replicated state: the weights', and with AVERAGED before the name those of their average."""
    raw = {"params": state.params, "batch_stats": state.batch_stats}
    if state.ema is None:
        return evaluate_split(run, feed, split, raw)[0]
    metrics, averaged = evaluate_split(run, feed, split, raw, state.ema)
    return metrics | {f"{AVERAGED}{name}": value for name, value in averaged.items()}


# ---- saving


def _save(
    run: Run,
    feed: Feed,
    log: RunLog,
    checkpoints: Checkpoints,
    standing: Standing,
    clock: Clock,
    metrics: dict[str, float] | None,
) -> None:
    unreplicate = run.parallel.unreplicate
    host = {"state": unreplicate(standing.state), "totals": unreplicate(standing.totals)}
    _check_finite(run, feed, host)
    log.flush()
    extra = {
        "best": standing.best,
        "watch": standing.watch.saved(),
        "seconds": dict(clock.seconds),
        "steps_timed": clock.steps_timed,
    }
    if job.is_first():  # each process has all of the state, and one writes it
        checkpoints.save(standing.step, host, extra, metrics)
    clock.lap("save", standing.step)


# ---- the result


def _measure(
    run: Run,
    feed: Feed,
    log: RunLog,
    checkpoints: Checkpoints,
    standing: Standing,
    clock: Clock,
    end: Callable[[int, dict[str, Any]], None],
) -> dict[str, Any]:
    """What summary.json says of the weights that are the result."""
    step, stopped = standing.step, {}
    if step < run.learning.total_steps:
        stopped = {"stopped": standing.watch.why_over(run.config, run.learning.selections, step)}
    last = run.parallel.unreplicate(standing.state)

    def choose() -> dict[str, Any]:
        variables, words = _choose(run, checkpoints, last, log)
        return {"arrays": flatten(variables), "words": words}

    found = job.from_first(choose)
    chosen, weights = unflatten(found["arrays"], result_variables(last)), found["words"]
    variables = run.parallel.replicate(chosen)
    splits = {}
    clock.lap("save", step)
    for split in run.measured_splits:
        (values,) = evaluate_split(run, feed, split, variables)
        splits[split] = {**values, "num_examples": feed.num_counted(split)}
    clock.lap("evaluate", step)
    end(step, chosen)
    if num_damaged := feed.count_damaged():
        log.say(f"{num_damaged:,} damaged records were skipped (data.damaged=skip)")
    return {
        "step": step,
        "epochs": round(step / run.learning.steps_per_epoch, 4),
        **stopped,
        "weights": weights,
        "splits": splits,
        "seconds": clock.seconds,
        EXAMPLES_PER_SECOND: clock.steps_timed * run.config.batch_size / max(clock.seconds["train"], 1e-9),
    }


def result_variables(state: TrainState) -> dict[str, Any]:
    """The variables that a state's result is measured with."""
    return state.ema if state.ema is not None else {"params": state.params, "batch_stats": state.batch_stats}


def _choose(run: Run, checkpoints: Checkpoints, last: TrainState, log: RunLog) -> tuple[dict[str, Any], str]:
    """The best checkpoint's variables, or the last ones when no best is kept, and words for which they are."""
    ema = ", ema" if run.learning.average is not None else ""
    step = checkpoints.best_step()
    if step is None:
        return result_variables(last), f"last{ema}"
    like = {"state": last, "totals": run.learning.metrics.empty()}
    try:
        state = checkpoints.restore(step, like, loose="totals")[0]["state"]
    except DamagedError as error:
        log.say(f"{error}; the last weights are measured instead")
        return result_variables(last), f"last{ema}"
    return result_variables(state), f"best validation {run.learning.selections.best.metric.name}{ema}"


class _Interval:
    """The training metrics between two rows of the log, fetched once the devices have come so far, never waited for."""

    def __init__(self, run: Run, feed: Feed, log: RunLog, rate_factor: float):
        self.timing: dict[str, float] = {}  # of the last interval
        self.rate_factor = rate_factor  # on the schedule, since the last evaluation
        self._run, self._feed, self._log = run, feed, log
        self._pending: deque[tuple[int, Any]] = deque()
        # The whole schedule at once, here: asked for a step at a time it would wait behind the steps on their way.
        self._rates = np.asarray(jax.jit(jax.vmap(run.learning.schedule))(np.arange(run.learning.total_steps)))
        # A sum that is not finite stays so (nan * 0 = nan), and the guard in train_steps stays shut.
        self._zero = run.parallel.compile(lambda totals: jax.tree.map(lambda x: x * 0, totals), sharded={})
        self._zero(
            run.parallel.replicate(run.learning.metrics.empty())
        )  # compiles it now, not at the first interval's end

    def end(self, step: int, totals: Any) -> Any:
        """Ends the interval at `step`; returns the totals that the next one starts with."""
        self._pending.append((step, totals))
        return self._zero(totals)

    def fetch(self, state: TrainState, clock: Clock, *, wait: bool = False) -> None:
        """Writes the rows that the devices are done with, or all of them. RunError if a loss is not finite."""
        while self._pending and (wait or self._pending[0][1].loss.total.is_ready()):
            step, totals = self._pending.popleft()
            totals = self._run.parallel.unreplicate(totals)
            values = self._write(step, totals, state)
            timing = clock.interval(step, self._run.config.batch_size)
            if timing:
                self.timing = timing
                self._log.timing(step, timing)
            self._log.interval(step, values, totals, timing)

    def _write(self, step: int, totals: Any, state: TrainState) -> dict[str, float]:
        values = {name: float(value) for name, value in totals.compute().items()}
        values["learning_rate"] = float(self._rates[step - 1] * np.float32(self.rate_factor))
        self._log.metrics(step, step / self._run.learning.steps_per_epoch, "train", values)
        if not np.isfinite(totals.loss.total):  # the row is there, so that what reads the run can tell how it ended
            raise _not_finite(self._run, self._feed, self._run.parallel.unreplicate(state))
        return values


def _check_finite(run: Run, feed: Feed, host: dict[str, Any]) -> None:
    """Nothing that is not finite is ever saved."""
    if not all(np.isfinite(x).all() for x in flatten(host).values() if x.dtype.kind == "f"):
        raise _not_finite(run, feed, host["state"])


def _not_finite(run: Run, feed: Feed, state: TrainState) -> RunError:
    step, key = int(state.step), jax.random.key(run.config.seed)
    try:
        batch = {**feed.batch(step), **feed.beside}
        learning = run.learning
        where = first_bad_layer(
            state, batch, key, model=learning.model, loss=learning.losses.train, prepare=learning.prepare
        )
    except (MemoryError, jax.errors.JaxRuntimeError):
        where = "in a layer that cannot be told: the step is too large to be repeated on one device"
    return RunError(
        f"NaN or Inf at step {step + 1:,}, {where}; what was saved before is kept. Lower optimizer.learning_rate, "
        "or set optimizer.clip_norm=1"
    )
