"""What a trained network does with a split's images, as arrays: features, mistakes, filters, maps.

Nothing is drawn here, and its scores are measure.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.augment import make_normalise
from jaxcnn.data import Split, read_or_error
from jaxcnn.data.decoding import fit_image
from jaxcnn.errors import RunError, UserError
from jaxcnn.layers.features import FEATURES, feature_pyramid
from jaxcnn.report.files import spread
from jaxcnn.results.measure import Evaluation
from jaxcnn.results.trained import TrainedModel

EMBEDDED = 2000  # examples at most: t-SNE of 2,000 takes seconds, of 10,000 a minute
FEWEST_EMBEDDED = 5
MOST_FILTERS = 96
MAPS_A_STAGE = 16


def images_of(model: TrainedModel, split: Split, places: Sequence[int] | np.ndarray) -> np.ndarray:
    """Those examples of a split as the network sees them, uint8 [n, H, W, C]. RunError where one is damaged."""
    images = np.empty((len(places), *model.image_shape), np.uint8)
    for number, example in enumerate(read_or_error(split.records, split.indices[np.asarray(places)])):
        if isinstance(example, RunError):
            raise example
        images[number] = fit_image(example.pop("image"), model.image_shape)
    return images


def shown(model: TrainedModel) -> dict[str, tuple[int, ...]]:
    """The shapes of what the model shows of its inside for one image, by name: none where it taps nothing."""
    images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)

    def look(variables: Any, images: jax.Array) -> Any:
        return model.module.apply(variables, images, train=False, mutable=[FEATURES])[1].get(FEATURES, {})

    return {name: x.shape for name, x in jax.eval_shape(look, model.variables, images).items()}


def mistakes(evaluation: Evaluation, count: int) -> np.ndarray:
    """Numbers of the wrong predictions, the surest first; of equally sure ones the first."""
    wrong = np.flatnonzero(evaluation.logits.argmax(axis=1) != evaluation.labels)
    return wrong[np.argsort(-evaluation.sureness[wrong], kind="stable")[:count]]


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

    if "pooled" not in shown(model):
        raise UserError(f"{model.config.model.name} shows no pooled features (layers/features.py)")
    chosen = spread(len(evaluation.labels), EMBEDDED)
    if len(chosen) < FEWEST_EMBEDDED:
        raise UserError(f"{len(chosen)} examples are too few to be laid out; it takes {FEWEST_EMBEDDED}")
    features = model.features(images_of(model, split, evaluation.places[chosen]))
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
    """(Grad-CAM of each for the class it was taken for, or none; why none)."""
    if images.shape[-1] not in (1, 3):
        return None, f"images have {images.shape[-1]} channels"
    if not shown(model):
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


def first_filters(model: TrainedModel) -> Filters:
    """Of the layer that meets the images, each scaled by its own largest weight. UserError where none is a picture."""
    from jaxcnn.models.make import params_in_order

    ordered = params_in_order(model.module, jax.ShapeDtypeStruct(model.image_shape, jnp.float32))
    height, width, channels = model.image_shape
    leaves = [
        ("/".join(str(part.key) for part in path), leaf.shape)
        for name in ordered
        for path, leaf in jax.tree_util.tree_flatten_with_path({name: ordered[name]})[0]
        if path[-1].key == "kernel"
    ]
    name, shape = next(((n, s) for n, s in leaves if len(s) == 4 or s[0] == height * width * channels), ("", ()))
    if not name:
        raise UserError(f"{model.config.model.name} has no first layer whose weights are pictures")
    kernel: Any = model.variables["params"]
    for part in name.split("/"):
        kernel = kernel[part]
    kernel = np.asarray(kernel, np.float32)
    kernel = kernel if len(shape) == 4 else kernel.reshape(height, width, channels, -1)
    if max(kernel.shape[:2]) < 2:
        raise UserError(f"the first convolution, {name}, is 1x1: its weights make no picture")
    if kernel.shape[2] not in (1, 3):  # of many maps, or one group of them
        kernel = kernel.mean(axis=2, keepdims=True)
    shown = np.moveaxis(kernel, -1, 0)[spread(kernel.shape[-1], MOST_FILTERS)]
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    levels = np.round(127.5 + 127.5 * (shown / np.where(largest > 0, largest, 1)))
    kind = "convolution" if len(shape) == 4 else "dense layer"
    return Filters(name.removesuffix("/kernel"), kind, levels.astype(np.uint8), kernel.shape[-1])


@dataclass(frozen=True)
class Stage:
    """What a stage makes of one image."""

    name: str
    maps: np.ndarray  # float32 [n, height, width], each from 0 to 1: its lowest to its highest value
    channels: int  # that the stage has


def feature_maps(model: TrainedModel, image: np.ndarray) -> list[Stage]:
    """Of one image uint8 [H, W, C], the channels of each stage that answer most. UserError where no stage has a map."""
    has_maps = [name for name, shape in shown(model).items() if len(shape) == 4 and shape[1] * shape[2] > 1]
    if not has_maps:
        raise UserError(f"{model.config.model.name} shows no maps of an image's places")
    normalise = make_normalise(model.mean, model.std)
    call = jax.jit(lambda variables, images: feature_pyramid(model.module, variables, normalise(images)))
    found_maps = call(model.variables, jnp.asarray(image[None]))
    stages = []
    for name in has_maps:
        found = found_maps[name]
        maps = np.moveaxis(np.asarray(found[0], np.float32), -1, 0)
        order = np.argsort(-maps.mean(axis=(1, 2)), kind="stable")[:MAPS_A_STAGE]
        low, high = (pick(maps[order], axis=(1, 2), keepdims=True) for pick in (np.min, np.max))
        scaled = (maps[order] - low) / np.where(high > low, high - low, 1)
        stages.append(Stage(name, scaled, len(maps)))
    return stages
