"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): perceptrons over patches, then over channels (table 1).

With the small stem, for 32x32 pixels, a patch's side is a quarter of the name's. The parameters depend on the number
of patches, so a model is for images of one size. Initialisation, epsilon and GELU are the authors' code's.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError
from jaxcnn.layers.blocks import Activation, StochasticDepth, check_stem
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.features import tap


class Perceptron(nn.Module):
    """Two dense layers over the last axis, back to its size: equation 1."""

    hidden: int
    activation: Activation
    dropout_rate: float  # after the activation and at the end
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Same shape."""
        features = x.shape[-1]
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        x = self.activation(nn.Dense(self.hidden, dtype=self.dtype, name="dense1")(x))
        x = nn.Dense(features, dtype=self.dtype, name="dense2")(dropout(name="dropout1")(x))
        return dropout(name="dropout2")(x)


class MixerBlock(nn.Module):
    """Mixes the patches' places, then their channels, each a residual branch: figure 1."""

    token_hidden: int  # the paper's D_S
    channel_hidden: int  # the paper's D_C
    perceptron: partial  # of Perceptron: its activation, dropout_rate and dtype
    drop_rate: float = 0.0  # of the branches: stochastic depth

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Same shape: [batch, patches, channels]."""
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=x.dtype)
        drop = partial(StochasticDepth, self.drop_rate)
        y = norm(name="norm1")(x).swapaxes(1, 2)
        y = self.perceptron(self.token_hidden, name="token_mixing")(y, train).swapaxes(1, 2)
        x = x + drop(name="drop1")(y, train=train)
        y = self.perceptron(self.channel_hidden, name="channel_mixing")(norm(name="norm2")(x), train)
        return x + drop(name="drop2")(y, train=train)


class Mixer(nn.Module):
    """A linear map of each patch, blocks, a last norm, an average over the patches, head."""

    num_classes: int
    patch_size: int  # pixels on a side
    num_blocks: int
    features: int  # of a patch: the paper's C
    token_hidden: int  # the paper's D_S
    channel_hidden: int  # the paper's D_C
    width: float = 1.0  # times these features and units
    stem: str = "imagenet"
    activation: Activation = nn.gelu
    dropout_rate: float = 0.0  # within the perceptrons
    stochastic_depth: float = 0.0  # of the last block; linear from 0 at the first
    remat: bool = False  # compute each block again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        size = self.patch_size if self.stem == "imagenet" else self.patch_size // 4
        check_stem("mixer", self.stem, images, smallest={"imagenet": self.patch_size, "small": self.patch_size // 4})
        batch, height, width = images.shape[:3]
        if height % size or width % size:
            raise UserError(
                f"mixer cuts images into patches of {size}x{size} pixels, which do not cover {height}x{width}: set "
                f"--config.data.image_size={min(height, width) // size * size}"
            )
        features, token_hidden, channel_hidden = (
            round(each * self.width) for each in (self.features, self.token_hidden, self.channel_hidden)
        )
        patches = Conv(features, (size, size), strides=size, padding=0, dtype=self.dtype, name="stem_conv")(images)
        x = patches.reshape(batch, -1, features)
        block_class = nn.remat(MixerBlock, static_argnums=(2,)) if self.remat else MixerBlock
        perceptron = partial(Perceptron, activation=self.activation, dropout_rate=self.dropout_rate, dtype=self.dtype)
        for number in range(self.num_blocks):
            x = block_class(
                token_hidden,
                channel_hidden,
                perceptron,
                self.stochastic_depth * number / max(1, self.num_blocks - 1),
                name=f"block{number + 1}",
            )(x, train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="final_norm")(x)
        x = tap(self, "stage1", x, as_map=lambda x: x.reshape(patches.shape))
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        x = tap(self, "pooled", x)
        zeros = nn.initializers.zeros_init()
        return nn.Dense(self.num_classes, kernel_init=zeros, dtype=jnp.float32, name="head")(x)


_small = partial(Mixer, num_blocks=8, features=512, token_hidden=256, channel_hidden=2048)
_base = partial(Mixer, num_blocks=12, features=768, token_hidden=384, channel_hidden=3072)
_large = partial(Mixer, num_blocks=24, features=1024, token_hidden=512, channel_hidden=4096)
mixer_s32 = partial(_small, patch_size=32)
mixer_s16 = partial(_small, patch_size=16)
mixer_b32 = partial(_base, patch_size=32)
mixer_b16 = partial(_base, patch_size=16)
mixer_l16 = partial(_large, patch_size=16)
