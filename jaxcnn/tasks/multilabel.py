"""Multi-label classification: an image, and all the labels that it has; each by a sigmoid of its own.

Any source of classes serves: the name of a class is a set of labels, `beach|sea`, and `-` is the set of none.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import data as data_lib
from jaxcnn.augment import average_views, check_augment
from jaxcnn.config import Config, LossConfig
from jaxcnn.config.choices import LOSSES, choose
from jaxcnn.data import Source, Split
from jaxcnn.data.given import each_image, prepared
from jaxcnn.data.records import LabelSets
from jaxcnn.errors import UserError, nearest
from jaxcnn.tasks.classification import channel_facts, make_prepare
from jaxcnn.tasks.metric import Metric
from jaxcnn.tasks.task import Calibrated, Finished, Losses, Task, TaskKind

NO_LABEL = "-"
PRECISION_BINS = 100  # of a label's probability, of equal width: average precision is taken over these steps
AHEAD = 64  # images that predict decodes before they are asked for


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Mean over labels of the cross-entropy of each label's sigmoid, [B]."""
    return optax.losses.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


# ---- the data


def open_source(config: Config, **options: Any) -> Source:
    """A source of label sets: its `class_names` are the labels. Raises UserError where a label is not in train."""
    if config.data.classes:
        raise UserError(
            "data.classes chooses classes, and an image of task=multilabel has several labels; leave it out"
        )
    source = data_lib.open_source(config.data, **options, partial=True)
    sets = [_labels_in(name, config.multilabel.separator) for name in source.class_names]
    splits = {name: np.unique(data_lib.labels_of(split)) for name, split in source.splits.items()}
    splits = {name: numbers[numbers >= 0] for name, numbers in splits.items()}
    of_train = sorted({label for number in splits["train"] for label in sets[number]})
    for name, numbers in splits.items():
        for label in sorted({label for number in numbers for label in sets[number]} - set(of_train)):
            raise UserError(
                f"{source.name}: {name} has the label {label!r}, which train has not; {nearest(label, of_train)}"
            )
    if not of_train:
        raise UserError(f"{source.name}: no image of train has a label, so there is nothing to learn")
    table = np.array([[label in labels for label in of_train] for labels in sets], np.float32)
    return replace(
        source,
        class_names=tuple(of_train),
        splits={name: Split(LabelSets(split.records, table), split.indices) for name, split in source.splits.items()},
        class_counts=None,
    )


def _labels_in(name: str, separator: str) -> frozenset[str]:
    if name == NO_LABEL:
        return frozenset()
    labels = [label.strip() for label in name.split(separator)] if separator else [name]
    if not all(labels):
        raise UserError(f"{name!r} has an empty label; write beach{separator}sea, and {NO_LABEL} where there is none")
    return frozenset(labels)


# ---- the task


def make_task(config: Config, source: Source, *, resident: bool, device_batch: int, **_: Any) -> Task:
    """The task of telling which labels an image has. Raises UserError where images or labels do not suit the config."""
    check_augment(config.augment, source.image_shape, device_batch=device_batch)
    facts = partial(channel_facts, config=config, source=source)
    return _make_task(config, source.class_names, source.image_shape, facts, resident=resident)


def _make_task(
    config: Config, labels: tuple[str, ...], image_shape: Any, facts: Callable[..., Any], *, resident: bool
) -> Task:
    loss = LOSSES[config.loss.name]
    if "labels" not in loss.of:
        usable = [name for name, each in LOSSES.items() if "labels" in each.of]
        raise UserError(
            f"loss.name={config.loss.name} is for {' and '.join(loss.of)}, and task=multilabel has sets of labels; "
            f"set loss.name={', '.join(usable)}"
        )
    if config.loss.class_weights != "none" or config.loss.class_weight_values:
        raise UserError("loss.class_weights and loss.class_weight_values weigh classes, of which an image has one; "
                        "leave them out for task=multilabel")  # fmt: skip
    thresholds = _thresholds(config, labels)
    metrics = metrics_for(thresholds)
    return Task(
        learns=f"{len(labels)} labels",
        example=jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32),
        model={"num_classes": len(labels), "image_size": min(image_shape[:2])},
        facts=facts,
        prepare=partial(
            make_prepare, config=config, image_shape=tuple(image_shape), num_classes=len(labels), resident=resident
        ),
        losses=_losses,
        metrics=metrics,
        recorded=tuple(metric.name for metric in metrics),
        best_metric="mean_average_precision",
        apply=partial(average_views, views=config.eval_tta),
        examples="images",
    )


