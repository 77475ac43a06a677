"""A model from what the config says and what the model takes. Checks every name and option; computes nothing."""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.config import ModelConfig, parse_channels
from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.blocks import ACTIVATIONS
from jaxcnn.layers.conv import by
from jaxcnn.layers.initializers import INITIALIZERS
from jaxcnn.layers.norm import BatchNorm, GroupNorm, NoNorm, without_axis
from jaxcnn.layers.widths import narrowed
from jaxcnn.models import FORECASTERS, LANGUAGE_MODELS, MODELS, SEGMENTERS, TEXT_MODELS

IMAGENET_STEM_PIXELS = 64  # from this size on a stem that shrinks the image pays
_BLOCKS = ("stage_sizes", "num_blocks", "num_layers")  # the fields that models count their blocks in


def all_models() -> dict[str, Any]:
    """Every model by its name."""
    return {**MODELS, **LANGUAGE_MODELS, **TEXT_MODELS, **FORECASTERS, **SEGMENTERS}


def check_name(config: ModelConfig) -> None:
    """Raises UserError, with the nearest, where no model has the name."""
    if config.name not in all_models():
        raise UserError(f"model.name={config.name!r} is not known; {nearest(config.name, all_models())}")


def fields_of(name: str) -> dict[str, Any]:
    """The options of the model of this name, with their defaults; MISSING where it must be given one."""
    model_class = all_models()[name]
    base = model_class.func if isinstance(model_class, partial) else model_class
    takes: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(base)}  # type: ignore[arg-type]
    return takes | (model_class.keywords if isinstance(model_class, partial) else {})


# What a task gives its models, by which it is told; the models that are its alone; and others that suit it.
_OF_TASKS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "language": ("vocabulary", LANGUAGE_MODELS, ()),
    "text": ("vocabulary_size", TEXT_MODELS, ()),
    "forecasting": ("horizon", FORECASTERS, ("mlp",)),
    "segmentation": ("of_pixels", SEGMENTERS, ()),
}

# What may be asked of a model that has no such option.
_CHANGES_NOTHING = {"dropout_rate": 0.0, "stochastic_depth": 0.0, "width": 1.0, "depth": 1.0}


def make_model(
    config: ModelConfig, *, num_classes: int, image_size: int = 0, axis_name: str | None = None, **of_task: Any
) -> nn.Module:
    """Builds a model from what the config says and the model takes.

    Args:
      config: of the model.
      num_classes: numbers that the model answers with.
      image_size: the shorter side in pixels, which a stem is chosen by; 0 where there are no images.
      axis_name: mapped axis over which batch norm is synchronised.
      of_task: what models of its task take beside these, as they need it: the size of a vocabulary.

    Raises:
      UserError: an option that the model does not take, or a name that is not known.
    """
    check_name(config)
    model_class, takes = all_models()[config.name], fields_of(config.name)
    _check_suits(config.name, of_task)
    batch_norm = partial(
        BatchNorm,
        momentum=config.batch_norm_momentum,
        axis_name=axis_name,
        synchronise=config.batch_norm == "global",
        dtype=jnp.dtype(config.dtype),
    )
    norms = {"batch": batch_norm, "group": GroupNorm, "layer": partial(GroupNorm, num_groups=1), "none": NoNorm}
    options = {
        "width": config.width,
        "depth": config.depth,
        "hidden": config.hidden,
        "dropout_rate": config.dropout_rate,
        "stochastic_depth": config.stochastic_depth,
        "activation": _named("activation", config.activation, ACTIVATIONS),
        "norm": norms[config.norm] if config.norm else None,
        "stem": config.stem,
        "remat": config.remat or None,
        "features": config.features,
        "layers": config.layers,
        "bidirectional": config.bidirectional or None,
        "layer_norm": config.layer_norm or None,
        "sizes": config.sizes,
        "tied": config.tied or None,
    }
    _named("initializer", config.initializer, INITIALIZERS)
    blocks = next((name for name in _BLOCKS if name in takes), None)
    if config.depth is not None and "depth" not in takes and blocks is not None:
        del options["depth"]
        options[blocks] = _times(takes[blocks], config.depth)
    for option, value in options.items():
        if value is not None and option not in takes and value != _CHANGES_NOTHING.get(option):
            raise UserError(
                f"model.{option}={getattr(config, option)}: {config.name} has no such option; "
                f"set model.{option}={getattr(ModelConfig(), option)}"
            )
    default, uses_batch_norm = ModelConfig(), options["norm"] is batch_norm
    if options["norm"] is None and takes.get("norm") is BatchNorm:
        options["norm"], uses_batch_norm = batch_norm, True
    for name in ("batch_norm", "batch_norm_momentum"):
        if getattr(config, name) != getattr(default, name) and not uses_batch_norm:
            raise UserError(
                f"model.{name}={getattr(config, name)}: {config.name} has no batch norm here; "
                f"set model.{name}={getattr(default, name)}"
            )
    if "stem" in takes and config.stem is None:
        options["stem"] = "imagenet" if image_size >= IMAGENET_STEM_PIXELS else "small"
    options = {name: value for name, value in {**options, **of_task}.items() if value is not None and name in takes}
    model = model_class(num_classes=num_classes, dtype=jnp.dtype(config.dtype), **options)
    return narrowed(model, parse_channels(config.channels))


