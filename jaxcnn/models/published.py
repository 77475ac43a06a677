"""Published reference figures of the models, to compare with and to choose by; nothing computes with them.

`num_params` are the learnable ones of the model as it evaluates, for 1000 classes (CIFAR's: 10): auxiliary heads do
not count.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A model's published figures."""

    paper: str  # authors, year, arXiv id
    image_size: int  # pixels on a side
    num_params: int
    macs: float | None  # multiplications with addition, in 10^9 an image
    accuracy: float | None  # ImageNet's validation set, single crop, top 1, in %
    source: str  # of macs and accuracy


_ALEXNET = "Krizhevsky 2014, arXiv:1404.5997"
_VGG = "Simonyan and Zisserman 2015, arXiv:1409.1556"
_SQUEEZENET = "Iandola et al. 2016, arXiv:1602.07360"
_GOOGLENET = "Szegedy et al. 2015, arXiv:1409.4842"
_INCEPTION_V3 = "Szegedy et al. 2016, arXiv:1512.00567"
_DENSENET = "Huang et al. 2017, arXiv:1608.06993"
_MIXER = "Tolstikhin et al. 2021, arXiv:2105.01601"
_TORCHVISION = "torchvision IMAGENET1K_V1"
_TABLE = "the paper's table 3 (trained on ImageNet-1k alone); macs counted by hand"
_BY_HAND = "macs counted by hand"
_MOBILENET_V1 = "Howard et al. 2017, arXiv:1704.04861"
_MOBILENET_V2 = "Sandler et al. 2018, arXiv:1801.04381"
_MOBILENET_V3 = "Howard et al. 2019, arXiv:1905.02244"
_SHUFFLENET_V2 = "Ma et al. 2018, arXiv:1807.11164"
_EFFICIENTNET = "Tan and Le 2019, arXiv:1905.11946"
_LITE = "its authors' repository, tensorflow/tpu, models/official/efficientnet/lite"
_REGNET = "Radosavovic et al. 2020, arXiv:2003.13678"
_CONVNEXT = "Liu et al. 2022, arXiv:2201.03545"
_VIT = "Dosovitskiy et al. 2021, arXiv:2010.11929"
_DEIT = "Touvron et al. 2021, arXiv:2012.12877"
_DEIT_SOURCE = "the paper, without distillation; macs as timm counts them"

_RESNET = "He et al. 2016, arXiv:1512.03385"
_RESNEXT = "Xie et al. 2017, arXiv:1611.05431"
_WIDE = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"
_SE = "Hu et al. 2018, arXiv:1709.01507"
_CBAM = "Woo et al. 2018, arXiv:1807.06521"
_PREACT = "He et al. 2016, arXiv:1603.05027"
_AIRBENCH = "Jordan 2024, arXiv:2404.00498"
_COUNTED = "macs counted in the model's trace"

