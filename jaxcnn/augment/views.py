"""Input of a model: the normalised image, and in prediction perhaps several views of it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError, nearest

Normalise = Callable[[jax.Array], jax.Array]
Predict = Callable[[jax.Array], jax.Array]  # images -> logits

VIEWS = ("none", "flip", "flip_translate", "shifts")


def make_normalise(mean: Sequence[float], std: Sequence[float]) -> Normalise:
    """Levels 0..255 [..., C] to float32 (x / 255 - mean) / std, with mean and std a channel in 0..1."""
    as_array = jnp.asarray if isinstance(mean, jax.Array) else np.asarray  # traced, where many runs are one program
    mean_array, std_array = as_array(mean, np.float32), as_array(std, np.float32)

    def normalise(images: jax.Array) -> jax.Array:
        channels = images.shape[-1]
        if mean_array.shape != (channels,) or std_array.shape != (channels,):
            raise UserError(
                f"data.mean has {mean_array.size} values and data.std {std_array.size}, but images have {channels} "
                "channels; give one value a channel, or neither to have them measured"
            )
        return (images.astype(jnp.float32) / 255 - mean_array) / std_array

    return normalise


def average_views(predict: Predict, images: jax.Array, *, views: str) -> jax.Array:
    """The logits of images [B, H, W, C], or their average over several views of each ("test-time augmentation").

    Args:
      predict: images to logits.
      views: "none": the image; "flip": and its mirror image; "flip_translate": half of that, and a quarter each of the
        same for the image shifted by one pixel along one diagonal and back, what comes into view being reflected;
        "shifts": a fifth each of the image and of it shifted by one pixel up, down, left and right, reflected too.
    """

    def with_mirror(images: jax.Array) -> jax.Array:
        return 0.5 * predict(images) + 0.5 * predict(images[:, :, ::-1])

    match views:
        case "none":
            return predict(images)
        case "flip":
            return with_mirror(images)
        case "flip_translate":
            padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            shifted = with_mirror(padded[:, :-2, :-2]), with_mirror(padded[:, 2:, 2:])
            return 0.5 * with_mirror(images) + 0.25 * shifted[0] + 0.25 * shifted[1]
        case "shifts":
            height, width = images.shape[1:3]
            padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
            offsets = (1, 1), (0, 1), (2, 1), (1, 0), (1, 2)
            shown = [predict(padded[:, top : top + height, left : left + width]) for top, left in offsets]
            return jnp.mean(jnp.stack(shown), axis=0)
        case _:
            raise UserError(f"eval_tta is {views!r}: {nearest(views, VIEWS)}")
