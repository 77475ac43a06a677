"""Checks of predictions and data: predictions.csv, data_check.json, the counts of classes, what splits share.

Every threshold stands above the check that uses it, with its reason.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from jaxcnn.results.diagnosis.finding import STANDARD_ERRORS, Finding, balance, find_rate, listed, unset
from jaxcnn.run.facts import Facts

NEVER_PREDICTED_EXAMPLES = 10  # a class of fewer may be missed by chance


def _collapse(facts: Facts) -> Iterator[Finding]:
    """Classes that are never predicted."""
    if facts.predictions is None:
        return
    labels, counts = np.unique(np.asarray(facts.predictions.labels, str), return_counts=True)
    predicted, times = np.unique(np.asarray(facts.predictions.predictions, str), return_counts=True)
    never = [
        str(label)
        for label, count in zip(labels, counts, strict=True)
        if count >= NEVER_PREDICTED_EXAMPLES and label not in predicted
    ]
    if never:
        most = int(times.argmax())
        yield Finding(
            "class collapse",
            "error" if len(never) > len(labels) / 2 else "warning",
            f"{len(never)} of {len(labels)} classes are never predicted ({listed(never)}); "
            f"{times[most] / sum(times):.0%} of the predictions are {predicted[most]}",
            (*balance(facts), find_rate()),
        )


CONFIDENT, NUM_CONFIDENT_ERRORS = 0.99, 5  # who is so sure may err in 1 %; fewer than five errors tell nothing


def _label_noise(facts: Facts) -> Iterator[Finding]:
    """Labels that sure predictions contradict."""
    if facts.predictions is None:
        return
    labels, predictions = (np.asarray(each, str) for each in (facts.predictions.labels, facts.predictions.predictions))
    confidences = np.asarray(facts.predictions.confidences, float)
    sure = confidences >= CONFIDENT
    wrong = np.flatnonzero(sure & (labels != predictions))
    share, admitted = len(wrong) / max(1, sure.sum()), 1 - CONFIDENT
    error = math.sqrt(admitted * CONFIDENT / max(1, sure.sum()))
    if len(wrong) >= NUM_CONFIDENT_ERRORS and share > admitted + STANDARD_ERRORS * error:
        order = wrong[np.argsort(-confidences[wrong], kind="stable")]
        named = [f"{facts.predictions.identifiers[n]} ({labels[n]}, predicted {predictions[n]})" for n in order]
        yield Finding(
            "labels to look at",
            "note",
            f"{len(wrong):,} of {sure.sum():,} predictions of confidence >= {CONFIDENT} contradict the label, "
            f"{share:.1%} where 1 % may; the surest: {listed(named)}",
            ("--config.data.exclude=FILE with their identifiers", *unset(facts, "loss.label_smoothing=0.1")),
        )


IMBALANCE = 10.0  # largest class / smallest, as jaxcnn.data check has it; effects grow from there: Buda et al. 2018


def _imbalance(facts: Facts) -> Iterator[Finding]:
    """Classes of train with no examples, or with few beside the largest."""
    counts = (facts.data.get("class_counts") or {}).get("train")
    if not counts:
        return
    small, large = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if not counts[small]:
        empty = [name for name, count in counts.items() if not count]
        yield Finding(
            "class without examples",
            "error",
            f"{len(empty)} of {len(counts)} classes have no example in train: {listed(empty)}",
            ("--config.data.classes=NAMES of the others", "--config.data.stratify=true"),
        )
    elif counts[large] >= IMBALANCE * counts[small] and len(balance(facts)) == 2:
        yield Finding(
            "class imbalance",
            "warning",
            f"train has {counts[large]:,} examples of {large} and {counts[small]:,} of {small}, "
            f"{counts[large] / counts[small]:.0f} times fewer",
            balance(facts),
        )


def _shared_examples(facts: Facts) -> Iterator[Finding]:
    """Examples that two splits have in common, by splits.npz."""
    for (one, other), count in (facts.shared or {}).items():
        if count:
            trained = "train" in (one, other)
            yield Finding(
                "splits share examples",
                "error" if trained else "warning",
                f"{one} and {other} share {count:,} of {facts.data['num_examples'][other]:,} examples: {other} is no "
                f"measure apart from what {'was learned' if trained else 'chose the weights'}",
                ("--config.data.validation_split=none", "--config.data.test_split=none"),
            )


def _data_check(facts: Facts) -> Iterator[Finding]:
    """Leaks, near copies and imbalance that jaxcnn.data check found."""
    kinds = (facts.data_check or {}).get("kinds", {})
    for kind, severity in (("leak", "error"), ("near_leak", "warning"), ("imbalance", "note")):
        count = kinds.get(kind, {}).get("count", 0)
        if count and not (kind == "imbalance" and (facts.data.get("class_counts") or len(balance(facts)) < 2)):
            remedy = f"python -m jaxcnn.data check {facts.data['name']} --write_clean FILE"
            yield Finding(
                "class imbalance" if kind == "imbalance" else "copies between splits",
                severity,
                f"jaxcnn.data check found, {count:,} times: {kinds[kind]['title']}",
                balance(facts) if kind == "imbalance" else (remedy, "--config.data.exclude=FILE"),
            )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _collapse, _label_noise, _imbalance, _shared_examples, _data_check,
)  # fmt: skip
