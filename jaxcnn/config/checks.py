"""Checks of a config: every field's type, choice and range, then what must hold between fields.

What a name may be, and what reads an option, is asked of choices.py. Names of models and data sets are checked where
they are known, in training/build.py.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from jaxcnn.config.choices import CHOICES, SOURCES
from jaxcnn.config.plain import flatten, types_of
from jaxcnn.config.schema import LARGEST_INTEGER, AugmentConfig, Config, DistillConfig, EarlyStopConfig
from jaxcnn.errors import UserError, nearest


def check_unread(config: Config) -> None:
    """Raises UserError where an option was changed that a run would not read. Of runs that have begun, none is."""
    values, defaults = flatten(config), flatten(Config())
    changed = [name for name, value in values.items() if value != defaults[name]]
    if values["optimizer.lookahead_every_steps"] is None and "optimizer.lookahead_decay" in changed:
        raise UserError(
            f"optimizer.lookahead_decay={values['optimizer.lookahead_decay']} is read with "
            "optimizer.lookahead_every_steps only; set that, e.g. to 5"
        )
    for chooser, choices in {**CHOICES, "data.name": SOURCES}.items():
        chosen, _, _ = values[chooser].partition(":")  # of a source its kind
        for name in changed:
            readers = [each for each, choice in choices.items() if choice.is_reader_of(name)]
            if readers and chosen not in readers:
                raise UserError(
                    f"{name}={values[name]} is read by {chooser}={', '.join(readers)} only, and {chooser} is {chosen}; "
                    f"leave it at {defaults[name]!r}"
                )


def validate(config: Config, *, unread: bool = True) -> None:
    """Checks every field's type, choice and range, then what must hold between fields. Raises UserError.

    Args:
      config: of which integers that stand for floats, and lists for tuples, are made what they stand for.
      unread: whether an option that is changed though nothing reads it is wrong too, as where a run begins.
    """
    check_fields(config)
    if unread:
        check_unread(config)
    for group in (
        _optimizer, _schedule, _data, _logging, _initial_weights, _loss, _distill, _choices, _early_stop, _augment,
        _finetune,
    ):  # fmt: skip
        for complaint in group(config):
            raise UserError(complaint)
    parse_channels(config.model.channels)


# ---- what must hold between fields: a group at a time, the message of each thing that is wrong


def _optimizer(config: Config) -> Iterator[str]:
    optimizer = config.optimizer
    if config.batch_size % optimizer.accumulate:
        yield f"batch_size={config.batch_size} does not divide into optimizer.accumulate={optimizer.accumulate} parts"
    if optimizer.ema_decay is not None and optimizer.lookahead_every_steps is not None:
        yield "optimizer.ema_decay and optimizer.lookahead_every_steps both average; set one of them to none"


def _schedule(config: Config) -> Iterator[str]:
    schedule = config.schedule
    if not _increases([schedule.warmup_epochs, *schedule.step_epochs]):
        yield (
            f"schedule.step_epochs={schedule.step_epochs} must increase, from after the warm-up "
            f"(schedule.warmup_epochs={schedule.warmup_epochs:g}) on, e.g. '(30, 60)'"
        )


def _data(config: Config) -> Iterator[str]:
    data = config.data
    if data.fold is None:
        return
    parse_fold(data.fold)
    if data.validation_split is not None:
        yield f"data.fold={data.fold} makes validation of train_split; set data.validation_split=none"


def _logging(config: Config) -> Iterator[str]:
    if config.profile.steps is not None:
        parse_steps(config.profile.steps)
    if config.tensorboard_media and not config.tensorboard:
        yield "tensorboard_media=true is written with tensorboard=true only"
    if config.profile.steps is not None and not config.tensorboard:
        yield f"profile.steps={config.profile.steps} is written with tensorboard=true only"


def _initial_weights(config: Config) -> Iterator[str]:
    if config.init_from is not None:
        if config.model.initializer is not None:
            yield f"model.initializer={config.model.initializer} draws what init_from loads; set one of them"
        return
    for name, default in (("init_head", "keep"), ("init_adapt", False), ("init_allow", ())):
        if getattr(config, name) != default:
            yield f"{name}={getattr(config, name)} is for init_from, which is not given"


def _loss(config: Config) -> Iterator[str]:
    loss = config.loss
    if loss.class_weights != "none" and loss.class_weight_values:
        yield (
            f"loss.class_weights={loss.class_weights} and loss.class_weight_values both weigh classes; set one of them"
        )


def _distill(config: Config) -> Iterator[str]:
    distill = config.distill
    if distill.teacher is None and distill != DistillConfig():
        yield "distill.* is read with distill.teacher only; set that to a run's folder, or to weights"
    if (distill.mean is None) != (distill.std is None):
        yield "distill.mean and distill.std normalise together; set both, or neither"


def _choices(config: Config) -> Iterator[str]:
    """What the entries of choices.py ask for themselves."""
    values = flatten(config)
    for field, choices in CHOICES.items():
        check = choices[values[field]].check
        if check is not None:
            yield from check(config)


def _early_stop(config: Config) -> Iterator[str]:
    if config.early_stop.patience_evaluations is None and config.early_stop != EarlyStopConfig():
        yield (
            "early_stop.metric and early_stop.min_delta are read with early_stop.patience_evaluations only; set that, "
            "e.g. to 10"
        )


def _augment(config: Config) -> Iterator[str]:
    augment, default = config.augment, AugmentConfig()
    if augment.flip and augment.alternating_flip:
        yield "augment.flip and augment.alternating_flip both mirror; set one of them to false"
    if augment.randaugment_ops and augment.trivial_augment:
        yield "augment.randaugment_ops and augment.trivial_augment are two policies; set one of them to 0 or false"
    if not augment.randaugment_ops and augment.randaugment_magnitude != default.randaugment_magnitude:
        yield (
            f"augment.randaugment_magnitude={augment.randaugment_magnitude} is read with augment.randaugment_ops only; "
            "set that, 2 in the paper"
        )
    if augment.fill != "constant" and not (augment.rotation or augment.shift or augment.shear or augment.zoom):
        yield f"augment.fill={augment.fill} is read with augment.rotation, shift, shear or zoom only; set one of them"
    crops = (
        ("crop_area", augment.crop_area, default.crop_area),
        ("crop_aspect", augment.crop_aspect, default.crop_aspect),
    )
    for name, pair, unchanged in crops:
        if not augment.random_resized_crop and pair != unchanged:
            yield f"augment.{name}={pair} is read with augment.random_resized_crop only; set that to true"
        if len(pair) != 2 or pair[0] > pair[1]:
            yield f"augment.{name}={pair} must be two numbers, the smaller first, e.g. '(0.5, 1.0)'"


def _finetune(config: Config) -> Iterator[str]:
    if not _increases(config.finetune.unfreeze_epochs):
        yield f"finetune.unfreeze_epochs={config.finetune.unfreeze_epochs} must increase, e.g. '(1, 2, 3)'"


def _increases(numbers: Sequence[float]) -> bool:
    return all(earlier < later for earlier, later in pairwise(numbers))


def parse_fold(fold: str) -> tuple[int, int]:
    """`2/5` -> (2, 5). Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", fold)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count or count < 2:
        raise UserError(f"data.fold={fold!r} is no fold; write 1/5, 2/5, … 5/5 for one of five")
    return number, count


