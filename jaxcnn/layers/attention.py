"""The transformer's layer (Vaswani et al. 2017, arXiv:1706.03762), with the norm before each branch.

For images, texts and what is written token by token: with all tokens in sight, or each token's past alone; with
sequences of several lengths; and from the keys and values of tokens that came before.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.layers.blocks import Activation, StochasticDepth, layer_norm
from jaxcnn.layers.plain import is_plain

xavier = nn.initializers.xavier_uniform()
# three matrices side by side, each with the bounds that it would have alone
xavier_three = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")


class Past(NamedTuple):
    """Keys and values of the tokens so far, [batch, longest, heads, features / heads] each; what is beyond is zero."""

    keys: jax.Array
    values: jax.Array


class Attention(nn.Module):
    """Multi-head self-attention: section 3.2 of Vaswani et al.; appendix A of Dosovitskiy et al. 2021."""

    num_heads: int
    dtype: DTypeLike
    causal: bool = False  # a token sees those before it, and itself

    @nn.compact
    def __call__(
        self, x: jax.Array, lengths: jax.Array | None = None, past: tuple[Past, jax.Array] | None = None
    ) -> tuple[jax.Array, Past | None]:
        """(Same shape: [batch, tokens, features]; with `past`, the past that the next tokens have.)

        Args:
          x: the tokens.
          lengths: int [batch], how many tokens of each sequence are seen, from the first on; None: all.
          past: tokens that came before these, and how many they are, int []; these follow, and see those before them.
        """
        batch, tokens, features = x.shape
        qkv = nn.Dense(3 * features, dtype=self.dtype, kernel_init=xavier_three, name="qkv")(x)
        heads = qkv.reshape(batch, tokens, 3, self.num_heads, features // self.num_heads)
        queries, keys, values = heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]
        now = None
        attend: Callable[..., jax.Array]
        if is_plain() and not self.causal and lengths is None and past is None:
            attend = _attend_plainly
        elif past is None:
            attend = partial(jax.nn.dot_product_attention, is_causal=self.causal, key_value_seq_lengths=lengths)
        else:
            before, at = past
            keys, values = now = Past(*(_put(*each, at) for each in zip(before, (keys, values), strict=True)))
            seen = jnp.arange(keys.shape[1]) <= at + jnp.arange(tokens)[:, None]
            attend = partial(jax.nn.dot_product_attention, mask=seen[None, None])
        y = attend(queries, keys, values).reshape(x.shape)
        return nn.Dense(features, dtype=self.dtype, kernel_init=xavier, name="out")(y), now


def _attend_plainly(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Equation 1 of Vaswani et al., for all of [batch, tokens, heads, features] each, in two products."""
    scores = jnp.einsum("btnf,bsnf->bnts", queries, keys) * queries.shape[-1] ** -0.5
    return jnp.einsum("bnts,bsnf->btnf", nn.softmax(scores), values)


def _put(array: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, new.astype(array.dtype), at, axis=1)


class Perceptron(nn.Module):
    """Two dense layers: section 3.3."""

    hidden: int
    activation: Activation
    dropout_rate: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Same shape: [batch, tokens, features]."""
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=xavier, bias_init=nn.initializers.normal(1e-6))
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        y = self.activation(dense(self.hidden, name="hidden")(x))
        y = dense(x.shape[-1], name="out")(dropout(name="hidden_dropout")(y))
        return dropout(name="out_dropout")(y)


class EncoderLayer(nn.Module):
    """Attention, then the perceptron, each behind a norm and around a shortcut: equations 2 and 3 of Dosovitskiy."""

    num_heads: int
    hidden: int  # units of the perceptron
    activation: Activation
    dropout_rate: float
    drop_rate: float  # of both branches: stochastic depth
    dtype: DTypeLike
    causal: bool = False  # a token sees those before it, and itself

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool,
        lengths: jax.Array | None = None,
        past: tuple[Past, jax.Array] | None = None,
    ) -> tuple[jax.Array, Past | None]:
        """(Same shape: [batch, tokens, features]; the past); arguments as of `Attention`."""
        norm = partial(layer_norm, dtype=self.dtype)
        attention = Attention(self.num_heads, self.dtype, self.causal, name="attention")
        y, now = attention(norm(name="norm1")(x), lengths, past)
        y = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(y)
        x = x + StochasticDepth(self.drop_rate, name="drop1")(y, train=train)
        perceptron = Perceptron(self.hidden, self.activation, self.dropout_rate, self.dtype, name="mlp")
        y = perceptron(norm(name="norm2")(x), train=train)
        return x + StochasticDepth(self.drop_rate, name="drop2")(y, train=train), now
