"""What the loop costs over a bare jitted step, in one process: python -m benchmarks.overhead [--repeats 5]

A B A B: the loop (data order, gather, metrics, guard, logging; its evaluation and saves are not counted), then the same
number of calls of `jax.jit(train_step)` on one batch that already lies on the device. Prints medians of their ratio.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
from absl import flags
from etils import epath
from rich.console import Console

from jaxcnn import loop
from jaxcnn.build import Run, build
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.config import load_config
from jaxcnn.errors import UserError
from jaxcnn.logs import RunLog
from jaxcnn.parallel import set_up
from jaxcnn.step import gather

CASES = {  # experiment: (steps, overrides)
    "digits.py": (1500, ["--config.eval_every_epochs=1000", "--config.checkpoint.every_epochs=1000"]),
    "mnist.py": (500, ["--config.eval_every_epochs=1000", "--config.checkpoint.every_epochs=1000"]),
}


def loop_seconds(run: Run, feed, steps: int) -> float:
    """Seconds a step of `loop.train`, without its first call, evaluation and saves."""
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(epath.Path(folder), tensorboard=True, console=Console(file=io.StringIO()))
        checkpoints = Checkpoints(Path(folder) / "checkpoints", best_metric=loop.best_metric(run))
        with contextlib.closing(log), contextlib.closing(checkpoints):
            result = loop.train(run, feed, log, checkpoints)
    return result["seconds"]["train"] / (steps - 1)


def bare_seconds(run: Run, feed, steps: int) -> float:
    """Seconds a step of the jitted pure step alone."""
    step = jax.jit(run.train_call.__wrapped__.keywords["step"], donate_argnums=0)  # type: ignore[attr-defined]
    batch = jax.block_until_ready(gather(feed.data(), jax.tree.map(lambda x: x[0], feed.inputs(0, 1))))
    key = jax.random.key(0)
    state, metrics = step(run.init(), batch, key)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps - 1):
        state, metrics = step(state, batch, key)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - start) / (steps - 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    set_up(None, compilation_cache=True)
    results = {}
    print(f"{'experiment':<12}{'loop ms':>10}{'bare ms':>10}{'ratio':>8}   (spread of the ratio)")
    for experiment, (steps, overrides) in CASES.items():
        argv = ["", f"--config=experiments/{experiment}", f"--config.num_steps={steps}", *overrides]
        config, _ = load_config(argv, flag_values=flags.FlagValues())
        try:
            run, feed = build(config)
        except UserError as error:
            print(f"{experiment:<12}skipped: {error}")
            continue
        measure = [partial(loop_seconds, run, feed, steps), partial(bare_seconds, run, feed, steps)]
        pairs = [[one() for one in measure] for _ in range(options.repeats)]
        ratios = [loop_time / bare_time for loop_time, bare_time in pairs]
        loop_ms, bare_ms = (1000 * statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(ratios)
        print(
            f"{experiment:<12}{loop_ms:>10.3f}{bare_ms:>10.3f}{ratio:>8.3f}   ({min(ratios):.3f} to {max(ratios):.3f})"
        )
        results[experiment] = {"loop_ms": loop_ms, "bare_ms": bare_ms, "ratios": ratios}
        feed.close()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
