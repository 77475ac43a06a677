"""Metrics of masks, by name: of logits [B, H, W, K] and classes int [B, H, W]. Void pixels count nowhere.

Counts of pixels are summed over a whole split and divided once, so a mean IoU is that of the split, not of its images.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.tasks.metric import Metric
from jaxcnn.tasks.segmentation.losses import VOID


def counts(logits: jax.Array, labels: jax.Array, losses: Any = None) -> jax.Array:
    """Pixels of each image, [B, 3 K]: those of a class that are said so, those of the class, those that are said so."""
    valid = (labels != VOID)[..., None]
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool) & valid
    said = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=bool) & valid
    return jnp.concatenate([x.sum(axis=(1, 2), dtype=jnp.float32) for x in (true & said, true, said)], axis=-1)


def _divided(part: Any, whole: Any) -> Any:
    """NaN where the whole is nothing."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), jnp.nan)


def intersections_over_unions(means: Any) -> Any:
    """IoU of each class, [..., 3 K] to [..., K]; NaN where no pixel is of it or said to be."""
    both, true, said = jnp.split(jnp.asarray(means), 3, axis=-1)
    return _divided(both, true + said - both)


def _accuracy(means: Any) -> Any:
    both, true, _ = jnp.split(jnp.asarray(means), 3, axis=-1)
    return _divided(both.sum(axis=-1), true.sum(axis=-1))


def _mean_iou(means: Any) -> Any:
    return jnp.nanmean(intersections_over_unions(means), axis=-1)


def _mean_dice(means: Any) -> Any:
    both, true, said = jnp.split(jnp.asarray(means), 3, axis=-1)
    return jnp.nanmean(_divided(2 * both, true + said), axis=-1)


def _mean_accuracy(means: Any) -> Any:
    both, true, _ = jnp.split(jnp.asarray(means), 3, axis=-1)
    return jnp.nanmean(_divided(both, true), axis=-1)


def _iou_of(means: Any, *, place: int) -> Any:
    return intersections_over_unions(means)[..., place]


RECORDED = ("pixel_accuracy", "mean_iou", "mean_dice")


def metrics_for(class_names: Sequence[str]) -> tuple[Metric, ...]:
    """All that can be measured of these classes, but the loss; means are over classes that occur, or are said to."""
    of_counts = partial(Metric, of_examples=counts, higher_is_better=True, size=3 * len(class_names))
    return (
        of_counts("pixel_accuracy", finish=_accuracy),
        of_counts("mean_iou", finish=_mean_iou),
        of_counts("mean_dice", finish=_mean_dice),
        of_counts("mean_accuracy", finish=_mean_accuracy),
        *(of_counts(name, finish=partial(_iou_of, place=place)) for place, name in enumerate(iou_names(class_names))),
    )


def iou_names(class_names: Sequence[str]) -> list[str]:
    """Of the metric of each class, `iou_road`: letters, digits and underscores, each name once."""
    names: list[str] = []
    for place, each in enumerate(class_names):
        name = f"iou_{re.sub(r'[^0-9A-Za-z]+', '_', each).strip('_') or place}"
        names.append(name if name not in names else f"{name}_{place}")
    return names
