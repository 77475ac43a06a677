"""Every model by the name that a config gives it; a new model is its own file and a line here.

A model is built with `num_classes` and those of `dtype`, `norm`, `dropout_rate`, `stem` and `remat` that it declares as
fields, and called as `model(images, train=...)`: float images [batch, height, width, channels] in, float32 logits
[batch, num_classes] out. It computes in `dtype`; its parameters are float32. One with a method
`from_data(params, images) -> params` is handed the first training images, normalised, when a run begins.
"""

from collections.abc import Callable

from flax import linen as nn

from jaxcnn.models.airbench import airbench93, airbench94, airbench94_muon, airbench95, airbench96
from jaxcnn.models.cnn import CNN
from jaxcnn.models.lenet import LeNet5
from jaxcnn.models.mlp import MLP
from jaxcnn.models.resnet import (
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "lenet5": LeNet5,
    "cnn": CNN,
    # for CIFAR (He et al. 2016, section 4.2)
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    # of the CIFAR-10 speed records (Jordan 2024)
    "airbench93": airbench93,
    "airbench94": airbench94,
    "airbench94_muon": airbench94_muon,
    "airbench95": airbench95,
    "airbench96": airbench96,
    # for ImageNet (He et al. 2016, table 1)
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
}
