"""Every model by the name that a config gives it; a new model is its own file and a line here.

A model is built with `num_classes`, `dtype` and those of the config's options that it declares as fields: `norm`,
`activation`, `dropout_rate`, `stochastic_depth`, `width`, `depth`, `stem`, `remat`. It is called as `model(images,
train=...)`: float images [batch, height, width, channels] in, float32 logits [batch, num_classes] out. It computes in
`dtype`; its parameters are float32. One with a method `from_data(params, images) -> params` is handed the
first training images, normalised, when a run begins.
"""

from collections.abc import Callable

from flax import linen as nn

from jaxcnn.models.airbench import airbench93, airbench94, airbench94_muon, airbench95, airbench96
from jaxcnn.models.alexnet import AlexNet
from jaxcnn.models.cbam import cbam_resnet18, cbam_resnet50
from jaxcnn.models.cnn import CNN
from jaxcnn.models.densenet import densenet121, densenet161, densenet169, densenet201, densenet_bc_100_12
from jaxcnn.models.googlenet import googlenet
from jaxcnn.models.inception_v3 import inception_v3
from jaxcnn.models.lenet import LeNet5
from jaxcnn.models.mixer import mixer_b16, mixer_b32, mixer_l16, mixer_s16, mixer_s32
from jaxcnn.models.mlp import MLP
from jaxcnn.models.preact_resnet import preact_resnet18, preact_resnet34, preact_resnet164
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
from jaxcnn.models.resnext import resnext50_32x4d, resnext101_32x8d, resnext101_64x4d
from jaxcnn.models.squeeze_excitation import seresnet18, seresnet50
from jaxcnn.models.squeezenet import squeezenet1_0, squeezenet1_1
from jaxcnn.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from jaxcnn.models.wide_resnet import wide_resnet50_2, wide_resnet101_2, wrn_16_4, wrn_28_10, wrn_40_2

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
    "resnext50_32x4d": resnext50_32x4d,
    "resnext101_32x8d": resnext101_32x8d,
    "resnext101_64x4d": resnext101_64x4d,
    "wide_resnet50_2": wide_resnet50_2,
    "wide_resnet101_2": wide_resnet101_2,
    "seresnet18": seresnet18,
    "seresnet50": seresnet50,
    "cbam_resnet18": cbam_resnet18,
    "cbam_resnet50": cbam_resnet50,
    # for CIFAR: He et al. 2016b, Zagoruyko and Komodakis 2016
    "preact_resnet18": preact_resnet18,
    "preact_resnet34": preact_resnet34,
    "preact_resnet164": preact_resnet164,
    "wrn_16_4": wrn_16_4,
    "wrn_28_10": wrn_28_10,
    "wrn_40_2": wrn_40_2,
    # before residual networks, and beside them
    "alexnet": AlexNet,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg11_bn": vgg11_bn,
    "vgg13_bn": vgg13_bn,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    "squeezenet1_0": squeezenet1_0,
    "squeezenet1_1": squeezenet1_1,
    "googlenet": googlenet,
    "inception_v3": inception_v3,
    "densenet121": densenet121,
    "densenet161": densenet161,
    "densenet169": densenet169,
    "densenet201": densenet201,
    "densenet_bc_100_12": densenet_bc_100_12,
    # without convolutions
    "mixer_s32": mixer_s32,
    "mixer_s16": mixer_s16,
    "mixer_b32": mixer_b32,
    "mixer_b16": mixer_b16,
    "mixer_l16": mixer_l16,
}