PUBLISHED: dict[str, Published] = {
    "mlp": Published("none", 28, 669_706, 0.0007, None, _COUNTED),
    "lenet5": Published("LeCun et al. 1998", 28, 61_706, 0.0004, None, _COUNTED),
    "cnn": Published("none", 28, 824_458, 0.0046, None, _COUNTED),
    "resnet20": Published(_RESNET, 32, 269_722, 0.0406, None, _COUNTED),
    "resnet32": Published(_RESNET, 32, 464_154, 0.0689, None, _COUNTED),
    "resnet44": Published(_RESNET, 32, 658_586, 0.0972, None, _COUNTED),
    "resnet56": Published(_RESNET, 32, 853_018, 0.1255, None, _COUNTED),
    "resnet110": Published(_RESNET, 32, 1_727_962, 0.2529, None, _COUNTED),
    "airbench93": Published(_AIRBENCH, 32, 569_016, 0.0542, None, _COUNTED),
    "airbench94": Published(_AIRBENCH, 32, 1_971_640, 0.1181, None, _COUNTED),
    "airbench94_muon": Published(_AIRBENCH, 32, 1_971_640, 0.1181, None, _COUNTED),
    "airbench95": Published(_AIRBENCH, 32, 4_604_728, 0.3016, None, _COUNTED),
    "airbench96": Published(_AIRBENCH, 32, 9_915_704, 0.452, None, _COUNTED),
    "resnet18": Published(_RESNET, 224, 11_689_512, 1.814, 69.758, _TORCHVISION),
    "resnet34": Published(_RESNET, 224, 21_797_672, 3.664, 73.314, _TORCHVISION),
    "resnet50": Published(_RESNET, 224, 25_557_032, 4.089, 76.13, _TORCHVISION),
    "resnet101": Published(_RESNET, 224, 44_549_160, 7.801, 77.374, _TORCHVISION),
    "resnet152": Published(_RESNET, 224, 60_192_808, 11.514, 78.312, _TORCHVISION),
    "resnext50_32x4d": Published(_RESNEXT, 224, 25_028_904, 4.23, 77.618, _TORCHVISION),
    "resnext101_32x8d": Published(_RESNEXT, 224, 88_791_336, 16.414, 79.312, _TORCHVISION),
    "resnext101_64x4d": Published(_RESNEXT, 224, 83_455_272, 15.46, 83.246, _TORCHVISION),
    "wide_resnet50_2": Published(_WIDE, 224, 68_883_240, 11.398, 78.468, _TORCHVISION),
    "wide_resnet101_2": Published(_WIDE, 224, 126_886_696, 22.753, 78.848, _TORCHVISION),
    "seresnet18": Published(_SE, 224, 11_778_592, 1.8142, None, _COUNTED),
    "seresnet50": Published(_SE, 224, 28_088_024, 4.0917, None, _COUNTED),
    "cbam_resnet18": Published(_CBAM, 224, 11_779_376, 1.8151, None, _COUNTED),
    "cbam_resnet50": Published(_CBAM, 224, 28_089_592, 4.0956, None, _COUNTED),
    "preact_resnet18": Published(_PREACT, 32, 11_172_170, 0.5554, None, _COUNTED),
    "preact_resnet34": Published(_PREACT, 32, 21_280_330, 1.1594, None, _COUNTED),
    "preact_resnet164": Published(_PREACT, 32, 1_703_258, 0.2476, None, _COUNTED),
    "wrn_16_4": Published(_WIDE, 32, 2_748_890, 0.3926, None, _COUNTED),
    "wrn_28_10": Published(_WIDE, 32, 36_479_194, 5.2433, None, _COUNTED),
    "wrn_40_2": Published(_WIDE, 32, 2_243_546, 0.3276, None, _COUNTED),
    "alexnet": Published(_ALEXNET, 224, 61_100_840, 0.714, 56.522, _TORCHVISION),
    "vgg11": Published(_VGG, 224, 132_863_336, 7.609, 69.020, _TORCHVISION),
    "vgg13": Published(_VGG, 224, 133_047_848, 11.308, 69.928, _TORCHVISION),
    "vgg16": Published(_VGG, 224, 138_357_544, 15.470, 71.592, _TORCHVISION),
    "vgg19": Published(_VGG, 224, 143_667_240, 19.632, 72.376, _TORCHVISION),
    "vgg11_bn": Published(_VGG, 224, 132_868_840, 7.609, 70.370, _TORCHVISION),
    "vgg13_bn": Published(_VGG, 224, 133_053_736, 11.308, 71.586, _TORCHVISION),
    "vgg16_bn": Published(_VGG, 224, 138_365_992, 15.470, 73.360, _TORCHVISION),
    "vgg19_bn": Published(_VGG, 224, 143_678_248, 19.632, 74.218, _TORCHVISION),
    "squeezenet1_0": Published(_SQUEEZENET, 224, 1_248_424, 0.819, 58.092, _TORCHVISION),
    "squeezenet1_1": Published(_SQUEEZENET, 224, 1_235_496, 0.349, 58.178, _TORCHVISION),
    "googlenet": Published(_GOOGLENET, 224, 6_624_904, 1.498, 69.778, _TORCHVISION),
    "inception_v3": Published(_INCEPTION_V3, 299, 23_834_568, 5.713, 77.294, _TORCHVISION),
    "densenet121": Published(_DENSENET, 224, 7_978_856, 2.834, 74.434, _TORCHVISION),
    "densenet161": Published(_DENSENET, 224, 28_681_000, 7.728, 77.138, _TORCHVISION),
    "densenet169": Published(_DENSENET, 224, 14_149_480, 3.360, 75.600, _TORCHVISION),
    "densenet201": Published(_DENSENET, 224, 20_013_928, 4.291, 76.896, _TORCHVISION),
    "densenet_bc_100_12": Published(_DENSENET, 32, 769_162, 0.288, None, _BY_HAND),
    "mixer_s32": Published(_MIXER, 224, 19_104_624, 1.002, None, _BY_HAND),
    "mixer_s16": Published(_MIXER, 224, 18_528_264, 3.777, None, _BY_HAND),
    "mixer_b32": Published(_MIXER, 224, 60_293_428, 3.238, None, _BY_HAND),
    "mixer_b16": Published(_MIXER, 224, 59_880_472, 12.602, 76.44, _TABLE),
    "mixer_l16": Published(_MIXER, 224, 208_196_168, 44.548, 71.76, _TABLE),
    "mobilenet_v1": Published(_MOBILENET_V1, 224, 4_231_976, 0.569, 70.6, "the paper's table 4"),
    "mobilenet_v2": Published(_MOBILENET_V2, 224, 3_504_872, 0.301, 71.878, _TORCHVISION),
    "mobilenet_v3_large": Published(_MOBILENET_V3, 224, 5_483_032, 0.217, 74.042, _TORCHVISION),
    "mobilenet_v3_small": Published(_MOBILENET_V3, 224, 2_542_856, 0.057, 67.668, _TORCHVISION),
    "shufflenet_v2_x0_5": Published(_SHUFFLENET_V2, 224, 1_366_792, 0.04, 60.552, _TORCHVISION),
    "shufflenet_v2_x1_0": Published(_SHUFFLENET_V2, 224, 2_278_604, 0.145, 69.362, _TORCHVISION),
    "shufflenet_v2_x1_5": Published(_SHUFFLENET_V2, 224, 3_503_624, 0.296, 72.996, _TORCHVISION),
    "shufflenet_v2_x2_0": Published(_SHUFFLENET_V2, 224, 7_393_996, 0.583, 76.23, _TORCHVISION),
    "efficientnet_b0": Published(_EFFICIENTNET, 224, 5_288_548, 0.386, 77.692, _TORCHVISION),
    "efficientnet_b1": Published(_EFFICIENTNET, 240, 7_794_184, 0.687, 78.642, _TORCHVISION),
    "efficientnet_b2": Published(_EFFICIENTNET, 288, 9_109_994, 1.088, 80.608, _TORCHVISION),
    "efficientnet_b3": Published(_EFFICIENTNET, 300, 12_233_232, 1.827, 82.008, _TORCHVISION),
    "efficientnet_b4": Published(_EFFICIENTNET, 380, 19_341_616, 4.394, 83.384, _TORCHVISION),
    "efficientnet_b5": Published(_EFFICIENTNET, 456, 30_389_784, 10.266, 83.444, _TORCHVISION),
    "efficientnet_b6": Published(_EFFICIENTNET, 528, 43_040_704, 19.068, 84.008, _TORCHVISION),
    "efficientnet_b7": Published(_EFFICIENTNET, 600, 66_347_960, 37.746, 84.122, _TORCHVISION),
    "efficientnet_lite0": Published(_EFFICIENTNET, 224, 4_652_008, 0.407, 75.1, _LITE),
    "efficientnet_lite1": Published(_EFFICIENTNET, 240, 5_416_680, 0.631, 76.7, _LITE),
    "efficientnet_lite2": Published(_EFFICIENTNET, 260, 6_092_072, 0.899, 77.6, _LITE),
    "efficientnet_lite3": Published(_EFFICIENTNET, 280, 8_197_096, 1.44, 79.8, _LITE),
    "efficientnet_lite4": Published(_EFFICIENTNET, 300, 13_006_568, 2.64, 81.5, _LITE),
    "regnet_x_400mf": Published(_REGNET, 224, 5_495_976, 0.414, 72.834, _TORCHVISION),
    "regnet_x_800mf": Published(_REGNET, 224, 7_259_656, 0.8, 75.212, _TORCHVISION),
    "regnet_x_1_6gf": Published(_REGNET, 224, 9_190_136, 1.603, 77.04, _TORCHVISION),
    "regnet_x_3_2gf": Published(_REGNET, 224, 15_296_552, 3.177, 78.364, _TORCHVISION),
    "regnet_x_8gf": Published(_REGNET, 224, 39_572_648, 7.995, 79.344, _TORCHVISION),
    "regnet_x_16gf": Published(_REGNET, 224, 54_278_536, 15.941, 80.058, _TORCHVISION),
    "regnet_x_32gf": Published(_REGNET, 224, 107_811_560, 31.736, 80.622, _TORCHVISION),
    "regnet_y_400mf": Published(_REGNET, 224, 4_344_144, 0.402, 74.046, _TORCHVISION),
    "regnet_y_800mf": Published(_REGNET, 224, 6_432_512, 0.834, 76.42, _TORCHVISION),
    "regnet_y_1_6gf": Published(_REGNET, 224, 11_202_430, 1.612, 77.95, _TORCHVISION),
    "regnet_y_3_2gf": Published(_REGNET, 224, 19_436_338, 3.176, 78.948, _TORCHVISION),
    "regnet_y_8gf": Published(_REGNET, 224, 39_381_472, 8.473, 80.032, _TORCHVISION),
    "regnet_y_16gf": Published(_REGNET, 224, 83_590_140, 15.912, 80.424, _TORCHVISION),
    "regnet_y_32gf": Published(_REGNET, 224, 145_046_770, 32.28, 80.878, _TORCHVISION),
    "regnet_y_128gf": Published(
        _REGNET, 224, 644_812_894, 127.518, 86.068, "torchvision IMAGENET1K_SWAG_LINEAR_V1 (pretrained on other images)"
    ),
    "convnext_tiny": Published(_CONVNEXT, 224, 28_589_128, 4.456, 82.52, _TORCHVISION),
    "convnext_small": Published(_CONVNEXT, 224, 50_223_688, 8.684, 83.616, _TORCHVISION),
    "convnext_base": Published(_CONVNEXT, 224, 88_591_464, 15.355, 84.062, _TORCHVISION),
    "convnext_large": Published(_CONVNEXT, 224, 197_767_336, 34.361, 84.414, _TORCHVISION),
    "vit_ti_16": Published(_DEIT, 224, 5_717_416, 1.3, 72.2, _DEIT_SOURCE),
    "vit_s_16": Published(_DEIT, 224, 22_050_664, 4.6, 79.8, _DEIT_SOURCE),
    "vit_b_16": Published(_VIT, 224, 86_567_656, 17.564, 81.072, _TORCHVISION),
    "vit_b_32": Published(_VIT, 224, 88_224_232, 4.409, 75.912, _TORCHVISION),
    "vit_l_16": Published(_VIT, 224, 304_326_632, 61.555, 79.662, _TORCHVISION),
    "vit_l_32": Published(_VIT, 224, 306_535_400, 15.378, 76.972, _TORCHVISION),
}
