"""The loop: restore, step, log, evaluate, save. All that touches disk, clock or signals is called from here."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxcnn.config import parse_steps
from jaxcnn.errors import Preempted, RunError
from jaxcnn.run.checkpoint import Checkpoints, DamagedError, flatten
from jaxcnn.run.log import RunLog
from jaxcnn.run.stopping import between_steps
from jaxcnn.run.tensorboard import profiling
from jaxcnn.training.bad_layer import first_bad_layer
from jaxcnn.training.build import Run
from jaxcnn.training.evaluation import evaluate
from jaxcnn.training.feed import Feed
from jaxcnn.training.optim import set_rate_factor
from jaxcnn.training.patience import Watch, plateau_metric
from jaxcnn.training.step import TrainState
from jaxcnn.training.telemetry import Telemetry

SECONDS_AHEAD = 0.2  # of work that the host hands the devices in advance: enough that they never wait for it


def train(
    run: Run,
    feed: Feed,
    log: RunLog,
    checkpoints: Checkpoints,
    *,
    begin: Callable[[int], None] = lambda step: None,
    end: Callable[[int, dict[str, Any]], None] = lambda step, variables: None,
) -> dict[str, Any]:
    """Trains to the end, from wherever the checkpoints stand, and measures the result.

    Args:
      run: with all its pieces.
      feed: of its data.
      log: opened here.
      checkpoints: of its folder.
      begin: told the step at which this begins, once the log is open.
      end: told the last step, and the variables on the host that are the run's result.

    Returns:
      What summary.json says of it: `step`, `epochs`, `weights`, `splits`, `seconds`, `images_per_second`; and
      `stopped`, why, where it ended before its last step.

    Raises:
      RunError: the loss is not finite, data are damaged or a save failed; the last good checkpoint stays.
      Preempted: a signal came, and everything is saved.
    """
    config, parallel, cadence = run.config, run.parallel, run.config.checkpoint
    validates = "validation" in run.source.splits
    restored = checkpoints.restore_newest({"state": run.abstract_state(), "totals": run.metrics.empty()})
    if restored:
        step, tree, extra = restored
        best, clock = extra["best"], _Clock(step, extra["seconds"], extra["steps_timed"])
        watch = Watch.of(extra.get("watch"))
        log.say(f"resuming at step {step:,} of {run.total_steps:,}")
    else:
        step, tree = 0, {"state": run.init(), "totals": run.metrics.empty()}
        best, clock, watch = None, _Clock(step), Watch()
    log.resume(step)
    begin(step)

    state, totals = parallel.replicate(tree["state"]), parallel.replicate(tree["totals"])
    del tree
    key, data = parallel.replicate(jax.random.key(config.seed)), feed.data("train")
    interval = _Interval(run, feed, log, watch.rate_factor)
    warmup_steps = round(config.schedule.warmup_epochs * run.steps_per_epoch)
    telemetry = Telemetry(
        run.telemetry_call,
        run.telemetry_every_steps,
        params=run.abstract_state().params,
        parallel=parallel,
        log=log,
        compiling=partial(clock.apart, "compile"),
    )
    profiled = None if config.profile.steps is None else parse_steps(config.profile.steps)
    pace = _Pace(feed.max_calls_in_flight)
    first_call = True
    log.start_progress(run.total_steps, step)
    with between_steps() as signals, profiling(profiled, log.tensorboard, step, log.say) as profile:
        while step < run.total_steps and not watch.is_over(config):
            num_steps = min(run.steps_per_call - step % run.steps_per_call, run.total_steps - step)
            with clock.waiting("data_wait"):
                inputs = feed.inputs(step, num_steps)
            profile.before(step, num_steps)
            telemetry.observe(step, num_steps, state, data, inputs, key)
            state, totals, ticket = run.train_call(state, totals, data, inputs, key)
            before, step = step, step + num_steps
            if first_call:
                first_call = False
                jax.block_until_ready(ticket)
                log.first_step(clock.lap("compile", step))
            with clock.waiting("device_wait"):
                pace.follow(ticket)
            profile.after(step, ticket)

            telemetry.fetch()
            interval.fetch(state, clock)
            last = step == run.total_steps
            evaluating = last or _crossed(before, step, config.eval_every_epochs * run.steps_per_epoch)
            if evaluating or _crossed(before, step, config.log_every_steps):
                totals = interval.end(step, totals)
            saving = last or _crossed(before, step, cadence.every_steps or cadence.every_epochs * run.steps_per_epoch)
            if not (evaluating or saving or signals):
                continue

            telemetry.fetch(wait=True)
            interval.fetch(state, clock, wait=True)
            jax.block_until_ready(ticket)
            pace.caught_up()
            clock.lap("train", step)
            metrics = None
            if evaluating and not validates:
                log.epoch(step / run.steps_per_epoch, run.total_steps / run.steps_per_epoch, {})
            elif evaluating:
                metrics = evaluate_raw_and_ema(run, feed, state, "validation")
                log.metrics(step, step / run.steps_per_epoch, "validation", metrics)
                log.epoch(step / run.steps_per_epoch, run.total_steps / run.steps_per_epoch, metrics)
                value = metrics[best_metric(run)]
                if cadence.keep_best and not math.isfinite(value):
                    log.say(f"validation {best_metric(run)} is not finite at step {step:,}, and so never the best")
                lower = cadence.best_metric == "loss"
                better = best is None or (value <= best if lower else value >= best)
                if cadence.keep_best and better and math.isfinite(value):
                    best, saving = value, True
                previous, averaged = watch, run.average is not None
                watch = watch.after(metrics, config, averaged=averaged, warming_up=step < warmup_steps)
                if watch.rate_factor != previous.rate_factor:
                    factor = parallel.replicate(np.float32(watch.rate_factor))
                    state = state.replace(opt_state=set_rate_factor(state.opt_state, factor))
                    interval.rate_factor = watch.rate_factor
                    log.say(f"no better validation {plateau_metric(config)}: learning rate x {watch.rate_factor:.4g}")
                saving = saving or watch.is_over(config)
                clock.lap("evaluate", step)
            if saving or signals:
                host = {"state": parallel.unreplicate(state), "totals": parallel.unreplicate(totals)}
                _check_finite(run, feed, host)
                log.flush()
                extra = {
                    "best": best,
                    "watch": watch.saved(),
                    "seconds": dict(clock.seconds),
                    "steps_timed": clock.steps_timed,
                }
                checkpoints.save(step, host, extra, metrics)
                del host
                clock.lap("save", step)
            if signals:
                checkpoints.wait()
                raise Preempted(f"{signals[0]}: saved at step {step:,}; the same command goes on from there")
    log.stop_progress()
    checkpoints.wait()

    stopped = {"stopped": watch.why_over(config, step)} if step < run.total_steps else {}
    chosen, weights = _choose(run, checkpoints, parallel.unreplicate(state), log)
    variables = parallel.replicate(chosen)
    splits = {}
    clock.lap("save", step)
    for split in ("validation", "test") if validates else ("test",):
        (values,) = evaluate_split(run, feed, split, variables)
        splits[split] = {**values, "num_examples": feed.num_counted(split)}
    clock.lap("evaluate", step)
    end(step, chosen)
    if feed.num_damaged:
        log.say(f"{feed.num_damaged:,} damaged records were skipped (data.damaged=skip)")
    return {
        "step": step,
        "epochs": round(step / run.steps_per_epoch, 4),
        **stopped,
        "weights": weights,
        "splits": splits,
        "seconds": clock.seconds,
        "images_per_second": clock.steps_timed * config.batch_size / max(clock.seconds["train"], 1e-9),
    }


def evaluate_split(run: Run, feed: Feed, split: str, *variables: dict[str, Any]) -> list[dict[str, float]]:
    """Metrics of each of some replicated variables over a whole split."""
    return evaluate(
        run.eval_call,
        variables,
        feed.evaluation(split, run.eval_batch_size),
        metrics=run.metrics,
        parallel=run.parallel,
        num_examples=lambda: feed.num_counted(split),
    )


def evaluate_raw_and_ema(run: Run, feed: Feed, state: TrainState, split: str) -> dict[str, float]:
    """Metrics of a replicated state: the weights', and as `ema_*` those of their average."""
    raw = {"params": state.params, "batch_stats": state.batch_stats}
    if state.ema is None:
        return evaluate_split(run, feed, split, raw)[0]
    metrics, averaged = evaluate_split(run, feed, split, raw, state.ema)
    return metrics | {f"ema_{name}": value for name, value in averaged.items()}


