"""A small Transformer that reads a text (Vaswani et al. 2017, arXiv:1706.03762), every word with all words in sight.

Positions are sines and cosines (section 3.5), so that texts of any length fit; the head reads the mean of the words.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.attention import EncoderLayer
from jaxcnn.layers.blocks import ACTIVATIONS, Activation, layer_norm
from jaxcnn.layers.features import tap
from jaxcnn.layers.words import Init, over_time, uniform, word_vectors


class TextTransformer(nn.Module):
    """Word vectors with their positions, encoder layers, the mean over time, and the head."""

    num_classes: int
    vocabulary_size: int
    embedding_size: int = 128
    channels: str = "tuned"
    embedding_init: Init = uniform
    features: int = 128  # of a token; word vectors of another size are projected
    layers: int = 2
    num_heads: int = 4
    activation: Activation = ACTIVATIONS["gelu"]
    dropout_rate: float = 0.1  # of the vectors with their positions, and in every layer
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Tokens int [batch, time], 0 behind the end, to logits [batch, num_classes]."""
        x, lengths = word_vectors(
            tokens, self.vocabulary_size, self.embedding_size, self.channels, self.embedding_init, self.dtype
        )
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="projection")(x)
        # the vectors are of ±0.25; times this they are as large as the positions: section 3.4
        x = x * math.sqrt(self.features) + sines(x.shape[1], self.features).astype(self.dtype)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        for number in range(1, self.layers + 1):
            layer = EncoderLayer(
                self.num_heads, 4 * self.features, self.activation, self.dropout_rate, 0.0, self.dtype,
                name=f"layer{number}",
            )  # fmt: skip
            x, _ = layer(x, train, lengths)
        x = layer_norm(dtype=self.dtype, name="head_norm")(x)
        x = tap(self, "pooled", over_time(x, lengths)[0])
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


def sines(time: int, features: int) -> np.ndarray:
    """Positions, float32 [time, features]: sines of wavelengths from 2π to 10,000 · 2π, then the cosines."""
    rates = 10_000.0 ** (-np.arange((features + 1) // 2) / ((features + 1) // 2))
    angles = np.arange(time)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :features].astype(np.float32)
