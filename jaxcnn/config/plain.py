"""A config as plain data: to JSON and back, flat, and in what two configs train differently."""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jaxcnn.config.schema import Config
from jaxcnn.errors import UserError, nearest

# What may differ between two commands on one workdir: how a run is watched, kept and spread over devices, not what it
# computes.
RESUMABLE_FIELDS = (
    "eval_batch_size", "log_every_steps", "checkpoint.every_epochs", "checkpoint.every_steps", "checkpoint.keep_last",
    "checkpoint.asynchronous", "model.remat", "parallel", "platform", "num_devices", "steps_per_call", "metrics",
    "model.convolution",  # they are equal but for rounding
    "tensorboard", "tensorboard_media", "trackers", "telemetry.every_steps", "profile.steps", "compilation_cache",
    "data.dir", "data.cache",
    "data.damaged", "data.num_workers", "data.prefetch_batches",
    "data.resident", "data.expected_examples", "data.expected_classes",
    "distill.teacher",  # where it lies; whose weights these are is compared by their digest, in workdir.py
    "data.exclude",  # where the list lies; what it says is compared by its digest, in workdir.py
)  # fmt: skip


# The declared types of a group's fields, by their names; each is resolved once, which takes Python a millisecond.
types_of: Callable[[Any], Mapping[str, Any]] = cache(typing.get_type_hints)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(data: dict[str, Any], schema: type = Config, where: str = "config") -> Any:
    """The inverse of `to_dict`, not validated. Raises UserError on a field that this version does not have."""
    if not isinstance(data, dict):
        raise UserError(f"{where} must be a group of fields, not {data!r}")
    hints = types_of(schema)
    values = {}
    for name, value in data.items():
        if name not in hints:
            raise UserError(f"{where} has no field {name!r}; {nearest(name, hints)}")
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(value, hints[name], f"{where}.{name}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return schema(**values)


def flatten(config: Config) -> dict[str, Any]:
    """`{"optimizer.learning_rate": 0.1, …}`: every field by its path on the command line."""
    flat: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        for each in dataclasses.fields(node):
            value = getattr(node, each.name)
            if dataclasses.is_dataclass(value):
                visit(value, f"{prefix}{each.name}.")
            else:
                flat[prefix + each.name] = value

    visit(config, "")
    return flat


def changed_fields(saved: Config, now: Config) -> list[str]:
    """The fields, `name (saved -> now)`, in which two configs train differently."""
    old, new = flatten(saved), flatten(now)
    if now.task == "classification":  # whose own metric this is: runs of before say it
        old["checkpoint.best_metric"] = old["checkpoint.best_metric"] or "accuracy"
        new["checkpoint.best_metric"] = new["checkpoint.best_metric"] or "accuracy"
    crops_elsewhere = now.augment.random_resized_crop and (saved.data.resident is True) != (now.data.resident is True)
    teaches_anew = (saved.distill.teacher is None) != (now.distill.teacher is None)
    resumable = set(RESUMABLE_FIELDS)
    resumable -= ({"data.resident"} if crops_elsewhere else set()) | ({"distill.teacher"} if teaches_anew else set())
    return [
        f"{name} ({old.get(name)} -> {value})"
        for name, value in new.items()
        if value != old.get(name) and name not in resumable
    ]
