"""Text written by a language model, token by token: sampled, or searched for by beams. Pure, one program each.

A model is a function (tokens int [B, T], carry) -> (logits [B, T, V], carry), bound to its variables. Padding and what
is unknown are never written; behind an end stands padding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.vocabulary import Vocabulary

Model = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
CHUNK = 64  # tokens that are written before anybody sees them

_PADDING, _UNKNOWN, _END = Vocabulary.padding, Vocabulary.unknown, Vocabulary.end


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: of the likeliest `top_k`, and of those that make up `top_p` of what is likely."""

    temperature: float = 1.0  # 0: always the likeliest
    top_k: int | None = None
    top_p: float | None = None


@flax.struct.dataclass
class Writing:
    """Texts on their way."""

    logits: jax.Array  # float32 [B, V], of the next token
    carry: Any  # of the model
    place: jax.Array  # int32 [], tokens written
    ended: jax.Array  # bool [B]


def begin(model: Model, prompt: jax.Array, carry: Any) -> Writing:
    """Reads prompts int [B, T]; `carry` is what the model begins with."""
    logits, carry = model(prompt, carry)
    return Writing(logits[:, -1].astype(jnp.float32), carry, jnp.int32(0), jnp.zeros(len(prompt), bool))


def distribution(logits: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """What is drawn from: (log-probabilities, but for a constant, float32 [B, V]; their tokens), the likeliest first.

    Of equals the token with the lower number is the likelier. Nucleus sampling as Holtzman et al. 2020
    (arXiv:1904.09751), of what temperature and top_k have left: the smallest set that has at least `top_p`.
    """
    logits = _writable(logits)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    if sampling.temperature == 0:
        return jnp.where(jnp.arange(ranked.shape[-1]) < 1, ranked, -jnp.inf), order
    ranked = ranked / sampling.temperature
    if sampling.top_k is not None:
        ranked = jnp.where(jnp.arange(ranked.shape[-1]) < sampling.top_k, ranked, -jnp.inf)
    if sampling.top_p is not None:
        shares = jax.nn.softmax(ranked, axis=-1)
        ranked = jnp.where(jnp.cumsum(shares, axis=-1) - shares < sampling.top_p, ranked, -jnp.inf)
    return ranked, order


def draw(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """A token for each of logits [B, V], int [B], by a key of its row."""
    ranked, order = distribution(logits, sampling)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(logits)))
    rank = jax.vmap(jax.random.categorical)(keys, ranked)
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]


def write(
    writing: Writing, key: jax.Array, *, model: Model, sampling: Sampling, num_tokens: int
) -> tuple[Writing, jax.Array]:
    """The next tokens, int [B, num_tokens]. What is drawn depends on the key, the row and the token's place alone."""

    def step(writing: Writing, _: None) -> tuple[Writing, jax.Array]:
        token = draw(writing.logits, jax.random.fold_in(key, writing.place), sampling)
        token = jnp.where(writing.ended, _PADDING, token)
        logits, carry = model(token[:, None], writing.carry)
        ended = writing.ended | (token == _END)
        return Writing(logits[:, 0].astype(jnp.float32), carry, writing.place + 1, ended), token

    writing, tokens = jax.lax.scan(step, writing, length=num_tokens)
    return writing, tokens.T


