"""Time to accuracy: python -m benchmarks.accuracy [--recipe 94_muon] [--seeds 3] [--peer | --peer_only]

Runs an experiment's real loop once a seed, in one process; with --peer the same recipe in PyTorch on the same decoded
images, in turn. Prints mean, standard deviation and standard error of the test accuracy of the final weights, and the
seconds from the first step to the end of the measurement, compiling apart.
"""

import contextlib
import io
import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    NOT_INSTALLED,
    Others,
    Report,
    Table,
    begin,
    has_torch,
    make_parser,
    on_gpu,
    ratio,
    say,
    set_up,
)

CIFAR = "experiments/cifar10_speedrun.py"


class OurRuns:
    """An experiment's real loop, compiled once; called with a seed it trains."""

    def __init__(self, argv: list[str]):
        from absl import flags

        from jaxcnn.config.command_line import load_config
        from jaxcnn.training.build import build

        argv = ["", *argv, "--config.tensorboard=False"]
        self._config, _ = load_config(argv, flag_values=flags.FlagValues())
        # Measured at the end, on the last weights, as the records are.
        self._config.eval_every_epochs = self._config.checkpoint.every_epochs = 1e9
        self._config.checkpoint.every_steps, self._config.checkpoint.keep_best = None, 0
        self._run, self._feed = build(self._config)
        start = time.perf_counter()
        self._warm_up()
        self._compile_seconds = time.perf_counter() - start

    def _warm_up(self) -> None:
        """Every program that the loop will call, once."""
        import jax

        from jaxcnn.training.feed import StreamingFeed
        from jaxcnn.training.loop import result_variables

        run, feed, put = self._run, self._feed, self._run.parallel.replicate
        key, state = put(jax.random.key(0)), None
        for steps in {run.calls.steps_per_call, run.learning.total_steps % run.calls.steps_per_call} - {0}:
            state, totals = put(run.init()), put(run.learning.metrics.empty())
            state, totals, ticket = run.calls.train_call(state, totals, feed.data(), feed.inputs(0, steps), key)
            jax.block_until_ready(ticket)
        assert state is not None
        variables = result_variables(state)
        for split in {"validation", "test"} & run.source.splits.keys():
            for data, inputs in itertools.islice(feed.evaluation(split, run.calls.eval_batch_size), 1):
                jax.block_until_ready(run.calls.eval_call(variables, put(run.learning.metrics.empty()), data, inputs))
        if isinstance(feed, StreamingFeed):
            feed.close()

    def __call__(self, seed: int) -> dict[str, float]:
        """Trains once, in a folder of its own.

        `seconds` are the loop's, of training and of measuring the test split. The loop measures validation too, twice
        by the end; of its seconds of evaluation those for the test split's share of the images count.
        """
        from etils import epath
        from rich.console import Console

        from jaxcnn.run.checkpoint import Checkpoints
        from jaxcnn.run.log import RunLog
        from jaxcnn.training import loop
        from jaxcnn.training.feed import StreamingFeed

        run, feed, compile_seconds = self._run, self._feed, self._compile_seconds
        self._config.seed = seed  # run and feed hold this very config, and no program depends on it
        self._compile_seconds = 0.0
        with tempfile.TemporaryDirectory() as folder:
            log = RunLog(epath.Path(folder), tensorboard=False, console=Console(file=io.StringIO()))
            checkpoints = Checkpoints(Path(folder) / "checkpoints", keep_best=0, **run.learning.selections.best.facts())
            with contextlib.closing(log), contextlib.closing(checkpoints):
                result = loop.train(run, feed, log, checkpoints)
        if isinstance(feed, StreamingFeed):
            feed.close()
        seconds, sizes = result["seconds"], {name: len(split) for name, split in run.source.splits.items()}
        train = seconds["compile"] + seconds["train"]  # nothing is left to compile: that is the first call itself
        evaluate = seconds["evaluate"] * sizes["test"] / (2 * sizes.get("validation", 0) + sizes["test"])
        return {
            "accuracy": result["splits"]["test"]["accuracy"],
            "seconds": train + evaluate,
            "train_seconds": train,
            "evaluate_seconds": evaluate,
            "compile_seconds": compile_seconds,
            "steps": result["step"],
        }


