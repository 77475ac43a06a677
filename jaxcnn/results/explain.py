"""Grad-CAM, where a network looks (Selvaraju et al. 2017, arXiv:1610.02391), pure and batched, and its drawing.

The gradient is by a perturbation at a stage's tap (layers/features.py), so any model that shows a map can be explained.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.features import FEATURES, PERTURBATIONS, feature_pyramid

_SHOWN_SIDE = 224  # pixels: smaller images are drawn larger, by a whole factor


def choose_layer(model: nn.Module, variables: Any, image_shape: tuple[int, int, int], layer: str | None = None) -> str:
    """The stage to explain by: `layer`, or the last whose map has more than one place. Raises UserError.

    A model of which the last has no influence on the logits names another in `explained_by`.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shown = jax.eval_shape(partial(feature_pyramid, model), variables, images)
    maps = [name for name, x in shown.items() if x.ndim == 4 and x.shape[1] * x.shape[2] > 1]
    if not maps:
        raise UserError(f"{type(model).__name__} shows no map of an image's places, and Grad-CAM explains by one")
    if layer is None:
        named: str = getattr(model, "explained_by", maps[-1])
        return named if named in maps else maps[-1]
    if layer not in maps:
        raise UserError(f"layer={layer!r} is no map of {type(model).__name__}; {nearest(layer, maps)}")
    return layer


def grad_cam(
    model: nn.Module, variables: Any, images: jax.Array, *, layer: str, target: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """Heat maps float32 [batch, height, width] of the images' size, and logits [batch, classes].

    Channels of the layer's map are summed, each weighted by the mean over the places of the gradient of the class's
    logit by it; what speaks against the class is dropped; the map is enlarged, bilinear. In units of the logit.

    Args:
      images: normalised, [batch, height, width, channels].
      layer: a stage, from choose_layer.
      target: the class to explain, int, or of each image one, [batch]; none: the predicted ones.
    """

    def apply(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        perturbed = {**variables, PERTURBATIONS: {layer: perturbation}}
        logits, shown = model.apply(perturbed, images, train=False, mutable=[FEATURES])
        return logits, shown[FEATURES][layer]

    like = jax.eval_shape(lambda: feature_pyramid(model, variables, images)[layer])
    logits, pull_back, features = jax.vjp(apply, jnp.zeros(like.shape, like.dtype), has_aux=True)
    classes = logits.argmax(axis=-1) if target is None else jnp.broadcast_to(target, len(images))
    (gradient,) = pull_back(jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype))
    weights = gradient.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
    heat = nn.relu((weights * features.astype(jnp.float32)).sum(axis=-1))
    return jax.image.resize(heat, images.shape[:3], "bilinear"), logits


def overlay(image: np.ndarray, heat: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """The image with the heat over it, uint8 [height, width, 3]: red where it is highest and blue where there is none.

    Args:
      image: uint8 [height, width, 1 or 3]. A small one is drawn larger.
      heat: [height, width], of any scale: its highest value is drawn red, and all zeros blue.
      opacity: of the colours, 0 to 1.
    """
    import cv2

    highest = float(heat.max())
    levels = np.round(255 * heat / highest if highest > 0 else np.zeros(heat.shape)).astype(np.uint8)
    factor = max(1, -(-_SHOWN_SIDE // max(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    enlarged = cv2.resize(levels, size, interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(enlarged, cv2.COLORMAP_TURBO)[:, :, ::-1]  # from OpenCV's BGR
    shown = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST).reshape(*size[::-1], -1)
    return np.round((1 - opacity) * shown + opacity * colours).astype(np.uint8)
