"""Residual networks (He et al. 2016, arXiv:1512.03385): for ImageNet (table 1) and for CIFAR (section 4.2).

Bottlenecks have their stride on the 3x3 convolution ("v1.5", as in torchvision), not on the first 1x1 as in the paper.
Strided convolutions pad both sides alike, as PyTorch does, so that PyTorch's weights give its logits; XLA's "SAME"
would pad one side only. Convolutions start He-normal by fan-out, and every batch norm with scale 1.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError, nearest
from jaxcnn.models.conv import Conv
from jaxcnn.models.norm import BatchNorm
from jaxcnn.models.pool import max_pool

Layer = Callable[..., Callable[[jax.Array], jax.Array]]  # constructor keywords -> a module from array to array


def symmetric_conv(features: int, size: int, stride: int = 1, *, dtype: DTypeLike, name: str) -> Conv:
    """No bias, since a batch norm follows; output size is input size / stride, rounded up."""
    return Conv(
        features,
        kernel_size=(size, size),
        strides=stride,
        padding=(size - 1) // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


def projection_shortcut(x: jax.Array, features: int, stride: int, *, conv: Layer, norm: Layer) -> jax.Array:
    """Option B of the paper: a 1x1 convolution where the shape changes, else the identity."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return norm(name="shortcut_norm")(conv(features, 1, stride, name="shortcut_conv")(x))


def padded_shortcut(x: jax.Array, features: int, stride: int, *, conv: Layer, norm: Layer) -> jax.Array:
    """Option A of the paper: every stride-th pixel, and zeros as the new channels; no parameters."""
    del conv, norm
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: figure 5, left."""

    features: int
    stride: int
    conv: Layer
    norm: Layer
    shortcut: Callable[..., jax.Array] = projection_shortcut

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        return nn.relu(y + self.shortcut(x, self.features, self.stride, conv=self.conv, norm=self.norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the features: figure 5, right."""

    features: int
    stride: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, 4 * features], sides rounded up."""
        y = self.conv(self.features, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(4 * self.features, 1, name="conv3")(y)
        y = self.norm(name="norm3")(y)
        return nn.relu(y + projection_shortcut(x, 4 * self.features, self.stride, conv=self.conv, norm=self.norm))


class ResNet(nn.Module):
    """The ImageNet family; with the small stem (3x3, stride 1, no pool) also the usual one for 32x32 pixels."""

    num_classes: int
    stage_sizes: Sequence[int]  # blocks in each stage
    block: type[BasicBlock | Bottleneck]
    stem: str = "imagenet"
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        conv = partial(symmetric_conv, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        block_class = nn.remat(self.block) if self.remat else self.block

        match self.stem:
            case "imagenet":
                x = conv(64, 7, 2, name="stem_conv")(images)
                x = nn.relu(norm(name="stem_norm")(x))
                x = max_pool(x, 3, strides=2, padding=1)
            case "small":
                x = conv(64, 3, name="stem_conv")(images)
                x = nn.relu(norm(name="stem_norm")(x))
            case _:
                raise UserError(f"model.stem is {self.stem!r}: {nearest(self.stem, ['imagenet', 'small'])}")
        for stage, num_blocks in enumerate(self.stage_sizes, start=1):
            for block in range(1, num_blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                features = 64 * 2 ** (stage - 1)
                x = block_class(features, stride, conv=conv, norm=norm, name=f"stage{stage}_block{block}")(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


class CifarResNet(nn.Module):
    """The CIFAR family: three stages of n basic blocks with parameter-free shortcuts, 6n + 2 layers."""

    num_classes: int
    num_blocks: int  # in each stage; the paper's n
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        conv = partial(symmetric_conv, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        block_class = nn.remat(BasicBlock) if self.remat else BasicBlock
        block = partial(block_class, conv=conv, norm=norm, shortcut=padded_shortcut)

        x = conv(16, 3, name="stem_conv")(images)
        x = nn.relu(norm(name="stem_norm")(x))
        for stage, features in enumerate((16, 32, 64), start=1):
            for number in range(1, self.num_blocks + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                x = block(features, stride, name=f"stage{stage}_block{number}")(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


resnet20 = partial(CifarResNet, num_blocks=3)
resnet32 = partial(CifarResNet, num_blocks=5)
resnet44 = partial(CifarResNet, num_blocks=7)
resnet56 = partial(CifarResNet, num_blocks=9)
resnet110 = partial(CifarResNet, num_blocks=18)

resnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
resnet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
resnet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
resnet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
resnet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck)
