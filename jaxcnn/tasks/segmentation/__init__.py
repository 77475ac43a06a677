"""Segmentation: an image, and the class of each of its pixels. docs/segmentation.md is the user's page."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.augment import check_augment, make_augment_masks, make_normalise, mirrored
from jaxcnn.config import AugmentConfig, Config
from jaxcnn.config.choices import LOSSES
from jaxcnn.data.given import each_image, prepared
from jaxcnn.data.records import ImageShape
from jaxcnn.errors import UserError
from jaxcnn.tasks.classification import channel_facts
from jaxcnn.tasks.segmentation.classes import Classes
from jaxcnn.tasks.segmentation.losses import VOID, make_loss, weights_of
from jaxcnn.tasks.segmentation.metrics import RECORDED, counts, intersections_over_unions, iou_names, metrics_for
from jaxcnn.tasks.segmentation.records import fit_whole
from jaxcnn.tasks.segmentation.source import MaskSource, open_source
from jaxcnn.tasks.task import Batch, Finished, Losses, Prepare, Task, TaskKind

AHEAD = 64  # images that predict decodes before they are asked for


def make_task(config: Config, source: MaskSource, *, device_batch: int, **_: Any) -> Task:
    """The task of telling a pixel's class. Raises UserError where images, masks or loss do not suit the config."""
    _check_augment(config.augment, source.shape, device_batch)
    if config.loss.name in LOSSES and "pixels" not in LOSSES[config.loss.name].of:
        usable = [name for name, each in LOSSES.items() if "pixels" in each.of]
        raise UserError(
            f"loss.name={config.loss.name} is for {' and '.join(LOSSES[config.loss.name].of)}, and masks are of "
            f"pixels; set loss.name={usable[0]}, or one of: {', '.join(usable[1:])}"
        )
    weights = weights_of(config.loss, lambda: source.pixels, len(source.classes))
    facts = partial(channel_facts, config=config, source=source, image_shape=source.shape)
    return _make_task(config, source.classes, source.shape, facts, weights)


def _check_augment(augment: AugmentConfig, shape: ImageShape, device_batch: int) -> None:
    for name, is_asked, off in (
        ("randaugment_ops", augment.randaugment_ops > 0, 0),
        ("trivial_augment", augment.trivial_augment, "false"),
        ("mixup", augment.mixup > 0, 0),
        ("cutmix", augment.cutmix > 0, 0),
    ):
        if is_asked:
            raise UserError(f"augment.{name} has no meaning for masks here; set it to {off}")
    check_augment(augment, shape, device_batch=device_batch)


def _make_task(
    config: Config,
    classes: Classes,
    shape: ImageShape,
    facts: Callable[..., dict[str, Any]],
    weights: np.ndarray | None = None,
) -> Task:
    if config.eval_tta not in ("none", "flip"):
        raise UserError(f"eval_tta={config.eval_tta} is for classes of images; for masks set it to none or flip")
    return Task(
        learns=f"{len(classes)} classes",
        example=jax.ShapeDtypeStruct(shape, jnp.float32),
        model={"num_classes": len(classes), "image_size": min(shape[:2]), "of_pixels": True},
        facts=facts,
        prepare=partial(_make_prepare, augment=config.augment, shape=shape),
        losses=lambda loss: Losses(train=make_loss(loss, weights), evaluate=make_loss(loss)),
        metrics=metrics_for(classes.names),
        recorded=RECORDED,
        best_metric="mean_iou",
        apply=partial(average_mirrored, flip=config.eval_tta == "flip"),
        examples="images",
    )


def average_mirrored(model: Callable[[Any], Any], images: Any, *, flip: bool) -> Any:
    """Logits [B, H, W, K] of images; with `flip` the average with those of the mirrored ones, mirrored back."""
    logits = model(images)
    return 0.5 * logits + 0.5 * model(images[:, :, ::-1])[:, :, ::-1] if flip else logits


def _make_prepare(facts: dict[str, Any], *, augment: AugmentConfig, shape: ImageShape) -> Prepare:
    """Images augmented and normalised, and the class of each pixel, moved alike."""
    normalise = make_normalise(facts["mean"], facts["std"])
    move = make_augment_masks(augment, mean=facts["mean"], std=facts["std"], image_shape=shape, void=VOID)

    def prepare(key: Any, keys: Any, batch: Batch) -> tuple[jax.Array, Any]:
        if keys is not None:
            return move(keys, batch["image"], batch["label"], mirrored(key, batch))
        return normalise(batch["image"]), batch.get("label")  # none: to be predicted

    return prepare


# ---- a finished run


def _finish(config: Config, data: dict[str, Any]) -> Finished:
    classes, shape = Classes.from_plain(data.get("classes")), shape_of(data)
    return Finished(
        _make_task(config, classes, shape, lambda _: data),
        partial(_read, shape=shape),
        partial(_answers, classes),
        partial(_columns, classes),
        kept=_kept,
    )


def shape_of(data: dict[str, Any]) -> ImageShape:
    """Of a run's images, by `data` of its config.json. Raises UserError where it is damaged."""
    shape = data.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(each, int) and each > 0 for each in shape)):
        raise UserError("config.json says nothing of the shape of the run's images; it is damaged")
    return shape[0], shape[1], shape[2]


def _kept(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is kept of a batch's logits: counts of pixels; whole maps of a set would fill the memory."""
    return counts(logits, labels), jnp.zeros(len(logits))


def _read(path: str, *, shape: ImageShape) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | ValueError]]:
    """The images of a file or of a folder, each made to fit as a run's are."""
    for name, image in read_whole(path, shape):
        fitted = image if isinstance(image, ValueError) else {"image": fit_whole(image, shape[:2])}
        yield {"image": name}, fitted


def read_whole(path: str, shape: ImageShape) -> Iterator[tuple[str, np.ndarray | ValueError]]:
    """Images of a file or of a folder as large as they are, uint8 [h, w, C], or what is wrong with one."""
    return prepared(each_image(path), image_shape=shape, ahead=AHEAD, whole=True)


def _answers(classes: Classes, logits: np.ndarray, top_k: int) -> list[dict[str, Any]]:
    """The share of pixels of each class, `sky` …"""
    shares = [np.bincount(each.argmax(axis=-1).ravel(), minlength=len(classes)) / each[..., 0].size for each in logits]
    return [dict(zip(classes.names, map(float, each), strict=True)) for each in shares]


def _columns(classes: Classes, pixels: np.ndarray, nothing: Any) -> dict[str, list[Any]]:
    """Of each image: how many pixels count, how many are right, its mean IoU, and the IoU of each class there."""
    both, true, _ = np.split(pixels, 3, axis=1)
    found = np.asarray(intersections_over_unions(pixels))
    shown = lambda value: "" if np.isnan(value) else f"{value:.6g}"
    any_class = ~np.isnan(found).all(axis=1)
    mean = np.where(any_class, np.nansum(found, axis=1) / np.maximum((~np.isnan(found)).sum(axis=1), 1), np.nan)
    return {
        "pixels": true.sum(axis=1).astype(int).tolist(),
        "right": both.sum(axis=1).astype(int).tolist(),
        "mean_iou": list(map(shown, mean)),
        **{name: list(map(shown, found[:, place])) for place, name in enumerate(iou_names(classes.names))},
    }


SEGMENTATION = TaskKind(make_task, open_source, finish=_finish)
