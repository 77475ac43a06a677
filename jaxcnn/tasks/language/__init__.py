"""Language models: each token of a text, of all before it. docs/language.md is the user's page.

An example is a window of tokens. In evaluation the network's answer is what it gave to each token that came, not the
whole vocabulary's logits, which would not fit for a whole split.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config import Config
from jaxcnn.data.vocabulary import Vocabulary
from jaxcnn.errors import UserError
from jaxcnn.files import read_text, user_path
from jaxcnn.tasks.language.generation import Sampling, write_one
from jaxcnn.tasks.language.source import LARGEST_FILE, TextSource, open_source
from jaxcnn.tasks.metric import Metric
from jaxcnn.tasks.task import Batch, Finished, Losses, Task, TaskKind

SAMPLED, TEMPERATURE = 200, 0.8  # tokens of the text that is kept of each evaluation, and how it is drawn


def make_task(
    config: Config,
    source: TextSource,
    *,
    resident: bool,
    device_batch: int,
    progress: Callable[..., None] | None = None,
) -> Task:
    """The task of telling a text's next token."""
    del resident, device_batch, progress
    return _make_task(config, source.vocabulary)


def _make_task(config: Config, vocabulary: Vocabulary) -> Task:
    options, size = config.language, len(vocabulary)
    names = ("bits_per_character", "perplexity", "accuracy")
    return Task(
        learns=f"the next {options.level}",
        example=jax.ShapeDtypeStruct((options.length,), jnp.int32),
        model={"num_classes": size, "vocabulary": size, "length": options.length},
        facts=lambda train_arrays: {},
        prepare=lambda facts: partial(_prepare, context=options.context),
        losses=lambda config: Losses(train=_loss, evaluate=_loss),
        metrics=(
            Metric(names[0], _bits, higher_is_better=False, unit="bits", size=2, finish=_ratio),
            Metric(names[1], _nats_and_tokens, higher_is_better=False, size=2, finish=_exponential),
            Metric(names[2], _right_and_tokens, higher_is_better=True, size=2, finish=_ratio),
        ),
        recorded=names,
        best_metric=names[0],
        apply=_of_what_came,
        sample=partial(_sample, vocabulary, config.seed),
        continued=True,
        examples="windows",
    )


def _prepare(key: Any, keys: Any, batch: Batch, *, context: int) -> tuple[jax.Array, Any]:
    """Tokens int32 [B, length], and the next ones; in evaluation whole windows [B, length + 1] as inputs."""
    window = batch["tokens"].astype(jnp.int32)
    following = window[:, 1:]
    counted = following != Vocabulary.padding
    if keys is None:
        counted &= jnp.arange(following.shape[1]) >= context
    characters = batch.get("characters", counted.sum(axis=1))
    targets = {"tokens": following, "counted": counted, "characters": characters.astype(jnp.float32)}
    return window if keys is None else window[:, :-1], targets


def _of_what_came(model: Callable[[Any], Any], windows: jax.Array) -> dict[str, jax.Array]:
    """Of each token that came, [B, length]: its `nats`, whether it was the likeliest, `right`, and is one, `there`."""
    logits, following = model(windows[:, :-1]), windows[:, 1:]
    return {
        "nats": _cross_entropy(logits, following),
        "right": logits.argmax(axis=-1) == following,
        "there": following != Vocabulary.padding,
    }


def _sample(vocabulary: Vocabulary, seed: int, model: Any, variables: Any) -> str:
    """A text from its beginning on, of at most so many tokens, drawn with the run's seed."""
    key = jax.random.key(seed)
    tokens = write_one(variables, key, module=model, sampling=Sampling(TEMPERATURE), num_tokens=SAMPLED)
    return vocabulary.decode(np.asarray(tokens))


def _cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)


# ---- what is minimised and counted: outputs are logits in training, and what `_of_what_came` made of them elsewhere


def _nats(outputs: Any, targets: dict[str, jax.Array]) -> jax.Array:
    """Of each token that counts, 0 of others, float32 [B, length]."""
    nats = outputs["nats"] if isinstance(outputs, dict) else _cross_entropy(outputs, targets["tokens"])
    return jnp.where(targets["counted"], nats, 0.0)


