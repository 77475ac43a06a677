"""Metrics of classification, by name: of logits [B, K] and labels, classes [B] or distributions [B, K]."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.tasks.metric import Metric

TOP5_FROM_CLASSES = 20  # with fewer classes a top-5 accuracy says little


def classes_of(labels: jax.Array) -> jax.Array:
    """Classes int [B]; of a distribution the likeliest."""
    return labels.argmax(axis=-1) if labels.ndim == 2 else labels


def _is_right(logits: jax.Array, labels: jax.Array, losses: jax.Array) -> jax.Array:
    return (logits.argmax(axis=-1) == classes_of(labels)).astype(jnp.float32)


def _is_in_top5(logits: jax.Array, labels: jax.Array, losses: jax.Array) -> jax.Array:
    _, top5 = jax.lax.top_k(logits, 5)  # of equals the first, as argmax has it
    return (top5 == classes_of(labels)[:, None]).any(axis=-1).astype(jnp.float32)


def _counts(logits: jax.Array, labels: jax.Array, losses: jax.Array) -> jax.Array:
    """One-hot, [B, 3 K]: the class that was right, the label's, the predicted one."""
    label, predicted = (jax.nn.one_hot(x, logits.shape[-1]) for x in (classes_of(labels), logits.argmax(axis=-1)))
    return jnp.concatenate([label * predicted, label, predicted], axis=-1)


def _macro_f1(shares: Any) -> Any:
    """Of the means of `_counts` [..., 3 K], as scores.py has it: over classes that occur, as a label or predicted."""
    right, label, predicted = jnp.split(shares, 3, axis=-1)
    occurs = label + predicted > 0
    return (2 * right / jnp.where(occurs, label + predicted, 1)).sum(axis=-1) / occurs.sum(axis=-1)


def _balanced_accuracy(shares: Any) -> Any:
    """The mean recall of classes that occur as a label."""
    right, label, _ = jnp.split(shares, 3, axis=-1)
    return (right / jnp.where(label > 0, label, 1)).sum(axis=-1) / (label > 0).sum(axis=-1)


ACCURACY = Metric("accuracy", _is_right, higher_is_better=True)
TOP5_ACCURACY = Metric("top5_accuracy", _is_in_top5, higher_is_better=True)


def metrics_for(num_classes: int) -> tuple[Metric, ...]:
    """All that can be measured with so many classes, but the loss."""
    of_counts = partial(Metric, of_examples=_counts, higher_is_better=True, size=3 * num_classes)
    return (
        ACCURACY,
        *([TOP5_ACCURACY] if num_classes >= TOP5_FROM_CLASSES else []),
        of_counts("macro_f1", finish=_macro_f1),
        of_counts("balanced_accuracy", finish=_balanced_accuracy),
    )
