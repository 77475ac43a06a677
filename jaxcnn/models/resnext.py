"""ResNeXt (Xie et al. 2017, arXiv:1611.05431): bottlenecks whose 3x3 convolution has many groups (table 1)."""

from functools import partial

from jaxcnn.models.resnet import Bottleneck, ResNet

# CxD of the paper: C groups, of D channels each in the first stage, where features is 64
resnext50_32x4d = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, groups=32, width=32 * 4 / 64))
resnext101_32x8d = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=partial(Bottleneck, groups=32, width=32 * 8 / 64))
resnext101_64x4d = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=partial(Bottleneck, groups=64, width=64 * 4 / 64))
