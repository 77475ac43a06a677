"""Confidence in scores and in probabilities: bootstrap intervals, and temperature scaling."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.tasks.classification.scores import NUM_BINS, count_scores, expected_calibration_error, masked_mean

_MOST_STEPS = 100  # of a search for a root; it takes a dozen
_RELATIVE = 4 * float(np.finfo(float).eps)  # of a root: what float64 can tell apart
TEMPERATURES = 0.01, 100.0  # the lowest and the highest that are considered


def bootstrap(
    labels: np.ndarray,
    predictions: np.ndarray,
    bins: np.ndarray,
    gaps: np.ndarray,
    means: dict[str, np.ndarray],
    *,
    num_classes: int,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over resampled examples (Efron & Tibshirani 1993, section 13.3), by integer counts in numpy.

    Args:
      labels, predictions: classes, int [n].
      bins, gaps: of each example its bin of confidence, and its confidence less whether it is correct, [n].
      means: what is averaged over examples, [n] by name.
      resamples: how many sets of n examples are drawn, with replacement.
      level: the share of them that lies within the interval.
      seed: of the draws; the examples' weights are a function of it, of n and of the resample alone.

    Returns:
      (low, high) of accuracy, macro precision, recall and F1, balanced accuracy, ECE, and of each of `means`.
    """
    count, generator = len(labels), np.random.default_rng(seed)
    right = labels == predictions
    averaged = np.stack([values.astype(np.float64) for values in means.values()], axis=1)
    drawn: list[dict[str, float]] = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(0, count, count), minlength=count)
        tally = partial(np.bincount, minlength=num_classes)
        support, predicted = tally(labels, weights), tally(predictions, weights)
        correct = tally(labels, weights * right)
        scores, _ = count_scores(correct, support, predicted, total=np.sum)
        sums = np.bincount(bins, weights * gaps, NUM_BINS)
        scores["ece"] = expected_calibration_error(sums, 1, count, total=np.sum)
        drawn.append(scores | dict(zip(means, weights @ averaged / count, strict=True)))
    tails = (1 - level) / 2, (1 + level) / 2
    return {
        name: tuple(np.quantile([scores[name] for scores in drawn], tails).tolist())
        for name in (drawn[0] if drawn else ())
    }


@jax.jit
def _slope(logits: jax.Array, labels: jax.Array, log_temperature: jax.Array) -> jax.Array:
    """Slope of the negative log likelihood in log T, divided by -1/T: it rises in 1/T, in which that is convex."""
    p = jax.nn.softmax(logits * jnp.exp(-log_temperature))
    mine = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return masked_mean((p * logits).sum(axis=-1) - mine, jnp.ones(len(labels), bool))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T whose softmax(logits / T) has the least negative log likelihood (Guo et al. 2017, section 4.2).

    That is convex in 1/T, so its slope has one root, if any. Without one, as where every prediction is right and being
    surer is always better, the end of TEMPERATURES that is best.
    """
    logits, low, high = logits - logits.max(axis=-1, keepdims=True), *map(np.log, TEMPERATURES)
    slope = lambda log_temperature: float(_slope(logits, labels, np.float32(log_temperature)))
    # slope falls as T rises: confidence falls, and with it the mean logit that the model expects
    if slope(low) <= 0:
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(root(slope, float(low), float(high), tolerance=1e-6)))


def root(function: Callable[[float], float], low: float, high: float, *, tolerance: float) -> float:
    """Where a function crosses zero between `low` and `high`, at which its signs differ.

    Brent 1973, Algorithms for minimization without derivatives, chapter 4. scipy.optimize.brentq is the same to the
    last bit, but its import takes longer than an evaluation of the digits.
    """
    other, best = low, high  # the root lies between `best`, the newest and best point, and `across`
    f_other, f_best = function(other), function(best)
    across, f_across, step = other, f_other, best - other
    before = step  # the step before the newest
    for _ in range(_MOST_STEPS):
        if f_best and f_other and (f_best < 0) != (f_other < 0):
            across, f_across, before, step = other, f_other, best - other, best - other
        if abs(f_across) < abs(f_best):
            other, best, across = best, across, best
            f_other, f_best, f_across = f_best, f_across, f_best
        least = (tolerance + _RELATIVE * abs(best)) / 2
        half = (across - best) / 2
        if f_best == 0 or abs(half) < least:
            return best
        guess = math.inf
        if abs(before) > least and abs(f_best) < abs(f_other):
            if other == across:  # two points: the secant
                guess = -f_best * (best - other) / (f_best - f_other)
            else:  # three: the inverse of a parabola
                by_other, by_across = (f_other - f_best) / (other - best), (f_across - f_best) / (across - best)
                guess = -f_best * (f_across * by_across - f_other * by_other)
                guess /= by_across * by_other * (f_across - f_other)
        if 2 * abs(guess) < min(abs(before), 3 * abs(half) - least):
            before, step = step, guess
        else:
            before = step = half
        other, f_other = best, f_best
        best += step if abs(step) > least else math.copysign(least, half)
        f_best = function(best)
    return best