def cifar(name: str) -> Any:
    """CIFAR-10 as jaxcnn decodes it, for PyTorch: all 50,000 training images and the test split."""
    import numpy as np

    from benchmarks.torch_peers import Cifar
    from jaxcnn.config import DataConfig
    from jaxcnn.data import load_arrays, open_source

    source = open_source(DataConfig(name=name))
    options = {"fingerprint": source.fingerprint, "image_shape": source.image_shape, "cache": True}
    train, held_out, test = (load_arrays(source.splits[name], **options) for name in ("train", "validation", "test"))
    whole = tuple(np.concatenate(both) for both in zip(train, held_out, strict=True))
    return Cifar(whole, test)


def describe(runs: list[dict[str, Any]]) -> tuple[float, float, float]:
    """(mean, standard deviation, standard error) of the accuracies; of one run the last two are not numbers."""
    values = [run["accuracy"] for run in runs]
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread, spread / math.sqrt(len(values))


def main() -> None:
    parser = make_parser(__doc__, repeats=0)
    parser.add_argument("--config", help=f"an experiment (default: {CIFAR}:RECIPE)")
    parser.add_argument("--recipe", default="94_muon", help="93, 94 or 94_muon: ours, and PyTorch's")
    parser.add_argument("--seeds", type=int, default=3, help="runs a side, from --first_seed on")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--peer", action="store_true", help="PyTorch's runs too, in turn with ours")
    parser.add_argument("--peer_only", "--peer-only", action="store_true", help="PyTorch's runs alone")
    parser.add_argument("--compiled", action="store_true", help="PyTorch compiled (on GPUs max-autotune)")
    parser.add_argument("--max_steps", type=int, help="end each run early, to try things")
    parser.add_argument("--data", default="tfds:cifar10", help="data.name of CIFAR-10, for both sides")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the experiment, as optimizer.momentum=0.9")
    options = parser.parse_args()
    if (options.peer or options.peer_only) and not has_torch():
        say(f"PyTorch: {NOT_INSTALLED}")
        if options.peer_only:
            raise SystemExit(1)
    set_up(options)
    report, others = Report(options.json, "accuracy"), Others()
    overrides = options.set
    if not options.config and not on_gpu():  # where bfloat16 is slow, and where the peer is in float32
        overrides = ["model.dtype=float32", *overrides]
    if not options.config:
        overrides = [f"data.name={options.data}", *overrides]
    argv = [f"--config={options.config or f'{CIFAR}:{options.recipe}'}", *(f"--config.{each}" for each in overrides)]
    if options.max_steps:
        argv.append(f"--config.num_steps={options.max_steps}")
    sides: dict[str, Any] = {}
    if not options.peer_only:
        if not Path(argv[0].split("=")[1].split(":")[0]).exists():
            raise SystemExit(f"{argv[0]}: no such experiment")
        from jaxcnn.errors import UserError

        try:
            sides["ours"] = OurRuns(argv)
        except UserError as error:
            raise SystemExit(str(error)) from None
    if (options.peer or options.peer_only) and has_torch():
        sides["torch"] = peer_runs(options)

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, side in sides.items():
            found = side(seed)
            runs[name].append(found)
            say(
                f"{name} seed {seed}: accuracy {100 * found['accuracy']:.2f} %  {found['seconds']:.2f} s, "
                f"compiling apart {found['compile_seconds']:.1f} s"
            )
            report.add(side=name, seed=seed, config=argv[0].split("=")[1], recipe=options.recipe, **found)

    table = Table(side=8, runs=5, mean_accuracy=14, std=8, std_error=10, seconds=10, fastest=10, slowest=10)
    for name, each in runs.items():
        if each:
            mean, spread, error = (f"{100 * value:.3f}" for value in describe(each))
            seconds = [run["seconds"] for run in each]
            table.row(name, len(each), mean, spread, error, statistics.median(seconds), min(seconds), max(seconds))
    times = {name: [run["seconds"] for run in each] for name, each in runs.items()}
    if ratio(times, "ours", "torch"):
        say(f"seconds, ours / PyTorch: {ratio(times, 'ours', 'torch')}")
        report.set("ratio", ratio(times, "ours", "torch"))
    report.finish()
    others.warn()


def peer_runs(options: Any) -> Any:
    """seed -> one of PyTorch's trainings."""
    from benchmarks.torch_peers import RECIPES, device, train_recipe

    if options.recipe not in RECIPES:
        raise SystemExit(f"--recipe={options.recipe}: PyTorch's side has {', '.join(RECIPES)}")
    data = cifar(options.data)
    say(f"PyTorch {options.recipe} on {device()}: {len(data.train_labels):,} images")
    return lambda seed: vars(
        train_recipe(
            options.recipe, data, seed=seed, compiled=options.compiled, max_steps=options.max_steps, progress=say
        )
    )


if __name__ == "__main__":
    begin(main)
