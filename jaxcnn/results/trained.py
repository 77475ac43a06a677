"""A trained network, from its run's folder, or a file of weights, alone: no data set, no optimizer, no schedule.

`jaxcnn.load("runs/mnist").predict("photos/")`. Images are decoded, resized and cropped as the run's evaluation did, or
as published weights want them: `jaxcnn.of_weights("FILE.pth", "efficientnet_lite0")`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jaxcnn.augment import average_views, make_normalise
from jaxcnn.config import Config, DataConfig, ModelConfig, from_dict
from jaxcnn.config.choices import TASKS
from jaxcnn.data.given import Given, each_image, prepared
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.layers.conv import AUTO, by
from jaxcnn.layers.features import feature_pyramid
from jaxcnn.models import MODELS
from jaxcnn.models.make import make_model
from jaxcnn.results.explain import choose_layer, grad_cam
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.transfer import imagenet
from jaxcnn.transfer.finding import find
from jaxcnn.transfer.pretrained import fit, fitted, read, run_arrays, shapes_of

Call = Callable[[np.ndarray], Any]  # uint8 [batch, height, width, channels] -> a tree of arrays [batch, ...], compiled


@dataclass(frozen=True)
class Answer:
    """The answer to one image."""

    name: str  # its path, or its number
    image: np.ndarray | None  # uint8 [height, width, channels] as the network saw it; none: it could not be read
    values: Any  # of each array that was computed, its row
    fault: str | None = None  # why there is no answer


@dataclass(frozen=True)
class TrainedModel:
    """A run's model with its weights, and what it takes to show it an image.

    `images` is everywhere: the path of a file or of a folder, bytes, Pillow's image, an array, or many of them. Files
    are what docs/own_images.md says; arrays are [height, width], [height, width, channels] or many of those,
    [n, height, width, channels], of uint8, uint16 or floats in 0..1, and of any size. What cannot be read is a
    RunError. `batch_size` is how many go to the device at a time; none: as in the run's evaluation.
    """

    module: nn.Module
    variables: dict[str, Any]  # `params`, and `batch_stats`, empty for models without batch norm
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    mean: tuple[float, ...]  # per channel, of images in 0..1
    std: tuple[float, ...]
    config: Config
    source: str  # the folder, and which step; or the file
    resized: int | None = None  # the shorter side in pixels before the centre is cropped; none: as it is cropped

    @property
    def name(self) -> str:
        """The model's."""
        return self.config.model.name

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:3]) + (", …" if len(self.class_names) > 3 else "")
        size = "x".join(map(str, self.image_shape))
        return f"TrainedModel({self.config.model.name} of {self.source}; {size} -> {len(self.class_names)}: {names})"

    def logits_of(self, variables: dict[str, Any], images: jax.Array, *, views: str = "none") -> jax.Array:
        """The pure function behind `predict`: uint8 [batch, height, width, channels] to float32 [batch, classes]."""

        def apply(normalised: jax.Array) -> Any:
            return self.module.apply(variables, normalised, train=False)

        return average_views(apply, make_normalise(self.mean, self.std)(images), views=views)

    def predict(self, images: Any, *, tta: str | None = None, batch_size: int | None = None) -> np.ndarray:
        """Probabilities, float32 [n, classes].

        Args:
          images: see the class.
          tta: the views of each image that are averaged over, as for augment.average_views; none: the run's eval_tta.
          batch_size: see the class.
        """
        answers = self._values_of_all(self.probabilities_call(tta), images, batch_size)
        return np.stack(answers) if answers else np.empty((0, len(self.class_names)), np.float32)

    def classify(self, images: Any, *, top_k: int | None = None, **options: Any) -> list[Any]:
        """The class's name of each image; with top_k, its likeliest classes, [(name, probability), …]. As predict."""
        probabilities = self.predict(images, **options)
        if top_k is None:
            return [self.class_names[number] for number in probabilities.argmax(axis=1)]
        return [self.likeliest(row, top_k) for row in probabilities]

    def features(self, images: Any, *, layer: str = "pooled", batch_size: int | None = None) -> np.ndarray:
        """Features that the head sees, float32 [n, channels]; or a stage's maps, [n, height, width, channels]."""
        like = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        shown = jax.eval_shape(partial(feature_pyramid, self.module), self.variables, like)
        if layer not in shown:
            raise UserError(f"layer={layer!r}: {self.config.model.name} has no such features; {nearest(layer, shown)}")
        answers = self._values_of_all(partial(self._features, self._on_device, layer=layer), images, batch_size)
        return np.stack(answers) if answers else np.empty((0, *shown[layer].shape[1:]), np.float32)

    def explain(
        self, images: Any, *, target: str | None = None, layer: str | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Grad-CAM's heat maps, float32 [n, height, width], over what `prepare` gives; explain.overlay draws them.

        Args:
          images: see the class.
          target: the name of the class to explain; none: of each image the predicted one.
          layer: a stage of the model; none: the last that has a map.
          batch_size: see the class.
        """
        call = self.explain_call(target, layer)
        answers = [heat for heat, _ in self._values_of_all(call, images, batch_size)]
        return np.stack(answers) if answers else np.empty((0, *self.image_shape[:2]), np.float32)

    def prepare(self, images: Any) -> np.ndarray:
        """The images as the network sees them, uint8 [n, height, width, channels]."""
        given = self._prepared(each_image(images), self._batch_size)
        answers = []
        for name, image in given:
            if isinstance(image, ValueError):
                raise _unreadable(name, image)
            answers.append(image)
        return np.stack(answers) if answers else np.empty((0, *self.image_shape), np.uint8)

    def likeliest(self, probabilities: np.ndarray, top_k: int) -> list[tuple[str, float]]:
        """The top_k (name, probability) of a row [classes]; of equals the first, as argmax has it."""
        return likeliest(self.class_names, probabilities, top_k)

    def probabilities_call(self, tta: str | None = None) -> Call:
        """The compiled call of predict, for a batch."""
        return partial(self._probabilities, self._on_device, views=tta or self.config.eval_tta)

    def explain_call(self, target: str | None = None, layer: str | None = None) -> Call:
        """The compiled call of explain, for a batch: (heat maps, logits). Raises UserError as explain."""
        if target is not None and target not in self.class_names:
            raise UserError(f"there is no class {target!r}; {nearest(target, self.class_names)}")
        number = None if target is None else self.class_names.index(target)
        layer = choose_layer(self.module, self.variables, self.image_shape, layer)
        return partial(self._heat, self._on_device, target=number, layer=layer)

    def answers(self, call: Call, given: Iterable[Given], *, batch_size: int | None = None) -> Iterator[Answer]:
        """Answers of a call to each image of data.given.each_image, as they come; those not read have a `fault`.

        While a batch is on the device the next is decoded. Batches are padded to one size, so that nothing compiles
        again; but one that is first and not full to a power of two, so that one image does not take the time of many.
        """
        size = batch_size or self._batch_size
        decoded = self._prepared(given, size)
        before: tuple[list[Any], Any] = [], None
        rows = 0
        while batch := list(islice(decoded, size)):
            rows = rows or min(size, 1 << (len(batch) - 1).bit_length())
            stacked = np.zeros((rows, *self.image_shape), np.uint8)
            for row, (_, image) in enumerate(batch):
                stacked[row] = 0 if isinstance(image, ValueError) else image
            running = batch, call(stacked)
            yield from _answers(*before)
            before = running
        yield from _answers(*before)

    def _values_of_all(self, call: Call, images: Any, batch_size: int | None) -> list[Any]:
        values = []
        for each in self.answers(call, each_image(images), batch_size=batch_size):
            if each.fault is not None:
                raise (
                    _unreadable(each.name, each.fault) if each.image is None else RunError(f"{each.name}: {each.fault}")
                )
            values.append(each.values)
        return values

    def _prepared(self, given: Iterable[Given], ahead: int) -> Iterator[tuple[str, Any]]:
        return prepared(given, image_shape=self.image_shape, ahead=ahead, resized=self.resized)

    @property
    def _batch_size(self) -> int:
        return self.config.eval_batch_size or self.config.batch_size

    @cached_property
    def _on_device(self) -> dict[str, Any]:
        return jax.device_put(self.variables)

    @cached_property
    def _probabilities(self) -> Any:
        def probabilities(variables: Any, images: jax.Array, *, views: str) -> jax.Array:
            return jax.nn.softmax(self.logits_of(variables, images, views=views))

        return jax.jit(_here(probabilities), static_argnames="views")

    @cached_property
    def _features(self) -> Any:
        def features(variables: Any, images: jax.Array, *, layer: str) -> jax.Array:
            shown = feature_pyramid(self.module, variables, make_normalise(self.mean, self.std)(images))
            return shown[layer].astype(jnp.float32)

        return jax.jit(_here(features), static_argnames="layer")

    @cached_property
    def _heat(self) -> Any:
        def heat(variables: Any, images: jax.Array, *, target: Any, layer: str) -> tuple[jax.Array, jax.Array]:
            normalised = make_normalise(self.mean, self.std)(images)
            return grad_cam(self.module, variables, normalised, layer=layer, target=target)

        return jax.jit(_here(heat), static_argnames="layer")


def likeliest(class_names: Sequence[str], probabilities: np.ndarray, top_k: int) -> list[tuple[str, float]]:
    """The top_k (name, probability) of a row [classes]; of equals the first, as argmax has it."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(class_names[number], float(probabilities[number])) for number in order]


def _here(function: Callable) -> Callable:
    """`function`, which is compiled for this machine alone."""
    return by(AUTO, function, platform=jax.default_backend())


def _answers(batch: Sequence[tuple[str, Any]], values: Any) -> Iterator[Answer]:
    values = jax.device_get(values)
    for row, (name, image) in enumerate(batch):
        if isinstance(image, ValueError):
            yield Answer(name, None, None, str(image))
            continue
        answer = jax.tree.map(lambda x: x[row], values)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(answer)):
            yield Answer(name, image, None, "the network's output is not finite for it; the run has diverged")
        else:
            yield Answer(name, image, answer)


