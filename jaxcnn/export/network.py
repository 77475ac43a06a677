"""The network of a run's folder as it is exported: a pure function, its weights, and what is told of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.extend import core

from jaxcnn.augment import make_normalise
from jaxcnn.config import Config, from_dict
from jaxcnn.errors import UserError
from jaxcnn.files import to_json
from jaxcnn.layers.conv import AUTO, by
from jaxcnn.layers.plain import plain
from jaxcnn.machine import versions
from jaxcnn.models.make import make_model
from jaxcnn.results.trained import fitted
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.terminal import one_line
from jaxcnn.transfer.pretrained import run_arrays

TASKS = ("classification", "multilabel")  # of images; the others' inputs are of many kinds


@dataclass(frozen=True)
class Network:
    """A network of images, in float32 whatever it was trained in."""

    module: nn.Module
    variables: dict[str, Any]  # params, batch_stats
    image_shape: tuple[int, int, int]  # height, width, channels
    mean: tuple[float, ...]  # per channel, of images in 0..1
    std: tuple[float, ...]
    raw: bool  # it takes images that are normalised already; else levels, 0 to 255
    facts: dict[str, Any]  # plain data

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """One example's input, without the batch's axis."""
        return jax.ShapeDtypeStruct(self.image_shape, jnp.float32 if self.raw else jnp.uint8)

    @property
    def function(self) -> Callable[[Any, jax.Array], jax.Array]:
        """(variables, images [batch, height, width, channels]) -> float32 logits, in plain operations."""
        return plain(self._logits)

    def logits(self, inputs: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """The same function as it is ordinarily computed here: what an export is compared with."""
        call = jax.jit(by(AUTO, self._logits, platform=jax.default_backend()))
        variables = jax.device_put(self.variables)
        batches = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
        return np.concatenate([np.asarray(call(variables, batch)) for batch in batches])

    def given(self, images: np.ndarray) -> np.ndarray:
        """Images, uint8, as the network takes them."""
        return np.asarray(make_normalise(self.mean, self.std)(jnp.asarray(images))) if self.raw else images

    def text(self) -> dict[str, str]:
        """The facts as metadata: each text, what is more than a word as JSON."""
        return {name: each if isinstance(each, str) else to_json(each) for name, each in self.facts.items()}

    def _logits(self, variables: Any, images: jax.Array) -> jax.Array:
        inputs = images if self.raw else make_normalise(self.mean, self.std)(images)
        try:
            logits: Any = self.module.apply(variables, inputs, train=False)
        except (core.InconclusiveDimensionOperation, TypeError) as error:
            if isinstance(images.shape[0], int):
                raise
            raise UserError(
                f"model {self.facts['model']} does not take a batch of any size ({one_line(error)[:100]}); in its code "
                "write x.shape[0] for len(x), and decide nothing by it"
            ) from None
        result: jax.Array = logits.astype(jnp.float32)
        return result


def load(workdir: str, *, step: str = "best", weights: str | None = None, raw: bool = False) -> Network:
    """The network of a run.

    Args:
      workdir: its folder.
      step: `best` on validation, `last`, or the number of a checkpoint.
      weights: `raw`, or their `average`; none: the average where one is kept.
      raw: whether it takes images that are normalised already.

    Raises:
      UserError: there is no run, no such checkpoint, no average, or the run is not of images.
      RunError: the checkpoint is damaged, or does not fit what config.json says.
    """
    folder = workdir_lib.resolve(workdir)
    saved = workdir_lib.read_config(folder)
    config, data = from_dict(saved["config"]), saved["data"]
    if config.task not in TASKS:
        raise UserError(
            f"{folder} holds a run of task={config.task}; networks of images are exported: {', '.join(TASKS)}"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what is opened to be read cannot be written
    try:
        tensors, _ = run_arrays(folder, step, weights=weights)
    finally:
        logging.set_verbosity(verbosity)
    image_shape = tuple(data["image_shape"])
    model = copy.deepcopy(config.model)
    model.dtype = "float32"
    module = make_model(model, num_classes=len(data["class_names"]), image_size=min(image_shape[:2]))
    example = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return Network(
        module=module,
        variables=fitted(module, tensors.arrays, example, tensors.source),
        image_shape=image_shape,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        raw=raw,
        facts=_facts(folder, saved, config, tensors, weights, raw),
    )


def _facts(
    folder: Any, saved: dict[str, Any], config: Config, tensors: Any, weights: str | None, raw: bool
) -> dict[str, Any]:
    """What a file tells; of the run's folder its name alone, since files are handed to others."""
    data = saved["data"]
    size = ", ".join(map(str, data["image_shape"]))
    given = f"float32 [batch, {size}]: (levels / 255 - mean) / std" if raw else f"uint8 [batch, {size}]: levels 0..255"
    channels = {1: "grey", 3: "RGB", 4: "RGBA"}.get(data["image_shape"][-1], "as trained")
    return {
        "model": config.model.name,
        "task": config.task,
        "input": given,
        "channels": channels,
        "output": f"float32 [batch, {len(data['class_names'])}]: logits",
        "preprocessing": "none: the caller resizes and normalises" if raw else "normalises; the caller resizes",
        "class_names": list(data["class_names"]),
        "image_shape": list(data["image_shape"]),
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "data": data["name"],
        "experiment": saved["experiment"],
        "source": f"{folder.name}, {tensors.source.rpartition(', ')[2]}",
        "weights": weights or "the average where one is kept",
        "weights_sha256": tensors.sha256,
        "versions": versions(),
    }
