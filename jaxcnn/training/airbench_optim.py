"""The optimizers of the CIFAR-10 speed records (Jordan 2024, arXiv:2404.00498), by groups of parameters.

Each group has its own rate and decay. Neither finetune.* nor schedule.name=plateau acts on them: config/choices.py
refuses both.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcnn.config import OptimizerConfig
from jaxcnn.training.optim import Rate, clipping, path_names


def airbench_sgd(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Nesterov momentum in every group; the first bias follows the schedule until it is frozen."""
    until = optimizer.groups.whiten_bias_steps
    return _by_group(
        optimizer,
        rate,
        kernels=_nesterov(optimizer, rate.schedule, 1.0, optimizer.momentum),
        whiten_bias=lambda step: jnp.where(step < until, rate.schedule(step), 0.0),
        momentum=optimizer.momentum,
    )


def airbench_muon(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Muon for the kernels, Nesterov momentum in all other groups; the first bias has a straight fall of its own."""
    until = optimizer.groups.whiten_bias_steps
    return _by_group(
        optimizer,
        rate,
        kernels=_muon_on_a_sphere(optimizer.momentum, rate.schedule),
        whiten_bias=lambda step: optimizer.learning_rate * jnp.maximum(0.0, 1 - step / until),
        momentum=optimizer.groups.muon_rest_momentum,
    )


def _by_group(
    optimizer: OptimizerConfig,
    rate: Rate,
    *,
    kernels: optax.GradientTransformation,
    whiten_bias: optax.Schedule,
    momentum: float,
) -> optax.GradientTransformation:
    """`kernels` for them; Nesterov `momentum` for the rest, with the schedule `whiten_bias` for the first bias."""
    groups = optimizer.groups
    by_group = {
        "kernels": kernels,
        "norm_biases": _nesterov(optimizer, rate.schedule, groups.norm_bias_rate, momentum),
        "head": _nesterov(optimizer, rate.schedule, groups.head_rate, momentum),
        "whiten_bias": _nesterov(optimizer, whiten_bias, groups.whiten_bias_rate, momentum),
        "whiten_kernel": optax.set_to_zero(),
    }
    return optax.chain(*clipping(optimizer), optax.partition(by_group, parameter_groups))


def _nesterov(
    optimizer: OptimizerConfig, schedule: optax.Schedule, factor: float, momentum: float
) -> optax.GradientTransformation:
    """Steps of `factor` times the schedule's rate."""
    return optax.chain(
        # divided by the factor, by which the step is multiplied: every group shrinks by schedule * weight_decay
        optax.add_decayed_weights(optimizer.weight_decay / factor),
        optax.trace(momentum, nesterov=True),
        optax.scale_by_learning_rate(lambda step: factor * schedule(step)),
    )


def parameter_groups(params: Any) -> Any:
    """A tree like params: the name of each one's group."""

    def group(path: tuple[Any, ...], _: Any) -> str:
        names = path_names(path)
        kind = "kernel" if names[-1] == "kernel" else "bias"
        if "whiten" in names:
            return f"whiten_{kind}"
        if "head" in names:
            return "head"
        return "kernels" if kind == "kernel" else "norm_biases"

    return jax.tree_util.tree_map_with_path(group, params)


def _muon_on_a_sphere(momentum: float, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon on kernels that are brought back to the norm sqrt(outputs) before each step, instead of decaying."""

    def from_the_sphere(update: jax.Array, kernel: jax.Array) -> jax.Array:
        return update + kernel * (math.sqrt(kernel.shape[-1]) / jnp.linalg.norm(kernel)) - kernel

    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless_with_tree_map(lambda update, _: orthogonalise(update)),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless_with_tree_map(from_the_sphere),
    )


def orthogonalise(kernel: jax.Array) -> jax.Array:
    """A kernel [..., in, out] as a matrix, with singular values all near 1, by three steps of Newton and Schulz.

    In bfloat16 on every platform, as in the record; the steps bring back what rounding takes.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.bfloat16)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # the products are then of the smaller side
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(3):
        a = x @ x.T
        b = -4.7750 * a + 2.0315 * (a @ a)
        x = 3.4445 * x + b @ x
    return (x.T if tall else x).astype(kernel.dtype).reshape(kernel.shape)
