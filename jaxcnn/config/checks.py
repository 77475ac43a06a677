"""Checks of a config: every field's type, choice and range, then what must hold between fields.

Names of models and data sets are checked where they are known, in training/build.py.
"""

import dataclasses
import math
import re
import types
import typing
from itertools import pairwise
from typing import Any

from jaxcnn.config.plain import flatten
from jaxcnn.config.schema import LARGEST_INTEGER, AugmentConfig, Config, EarlyStopConfig, FinetuneConfig
from jaxcnn.errors import UserError, nearest

# Options that the run reads with some choices alone: option, or the beginning of several; the choice, and which.
_READ_BY = (
    ("schedule.final_fraction", "schedule.name", ("cosine", "linear", "triangle", "plateau")),
    ("schedule.initial_fraction", "schedule.name", ("triangle",)),
    ("schedule.peak_fraction", "schedule.name", ("one_cycle", "triangle")),
    ("schedule.step_", "schedule.name", ("step",)),
    ("schedule.plateau_", "schedule.name", ("plateau",)),
    ("loss.label_smoothing", "loss.name", ("cross_entropy",)),
    ("loss.focal_gamma", "loss.name", ("focal",)),
    (
        "optimizer.momentum",
        "optimizer.name",
        ("momentum", "nesterov", "rmsprop", "muon", "airbench_sgd", "airbench_muon"),
    ),
    ("optimizer.beta1", "optimizer.name", ("adam", "adamw", "lamb", "lion", "muon")),
    ("optimizer.beta2", "optimizer.name", ("rmsprop", "adam", "adamw", "lamb", "lion", "muon")),
    ("optimizer.epsilon", "optimizer.name", ("adagrad", "rmsprop", "adam", "adamw", "lamb", "muon")),
    ("optimizer.groups.", "optimizer.name", ("airbench_sgd", "airbench_muon")),
)


def check_unread(config: Config) -> None:
    """Raises UserError where an option was changed that a run would not read. Of runs that have begun, none is."""
    values, defaults = flatten(config), flatten(Config())
    decay = "optimizer.lookahead_decay"
    if values["optimizer.lookahead_every_steps"] is None and values[decay] != defaults[decay]:
        raise UserError(
            f"{decay}={values[decay]} is read with optimizer.lookahead_every_steps only; set that, e.g. to 5"
        )
    for beginning, choice, readers in _READ_BY:
        for name, value in values.items():
            if name.startswith(beginning) and value != defaults[name] and values[choice] not in readers:
                raise UserError(
                    f"{name}={value} is read by {choice}={', '.join(readers)} only, and {choice} is {values[choice]}; "
                    f"leave it at {defaults[name]!r}"
                )


