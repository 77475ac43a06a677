"""Per-example losses: from logits and labels to one number for each, which the step then masks and averages.

Labels are classes, or a distribution over the classes in each row. Smoothing acts on that distribution; the config has
it for cross-entropy alone. Each loss is a function here, named by an entry of config/choices.py. All arithmetic is
float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config import LossConfig
from jaxcnn.config.choices import choose
from jaxcnn.errors import UserError

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # logits [B, K], labels [B] or [B, K] -> float32 [B]


def make_loss(config: LossConfig, weights: np.ndarray | None = None) -> Loss:
    """Binds one loss to its config: logits [batch, classes] and labels to float32 [batch].

    `weights`, one a class, multiply each example's loss; a soft label has the mean of its classes' weights.
    """
    loss = choose("loss.name", config.name).load()

    def per_example(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32)
        if labels.ndim == 1:
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
        else:
            targets = labels.astype(jnp.float32)
        losses = loss(logits, optax.losses.smooth_labels(targets, config.label_smoothing), config)
        return losses if weights is None else losses * jnp.sum(targets * weights, axis=-1)

    return per_example


def class_weights(config: LossConfig, labels: Callable[[], np.ndarray], num_classes: int) -> np.ndarray | None:
    """A weight for each class, float32 [K], or None where the config asks for none.

    Balanced weights are scikit-learn's: n / (classes there are * examples of the class), so that each class has the
    same part in the loss and the mean over train is 1; a class of which train has nothing weighs 1. The loss of a batch
    is the mean of weighted losses, not divided by the batch's weights, so batches may be split as one likes.

    Args:
      config: what is asked for.
      labels: gives train's, int [N] (negative ones are left out) or soft [N, K].
      num_classes: K.
    """
    if config.class_weight_values:
        if len(config.class_weight_values) != num_classes:
            raise UserError(
                f"loss.class_weight_values has {len(config.class_weight_values)} weights, but there are {num_classes} "
                "classes; give one a class"
            )
        if not any(config.class_weight_values):
            raise UserError("loss.class_weight_values are all 0, so nothing would be learned; give one above 0")
        return np.asarray(config.class_weight_values, np.float32)
    if config.class_weights == "none":
        return None
    of_train = labels()
    if of_train.ndim == 1:
        of_train = np.bincount(of_train[(of_train >= 0) & (of_train < num_classes)], minlength=num_classes)[None]
    counts = of_train.sum(axis=0)
    there = counts > 0
    weights = np.ones(num_classes)
    weights[there] = counts.sum() / (there.sum() * counts[there])
    return weights.astype(np.float32)


# ---- the losses: (logits float32 [B, K], targets float32 [B, K], config) -> [B]


def cross_entropy(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Sum over classes of -target log p."""
    return optax.losses.softmax_cross_entropy(logits, targets)


def focal(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Lin et al. 2017, eq. 4, with softmax for sigmoid: sum over classes of -target (1 - p)^gamma log p."""
    log_p = jax.nn.log_softmax(logits)
    # 1 - p is kept off zero, where a power below one has no finite slope.
    others = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
    return -jnp.sum(targets * others**config.focal_gamma * log_p, axis=-1)


def kl(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Kullback and Leibler's divergence of the model's distribution from the targets."""
    return optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets)


def mse(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Mean over classes of (logit - target)^2: of the logits themselves, not of probabilities."""
    return jnp.mean(optax.losses.squared_error(logits, targets), axis=-1)


def huber(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Mean over classes of Huber's (1964) loss: e^2 / 2 of an error e, from huber_delta on linear. Of the logits."""
    return jnp.mean(optax.losses.huber_loss(logits, targets, delta=config.huber_delta), axis=-1)


def mae(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Mean over classes of |logit - target|: of the logits themselves, not of probabilities."""
    return jnp.mean(jnp.abs(logits - targets), axis=-1)
