"""Convolutions by oneDNN, with derivatives of every order: a convolution's gradients are convolutions too."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxcnn.layers.conv_cpu import Window
from jaxcnn.layers.onednn.call import convolved, varying
from jaxcnn.layers.onednn.plan import BY_IMAGES, BY_KERNEL, FORWARD, Convolution

_Pair = tuple[jax.Array, jax.Array]


def conv_onednn(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Images [batch, height, width, in], kernel [height, width, in / groups, out]; computed in float32.

    Raises OneDNNError where the library cannot be used.
    """
    of = Convolution(FORWARD, x.shape, kernel.shape, window)
    return _forward(x.astype(jnp.float32), kernel.astype(jnp.float32), of).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _forward(images: jax.Array, kernel: jax.Array, of: Convolution) -> jax.Array:
    return convolved(of._replace(which=FORWARD), images, kernel, of.result)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_images(kernel: jax.Array, dy: jax.Array, of: Convolution) -> jax.Array:
    return convolved(of._replace(which=BY_IMAGES), kernel, dy, of.images)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_kernel(images: jax.Array, dy: jax.Array, of: Convolution) -> jax.Array:
    return convolved(of._replace(which=BY_KERNEL), images, dy, of.kernel)


# The sum over images, kernel and dy of all products is linear in each: each operation's derivatives are the others.


def _forward_back(of: Convolution, saved: _Pair, dy: jax.Array) -> _Pair:
    images, kernel = saved
    return _shared_as(images, _by_images(kernel, dy, of)), _shared_as(kernel, _by_kernel(images, dy, of))


def _by_images_back(of: Convolution, saved: _Pair, images: jax.Array) -> _Pair:
    kernel, dy = saved
    return _shared_as(kernel, _by_kernel(images, dy, of)), _shared_as(dy, _forward(images, kernel, of))


def _by_kernel_back(of: Convolution, saved: _Pair, kernel: jax.Array) -> _Pair:
    images, dy = saved
    return _shared_as(images, _by_images(kernel, dy, of)), _shared_as(dy, _forward(images, kernel, of))


def _shared_as(primal: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The sum over the devices of a shard_map that share `primal`: what its transpose owes where it checks (vma)."""
    axes = varying(cotangent) - varying(primal)
    return jax.lax.psum(cotangent, tuple(axes)) if axes else cotangent


_forward.defvjp(lambda x, k, of: (_forward(x, k, of), (x, k)), _forward_back)
_by_images.defvjp(lambda k, dy, of: (_by_images(k, dy, of), (k, dy)), _by_images_back)
_by_kernel.defvjp(lambda x, dy, of: (_by_kernel(x, dy, of), (x, dy)), _by_kernel_back)