def _loss(outputs: Any, targets: dict[str, jax.Array]) -> jax.Array:
    """Nats a token, the mean of each window, float32 [B]."""
    return _nats(outputs, targets).sum(axis=1) / jnp.maximum(targets["counted"].sum(axis=1), 1)


def _bits(outputs: Any, targets: dict[str, jax.Array], losses: jax.Array) -> jax.Array:
    return jnp.stack([_nats(outputs, targets).sum(axis=1) / math.log(2), targets["characters"]], axis=-1)


def _nats_and_tokens(outputs: Any, targets: dict[str, jax.Array], losses: jax.Array) -> jax.Array:
    return jnp.stack([_nats(outputs, targets).sum(axis=1), targets["counted"].sum(axis=1)], axis=-1)


def _right_and_tokens(outputs: Any, targets: dict[str, jax.Array], losses: jax.Array) -> jax.Array:
    right = outputs["right"] if isinstance(outputs, dict) else outputs.argmax(axis=-1) == targets["tokens"]
    counted = targets["counted"]
    return jnp.stack([(right & counted).sum(axis=1), counted.sum(axis=1)], axis=-1).astype(jnp.float32)


def _ratio(means: Any) -> Any:
    return means[..., 0] / means[..., 1]


def _exponential(means: Any) -> Any:
    return math.e ** (means[..., 0] / means[..., 1])


# ---- a finished run


def vocabulary_of(data: dict[str, Any]) -> Vocabulary:
    """From `data` of config.json. Raises UserError where it is damaged."""
    try:
        return Vocabulary.from_plain(data["language"]["vocabulary"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the vocabulary in the run's config.json is damaged: {error}") from None


def _finish(config: Config, data: dict[str, Any]) -> Finished:
    vocabulary = vocabulary_of(data)
    return Finished(
        task=_make_task(config, vocabulary),
        read=partial(_lines, vocabulary, config.language.length),
        answers=_answers,
        compared=_columns,
    )


def _lines(
    vocabulary: Vocabulary, length: int, path: str
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | ValueError]]:
    """Each line of a file that has something in it, as the beginning of a text; a long one in parts."""
    try:
        text = read_text(user_path(path), limit=LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{path[:200]} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        tokens = np.append(vocabulary.end, vocabulary.encode(line))
        for part, start in enumerate(range(0, len(tokens) - 1, length), start=1):
            window = np.zeros(length + 1, np.int32)
            found = tokens[start : start + length + 1]
            window[: len(found)] = found
            yield {"line": number, "part": part}, {"tokens": window}


def _answers(outputs: dict[str, np.ndarray], top_k: int) -> list[dict[str, Any]]:
    """How a line surprises the network: `tokens`, and their `bits_per_token` and `perplexity`."""
    tokens = outputs["there"].sum(axis=1)
    nats = np.where(outputs["there"], outputs["nats"], 0).sum(axis=1) / np.maximum(tokens, 1)
    return [
        {
            "tokens": int(count),
            "bits_per_token": round(float(each) / math.log(2), 4),
            "perplexity": round(math.exp(each), 4),
        }
        for count, each in zip(tokens, nats, strict=True)
    ]


def _columns(outputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    """Of each window what counts in it, and its own scores."""
    counted = targets["counted"]
    nats, tokens = np.where(counted, outputs["nats"], 0).sum(axis=1), counted.sum(axis=1)
    characters = targets["characters"]
    return {
        "tokens": tokens.tolist(),
        "characters": characters.astype(int).tolist(),
        "bits_per_character": [f"{each:.7g}" for each in nats / math.log(2) / np.maximum(characters, 1)],
        "perplexity": [f"{each:.7g}" for each in np.exp(nats / np.maximum(tokens, 1))],
        "accuracy": [f"{each:.7g}" for each in (outputs["right"] & counted).sum(axis=1) / np.maximum(tokens, 1)],
    }


LANGUAGE = TaskKind(make_task, open_source, finish=_finish)
