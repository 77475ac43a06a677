"""Distillation: a trained network's answers are learned beside the labels, as a part of the task's loss.

Hinton et al. 2015 (arXiv:1503.02531). The teacher sees what the student sees, augmented and mixed alike (Beyer et al.
2022, arXiv:2106.05237). It answers as in evaluation; it neither learns nor is saved with the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from jaxcnn.config import AugmentConfig, Config, DistillConfig, ModelConfig, from_dict
from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.conv import by
from jaxcnn.models import MODELS
from jaxcnn.models.make import make_model
from jaxcnn.run.workdir import read_config
from jaxcnn.tasks.task import CONSTANTS, Batch, Constants, Losses, Prepare, Task
from jaxcnn.transfer.finding import find
from jaxcnn.transfer.pretrained import fit, fitted, read, run_arrays, shapes_of


@flax.struct.dataclass
class Taught:
    """Targets of a training batch that a teacher has answered too."""

    labels: jax.Array  # classes [B], or distributions [B, K]
    logits: jax.Array  # the teacher's, float32 [B, K]


@dataclass(frozen=True)
class Teacher:
    """A trained network, and what it takes to show it a student's images."""

    module: nn.Module
    variables: Any  # `params` and `batch_stats`, host arrays
    order: tuple[int, ...]  # of the student's classes, the teacher's number
    mean: tuple[float, ...] | None  # per channel, in 0..1; none: normalised as the student's
    std: tuple[float, ...] | None
    facts: dict[str, Any]  # `source`, `sha256`, `model`

    def logits(self, variables: Any, images: jax.Array, facts: Mapping[str, Any]) -> jax.Array:
        """Float32 [B, K], by the student's classes, of images [B, H, W, C] as the student's `facts` normalise them."""
        if self.mean is not None and (self.mean, self.std) != (tuple(facts["mean"]), tuple(facts["std"])):
            own_mean, own_std, mean, std = map(np.float32, (facts["mean"], facts["std"], self.mean, self.std))
            images = images * (own_std / std) + (own_mean - mean) / std
        answer: Any = self.module.apply(variables, images, train=False)
        logits = answer.astype(jnp.float32)
        return logits if self.order == tuple(range(len(self.order))) else logits[:, np.array(self.order)]


def taught(
    task: Task,
    config: Config,
    *,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    resident: bool,
) -> Task:
    """A task of single classes, learned from its labels and from config.distill.teacher.

    The teacher is read when training first asks for it. Its answers are part of the targets of training batches alone:
    metrics and the loss of evaluation are of the labels. Where every image is the same in every epoch, on the device
    and without augmentation, the teacher answers each once.
    """
    teacher = cache(partial(_load, config.distill, tuple(class_names), image_shape))
    once = resident and config.augment == AugmentConfig()

    def arrays(facts: dict[str, Any], of_train: dict[str, Any] | None) -> dict[str, Any]:
        if not once or of_train is None:
            return {"variables": teacher().variables}
        logits = partial(_normalised_logits, teacher(), task.prepare(facts), facts)
        call = jax.jit(by(config.model.convolution, logits, platform=jax.default_backend()))
        return {"logits": _in_batches(call, teacher().variables, of_train["image"], size=config.batch_size)}

    def words() -> str:
        facts, distill = teacher().facts, config.distill
        return (
            f"taught by {facts['model']} of {facts['source']}: temperature {distill.temperature:g}, {distill.alpha:g} "
            f"of the loss; it answers {'once for each image' if once else 'at each step'}"
        )

    return replace(
        task,
        prepare=lambda facts: _prepare(task.prepare(facts), teacher, facts),
        losses=lambda loss: _losses(task.losses(loss), config.distill),
        metrics=tuple(replace(each, of_examples=partial(_of_labels, each.of_examples)) for each in task.metrics),
        constants=Constants(arrays, lambda: teacher().facts, words),
    )


# ---- what is learned


