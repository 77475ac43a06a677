"""What transfer is worth: python -m benchmarks.transfer [--images 10,50,500] [--seeds 3]

experiments/transfer_cifar10.py: a network learns five classes of CIFAR-10 once, then the other five from a few images
of each, four ways: from scratch, by a linear probe, by fine-tuning, and with gradual unfreezing. A seed varies the
init, the order and which images are drawn. Prints mean and standard deviation of the last weights' test accuracy.
"""

import contextlib
import io
import math
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, Table, begin, make_parser, say, set_up

EXPERIMENT = "experiments/transfer_cifar10.py"
WAYS = ("scratch", "probe", "finetune", "gradual")


def config_of(kind: str, *overrides: str) -> Any:
    """An experiment's config, measured at its end alone, on the last weights."""
    from absl import flags

    from jaxcnn.config.command_line import load_config

    argv = ["", f"--config={EXPERIMENT}:{kind}", *(f"--config.{each}" for each in overrides)]
    config, _ = load_config(argv, flag_values=flags.FlagValues())
    config.eval_every_epochs = config.checkpoint.every_epochs = 1e9
    config.checkpoint.keep_best, config.tensorboard = 0, False
    return config


def train(config: Any, folder: Path) -> dict[str, Any]:
    """The loop's result, in a folder that init_from can name."""
    from etils import epath
    from rich.console import Console

    from jaxcnn.machine import versions
    from jaxcnn.run import workdir
    from jaxcnn.run.checkpoint import Checkpoints
    from jaxcnn.run.log import RunLog
    from jaxcnn.training import loop
    from jaxcnn.training.build import build

    run, feed = build(config)
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    workdir.write_config(path, "transfer", config, run.data_facts(), versions())
    workdir.write_splits(path, run.source.record_numbers)
    log = RunLog(path, tensorboard=False, console=Console(file=io.StringIO()))
    checkpoints = Checkpoints(path / "checkpoints", keep_best=0, **run.learning.selections.best.facts())
    with contextlib.closing(feed), contextlib.closing(checkpoints), contextlib.closing(log):
        return loop.train(run, feed, log, checkpoints)


def measure(way: str, overrides: list[str], weights: Path, folder: Path) -> float:
    """Test accuracy of one way on one draw of images."""
    from jaxcnn.results.probe import linear_probe
    from jaxcnn.training.build import build

    config = config_of("finetune" if way == "probe" else way, *overrides)
    if way != "scratch":
        config.init_from = str(weights)
    if way == "probe":
        run, feed = build(config)
        with contextlib.closing(feed):
            return linear_probe(run, feed)["splits"]["test"]["accuracy"]
    return train(config, folder)["splits"]["test"]["accuracy"]


def main() -> None:
    import tempfile

    parser = make_parser(__doc__, repeats=0)
    parser.add_argument("--images", default="10,50,500", help="of each class, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS), help=f"comma-separated, of {', '.join(WAYS)}")
    parser.add_argument("--pretrain_epochs", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=300, help="of 50 images; in each way but the probe")
    parser.add_argument("--weights", help="a finished run of :pretrain to begin with, instead of training one")
    parser.add_argument("--model", default="resnet20")
    options = parser.parse_args()
    ways, counts = options.ways.split(","), [int(count) for count in options.images.split(",")]
    if unknown := set(ways) - set(WAYS):
        raise SystemExit(f"--ways: {', '.join(sorted(unknown))} is not among {', '.join(WAYS)}")
    if not Path(EXPERIMENT).exists():
        raise SystemExit("run from the project's root, where experiments/ lies")
    set_up(options)
    report, others = Report(options.json, "transfer"), Others()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = Path(options.weights) if options.weights else folder / "pretrain"
        if not options.weights:
            config = config_of("pretrain", f"num_epochs={options.pretrain_epochs}", f"model.name={options.model}")
            found = train(config, weights)["splits"]["test"]["accuracy"]
            say(f"pretrained on five classes: {100 * found:.2f} % of their test images; {_minutes(start)}")
            report.add(way="pretrain", accuracy=found, epochs=options.pretrain_epochs)
        table = Table(images=8, **dict.fromkeys(ways, 16))
        for count in counts:
            cells = []
            for way in ways:
                accuracies = []
                for seed in range(options.seeds):
                    steps_an_epoch = 5 * count / 50
                    overrides = [
                        f"seed={seed}", f"data.split_seed={seed}", f"data.examples_per_class={count}",
                        f"num_steps={options.steps}", f"model.name={options.model}",
                    ]  # fmt: skip
                    if way == "gradual":  # at a sixth, a third and a half of the steps, whatever an epoch is
                        epochs = ",".join(str(options.steps * part / 6 / steps_an_epoch) for part in (1, 2, 3))
                        overrides.append(f"finetune.unfreeze_epochs=({epochs})")
                    accuracies.append(measure(way, overrides, weights, folder / f"{way}-{count}-{seed}"))
                    report.add(way=way, images=count, seed=seed, accuracy=accuracies[-1], steps=options.steps)
                spread = statistics.stdev(accuracies) if len(accuracies) > 1 else math.nan
                cells.append(f"{100 * statistics.fmean(accuracies):.1f} ± {100 * spread:.1f}")
            table.row(count, *cells)
    say(f"test accuracy in %, of the other classes; {options.seeds} seeds, {options.steps} steps; {_minutes(start)}")
    report.finish()
    others.warn()


def _minutes(start: float) -> str:
    return f"{(time.perf_counter() - start) / 60:.1f} minutes"


if __name__ == "__main__":
    begin(main)
