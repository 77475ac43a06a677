"""Scores of predictions: pure functions of logits or probabilities [n, K], classes [n] and a mask [n].

Counts are integers and long sums are sums of short ones, so that float32 is right to 1e-6 at 10^5 examples.
Masked examples are not there; their labels may be anything. What is not defined is NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NUM_BINS = 15  # of confidence, of equal width: Guo et al. 2017

# The scores that are shown, in this order, and their titles.
SHOWN_SCORES = {
    "accuracy": "Accuracy",
    "top5_accuracy": "Top-5 accuracy",
    "loss": "Loss",
    "nll": "Negative log likelihood",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "balanced_accuracy": "Balanced accuracy",
    "cohen_kappa": "Cohen's kappa",
    "matthews": "Matthews' coefficient",
    "macro_roc_auc": "Macro ROC AUC",
    "macro_average_precision": "Macro average precision",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
}


def long_sum(values: jax.Array) -> jax.Array:
    """Sum of [n, ...] over n, by sums of sums of 16: the error grows with log n, in whatever order a device adds."""
    while len(values) > 1:
        missing = -len(values) % 16
        values = jnp.concatenate([values, jnp.zeros((missing, *values.shape[1:]), values.dtype)])
        values = values.reshape(-1, 16, *values.shape[1:]).sum(axis=1)
    return values.sum(axis=0)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of float32 [n] where mask is True."""
    return long_sum(jnp.where(mask, values, 0)) / mask.sum()


def _ratio(above: jax.Array, below: jax.Array, undefined: float = jnp.nan) -> jax.Array:
    """A quotient, with a value of its own where the divisor is 0."""
    return jnp.where(below == 0, undefined, above / jnp.where(below == 0, 1, below))


def all_scores(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, Any]:
    """Every score of this module, at once.

    Returns:
      `scores`: float32 [] by name. `counts`: over how many classes the macro means are taken, int32 []. `classes`: [K]
      by name. `confusion_matrix` [K, K]. `reliability`: [15] by name.
    """
    values = prediction_values(logits, labels)
    matrix = confusion_matrix(values["prediction"], labels, mask, num_classes=logits.shape[-1])
    from_counts, of_class, counts = scores_of_counts(matrix)
    curves = ranking(log_odds(logits), labels, mask)
    support = of_class["support"]
    scores = {
        **from_counts,
        "top5_accuracy": _ratio((values["in_top5"] & mask).sum(), mask.sum()),
        **probability_scores(logits, labels, mask),
    }
    for name, curve in curves.items():
        defined = ~jnp.isnan(curve)
        known = jnp.where(defined, curve, 0)
        weights = jnp.where(defined, support, 0)
        scores[f"macro_{name}"] = _ratio(long_sum(known), defined.sum())
        scores[f"weighted_{name}"] = _ratio(long_sum(known * weights), weights.sum())
        counts[name] = defined.sum()
    return {
        "scores": scores,
        "counts": counts,
        "classes": {**of_class, **curves},
        "confusion_matrix": matrix,
        "reliability": reliability(values["confidence"], values["correct"], mask),
    }