def best_metric(run: Run) -> str:
    """The validation metric that chooses the weights: the average's, where one is kept."""
    name = run.config.checkpoint.best_metric
    return name if run.average is None else f"ema_{name}"


def result_variables(run: Run, state: TrainState) -> dict[str, Any]:
    """The variables that a state's result is measured with."""
    return state.ema if state.ema is not None else {"params": state.params, "batch_stats": state.batch_stats}


def _choose(run: Run, checkpoints: Checkpoints, last: TrainState, log: RunLog) -> tuple[dict[str, Any], str]:
    """The best checkpoint's variables, or the last ones when no best is kept, and words for which they are."""
    ema = ", ema" if run.average is not None else ""
    step = checkpoints.best_step()
    if step is None:
        return result_variables(run, last), f"last{ema}"
    try:
        state = checkpoints.restore(step, {"state": last, "totals": run.metrics.empty()})[0]["state"]
    except DamagedError as error:
        log.say(f"{error}; the last weights are measured instead")
        return result_variables(run, last), f"last{ema}"
    return result_variables(run, state), f"best validation {run.config.checkpoint.best_metric}{ema}"


class _Interval:
    """The training metrics between two rows of the log, fetched once the devices have come so far, never waited for."""

    def __init__(self, run: Run, feed: Feed, log: RunLog, rate_factor: float):
        self.rate_factor = rate_factor  # on the schedule, since the last evaluation
        self._run, self._feed, self._log = run, feed, log
        self._pending: deque[tuple[int, Any]] = deque()
        # The whole schedule at once, here: asked for a step at a time it would wait behind the steps on their way.
        self._rates = np.asarray(jax.jit(jax.vmap(run.schedule))(np.arange(run.total_steps)))
        # A sum that is not finite stays so (nan * 0 = nan), and the guard in train_steps stays shut.
        self._zero = run.parallel.compile(lambda totals: jax.tree.map(lambda x: x * 0, totals), sharded={})
        self._zero(run.parallel.replicate(run.metrics.empty()))  # compiles it now, not at the first interval's end

    def end(self, step: int, totals: Any) -> Any:
        """Ends the interval at `step`; returns the totals that the next one starts with."""
        self._pending.append((step, totals))
        return self._zero(totals)

    def fetch(self, state: TrainState, clock: "_Clock", *, wait: bool = False) -> None:
        """Writes the rows that the devices are done with, or all of them. RunError if a loss is not finite."""
        while self._pending and (wait or self._pending[0][1].loss.total.is_ready()):
            step, totals = self._pending.popleft()
            values, num_examples = self._write(step, totals, state)
            timing = clock.interval(step, self._run.config.batch_size)
            if timing:
                self._log.timing(step, timing)
            self._log.interval(step, values, num_examples, timing)

    def _write(self, step: int, totals: Any, state: TrainState) -> tuple[dict[str, float], int]:
        totals = self._run.parallel.unreplicate(totals)
        values = {name: float(value) for name, value in totals.compute().items()}
        values["learning_rate"] = float(self._rates[step - 1] * np.float32(self.rate_factor))
        self._log.metrics(step, step / self._run.steps_per_epoch, "train", values)
        if not np.isfinite(totals.loss.total):  # the row is there, so that what reads the run can tell how it ended
            raise _not_finite(self._run, self._feed, self._run.parallel.unreplicate(state))
        return values, int(totals.loss.count)


