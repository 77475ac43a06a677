"""Recurrent networks that read a text: LSTM and GRU, in one direction or in both.

What they have read is pooled as in ULMFiT (Howard and Ruder 2018, arXiv:1801.06146, section 3.3): the last state, and
the mean and the maximum over time, side by side. `embedding` and `recurrent` are named as in language models, whose
weights they may begin with.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.features import tap
from jaxcnn.layers.recurrent import Recurrent
from jaxcnn.layers.words import Init, over_time, uniform, word_vectors


class TextRecurrent(nn.Module):
    """Word vectors, recurrent layers, pooling, and the head."""

    num_classes: int
    vocabulary_size: int
    cell: str = "lstm"  # a key of layers.recurrent.CELLS
    embedding_size: int = 128
    channels: str = "tuned"
    embedding_init: Init = uniform
    features: int = 128  # of each layer, in each direction
    layers: int = 1
    layer_norm: bool = False
    bidirectional: bool = False
    dropout_rate: float = 0.5  # of the word vectors, between layers, and before the head
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Tokens int [batch, time], 0 behind the end, to logits [batch, num_classes]."""
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        x, lengths = word_vectors(
            tokens, self.vocabulary_size, self.embedding_size, self.channels, self.embedding_init, self.dtype
        )
        x = dropout(name="embedding_dropout")(x)
        recurrent = Recurrent(
            self.cell, self.features, self.layers, self.dropout_rate, self.layer_norm, self.bidirectional, self.dtype,
            name="recurrent",
        )  # fmt: skip
        x, carried = recurrent(x, lengths=lengths, train=train)
        directions = 2 if self.bidirectional else 1
        last = [state[0] if isinstance(state, tuple) else state for state in carried[-directions:]]
        x = tap(self, "pooled", jnp.concatenate([*last, *over_time(x, lengths)], axis=-1))
        x = dropout(name="dropout")(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


text_lstm = partial(TextRecurrent, cell="lstm")
text_gru = partial(TextRecurrent, cell="gru")
