"""From config to optax: the learning rate's schedule, and the optimizer as one chain.

Nothing here scales the learning rate, accumulates gradients or averages weights. Penalties and decay act on kernels
only, never on biases or on the scales of norms; the two optimizers of the CIFAR-10 speed records decay by group.
"""

import math
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxcnn.config import OptimizerConfig, ScheduleConfig
from jaxcnn.errors import UserError, nearest
from jaxcnn.training.finetune import EVERYTHING, Finetuning

SCHEDULES = ("cosine", "step", "one_cycle", "triangle", "linear", "constant", "plateau")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lamb", "lion", "muon")
GROUPED = ("airbench_sgd", "airbench_muon")  # rates and decay of their own for groups of parameters
DECOUPLED = ("adamw", "lamb", "lion", "muon")  # weight_decay_mode "auto": these decay apart from the gradient


def make_schedule(schedule: ScheduleConfig, *, peak: float, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The learning rate by the number of updates already applied: the first step asks at 0."""
    if schedule.name == "one_cycle":  # Smith and Topin 2018; starts at peak / 25, ends at that / 10,000
        if schedule.warmup_epochs:
            raise UserError("schedule.warmup_epochs is not for one_cycle, which warms up by itself: set it to 0")
        if total_steps == 1:
            return optax.constant_schedule(peak)
        rise = min(max(1, int(schedule.peak_fraction * total_steps)), total_steps - 1)
        return optax.piecewise_interpolate_schedule("cosine", peak / 25, {rise: 25, total_steps: 1 / (25 * 1e4)})
    if schedule.name == "triangle":
        up = int(schedule.peak_fraction * total_steps)
        rise = optax.linear_schedule(schedule.initial_fraction * peak, peak, up)
        fall = optax.linear_schedule(peak, schedule.final_fraction * peak, total_steps - up)
        return optax.join_schedules([rise, fall], [up])

    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    decay_steps = max(1, total_steps - warmup_steps)  # a run cut short may end within its warm-up
    match schedule.name:
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=schedule.final_fraction)
        case "linear":
            decay = optax.linear_schedule(peak, schedule.final_fraction * peak, decay_steps)
        case "step":
            late = [epoch for epoch in schedule.step_epochs if epoch * steps_per_epoch >= total_steps]
            if late:
                raise UserError(
                    f"schedule.step_epochs={schedule.step_epochs}: the run ends after "
                    f"{total_steps / steps_per_epoch:g} epochs, before epoch {late[0]:g}; name earlier ones"
                )
            # where steps are longer than epochs, several drops may fall on one
            drops = Counter(max(1, round(epoch * steps_per_epoch) - warmup_steps) for epoch in schedule.step_epochs)
            factors = {step: schedule.step_factor**count for step, count in drops.items()}
            decay = optax.piecewise_constant_schedule(peak, factors)
        case "constant" | "plateau":  # what validation makes of it is in the optimizer's state: RateFactor
            decay = optax.constant_schedule(peak)
        case _:
            raise UserError(f"schedule.name is {schedule.name!r}: {nearest(schedule.name, SCHEDULES)}")
    if not warmup_steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), decay], [warmup_steps])


def make_optimizer(
    optimizer: OptimizerConfig,
    learning_rate: optax.Schedule,
    finetuning: Finetuning = EVERYTHING,
    *,
    plateau: bool = False,
) -> optax.GradientTransformation:
    """The links in the order in which a gradient passes them on its way to the weights.

    With `plateau` the last multiplies by a number in the state, which `set_rate_factor` changes between steps.
    """
    if optimizer.name in GROUPED:
        return _grouped(optimizer, learning_rate)
    mode = optimizer.weight_decay_mode
    if mode == "auto":
        mode = "decoupled" if optimizer.name in DECOUPLED else "l2"
    l2 = optimizer.weight_decay if mode == "l2" else 0.0
    decoupled = optimizer.weight_decay if mode == "decoupled" else 0.0
    none = optax.identity()
    to_step = (
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
    )
    return optax.chain(
        # clip each entry of the gradient
        none if optimizer.clip_value is None else optax.clip(optimizer.clip_value),
        # clip the gradient's norm over all parameters together
        none if optimizer.clip_norm is None else optax.clip_by_global_norm(optimizer.clip_norm),
        *(to_step if finetuning is EVERYTHING else [_by_start(optax.chain(*to_step), finetuning)]),
        # downhill, by the schedule
        optax.scale_by_learning_rate(learning_rate),
        # times what the rate of each layer is multiplied by
        *([] if finetuning is EVERYTHING else [optax.stateless(lambda updates, _: finetuning.scale(updates))]),
        # times what validation has made of the rate
        *([_scale_by_rate_factor()] if plateau else []),
    )


class RateFactor(NamedTuple):
    """State of the link that follows validation: an array, so that another value is the same program."""

    rate_factor: jax.Array  # float32 [], 1 at the beginning


def _scale_by_rate_factor() -> optax.GradientTransformation:
    def update(updates: Any, state: RateFactor, _: Any = None) -> tuple[Any, RateFactor]:
        return jax.tree.map(lambda update: state.rate_factor * update, updates), state

    return optax.GradientTransformation(lambda _: RateFactor(jnp.ones((), jnp.float32)), update)


def set_rate_factor(opt_state: Any, rate_factor: jax.Array) -> Any:
    """The state of an optimizer made with `plateau`, with another factor on its rate."""
    return optax.tree_utils.tree_set(opt_state, rate_factor=rate_factor)


def _by_start(to_step: optax.GradientTransformation, finetuning: Finetuning) -> optax.GradientTransformation:
    """`to_step` for the parameters that train, apart for each step from which some do; none for frozen ones.

    Until then it does not move and keeps its state, momenta and counts, as it begins: neither does weight decay act.
    """

    def from_step(start: int) -> optax.GradientTransformation:
        return optax.transforms.conditionally_mask(to_step, lambda step: step >= start) if start else to_step

    starts = {start for start in finetuning.starts.values() if start is not None}
    by_label = {f"from_{start}": from_step(start) for start in starts} | {"frozen": optax.set_to_zero()}
    return optax.partition(by_label, finetuning.labels)


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
            raise UserError(f"optimizer.name is {optimizer.name!r}: {nearest(optimizer.name, OPTIMIZERS + GROUPED)}")


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


# ---- the optimizers of the CIFAR-10 speed records (Jordan 2024, arXiv:2404.00498), by groups of parameters


def _grouped(optimizer: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Nesterov momentum in every group; of `airbench_muon` Muon for the kernels, and an own fall of the first bias."""
    groups, is_muon = optimizer.groups, optimizer.name == "airbench_muon"
    momentum = groups.muon_rest_momentum if is_muon else optimizer.momentum

    def nesterov(rate: float, schedule: optax.Schedule = learning_rate) -> optax.GradientTransformation:
        return optax.chain(
            # divided by the rate, by which the step is multiplied: every group shrinks by schedule * weight_decay
            optax.add_decayed_weights(optimizer.weight_decay / rate),
            optax.trace(momentum, nesterov=True),
            optax.scale_by_learning_rate(lambda step: rate * schedule(step)),
        )

    def until_frozen(step: jax.Array) -> jax.Array:
        whole = groups.whiten_bias_steps
        if is_muon:
            return optimizer.learning_rate * jnp.maximum(0.0, 1 - step / whole)
        return jnp.where(step < whole, learning_rate(step), 0.0)

    by_group = {
        "kernels": _muon_on_a_sphere(optimizer.momentum, learning_rate) if is_muon else nesterov(1.0),
        "norm_biases": nesterov(groups.norm_bias_rate),
        "head": nesterov(groups.head_rate),
        "whiten_bias": nesterov(groups.whiten_bias_rate, until_frozen),
        "whiten_kernel": optax.set_to_zero(),
    }
    return optax.chain(
        optax.identity() if optimizer.clip_value is None else optax.clip(optimizer.clip_value),
        optax.identity() if optimizer.clip_norm is None else optax.clip_by_global_norm(optimizer.clip_norm),
        optax.partition(by_group, parameter_groups),
    )


def parameter_groups(params: Any) -> Any:
    """A tree like params: the name of each one's group."""

    def group(path: tuple[Any, ...], _: Any) -> str:
        names = _names(path)
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
