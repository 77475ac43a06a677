"""Batch normalisation (Ioffe and Szegedy 2015), over one device's batch or the global one; and what may replace it.

Parameters, statistics and the arithmetic between them are float32, whatever the compute dtype.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError

Means = tuple[jax.Array, ...]


# Each of the two operations below has a gradient of its own, which reads the array less often than JAX's would. Between
# them are means over devices and arithmetic on channels, which are JAX's to differentiate. `anchor` has no gradient: in
# exact arithmetic no result depends on it.


@jax.custom_vjp
def _moments(x: jax.Array, anchor: jax.Array) -> Means:
    """Means of x - anchor and of its square, over all axes but the last."""
    axes, centred = tuple(range(x.ndim - 1)), x - anchor
    return jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes)


def _moments_backward(saved: Means, cotangents: Means) -> tuple[jax.Array, None]:
    x, anchor = saved
    by_mean, by_square = (each * (x.shape[-1] / x.size) for each in cotangents)
    return by_mean + 2 * by_square * (x - anchor), None


_moments.defvjp(lambda x, anchor: (_moments(x, anchor), (x, anchor)), _moments_backward)


@jax.custom_vjp
def _scaled(x: jax.Array, anchor: jax.Array, shift: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - anchor - shift) * scale + bias, in this order, in which a mean far from zero loses nothing."""
    return (x - anchor - shift) * scale + bias


def _scaled_backward(saved: Means, dy: jax.Array) -> tuple[Any, ...]:
    x, anchor, shift, scale = saved
    axes = tuple(range(x.ndim - 1))
    by_bias, by_scale = jnp.sum(dy, axes), jnp.sum(dy * (x - anchor - shift), axes)
    return dy * scale, None, -scale * by_bias, by_scale, by_bias


_scaled.defvjp(lambda *operands: (_scaled(*operands), operands[:4]), _scaled_backward)


@jax.custom_vjp
def _gradient_once(x: jax.Array) -> jax.Array:
    """Returns x, whose gradient is computed once.

    XLA for CPUs would compute it in each place that reads it: after DenseNet's concatenations in 30.
    """
    return x


_gradient_once.defvjp(
    lambda x: (x, None),
    lambda _, dx: (jax.lax.platform_dependent(dx, cpu=jax.lax.optimization_barrier, default=lambda dx: dx),),
)


def _anchor(x: jax.Array, axis_name: str | None) -> jax.Array:
    """A number near the mean of each channel: moments around it lose nothing to cancellation (Chan et al. 1983).

    It is the mean of one example, read in a fraction of the time, and off by at most the root of the number of examples
    in standard deviations.
    """
    (anchor,) = _mean_over(axis_name, jnp.mean(x[:1], tuple(range(x.ndim - 1))))
    return jax.lax.stop_gradient(anchor)


def _mean_over(axis_name: str | None, *means: jax.Array) -> Means:
    """The devices' average of each."""
    averaged: Means = means if axis_name is None else jax.lax.pmean(means, axis_name)
    return averaged


# Both are jitted so that layers of one shape are traced once: a network has some fifty of ten shapes.