def _unreadable(name: str, fault: Any) -> RunError:
    return RunError(f"{name} cannot be read: {fault}")


def of_weights(init_from: str, model: str, *, class_names: Sequence[str] | None = None) -> TrainedModel:
    """A network with published weights, without a run: of ImageNet, and images made as those weights want them.

    Args:
      init_from: the weights, as config.init_from names them, but no run's folder.
      model: its name in MODELS; its image size is the published one.
      class_names: in the order of the logits; none: ImageNet's 1,000.

    Raises:
      UserError: there are no such weights or no such model, or the weights are of another model or other classes.
      RunError: the file is damaged.
    """
    if model not in MODELS:
        raise UserError(f"model {model!r} is not known; {nearest(model, MODELS)}")
    path = find(init_from)
    if path.is_dir():
        raise UserError(f"{path} holds a run, which knows its classes and its model; load it by its folder alone")
    names = tuple(class_names or imagenet.class_names())
    wanted = imagenet.preprocessing(model)
    image_shape = (wanted.size, wanted.size, 3)
    config = Config(
        init_from=init_from,
        eval_batch_size=16,
        data=DataConfig(image_size=wanted.size, channels=3, mean=wanted.mean, std=wanted.std),
        model=ModelConfig(name=model),
    )
    module = make_model(config.model, num_classes=len(names), image_size=wanted.size)
    found = fit(
        *read(path),
        shapes_of(module, jax.ShapeDtypeStruct(image_shape, jnp.float32)),
        model=model,
        channels=3,
        otherwise=f"without a run they are taken as they are, here of {len(names):,} classes",
    )
    return TrainedModel(
        module=module,
        variables=found.variables,
        class_names=names,
        image_shape=image_shape,
        mean=wanted.mean,
        std=wanted.std,
        config=config,
        source=found.source,
        resized=wanted.resized,
    )


