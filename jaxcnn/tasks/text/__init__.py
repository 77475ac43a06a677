"""Text classification: a text's words, and the class that it is of. docs/text.md is the user's page."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.config import Config, LossConfig, TextConfig
from jaxcnn.config.choices import LOSSES
from jaxcnn.data.records import Source
from jaxcnn.data.splits import labels_of
from jaxcnn.data.vocabulary import Vocabulary
from jaxcnn.errors import UserError
from jaxcnn.layers.words import uniform
from jaxcnn.tasks.classification.answers import class_answers, class_columns
from jaxcnn.tasks.classification.losses import class_weights, make_loss
from jaxcnn.tasks.classification.metrics import metrics_for
from jaxcnn.tasks.task import Batch, Finished, Losses, Task, TaskKind
from jaxcnn.tasks.text.source import TextSource, open_source, read_new, vocabulary_of
from jaxcnn.tasks.text.vectors import Vectors, read_vectors

EMBEDDING_SIZE = 128  # numbers of a word's vector, unless the config or a file of vectors says


def make_task(
    config: Config,
    source: TextSource,
    *,
    resident: bool,
    device_batch: int,
    progress: Callable[..., None] | None = None,
) -> Task:
    """The task of telling a text's class from its words. Raises UserError where loss or vectors do not suit it."""
    del resident, device_batch
    vectors = None if config.text.embeddings is None else _vectors(config.text, source.vocabulary, progress)
    weights = class_weights(config.loss, lambda: labels_of(source.splits["train"], progress), len(source.class_names))
    return _make_task(
        config, source.class_names, source.vocabulary, source.coverage.length, vectors=vectors, weights=weights
    )


def _vectors(options: TextConfig, vocabulary: Vocabulary, progress: Callable[..., None] | None) -> Vectors:
    """Those that the config names; a line says how many of the vocabulary's words have one."""
    vectors = read_vectors(str(options.embeddings), vocabulary)
    if options.embedding_size not in (None, vectors.size):
        raise UserError(
            f"text.embedding_size={options.embedding_size}, and the vectors of {options.embeddings} have "
            f"{vectors.size} numbers; set it to none"
        )
    if progress is not None:
        found, count = int(vectors.found.sum()), len(vocabulary.entries)
        progress(
            f"{options.embeddings}: {vectors.num_words:,} vectors of {vectors.size} numbers, for {found:,} of the "
            f"vocabulary's {count:,} words, {vectors.share:.1%}", 0, 0,
        )  # fmt: skip
    return vectors


def _make_task(
    config: Config,
    names: tuple[str, ...],
    vocabulary: Vocabulary,
    length: int,
    *,
    data: dict[str, Any] | None = None,
    vectors: Vectors | None = None,
    weights: np.ndarray | None = None,
) -> Task:
    """The same from what a run's folder says, `data`, or from the vectors that a run begins with, if any."""
    loss = LOSSES.get(config.loss.name)
    if loss is not None and "classes" not in loss.of:
        usable = [name for name, each in LOSSES.items() if "classes" in each.of]
        raise UserError(
            f"loss.name={config.loss.name} is for {' and '.join(loss.of)}, and a text is of a class; set loss.name="
            f"{usable[0]}, or one of: {', '.join(usable[1:])}"
        )
    measured = {} if vectors is None else {"vectors": {"size": vectors.size, "found": round(vectors.share, 6)}}
    size = (data or measured).get("vectors", {}).get("size") or config.text.embedding_size or EMBEDDING_SIZE
    metrics = metrics_for(len(names))
    return Task(
        learns=f"{len(names)} classes",
        example=jax.ShapeDtypeStruct((length,), jnp.int32),
        model={
            "num_classes": len(names),
            "vocabulary_size": len(vocabulary),
            "embedding_size": size,
            "channels": config.text.channels,
            "embedding_init": uniform if vectors is None else vectors.init,
        },
        facts=lambda _: measured,
        prepare=lambda _: _prepare,
        losses=partial(_losses, weights=weights),
        metrics=metrics,
        recorded=tuple(metric.name for metric in metrics),
        best_metric="accuracy",
        examples="texts",
    )


def _prepare(key: Any, keys: Any, batch: Batch) -> tuple[jax.Array, Any]:
    return batch["tokens"], batch.get("label")  # none: to be predicted


def _losses(loss: LossConfig, *, weights: np.ndarray | None) -> Losses:
    return Losses(train=make_loss(loss, weights), evaluate=make_loss(loss))


# ---- a run that exists


def _open_again(config: Config, data: dict[str, Any], **options: Any) -> Source:
    return open_source(config, vocabulary=vocabulary_of(data.get("vocabulary")), **options)


def _finish(config: Config, data: dict[str, Any]) -> Finished:
    names, vocabulary = tuple(data["class_names"]), vocabulary_of(data.get("vocabulary"))
    return Finished(
        task=_make_task(config, names, vocabulary, config.text.max_length, data=data),
        read=partial(read_new, vocabulary=vocabulary, options=config.text),
        answers=partial(class_answers, names),
        compared=partial(class_columns, names),
        class_names=names,
    )


TEXT = TaskKind(make_task, open_source, open_again=_open_again, finish=_finish)
