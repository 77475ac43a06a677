"""What the loop costs over a bare jitted step, in one process: python -m benchmarks.overhead [--repeats 5]

In turn: the loop (data order, gather, metrics, guard, logging; its evaluation and saves are not counted), then the same
number of calls of `jax.jit(train_step)` on one batch that already lies on the device. Prints medians of their ratio.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, Table, in_turn, make_parser, milliseconds, ratio, say, set_up

CASES = {  # experiment: (steps, overrides)
    "digits.py": (1500, ["--config.eval_every_epochs=1000", "--config.checkpoint.every_epochs=1000"]),
    "mnist.py": (500, ["--config.eval_every_epochs=1000", "--config.checkpoint.every_epochs=1000"]),
}


def loop_seconds(run: Any, feed: Any, steps: int) -> float:
    """Seconds a step of `loop.train`, without its first call, evaluation and saves."""
    from etils import epath
    from rich.console import Console

    from jaxcnn.run.checkpoint import Checkpoints
    from jaxcnn.run.log import RunLog
    from jaxcnn.training import loop

    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(epath.Path(folder), tensorboard=True, console=Console(file=io.StringIO()))
        checkpoints = Checkpoints(Path(folder) / "checkpoints", **run.learning.selections.best.facts())
        with contextlib.closing(log), contextlib.closing(checkpoints):
            result = loop.train(run, feed, log, checkpoints)
    first_call = min(run.calls.steps_per_call, run.learning.total_steps)
    return result["seconds"]["train"] / (steps - first_call)


def bare_step(run: Any, feed: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """(a call of the jitted pure step on one batch, a wait for all calls)."""
    import jax

    from jaxcnn.training.step import gather

    step = jax.jit(run.calls.train_call.__wrapped__.keywords["step"], donate_argnums=0)
    batch = jax.block_until_ready(
        gather(feed.data(), jax.tree.map(lambda x: jax.numpy.asarray(x)[0], feed.inputs(0, 1)))
    )
    key, held = jax.random.key(0), {"state": run.init(), "metrics": None}

    def call() -> None:
        held["state"], held["metrics"] = step(held["state"], batch, key)

    return call, lambda: jax.block_until_ready(held) and None


def bare_seconds(run: Any, feed: Any, steps: int) -> float:
    """Seconds a step of the jitted pure step alone."""
    call, wait = bare_step(run, feed)
    call()
    wait()
    start = time.perf_counter()
    for _ in range(steps - 1):
        call()
    wait()
    return (time.perf_counter() - start) / (steps - 1)


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    options = parser.parse_args()
    set_up(options)
    from absl import flags

    from jaxcnn.config.command_line import load_config
    from jaxcnn.errors import UserError
    from jaxcnn.training.build import build

    report, others = Report(options.json, "overhead"), Others()
    table = Table(experiment=12, loop_ms=16, bare_ms=16, ratio=20)
    for experiment, (steps, overrides) in CASES.items():
        argv = ["", f"--config=experiments/{experiment}", f"--config.num_steps={steps}", *overrides]
        config, _ = load_config(argv, flag_values=flags.FlagValues())
        try:
            run, feed = build(config)
        except UserError as error:
            say(f"{experiment:<12}skipped: {error}")
            continue
        sides = {"loop": partial(loop_seconds, run, feed, steps), "bare": partial(bare_seconds, run, feed, steps)}
        found = in_turn(sides, options.repeats)
        against = ratio(found, "loop", "bare")
        table.row(experiment, *map(milliseconds, found.values()), str(against))
        report.add(experiment=experiment, steps=steps, seconds=found, ratio=against)
        feed.close()
    report.finish()
    others.warn()


if __name__ == "__main__":
    main()