@partial(jax.jit, static_argnames=("epsilon", "dtype"))
def _by_running(
    inputs: jax.Array, running: Means, scale: Any, bias: jax.Array, *, epsilon: float, dtype: Any
) -> jax.Array:
    """Normalised by running statistics (mean, variance)."""
    mean, var = running
    return ((inputs.astype(jnp.float32) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias).astype(dtype)


@partial(jax.jit, static_argnames=("epsilon", "dtype", "axis_name"))
def _by_batch(
    inputs: jax.Array,
    running: Means,
    scale: Any,
    bias: jax.Array,
    held: bool | jax.Array,
    *,
    epsilon: float,
    dtype: Any,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(normalised by the batch's own statistics or, while held, by running ones; the batch's mean; its variance)."""
    x = _gradient_once(inputs.astype(jnp.float32))
    anchor = _anchor(x, axis_name)
    missed, square = _mean_over(axis_name, *_moments(x, anchor))
    mean, var = anchor + missed, jnp.maximum(square - jnp.square(missed), 0.0)
    shift = jnp.where(held, running[0] - anchor, missed)
    inverse = jax.lax.rsqrt(jnp.where(held, running[1], var) + epsilon)
    return _scaled(x, anchor, shift, inverse * scale, bias).astype(dtype), mean, var


class BatchNorm(nn.Module):
    """Normalises the last axis over all others, on every device of `axis_name` together when synchronised.

    Running statistics hold the biased variance (divided by n), unless asked for PyTorch's (by n - 1). They are equal on
    all devices even when each normalises by its own batch: they then follow the devices' average mean and variance.
    """

    use_running_average: bool
    momentum: float = 0.9  # running <- momentum * running + (1 - momentum) * batch
    epsilon: float = 1e-5
    axis_name: str | None = None  # the mapped axis over the devices; none: this device has the whole batch
    synchronise: bool = True
    dtype: DTypeLike = jnp.float32  # of the output
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()
    use_scale: bool = True  # a trained scale; else it is 1
    unbiased: bool = False  # the running variance is divided by n - 1; what normalises a batch never is

    @nn.compact
    def __call__(self, inputs: jax.Array, held: bool | jax.Array = False) -> jax.Array:
        """Same shape, in `dtype`; in training it also moves the running statistics.

        While `held`, which may be traced, it is in training as in evaluation: see finetune.py.
        """
        channels = inputs.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, jnp.float32) if self.use_scale else 1.0
        bias = self.param("bias", nn.initializers.zeros_init(), channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        running = running_mean.value, running_var.value
        options: dict[str, Any] = {"epsilon": self.epsilon, "dtype": self.dtype}
        if self.use_running_average or held is True:
            normalised: jax.Array = _by_running(inputs, running, scale, bias, **options)
            return normalised
        count = self._values_a_channel(inputs)
        if count == 1 and not self.is_initializing():
            raise UserError(
                f"batch norm {'/'.join(self.path)} would normalise one value a channel, which leaves none; "
                "raise batch_size, lower optimizer.accumulate, or set model.norm=group"
            )
        axis_name = self._axis if self.synchronise else None
        outputs, mean, var = _by_batch(inputs, running, scale, bias, held, **options, axis_name=axis_name)
        if not self.synchronise:
            mean, var = _mean_over(self._axis, mean, var)
        if self.unbiased:
            var = var * (count / max(count - 1, 1))
        if not self.is_initializing():
            moved = (
                self.momentum * old + (1 - self.momentum) * new for old, new in zip(running, (mean, var), strict=True)
            )
            if isinstance(held, jax.Array):
                moved = (jnp.where(held, old, new) for old, new in zip(running, moved, strict=True))
            running_mean.value, running_var.value = moved
        return outputs

    @property
    def _axis(self) -> str | None:
        """The mapped axis, outside of which a model is initialised."""
        return None if self.is_initializing() else self.axis_name

    def _values_a_channel(self, x: jax.Array) -> int:
        """Number of values that are normalised together."""
        axis_name = self._axis if self.synchronise else None
        return x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


class GroupNorm(nn.Module):
    """Normalises each example over space and groups of channels (Wu and He 2018, arXiv:1803.08494).

    Takes what BatchNorm takes where that has a meaning here, so that one can stand for the other.
    """

    use_running_average: bool = False  # there is no running average: training and evaluation are alike
    num_groups: int = 32  # their common divisor with the channels is used; 1: the paper's "layer norm"
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Same shape, in `dtype`."""
        return nn.GroupNorm(
            num_groups=math.gcd(self.num_groups, inputs.shape[-1]),
            epsilon=self.epsilon,
            dtype=self.dtype,
            scale_init=self.scale_init,
            name="group",
        )(inputs.astype(jnp.float32)).astype(self.dtype)


class NoNorm(nn.Module):
    """A trained bias, which a convolution before a norm lacks, and nothing else."""

    use_running_average: bool = False
    epsilon: float = 0.0
    dtype: DTypeLike = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Same shape, in `dtype`."""
        return inputs + self.param("bias", nn.initializers.zeros_init(), inputs.shape[-1:], jnp.float32).astype(
            self.dtype
        )


def without_axis(model: nn.Module) -> nn.Module:
    """The model for a whole batch on one device."""
    norm: Any = getattr(model, "norm", None)
    if "axis_name" not in getattr(norm, "keywords", {}):  # of norms, batch norm's alone is over devices
        return model
    keywords = {**norm.keywords, "axis_name": None}
    return model.clone(norm=type(norm)(norm.func, *norm.args, **keywords))
