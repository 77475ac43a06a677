"""Smaller models out of trained ones: how much each channel matters, which go, and the weights of what is left.

Channels are those of channels.py. A pruned model equals the whole one in which they are zero, up to rounding: what is
lost comes back by fine-tuning.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxcnn.compression.channels import Channels, Group, Path, Place, is_layer
from jaxcnn.errors import UserError
from jaxcnn.layers.conv import AUTO, by
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.transfer.pretrained import shapes_of

Arrays = dict[Path, np.ndarray]  # by collection and path: ("params", "stem_conv", "kernel")

# How a channel's importance is measured, and where those who propose it rank channels: within a layer, or all together.
IMPORTANCES = {
    "l1": "layer",  # mean |w| of its filters: Li et al. 2017, arXiv:1608.08710
    "norm": "network",  # |scale| of its batch norms: Liu et al. 2017, arXiv:1708.06519
    "taylor": "network",  # (sum of gradient x weight)^2 over batches: Molchanov et al. 2019, arXiv:1906.10771
}
LEAST_KEPT = 0.1  # of a layer's channels, where all are ranked together: no layer may become a bottleneck, or empty


@dataclass(frozen=True)
class Kept:
    """Which channels of a group stay."""

    group: Group
    stays: np.ndarray  # bool [channels]

    def gone(self, place: Place) -> np.ndarray:
        """Entries along an array's axis that go, int [any]."""
        return self.group.places[place][~self.stays].ravel()


# ---- how much a channel matters


def importances(by: str, channels: Channels, arrays: Arrays, contributions: Iterable[Arrays] = ()) -> list[Any]:
    """Of each group float64 [channels], the larger the more it matters; None where the measure knows nothing of it.

    Args:
      by: a key of IMPORTANCES.
      channels: of the model.
      arrays: its parameters and batch statistics.
      contributions: for `taylor`, of each batch of training images, gradient times weight of every parameter.
    """
    if by == "taylor":
        return _taylor(channels, contributions)
    measure = _filters if by == "l1" else _scales
    return [measure(channels, group, arrays) for group in channels.groups]


def _filters(channels: Channels, group: Group, arrays: Arrays) -> Any:
    """The mean absolute weight of the filters that make a channel, summed over the layers that do."""
    total = np.zeros(len(group))
    for place in _layers(channels, group, arrays):
        weights = np.abs(arrays[place[0]])
        filter_size = weights.size / weights.shape[place[1]] * group.places[place].shape[1]
        total += _sums(weights, group, place) / filter_size
    return total


def _scales(channels: Channels, group: Group, arrays: Arrays) -> Any:
    """The mean |scale| of the batch norms of a channel."""
    norms = [place for place in _norms(channels, group) if place[0][-1] == "scale"]
    scales = [np.abs(arrays[place[0]])[group.places[place]].mean(axis=1, dtype=np.float64) for place in norms]
    return np.mean(scales, axis=0) if scales else None


def _taylor(channels: Channels, contributions: Iterable[Arrays]) -> list[Any]:
    """What the loss changes by, squared, when a channel's batch norms are zero; where it has none, its filters."""
    totals = [np.zeros(len(group)) for group in channels.groups]
    for arrays in contributions:
        for total, group in zip(totals, channels.groups, strict=True):
            biases = [place for place in group.places if place[0][-1] == "bias"]
            gates = _norms(channels, group) or [*_layers(channels, group, arrays), *biases]
            total += sum(_sums(arrays[place[0]], group, place) for place in gates) ** 2
    return list(totals)


def _layers(channels: Channels, group: Group, arrays: Arrays) -> list[Place]:
    """The kernels whose outputs a group's channels are."""
    return [
        (path, axis) for path, axis in group.places if is_layer(path, channels.owners) and axis == arrays[path].ndim - 1
    ]


def _norms(channels: Channels, group: Group) -> list[Place]:
    """The scales and biases of batch norms."""
    return [
        place for place in group.places if place[0][0] == "params" and issubclass(channels.owners[place[0]], BatchNorm)
    ]


def _sums(array: np.ndarray, group: Group, place: Place) -> np.ndarray:
    """Sums over all entries of an array that each channel has there, float64 [channels]."""
    others = tuple(axis for axis in range(array.ndim) if axis != place[1])
    return array.sum(axis=others, dtype=np.float64)[group.places[place]].sum(axis=1)


def contributions(
    model: nn.Module, variables: Any, loss: Callable[[Any, Any], jax.Array], batches: Iterable[tuple[Any, Any]]
) -> Iterator[Arrays]:
    """Gradient times weight of every parameter, of each batch (inputs, targets), by running statistics.

    `loss`: (outputs, targets) -> float32 [batch].
    """

    def mean_loss(params: Any, inputs: Any, targets: Any) -> jax.Array:
        return loss(model.apply({**variables, "params": params}, inputs, train=False), targets).mean()

    def products(params: Any, inputs: Any, targets: Any) -> Any:
        return jax.tree.map(jnp.multiply, jax.grad(mean_loss)(params, inputs, targets), params)

    call = jax.jit(by(AUTO, products, platform=jax.default_backend()))
    for inputs, targets in batches:
        yield flat({"params": jax.device_get(call(variables["params"], inputs, targets))})


