"""Recurrent language models (Mikolov et al. 2010; Zaremba et al. 2014, arXiv:1409.2329): the next token, of all before.

Dropout stands where Zaremba et al. have it, on what goes up, never on what goes on in time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.features import tap
from jaxcnn.layers.recurrent import MOST_ROWS, Recurrent, Rows
from jaxcnn.layers.words import TiedHead


class RecurrentLanguageModel(nn.Module):
    """An embedding, recurrent layers, and a head over the vocabulary."""

    reads_streams = True  # what it carries goes on from batch to batch

    num_classes: int  # tokens of the vocabulary
    vocabulary: int  # the same: what is read is what is written
    cell: str = "lstm"  # a key of layers.recurrent.CELLS
    features: int = 256  # of an embedding, and of each layer
    layers: int = 1
    dropout_rate: float = 0.0  # before, between and after the layers
    layer_norm: bool = False
    tied: bool = False  # the head's kernel is the embedding
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool, carry: Any = None) -> Any:
        """Tokens int [batch, time] to logits of the next ones [batch, time, num_classes].

        With `carry`, what the token before the first has left, also what the last one leaves: (logits, carry).
        """
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        embedding = nn.Embed(self.vocabulary, self.features, dtype=self.dtype, name="embedding")
        if self.vocabulary <= MOST_ROWS and not (train and self.dropout_rate):
            x: Any = Rows(embedding.embedding, tokens)
        else:
            x = dropout(name="dropout")(embedding(tokens))
        recurrent = Recurrent(
            self.cell,
            self.features,
            self.layers,
            self.dropout_rate,
            self.layer_norm,
            dtype=self.dtype,
            name="recurrent",
        )
        x, carried = recurrent(x, carry, train=train)
        x = tap(self, "stage1", x, as_map=lambda x: x[:, None])
        x = dropout(name="head_dropout")(x)
        if self.tied:
            logits = TiedHead(name="head")(x, embedding)
        else:
            logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        return logits if carry is None else (logits, carried)

    @nn.nowrap
    def begin(self, batch: int) -> Any:
        """What the first token of each of `batch` texts is given to carry."""
        return Recurrent(self.cell, self.features, self.layers, dtype=self.dtype).zeros(batch)


lstm = RecurrentLanguageModel
gru = partial(RecurrentLanguageModel, cell="gru")
rnn = partial(RecurrentLanguageModel, cell="rnn")