def validate(config: Config, *, unread: bool = True) -> None:
    """Checks every field's type, choice and range, then what must hold between fields. Raises UserError.

    Args:
      config: of which integers that stand for floats, and lists for tuples, are made what they stand for.
      unread: whether an option that is changed though nothing reads it is wrong too, as where a run begins.
    """
    _validate_fields(config, "")
    if unread:
        check_unread(config)
    optimizer, schedule, loss, augment = config.optimizer, config.schedule, config.loss, config.augment
    early_stop = config.early_stop
    if config.batch_size % optimizer.accumulate:
        raise UserError(
            f"batch_size={config.batch_size} does not divide into optimizer.accumulate={optimizer.accumulate} parts"
        )
    if schedule.name == "step" and not schedule.step_epochs:
        raise UserError("schedule.name=step needs schedule.step_epochs, e.g. --config.schedule.step_epochs='(30,60)'")
    if any(later <= earlier for earlier, later in pairwise([schedule.warmup_epochs, *schedule.step_epochs])):
        raise UserError(
            f"schedule.step_epochs={schedule.step_epochs} must increase, from after the warm-up "
            f"(schedule.warmup_epochs={schedule.warmup_epochs:g}) on, e.g. '(30, 60)'"
        )
    if config.data.fold is not None:
        parse_fold(config.data.fold)
    if config.profile.steps is not None:
        parse_steps(config.profile.steps)
    for name, default in (("init_head", "keep"), ("init_adapt", False), ("init_allow", ())):
        if config.init_from is None and getattr(config, name) != default:
            raise UserError(f"{name}={getattr(config, name)} is for init_from, which is not given")
    if config.init_from is not None and config.model.initializer is not None:
        raise UserError(f"model.initializer={config.model.initializer} draws what init_from loads; set one of them")
    for ignored, reason in (
        (
            config.data.fold is not None and config.data.validation_split is not None,
            f"data.fold={config.data.fold} makes validation of train_split; set data.validation_split=none",
        ),
        (
            loss.class_weights != "none" and loss.class_weight_values,
            f"loss.class_weights={loss.class_weights} and loss.class_weight_values both weigh classes; set one of them",
        ),
        (
            schedule.name == "plateau" and optimizer.name.startswith("airbench_"),
            f"optimizer.name={optimizer.name} has rates of its own; for schedule.name=plateau choose another, "
            "e.g. nesterov",
        ),
        (
            early_stop.patience_evaluations is None and early_stop != EarlyStopConfig(),
            "early_stop.metric and early_stop.min_delta are read with early_stop.patience_evaluations only; set that, "
            "e.g. to 10",
        ),
        (
            schedule.name == "plateau"
            and early_stop.patience_evaluations is not None
            and early_stop.patience_evaluations <= schedule.plateau_evaluations
            and early_stop.metric == schedule.plateau_metric,
            f"early_stop.patience_evaluations={early_stop.patience_evaluations} ends the run before "
            f"schedule.plateau_evaluations={schedule.plateau_evaluations} lowers the rate; make it larger, "
            f"e.g. {2 * schedule.plateau_evaluations + 1}",
        ),
        (
            schedule.name in ("one_cycle", "triangle") and schedule.warmup_epochs,
            f"schedule.name={schedule.name} warms up by itself; set schedule.warmup_epochs=0",
        ),
        (
            augment.flip and augment.alternating_flip,
            "augment.flip and augment.alternating_flip both mirror; set one of them to false",
        ),
        (
            augment.randaugment_ops and augment.trivial_augment,
            "augment.randaugment_ops and augment.trivial_augment are two policies; set one of them to 0 or false",
        ),
        (
            not augment.randaugment_ops and augment.randaugment_magnitude != AugmentConfig().randaugment_magnitude,
            f"augment.randaugment_magnitude={augment.randaugment_magnitude} is read with augment.randaugment_ops only; "
            "set that, 2 in the paper",
        ),
        (
            augment.fill != "constant" and not (augment.rotation or augment.shift or augment.shear or augment.zoom),
            f"augment.fill={augment.fill} is read with augment.rotation, shift, shear or zoom only; set one of them",
        ),
        *(
            (
                not augment.random_resized_crop and given != default,
                f"augment.{name}={given} is read with augment.random_resized_crop only; set that to true",
            )
            for name, given, default in (
                ("crop_area", augment.crop_area, AugmentConfig().crop_area),
                ("crop_aspect", augment.crop_aspect, AugmentConfig().crop_aspect),
            )
        ),
        *(
            (
                len(given) != 2 or given[0] > given[-1],
                f"augment.{name}={given} must be two numbers, the smaller first, e.g. '(0.5, 1.0)'",
            )
            for name, given in (("crop_area", augment.crop_area), ("crop_aspect", augment.crop_aspect))
        ),
        (
            optimizer.ema_decay is not None and optimizer.lookahead_every_steps is not None,
            "optimizer.ema_decay and optimizer.lookahead_every_steps both average; set one of them to none",
        ),
        (
            optimizer.name.startswith("airbench_") and (optimizer.l1 or optimizer.weight_decay_mode != "auto"),
            f"optimizer.name={optimizer.name} has a decay of its own; set optimizer.l1=0 and "
            "optimizer.weight_decay_mode=auto",
        ),
        (
            optimizer.name == "airbench_muon" and optimizer.reference_batch_size is not None,
            "optimizer.name=airbench_muon has a rate that does not go with the batch; set "
            "optimizer.reference_batch_size=none",
        ),
        (
            optimizer.name.startswith("airbench_") and config.finetune != FinetuneConfig(),
            f"optimizer.name={optimizer.name} has groups of its own; for finetune.* choose another, e.g. nesterov",
        ),
        (
            any(later <= earlier for earlier, later in pairwise(config.finetune.unfreeze_epochs)),
            f"finetune.unfreeze_epochs={config.finetune.unfreeze_epochs} must increase, e.g. '(1, 2, 3)'",
        ),
        (
            config.tensorboard_media and not config.tensorboard,
            "tensorboard_media=true is written with tensorboard=true only",
        ),
        (
            config.profile.steps is not None and not config.tensorboard,
            f"profile.steps={config.profile.steps} is written with tensorboard=true only",
        ),
    ):
        if ignored:
            raise UserError(reason)


