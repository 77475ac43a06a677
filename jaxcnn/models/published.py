"""What papers and others publish of our models, to compare ours with and to choose one by; nothing computes with it.

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

PUBLISHED: dict[str, Published] = {
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
}
