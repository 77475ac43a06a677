"""Batch normalisation (Ioffe and Szegedy 2015), over one device's batch or the global one; and what may replace it.

Parameters, statistics and the arithmetic between them are float32, whatever the compute dtype.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError

Means = tuple[jax.Array, ...]


def _on_this_device(means: Means) -> Means:
    return means


def _centre(x: jax.Array, over_devices: Callable[[Means], Means]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x - mean, the mean and the variance (divided by n), over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    # A float32 mean is wrong by about 1e-7 of its size, which can be more than the spread. So it is only an anchor, and
    # what it missed is measured on the differences: the corrected two-pass algorithm (Chan, Golub and LeVeque 1983).
    # In exact arithmetic no result depends on the anchor, hence no gradient does.
    (anchor,) = over_devices((jnp.mean(x, axes),))
    centred = x - jax.lax.stop_gradient(anchor)
    missed, square = over_devices((jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes)))
    var = jnp.maximum(square - jnp.square(missed), 0.0)
    return centred - missed, jax.lax.stop_gradient(anchor) + missed, var


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

        x = inputs.astype(jnp.float32)
        if self.use_running_average or held is True:
            centred, var = x - running_mean.value, running_var.value
        else:
            count = self._values_a_channel(x)
            if count == 1 and not self.is_initializing():
                raise UserError(
                    f"batch norm {'/'.join(self.path)} would normalise one value a channel, which leaves none; "
                    "raise batch_size, lower optimizer.accumulate, or set model.norm=group"
                )
            centred, mean, var = _centre(x, self._over_devices if self.synchronise else _on_this_device)
            batch_mean, batch_var = (mean, var) if self.synchronise else self._over_devices((mean, var))
            if self.unbiased:
                batch_var = batch_var * (count / max(count - 1, 1))
            if not self.is_initializing():
                moved_mean = self.momentum * running_mean.value + (1 - self.momentum) * batch_mean
                moved_var = self.momentum * running_var.value + (1 - self.momentum) * batch_var
                if isinstance(held, jax.Array):
                    centred = jnp.where(held, x - running_mean.value, centred)
                    var = jnp.where(held, running_var.value, var)
                    moved_mean = jnp.where(held, running_mean.value, moved_mean)
                    moved_var = jnp.where(held, running_var.value, moved_var)
                running_mean.value, running_var.value = moved_mean, moved_var
        outputs = centred * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return outputs.astype(self.dtype)

    def _values_a_channel(self, x: jax.Array) -> int:
        """Number of values that are normalised together."""
        together = self.synchronise and self.axis_name is not None and not self.is_initializing()
        return x.size // x.shape[-1] * (jax.lax.axis_size(self.axis_name) if together else 1)

    def _over_devices(self, means: Means) -> Means:
        if self.axis_name is None or self.is_initializing():  # a model is initialised outside the mapped axis
            return means
        averaged: Means = jax.lax.pmean(means, self.axis_name)
        return averaged


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
