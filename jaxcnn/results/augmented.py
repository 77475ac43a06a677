"""Training images as the model meets them: augmented, with normalising undone."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.decoding import fit_image
from jaxcnn.data.records import Split
from jaxcnn.training.build import Run
from jaxcnn.training.feed import Feed
from jaxcnn.training.step import example_keys


def pixels_of(inputs: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    """Levels uint8 [..., C] of normalised images [..., C]; `facts` have the `mean` and `std` a channel."""
    mean, std = np.array(facts["mean"], np.float32), np.array(facts["std"], np.float32)
    return np.clip(np.round((np.asarray(inputs, np.float32) * std + mean) * 255), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class AugmentedImages:
    """Training images, and what augmentation makes of them, with normalising undone."""

    originals: np.ndarray  # uint8 [N, H, W, C], of the run's size
    versions: np.ndarray  # uint8 [N, versions, H, W, C]
    labels: np.ndarray  # int32 [N]


def augmented_images(run: Run, feed: Feed, *, num_images: int, num_versions: int) -> AugmentedImages:
    """The first images of the first batch. Version 0 is what step 0 trains on, the same draws; version k the same
    images as the k-th epoch of a run on that batch alone would draw them.
    """
    train, size = run.source.splits["train"], run.config.batch_size
    first = feed.batch(0)
    alone = Split(train.records, train.indices[first["index"]])
    source = dataclasses.replace(run.source, splits={**run.source.splits, "train": alone})
    feed_alone = type(feed)(run.config, source, run.parallel, lambda *_: None)
    key, prepare = jax.random.key(run.config.seed), jax.jit(run.learning.prepare)
    versions = []
    batch: Any
    for version in range(num_versions):
        if version == 0:
            batch, order = first, np.arange(size)
        else:
            batch = feed_alone.batch(version)
            order = np.argsort(batch["index"])  # back to the order of the first batch
            batch = {**batch, "index": first["index"][batch["index"]]}
        images, _ = prepare(key, example_keys(key, version, jnp.arange(size)), batch)
        versions.append(pixels_of(np.asarray(images)[order[:num_images]], run.facts))
    originals = [
        fit_image(example.pop("image"), source.image_shape)
        for example in alone.records.read(alone.indices[:num_images])
    ]
    return AugmentedImages(np.stack(originals), np.stack(versions, axis=1), np.asarray(first["label"][:num_images]))
