"""torchvision's names and layouts for the parameters of our models, one way: ours to theirs.

Import and export both follow from that. A family's rules rewrite the path of a module, its names joined by dots.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax
import numpy as np

from jaxcnn.errors import UserError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]  # a pattern and what stands for it, as re.sub takes them
StateDict = dict[str, np.ndarray]


@dataclass(frozen=True)
class Naming:
    """How torchvision calls a family's modules."""

    rules: tuple[Rule, ...]  # applied one after another to `module.module.leaf`
    # dense layers behind a flattened map: its channels, height and width, which torchvision flattens in that order
    flattened: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


def _less_one(text: str) -> Callable[[re.Match[str]], str]:
    """For a replacement whose `{}` are the groups, numbers counted from 0 instead of 1 where written `{-}`."""

    def replace(match: re.Match[str]) -> str:
        groups = iter(match.groups())
        return re.sub(r"\{-?\}", lambda mark: str(int(next(groups)) - 1) if "-" in mark[0] else next(groups), text)

    return replace


RESNET = Naming(
    (
        (r"^stem_conv\b", "conv1"),
        (r"^stem_norm\b", "bn1"),
        (r"^stage(\d+)_block(\d+)", _less_one("layer{}.{-}")),
        (r"\bnorm(\d)", r"bn\1"),
        (r"\bshortcut_conv\b", "downsample.0"),
        (r"\bshortcut_norm\b", "downsample.1"),
        (r"^head\b", "fc"),
    )
)

NAMINGS: dict[str, Naming] = {  # by our model's name
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), RESNET),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), RESNET),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), RESNET),
}

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def export_state_dict(variables: Any, naming: Naming) -> StateDict:
    """{"params", "batch_stats"} as torchvision's state dict: its names, shapes and layouts."""
    state_dict: StateDict = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in _flat(variables.get(collection, {})).items():
            name = their_name(path, naming)
            state_dict[name] = _to_theirs(path, np.asarray(leaf), naming)
            if name.endswith("running_var"):
                state_dict[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state_dict


def import_state_dict(state_dict: Mapping[str, np.ndarray], variables: Any, naming: Naming) -> Any:
    """A tree like `variables`, whose leaves need shapes only, filled from torchvision's state dict.

    Raises:
      UserError: a tensor is missing, has another shape, or is left over.
    """
    left = {name for name in state_dict if not name.endswith("num_batches_tracked")}
    filled: dict[str, Any] = {}
    for collection in ("params", "batch_stats"):
        leaves = {}
        for path, leaf in _flat(variables.get(collection, {})).items():
            name = their_name(path, naming)
            if name not in state_dict:
                raise UserError(f"the weights have no tensor {name!r}, for {'/'.join(path)}")
            leaves[path] = _to_ours(path, np.asarray(state_dict[name]), naming, shape=tuple(leaf.shape), name=name)
            left.discard(name)
        filled[collection] = flax.traverse_util.unflatten_dict(leaves)
    if left:
        raise UserError(f"the weights have {len(left)} tensors that the model lacks, such as {min(left)!r}")
    return filled


def their_name(path: tuple[str, ...], naming: Naming) -> str:
    """`("stage1_block1", "conv1", "kernel")` to `layer1.0.conv1.weight`."""
    name = ".".join((*path[:-1], _LEAVES.get(path[-1], path[-1])))
    for pattern, replacement in naming.rules:
        name = re.sub(pattern, replacement, name)
    return name


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(tree)
    return flat


def _to_theirs(path: tuple[str, ...], leaf: np.ndarray, naming: Naming) -> np.ndarray:
    """A convolution's kernel [h, w, in, out] to [out, in, h, w], a dense one [in, out] to [out, in]."""
    if path[-1] != "kernel":
        return leaf
    if leaf.ndim == 4:
        return np.ascontiguousarray(leaf.transpose(3, 2, 0, 1))
    if path[-2] in naming.flattened:
        channels, height, width = naming.flattened[path[-2]]
        leaf = leaf.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(leaf.shape)
    return np.ascontiguousarray(leaf.T)


def _to_ours(
    path: tuple[str, ...], tensor: np.ndarray, naming: Naming, *, shape: tuple[int, ...], name: str
) -> np.ndarray:
    if path[-1] == "kernel" and tensor.ndim == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif path[-1] == "kernel" and tensor.ndim == 2:
        tensor = tensor.T
        if path[-2] in naming.flattened:
            channels, height, width = naming.flattened[path[-2]]
            if tensor.shape[0] == channels * height * width:
                tensor = tensor.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(tensor.shape)
    if tensor.shape != shape:
        raise UserError(f"{name!r} is {list(tensor.shape)} in our layout where the model has {list(shape)}")
    return np.ascontiguousarray(tensor)
