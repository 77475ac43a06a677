"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): a residual network in the manner of a vision transformer.

Kernels start normal with standard deviation 0.02; the original truncates at 100 deviations, which is none.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import (
    ACTIVATIONS,
    Activation,
    PatchConv,
    StochasticDepth,
    check_stem,
    global_average,
    layer_norm,
    symmetric_conv,
)
from jaxcnn.layers.features import tap

initial = nn.initializers.normal(0.02)


class Block(nn.Module):
    """A depthwise 7x7 convolution, and an inverted bottleneck of two dense layers: figure 4."""

    activation: Activation
    layer_scale: float  # the branch's weights at first
    drop_rate: float  # of the branch: stochastic depth
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Same shape: [batch, height, width, channels]."""
        features = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=initial)
        y = symmetric_conv(
            features, 7, groups=features, use_bias=True, kernel_init=initial, dtype=self.dtype, name="depthwise"
        )(x)
        y = layer_norm(dtype=self.dtype, name="norm")(y)
        y = self.activation(dense(4 * features, name="expand")(y))
        y = dense(features, name="project")(y)
        scale = self.param("layer_scale", nn.initializers.constant(self.layer_scale), (features,), jnp.float32)
        return x + StochasticDepth(self.drop_rate, name="drop")(y * scale.astype(self.dtype), train=train)


class ConvNeXt(nn.Module):
    """Four stages, with a layer norm and a 2x2 convolution of stride 2 before each but the first."""

    num_classes: int
    stage_sizes: Sequence[int] = (3, 3, 9, 3)
    features: int = 96  # of the first stage; each next one has twice as many
    stem: str = "imagenet"  # 4x4 patches; small: a 3x3 convolution of stride 1
    width: float = 1.0  # times the paper's channels
    activation: Activation = ACTIVATIONS["gelu"]
    layer_scale: float = 1e-6
    stochastic_depth: float = 0.1  # of the last block; linear from 0 at the first
    dropout_rate: float = 0.0  # before the head
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        halvings = 2 ** (len(self.stage_sizes) - 1)  # between the stages, where incomplete patches are dropped
        check_stem("convnext", self.stem, images, smallest={"imagenet": 4 * halvings, "small": halvings})
        features = [round(self.features * self.width) * 2**stage for stage in range(len(self.stage_sizes))]
        patches = partial(PatchConv, dtype=self.dtype, kernel_init=initial)
        norm = partial(layer_norm, dtype=self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        number, last = 0, max(1, sum(self.stage_sizes) - 1)

        if self.stem == "small":
            conv = partial(symmetric_conv, use_bias=True, dtype=self.dtype, kernel_init=initial)
            x = conv(features[0], 3, name="stem_conv")(images)
        else:
            x = patches(features[0], 4, name="stem_conv")(images)
        x = norm(name="stem_norm")(x)
        for stage, num_blocks in enumerate(self.stage_sizes, start=1):
            if stage > 1:
                x = norm(name=f"downsample{stage}_norm")(x)
                x = patches(features[stage - 1], 2, name=f"downsample{stage}_conv")(x)
            for index in range(1, num_blocks + 1):
                drop_rate = self.stochastic_depth * number / last
                name = f"stage{stage}_block{index}"
                x = block(self.activation, self.layer_scale, drop_rate, self.dtype, name=name)(x, train)
                number += 1
            x = tap(self, f"stage{stage}", x)
        x = norm(name="head_norm")(global_average(x))
        x = tap(self, "pooled", x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="head_dropout")(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=initial, name="head")(x)


convnext_tiny = ConvNeXt
convnext_small = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), stochastic_depth=0.4)
convnext_base = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), features=128, stochastic_depth=0.5)
convnext_large = partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), features=192, stochastic_depth=0.5)
