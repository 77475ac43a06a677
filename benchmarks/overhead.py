"""What the loop costs over a bare jitted step, in one process: python -m benchmarks.overhead [--repeats 5]

In turn: the loop (data order, gather, metrics, guard, logging; its evaluation and saves are not counted), the same
number of calls of `jax.jit(train_step)` on one batch that already lies on the device, and, for a resident set, the same
steps as one program (`whole_run.py`), without evaluations. Medians a step, by wall clock and by CPU time; no compiling.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, Table, begin, in_turn, make_parser, milliseconds, ratio, say, set_up

Seconds = tuple[float, float]  # by wall clock, of CPU time

CASES = {  # experiment: (steps, overrides)
    "digits.py": (1500, ["--config.eval_every_epochs=1000", "--config.checkpoint.every_epochs=1000"]),
    "mnist.py": (500, ["--config.eval_every_epochs=1000", "--config.checkpoint.every_epochs=1000"]),
}


class CpuClock:
    """A loop's clock that counts CPU time of training, too: what `loop.train` makes of `loop.Clock` meanwhile."""

    def __init__(self, *arguments: Any):
        from jaxcnn.training.clock import Clock

        self._clock, self.cpu, self._lap = Clock(*arguments), 0.0, time.process_time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    @contextlib.contextmanager
    def apart(self, what: str) -> Iterator[None]:
        start = time.process_time()
        with self._clock.apart(what):
            yield
        self._lap += time.process_time() - start

    def lap(self, what: str, step: int) -> float:
        now = time.process_time()
        self.cpu += now - self._lap if what == "train" else 0.0
        self._lap = now
        return self._clock.lap(what, step)


def loop_seconds(run: Any, feed: Any, steps: int) -> float:
    """Seconds a step of `loop.train`, without its first call, evaluation and saves."""
    return loop_wall_and_cpu(run, feed, steps)[0]


def loop_wall_and_cpu(run: Any, feed: Any, steps: int) -> Seconds:
    """As `loop_seconds`; by wall clock and CPU time."""
    from unittest import mock

    from etils import epath
    from rich.console import Console

    from jaxcnn.run.checkpoint import Checkpoints
    from jaxcnn.run.log import RunLog
    from jaxcnn.training import loop

    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(epath.Path(folder), tensorboard=True, console=Console(file=io.StringIO()))
        checkpoints = Checkpoints(Path(folder) / "checkpoints", **run.learning.selections.best.facts())
        clocks: list[CpuClock] = []
        make_clock = lambda *arguments: clocks.append(CpuClock(*arguments)) or clocks[-1]
        with contextlib.closing(log), contextlib.closing(checkpoints), mock.patch.object(loop, "Clock", make_clock):
            result = loop.train(run, feed, log, checkpoints)
    count = steps - min(run.calls.steps_per_call, run.learning.total_steps)
    return result["seconds"]["train"] / count, clocks[-1].cpu / count


def bare_step(run: Any, feed: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """(a call of the jitted pure step on one batch, a wait for all calls)."""
    import jax

    from jaxcnn.training.step import gather

    step = run.parallel.compile(run.calls.step, sharded={}, donate=(0,))
    batch = jax.block_until_ready(
        gather(feed.data(), jax.tree.map(lambda x: jax.numpy.asarray(x)[0], feed.inputs(0, 1)))
    )
    key, held = jax.random.key(0), {"state": run.init(), "metrics": None}

    def call() -> None:
        held["state"], held["metrics"] = step(held["state"], batch, key)

    return call, lambda: jax.block_until_ready(held) and None


def bare_seconds(run: Any, feed: Any, steps: int) -> Seconds:
    """Seconds a step of the jitted pure step alone."""
    call, wait = bare_step(run, feed)
    call()
    wait()
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(steps - 1):
        call()
    wait()
    return (time.perf_counter() - start) / (steps - 1), (time.process_time() - cpu_start) / (steps - 1)


def whole_run(run: Any, feed: Any, steps: int) -> Callable[[], Seconds]:
    """Seconds a step of all steps as one program, compiled now, from the initial state, without evaluations."""
    import jax
    import numpy as np

    from jaxcnn.training.whole_run import Hyperparameters, pieces_of, train_chunk

    replicate = run.parallel.replicate
    pieces = pieces_of(run, eval_every_steps=steps)
    arguments = {"train": feed.data("train")}, replicate(np.uint32(run.config.seed)), replicate(Hyperparameters())
    chunk = partial(train_chunk, num_steps=steps, pieces=pieces)
    program = run.parallel.compile(chunk, sharded={}, donate=(0,)).lower(replicate(run.init()), *arguments).compile()

    def measure() -> Seconds:
        state = jax.block_until_ready(replicate(run.init()))
        start, cpu_start = time.perf_counter(), time.process_time()
        jax.block_until_ready(program(state, *arguments))
        return (time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps

    return measure


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--experiments", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, help="of each run (default: by experiment)")
    options = parser.parse_args()
    set_up(options)
    from absl import flags

    from jaxcnn.config.command_line import load_config
    from jaxcnn.errors import UserError
    from jaxcnn.training.build import build

    report, others = Report(options.json, "overhead"), Others()
    table = Table(experiment=14, loop_ms=14, bare_ms=14, one_program_ms=15, loop_by_bare=18, one_program_by_loop=20)
    for experiment in options.experiments:
        steps, overrides = options.steps or CASES[experiment][0], CASES[experiment][1]
        argv = ["", f"--config=experiments/{experiment}", f"--config.num_steps={steps}", *overrides]
        config, _ = load_config(argv, flag_values=flags.FlagValues())
        try:
            run, feed = build(config)
        except UserError as error:
            say(f"{experiment:<12}skipped: {error}")
            continue
        sides: dict[str, Any] = {
            "loop": partial(loop_wall_and_cpu, run, feed, steps),
            "bare": partial(bare_seconds, run, feed, steps),
            "one program": whole_run(run, feed, steps),
        }
        found: dict[str, list[Any]] = in_turn(sides, options.repeats)
        for clock, what in enumerate(("", ", CPU")):
            seconds = {side: [each[clock] for each in values] for side, values in found.items()}
            ratios = {"bare": ratio(seconds, "loop", "bare"), "loop": ratio(seconds, "one program", "loop")}
            table.row(experiment.removesuffix(".py") + what, *map(milliseconds, seconds.values()),
                      *map(str, ratios.values()))  # fmt: skip
            report.add(experiment=experiment, clock="CPU" if clock else "wall", steps=steps, seconds=seconds,
                       ratio=ratios["bare"], one_program_ratio=ratios["loop"])  # fmt: skip
        feed.close()
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
