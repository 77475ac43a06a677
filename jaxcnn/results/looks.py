"""Looks at a network and at what it does with a split's images, as arrays: features, filters, maps.

report.html and TensorBoard's pictures show them. Nothing is drawn here, and its scores are measure.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.augment import make_normalise
from jaxcnn.data import Split, read_or_error
from jaxcnn.data.decoding import fit_image
from jaxcnn.data.records import classes_of
from jaxcnn.data.sheet import spread
from jaxcnn.errors import RunError, UserError
from jaxcnn.layers.features import FEATURES, feature_pyramid
from jaxcnn.models.make import params_in_order
from jaxcnn.results.measure import Evaluation, Predictions
from jaxcnn.results.trained import TrainedModel
from jaxcnn.training.build import Run
from jaxcnn.training.evaluation import collect
from jaxcnn.training.feed import Feed

EMBEDDED = 2000  # examples at most: t-SNE of 2,000 takes seconds, of 10,000 a minute
FEWEST_EMBEDDED = 5
MOST_FILTERS = 96
MAPS_A_STAGE = 16


def images_of(split: Split, places: Sequence[int] | np.ndarray, *, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Those examples of a split as a network sees them, uint8 [n, H, W, C]. RunError where one is damaged."""
    images = np.empty((len(places), *image_shape), np.uint8)
    for number, example in enumerate(read_or_error(split.records, split.indices[np.asarray(places)])):
        if isinstance(example, RunError):
            raise example
        images[number] = fit_image(example.pop("image"), image_shape)
    return images


