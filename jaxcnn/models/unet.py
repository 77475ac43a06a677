"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597): a contracting path, an expanding one, and what links their stages.

Convolutions keep the size, as most do since, so that a map is as large as its image; with batch norm. An expanding
stage of other than twice the size, where a side was odd, repeats its last row or column.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError
from jaxcnn.layers.blocks import Activation, Layer, symmetric_conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import max_pool


class UpConv(nn.Module):
    """A 2x2 convolution transposed, with stride 2: each pixel becomes four, by one matrix product."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, 2 h, 2 w, features]."""
        batch, height, width, channels = x.shape
        he_normal = nn.initializers.he_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))  # a pixel comes from one pixel
        kernel = self.param("kernel", he_normal, (2, 2, channels, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        four = jnp.einsum("bhwc,ijcf->bhiwjf", x.astype(self.dtype), kernel.astype(self.dtype))
        return four.reshape(batch, 2 * height, 2 * width, self.features) + bias.astype(self.dtype)


class UNet(nn.Module):
    """Stages of two 3x3 convolutions; down by max pooling, up by transposed convolutions; a 1x1 convolution at the end.

    Figure 1 of the paper: 64 channels in the first stage, twice as many in each further one.
    """

    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2, 2)  # convolutions in each stage, down and up; the last is the bottom
    width: float = 1.0  # times the paper's channels
    norm: Layer = BatchNorm  # after each convolution; lacks only use_running_average; its dtype is this module's
    activation: Activation = nn.relu
    dropout_rate: float = 0.0  # of the bottom: the paper's "drop-out layers at the end of the contracting path"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits of each pixel [batch, height, width, num_classes]."""
        bottom = len(self.stage_sizes)
        smallest = 2 ** (bottom - 1)
        if min(images.shape[1:3]) < smallest:
            height, width = images.shape[1:3]
            raise UserError(
                f"unet needs images of at least {smallest}x{smallest} pixels and got {height}x{width}: enlarge them "
                f"with --config.data.image_size={smallest}"
            )
        conv = partial(symmetric_conv, dtype=self.dtype)
        norm = partial(self.norm, use_running_average=not train, dtype=self.dtype)

        def stage(x: jax.Array, name: str, number: int) -> jax.Array:
            features = max(1, round(64 * 2 ** (number - 1) * self.width))
            for index in range(1, self.stage_sizes[number - 1] + 1):
                x = conv(features, 3, name=f"{name}_conv{index}")(x)
                x = self.activation(norm(name=f"{name}_norm{index}")(x))
            return tap(self, name, x)

        x, skips = images, {}
        for number in range(1, bottom + 1):
            x = skips[number] = stage(x if number == 1 else max_pool(x, 2), f"stage{number}", number)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        for number in range(bottom - 1, 0, -1):
            skip = skips[number]
            x = UpConv(skip.shape[-1], dtype=self.dtype, name=f"up{number}")(x)
            beyond = [(0, whole - part) for whole, part in zip(skip.shape[1:3], x.shape[1:3], strict=True)]
            x = jnp.pad(x, ((0, 0), *beyond, (0, 0)), mode="edge")
            x = stage(jnp.concatenate([skip, x], axis=-1), f"stage{2 * bottom - number}", number)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x.astype(jnp.float32))