def parse_channels(channels: Sequence[str]) -> dict[str, int]:
    """`("stem_conv=8",)` -> {"stem_conv": 8}: layers' features by their paths. Raises UserError."""
    widths: dict[str, int] = {}
    for each in channels:
        match = re.fullmatch(r"([\w/]{1,200})=([0-9]{1,5})", each, re.ASCII)
        if match is None or not int(match[2]) or match[1] in widths:
            raise UserError(
                f"model.channels has {each[:80]!r}; write each layer once, with its features: stage1_block1/conv1=8"
            )
        widths[match[1]] = int(match[2])
    return widths


def parse_steps(steps: str) -> tuple[int, int]:
    """`10:20` -> (10, 20). Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", steps)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not first < last:
        raise UserError(f"profile.steps={steps!r} are no steps; write 10:20 for the ten steps after the tenth")
    return first, last


def check_fields(node: Any, prefix: str = "") -> None:
    """Raises UserError where a field's type, choice or range is wrong, whatever the others are. Args as in validate."""
    hints = types_of(type(node))
    for each in dataclasses.fields(node):
        name, value, hint = prefix + each.name, getattr(node, each.name), hints[each.name]
        if dataclasses.is_dataclass(hint):
            if type(value) is not hint:
                raise UserError(f"{name} must be a {type_name(hint)}, not {value!r}")
            check_fields(value, name + ".")
            continue
        value = _conform(name, value, hint)
        setattr(node, each.name, value)
        if value is None:
            continue
        limits = each.metadata
        choices = CHOICES.get(name, limits.get("choices"))
        if choices is not None and value not in choices:
            raise UserError(f"{name}={value!r} is not known; {nearest(str(value), choices)}")
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
        if item is int:
            return "a tuple of integers, e.g. '(64, 64)'"
        return "a tuple of " + ("names" if item is str else "names or numbers") + ", e.g. \"('first', 'second')\""
    if dataclasses.is_dataclass(hint):
        return str(getattr(hint, "__name__", hint))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "none"}[hint]
