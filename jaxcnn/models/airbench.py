"""The networks of the CIFAR-10 speed records (Jordan 2024, arXiv:2404.00498): whitening, three groups, a scaled head.

Their first layer whitens 2x2 patches and is set from the data, then frozen. Convolutions begin as the identity where
they can ("dirac"), the rest of them uniform, as in PyTorch. In each group pooling comes before the first batch norm.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxcnn.errors import UserError
from jaxcnn.layers.conv import Conv
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.layers.pool import max_pool

Layer = Callable[..., Callable[[jax.Array], jax.Array]]  # constructor keywords -> a module from array to array

WHITENING_EPSILON = 5e-4  # added to the eigenvalues, so that the faintest directions are not blown up


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Between -1/sqrt(fan_in) and that, for kernels [..., in, out]: PyTorch's default."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def dirac(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """`uniform`, but the first outputs of a 3x3 kernel [3, 3, in, out] are the inputs themselves."""
    channels = min(shape[2:])
    kernel = uniform(key, shape, dtype).at[..., :channels].set(0)
    return kernel.at[1, 1, jnp.arange(channels), jnp.arange(channels)].set(1)


def unit_std(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """`uniform`, divided by its own standard deviation (by n - 1)."""
    kernel = uniform(key, shape, dtype)
    return kernel / jnp.std(kernel, ddof=1)


def whiten_bias(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """PyTorch's default for the bias of a convolution with half as many inputs (2x2 pixels) as outputs."""
    bound = 1 / math.sqrt(shape[0] // 2)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def whitening_kernel(images: jax.Array) -> jax.Array:
    """[2, 2, c, 8c]: eigenvectors of the 2x2 patches' second moments, each scaled to unit variance, and minus these.

    Args:
      images: normalised, [n, height, width, c].
    """
    channels = images.shape[-1]
    patches = jnp.concatenate(
        [images[:, :-1, :-1], images[:, :-1, 1:], images[:, 1:, :-1], images[:, 1:, 1:]], axis=-1
    ).reshape(-1, 4 * channels)
    moments = jnp.matmul(patches.T, patches, precision="highest") / len(patches)  # not centred
    eigenvalues, eigenvectors = jnp.linalg.eigh(moments)
    filters = eigenvectors / jnp.sqrt(eigenvalues + WHITENING_EPSILON)  # a column each
    return jnp.concatenate([filters, -filters], axis=1).reshape(2, 2, channels, 8 * channels)


def conv(features: int, size: int, *, padding: str, dtype: DTypeLike, name: str) -> Conv:
    """Every convolution of these networks: stride 1, no bias."""
    kernel_init = dirac if size == 3 else uniform
    return Conv(
        features, (size, size), padding=padding, use_bias=False, dtype=dtype, kernel_init=kernel_init, name=name
    )


gelu = partial(nn.gelu, approximate=False)


class Whitening(nn.Module):
    """A frozen 2x2 convolution, and a trained bias."""

    features: int
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Whitens, in float32: bfloat16's rounding of the images is as large as what the faintest directions hold."""
        x = conv(self.features, 2, padding="VALID", dtype=jnp.float32, name="conv")(images)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return jax.lax.stop_gradient(x) + bias  # the images need no gradient, so this freezes the kernel alone


class Group(nn.Module):
    """conv, pool, norm, GELU, conv, norm, GELU; of three convolutions the last two are residual."""

    features: int
    num_convs: int
    norm: Layer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, h, w, c] to [batch, h // 2, w // 2, features]."""
        conv3 = partial(conv, self.features, 3, padding="SAME", dtype=self.dtype)
        x = shortcut = gelu(self.norm(name="norm1")(max_pool(conv3(name="conv1")(x), 2)))
        x = self.norm(name="norm2")(conv3(name="conv2")(x))
        if self.num_convs == 3:
            x = self.norm(name="norm3")(conv3(name="conv3")(gelu(x))) + shortcut
        return gelu(x)


class Airbench(nn.Module):
    """whiten, group1 to group3, a last pooling, head."""

    num_classes: int
    widths: tuple[int, int, int]
    num_convs: int = 2  # in each group: 2, or 3 with a shortcut
    head_init: nn.initializers.Initializer = uniform
    whiten_bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    logit_scale: float = 1 / 9
    norm: Layer = BatchNorm  # lacks what __call__ gives it; its dtype is this module's
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        height, width, channels = images.shape[1:]
        if min(height, width) < 25:
            raise UserError(
                f"airbench networks need images of at least 25x25 pixels and got {height}x{width}: "
                "enlarge them with --config.data.image_size=32, or use --config.model.name=cnn"
            )
        norm = partial(
            self.norm, use_running_average=not train, use_scale=False, unbiased=True, epsilon=1e-12, dtype=self.dtype
        )
        x = gelu(Whitening(8 * channels, self.whiten_bias_init, name="whiten")(images).astype(self.dtype))
        for number, features in enumerate(self.widths, start=1):
            x = Group(features, self.num_convs, norm=norm, dtype=self.dtype, name=f"group{number}")(x)
            x = tap(self, f"stage{number}", x)
        x = max_pool(x, 3).reshape(x.shape[0], -1)
        x = tap(self, "pooled", x)
        head = nn.Dense(
            self.num_classes, use_bias=False, kernel_init=self.head_init, dtype=jnp.float32, name="head"
        )  # fmt: skip
        return head(x) * self.logit_scale

    @nn.nowrap
    def from_data(self, params: Any, images: jax.Array) -> Any:
        """Parameters whose whitening layer suits these normalised images [n, height, width, channels]."""
        return {**params, "whiten": {**params["whiten"], "conv": {"kernel": whitening_kernel(images)}}}


airbench93 = partial(Airbench, widths=(64, 128, 128))
airbench94 = partial(Airbench, widths=(64, 256, 256))
airbench94_muon = partial(airbench94, head_init=unit_std, whiten_bias_init=whiten_bias, logit_scale=1 / 256)
airbench95 = partial(Airbench, widths=(128, 384, 384))
airbench96 = partial(Airbench, widths=(128, 384, 512), num_convs=3)