def _check_suits(name: str, of_task: dict[str, Any]) -> None:
    """Raises UserError where a model is for another task."""
    for task, (given, models, also) in _OF_TASKS.items():
        if given in of_task and name not in models and name not in also:
            usable = ", ".join((*models, *also))
            raise UserError(f"model.name={name} is not for task={task}; choose one of: {usable}")
        if given not in of_task and name in models:
            raise UserError(
                f"model.name={name} is for task={task}; choose another, e.g. cnn for images, mlp for tables"
            )


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model's norms are batch norm."""
    norm = getattr(model, "norm", None)
    return isinstance(norm, partial) and norm.func is BatchNorm


def check_traces(model: nn.Module, example: Any, *, one_alone: bool) -> None:
    """Traces a model abstractly, so that what does not fit its inputs is said before anything is compiled.

    Args:
      model: to be traced.
      example: shapes and dtypes of the inputs of one example.
      one_alone: batch norm has one example to normalise over, which may be too few.
    """
    key, two = jax.random.key(0), _batch_of(2, example)
    try:
        variables = jax.eval_shape(by("xla", partial(model.init, train=False)), key, two)  # traced fastest
    except Exception:
        shapes = [leaf.shape for leaf in jax.tree.leaves(example)]
        if len(shapes) == 1 and (len(shapes[0]) == 3 or hasattr(model, "horizon")):  # the model's own words
            raise
        raise UserError(
            f"{type(model).__name__} is for images [height, width, channels], and an example here has the shape "
            f"{', '.join(map(str, shapes))}; set model.name=mlp"
        ) from None
    if one_alone:
        train = partial(without_axis(model).apply, train=True, mutable=True, rngs={"params": key, "dropout": key})
        jax.eval_shape(by("xla", train), variables, _batch_of(1, example))


def params_in_order(model: nn.Module, example: Any) -> dict[str, Any]:
    """Shapes of a model's parameters, on top in the order in which its inputs meet them; computes nothing.

    `example`: shapes and dtypes of the inputs of one example.
    """
    names: list[str] = []

    def init(key: jax.Array) -> Any:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _batch_of(1, example))
        params = model.init({"params": key, "dropout": key}, inputs, train=True)["params"]
        names.extend(params)  # flax keeps the order; what comes out of eval_shape is sorted
        return params

    params = jax.eval_shape(by("xla", init), jax.random.key(0))
    return {name: params[name] for name in names}


def _batch_of(size: int, example: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), example)


def _named(option: str, name: str | None, table: dict[str, Any]) -> Any:
    if name is not None and name not in table:
        raise UserError(f"model.{option}={name!r} is not known; {nearest(name, table)}")
    return None if name is None else table[name]


def _times(blocks: Any, depth: float) -> Any:
    """Blocks, of the model or of each stage, times `depth`, rounded up as EfficientNet's (Tan and Le 2019)."""
    return math.ceil(blocks * depth) if isinstance(blocks, int) else tuple(_times(each, depth) for each in blocks)
