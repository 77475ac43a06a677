"""From config to optax: the learning rate's schedule, and the optimizer as one chain.

Each schedule and each optimizer is a function here, named by an entry of config/choices.py. Nothing here scales the
learning rate, accumulates gradients or averages weights. Penalties and decay act on kernels only, never on biases or on
the scales of norms.
"""

import math
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxcnn.config import OptimizerConfig, ScheduleConfig
from jaxcnn.config.choices import choose
from jaxcnn.errors import UserError
from jaxcnn.training.finetune import EVERYTHING, Finetuning

# ---- schedules: (config, span) -> the learning rate by the number of updates already applied


class Span(NamedTuple):
    """What a schedule is stretched to."""

    peak: float  # the largest rate; may be traced
    total_steps: int
    steps_per_epoch: float


def make_schedule(schedule: ScheduleConfig, *, peak: float, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The learning rate by the number of updates already applied: the first step asks at 0."""
    return choose("schedule.name", schedule.name).load()(schedule, Span(peak, total_steps, steps_per_epoch))


def cosine(schedule: ScheduleConfig, span: Span) -> optax.Schedule:
    """Down half a cosine, after the warm-up."""
    decay_steps = _steps_after_warm_up(schedule, span)
    return _warmed_up(schedule, span, optax.cosine_decay_schedule(span.peak, decay_steps, schedule.final_fraction))


def linear(schedule: ScheduleConfig, span: Span) -> optax.Schedule:
    """Down a straight line, after the warm-up."""
    decay_steps = _steps_after_warm_up(schedule, span)
    last = schedule.final_fraction * span.peak
    return _warmed_up(schedule, span, optax.linear_schedule(span.peak, last, decay_steps))


def step(schedule: ScheduleConfig, span: Span) -> optax.Schedule:
    """Multiplied by step_factor at each of step_epochs, which are counted from the start of the run."""
    late = [epoch for epoch in schedule.step_epochs if epoch * span.steps_per_epoch >= span.total_steps]
    if late:
        raise UserError(
            f"schedule.step_epochs={schedule.step_epochs}: the run ends after "
            f"{span.total_steps / span.steps_per_epoch:g} epochs, before epoch {late[0]:g}; name earlier ones"
        )
    warmup_steps = _warmup_steps(schedule, span)
    # where steps are longer than epochs, several drops may fall on one
    drops = Counter(max(1, round(epoch * span.steps_per_epoch) - warmup_steps) for epoch in schedule.step_epochs)
    factors = {place: schedule.step_factor**count for place, count in drops.items()}
    return _warmed_up(schedule, span, optax.piecewise_constant_schedule(span.peak, factors))


def constant(schedule: ScheduleConfig, span: Span) -> optax.Schedule:
    """The peak, after the warm-up; of `plateau` too, which multiplies by what validation makes of it: RateFactor."""
    return _warmed_up(schedule, span, optax.constant_schedule(span.peak))


def one_cycle(schedule: ScheduleConfig, span: Span) -> optax.Schedule:
    """Smith and Topin 2018: starts at peak / 25, ends at that / 10,000."""
    if schedule.warmup_epochs:
        raise UserError("schedule.warmup_epochs is not for one_cycle, which warms up by itself: set it to 0")
    if span.total_steps == 1:
        return optax.constant_schedule(span.peak)
    rise = min(max(1, int(schedule.peak_fraction * span.total_steps)), span.total_steps - 1)
    return optax.piecewise_interpolate_schedule("cosine", span.peak / 25, {rise: 25, span.total_steps: 1 / (25 * 1e4)})


def triangle(schedule: ScheduleConfig, span: Span) -> optax.Schedule:
    """Up a straight line to the peak, then down another."""
    up = int(schedule.peak_fraction * span.total_steps)
    rise = optax.linear_schedule(schedule.initial_fraction * span.peak, span.peak, up)
    fall = optax.linear_schedule(span.peak, schedule.final_fraction * span.peak, span.total_steps - up)
    return optax.join_schedules([rise, fall], [up])


def _warmup_steps(schedule: ScheduleConfig, span: Span) -> int:
    return round(schedule.warmup_epochs * span.steps_per_epoch)


def _steps_after_warm_up(schedule: ScheduleConfig, span: Span) -> int:
    return max(1, span.total_steps - _warmup_steps(schedule, span))  # a run cut short may end within its warm-up


def _warmed_up(schedule: ScheduleConfig, span: Span, decay: optax.Schedule) -> optax.Schedule:
    """`decay` after a straight line from 0."""
    warmup_steps = _warmup_steps(schedule, span)
    if not warmup_steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, span.peak, warmup_steps), decay], [warmup_steps])


# ---- optimizers: (config, rate) -> the chain from a gradient to the step that is added to the weights


class Rate(NamedTuple):
    """How far a step goes, as every optimizer is told."""

    schedule: optax.Schedule  # the learning rate by the number of updates
    finetuning: Finetuning = EVERYTHING  # which layers move, from when, how fast
    plateau: bool = False  # whether the state has a RateFactor


def make_optimizer(
    optimizer: OptimizerConfig,
    learning_rate: optax.Schedule,
    finetuning: Finetuning = EVERYTHING,
    *,
    plateau: bool = False,
) -> optax.GradientTransformation:
    """The optimizer that the config names, with its schedule.

    With `plateau` its last link multiplies by a number in the state, which `set_rate_factor` changes between steps.
    """
    return choose("optimizer.name", optimizer.name).load()(optimizer, Rate(learning_rate, finetuning, plateau))


def make_chain(
    optimizer: OptimizerConfig,
    rate: Rate,
    direction: optax.GradientTransformation,
    *,
    decoupled: bool = False,
    after_decay: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """The links in the order in which a gradient passes them on its way to the weights.

    The names of a checkpoint's arrays have a link's place in them, so what is off is a link too, the identity.

    Args:
      optimizer: strengths of decay and penalty, bounds of the gradient.
      rate: what a step is multiplied by.
      direction: the optimizer proper, from a gradient to a step of rate 1.
      decoupled: weight_decay_mode=auto means beside the gradient, not in it.
      after_decay: acts on the step with its decay.
    """
    mode = optimizer.weight_decay_mode
    if mode == "auto":
        mode = "decoupled" if decoupled else "l2"
    beside = optimizer.weight_decay if mode == "decoupled" else 0.0
    l2 = optimizer.weight_decay if mode == "l2" else 0.0
    none = optax.identity()
    to_step = (
        # the gradient of l2 / 2 * sum w^2, which the optimizer then scales like the loss's
        optax.add_decayed_weights(l2, mask=kernel_mask) if _present(l2) else none,
        # the gradient of l1 * sum |w|
        optax.masked(_add_signs(optimizer.l1), kernel_mask) if optimizer.l1 else none,
        # the optimizer proper
        direction,
        # decay beside it: w shrinks by learning_rate * it (Loshchilov and Hutter 2019, as AdamW in PyTorch)
        optax.add_decayed_weights(beside, mask=kernel_mask) if _present(beside) else none,
        none if after_decay is None else after_decay,
    )
    finetuning = rate.finetuning
    return optax.chain(
        *clipping(optimizer),
        *(to_step if finetuning is EVERYTHING else [_by_start(optax.chain(*to_step), finetuning)]),
        # downhill, by the schedule
        optax.scale_by_learning_rate(rate.schedule),
        # times what the rate of each layer is multiplied by
        *([] if finetuning is EVERYTHING else [optax.stateless(lambda updates, _: finetuning.scale(updates))]),
        # times what validation has made of the rate
        *([_scale_by_rate_factor()] if rate.plateau else []),
    )


def clipping(optimizer: OptimizerConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The first two links of a chain: each entry of the gradient, then its norm over all parameters together."""
    value, norm = optimizer.clip_value, optimizer.clip_norm
    return (
        optax.identity() if value is None else optax.clip(value),
        optax.identity() if norm is None else optax.clip_by_global_norm(norm),
    )


# What config leaves open is optax's: adagrad's sums start at 0.1, its and rmsprop's epsilon is inside the root.


def sgd(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """The gradient itself."""
    return make_chain(optimizer, rate, optax.identity())


def momentum(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Polyak 1964, as PyTorch has it: the buffer is momentum * buffer + gradient."""
    return make_chain(optimizer, rate, optax.trace(optimizer.momentum))


def nesterov(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Sutskever et al. 2013, as PyTorch has it."""
    return make_chain(optimizer, rate, optax.trace(optimizer.momentum, nesterov=True))


def adagrad(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Duchi et al. 2011."""
    return make_chain(optimizer, rate, optax.scale_by_rss(eps=optimizer.epsilon))


def rmsprop(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Tieleman and Hinton 2012; the scaled gradient then has momentum, unless that is 0."""
    scale = optax.scale_by_rms(_beta2(optimizer, 0.9), eps=optimizer.epsilon)
    direction = optax.chain(scale, optax.trace(optimizer.momentum)) if optimizer.momentum else scale
    return make_chain(optimizer, rate, direction)


def adam(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Kingma and Ba 2015."""
    return make_chain(optimizer, rate, _scale_by_adam(optimizer))


def adamw(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Loshchilov and Hutter 2019."""
    return make_chain(optimizer, rate, _scale_by_adam(optimizer), decoupled=True)


def lamb(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """You et al. 2020, algorithm 2: a layerwise rate, of the step with its decay."""
    layerwise = optax.scale_by_trust_ratio()
    return make_chain(optimizer, rate, _scale_by_adam(optimizer), decoupled=True, after_decay=layerwise)


def lion(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Chen et al. 2023."""
    direction = optax.scale_by_lion(optimizer.beta1, _beta2(optimizer, 0.99))
    return make_chain(optimizer, rate, direction, decoupled=True)


def muon(optimizer: OptimizerConfig, rate: Rate) -> optax.GradientTransformation:
    """Jordan et al. 2024, of kernels below the head; Adam for the rest."""
    by_label = {"muon": _scale_by_muon(optimizer.momentum), "adam": _scale_by_adam(optimizer)}
    return make_chain(optimizer, rate, optax.partition(by_label, _muon_labels), decoupled=True)


def _beta2(optimizer: OptimizerConfig, default: float) -> float:
    return default if optimizer.beta2 is None else optimizer.beta2


def _scale_by_adam(optimizer: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(optimizer.beta1, _beta2(optimizer, 0.999), eps=optimizer.epsilon)


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
        names = path_names(path)
        return "muon" if names[-1] == "kernel" and "head" not in names else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


# ---- links


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
    return jax.tree_util.tree_map_with_path(lambda path, _: path_names(path)[-1] == "kernel", params)


def path_names(path: tuple[Any, ...]) -> list[str]:
    """A parameter's path in its tree: ["conv1", "kernel"]."""
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _add_signs(l1: float) -> optax.GradientTransformation:
    return optax.stateless_with_tree_map(lambda gradient, weight: gradient + l1 * jnp.sign(weight))
