"""Mixing of two examples and their labels: mixup, CutMix. Batched; the partners are neighbours in the batch.

Examples 2k and 2k + 1 of a batch are partners. As a batch is shuffled anew each epoch that is a random partner, and it
lies on the same device for any number of devices, so long as each has an even part of the batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.augment.boxes import inside
from jaxcnn.errors import UserError

_NUM_QUANTILES = 4096


def check_pairs(size: int) -> None:
    """Raises UserError where a device's part of the batch leaves an example without a partner."""
    if size % 2:
        raise UserError(
            "augment.mixup and augment.cutmix mix neighbours in pairs, so each device needs an even part of the batch, "
            f"not {size} examples: change batch_size or num_devices"
        )


def mix(
    keys: jax.Array, images: jax.Array, labels: jax.Array, *, mixup: float, cutmix: float, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Mixes every example with its partner; with both alphas above 0, each example by one or the other, by a coin.

    Args:
      keys: [B], one an example: each draws a share of its own.
      images: float32 [B, H, W, C].
      labels: [B] or [B, K].
      mixup: alpha of Beta(alpha, alpha), from which the share that an example keeps is drawn (Zhang et al. 2018).
      cutmix: the same for the area that it keeps (Yun et al. 2019).
      num_classes: K.

    Returns:
      images, and labels float32 [B, K], mixed by the same shares.
    """
    check_pairs(len(images))
    targets = jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else labels.astype(jnp.float32)
    shape = images.shape[1], images.shape[2]
    kept, share = jax.vmap(partial(_kept_shares, shape=shape, mixup=mixup, cutmix=cutmix))(keys)
    kept, share = kept[..., None], share[:, None]
    return kept * images + (1 - kept) * _partner(images), share * targets + (1 - share) * _partner(targets)


def _partner(x: jax.Array) -> jax.Array:
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _kept_shares(key: jax.Array, *, shape: tuple[int, int], mixup: float, cutmix: float) -> tuple[jax.Array, jax.Array]:
    """Share of each pixel that an example keeps, [H, W], and of its label."""
    coin_key, share_key, place_key = jax.random.split(key, 3)
    cuts = jax.random.bernoulli(coin_key) if mixup and cutmix else jnp.array(cutmix > 0)
    share = jnp.where(cuts, _beta(share_key, cutmix), _beta(share_key, mixup))
    kept = jnp.full(shape, share)
    if not cutmix:
        return kept, share
    cut = _cut(place_key, shape, share)
    return jnp.where(cuts, cut, kept), jnp.where(cuts, cut.mean(), share)


def _cut(key: jax.Array, shape: tuple[int, int], share: jax.Array) -> jax.Array:
    """Mask [H, W]: 0 in a box of area 1 - `share` about a random point, 1 elsewhere, what lies outside lost."""
    side = jnp.sqrt(1 - share)
    half = [(size * side).astype(jnp.int32) // 2 for size in shape]
    row, column = (jax.random.uniform(key, (2,)) * jnp.array(shape)).astype(jnp.int32)
    return 1.0 - inside(shape, row - half[0], column - half[1], 2 * half[0], 2 * half[1])


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draw from Beta(alpha, alpha), by a table of its quantiles, linear between them; 1 at alpha 0.

    jax.random.beta rejects in a loop that lasts, under vmap, until the last example of the batch has its draw, and
    takes seconds to compile.
    """
    if not alpha:
        return jnp.ones(())
    from scipy.special import betaincinv  # takes a third of a second, and few runs mix

    quantiles = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, _NUM_QUANTILES + 1)), jnp.float32)
    place = jax.random.uniform(key) * _NUM_QUANTILES
    below = place.astype(jnp.int32)
    return quantiles[below] + (place - below) * (quantiles[below + 1] - quantiles[below])
