"""A linear probe: how well scikit-learn's linear classifiers do on the features of weights that stay as they are.

Features are computed once, on the run's devices, of the images without augmentation; the classifier's strength of
regularisation is chosen on validation, and test is measured once.
"""

import warnings
from typing import Any

import jax
import numpy as np

from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.blocks import global_average
from jaxcnn.layers.features import feature_pyramid
from jaxcnn.training.build import Run
from jaxcnn.training.evaluation import collect
from jaxcnn.training.feed import Feed
from jaxcnn.training.loop import result_variables

STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # C, the inverse of regularisation, tried on validation
MAX_ITERATIONS = 1000


def linear_probe(
    run: Run, feed: Feed, *, layer: str = "pooled", classifier: str = "logistic", variables: Any = None
) -> dict[str, Any]:
    """Fits a classifier on train's features and measures it on every split.

    Args:
      layer: one of the model's stages, averaged over the map, or `pooled`.
      classifier: `logistic` (multinomial, L2) or `svm` (one against the rest, squared hinge).
      variables: `params` and `batch_stats`; none: those that the run begins with.

    Returns:
      `layer`, `classifier`, `C`, `num_features`, and `splits`, of each `accuracy` and `num_examples`.

    Raises:
      UserError: there is no such layer, or no validation split to choose by.
    """
    if "validation" not in run.source.splits:
        raise UserError("a probe chooses its regularisation on validation: set data.validation_fraction above 0")
    variables = result_variables(run.init()) if variables is None else variables
    features = {split: features_of(run, feed, split, variables, layer=layer) for split in run.source.splits}
    model, strength = fit(features["train"], features["validation"], classifier=classifier)
    return {
        "layer": layer,
        "classifier": classifier,
        "C": strength,
        "num_features": features["train"][0].shape[1],
        "splits": {
            split: {"accuracy": float(model.score(*each)), "num_examples": len(each[1])}
            for split, each in features.items()
        },
    }


def features_of(
    run: Run, feed: Feed, split: str, variables: dict[str, Any], *, layer: str = "pooled"
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [n, channels] and classes int [n] of a split in its order, damaged examples left out.

    Raises:
      UserError: there is no such layer, or labels are soft.
    """
    if run.source.label_shape:
        raise UserError(f"a probe is of classes, and the labels of {run.source.name} are soft")

    def pyramid(variables: Any, inputs: jax.Array) -> dict[str, jax.Array]:
        return feature_pyramid(run.learning.model, variables, inputs)

    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), run.task.example)
    layers = jax.eval_shape(pyramid, variables, example)
    if layer not in layers:
        raise UserError(f"--layer={layer}: {run.config.model.name} has no such features; {nearest(layer, layers)}")

    def features(variables: Any, batch: Any) -> jax.Array:
        inputs, _ = run.learning.prepare(None, None, batch)
        taken = pyramid(variables, inputs)[layer].astype(np.float32)
        return taken if taken.ndim == 2 else global_average(taken)

    (of_split,), labels, _ = collect(
        [(features, variables)],
        feed.evaluation(split, run.calls.eval_batch_size),
        targets=lambda batch: run.learning.prepare(None, None, batch)[1],
        fetch=feed.fetch,
        parallel=run.parallel,
        num_examples=lambda: feed.num_counted(split),
    )
    return of_split, labels


def fit(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], *, classifier: str
) -> tuple[Any, float]:
    """The classifier of standardised features that is best on validation, and its C; of equals the more regularised."""
    from sklearn.linear_model import LogisticRegression  # takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    kinds = {"logistic": LogisticRegression, "svm": LinearSVC}
    best: tuple[float, Any, float] | None = None
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), kinds[classifier](C=strength, max_iter=MAX_ITERATIONS))
        with warnings.catch_warnings(action="ignore"):  # that the weakest have not converged
            model.fit(*train)
        accuracy = float(model.score(*validation))
        if best is None or accuracy > best[0]:
            best = accuracy, model, strength
    assert best is not None
    return best[1], best[2]
