"""Words as vectors: 0 behind the end of a text, so that padding counts for nothing; and pooling over time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

PADDING = 0  # the token behind the end of a text
Init = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform in ±0.25: what Kim 2014 (arXiv:1408.5882, section 3.3) draws for words that have no vector."""
    return jax.random.uniform(key, shape, dtype, -0.25, 0.25)


def word_vectors(
    tokens: jax.Array, vocabulary_size: int, features: int, channels: str, init: Init, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """(vectors [batch, time, features * channels], lengths int [batch]) of tokens int [batch, time].

    For a model's compact call, which has the parameters `embedding/embedding`, which is tuned, or
    `static_embedding/embedding`, which stays as it began, or both: Kim 2014, section 2.1.

    Args:
      channels: tuned, static, or both side by side.
      init: of the vectors, [vocabulary_size, features].
    """
    mask, vectors = tokens != PADDING, []
    for channel, name in (("tuned", "embedding"), ("static", "static_embedding")):
        if channels in (channel, "both"):
            found = nn.Embed(vocabulary_size, features, embedding_init=init, dtype=dtype, name=name)(tokens)
            vectors.append(jax.lax.stop_gradient(found) if channel == "static" else found)
    x = vectors[0] if len(vectors) == 1 else jnp.concatenate(vectors, axis=-1)
    return jnp.where(mask[:, :, None], x, 0), mask.sum(axis=1)


def over_time(x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, maximum) of x [batch, time, features] over the first `lengths` int [batch] of time, [batch, features]."""
    mask = (jnp.arange(x.shape[1]) < lengths[:, None])[:, :, None]
    mean = jnp.where(mask, x, 0).sum(axis=1) / jnp.maximum(lengths, 1)[:, None].astype(x.dtype)
    return mean, jnp.where(mask, x, jnp.finfo(x.dtype).min).max(axis=1)


class TiedHead(nn.Module):
    """A head whose kernel is the embedding (Press and Wolf 2017, arXiv:1608.05859), and whose bias is its own."""

    @nn.compact
    def __call__(self, x: jax.Array, embedding: nn.Embed) -> jax.Array:
        """[batch, time, features] to logits, float32 [batch, time, words]."""
        logits = embedding.attend(x).astype(jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros_init(), (logits.shape[-1],), jnp.float32)
