"""Every model by the name that a config gives it; a new model is its own file and a line here.

A model is called as `model(images, train=...)`: float images [batch, height, width, channels] in, float32 logits
[batch, num_classes] out; it computes in `dtype`, its parameters are float32. Other code reads the names of its layers
(`head`, `stageN_…`, `*_norm`, `auxiliary*`), of its arrays (`kernel`) and of its taps (`stageN`, `pooled`). The
contract is "Writing a model" in docs/models.md; tests/test_models.py holds it.
"""

from collections.abc import Callable

from flax import linen as nn

from jaxcnn.models.airbench import airbench93, airbench94, airbench94_muon, airbench95, airbench96
from jaxcnn.models.alexnet import AlexNet
from jaxcnn.models.cbam import cbam_resnet18, cbam_resnet50
from jaxcnn.models.cnn import CNN
from jaxcnn.models.convnext import convnext_base, convnext_large, convnext_small, convnext_tiny
from jaxcnn.models.densenet import densenet121, densenet161, densenet169, densenet201, densenet_bc_100_12
from jaxcnn.models.efficientnet import (
    efficientnet_b0,
    efficientnet_b1,
    efficientnet_b2,
    efficientnet_b3,
    efficientnet_b4,
    efficientnet_b5,
    efficientnet_b6,
    efficientnet_b7,
)
from jaxcnn.models.efficientnet_lite import (
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
    efficientnet_lite3,
    efficientnet_lite4,
)
from jaxcnn.models.forecast_rnn import forecast_gru, forecast_lstm, forecast_rnn
from jaxcnn.models.googlenet import googlenet
from jaxcnn.models.inception_v3 import inception_v3
from jaxcnn.models.language_recurrent import gru, lstm, rnn
from jaxcnn.models.language_transformer import LanguageTransformer
from jaxcnn.models.lenet import LeNet5
from jaxcnn.models.linear import Linear
from jaxcnn.models.mixer import mixer_b16, mixer_b32, mixer_l16, mixer_s16, mixer_s32
from jaxcnn.models.mlp import MLP
from jaxcnn.models.mobilenet_v1 import mobilenet_v1
from jaxcnn.models.mobilenet_v2 import mobilenet_v2
from jaxcnn.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from jaxcnn.models.nbeats import NBeats
from jaxcnn.models.preact_resnet import preact_resnet18, preact_resnet34, preact_resnet164
from jaxcnn.models.regnet import (
    regnet_x_1_6gf,
    regnet_x_3_2gf,
    regnet_x_8gf,
    regnet_x_16gf,
    regnet_x_32gf,
    regnet_x_400mf,
    regnet_x_800mf,
    regnet_y_1_6gf,
    regnet_y_3_2gf,
    regnet_y_8gf,
    regnet_y_16gf,
    regnet_y_32gf,
    regnet_y_128gf,
    regnet_y_400mf,
    regnet_y_800mf,
)
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
from jaxcnn.models.shufflenet_v2 import (
    shufflenet_v2_x0_5,
    shufflenet_v2_x1_0,
    shufflenet_v2_x1_5,
    shufflenet_v2_x2_0,
)
from jaxcnn.models.squeeze_excitation import seresnet18, seresnet50
from jaxcnn.models.squeezenet import squeezenet1_0, squeezenet1_1
from jaxcnn.models.tcn import TCN
from jaxcnn.models.text_cnn import TextBag, TextCNN
from jaxcnn.models.text_recurrent import text_gru, text_lstm
from jaxcnn.models.text_transformer import TextTransformer
from jaxcnn.models.unet import UNet
from jaxcnn.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from jaxcnn.models.vit import vit_b_16, vit_b_32, vit_l_16, vit_l_32, vit_s_16, vit_ti_16
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
    # for phones
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3_small,
    "shufflenet_v2_x0_5": shufflenet_v2_x0_5,
    "shufflenet_v2_x1_0": shufflenet_v2_x1_0,
    "shufflenet_v2_x1_5": shufflenet_v2_x1_5,
    "shufflenet_v2_x2_0": shufflenet_v2_x2_0,
    # scaled or searched by rules
    "efficientnet_b0": efficientnet_b0,
    "efficientnet_b1": efficientnet_b1,
    "efficientnet_b2": efficientnet_b2,
    "efficientnet_b3": efficientnet_b3,
    "efficientnet_b4": efficientnet_b4,
    "efficientnet_b5": efficientnet_b5,
    "efficientnet_b6": efficientnet_b6,
    "efficientnet_b7": efficientnet_b7,
    "efficientnet_lite0": efficientnet_lite0,
    "efficientnet_lite1": efficientnet_lite1,
    "efficientnet_lite2": efficientnet_lite2,
    "efficientnet_lite3": efficientnet_lite3,
    "efficientnet_lite4": efficientnet_lite4,
    "regnet_x_400mf": regnet_x_400mf,
    "regnet_x_800mf": regnet_x_800mf,
    "regnet_x_1_6gf": regnet_x_1_6gf,
    "regnet_x_3_2gf": regnet_x_3_2gf,
    "regnet_x_8gf": regnet_x_8gf,
    "regnet_x_16gf": regnet_x_16gf,
    "regnet_x_32gf": regnet_x_32gf,
    "regnet_y_400mf": regnet_y_400mf,
    "regnet_y_800mf": regnet_y_800mf,
    "regnet_y_1_6gf": regnet_y_1_6gf,
    "regnet_y_3_2gf": regnet_y_3_2gf,
    "regnet_y_8gf": regnet_y_8gf,
    "regnet_y_16gf": regnet_y_16gf,
    "regnet_y_32gf": regnet_y_32gf,
    "regnet_y_128gf": regnet_y_128gf,
    # after and of the transformers
    "convnext_tiny": convnext_tiny,
    "convnext_small": convnext_small,
    "convnext_base": convnext_base,
    "convnext_large": convnext_large,
    "vit_ti_16": vit_ti_16,
    "vit_s_16": vit_s_16,
    "vit_b_16": vit_b_16,
    "vit_b_32": vit_b_32,
    "vit_l_16": vit_l_16,
    "vit_l_32": vit_l_32,
}

# Of texts: tokens int [batch, time] in, 0 behind the end of a text
TEXT_MODELS: dict[str, Callable[..., nn.Module]] = {
    "text_cnn": TextCNN,
    "text_bag": TextBag,
    "text_lstm": text_lstm,
    "text_gru": text_gru,
    "text_transformer": TextTransformer,
}

# Of texts, token by token: tokens int [batch, time] -> logits of the next ones [batch, time, num_classes]
LANGUAGE_MODELS: dict[str, Callable[..., nn.Module]] = {
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "transformer": LanguageTransformer,
}

# Of series, task=forecasting: a window [batch, length + horizon, inputs] -> a forecast [batch, num_classes]
FORECASTERS: dict[str, Callable[..., nn.Module]] = {
    "linear": Linear,
    "forecast_rnn": forecast_rnn,
    "forecast_lstm": forecast_lstm,
    "forecast_gru": forecast_gru,
    "tcn": TCN,
    "nbeats": NBeats,
}

# Of images, pixel by pixel, task=segmentation: -> logits of each pixel [batch, height, width, num_classes]
SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
}