def _thresholds(config: Config, labels: tuple[str, ...]) -> np.ndarray:
    given = config.multilabel.thresholds
    if len(given) not in (1, len(labels)):
        raise UserError(
            f"multilabel.thresholds has {len(given)} values, and there are {len(labels)} labels; give one, or one a "
            f"label, in the order {', '.join(labels[:5])}" + (", …" if len(labels) > 5 else "")
        )
    return np.broadcast_to(np.asarray(given, np.float32), len(labels))


def _losses(config: LossConfig) -> Losses:
    loss: Callable[..., jax.Array] = choose("loss.name", config.name).load()

    def per_example(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return loss(logits.astype(jnp.float32), targets, config)

    return Losses(train=per_example, evaluate=per_example)


# ---- metrics


def metrics_for(thresholds: np.ndarray) -> tuple[Metric, ...]:
    """Metrics of logits and targets [B, K]; a label is there from its threshold on, a target from a half (mixup)."""
    size = 2 * PRECISION_BINS * len(thresholds)
    return (
        *metrics_by_thresholds(thresholds),
        Metric("mean_average_precision", _in_bins, True, size=size, finish=_mean_average_precision),
    )


def metrics_by_thresholds(thresholds: np.ndarray) -> tuple[Metric, ...]:
    """Those of `metrics_for` that the thresholds, float32 [K], change."""
    size = len(thresholds)

    def said(logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits) >= thresholds

    def is_exact(logits: jax.Array, targets: jax.Array, losses: jax.Array) -> jax.Array:
        return (said(logits) == (targets >= 0.5)).all(axis=-1).astype(jnp.float32)

    def counts(logits: jax.Array, targets: jax.Array, losses: jax.Array) -> jax.Array:
        true, predicted = targets >= 0.5, said(logits)
        return jnp.concatenate([true & predicted, true, predicted], axis=-1).astype(jnp.float32)

    return (
        Metric("exact_match", is_exact, higher_is_better=True),
        Metric("micro_f1", counts, higher_is_better=True, size=3 * size, finish=_micro_f1),
        Metric("macro_f1", counts, higher_is_better=True, size=3 * size, finish=_macro_f1),
    )


def _in_bins(logits: jax.Array, targets: jax.Array, losses: jax.Array) -> jax.Array:
    place = jnp.clip((jax.nn.sigmoid(logits) * PRECISION_BINS).astype(jnp.int32), 0, PRECISION_BINS - 1)
    true = (targets >= 0.5).astype(jnp.float32)[..., None]
    bins = jax.nn.one_hot(place, PRECISION_BINS)
    return jnp.concatenate([bins * true, bins], axis=-1).reshape(len(logits), -1)


def _f1(right: Any, true: Any, predicted: Any) -> Any:
    """F1 of shares or counts; 0 where a label neither is nor is said, as scikit-learn's zero_division=0."""
    return 2 * right / jnp.maximum(true + predicted, 1e-12)


def _micro_f1(means: Any) -> Any:
    right, true, predicted = (part.sum(axis=-1) for part in jnp.split(means, 3, axis=-1))
    return _f1(right, true, predicted)


def _macro_f1(means: Any) -> Any:
    return _f1(*jnp.split(means, 3, axis=-1)).mean(axis=-1)


def _mean_average_precision(means: Any) -> Any:
    """The mean of average precisions over labels that some example has; probabilities of one bin are ties."""
    bins = means.reshape(*means.shape[:-1], -1, 2, PRECISION_BINS)[..., ::-1]  # the highest probabilities first
    true, every = bins[..., 0, :], bins[..., 1, :]
    found, drawn = jnp.cumsum(true, axis=-1), jnp.cumsum(every, axis=-1)
    total = found[..., -1]
    precisions = (true * found / jnp.maximum(drawn, 1e-12)).sum(axis=-1) / jnp.maximum(total, 1e-12)
    return precisions.sum(axis=-1) / jnp.maximum((total > 0).sum(axis=-1), 1)


# ---- a finished run


def _finish(config: Config, data: dict[str, Any]) -> Finished:
    labels, image_shape = tuple(data["class_names"]), tuple(data["image_shape"])
    task = _make_task(config, labels, image_shape, lambda _: data, resident=True)
    thresholds = _thresholds(config, labels)
    return Finished(
        task,
        partial(_read, image_shape=image_shape),
        partial(_answers, labels, thresholds),
        partial(_columns, labels, thresholds),
        partial(_calibrate, labels, thresholds),
    )


def _read(path: str, *, image_shape: Any) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | ValueError]]:
    """The images of a file or of a folder."""
    for name, image in prepared(each_image(path), image_shape=image_shape, ahead=AHEAD):
        yield {"image": name}, image if isinstance(image, ValueError) else {"image": image}


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.sigmoid(jnp.asarray(logits, jnp.float32)))