def load(workdir: str, step: str = "best") -> TrainedModel:
    """The network that a run has trained.

    Args:
      workdir: the run's folder, or its URL.
      step: `best` on validation, `last`, or the number of a checkpoint. The weights' average, where one is kept.

    Raises:
      UserError: there is no run, or no such checkpoint.
      RunError: the checkpoint is damaged, or does not fit what config.json says.
    """
    path = workdir_lib.resolve(str(workdir))
    saved = workdir_lib.read_config(path)
    config, data = from_dict(saved["config"]), saved["data"]
    if not TASKS[config.task].looks_inside:
        raise UserError(
            f"{path} holds a run of task={config.task}, which is not of single classes of images; load it by "
            "jaxcnn.results.finished.load"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what is opened to be read cannot be written
    try:
        tensors, _ = run_arrays(path, str(step))
    finally:
        logging.set_verbosity(verbosity)
    module = make_model(
        config.model, num_classes=len(data["class_names"]), image_size=min(data["image_shape"][:2])
    )  # fmt: skip
    return TrainedModel(
        module=module,
        variables=fitted(
            module, tensors.arrays, jax.ShapeDtypeStruct(data["image_shape"], jnp.float32), tensors.source
        ),
        class_names=tuple(data["class_names"]),
        image_shape=tuple(data["image_shape"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        config=config,
        source=tensors.source,
    )
