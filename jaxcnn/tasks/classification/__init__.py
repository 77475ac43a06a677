"""Classification: an image, and the one class, or the distribution over the classes, that it is of."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn import data as data_lib
from jaxcnn.augment import average_views, check_augment, make_augment, make_normalise, mirrored
from jaxcnn.config import Config
from jaxcnn.data import Source
from jaxcnn.errors import UserError
from jaxcnn.tasks.classification.distillation import taught
from jaxcnn.tasks.classification.losses import class_weights, make_loss
from jaxcnn.tasks.classification.metrics import TOP5_ACCURACY, metrics_for
from jaxcnn.tasks.task import Batch, Losses, Prepare, Task, TaskKind, open_images
from jaxcnn.transfer import imagenet
from jaxcnn.transfer.state_dicts import SUFFIXES


def make_task(
    config: Config, source: Source, *, resident: bool, device_batch: int, progress: Callable[..., None] | None = None
) -> Task:
    """The task of telling a source's classes apart. Raises UserError where images or classes do not suit the config.

    Args:
      config: validated.
      source: of images and labels.
      resident: whether the images live on the device; what is done at decode otherwise is then done there.
      device_batch: examples of a batch on each device.
      progress: told while labels are read.
    """
    num_classes, image_shape = len(source.class_names), source.image_shape
    check_augment(config.augment, image_shape, device_batch=device_batch)
    weights = class_weights(config.loss, lambda: data_lib.labels_of(source.splits["train"], progress), num_classes)
    metrics = metrics_for(num_classes)
    task = Task(
        learns=f"{num_classes} classes",
        example=jax.ShapeDtypeStruct(image_shape, jnp.float32),
        model={"num_classes": num_classes, "image_size": min(image_shape[:2])},
        facts=partial(channel_facts, config=config, source=source),
        prepare=partial(
            make_prepare, config=config, image_shape=image_shape, num_classes=num_classes, resident=resident
        ),
        losses=lambda loss: Losses(train=make_loss(loss, weights), evaluate=make_loss(loss)),
        metrics=metrics,
        recorded=("accuracy", *(["top5_accuracy"] if TOP5_ACCURACY in metrics else [])),
        best_metric="accuracy",
        apply=partial(average_views, views=config.eval_tta),
        examples="images",
    )
    if config.distill.teacher is None:
        return task
    return taught(task, config, class_names=source.class_names, image_shape=image_shape, resident=resident)


def channel_facts(
    train_arrays: Callable[[], dict[str, np.ndarray]] | None,
    *,
    config: Config,
    source: Source,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """`mean` and `std` a channel, in 0..1: as the config has them, else measured on train.

    `image_shape`: of the run's images, where they are a part of examples that the source knows no shape of.
    """
    shape = image_shape or source.image_shape
    given = config.data.mean, config.data.std
    if None not in given:
        measured: Any = ((), ())
    elif train_arrays is not None:
        measured = data_lib.channel_statistics(train_arrays()["image"])
    else:
        measured = data_lib.measure_statistics(
            source.splits["train"], image_shape=shape, skip_damaged=config.data.damaged == "skip"
        )
    mean, std = (tuple(map(float, own or of_train)) for own, of_train in zip(given, measured, strict=True))
    channels = shape[-1]
    if not len(mean) == len(std) == channels:
        raise UserError(f"data.mean and data.std need {channels} values each, one a channel; got {mean} and {std}")
    return {"mean": mean, "std": std}


def make_prepare(
    facts: dict[str, Any], *, config: Config, image_shape: tuple[int, int, int], num_classes: int, resident: bool
) -> Prepare:
    """Images augmented and normalised, with their labels; `facts` are `channel_facts`'."""
    normalise = make_normalise(facts["mean"], facts["std"])
    augment = make_augment(
        config.augment,
        mean=facts["mean"],
        std=facts["std"],
        image_shape=image_shape,
        num_classes=num_classes,
        cropped_at_decode=not resident,
    )

    def prepare(key: Any, keys: Any, batch: Batch) -> tuple[jax.Array, Any]:
        if keys is None:
            return normalise(batch["image"]), batch.get("label")
        return augment(keys, batch["image"], batch["label"], mirrored(key, batch))

    return prepare


def _stand_in_source(config: Config) -> Source | None:
    return data_lib.stand_in_source(config.data)


def _open_source(config: Config, **options: Any) -> Source:
    """Images and their classes; of a head of ImageNet's 1,000 classes that is kept, under ImageNet's names."""
    source = open_images(config, **options)
    theirs = config.init_from is not None and (":" in config.init_from or config.init_from.endswith(SUFFIXES))
    if not theirs or config.init_head == "new" or len(source.class_names) != len(imagenet.class_names()):
        return source
    names = imagenet.names_of(source.class_names)
    counts = source.class_counts and {
        split: dict(zip(names, counts.values(), strict=True)) for split, counts in source.class_counts.items()
    }
    return replace(source, class_names=names, class_counts=counts)


CLASSIFICATION = TaskKind(make_task, open_source=_open_source, stand_in_source=_stand_in_source)
