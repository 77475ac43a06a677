"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929): an image is a sequence of patches.

B and L of table 1; Ti and S of DeiT (Touvron et al. 2021, arXiv:2012.12877, table 1), with its regularisation. The
position embeddings are as many as the patches of the images that the model is initialised with.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError
from jaxcnn.layers.attention import EncoderLayer
from jaxcnn.layers.blocks import ACTIVATIONS, Activation, PatchConv, check_stem, layer_norm
from jaxcnn.layers.features import tap


class VisionTransformer(nn.Module):
    """Patches and a class token, with learned positions, through the encoder; the head reads the class token."""

    explained_by = "stage3"  # after the last layer, the patches' tokens have no influence on the head

    num_classes: int
    patch_size: int = 16  # in pixels
    num_layers: int = 12
    features: int = 768  # of a token: the paper's hidden size D
    hidden: int = 3072  # units of the perceptrons: MLP size
    num_heads: int = 12
    width: float = 1.0  # times the heads, each as wide as before, and the units of the perceptrons
    stem: str = "imagenet"  # small: patches of a quarter of the size, 4x4 for ViT-B/16
    activation: Activation = ACTIVATIONS["gelu"]
    dropout_rate: float = 0.1  # after every dense layer but those of queries, keys and values, and after the positions
    stochastic_depth: float = 0.0  # of the last layer; linear from 0 at the first
    remat: bool = False  # compute each layer again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        size, small_size = self.patch_size, self.patch_size // 4
        check_stem("vit", self.stem, images, smallest={"imagenet": size, "small": small_size})
        size = small_size if self.stem == "small" else size
        batch, height, width = images.shape[:3]
        if height % size or width % size:
            raise UserError(
                f"vit cuts images into patches of {size}x{size} pixels, which do not cover {height}x{width}: set "
                f"--config.data.image_size={min(height, width) // size * size}"
            )
        num_heads = max(1, round(self.num_heads * self.width))
        features, hidden = self.features // self.num_heads * num_heads, self.hidden // self.num_heads * num_heads
        lecun = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        x = PatchConv(features, size, dtype=self.dtype, kernel_init=lecun, name="patch_embedding")(images)
        grid = x.shape[1:3]
        tokens = 1 + math.prod(grid)
        class_token = self.param("class_token", nn.initializers.zeros_init(), (1, 1, features), jnp.float32)
        positions = self.param("position_embedding", nn.initializers.normal(0.02), (1, tokens, features), jnp.float32)
        class_tokens = jnp.broadcast_to(class_token.astype(self.dtype), (batch, 1, features))
        x = jnp.concatenate([class_tokens, x.reshape(batch, -1, features)], axis=1)
        x = x + positions.astype(self.dtype)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)

        layer = nn.remat(EncoderLayer, static_argnums=(2,)) if self.remat else EncoderLayer
        for number in range(1, self.num_layers + 1):
            x, _ = layer(
                num_heads,
                hidden,
                self.activation,
                self.dropout_rate,
                drop_rate=self.stochastic_depth * (number - 1) / max(1, self.num_layers - 1),
                dtype=self.dtype,
                name=f"layer{number}",
            )(x, train)
            if 4 * number % self.num_layers < 4:  # a stage is a quarter of the layers, as where pyramids are built
                stage = 4 * number // self.num_layers
                x = tap(self, f"stage{stage}", x, as_map=lambda x: x[:, 1:].reshape(batch, *grid, -1))
        x = layer_norm(dtype=self.dtype, name="head_norm")(x[:, 0])
        x = tap(self, "pooled", x)
        zeros = nn.initializers.zeros_init()
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=zeros, name="head")(x)


deit = partial(VisionTransformer, dropout_rate=0.0, stochastic_depth=0.1)
vit_ti_16 = partial(deit, features=192, hidden=768, num_heads=3)
vit_s_16 = partial(deit, features=384, hidden=1536, num_heads=6)
vit_b_16 = VisionTransformer
vit_b_32 = partial(VisionTransformer, patch_size=32)
vit_l_16 = partial(VisionTransformer, num_layers=24, features=1024, hidden=4096, num_heads=16)
vit_l_32 = partial(VisionTransformer, num_layers=24, features=1024, hidden=4096, num_heads=16, patch_size=32)
