"""A small causal transformer (Radford et al. 2018 and 2019, GPT and GPT-2): the next token, of a window before it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.attention import EncoderLayer, Past
from jaxcnn.layers.blocks import ACTIVATIONS, Activation, layer_norm
from jaxcnn.layers.features import tap
from jaxcnn.layers.words import TiedHead


class LanguageTransformer(nn.Module):
    """Embeddings of tokens and of their places in the window, layers that see the past alone, a norm, a head."""

    num_classes: int  # tokens of the vocabulary
    vocabulary: int  # the same: what is read is what is written
    length: int  # tokens of the longest window
    features: int = 128  # of a token
    layers: int = 4
    num_heads: int = 4
    activation: Activation = ACTIVATIONS["gelu"]
    dropout_rate: float = 0.1
    tied: bool = False  # the head's kernel is the embedding
    remat: bool = False  # compute each layer again in the backward pass instead of keeping what is inside it
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool, carry: Any = None) -> Any:
        """Tokens int [batch, time] to logits of the next ones [batch, time, num_classes].

        With `carry`, how many tokens came before, int [], and each layer's past of them, also those with these tokens:
        (logits, carry).
        """
        at, pasts = (jnp.int32(0), [None] * self.layers) if carry is None else carry
        embed = partial(nn.Embed, features=self.features, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02))
        embedding = embed(self.vocabulary, name="embedding")
        places = embed(self.length, name="position_embedding")(at + jnp.arange(tokens.shape[1]))
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(embedding(tokens) + places)
        layer = nn.remat(EncoderLayer, static_argnums=(2,)) if self.remat else EncoderLayer
        now = []
        for number, past in enumerate(pasts, start=1):
            x, seen = layer(
                self.num_heads,
                4 * self.features,
                self.activation,
                self.dropout_rate,
                drop_rate=0.0,
                dtype=self.dtype,
                causal=True,
                name=f"layer{number}",
            )(x, train, None, None if past is None else (past, at))
            x = tap(self, f"stage{number}", x, as_map=lambda x: x[:, None])
            now.append(seen)
        x = layer_norm(dtype=self.dtype, name="head_norm")(x)
        if self.tied:
            logits = TiedHead(name="head")(x, embedding)
        else:
            logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        return logits if carry is None else (logits, (at + tokens.shape[1], now))

    @nn.nowrap
    def begin(self, batch: int) -> Any:
        """What the first token of each of `batch` texts is given to carry; there is room for `length` tokens."""
        shape = (batch, self.length, self.num_heads, self.features // self.num_heads)
        return jnp.zeros((), jnp.int32), [Past(*jnp.zeros((2, *shape), self.dtype)) for _ in range(self.layers)]