def _check_finite(run: Run, feed: Feed, host: dict[str, Any]) -> None:
    """Nothing that is not finite is ever saved."""
    if not all(np.isfinite(x).all() for x in flatten(host).values() if x.dtype.kind == "f"):
        raise _not_finite(run, feed, host["state"])


def _not_finite(run: Run, feed: Feed, state: TrainState) -> RunError:
    step, key = int(state.step), jax.random.key(run.config.seed)
    try:
        batch = feed.batch(step)
        where = first_bad_layer(state, batch, key, model=run.model, loss=run.loss, augment=run.augment)
    except (MemoryError, jax.errors.JaxRuntimeError):
        where = "in a layer that cannot be told: the step is too large to be repeated on one device"
    return RunError(
        f"NaN or Inf at step {step + 1:,}, {where}; what was saved before is kept. Lower optimizer.learning_rate, "
        "or set optimizer.clip_norm=1"
    )


def _crossed(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return int(after / every + 1e-9) > int(before / every + 1e-9)


class _Pace:
    """Lets the host run ahead of the devices, but not far. Being woken for each call would cost a small step 5 %."""

    def __init__(self, max_calls: int):
        self._max_calls, self._limit = max_calls, 2
        self._tickets: deque[jax.Array] = deque()
        self._since, self._calls = time.perf_counter(), 0

    def follow(self, ticket: jax.Array) -> None:
        """Notes a call that was just handed over; waits, for the older half of them, when they are too many."""
        self._tickets.append(ticket)
        self._calls += 1
        if len(self._tickets) <= self._limit:
            return
        for _ in range(self._limit // 2):
            oldest = self._tickets.popleft()
        jax.block_until_ready(oldest)
        now = time.perf_counter()
        seconds_a_call = (now - self._since) / self._calls
        self._limit = min(max(2, int(SECONDS_AHEAD / seconds_a_call)), self._max_calls)
        self._since, self._calls = now, 0

    def caught_up(self) -> None:
        """The devices have done all that they were handed."""
        self._tickets.clear()
        self._since, self._calls = time.perf_counter(), 0


class _Clock:
    """Where the seconds go."""

    def __init__(self, step: int, seconds: dict[str, float] | None = None, steps_timed: int = 0):
        """`seconds` and `steps_timed` are of the run so far, before it was resumed."""
        self.seconds = seconds or {"compile": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
        self.steps_timed = steps_timed  # steps whose time counts as training: all but the first call's
        self._lap = self._interval_start = time.perf_counter()
        self._lap_step = self._interval_step = step
        self._waits = {"data_wait": 0.0, "device_wait": 0.0}

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Counts the block's time as spent on `what` in this interval."""
        start = time.perf_counter()
        yield
        self._waits[what] += time.perf_counter() - start

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Counts the block's time as `what`, and not as that of the lap or the interval that it falls into."""
        start = time.perf_counter()
        yield
        passed = time.perf_counter() - start
        self.seconds[what] += passed
        self._lap += passed
        self._interval_start += passed

    def lap(self, what: str, step: int) -> float:
        """Seconds since the last lap, counted as `what`."""
        now = time.perf_counter()
        passed, self._lap = now - self._lap, now
        self.seconds[what] += passed
        if what == "train":
            self.steps_timed += step - self._lap_step
        else:  # an interval's rate is that of training alone
            self._interval_start += passed
        if what == "compile":
            self._interval_start, self._interval_step = now, step
            self._waits = dict.fromkeys(self._waits, 0.0)
        self._lap_step = step
        return passed

    def interval(self, step: int, batch_size: int) -> dict[str, float]:
        """Rates since the last interval: images/s, and the shares of the time spent waiting for data and devices.

        Nothing where too little time has passed to tell, as when two intervals are fetched together: the next one's
        rates then are of both.
        """
        now = time.perf_counter()
        passed, steps = now - self._interval_start, step - self._interval_step
        if passed < 0.01:
            return {}
        timing = {"seconds": passed, "images_per_second": steps * batch_size / passed}
        timing |= {name: seconds / passed for name, seconds in self._waits.items()}
        self._interval_start, self._interval_step = now, step
        self._waits = dict.fromkeys(self._waits, 0.0)
        return timing
