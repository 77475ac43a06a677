"""Losses of masks: from logits of each pixel to one number for each image. Void pixels count nowhere.

Losses of single pixels are those of classification, averaged over an image's pixels. Those that are here see the pixels
of an image together. All arithmetic is float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config import LossConfig
from jaxcnn.config.choices import LOSSES
from jaxcnn.errors import UserError
from jaxcnn.tasks.classification.losses import class_weights
from jaxcnn.tasks.task import Loss

VOID = 255  # in a batch's labels: a pixel that counts nowhere
SMOOTH = 1.0  # pixels that are added to overlap and area, so that a class that is nowhere has a loss of 0


def make_loss(config: LossConfig, weights: np.ndarray | None = None) -> Loss:
    """Binds a loss to its config: logits [B, H, W, K] and classes int [B, H, W], VOID among them, to float32 [B].

    `weights`, one a class, multiply the loss of each of its pixels; only losses of single pixels take some.
    """
    choice = LOSSES[config.name]
    loss: Callable[..., jax.Array] = choice.load()
    is_of_pixels = "classes" in choice.of

    def per_example(logits: jax.Array, labels: jax.Array) -> jax.Array:
        batch, classes = len(logits), logits.shape[-1]
        logits = logits.astype(jnp.float32).reshape(batch, -1, classes)
        labels = labels.reshape(batch, -1)
        targets = jax.nn.one_hot(jnp.where(labels == VOID, -1, labels), classes, dtype=jnp.float32)
        if not is_of_pixels:
            return loss(logits, targets, config)
        losses = loss(logits, optax.losses.smooth_labels(targets, config.label_smoothing), config)
        if weights is not None:
            losses = losses * (targets @ weights)
        return mean_of_valid(losses, labels != VOID)

    return per_example


def mean_of_valid(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over the valid pixels of each image, [B, N] to [B]; 0 where there are none."""
    return jnp.where(valid, values, 0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)


def weights_of(config: LossConfig, pixels: Callable[[], np.ndarray], num_classes: int) -> np.ndarray | None:
    """A weight for each class, float32 [K], or None; `pixels` gives how many each class has in train, [K].

    Raises UserError where the loss takes none.
    """
    weights = class_weights(config, lambda: np.asarray(pixels(), float)[None], num_classes)
    if weights is not None and "classes" not in LOSSES[config.name].of:
        raise UserError(
            f"loss.class_weights and loss.class_weight_values weigh pixels, and loss.name={config.name} sees classes, "
            "which weigh alike; leave them out, or set loss.name=cross_entropy"
        )
    return weights


# ---- losses of an image's pixels together: (logits [B, N, K], targets [B, N, K], 0 where void, config) -> [B]


def dice(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """1 - the mean over classes of 2 |P T| / (|P| + |T|), of probabilities P (Milletari et al. 2016, with |P|)."""
    return _tversky(logits, targets, 0.5, 0.5)


def jaccard(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """1 - the mean over classes of |P T| / (|P| + |T| - |P T|): a soft intersection over union."""
    return _tversky(logits, targets, 1.0, 1.0)


def tversky(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """1 - the mean over classes of |P T| / (|P T| + a |P - T| + (1 - a) |T - P|) (Salehi et al. 2017, eq. 4)."""
    return _tversky(logits, targets, config.tversky_alpha, 1 - config.tversky_alpha)


def dice_cross_entropy(logits: jax.Array, targets: jax.Array, config: LossConfig) -> jax.Array:
    """Sum of the two, as nnU-Net has it (Isensee et al. 2021)."""
    smoothed = optax.losses.smooth_labels(targets, config.label_smoothing)
    losses = optax.losses.softmax_cross_entropy(logits, smoothed)
    return mean_of_valid(losses, targets.any(axis=-1)) + dice(logits, targets, config)


def _tversky(logits: jax.Array, targets: jax.Array, false_positives: float, false_negatives: float) -> jax.Array:
    """Tversky's index of each class, weighing what is said and is not, and what is and is not said."""
    probabilities = jax.nn.softmax(logits) * targets.any(axis=-1, keepdims=True)
    both, said, true = (x.sum(axis=1) for x in (probabilities * targets, probabilities, targets))
    others = false_positives * (said - both) + false_negatives * (true - both)
    return 1 - ((both + SMOOTH) / (both + others + SMOOTH)).mean(axis=-1)