def sample(
    model: Model,
    prompt: np.ndarray,
    *,
    begun: Callable[[int], Any],
    key: jax.Array,
    sampling: Sampling,
    num: int,
    num_tokens: int,
    window: int | None = None,
) -> Iterator[np.ndarray]:
    """Texts that go on from a prompt int [T], in pieces int [num, at most CHUNK], until all have ended.

    Args:
      begun: how many texts -> what the model begins with.
      window: tokens that the model has room for: where they are full, it reads the last half again, and goes on.
    """
    chunk = CHUNK if window is None else min(CHUNK, max(1, window // 4))
    read = jax.jit(partial(begin, model))
    call = jax.jit(partial(write, model=model, sampling=sampling, num_tokens=chunk))
    texts = np.tile(prompt, (num, 1))
    writing, used = _read_last(read, texts, window, begun)
    for done in range(0, num_tokens, chunk):
        if window is not None and used + chunk > window:
            anew, used = _read_last(read, texts, window, begun)
            writing = Writing(anew.logits, anew.carry, writing.place, writing.ended)
        writing, tokens = call(writing, key)
        piece = np.asarray(tokens)[:, : num_tokens - done]
        texts, used = np.concatenate([texts, piece], axis=1), used + chunk
        yield piece
        if bool(writing.ended.all()):
            return


@partial(jax.jit, static_argnames=("module", "sampling", "num_tokens"))
def write_one(variables: Any, key: jax.Array, *, module: Any, sampling: Sampling, num_tokens: int) -> jax.Array:
    """A text from its beginning on, int [num_tokens]; a module that has a window, `length`, stays within it."""

    def model(tokens: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        return module.apply(variables, tokens, train=False, carry=carry)

    room = min(num_tokens, getattr(module, "length", None) or num_tokens)
    writing = begin(model, jnp.full((1, 1), _END), module.begin(1))
    return write(writing, key, model=model, sampling=sampling, num_tokens=room)[1][0]


def _read_last(
    read: Callable[..., Writing], texts: np.ndarray, window: int | None, begun: Callable[[int], Any]
) -> tuple[Writing, int]:
    """(what has read the end of texts [B, T], which leaves room to write; how many tokens those are)."""
    last = texts if window is None else texts[:, -(window // 2) :]
    return read(jnp.asarray(last), begun(len(texts))), last.shape[1]


# ---- beams


@flax.struct.dataclass
class Beams:
    """The best beginnings so far, the best first once `search` returns them."""

    tokens: jax.Array  # int32 [beams, num_tokens], padding behind an end
    scores: jax.Array  # float32 [beams], log-probability of all tokens


def search(prompt: jax.Array, carry: Any, *, model: Model, beams: int, num_tokens: int) -> Beams:
    """The likeliest ways to go on from a prompt int [T], up to an end, as far as so many beams find them.

    `carry` is what the model begins with, for `beams` texts. Texts are compared by their probability, whatever their
    length. Of equals the earlier beam, and then the lower token, is better.
    """
    writing = begin(model, jnp.tile(prompt, (beams, 1)), carry)
    alone = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)  # all are the same yet
    found = Beams(jnp.zeros((beams, num_tokens), jnp.int32), alone)

    def step(state: tuple[Beams, Writing], place: jax.Array) -> tuple[tuple[Beams, Writing], None]:
        found, writing = state
        logs = jax.nn.log_softmax(_writable(writing.logits), axis=-1)
        nothing = jnp.where(jnp.arange(logs.shape[-1]) == _PADDING, 0.0, -jnp.inf)
        logs = jnp.where(writing.ended[:, None], nothing, logs)
        scores, best = jax.lax.top_k((found.scores[:, None] + logs).reshape(-1), beams)
        beam, token = jnp.divmod(best, logs.shape[-1])
        tokens = found.tokens[beam].at[:, place].set(token)
        ended = writing.ended[beam] | (token == _END)
        carry = jax.tree.map(lambda x: x[beam] if x.ndim else x, writing.carry)
        logits, carry = model(token[:, None], carry)
        writing = Writing(logits[:, 0].astype(jnp.float32), carry, writing.place + 1, ended)
        return (Beams(tokens, scores), writing), None

    (found, _), _ = jax.lax.scan(step, (found, writing), jnp.arange(num_tokens))
    return found


def _writable(logits: jax.Array) -> jax.Array:
    """Without what is never written."""
    return logits.at[..., jnp.array([_PADDING, _UNKNOWN])].set(-jnp.inf)