# ---- which go


def choose(
    channels: Channels, scores: Sequence[Any], *, keep: float, ranked: str = "layer", multiple: int = 1
) -> list[Kept]:
    """The channels that stay, of each group of which some go.

    Args:
      channels: of the model.
      scores: of each group, as `importances` has them; groups without any stay whole.
      keep: the part of the channels that stays, in (0, 1).
      ranked: `layer`, this part of each group; or `network`, of all, and of each group at least LEAST_KEPT.
      multiple: of which a layer's channels are, where it has so many.
    """
    known = [(group, score) for group, score in zip(channels.groups, scores, strict=True) if score is not None]
    if not known:
        return []
    everything = np.sort(np.concatenate([score for _, score in known]))
    threshold = everything[round((1 - keep) * (len(everything) - 1))]
    kept = []
    for group, score in known:
        wanted = keep * len(group)
        if ranked == "network":
            wanted = max(LEAST_KEPT * len(group), float((score >= threshold).sum()))
        # of a grouped convolution a channel is as many as there are groups
        step = multiple // math.gcd(multiple, min(entries.shape[1] for entries in group.places.values()))
        count = min(len(group), step * max(1, round(wanted / step)))
        stays = np.zeros(len(group), bool)
        stays[np.argsort(-score, kind="stable")[:count]] = True
        if not stays.all():
            kept.append(Kept(group, stays))
    return kept


# ---- the weights of what is left


def flat(variables: Any) -> Arrays:
    """Arrays by collection and path."""
    return {path: np.asarray(array) for path, array in traverse_util.flatten_dict(dict(variables)).items()}


def _gone(kept: Iterable[Kept]) -> dict[Place, np.ndarray]:
    """Of each array and axis the entries that go."""
    gone: dict[Place, list[np.ndarray]] = defaultdict(list)
    for each in kept:
        for place in each.group.places:
            gone[place].append(each.gone(place))
    return {place: np.concatenate(entries) for place, entries in gone.items()}


def without(arrays: Arrays, kept: Sequence[Kept]) -> Arrays:
    """The arrays without the channels that go."""
    left = dict(arrays)
    for (path, axis), entries in _gone(kept).items():
        left[path] = np.delete(left[path], entries, axis)
    return left


def masked(arrays: Arrays, kept: Sequence[Kept]) -> Arrays:
    """The arrays with zeros in the place of the channels that go."""
    zeroed = {path: array.copy() for path, array in arrays.items()}
    for (path, axis), entries in _gone(kept).items():
        np.moveaxis(zeroed[path], axis, 0)[entries] = 0
    return zeroed


def widths_of(
    make: Callable[[Mapping[str, int]], nn.Module],
    widths: Mapping[str, int],
    left: Arrays,
    channels: Channels,
    example: Any,
) -> dict[str, int]:
    """The widths, by the path of each layer, with which a model has these arrays.

    Args:
      make: widths -> the model.
      widths: of the model that was pruned: no layer's of a model of the paper's widths.
      left: the arrays of the pruned model.
      channels: of the model that was pruned.
      example: shape and dtype of the inputs of one example.

    Raises:
      UserError: there are none.
    """
    found = dict(widths)
    features = {"/".join(path[1:-1]): a.shape[-1] for path, a in left.items() if is_layer(path, channels.owners)}
    for _ in range(2):  # where a layer takes its width from its input, that it does not is seen when this is narrow
        shapes = {path: leaf.shape for path, leaf in _shapes(make(found), example).items()}
        known = {"/".join(path[1:-1]): shapes[path][-1] for path in left if is_layer(path, channels.owners)}
        found |= {name: width for name, width in features.items() if known[name] != width}
    wrong = [path for path, leaf in _shapes(make(found), example).items() if leaf.shape != left[path].shape]
    if wrong:
        name, layer = type(make(found)).__name__, "/".join(wrong[0][1:])
        raise UserError(f"{name} cannot be pruned: the width of {layer} does not follow those of its layers")
    return found


def _shapes(model: nn.Module, example: Any) -> dict[Path, Any]:
    return traverse_util.flatten_dict(shapes_of(model, example))


def with_zeros(arrays: Arrays, fraction: float) -> Arrays:
    """The arrays with this part of all kernels' weights zero, the smallest of all (Han et al. 2015, arXiv:1506.02626).

    The zeros are multiplied with like any other number: this makes nothing faster.
    """
    kernels = [path for path in arrays if path[-1] == "kernel"]
    sizes = np.sort(np.concatenate([np.abs(arrays[path]).ravel() for path in kernels]))
    threshold = sizes[min(len(sizes) - 1, round(fraction * len(sizes)))]
    return arrays | {path: np.where(np.abs(arrays[path]) < threshold, 0, arrays[path]) for path in kernels}