def _named(labels: tuple[str, ...], chosen: np.ndarray) -> str:
    return "|".join(labels[number] for number in np.flatnonzero(chosen)) or NO_LABEL


def _answers(labels: tuple[str, ...], thresholds: np.ndarray, logits: np.ndarray, top_k: int) -> list[dict[str, Any]]:
    """`labels`, those above their threshold, and the probability of each label, `p_sea`, …"""
    return [
        {"labels": _named(labels, row >= thresholds)}
        | {f"p_{label}": round(float(p), 6) for label, p in zip(labels, row, strict=True)}
        for row in _probabilities(logits)
    ]


def _columns(
    labels: tuple[str, ...], thresholds: np.ndarray, logits: np.ndarray, targets: np.ndarray
) -> dict[str, list[Any]]:
    p = _probabilities(logits)
    said = p >= thresholds
    return {
        "labels": [_named(labels, row >= 0.5) for row in targets],
        "predicted": [_named(labels, row) for row in said],
        "exact": (said == (targets >= 0.5)).all(axis=1).astype(int).tolist(),
        **{f"p_{label}": [f"{value:.7g}" for value in p[:, number]] for number, label in enumerate(labels)},
    }


def _calibrate(labels: tuple[str, ...], given: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> Calibrated:
    true = targets >= 0.5
    fitted = fit_thresholds(_probabilities(logits), true, given)
    kept = [labels[number] for number in np.flatnonzero(~true.any(axis=0))]
    return Calibrated(
        what="thresholds",
        facts={
            "thresholds": [float(str(each)) for each in fitted],  # the shortest text that float32 has
            "given_thresholds": [float(str(each)) for each in given],
            "kept_as_given": kept,
        },
        metrics=metrics_by_thresholds(fitted),
        notes=(f"no image of validation has {', '.join(kept)}: kept as given",) if kept else (),
    )


def fit_thresholds(probabilities: np.ndarray, targets: np.ndarray, given: np.ndarray) -> np.ndarray:
    """For each label the threshold with the highest F1, float32 [K]; of equals the lowest.

    It lies half way between the least probability that it lets through and the next lower one.

    Args:
      probabilities: float32 [n, K].
      targets: bool [n, K]; a label that no example has keeps its threshold of `given`.
      given: float32 [K].
    """
    from sklearn.metrics import precision_recall_curve  # takes a second

    thresholds = np.array(given, np.float32)
    for label in np.flatnonzero(targets.any(axis=0)):
        precision, recall, least = precision_recall_curve(targets[:, label], probabilities[:, label])
        best = int(_f1(precision * recall, precision, recall)[: len(least)].argmax())
        below = least[best - 1] if best else np.float32(0)
        half_way = np.float32((float(below) + float(least[best])) / 2)
        thresholds[label] = half_way if half_way > below else least[best]
    return thresholds


MULTILABEL = TaskKind(make_task, open_source, finish=_finish)
