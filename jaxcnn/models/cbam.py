"""CBAM (Woo et al. 2018, arXiv:1807.06521): attention over channels, then over places."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import he_normal_out
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.plain import is_plain
from jaxcnn.models.resnet import BasicBlock, Bottleneck, ResNet


def largest(x: jax.Array, axis: int) -> jax.Array:
    """The maximum along an axis, of which the first place that has it gets the gradient, as in PyTorch.

    jnp.max's gradient looks for the maximum again, and where XLA has computed x anew with another rounding finds it
    nowhere, and divides by that: NaN.
    """
    if is_plain():
        return jnp.max(x, axis=axis, keepdims=True)
    place = jnp.argmax(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
    return jnp.take_along_axis(x, place, axis=axis)


class ConvBlockAttention(nn.Module):
    """Equations 2 and 3: a perceptron on averages and maxima over places; a 7x7 convolution on those over channels."""

    reduction: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape: [batch, height, width, channels]."""
        batch, _, _, channels = x.shape
        hidden = nn.Dense(max(1, channels // self.reduction), dtype=self.dtype, name="channel_hidden")
        output = nn.Dense(channels, dtype=self.dtype, name="channel_output")
        over_places = jnp.mean(x, axis=(1, 2)), largest(x.reshape(batch, -1, channels), axis=1)[:, 0]
        average, maximum = (output(nn.relu(hidden(pooled))) for pooled in over_places)
        x = x * nn.sigmoid(average + maximum)[:, None, None, :]
        places = jnp.concatenate([jnp.mean(x, axis=-1, keepdims=True), largest(x, axis=-1)], axis=-1)
        spatial = Conv(
            1, (7, 7), padding=3, use_bias=False, dtype=self.dtype, kernel_init=he_normal_out, name="spatial_conv"
        )
        return x * nn.sigmoid(spatial(places))


cbam_resnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=partial(BasicBlock, attention=ConvBlockAttention))
cbam_resnet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, attention=ConvBlockAttention))