def probability_scores(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """The scores that a temperature changes: `nll`, `brier` and `ece`."""
    values = prediction_values(logits, labels)
    bins = reliability(values["confidence"], values["correct"], mask)
    gaps = jnp.where(bins["count"] > 0, bins["confidence"] - bins["accuracy"], 0)
    return {
        "nll": masked_mean(values["nll"], mask),
        "brier": masked_mean(values["brier"], mask),
        "ece": expected_calibration_error(gaps, bins["count"], bins["count"].sum()),
    }


def prediction_values(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Per-example values, [n]: `prediction`, `correct`, `in_top5`, `confidence`, `nll`, `brier`.

    Of equal logits the first counts as higher, as argmax has it. Brier's score is the sum over the classes of the
    squared difference to the one-hot label, 0 to 2 (Brier 1950).
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    p = jnp.exp(log_p)
    prediction = logits.argmax(axis=-1)
    numbers = jnp.arange(logits.shape[-1])
    mine = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    higher = (logits > mine) | ((logits == mine) & (numbers < labels[:, None]))
    return {
        "prediction": prediction,
        "correct": prediction == labels,
        "in_top5": higher.sum(axis=-1) < 5,
        "confidence": p.max(axis=-1),
        "nll": -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0],
        "brier": ((p - jax.nn.one_hot(labels, logits.shape[-1])) ** 2).sum(axis=-1),
    }


# ---- of counts


def count_scores(
    right: Any, support: Any, predicted: Any, *, total: Callable[[Any], Any] = long_sum
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The formulas of accuracy, precision, recall and F1, for arrays of numpy and of JAX alike.

    As scikit-learn with zero_division=0: a class without examples, or never predicted, has precision, recall or F1 0.
    Macro means are over the classes that occur as a label or a prediction, balanced accuracy over those that occur as
    a label.

    Args:
      right, support, predicted: of each class [K], how many examples are predicted rightly, labelled, predicted.
      total: sums over the classes.

    Returns:
      (`accuracy`, `macro_precision`, … and `balanced_accuracy`; `precision`, `recall` and `f1` of each class [K]).
    """
    of_class = {
        "precision": right / predicted.clip(1),
        "recall": right / support.clip(1),
        "f1": 2 * right / (support + predicted).clip(1),
    }
    num_occurring = (support + predicted > 0).sum()
    scores = {"accuracy": right.sum() / support.sum()}
    scores |= {f"macro_{name}": total(values) / num_occurring for name, values in of_class.items()}
    scores["balanced_accuracy"] = total(of_class["recall"]) / (support > 0).sum()
    return scores, of_class


def confusion_matrix(predictions: jax.Array, labels: jax.Array, mask: jax.Array, *, num_classes: int) -> jax.Array:
    """Counts, int32 [K, K]: row, the label; column, the prediction."""
    empty = jnp.zeros((num_classes, num_classes), jnp.int32)
    return empty.at[labels, predictions].add(mask.astype(jnp.int32))


def scores_of_counts(matrix: jax.Array) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Scores, scores of each class [K], and counts of classes, of a confusion matrix int [K, K]: see `count_scores`.

    Cohen's kappa of a single class is not defined; Matthews' coefficient (Gorodkin 2004) is then 0.
    """
    count = matrix.sum()
    right, support, predicted = jnp.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    scores, of_class = count_scores(right, support, predicted)
    for name, values in of_class.items():
        scores[f"weighted_{name}"] = long_sum(values * support) / count
        scores[f"micro_{name}"] = scores["accuracy"]  # an example has one label and one prediction, so all are this
    # Sums of products of what is not agreed on, where nothing large is subtracted from something as large.
    labelled, chosen = support / count, predicted / count
    others_labelled, others_chosen = (count - support) / count, (count - predicted) / count
    by_chance = long_sum(labelled * others_chosen)
    scores["cohen_kappa"] = 1 - _ratio((count - right.sum()) / count, by_chance)
    covariance = long_sum(
        right / count * ((count - support - predicted + right) / count)
        - (support - right) / count * ((predicted - right) / count)
    )
    spread = jnp.sqrt(long_sum(labelled * others_labelled)) * jnp.sqrt(long_sum(chosen * others_chosen))
    scores["matthews"] = _ratio(covariance, spread, 0.0)
    counts = {"macro": (support + predicted > 0).sum(), "balanced_accuracy": (support > 0).sum()}
    return scores, {"support": support, "predicted": predicted, **of_class}, counts


# ---- of rankings


def log_odds(logits: jax.Array) -> jax.Array:
    """Log-odds log(p / (1 - p)) of each class, float32 [n, K], which rank examples where p itself would round to 1.

    Of two classes one is the other's negative, exactly.
    """
    logits = logits.astype(jnp.float32)
    numbers = jnp.arange(logits.shape[-1])
    top = logits.argmax(axis=-1, keepdims=True)
    is_top = numbers == top
    highest = jnp.take_along_axis(logits, top, axis=-1)
    rest = jnp.where(is_top, -jnp.inf, logits)
    ordered = jnp.sort(rest, axis=-1)  # sums of the same numbers are the same, whichever classes they are of
    beside_top = jax.nn.logsumexp(ordered, axis=-1, keepdims=True)
    # Against the highest, what is beside a class are the highest itself and the rest without the class's own.
    all_rest = jnp.exp(ordered - highest).sum(axis=-1, keepdims=True)
    others = 1 + jnp.maximum(all_rest - jnp.exp(rest - highest), 0)
    return jnp.where(is_top, highest - beside_top, logits - highest - jnp.log(others))


def ranking(scores: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Areas `roc_auc` and `average_precision` of each class against the rest, float32 [K]; ties are one step of both.

    NaN where a class has no examples; the ROC's area also where it has all of them. The area under the ROC curve is
    the chance that an example of the class is scored above one of the rest, ties counting half (Hanley & McNeil 1982);
    the average precision is the sum of precisions, weighted by the steps of recall, not interpolated.
    """

    def of_class(inputs: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        number, column = inputs
        column = jnp.where(mask, column, jnp.inf)
        order = jnp.argsort(column)
        column = column[order]
        first, after = (jnp.searchsorted(column, column, side=side) for side in ("left", "right"))  # of those that tie
        of_it, of_rest = mask & (labels == number), mask & (labels != number)
        # How many of each there are among the lowest 0, 1, 2, … examples.
        positives, negatives = (jnp.pad(jnp.cumsum(chosen[order]), (1, 0)) for chosen in (of_it, of_rest))
        beaten = (negatives[first] + negatives[after]) / 2
        above, negatives_above = positives[-1] - positives[first], negatives[-1] - negatives[first]
        precision = above / jnp.maximum(above + negatives_above, 1)
        mean = lambda values: _ratio(long_sum(jnp.where(of_it[order], values, 0)), positives[-1])
        area = mean(beaten / jnp.maximum(negatives[-1], 1))
        return {
            "roc_auc": jnp.where(negatives[-1] == 0, jnp.nan, area),
            "average_precision": mean(precision),
        }

    return jax.lax.map(of_class, (jnp.arange(scores.shape[-1]), scores.T))


# ---- of probabilities


def confidence_bins(confidence: jax.Array) -> jax.Array:
    """The number of the bin (0, 1/15], (1/15, 2/15], … that each of [n] is in."""
    return jnp.clip(jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1, 0, NUM_BINS - 1)


def reliability(confidence: jax.Array, correct: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """The reliability curve: of each bin [15] its `count`, mean `confidence` and `accuracy`, NaN where it is empty."""
    bins, none = confidence_bins(confidence), jnp.zeros(NUM_BINS, jnp.int32)
    count = none.at[bins].add(mask.astype(jnp.int32))
    right = none.at[bins].add((mask & correct).astype(jnp.int32))
    total = long_sum(jnp.where(mask[:, None], jax.nn.one_hot(bins, NUM_BINS) * confidence[:, None], 0))
    return {"count": count, "confidence": _ratio(total, count), "accuracy": _ratio(right, count)}


def expected_calibration_error(
    gaps: Any, sizes: Any, num_examples: Any, *, total: Callable[[Any], Any] = long_sum
) -> Any:
    """The mean over examples of how far their bin's accuracy is from its confidence: Guo et al. 2017, eq. 3.

    Args:
      gaps: of each bin [15] the mean of its examples' confidence less their correctness, in numpy or in JAX.
      sizes: how many examples each bin has, [15]; 1 where `gaps` are sums.
      num_examples: in all bins.
      total: sums over the bins.
    """
    return total(abs(gaps) * sizes) / num_examples