def distillation(logits: jax.Array, teachers: jax.Array, *, temperature: float) -> jax.Array:
    """T^2 KL(teacher || student) of both softened by the temperature T (Hinton et al. 2015, section 2), float32 [B].

    T^2 keeps its gradient as large as that of the labels' part, whatever the temperature. Both are logits [B, K].
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    return temperature**2 * optax.losses.kl_divergence(log_p, jax.nn.softmax(teachers / temperature))


def _losses(losses: Losses, distill: DistillConfig) -> Losses:
    def train(logits: jax.Array, targets: Any) -> jax.Array:
        if not isinstance(targets, Taught):
            raise TypeError(
                f"a training batch needs the teacher's part: batch[{CONSTANTS!r}], as a feed's data have it"
            )
        of_teacher = distillation(logits, targets.logits, temperature=distill.temperature)
        if distill.alpha == 1:
            return of_teacher
        return distill.alpha * of_teacher + (1 - distill.alpha) * losses.train(logits, targets.labels)

    return Losses(train=train, evaluate=losses.evaluate)


def _of_labels(
    of_examples: Callable[[Any, Any, jax.Array], jax.Array], logits: Any, targets: Any, losses: jax.Array
) -> jax.Array:
    """A metric, of the labels alone."""
    return of_examples(logits, targets.labels if isinstance(targets, Taught) else targets, losses)


def _prepare(prepare: Prepare, teacher: Callable[[], Teacher], facts: dict[str, Any]) -> Prepare:
    def with_answers(key: Any, keys: Any, batch: Batch) -> tuple[Any, Any]:
        images, labels = prepare(key, keys, batch)
        known: Any = batch.get(CONSTANTS)
        if keys is None or known is None:  # evaluated, or only looked at
            return images, labels
        if "logits" in known:
            return images, Taught(labels, known["logits"][batch["index"]])
        return images, Taught(labels, teacher().logits(known["variables"], images, facts))

    return with_answers


def _normalised_logits(
    teacher: Teacher, prepare: Prepare, facts: dict[str, Any], variables: Any, images: jax.Array
) -> jax.Array:
    """The teacher's logits of images as they are stored, uint8 [B, H, W, C]."""
    return teacher.logits(variables, prepare(None, None, {"image": images})[0], facts)


def _in_batches(logits: Callable[[Any, Any], jax.Array], variables: Any, images: Any, *, size: int) -> jax.Array:
    variables = jax.device_put(variables)
    starts = range(0, len(images), size)
    return jnp.concatenate([logits(variables, images[start : start + size]) for start in starts])


# ---- the teacher


def _load(distill: DistillConfig, class_names: tuple[str, ...], image_shape: tuple[int, int, int]) -> Teacher:
    """The network that config.distill names. Raises UserError where it does not suit the classes or the images."""
    path = find(str(distill.teacher), option="distill.teacher")
    make = _of_run if path.is_dir() else _of_weights
    return make(path, distill, class_names, image_shape)


def _of_run(
    path: epath.Path, distill: DistillConfig, class_names: tuple[str, ...], image_shape: tuple[int, int, int]
) -> Teacher:
    named = f"distill.teacher={distill.teacher}"
    for option in ("model", "mean", "std"):
        if getattr(distill, option) is not None:
            raise UserError(f"distill.{option} is for weights without a run, and {named} is a run; set it to none")
    saved = read_config(path)
    config, data = from_dict(saved["config"]), saved["data"]
    if config.task != "classification":
        raise UserError(f"{named} is a run of task={config.task}, which answers with no logits of classes of images")
    theirs = data["class_names"]
    odd = sorted(set(theirs) ^ set(class_names))
    if odd:
        raise UserError(
            f"{named} tells {len(theirs)} classes apart and this run {len(class_names)}, and {odd[0]!r} is of one of "
            "them alone; give a teacher of the same classes"
        )
    if tuple(data["image_shape"]) != tuple(image_shape):
        sizes = ["x".join(map(str, shape)) for shape in (data["image_shape"], image_shape)]
        raise UserError(
            f"{named} sees images of {sizes[0]}, and this run's are {sizes[1]}; set data.image_size and data.channels "
            "alike in both"
        )
    tensors, _ = run_arrays(path)
    module = make_model(config.model, num_classes=len(theirs), image_size=min(image_shape[:2]))
    example = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    return Teacher(
        module=module,
        variables=fitted(module, tensors.arrays, example, tensors.source),
        order=tuple(theirs.index(name) for name in class_names),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        facts={"source": tensors.source, "sha256": tensors.sha256, "model": config.model.name},
    )


def _of_weights(
    path: epath.Path, distill: DistillConfig, class_names: tuple[str, ...], image_shape: tuple[int, int, int]
) -> Teacher:
    named, name = f"distill.teacher={distill.teacher}", distill.model
    if name is None:
        raise UserError(f"{named} is weights, which do not say of which model; set distill.model, e.g. to resnet18")
    if name not in MODELS:
        raise UserError(f"distill.model={name!r} is not known; {nearest(name, MODELS)}")
    channels = image_shape[2]
    for option, values in (("mean", distill.mean), ("std", distill.std)):
        if values is not None and len(values) != channels:
            raise UserError(
                f"distill.{option}={values} has {len(values)} values; images have {channels} channels, one for each"
            )
    module = make_model(ModelConfig(name=name), num_classes=len(class_names), image_size=min(image_shape[:2]))
    shapes = shapes_of(module, jax.ShapeDtypeStruct(image_shape, jnp.float32))
    try:
        weights = fit(*read(path), shapes, model=name, channels=channels)
    except UserError as error:
        raise UserError(f"{named} is no {name} of these classes: {str(error).partition('; set ')[0]}") from None
    return Teacher(
        module=module,
        variables=weights.variables,
        order=tuple(range(len(class_names))),
        mean=distill.mean,
        std=distill.std,
        facts={"source": weights.source, "sha256": weights.sha256, "model": name},
    )
