"""Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): each channel weighted by what the whole image says."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation
from jaxcnn.models.resnet import BasicBlock, Bottleneck, ResNet


class SqueezeExcitation(nn.Module):
    """Global average, two dense layers, a gate in 0..1 for every channel (section 3)."""

    hidden: int | None = None  # none: the channels / reduction
    reduction: int = 16
    activation: Activation = nn.relu
    gate: Activation = nn.sigmoid
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape: [batch, height, width, channels]."""
        channels = x.shape[-1]
        hidden = self.hidden or max(1, channels // self.reduction)
        squeezed = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        y = self.activation(nn.Dense(hidden, dtype=self.dtype, name="squeeze")(squeezed))
        gate = self.gate(nn.Dense(channels, dtype=self.dtype, name="excite")(y))
        return x * gate[:, None, None, :]


seresnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=partial(BasicBlock, attention=SqueezeExcitation))
seresnet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, attention=SqueezeExcitation))