def tapped_shapes(model: TrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of what the model shows of its inside for one image, by name: none where it taps nothing."""
    images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)

    taps = jax.eval_shape(lambda variables, x: feature_pyramid(model.module, variables, x), model.variables, images)
    return {name: tap.shape for name, tap in taps.items()}


@dataclass(frozen=True)
class PredictionsWithFeatures(Predictions):
    """Predictions, and what the head saw."""

    features: np.ndarray | None  # float32 [n, channels], of the tap `pooled`; none: the model has none


def predict_with_features(run: Run, feed: Feed, split: str, variables: dict[str, Any]) -> PredictionsWithFeatures:
    """Predictions of a run's model for a whole split, of the images as they are, in one pass."""

    def logits_and_features(variables: Any, batch: Any) -> dict[str, jax.Array]:
        inputs, _ = run.learning.prepare(None, None, batch)
        logits, taps = run.learning.model.apply(variables, inputs, train=False, mutable=[FEATURES])
        pooled = {"pooled": taps[FEATURES]["pooled"]} if "pooled" in taps.get(FEATURES, {}) else {}
        return {name: array.astype(jnp.float32) for name, array in ({"logits": logits} | pooled).items()}

    (outputs,), targets, places = collect(
        [(logits_and_features, variables)],
        feed.evaluation(split, run.calls.eval_batch_size),
        targets=lambda batch: batch["label"],
        fetch=feed.fetch,
        parallel=run.parallel,
        num_examples=lambda: feed.num_counted(split),
    )
    return PredictionsWithFeatures(
        places=places, labels=classes_of(targets), logits=outputs["logits"], features=outputs.get("pooled")
    )


@dataclass(frozen=True)
class Embedding:
    """Pooled features in two dimensions."""

    chosen: np.ndarray  # int [n], which of the evaluation's examples
    pca: np.ndarray  # float [n, 2]
    explained: float  # share of the variance in the two
    tsne: np.ndarray  # float [n, 2]
    num_features: int
    perplexity: float


def embed(model: TrainedModel, split: Split, evaluation: Evaluation) -> Embedding:
    """PCA and t-SNE (scikit-learn's) of the features that the head sees. Raises UserError for too few examples."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if "pooled" not in tapped_shapes(model):
        raise UserError(f"{model.config.model.name} shows no pooled features (layers/features.py)")
    chosen = spread(len(evaluation.labels), EMBEDDED)
    if len(chosen) < FEWEST_EMBEDDED:
        raise UserError(f"{len(chosen)} examples are too few to be laid out; it takes {FEWEST_EMBEDDED}")
    features = model.features(images_of(split, evaluation.places[chosen], image_shape=model.image_shape))
    if features.shape[1] < 2:
        raise UserError("the head sees a single feature, which has no plane")
    components = PCA(min(50, *features.shape), random_state=0).fit(features)
    reduced = components.transform(features)
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    with threadpool_limits(1):  # on a busy machine threads wait for each other longer than they work
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    explained = float(np.nan_to_num(components.explained_variance_ratio_[:2].sum()))
    return Embedding(chosen, reduced[:, :2], explained, tsne, features.shape[1], perplexity)


def heat_maps(model: TrainedModel, images: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Grad-CAM of each image for the class it was taken for, or none and the reason."""
    if images.shape[-1] not in (1, 3):
        return None, f"images have {images.shape[-1]} channels"
    if not tapped_shapes(model):
        return None, f"{model.config.model.name} shows nothing of its inside (layers/features.py)"
    try:
        return model.explain(images), ""
    except UserError as error:
        return None, str(error)


@dataclass(frozen=True)
class Filters:
    """A first layer's weights as pictures."""

    layer: str
    kind: str  # "convolution" or "dense layer"
    images: np.ndarray  # uint8 [n, height, width, 1 or 3], grey where a weight is 0
    total: int  # filters that the layer has


def first_filters(
    module: nn.Module,
    params: Any,
    image_shape: tuple[int, int, int],
    *,
    model_name: str,
    most: int = MOST_FILTERS,
) -> Filters:
    """Filters of the layer that meets the images, each scaled by its own largest weight. UserError: none is a picture.

    Args:
      module: the model.
      params: its parameters.
      image_shape: height, width, channels.
      model_name: for the error.
      most: so many are shown, spread evenly over all.
    """
    ordered = params_in_order(module, jax.ShapeDtypeStruct(image_shape, jnp.float32))
    height, width, channels = image_shape
    leaves = [
        ("/".join(str(part.key) for part in path), leaf.shape)
        for name in ordered
        for path, leaf in jax.tree_util.tree_flatten_with_path({name: ordered[name]})[0]
        if path[-1].key == "kernel"
    ]
    name, shape = next(((n, s) for n, s in leaves if len(s) == 4 or s[0] == height * width * channels), ("", ()))
    if not name:
        raise UserError(f"{model_name} has no first layer whose weights are pictures")
    kernel: Any = params
    for part in name.split("/"):
        kernel = kernel[part]
    kernel = np.asarray(kernel, np.float32)
    kernel = kernel if len(shape) == 4 else kernel.reshape(height, width, channels, -1)
    if max(kernel.shape[:2]) < 2:
        raise UserError(f"the first convolution, {name}, is 1x1: its weights make no picture")
    if kernel.shape[2] not in (1, 3):  # of many maps, or one group of them
        kernel = kernel.mean(axis=2, keepdims=True)
    chosen = np.moveaxis(kernel, -1, 0)[spread(kernel.shape[-1], most)]
    largest = np.abs(chosen).max(axis=(1, 2, 3), keepdims=True)
    levels = np.round(127.5 + 127.5 * (chosen / np.where(largest > 0, largest, 1)))
    kind = "convolution" if len(shape) == 4 else "dense layer"
    return Filters(name.removesuffix("/kernel"), kind, levels.astype(np.uint8), kernel.shape[-1])


@dataclass(frozen=True)
class Stage:
    """A stage's maps of one image."""

    name: str
    maps: np.ndarray  # float32 [n, height, width], each from 0 to 1: its lowest to its highest value
    channels: int  # that the stage has


def feature_maps(model: TrainedModel, image: np.ndarray) -> list[Stage]:
    """The channels of each stage that answer most to an image uint8 [H, W, C]. UserError where no stage has a map."""
    has_maps = [name for name, shape in tapped_shapes(model).items() if len(shape) == 4 and shape[1] * shape[2] > 1]
    if not has_maps:
        raise UserError(f"{model.config.model.name} shows no maps of an image's places")
    normalise = make_normalise(model.mean, model.std)
    call = jax.jit(lambda variables, images: feature_pyramid(model.module, variables, normalise(images)))
    taps = call(model.variables, jnp.asarray(image[None]))
    stages = []
    for name in has_maps:
        maps = np.moveaxis(np.asarray(taps[name][0], np.float32), -1, 0)
        order = np.argsort(-maps.mean(axis=(1, 2)), kind="stable")[:MAPS_A_STAGE]
        low, high = (pick(maps[order], axis=(1, 2), keepdims=True) for pick in (np.min, np.max))
        scaled = (maps[order] - low) / np.where(high > low, high - low, 1)
        stages.append(Stage(name, scaled, len(maps)))
    return stages
