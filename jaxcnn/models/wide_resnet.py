"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146).

WRN-d-k of table 1: three stages of (d - 4) / 6 pre-activated basic blocks with k times the channels. For ImageNet
(section 3.5) a ResNet-50 or 101 whose 3x3 convolutions are twice as wide.
"""

from functools import partial
from typing import Any

from jaxcnn.models.preact_resnet import PreActBasicBlock, PreActResNet
from jaxcnn.models.resnet import Bottleneck, ResNet


def _wide(depth: int, widening: int) -> Any:
    return partial(PreActResNet, stage_sizes=((depth - 4) // 6,) * 3, block=PreActBasicBlock, features=16 * widening)


wrn_16_4 = _wide(16, 4)
wrn_28_10 = _wide(28, 10)
wrn_40_2 = _wide(40, 2)
wide_resnet50_2 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, width=2))
wide_resnet101_2 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=partial(Bottleneck, width=2))
