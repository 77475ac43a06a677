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

ALEXNET = Naming(
    (
        *((rf"^conv{number}\b", f"features.{index}") for number, index in enumerate((0, 3, 6, 8, 10), start=1)),
        (r"^dense1\b", "classifier.1"),
        (r"^dense2\b", "classifier.4"),
        (r"^head\b", "classifier.6"),
    ),
    flattened={"dense1": (256, 6, 6)},
)


def _vgg(stage_sizes: tuple[int, ...], *, norm: bool) -> Naming:
    """They number all layers: convolution, with `_bn` a norm, activation; behind each stage a pooling."""
    rules: list[Rule] = []
    layer = 0
    for stage, num_convs in enumerate(stage_sizes, start=1):
        for index in range(1, num_convs + 1):
            rules.append((rf"^stage{stage}_conv{index}\b", f"features.{layer}"))
            rules.append((rf"^stage{stage}_norm{index}\b", f"features.{layer + 1}"))
            layer += 3 if norm else 2
        layer += 1
    dense = ((r"^dense1\b", "classifier.0"), (r"^dense2\b", "classifier.3"), (r"^head\b", "classifier.6"))
    return Naming((*rules, *dense), flattened={"dense1": (512, 7, 7)})


def _squeezenet(*fires: int) -> Naming:
    """`fires`: the places of fire2 to fire9 among their layers."""
    return Naming(
        (
            (r"^conv1\b", "features.0"),
            *((rf"^fire{number}\b", f"features.{layer}") for number, layer in enumerate(fires, start=2)),
            (r"(squeeze|expand1x1|expand3x3)_conv\b", r"\1"),
            (r"^head\b", "classifier.1"),
        )
    )


# The pretrained weights of these two want images normalised by mean and standard deviation 0.5: `transform_input`.
GOOGLENET = Naming(
    (
        (r"\bbranch([23])_reduce\b", r"branch\1.0"),
        (r"\bbranch([23])\.(conv|norm)\b", r"branch\1.1.\2"),
        (r"\bbranch4\b", "branch4.1"),
        (r"\bnorm\b", "bn"),
        (r"^auxiliary(\d)\.dense1\b", r"aux\1.fc1"),
        (r"^auxiliary(\d)\.head\b", r"aux\1.fc2"),
        (r"^auxiliary(\d)\b", r"aux\1"),
        (r"^head\b", "fc"),
    ),
    flattened={"dense1": (128, 4, 4)},
)
INCEPTION_V3 = Naming(
    (
        (r"^conv(1a|2a|2b|4a)\b", r"Conv2d_\1_3x3"),
        (r"^conv3b\b", "Conv2d_3b_1x1"),
        (r"^mixed(\w+)\b", r"Mixed_\1"),
        (r"^auxiliary\.conv1\b", "AuxLogits.conv0"),
        (r"^auxiliary\.conv2\b", "AuxLogits.conv1"),
        (r"^auxiliary\.head\b", "AuxLogits.fc"),
        (r"\bnorm\b", "bn"),
        (r"^head\b", "fc"),
    )
)
DENSENET = Naming(
    (
        (r"^stem_(conv|norm)\b", r"features.\g<1>0"),
        (r"^stage(\d+)_layer(\d+)\b", r"features.denseblock\1.denselayer\2"),
        (r"^transition", "features.transition"),
        (r"^final_norm\b", "features.norm5"),
        (r"^head\b", "classifier"),
    )
)

NAMINGS: dict[str, Naming] = {  # by our model's name
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), RESNET),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), RESNET),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), RESNET),
    "alexnet": ALEXNET,
    "vgg11": _vgg((1, 1, 2, 2, 2), norm=False),
    "vgg13": _vgg((2, 2, 2, 2, 2), norm=False),
    "vgg16": _vgg((2, 2, 3, 3, 3), norm=False),
    "vgg19": _vgg((2, 2, 4, 4, 4), norm=False),
    "vgg11_bn": _vgg((1, 1, 2, 2, 2), norm=True),
    "vgg13_bn": _vgg((2, 2, 2, 2, 2), norm=True),
    "vgg16_bn": _vgg((2, 2, 3, 3, 3), norm=True),
    "vgg19_bn": _vgg((2, 2, 4, 4, 4), norm=True),
    "squeezenet1_0": _squeezenet(3, 4, 5, 7, 8, 9, 10, 12),
    "squeezenet1_1": _squeezenet(3, 4, 6, 7, 9, 10, 11, 12),
    "googlenet": GOOGLENET,
    "inception_v3": INCEPTION_V3,
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), DENSENET),
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
