"""torchvision's names and layouts for the parameters of our models, one way: ours to theirs.

Import and export both follow from that. A family's rules rewrite the path of a module, its names joined by dots.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax
import numpy as np

from jaxcnn.errors import UserError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]  # a pattern and what stands for it, as re.sub takes them
StateDict = dict[str, np.ndarray]


@dataclass(frozen=True)
class Naming:
    """Naming of a family's modules in torchvision."""

    rules: tuple[Rule, ...]  # applied one after another to `module.module.leaf`
    # dense layers behind a flattened map: its channels, height and width, which torchvision flattens in that order
    flattened: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    # dense layers that it has as 1x1 convolutions, and scales of channels: two more axes, of size 1, at the end
    spatial: frozenset[str] = frozenset()


def _less_one(text: str) -> Callable[[re.Match[str]], str]:
    """Function for a replacement whose `{}` are the groups, numbers counted from 0 instead of 1 where written `{-}`."""

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
    """Naming of VGG; all layers count: convolution, with `_bn` a norm, activation; after each stage a pooling."""
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

CONV_NORM = ((r"\bconv\.(\w+)$", r"0.\1"), (r"\bnorm\.(\w+)$", r"1.\1"))
SQUEEZE = ((r"\bsqueeze\b", "fc1"), (r"\bexcite\b", "fc2"))
SQUEEZED = frozenset({"squeeze", "excite"})


def _numbered(unexpanded: str, squeezed: str) -> Callable[[re.Match[str]], str]:
    """Replacement for a layer of an inverted residual: its number. Groups 1 and 2 of a match are block and layer."""

    def replace(match: re.Match[str]) -> str:
        layers = [] if re.fullmatch(unexpanded, match[1]) else ["expand"]
        layers += ["depthwise", "attention"] if re.fullmatch(squeezed, match[1]) else ["depthwise"]
        return f"{match[1]}.block.{[*layers, 'project'].index(match[2])}"

    return replace


def _counted(stage_sizes: Sequence[int]) -> Callable[[re.Match[str]], str]:
    """Replacement for stage and block, groups 1 and 2 of a match: the block's number in the whole network, from 1."""
    return lambda match: f"features.{sum(stage_sizes[: int(match[1]) - 1]) + int(match[2])}"


MOBILENET_V2 = Naming(
    (
        *CONV_NORM,
        (r"^stem\b", "features.0"),
        (r"^last\b", "features.18"),
        (r"^stage1_block1\.depthwise\b", "features.1.conv.0"),
        (r"^stage1_block1\.project\.0\b", "features.1.conv.1"),
        (r"^stage1_block1\.project\.1\b", "features.1.conv.2"),
        (r"^stage(\d)_block(\d)", _counted((1, 2, 3, 4, 3, 3, 1))),
        (r"\bexpand\b", "conv.0"),
        (r"\bdepthwise\b", "conv.1"),
        (r"\bproject\.0\b", "conv.2"),
        (r"\bproject\.1\b", "conv.3"),
        (r"^head\b", "classifier.1"),
    )
)


def _mobilenet_v3(num_blocks: int, squeezed: str) -> Naming:
    return Naming(
        (
            *CONV_NORM,
            *SQUEEZE,
            (r"^stem\b", "features.0"),
            (r"^last\b", f"features.{num_blocks + 1}"),
            (r"^block(\d+)", r"features.\1"),
            (r"^(features\.\d+)\.(expand|depthwise|attention|project)\b", _numbered(r"features\.1", squeezed)),
            (r"^hidden\b", "classifier.0"),
            (r"^head\b", "classifier.3"),
        ),
        spatial=SQUEEZED,
    )


EFFICIENTNET = Naming(
    (
        *CONV_NORM,
        *SQUEEZE,
        (r"^stem\b", "features.0"),
        (r"^last\b", "features.8"),
        (r"^stage(\d)_block(\d+)", _less_one("features.{}.{-}")),
        (r"^(features\.\d\.\d+)\.(expand|depthwise|attention|project)\b", _numbered(r"features\.1\..*", ".*")),
        (r"^head\b", "classifier.1"),
    ),
    spatial=SQUEEZED,
)

SHUFFLENET_V2 = Naming(
    (
        *CONV_NORM,
        (r"^stem\b", "conv1"),
        (r"^(stage\d)_block(\d+)", _less_one("{}.{-}")),
        (r"\bshortcut_depthwise\.([01])", r"branch1.\1"),
        (r"\bshortcut_pointwise\.0", "branch1.2"),
        (r"\bshortcut_pointwise\.1", "branch1.3"),
        (r"\bpointwise1\.([01])", r"branch2.\1"),
        (r"\bdepthwise\.0", "branch2.3"),
        (r"\bdepthwise\.1", "branch2.4"),
        (r"\bpointwise2\.0", "branch2.5"),
        (r"\bpointwise2\.1", "branch2.6"),
        (r"^head\b", "fc"),
    )
)

