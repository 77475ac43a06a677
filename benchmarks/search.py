"""TPE beside random search on the digits: python -m benchmarks.search [--repeats 8] [--trials 30]

Each repeat searches learning rate, weight decay and label smoothing by both samplers, from another seed. All runs are
one compiled program. Says the mean best validation accuracy, and the difference with its 95 % interval (Welch's).
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Report, Table, begin, make_parser, say, set_up

SPACE = (
    "optimizer.learning_rate=log:1e-5:1", "optimizer.weight_decay=log:1e-4:10", "loss.label_smoothing=0:0.9",
)  # fmt: skip
SAMPLERS = ("random", "tpe")


def make_run(config: Any) -> Any:
    """What trains a trial's config as one program, compiled once: only traced scalars differ."""
    import jax
    import numpy as np

    from jaxcnn.training.build import build
    from jaxcnn.training.whole_run import Hyperparameters, pieces_of, train_run

    run, feed = build(config)
    data: Any = {split: feed.data(split) for split in ("train", "validation")}  # type: ignore[attr-defined]
    program = run.parallel.compile(partial(_curves, train_run=train_run, pieces=pieces_of(run)), sharded={})
    base = config.optimizer.learning_rate

    def of_trial(order: Any, after_evaluation: Any) -> dict[str, Any]:
        given = order.config
        scalars = Hyperparameters(
            np.float32(given.optimizer.learning_rate / base),
            np.float32(given.optimizer.weight_decay),
            np.float32(given.loss.label_smoothing),
        )
        curves = jax.device_get(program(np.uint32(config.seed), data, scalars))
        return {"splits": {"validation": {"accuracy": float(np.max(curves["validation"]["accuracy"]))}}}

    return of_trial


def _curves(seed: Any, data: Any, hyperparameters: Any, *, train_run: Any, pieces: Any) -> Any:
    return train_run(seed, data, hyperparameters, pieces=pieces)[1]


def best_of(run: Any, config: Any, sampler: str, seed: int, trials: int) -> float:
    """The best value of one search."""
    from etils import epath

    from jaxcnn.ablation.search import Goal, Search, Searching, claim, open_study
    from jaxcnn.ablation.space import parse_space

    goal = Goal("accuracy", higher_is_better=True, evaluations=1)
    search = Search("digits", parse_space(SPACE, config), sampler, seed=seed)
    with tempfile.TemporaryDirectory() as made:
        folder = epath.Path(Path(made) / "search")
        claim(folder, search, goal)
        searching = Searching(folder, search, goal, trials, open_study(folder, search, goal), run=run)
        searching.go_on()
        return float(searching.study.best_value)


def main() -> None:
    parser = make_parser(__doc__, repeats=8)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=float, default=5.0)
    options = parser.parse_args()
    set_up(options)
    from scipy import stats

    from experiments.digits import get_config

    config = get_config()
    config.num_epochs, config.num_devices, config.data.validation_fraction = options.epochs, 1, 0.5
    run = make_run(config)
    found: dict[str, list[float]] = {sampler: [] for sampler in SAMPLERS}
    table, report = Table(seed=6, **{f"best_{name}": 14 for name in SAMPLERS}), Report(options.json, "search")
    for seed in range(options.repeats):
        for sampler in SAMPLERS:
            found[sampler].append(best_of(run, config, sampler, seed, options.trials))
        table.row(seed, *(f"{100 * found[sampler][-1]:.2f} %" for sampler in SAMPLERS))
    gain = statistics.mean(found["tpe"]) - statistics.mean(found["random"])
    interval = stats.ttest_ind(found["tpe"], found["random"], equal_var=False).confidence_interval(0.95)
    for sampler, values in found.items():
        say(f"{sampler}: mean best {100 * statistics.mean(values):.2f} %, n = {len(values)}")
    say(
        f"tpe - random: {100 * gain:+.2f} points, 95 % interval {100 * interval.low:+.2f} to {100 * interval.high:+.2f}"
    )
    report.add(trials=options.trials, best=found, gain=gain, interval=[float(interval.low), float(interval.high)])
    report.finish()


if __name__ == "__main__":
    begin(main)
