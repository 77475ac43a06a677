"""Losses an example: from logits and labels to one number for each, which the step then masks and averages.

Labels are classes, or a distribution over the classes in each row. Smoothing acts on that distribution, whatever the
loss. All arithmetic is float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxcnn.config import LossConfig
from jaxcnn.errors import UserError, nearest

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # logits [B, K], labels [B] or [B, K] -> float32 [B]


def make_loss(config: LossConfig) -> Loss:
    """Binds one loss to its config: logits [batch, classes] and labels to float32 [batch]."""
    losses: dict[str, Loss] = {
        "cross_entropy": optax.losses.softmax_cross_entropy,
        "focal": lambda logits, targets: _softmax_focal_loss(logits, targets, gamma=config.focal_gamma),
        "kl": lambda logits, targets: optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets),
        # These two compare the logits themselves, not probabilities, with the targets; the mean is over classes.
        "mse": lambda logits, targets: jnp.mean(optax.losses.squared_error(logits, targets), axis=-1),
        "mae": lambda logits, targets: jnp.mean(jnp.abs(logits - targets), axis=-1),
    }
    if config.name not in losses:
        raise UserError(f"loss.name is {config.name!r}: {nearest(config.name, losses)}")
    loss = losses[config.name]

    def per_example(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32)
        if labels.ndim == 1:
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
        else:
            targets = labels.astype(jnp.float32)
        return loss(logits, optax.losses.smooth_labels(targets, config.label_smoothing))

    return per_example


def _softmax_focal_loss(logits: jax.Array, targets: jax.Array, *, gamma: float) -> jax.Array:
    """Lin et al. 2017, eq. 4, with softmax for sigmoid: sum over classes of -target (1 - p)^gamma log p."""
    log_p = jax.nn.log_softmax(logits)
    # 1 - p is kept off zero, where a power below one has no finite slope.
    others = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
    return -jnp.sum(targets * others**gamma * log_p, axis=-1)
