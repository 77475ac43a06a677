"""Mixup and CutMix: what is mixed with what, by which shares, and that devices and smoothing change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxcnn.augment import mix
from jaxcnn.config import LossConfig
from jaxcnn.errors import UserError
from jaxcnn.tasks.classification.losses import make_loss
from tests.photos import photo

BATCH, CLASSES, SHAPE = 1000, 7, (12, 16, 1)
LABELS = np.arange(BATCH) % CLASSES
PARTNERS = np.arange(BATCH) ^ 1


@pytest.fixture(scope="module")
def mixed() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images of which each has one level, its number: so that a result tells what it is made of. One program."""
    images = jnp.broadcast_to(jnp.arange(BATCH, dtype=jnp.float32)[:, None, None, None], (BATCH, *SHAPE))

    @jax.jit
    def results(keys: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        alphas = {"mixup": (0.4, 0.0), "cutmix": (0.0, 1.0), "both": (0.4, 1.0), "neither": (0.0, 0.0)}
        return {
            name: mix(keys, images, jnp.asarray(LABELS), mixup=mixup, cutmix=cutmix, num_classes=CLASSES)
            for name, (mixup, cutmix) in alphas.items()
        }

    found = results(jax.random.split(jax.random.key(0), BATCH))
    return {name: (np.asarray(images), np.asarray(labels)) for name, (images, labels) in found.items()}


def shares(labels: np.ndarray) -> np.ndarray:
    """How much of its label each example kept; neighbours' labels differ here."""
    kept = labels[np.arange(BATCH), LABELS]
    np.testing.assert_allclose(kept + labels[np.arange(BATCH), LABELS[PARTNERS]], 1, atol=1e-6)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    return kept


def test_mixup_mixes_neighbours_by_a_beta_share(mixed: dict) -> None:
    images, labels = mixed["mixup"]
    share = shares(labels)[:, None, None, None]
    own, other = (x[:, None, None, None] for x in (np.arange(BATCH), PARTNERS))
    np.testing.assert_allclose(images, np.broadcast_to(share * own + (1 - share) * other, images.shape), rtol=1e-5)
    assert stats.kstest(share.ravel(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(share.ravel()[::2], share.ravel()[1::2])[0, 1]) < 0.2  # each draws its own


def test_cutmix_pastes_a_box_of_the_neighbour_and_counts_it(mixed: dict) -> None:
    images, labels = mixed["cutmix"]
    own, pasted = (images == x[:, None, None, None] for x in (np.arange(BATCH), PARTNERS))
    assert (own ^ pasted).all()  # each pixel is of one of the two, untouched
    pasted = pasted[..., 0]
    heights, widths = pasted.any(axis=2).sum(axis=1), pasted.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(pasted.sum(axis=(1, 2)), heights * widths)
    np.testing.assert_allclose(shares(labels), 1 - pasted.mean(axis=(1, 2)), atol=1e-6)
    # alpha 1: the sides are sqrt(uniform); a box about any point loses what lies outside. In numpy, as in the paper:
    generator = np.random.default_rng(0)
    side, row, column = (
        np.sqrt(generator.random(20000)),
        generator.integers(0, 12, 20000),
        generator.integers(0, 16, 20000),
    )
    spans = [
        np.clip(at + (size * side).astype(int) // 2, 0, size) - np.clip(at - (size * side).astype(int) // 2, 0, size)
        for at, size in ((row, 12), (column, 16))
    ]
    assert abs(pasted.mean() - np.mean(spans[0] * spans[1]) / 192) < 5 * 0.25 / np.sqrt(BATCH)


def test_with_both_half_get_either(mixed: dict) -> None:
    images, labels = mixed["both"]
    flat = images.reshape(BATCH, -1)
    blended = (flat == flat[:, :1]).all(axis=1) & (shares(labels) < 1) & (shares(labels) > 0)
    assert abs(blended.mean() - 0.5) < 0.1  # a few boxes of CutMix are empty, a few shares of mixup 0 or 1


def test_alphas_of_0_change_nothing_bit_for_bit(mixed: dict) -> None:
    images, labels = mixed["neither"]
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(BATCH))
    np.testing.assert_array_equal(labels, np.eye(CLASSES)[LABELS])


def test_parts_of_even_size_are_mixed_as_the_whole_is() -> None:
    """As 1 device and as 4; photographs, soft labels."""
    images = np.stack([photo("china.jpg", 24, 24), photo("flower.jpg", 24, 24)] * 4) / np.float32(255)
    keys, labels = jax.random.split(jax.random.key(1), 8), np.random.default_rng(0).dirichlet(np.ones(5), 8)

    def both(keys: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mix(keys, images, labels, mixup=0.4, cutmix=1.0, num_classes=5)

    def in_parts(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(both)(*(x.reshape(4, 2, *x.shape[1:]) for x in arrays))

    whole, parts = jax.jit(both)(keys, images, labels), jax.jit(in_parts)(keys, images, labels)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other.reshape(one.shape), atol=1e-6)
    assert np.abs(np.asarray(whole[0]) - np.asarray(images)).max(axis=(1, 2, 3)).min() > 0  # each was mixed


def test_an_odd_part_is_refused() -> None:
    with pytest.raises(UserError, match="even part of the batch, not 5 examples"):
        mix(
            jax.random.split(jax.random.key(0), 5),
            jnp.zeros((5, 8, 8, 1)),
            jnp.zeros(5, int),
            mixup=1,
            cutmix=0,
            num_classes=3,
        )


def test_smoothing_before_mixing_is_smoothing_after(mixed: dict) -> None:
    labels = jnp.asarray(mixed["mixup"][1])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=labels.shape), jnp.float32)
    ours = make_loss(LossConfig(label_smoothing=0.1))(logits, labels)
    share = shares(mixed["mixup"][1])[:, None]
    own, other = (optax.losses.smooth_labels(jax.nn.one_hot(x, CLASSES), 0.1) for x in (LABELS, LABELS[PARTNERS]))
    wanted = optax.losses.softmax_cross_entropy(logits, share * own + (1 - share) * other)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