def parse_fold(fold: str) -> tuple[int, int]:
    """`2/5` -> (2, 5). Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", fold)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count or count < 2:
        raise UserError(f"data.fold={fold!r} is no fold; write 1/5, 2/5, … 5/5 for one of five")
    return number, count


def parse_steps(steps: str) -> tuple[int, int]:
    """`10:20` -> (10, 20). Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", steps)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not first < last:
        raise UserError(f"profile.steps={steps!r} are no steps; write 10:20 for the ten steps after the tenth")
    return first, last


def _validate_fields(node: Any, prefix: str) -> None:
    hints = typing.get_type_hints(type(node))
    for each in dataclasses.fields(node):
        name, value, hint = prefix + each.name, getattr(node, each.name), hints[each.name]
        if dataclasses.is_dataclass(hint):
            if type(value) is not hint:
                raise UserError(f"{name} must be a {type_name(hint)}, not {value!r}")
            _validate_fields(value, name + ".")
            continue
        value = _conform(name, value, hint)
        setattr(node, each.name, value)
        if value is None:
            continue
        limits = each.metadata
        if "choices" in limits and value not in limits["choices"]:
            raise UserError(f"{name}={value!r} is not known; {nearest(str(value), limits['choices'])}")
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name}={value} must be finite")
            if isinstance(number, float) and number and not 1e-37 < abs(number) < 1e38:
                raise UserError(f"{name}={value} is too small or too large for float32, in which it is used")
            if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
                raise UserError(
                    f"{name} has {len(str(abs(number)))} digits; no integer may be above {LARGEST_INTEGER:,}"
                )
        if "low" in limits and not all(limits["low"] <= n <= limits["high"] and n > limits["above"] for n in numbers):
            bounds = [f"> {limits['above']:g}"] if limits["above"] > -math.inf else []
            bounds += [f">= {limits['low']:g}"] if limits["low"] > -math.inf else []
            bounds += [f"<= {limits['high']:g}"] if limits["high"] < math.inf else []
            raise UserError(f"{name}={value} is out of range; it must be {' and '.join(bounds)}")


def _conform(name: str, value: Any, hint: Any) -> Any:
    """`value` as the declared type (an int serves as a float); UserError if it is of another."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if typing.get_origin(option) is tuple and isinstance(value, tuple | list):
            return tuple(_conform(name, item, typing.get_args(option)[0]) for item in value)
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    raise UserError(f"{name}={value!r} must be {type_name(hint)}")


def type_name(hint: Any) -> str:
    """A type in words, for messages."""
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if item is float:
            return "a tuple of floats, e.g. '(0.5, 0.5)'"
        return "a tuple of " + ("names" if item is str else "names or numbers") + ", e.g. \"('first', 'second')\""
    if dataclasses.is_dataclass(hint):
        return str(getattr(hint, "__name__", hint))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "none"}[hint]
