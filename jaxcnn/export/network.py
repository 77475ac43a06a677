"""A network as it is exported, of a run's folder or of published weights: a pure function, its weights, its facts."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
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
from jaxcnn.results import trained
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.checkpoint import flatten
from jaxcnn.terminal import one_line
from jaxcnn.training.averaging import averages
from jaxcnn.transfer.pretrained import fitted, run_arrays
from jaxcnn.transfer.state_dicts import digest

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
        return plain(self.logits_for)

    def logits(self, inputs: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """The same function as it is ordinarily computed here: what an export is compared with."""
        call = jax.jit(by(AUTO, self.logits_for, platform=jax.default_backend()))
        variables = jax.device_put(self.variables)
        batches = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
        return np.concatenate([np.asarray(call(variables, batch)) for batch in batches])

    def given(self, images: np.ndarray) -> np.ndarray:
        """Images, uint8, as the network takes them."""
        return np.asarray(make_normalise(self.mean, self.std)(jnp.asarray(images))) if self.raw else images

    def text(self) -> dict[str, str]:
        """The facts as metadata: each text, what is more than a word as JSON."""
        return {name: each if isinstance(each, str) else to_json(each) for name, each in self.facts.items()}

    def logits_for(self, variables: Any, images: jax.Array) -> jax.Array:
        """The function itself, in whatever its layers are traced as."""
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
        facts=_facts(
            config, raw, tuple(data["class_names"]), image_shape, (data["mean"], data["std"]),
            data=data["name"],
            experiment=saved["experiment"],
            source=f"{folder.name}, {tensors.source.rpartition(', ')[2]}",  # files are handed to others: no path
            weights=weights or ("average" if averages(config.optimizer) else "raw"),
            weights_sha256=tensors.sha256,
        ),
    )  # fmt: skip


def of_weights(init_from: str, model: str, *, raw: bool = False) -> Network:
    """A network with ImageNet's published weights, without a run. Arguments and errors as of results.trained."""
    found = trained.of_weights(init_from, model)
    return Network(
        module=found.module,
        variables=found.variables,
        image_shape=found.image_shape,
        mean=found.mean,
        std=found.std,
        raw=raw,
        facts=_facts(
            found.config, raw, found.class_names, found.image_shape, (found.mean, found.std),
            data="ImageNet",
            experiment=model,
            source=PurePath(found.source).name,
            weights="raw",
            weights_sha256=digest(flatten(found.variables)),
            resized=found.resized,
        ),
    )  # fmt: skip


def _facts(
    config: Config, raw: bool, class_names: Sequence[str], image_shape: Sequence[int], moments: Any, **of_source: Any
) -> dict[str, Any]:
    """What a file tells."""
    size = ", ".join(map(str, image_shape))
    given = f"float32 [batch, {size}]: (levels / 255 - mean) / std" if raw else f"uint8 [batch, {size}]: levels 0..255"
    return {
        "model": config.model.name,
        "task": config.task,
        "input": given,
        "channels": {1: "grey", 3: "RGB", 4: "RGBA"}.get(image_shape[-1], "as trained"),
        "output": f"float32 [batch, {len(class_names)}]: logits",
        "preprocessing": "none: the caller resizes and normalises" if raw else "normalises; the caller resizes",
        "class_names": list(class_names),
        "image_shape": list(image_shape),
        "resized": min(image_shape[:2]),  # the shorter side, before the middle is cropped
        "mean": list(moments[0]),
        "std": list(moments[1]),
        "versions": versions(),
        **of_source,
    }
