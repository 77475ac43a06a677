"""Tables beside scikit-learn: python -m benchmarks.tabular [--folds 5] [--seeds 3] [--sets iris,wine]

The recipe of experiments/table.py and scikit-learn's MLPClassifier and MLPRegressor learn the same rows, standardised
by their own mean and deviation, and are measured on the same folds, by the last weights: a fold chooses nothing.
scikit-learn twice: by its defaults, and until it converges with a standardised target.
"""

import time
import warnings
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Report, begin, make_parser, say, set_up

SETS = {
    "iris": "classification", "wine": "classification", "breast_cancer": "classification",
    "make_classification": "classification", "diabetes": "regression", "make_regression": "regression",
}  # fmt: skip
SIDES = ("jaxcnn", "defaults", "converged")


def ours(config: Any, seeds: int) -> tuple[Any, list[float]]:
    """(the run, the main metric of its validation after the last step, for each seed), in one program."""
    import jax
    import jax.numpy as jnp

    from jaxcnn.training.build import build
    from jaxcnn.training.whole_run import Hyperparameters, pieces_of, train_run

    run, feed = build(config)
    pieces = pieces_of(run, eval_every_steps=run.learning.total_steps)
    data = {split: feed.data(split) for split in ("train", "validation")}
    train = jax.jit(jax.vmap(partial(train_run, pieces=pieces), in_axes=(0, None, None)))
    _, curves = train(jnp.arange(seeds), data, Hyperparameters())
    return run, np.asarray(curves["validation"][run.task.best_metric])[:, -1].tolist()


def theirs(run: Any, seeds: int, *, converged: bool) -> list[float]:
    """The same metric of scikit-learn's network on the same rows."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.metrics import accuracy_score, root_mean_squared_error
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_fold, y_fold) = (_rows(run.source.splits[split]) for split in ("train", "validation"))
    options = {"max_iter": 2000} if converged else {}
    values = []
    for seed in range(seeds):
        if run.source.class_names:
            model, measure = MLPClassifier(random_state=seed, **options), accuracy_score
        else:
            model, measure = MLPRegressor(random_state=seed, **options), root_mean_squared_error
            if converged:
                model = TransformedTargetRegressor(model, transformer=StandardScaler())
        with warnings.catch_warnings(action="ignore"):  # that it has not converged
            fitted = make_pipeline(StandardScaler(), model).fit(x, y)
        values.append(float(measure(y_fold, fitted.predict(x_fold))))
    return values


def _rows(split: Any) -> tuple[np.ndarray, np.ndarray]:
    return split.records.features[split.indices].astype(float), split.records.targets[split.indices]


def config_of(name: str, fold: str) -> Any:
    """The experiment's, measured by its last weights."""
    from experiments.table import get_config

    config = get_config(SETS[name])
    config.data.name, config.data.fold, config.checkpoint.keep_best = name, fold, 0
    return config


def main() -> None:
    """Prints a row a set: mean ± standard deviation over the folds, each the mean of its seeds."""
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", default=",".join(SETS))
    options = parser.parse_args()
    set_up(options, torch_here=False)
    report = Report(options.json, "tabular")
    say("| set | metric | jaxcnn | scikit-learn, defaults | scikit-learn, converged | seconds |")
    say("|---|---|---|---|---|---|")
    for name in options.sets.split(","):
        found: dict[str, list[float]] = {side: [] for side in SIDES}
        seconds = dict.fromkeys(SIDES, 0.0)
        for fold in range(1, options.folds + 1):
            run: Any = None
            for side in SIDES:
                start = time.perf_counter()
                if side == "jaxcnn":
                    run, values = ours(config_of(name, f"{fold}/{options.folds}"), options.seeds)
                else:
                    values = theirs(run, options.seeds, converged=side == "converged")
                found[side].append(float(np.mean(values)))
                seconds[side] += time.perf_counter() - start
        form = _percent if SETS[name] == "classification" else _plain
        cells = [form(found[side]) for side in SIDES]
        spent = " / ".join(f"{seconds[side]:.0f}" for side in SIDES)
        say(f"| {name} | {run.task.best_metric} | {' | '.join(cells)} | {spent} |")
        report.add(set=name, metric=run.task.best_metric, of_folds=found, seconds=seconds, seeds=options.seeds)
    report.finish()


def _percent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f} %"


def _plain(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


if __name__ == "__main__":
    begin(main)
