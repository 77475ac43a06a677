"""A trained network, from its run's folder alone: no data set, no optimizer, no schedule.

`jaxcnn.load("runs/mnist").predict(images)`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxcnn import workdir as workdir_lib
from jaxcnn.augment import average_views, make_normalise
from jaxcnn.config import Config, from_dict
from jaxcnn.model import make_model
from jaxcnn.transfer.pretrained import run_arrays


@dataclass(frozen=True)
class TrainedModel:
    """A run's model with its weights, and what it takes to show it an image."""

    module: nn.Module
    variables: dict[str, Any]  # `params`, and `batch_stats`, empty for models without batch norm
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    mean: tuple[float, ...]  # per channel, of images in 0..1
    std: tuple[float, ...]
    config: Config
    source: str  # the folder, and which step

    def logits_of(self, variables: dict[str, Any], images: jax.Array, *, views: str = "none") -> jax.Array:
        """The pure function behind `predict`: uint8 [batch, height, width, channels] to float32 [batch, classes]."""

        def apply(normalised: jax.Array) -> Any:
            return self.module.apply(variables, normalised, train=False)

        return average_views(apply, make_normalise(self.mean, self.std)(images), views=views)

    @cached_property
    def _call(self) -> Any:
        return jax.jit(self.logits_of, static_argnames="views")

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 [n, classes] of uint8 images [n, height, width, channels]."""
        return np.asarray(jax.nn.softmax(self._call(self.variables, jnp.asarray(images))))


def load(workdir: str, step: str = "best") -> TrainedModel:
    """The network that a run has trained.

    Args:
      workdir: the run's folder, or its URL.
      step: `best` on validation, `last`, or the number of a checkpoint. The weights' average, where one is kept.

    Raises:
      UserError: there is no run, or no such checkpoint.
      DamagedError: the checkpoint is damaged.
    """
    path = workdir_lib.resolve(str(workdir))
    saved = workdir_lib.read_config(path)
    config, data = from_dict(saved["config"]), saved["data"]
    tensors, _ = run_arrays(path, str(step))
    variables = traverse_util.unflatten_dict(tensors.arrays, sep="/")
    return TrainedModel(
        module=make_model(
            config.model,
            num_classes=len(data["class_names"]),
            image_size=min(data["image_shape"][:2]),
        ),
        variables={"params": variables["params"], "batch_stats": variables.get("batch_stats", {})},
        class_names=tuple(data["class_names"]),
        image_shape=tuple(data["image_shape"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        config=config,
        source=tensors.source,
    )
