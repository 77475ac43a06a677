"""Kim's convolutional network for sentences (Kim 2014, arXiv:1408.5882), and the bag of words that it is compared with.

The bag is the mean of a text's words, as in fastText (Joulin et al. 2016, arXiv:1607.01759), with hidden layers behind
it where they are asked for (Iyyer et al. 2015, deep averaging networks).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.words import Init, over_time, uniform, word_vectors


class TextCNN(nn.Module):
    """Convolutions over 3, 4 and 5 words, each the maximum over time, side by side."""

    num_classes: int
    vocabulary_size: int
    embedding_size: int = 128
    channels: str = "tuned"
    embedding_init: Init = uniform
    sizes: Sequence[int] = (3, 4, 5)  # words that a filter sees: section 3.1
    features: int = 100  # filters of each size: the same
    width: float = 1.0  # times the filters
    activation: Activation = nn.relu
    dropout_rate: float = 0.5  # of the words together: section 3.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Tokens int [batch, time], 0 behind the end, to logits [batch, num_classes].

        Filters see every window that a word is in, with zeros beyond the ends; windows of padding alone are not looked
        at, so that padding changes nothing.
        """
        x, lengths = word_vectors(
            tokens, self.vocabulary_size, self.embedding_size, self.channels, self.embedding_init, self.dtype
        )
        found = []
        for size in self.sizes:
            beyond = size - 1
            wide = jnp.pad(x, ((0, 0), (beyond, beyond), (0, 0)))[:, :, None, :]  # [batch, time, 1, features]
            conv = Conv(
                round(self.features * self.width), (size, 1), padding="VALID", dtype=self.dtype, name=f"conv{size}"
            )
            y = self.activation(conv(wide)[:, :, 0])
            found.append(over_time(y, lengths + beyond)[1])
        x = tap(self, "pooled", jnp.concatenate(found, axis=-1))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


class TextBag(nn.Module):
    """The mean of a text's words, dense layers if any, and the head."""

    num_classes: int
    vocabulary_size: int
    embedding_size: int = 128
    channels: str = "tuned"
    embedding_init: Init = uniform
    hidden: Sequence[int] = ()
    activation: Activation = nn.relu
    dropout_rate: float = 0.0  # before every dense layer
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Tokens int [batch, time], 0 behind the end, to logits [batch, num_classes]."""
        x, lengths = word_vectors(
            tokens, self.vocabulary_size, self.embedding_size, self.channels, self.embedding_init, self.dtype
        )
        x = tap(self, "pooled", over_time(x, lengths)[0])
        for number, features in enumerate(self.hidden, start=1):
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            x = self.activation(nn.Dense(features, dtype=self.dtype, name=f"dense{number}")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
