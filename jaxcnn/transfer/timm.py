"""timm's names for the parameters of our models, where the computation is the same.

Left out: MobileNetV3, whose batch norms have another epsilon there, and MLP-Mixer, whose GELU is another.
"""

import re

from jaxcnn.transfer.torchvision import DENSENET, REGNET_SIZES, RESNET, Naming

SERESNET = Naming(
    (
        (r"^stem_conv\b", "conv1"),
        (r"^stem_norm\b", "bn1"),
        (r"^stage(\d+)_block(\d+)", lambda match: f"layer{match[1]}.{int(match[2]) - 1}"),
        (r"\battention\.squeeze\b", "se.fc1"),
        (r"\battention\.excite\b", "se.fc2"),
        (r"\bnorm(\d)", r"bn\1"),
        (r"\bshortcut_conv\b", "downsample.0"),
        (r"\bshortcut_norm\b", "downsample.1"),
        (r"^head\b", "fc"),
    ),
    spatial=frozenset({"squeeze", "excite"}),
)


def _inverted_residual(match: re.Match[str]) -> str:
    """The layers of a block, whose first convolution is missing in stage 1."""
    stage, block, layer, kind = int(match[1]), int(match[2]), match[3], match[4]
    layers = ["depthwise", "project"] if stage == 1 else ["expand", "depthwise", "project"]
    conv = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pw" if stage == 1 else "conv_pwl"}[layer]
    return f"blocks.{stage - 1}.{block - 1}." + (conv if kind == "conv" else f"bn{layers.index(layer) + 1}")


EFFICIENTNET = Naming(  # and MobileNetV2 and EfficientNet-Lite, which have no attention
    (
        (r"^stem\.conv\b", "conv_stem"),
        (r"^stem\.norm\b", "bn1"),
        (r"^last\.conv\b", "conv_head"),
        (r"^last\.norm\b", "bn2"),
        (r"^stage(\d+)_block(\d+)\.(expand|depthwise|project)\.(conv|norm)\b", _inverted_residual),
        (r"^stage(\d+)_block(\d+)", lambda match: f"blocks.{int(match[1]) - 1}.{int(match[2]) - 1}"),
        (r"\battention\.squeeze\b", "se.conv_reduce"),
        (r"\battention\.excite\b", "se.conv_expand"),
        (r"^head\b", "classifier"),
    ),
    spatial=frozenset({"squeeze", "excite"}),
)

REGNET = Naming(
    (
        (r"^stem\.norm\b", "stem.bn"),
        (r"^stage(\d)_block(\d+)", r"s\1.b\2"),
        (r"\bconv(\d)\b", r"conv\1.conv"),
        (r"\bnorm(\d)\b", r"conv\1.bn"),
        (r"\bshortcut_conv\b", "downsample.conv"),
        (r"\bshortcut_norm\b", "downsample.bn"),
        (r"\battention\.squeeze\b", "se.fc1"),
        (r"\battention\.excite\b", "se.fc2"),
        (r"^head\b", "head.fc"),
    ),
    spatial=frozenset({"squeeze", "excite"}),
)

CONVNEXT = Naming(
    (
        (r"^stem_conv\b", "stem.0"),
        (r"^stem_norm\b", "stem.1"),
        (r"^downsample(\d)_norm\b", lambda match: f"stages.{int(match[1]) - 1}.downsample.0"),
        (r"^downsample(\d)_conv\b", lambda match: f"stages.{int(match[1]) - 1}.downsample.1"),
        (r"^stage(\d)_block(\d+)", lambda match: f"stages.{int(match[1]) - 1}.blocks.{int(match[2]) - 1}"),
        (r"\bdepthwise\b", "conv_dw"),
        (r"\bexpand\b", "mlp.fc1"),
        (r"\bproject\b", "mlp.fc2"),
        (r"\blayer_scale\b", "gamma"),
        (r"^head_norm\b", "head.norm"),
        (r"^head\.(weight|bias)\b", r"head.fc.\1"),
    )
)

VIT = Naming(
    (
        (r"^patch_embedding\b", "patch_embed.proj"),
        (r"^position_embedding\b", "pos_embed"),
        (r"^class_token\b", "cls_token"),
        (r"^layer(\d+)", lambda match: f"blocks.{int(match[1]) - 1}"),
        (r"\battention\.qkv\b", "attn.qkv"),
        (r"\battention\.out\b", "attn.proj"),
        (r"\bmlp\.hidden\b", "mlp.fc1"),
        (r"\bmlp\.out\b", "mlp.fc2"),
        (r"^head_norm\b", "norm"),
    )
)

NAMINGS: dict[str, Naming] = {  # by our model's name; residual networks and DenseNets are named as torchvision's
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), RESNET),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), RESNET),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), RESNET),
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), DENSENET),
    "seresnet50": SERESNET,  # seresnet18 squeezes less there
    "mobilenet_v2": EFFICIENTNET,
    **dict.fromkeys((f"efficientnet_b{number}" for number in range(5)), EFFICIENTNET),  # beyond: another epsilon
    **dict.fromkeys((f"efficientnet_lite{number}" for number in range(5)), EFFICIENTNET),  # tf_efficientnet_lite*
    **dict.fromkeys((f"regnet_x_{size}" for size in REGNET_SIZES), REGNET),
    **dict.fromkeys((f"regnet_y_{size}" for size in REGNET_SIZES), REGNET),
    **dict.fromkeys((f"convnext_{size}" for size in ("tiny", "small", "base", "large")), CONVNEXT),
    **dict.fromkeys((f"vit_{size}" for size in ("ti_16", "s_16", "b_16", "b_32", "l_16", "l_32")), VIT),
}
