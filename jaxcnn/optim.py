"""From config to optax: the learning rate's schedule, and the optimizer as one chain.

Nothing here scales the learning rate, accumulates gradients or averages weights. Penalties and decay act on kernels
only, never on biases or on the scales of norms.
"""

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxcnn.config import OptimizerConfig, ScheduleConfig
from jaxcnn.errors import UserError, nearest

SCHEDULES = ("cosine", "step", "one_cycle", "linear", "constant")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lamb", "lion", "muon")
DECOUPLED = ("adamw", "lamb", "lion", "muon")  # weight_decay_mode "auto": these decay apart from the gradient


def make_schedule(schedule: ScheduleConfig, *, peak: float, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The learning rate by the number of updates already applied: the first step asks at 0."""
    if schedule.name == "one_cycle":  # Smith and Topin 2018; starts at peak / 25, ends at that / 10,000
        if schedule.warmup_epochs:
            raise UserError("schedule.warmup_epochs is not for one_cycle, which warms up by itself: set it to 0")
        return optax.cosine_onecycle_schedule(total_steps, peak, pct_start=schedule.peak_fraction)

    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    decay_steps = max(1, total_steps - warmup_steps)  # a run cut short may end within its warm-up
    match schedule.name:
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=schedule.final_fraction)
        case "linear":
            decay = optax.linear_schedule(peak, schedule.final_fraction * peak, decay_steps)
        case "step":
            drops = [round(epoch * steps_per_epoch) - warmup_steps for epoch in schedule.step_epochs]
            if not drops or any(later <= earlier for earlier, later in pairwise([0, *drops])):
                raise UserError(
                    f"schedule.step_epochs={schedule.step_epochs} must name epochs that increase, each at a later step "
                    f"than the one before, and the first after the warm-up ({schedule.warmup_epochs} epochs)"
                )
            decay = optax.piecewise_constant_schedule(peak, dict.fromkeys(drops, schedule.step_factor))
        case "constant":
            decay = optax.constant_schedule(peak)
        case _:
            raise UserError(f"schedule.name is {schedule.name!r}: {nearest(schedule.name, SCHEDULES)}")
    if not warmup_steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), decay], [warmup_steps])


def make_optimizer(optimizer: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """The links in the order in which a gradient passes them on its way to the weights."""
    mode = optimizer.weight_decay_mode
    if mode == "auto":
        mode = "decoupled" if optimizer.name in DECOUPLED else "l2"
    l2 = optimizer.weight_decay if mode == "l2" else 0.0
    decoupled = optimizer.weight_decay if mode == "decoupled" else 0.0
    none = optax.identity()
    return optax.chain(
        # clip each entry of the gradient
        none if optimizer.clip_value is None else optax.clip(optimizer.clip_value),
        # clip the gradient's norm over all parameters together
        none if optimizer.clip_norm is None else optax.clip_by_global_norm(optimizer.clip_norm),
        # the gradient of l2 / 2 * sum w^2, which the optimizer then scales like the loss's
        optax.add_decayed_weights(l2, mask=kernel_mask) if _present(l2) else none,
        # the gradient of l1 * sum |w|
        optax.masked(_add_signs(optimizer.l1), kernel_mask) if optimizer.l1 else none,
        # the optimizer proper
        _scale_by_name(optimizer),
        # decay beside it: w shrinks by learning_rate * decoupled (Loshchilov and Hutter 2019, as AdamW in PyTorch)
        optax.add_decayed_weights(decoupled, mask=kernel_mask) if _present(decoupled) else none,
        # LAMB's layerwise rate, of the step with its decay (You et al. 2020, algorithm 2)
        optax.scale_by_trust_ratio() if optimizer.name == "lamb" else none,
        # downhill, by the schedule
        optax.scale_by_learning_rate(learning_rate),
    )


def _present(strength: Any) -> bool:
    """Whether a link of this strength does anything; one whose strength is traced may."""
    return isinstance(strength, jax.Array) or bool(strength)


def kernel_mask(params: Any) -> Any:
    """A tree like params: true for what is named `kernel`, false for all else."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] == "kernel", params)


def _names(path: tuple[Any, ...]) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _add_signs(l1: float) -> optax.GradientTransformation:
    return optax.stateless_with_tree_map(lambda gradient, weight: gradient + l1 * jnp.sign(weight))


def _scale_by_name(optimizer: OptimizerConfig) -> optax.GradientTransformation:
    """What config leaves open is optax's: adagrad's sums start at 0.1, its and rmsprop's epsilon is inside the root."""
    momentum, epsilon = optimizer.momentum, optimizer.epsilon
    beta1 = optimizer.beta1
    beta2 = {"lion": 0.99, "rmsprop": 0.9}.get(optimizer.name, 0.999) if optimizer.beta2 is None else optimizer.beta2
    match optimizer.name:
        case "sgd":
            return optax.identity()
        case "momentum":
            return optax.trace(momentum)
        case "nesterov":
            return optax.trace(momentum, nesterov=True)
        case "adagrad":
            return optax.scale_by_rss(eps=epsilon)
        case "rmsprop":
            scale = optax.scale_by_rms(beta2, eps=epsilon)
            return optax.chain(scale, optax.trace(momentum)) if momentum else scale
        case "adam" | "adamw" | "lamb":
            return optax.scale_by_adam(beta1, beta2, eps=epsilon)
        case "lion":
            return optax.scale_by_lion(beta1, beta2)
        case "muon":
            adam = optax.scale_by_adam(beta1, beta2, eps=epsilon)
            return optax.partition({"muon": _scale_by_muon(momentum), "adam": adam}, _muon_labels)
        case _:
            raise UserError(f"optimizer.name is {optimizer.name!r}: {nearest(optimizer.name, OPTIMIZERS)}")


def _scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Jordan et al. 2024, on kernels as matrices from all inputs (height, width, channels) to the output channels."""

    def inputs_to_outputs(updates: Any) -> Any:
        return jax.tree.map(
            lambda update: contrib.MuonDimensionNumbers(tuple(range(update.ndim - 1)), update.ndim - 1), updates
        )

    def to_adam_size(update: jax.Array, _: Any) -> jax.Array:
        *inputs, outputs = update.shape
        return 0.2 * math.sqrt(max(math.prod(inputs), outputs)) * update

    return optax.chain(
        contrib.scale_by_muon(beta=momentum, nesterov=True, weight_dimension_numbers=inputs_to_outputs),
        # entries of root mean square 0.2, as AdamW's typically are, so that one learning rate serves both
        # (Liu et al. 2025, arXiv:2502.16982, section 2.2)
        optax.stateless_with_tree_map(to_adam_size),
    )


def _muon_labels(params: Any) -> Any:
    def label(path: tuple[Any, ...], _: Any) -> str:
        names = _names(path)
        return "muon" if names[-1] == "kernel" and "head" not in names else "adam"

    return jax.tree_util.tree_map_with_path(label, params)
