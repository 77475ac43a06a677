"""Residual networks (He et al. 2016, arXiv:1512.03385): for ImageNet (table 1) and for CIFAR (section 4.2).

Bottlenecks have their stride on the 3x3 convolution ("v1.5", as in torchvision), not on the first 1x1 as in the paper.
Strided convolutions pad both sides alike, as PyTorch does, so that PyTorch's weights give its logits; XLA's "SAME"
would pad one side only. Convolutions start He-normal by fan-out, and every batch norm with scale 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.blocks import Activation, Layer, Layers, StochasticDepth, global_average, symmetric_conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import max_pool


def projection_shortcut(x: jax.Array, features: int, stride: int, layers: Layers) -> jax.Array:
    """Option B of the paper, where the shape changes: a 1x1 convolution."""
    return layers.norm(name="shortcut_norm")(layers.conv(features, 1, stride, name="shortcut_conv")(x))


def padded_shortcut(x: jax.Array, features: int, stride: int, layers: Layers) -> jax.Array:
    """Option A of the paper, where the shape changes: every stride-th pixel, zeros as new channels; no parameters."""
    del layers
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: figure 5, left."""

    features: int
    stride: int
    changes: bool  # whether the shape does
    layers: Layers
    shortcut: Callable[..., jax.Array] = projection_shortcut
    attention: Layer | None = None  # over the branch's output
    drop_rate: float = 0.0  # of the branch: stochastic depth

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, features], sides rounded up."""
        conv, norm, activation = self.layers
        y = conv(self.features, 3, self.stride, name="conv1")(x)
        y = activation(norm(name="norm1")(y))
        y = conv(self.features, 3, name="conv2")(y)
        y = norm(name="norm2")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        y = StochasticDepth(self.drop_rate, name="drop")(y, train=train)
        return activation(y + (self.shortcut(x, y.shape[-1], self.stride, self.layers) if self.changes else x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the features: figure 5, right."""

    features: int
    stride: int
    changes: bool  # whether the shape does
    layers: Layers
    width: float = 1.0  # of the 3x3 convolution, times the features
    groups: int = 1  # of the 3x3 convolution
    attention: Layer | None = None  # over the branch's output
    drop_rate: float = 0.0  # of the branch: stochastic depth

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h / stride, w / stride, 4 * features], sides rounded up."""
        conv, norm, activation = self.layers
        width = round(self.features * self.width)
        y = conv(width, 1, name="conv1")(x)
        y = activation(norm(name="norm1")(y))
        y = conv(width, 3, self.stride, groups=self.groups, name="conv2")(y)
        y = activation(norm(name="norm2")(y))
        y = conv(4 * self.features, 1, name="conv3")(y)
        y = norm(name="norm3")(y)
        if self.attention is not None:
            y = self.attention(name="attention")(y)
        y = StochasticDepth(self.drop_rate, name="drop")(y, train=train)
        return activation(y + (projection_shortcut(x, y.shape[-1], self.stride, self.layers) if self.changes else x))


class ResNet(nn.Module):
    """The ImageNet family; with the small stem (3x3, stride 1, no pool) also the usual one for 32x32 pixels."""

    num_classes: int
    stage_sizes: Sequence[int]  # blocks in each stage
    block: Callable[..., nn.Module]
    stem: str = "imagenet"
    width: float = 1.0  # times the paper's channels
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    stochastic_depth: float = 0.0  # of the last block; linear from 0 at the first
    dropout_rate: float = 0.0  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        conv = partial(symmetric_conv, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        layers = Layers(conv, norm, self.activation)
        features = round(64 * self.width)

        match self.stem:
            case "imagenet":
                x = conv(features, 7, 2, name="stem_conv")(images)
                x = self.activation(norm(name="stem_norm")(x))
                x = max_pool(x, 3, strides=2, padding=1)
            case "small":
                x = conv(features, 3, name="stem_conv")(images)
                x = self.activation(norm(name="stem_norm")(x))
            case _:
                raise UserError(f"model.stem is {self.stem!r}: {nearest(self.stem, ['imagenet', 'small'])}")
        x = residual_stages(
            self,
            x,
            train,
            stem_features=features,
            stage_sizes=self.stage_sizes,
            features=[features * 2**stage for stage in range(len(self.stage_sizes))],
            block=partial(self.block, layers=layers),
        )
        x = global_average(x)
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


def residual_stages(
    model: Any,
    x: jax.Array,
    train: bool,
    *,
    stem_features: int,
    stage_sizes: Sequence[int],
    features: Sequence[int],
    block: partial,
) -> jax.Array:
    """Stages of `model`, each but the first halving the sides; called within its scope.

    Reads its `remat` and `stochastic_depth`. Where a shape changes follows from the widths that are given, those of the
    paper, not from x, which a pruned model has narrower.
    """
    block_class = nn.remat(block.func, static_argnums=(2,)) if model.remat else block.func
    number, last = 0, max(1, sum(stage_sizes) - 1)
    inputs = stem_features
    for stage, num_blocks in enumerate(stage_sizes, start=1):
        outputs = features[stage - 1] * block.func.expansion  # type: ignore[attr-defined]
        for index in range(1, num_blocks + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            x = block_class(
                features[stage - 1],
                stride,
                stride > 1 or inputs != outputs,
                **block.keywords,
                drop_rate=model.stochastic_depth * number / last,
                name=f"stage{stage}_block{index}",
            )(x, train)
            number, inputs = number + 1, outputs
        x = tap(model, f"stage{stage}", x)
    return x


class CifarResNet(nn.Module):
    """The CIFAR family: three stages of n basic blocks with parameter-free shortcuts, 6n + 2 layers."""

    num_classes: int
    num_blocks: int  # in each stage; the paper's n
    width: float = 1.0  # times the paper's channels
    norm: Layer = BatchNorm  # lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    stochastic_depth: float = 0.0  # of the last block; linear from 0 at the first
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        conv = partial(symmetric_conv, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)
        features = [round(channels * self.width) for channels in (16, 32, 64)]

        x = conv(features[0], 3, name="stem_conv")(images)
        x = self.activation(norm(name="stem_norm")(x))
        x = residual_stages(
            self,
            x,
            train,
            stem_features=features[0],
            stage_sizes=[self.num_blocks] * 3,
            features=features,
            block=partial(BasicBlock, layers=Layers(conv, norm, self.activation), shortcut=padded_shortcut),
        )
        x = global_average(x)
        x = tap(self, "pooled", x)
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