REGNET = Naming(
    (
        *CONV_NORM,
        *SQUEEZE,
        *(
            (rf"\b{layer}{number}\b", f"f.{letter}.{index}")
            for number, letter in enumerate("abc", start=1)
            for index, layer in enumerate(("conv", "norm"))
        ),
        (r"\battention\b", "f.se"),
        (r"\bshortcut_conv\b", "proj.0"),
        (r"\bshortcut_norm\b", "proj.1"),
        (r"^stage(\d)_block(\d+)", lambda match: f"trunk_output.block{match[1]}.block{match[1]}-{int(match[2]) - 1}"),
        (r"^head\b", "fc"),
    ),
    spatial=SQUEEZED,
)

CONVNEXT = Naming(
    (
        (r"^stem_conv\b", "features.0.0"),
        (r"^stem_norm\b", "features.0.1"),
        (r"^downsample(\d)_norm\b", lambda match: f"features.{2 * int(match[1]) - 2}.0"),
        (r"^downsample(\d)_conv\b", lambda match: f"features.{2 * int(match[1]) - 2}.1"),
        (r"^stage(\d)_block(\d+)", lambda match: f"features.{2 * int(match[1]) - 1}.{int(match[2]) - 1}"),
        (r"\bdepthwise\b", "block.0"),
        (r"\bnorm\b", "block.2"),
        (r"\bexpand\b", "block.3"),
        (r"\bproject\b", "block.5"),
        (r"^head_norm\b", "classifier.0"),
        (r"^head\b", "classifier.2"),
    ),
    spatial=frozenset({"layer_scale"}),
)

VIT = Naming(
    (
        (r"^patch_embedding\b", "conv_proj"),
        (r"^position_embedding\b", "encoder.pos_embedding"),
        (r"^layer(\d+)", _less_one("encoder.layers.encoder_layer_{-}")),
        (r"\bnorm([12])\b", r"ln_\1"),
        (r"\battention\.qkv\.", "self_attention.in_proj_"),
        (r"\battention\.out\b", "self_attention.out_proj"),
        (r"\bmlp\.hidden\b", "mlp.0"),
        (r"\bmlp\.out\b", "mlp.3"),
        (r"^head_norm\b", "encoder.ln"),
        (r"^head\b", "heads.head"),
    )
)

REGNET_SIZES = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
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
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v3_large": _mobilenet_v3(15, r"features\.(4|5|6|11|12|13|14|15)"),
    "mobilenet_v3_small": _mobilenet_v3(11, r"features\.(1|4|5|6|7|8|9|10|11)"),
    **dict.fromkeys((f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")), SHUFFLENET_V2),
    **dict.fromkeys((f"efficientnet_b{number}" for number in range(8)), EFFICIENTNET),
    **dict.fromkeys((f"regnet_x_{size}" for size in REGNET_SIZES), REGNET),
    **dict.fromkeys((f"regnet_y_{size}" for size in (*REGNET_SIZES, "128gf")), REGNET),
    **dict.fromkeys((f"convnext_{size}" for size in ("tiny", "small", "base", "large")), CONVNEXT),
    **dict.fromkeys((f"vit_{size}" for size in ("ti_16", "s_16", "b_16", "b_32", "l_16", "l_32")), VIT),
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
            tensor = to_ours(path, np.asarray(state_dict[name]), naming)
            if tensor.shape != tuple(leaf.shape):
                raise UserError(
                    f"{name!r} is {list(tensor.shape)} in our layout where the model has {list(leaf.shape)}"
                )
            leaves[path] = np.ascontiguousarray(tensor)
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


def _has_more_axes(path: tuple[str, ...], naming: Naming) -> bool:
    return path[-1] in naming.spatial or (path[-1] == "kernel" and path[-2] in naming.spatial)


def _to_theirs(path: tuple[str, ...], leaf: np.ndarray, naming: Naming) -> np.ndarray:
    """A convolution's kernel [h, w, in, out] to [out, in, h, w], a dense one [in, out] to [out, in]."""
    if _has_more_axes(path, naming):
        return np.ascontiguousarray(leaf.T)[..., None, None]
    if path[-1] != "kernel":
        return leaf
    if leaf.ndim == 4:
        return np.ascontiguousarray(leaf.transpose(3, 2, 0, 1))
    if path[-2] in naming.flattened:
        channels, height, width = naming.flattened[path[-2]]
        leaf = leaf.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(leaf.shape)
    return np.ascontiguousarray(leaf.T)


def published_name(name: str) -> str:
    """A tensor's name today, where published files have one of earlier versions: in DenseNets and transformers."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
    return re.sub(r"(encoder_layer_\d+\.mlp)\.linear_([12])\.", lambda m: f"{m[1]}.{3 * int(m[2]) - 3}.", name)


def to_ours(path: tuple[str, ...], tensor: np.ndarray, naming: Naming) -> np.ndarray:
    """A tensor in our layout; a view of it, of whatever shape that gives."""
    if _has_more_axes(path, naming) and tensor.shape[-2:] == (1, 1):
        tensor = tensor[..., 0, 0].T
    elif path[-1] == "kernel" and tensor.ndim == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
    elif path[-1] == "kernel" and tensor.ndim == 2:
        tensor = tensor.T
        if path[-2] in naming.flattened:
            channels, height, width = naming.flattened[path[-2]]
            if tensor.shape[0] == channels * height * width:
                tensor = tensor.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(tensor.shape)
    return tensor
