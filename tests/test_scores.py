"""Scores against scikit-learn's, on random and degenerate cases; intervals, temperatures, views."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_softmax, logsumexp
from sklearn import metrics

from jaxcnn.augment import VIEWS, average_views
from jaxcnn.tasks.classification import confidence, scores

CLASSES, EXAMPLES = 12, 700
CALL = jax.jit(scores.all_scores)


def logits_of(labels, generator, *, strength=1.5, spread=2.0):
    drawn = generator.normal(scale=spread, size=(len(labels), CLASSES))
    drawn[np.arange(len(labels)), labels] += strength
    return drawn.astype(np.float32)


def case(name):
    """(logits, labels, mask) of one kind; what is masked is garbage."""
    generator = np.random.default_rng([7, *name.encode()])
    labels = generator.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    mask = np.ones(EXAMPLES, bool)
    if "absent" in name:
        labels[labels == 4] = 5
    elif name == "one class":
        labels[:] = 3
    elif name == "imbalanced":
        labels = np.where(generator.random(EXAMPLES) < 0.99, 2, labels).astype(np.int32)
    logits = logits_of(labels, generator)
    if name == "class absent and never predicted":
        logits[:, 4] = -30
    elif name == "all wrong":
        logits[np.arange(EXAMPLES), labels] = -9
    elif name == "one class, always predicted":
        labels[:] = 3
        logits[:, 3] += 40
    elif name == "ties":
        logits = np.round(logits / 3)
        logits[::3] = np.eye(CLASSES)[generator.integers(0, CLASSES, len(logits[::3]))]
    elif name == "sure":
        logits *= 6
    elif name == "masked":
        mask = generator.random(EXAMPLES) < 0.6
        labels[~mask] = generator.integers(-1, CLASSES, (~mask).sum())
        logits[~mask] = 50 * generator.normal(size=((~mask).sum(), CLASSES))
    return logits, labels, mask


CASES = (
    "random", "absent class", "class absent and never predicted", "one class", "one class, always predicted",
    "imbalanced", "all wrong", "ties", "sure", "masked",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_scores_are_scikit_learns(name):
    logits, labels, mask = case(name)
    found = jax.device_get(CALL(logits, labels, mask))
    p, ranks = np.asarray(jax.nn.softmax(logits))[mask], np.asarray(scores.log_odds(logits))[mask]
    logits, labels = logits[mask], labels[mask]
    predictions = logits.argmax(axis=1)
    one_hot = np.eye(CLASSES)[labels]
    every = {"labels": np.arange(CLASSES), "zero_division": 0}
    with warnings.catch_warnings(action="ignore"):  # scikit-learn's, of what is not defined
        expected = {
            "accuracy": metrics.accuracy_score(labels, predictions),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, predictions),
            "cohen_kappa": metrics.cohen_kappa_score(labels, predictions),
            "matthews": metrics.matthews_corrcoef(labels, predictions),
            # scikit-learn's cuts probabilities off
            "nll": -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean(),
            "brier": ((p - one_hot) ** 2).sum(axis=1).mean(),
        }
        for average in ("macro", "micro", "weighted"):
            for kind in ("precision", "recall", "f1"):
                score = getattr(metrics, f"{kind}_score")
                expected[f"{average}_{kind}"] = score(labels, predictions, average=average, zero_division=0)
        of_class = metrics.precision_recall_fscore_support(labels, predictions, **every)
        present = np.bincount(labels, minlength=CLASSES)
        areas = np.full(CLASSES, np.nan)
        precisions = np.full(CLASSES, np.nan)
        for number in range(CLASSES):
            if present[number] > 0:
                precisions[number] = metrics.average_precision_score(labels == number, ranks[:, number])
                if present[number] < len(labels):
                    areas[number] = metrics.roc_auc_score(labels == number, ranks[:, number])
        for kind, values in (("roc_auc", areas), ("average_precision", precisions)):
            known = ~np.isnan(values)
            assert found["counts"][kind] == known.sum()
            expected[f"macro_{kind}"] = np.mean(values[known])
            expected[f"weighted_{kind}"] = (values[known] * present[known]).sum() / present[known].sum()
        if name == "random":  # where it takes them all
            expected["macro_roc_auc"] = metrics.roc_auc_score(labels, p, multi_class="ovr")
            expected["weighted_roc_auc"] = metrics.roc_auc_score(labels, p, multi_class="ovr", average="weighted")
            expected["brier"] = metrics.brier_score_loss(labels, p, scale_by_half=False)
    if name != "ties":  # of which scikit-learn takes the last
        expected["top5_accuracy"] = metrics.top_k_accuracy_score(labels, p, k=5, labels=range(CLASSES))
    gaps, bins = [], np.digitize(p.max(axis=1), np.linspace(0, 1, 16)[1:-1], right=True)
    for number in range(15):
        chosen = bins == number
        assert found["reliability"]["count"][number] == chosen.sum()
        if chosen.any():
            confident, right = p[chosen].max(axis=1).mean(dtype=np.float64), (predictions == labels)[chosen].mean()
            assert found["reliability"]["confidence"][number] == pytest.approx(confident, abs=1e-6)
            assert found["reliability"]["accuracy"][number] == pytest.approx(right, abs=1e-6)
            gaps.append(chosen.mean() * abs(confident - right))
    expected["ece"] = sum(gaps)

    # log-odds that are equal in theory alone may be a rounding apart
    ranked = [key for key in expected if key.endswith(("roc_auc", "average_precision"))]
    close = {key: 1e-3 if name == "ties" and key in ranked else 1e-6 for key in expected}
    for key, value in expected.items():
        assert found["scores"][key] == pytest.approx(value, rel=1e-6, abs=close[key], nan_ok=True), key
    assert set(found["scores"]) - {"top5_accuracy"} == set(expected) - {"top5_accuracy"}
    for kind, values in zip(("precision", "recall", "f1", "support"), of_class, strict=True):
        np.testing.assert_allclose(found["classes"][kind], values, atol=1e-6)
    np.testing.assert_allclose(found["classes"]["roc_auc"], areas, atol=3e-3 if name == "ties" else 1e-6)
    np.testing.assert_allclose(found["classes"]["average_precision"], precisions, atol=3e-3 if name == "ties" else 1e-6)
    curves = jax.jit(scores.ranking)(ranks, labels, np.ones(len(labels), bool))
    np.testing.assert_allclose(curves["roc_auc"], areas, atol=1e-6)
    np.testing.assert_allclose(curves["average_precision"], precisions, atol=1e-6)
    matrix = metrics.confusion_matrix(labels, predictions, labels=range(CLASSES))
    np.testing.assert_array_equal(found["confusion_matrix"], matrix)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_log_odds(scale):
    """Against float64's, of each class against the others; permuted logits have the same, permuted."""
    logits = (scale * np.random.default_rng(0).normal(size=(200, CLASSES))).astype(np.float32)
    wide = logits.astype(np.float64)
    others = [logsumexp(np.delete(wide, number, axis=1), axis=1) for number in range(CLASSES)]
    found = np.asarray(scores.log_odds(logits))
    np.testing.assert_allclose(found, wide - np.stack(others, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.log_odds(logits[:, ::-1]), found[:, ::-1])


@pytest.mark.parametrize("scale", [1, 10, 40, 200])
def test_of_two_classes_both_areas_are_equal_however_sure(scale):
    """Where float32 has only 1 for the one probability, and for the other still what it is."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 400)
    margin = scale * (1.5 + 0.5 * generator.standard_normal(400)) + 3 * (2 * labels - 1)
    logits = np.stack([np.zeros(400), margin], axis=1).astype(np.float32)
    found = CALL(logits, labels, np.ones(400, bool))["classes"]
    np.testing.assert_allclose(found["roc_auc"], metrics.roc_auc_score(labels, logits[:, 1]), atol=1e-6)
    assert found["average_precision"][1] == pytest.approx(metrics.average_precision_score(labels, logits[:, 1]))


def test_every_score_that_is_shown_exists():
    found = CALL(*case("random"))["scores"]
    assert set(scores.SHOWN_SCORES) - found.keys() == {"loss"}  # the run's own


def test_top_5_of_equals_takes_the_first():
    logits, labels = np.zeros((12, CLASSES)), np.arange(12)
    found = jax.jit(scores.prediction_values)(logits, labels)
    assert found["in_top5"].tolist() == [True] * 5 + [False] * 7


def test_float32_is_exact_at_100_000_examples():
    generator = np.random.default_rng(0)
    labels = (generator.random(100_000) ** 3 * 3).astype(np.int32)
    logits = generator.normal(scale=2, size=(100_000, 3)).astype(np.float32)
    logits[np.arange(100_000), labels] += 2
    found = jax.device_get(CALL(logits, labels, np.ones(100_000, bool)))
    p, log_p = np.asarray(jax.nn.softmax(logits)), log_softmax(logits.astype(np.float64), axis=1)
    predictions = logits.argmax(axis=1)
    for key, value in {
        "nll": -log_p[np.arange(100_000), labels].mean(),
        "brier": ((np.exp(log_p) - np.eye(3)[labels]) ** 2).sum(axis=1).mean(),
        "cohen_kappa": metrics.cohen_kappa_score(labels, predictions),
        "matthews": metrics.matthews_corrcoef(labels, predictions),
        "macro_roc_auc": metrics.roc_auc_score(labels, p, multi_class="ovr"),
        "macro_average_precision": metrics.average_precision_score(np.eye(3)[labels], p),
    }.items():
        assert found["scores"][key] == pytest.approx(value, abs=1e-6), key
    tenths = jnp.full(100_000, 0.1)  # which a plain running sum in float32 gets wrong in the fourth digit
    assert float(jax.jit(scores.long_sum)(tenths)) == pytest.approx(100_000 * float(np.float32(0.1)), rel=5e-7)


# ---- intervals and temperatures


def intervals_of(logits, labels, **options):
    values = jax.device_get(scores.prediction_values(logits, labels))
    return confidence.bootstrap(
        labels,
        values["prediction"],
        np.asarray(scores.confidence_bins(values["confidence"])),
        values["confidence"] - values["correct"],
        {"nll": values["nll"]},
        num_classes=logits.shape[1],
        **options,
    )


def test_a_resample_has_the_scores_that_the_formulas_give_it():
    """By drawing it again, and asking the scores of the whole set about it."""
    logits, labels, mask = case("imbalanced")
    found = intervals_of(logits, labels, resamples=1, seed=5)
    drawn = np.random.default_rng(5).integers(0, len(labels), len(labels))
    again = jax.device_get(CALL(logits[drawn], labels[drawn], mask))["scores"]
    assert set(found) == {
        "accuracy", "macro_precision", "macro_recall", "macro_f1", "balanced_accuracy", "ece", "nll",
    }  # fmt: skip
    for name, (low, high) in found.items():
        assert low == high == pytest.approx(again[name], abs=1e-6), name


def test_intervals_are_as_wide_as_the_theory_has_them():
    logits, labels, _ = case("random")
    found = intervals_of(logits, labels, seed=1)
    accuracy = (logits.argmax(axis=1) == labels).mean()
    deviation = np.sqrt(accuracy * (1 - accuracy) / len(labels))
    assert found["accuracy"] == pytest.approx((accuracy - 1.96 * deviation, accuracy + 1.96 * deviation), abs=0.006)
    assert intervals_of(logits, labels, seed=1) == found
    assert intervals_of(logits, labels, seed=2) != found
    narrow = intervals_of(logits, labels, seed=1, level=0.5)
    assert found["nll"][0] < narrow["nll"][0] < narrow["nll"][1] < found["nll"][1]
    assert intervals_of(logits, labels, resamples=0) == {}


@pytest.mark.parametrize("number", range(30))
def test_a_root_is_scipys_to_the_last_bit(number):
    a, b = np.random.default_rng(number).normal(size=2)
    functions = (
        lambda x: float(np.tanh(x - a) + 0.1 * b * b * x),
        lambda x: float(np.exp(a - x) - 1 - 0.01 * b * b),
        lambda x: float((x - a) ** 3 + b * b * (x - a)),
    )
    function = functions[number % 3]
    assert confidence.root(function, -9.0, 8.0, tolerance=1e-6) == brentq(function, -9.0, 8.0, xtol=1e-6)


def test_the_temperature_that_made_the_labels_is_found():
    generator = np.random.default_rng(3)
    logits = generator.normal(scale=2, size=(8_000, 5)).astype(np.float32)
    p = np.asarray(jax.nn.softmax(logits))
    labels = (p.cumsum(axis=1) < generator.random((8_000, 1))).sum(axis=1).clip(0, 4).astype(np.int32)
    for scale in (0.4, 3.0):
        temperature = confidence.fit_temperature(logits * scale, labels)
        assert temperature == pytest.approx(scale, rel=0.03)
        nll = lambda t: metrics.log_loss(labels, np.exp(log_softmax(logits * scale / t, axis=1)))
        assert nll(temperature) < min(nll(temperature * 1.02), nll(temperature / 1.02))
    assert confidence.fit_temperature(5 * np.eye(5, dtype=np.float32), np.arange(5)) == confidence.TEMPERATURES[0]
    assert confidence.fit_temperature(-np.eye(5, dtype=np.float32), np.arange(5)) == confidence.TEMPERATURES[1]


# ---- views


@pytest.mark.parametrize(("views", "number"), [("none", 1), ("flip", 2), ("flip_translate", 6), ("shifts", 5)])
def test_no_view_counts_twice(views, number):
    assert views in VIEWS
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 7, 1)), jnp.float32)
    seen = []

    def predict(view):
        seen.append(np.asarray(view).tobytes())
        return jnp.ones((1, 3))

    np.testing.assert_allclose(average_views(predict, images, views=views), 1, rtol=1e-6)
    assert len(set(seen)) == len(seen) == number
    is_one = lambda one: lambda view: jnp.full(1, float(np.asarray(view).tobytes() == one))
    weights = [float(average_views(is_one(one), images, views=views)[0]) for one in seen]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) > 0.12
