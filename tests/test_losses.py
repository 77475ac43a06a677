"""Losses, each against numpy in float64 written from its definition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import LossConfig
from jaxcnn.errors import UserError
from jaxcnn.tasks.classification.losses import make_loss

NAMES = ("cross_entropy", "focal", "kl", "mse", "mae")
LOGITS = np.random.default_rng(0).normal(scale=3.0, size=(6, 5))
CLASSES = np.array([0, 4, 2, 2, 1, 3])
ONE_HOT = np.eye(5)[CLASSES]
SOFT = np.random.default_rng(1).dirichlet(np.ones(5), size=6)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def entropy(targets: np.ndarray) -> np.ndarray:
    return -np.sum([[p * np.log(p) if p > 0 else 0.0 for p in row] for row in targets], axis=-1)


def by_definition(name: str, logits: np.ndarray, targets: np.ndarray, gamma: float = 2.0) -> np.ndarray:
    log_p = log_softmax(logits)
    match name:
        case "cross_entropy":
            return -(targets * log_p).sum(-1)
        case "focal":
            return -(targets * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1)
        case "kl":
            return -(targets * log_p).sum(-1) - entropy(targets)
        case "mse":
            return ((logits - targets) ** 2).mean(-1)
        case "mae":
            return np.abs(logits - targets).mean(-1)
    raise AssertionError(name)


def loss_of(config: LossConfig, labels: Any, logits: Any = LOGITS) -> jax.Array:
    return make_loss(config)(jnp.asarray(logits), jnp.asarray(labels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("labels", "targets"), [(CLASSES, ONE_HOT), (SOFT, SOFT)], ids=["classes", "soft"])
def test_each_loss_is_its_definition(name: str, smoothing: float, labels: np.ndarray, targets: np.ndarray) -> None:
    losses = loss_of(LossConfig(name=name, label_smoothing=smoothing), labels)
    assert (losses.shape, losses.dtype) == ((6,), jnp.float32)
    smoothed = (1 - smoothing) * targets + smoothing / 5
    np.testing.assert_allclose(losses, by_definition(name, LOGITS, smoothed), rtol=1e-5, atol=1e-6)


def test_focal_loss_by_hand() -> None:
    logits = np.log([[0.9, 0.1], [0.25, 0.75]])
    losses = loss_of(LossConfig(name="focal", focal_gamma=2.0), np.array([0, 0]), logits)
    np.testing.assert_allclose(losses, [0.1**2 * 0.10536052, 0.75**2 * 1.38629436], rtol=1e-5)


@pytest.mark.parametrize("labels", [CLASSES, SOFT])
def test_focal_loss_with_gamma_zero_is_cross_entropy(labels: np.ndarray) -> None:
    np.testing.assert_allclose(
        loss_of(LossConfig(name="focal", focal_gamma=0.0), labels), loss_of(LossConfig(), labels), rtol=1e-6
    )


def test_kl_to_the_models_own_distribution_is_zero() -> None:
    losses = loss_of(LossConfig(name="kl"), np.exp(log_softmax(LOGITS)))
    np.testing.assert_allclose(losses, 0.0, atol=1e-6)


def test_bfloat16_logits_are_counted_in_float32() -> None:
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    losses = loss_of(LossConfig(), CLASSES, logits)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(
        losses, by_definition("cross_entropy", np.asarray(logits, np.float64), ONE_HOT), rtol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_losses_and_gradients_are_finite_for_extreme_logits(name: str, gamma: float) -> None:
    logits = jnp.array([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0], [20.0, 0.0, 0.0]])
    loss = make_loss(LossConfig(name=name, focal_gamma=gamma))
    for labels in (jnp.array([0, 0, 2, 0]), jnp.full((4, 3), 1 / 3)):
        losses, gradients = jax.value_and_grad(lambda x, y: loss(x, y).sum())(logits, labels)
        assert np.isfinite(losses)
        assert np.isfinite(gradients).all()


def test_a_confident_mistake_still_has_a_gradient() -> None:
    loss = make_loss(LossConfig(name="focal"))
    gradient = jax.grad(lambda logits: loss(logits, jnp.array([1])).sum())(jnp.array([[100.0, -100.0]]))
    np.testing.assert_allclose(gradient, [[1.0, -1.0]], rtol=1e-5)


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cross_entropy'"):
        make_loss(LossConfig(name="cross_entrpy"))
