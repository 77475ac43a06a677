"""The schema of a run: small dataclasses of plain data, one comment a field, with its unit.

Nothing derived is stored (build.py computes steps and rates from the final config), so an override leaves nothing
stale. Types, ranges and what must hold between fields are checked here; names of models and data sets where they are
known, in build.py; loading and overriding are command_line.py's.
"""

import dataclasses
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from jaxcnn.errors import UserError, nearest


def _among(*values: str) -> dict[str, Any]:
    return {"choices": values}


def _range(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> dict[str, Any]:
    return {"low": low, "high": high, "above": above}


LARGEST_INTEGER = 2**32 - 1  # of any field
MOST_STEPS = 10**8  # of a run: its schedule is worked out as a whole
VALIDATION_METRICS = ("accuracy", "loss", "top5_accuracy")


@dataclass(slots=True)
class DataConfig:
    """Which data, how they are split, and where they live."""

    name: str = "digits"  # digits | tfds:NAME[/CONFIG][:VERSION] | folder:PATH | csv:PATH | npz:PATH
    dir: str | None = None  # where prepared sets lie; none: $TFDS_DATA_DIR, else ~/tensorflow_datasets; for a PATH: .
    train_split: str = "train"  # what to learn from, in TFDS's syntax: train[:80%], train+extra
    validation_split: str | None = None  # the same; none: the source's own, else a part held out of train
    test_split: str | None = None  # the same; none: the source's own, else a tenth held out of train
    validation_fraction: float = field(default=0.1, metadata=_range(0, 0.5))  # held out of train; 0: no validation
    fold: str | None = None  # 2/5: validation is the second of five folds of train_split; test stays as it is
    stratify: bool = True  # what is held out has each class in proportion; false: whatever comes
    split_seed: int = field(default=0, metadata=_range(0, 2**32 - 1))  # which are held out; not varied with `seed`
    exclude: str | None = None  # text file of record identifiers to leave out, one a line, before all else
    classes: tuple[int | str, ...] = ()  # only these, names or numbers, numbered anew in this order; empty: all
    examples_per_class: int | None = field(default=None, metadata=_range(1))  # so many of train, drawn by split_seed
    sampling: str = field(default="uniform", metadata=_among("uniform", "balanced"))  # balanced: classes equally often
    image_size: int | None = field(default=None, metadata=_range(1, 2**13))  # pixels; none: as stored
    channels: int | None = field(default=None, metadata=_range(1, 3))  # 1: grey, 3: RGB; none: as stored
    expected_examples: int | None = field(default=None, metadata=_range(1))  # of train_split; checked when opened, and
    expected_classes: int | None = field(default=None, metadata=_range(2))  # what --dry_run assumes of an absent set
    mean: tuple[float, ...] | None = None  # per channel, in 0..1; none: measured from train
    std: tuple[float, ...] | None = field(default=None, metadata=_range(above=0))  # the same
    resident: bool | None = None  # decoded set lives on the device; none: when it takes at most 2 GiB
    cache: bool = True  # keep the decoded set under ~/.cache/jaxcnn (or $JAXCNN_CACHE_DIR)
    damaged: str = field(default="error", metadata=_among("error", "skip"))  # records: end, or train on others, count
    num_workers: int | None = field(default=None, metadata=_range(0))  # decoding processes; 0: threads; none: by cores
    prefetch_batches: int = field(default=4, metadata=_range(1))  # decoded ahead when streaming; at least one a worker


@dataclass(slots=True)
class AugmentConfig:
    """What the images go through in training, on the device and in this order. 0 and false turn a piece off."""

    alternating_flip: bool = False  # mirror left-right every other epoch, each example's first by a coin
    flip: bool = False  # mirror left-right with probability 1/2
    crop_padding: int = field(default=0, metadata=_range(0))  # pixels of reflected border, then a random crop back
    random_resized_crop: bool = False  # a random box, enlarged; streams (at decode) unless data.resident=true
    crop_area: tuple[float, ...] = field(default=(0.08, 1.0), metadata=_range(above=0, high=1))  # the box's: low, high
    crop_aspect: tuple[float, ...] = field(default=(3 / 4, 4 / 3), metadata=_range(above=0))  # its width / height
    rotation: float = field(default=0.0, metadata=_range(0, 180))  # degrees, at most so many each way
    shift: float = field(default=0.0, metadata=_range(0, 1))  # fraction of height and of width, each way
    shear: float = field(default=0.0, metadata=_range(0, 80))  # degrees, each way
    zoom: float = field(default=0.0, metadata=_range(0, 0.95))  # fraction: by a factor in [1 - zoom, 1 + zoom]
    fill: str = field(default="constant", metadata=_among("constant", "nearest", "reflect", "wrap"))  # of these four
    randaugment_ops: int = field(default=0, metadata=_range(0, 14))  # operations one after the other: the paper's N
    randaugment_magnitude: int = field(default=9, metadata=_range(0, 30))  # of all of them, on torchvision's scale
    trivial_augment: bool = False  # one operation of any magnitude, TrivialAugment's wide ranges
    brightness: float = field(default=0.0, metadata=_range(0))  # by a factor in [max(0, 1 - this), 1 + this]
    contrast: float = field(default=0.0, metadata=_range(0))  # the same
    saturation: float = field(default=0.0, metadata=_range(0))  # the same
    hue: float = field(default=0.0, metadata=_range(0, 0.5))  # fraction of the circle, each way
    grayscale: float = field(default=0.0, metadata=_range(0, 1))  # probability
    blur: float = field(default=0.0, metadata=_range(0, 16))  # largest sigma in pixels; drawn between 0 and this
    noise: float = field(default=0.0, metadata=_range(0, 1))  # sigma, a fraction of the levels' range
    cutout: int = field(default=0, metadata=_range(0))  # side in pixels of a random square set to the mean
    random_erasing: float = field(default=0.0, metadata=_range(0, 1))  # probability of a box of 2-40 % set to the mean
    mixup: float = field(default=0.0, metadata=_range(0))  # alpha; partners are neighbours in the batch
    cutmix: float = field(default=0.0, metadata=_range(0))  # alpha; with mixup too, each example by one of the two


@dataclass(slots=True)
class ModelConfig:
    """Which model, and the options that it takes."""

    name: str = "cnn"  # a key of jaxcnn.models.MODELS
    stem: str | None = field(default=None, metadata=_among("small", "imagenet"))  # none: imagenet's from 64 pixels on
    width: float | None = field(
        default=None, metadata=_range(above=0, high=100)
    )  # times the paper's channels; none: its
    depth: float | None = field(default=None, metadata=_range(above=0, high=100))  # times the paper's blocks; none: its
    dropout_rate: float | None = field(default=None, metadata=_range(0, 0.95))  # none: the model's
    stochastic_depth: float | None = field(default=None, metadata=_range(0, 0.95))  # of the last block, linear from 0
    activation: str | None = None  # a key of models.layers.ACTIVATIONS; none: the paper's
    initializer: str | None = None  # of all kernels: a key of models.initializers.INITIALIZERS; none: the paper's
    norm: str | None = field(default=None, metadata=_among("batch", "group", "layer", "none"))  # none: the paper's
    dtype: str = field(default="float32", metadata=_among("float32", "bfloat16"))  # of compute; params stay float32
    remat: bool = False  # keep only what stands between blocks, compute the rest again: less memory, more time
    batch_norm: str = field(default="global", metadata=_among("global", "per_device"))  # the batch it normalises over
    batch_norm_momentum: float = field(default=0.9, metadata=_range(0, 1))  # of the running statistics


@dataclass(slots=True)
class LossConfig:
    """What is minimised."""

    name: str = field(default="cross_entropy", metadata=_among("cross_entropy", "focal", "kl", "mse", "mae"))
    label_smoothing: float = field(default=0.0, metadata=_range(0, 0.99))
    focal_gamma: float = field(default=2.0, metadata=_range(0))  # Lin et al. 2017, eq. 4
    # Weights multiply an example's loss in training; the loss of validation and test is without them.
    class_weights: str = field(default="none", metadata=_among("none", "balanced"))  # balanced: of mean 1 over train
    class_weight_values: tuple[float, ...] = field(default=(), metadata=_range(0))  # one a class, taken as they are


@dataclass(slots=True)
class GroupsConfig:
    """airbench_sgd, airbench_muon: the groups of parameters. Rates are multiples of learning_rate.

    Each has its weight_decay divided by its rate, so that all of them shrink alike.
    """

    norm_bias_rate: float = field(default=1.0, metadata=_range(above=0))  # biases of batch norms
    head_rate: float = field(default=1.0, metadata=_range(above=0))
    whiten_bias_rate: float = field(default=1.0, metadata=_range(above=0))
    whiten_bias_steps: int = field(default=1, metadata=_range(1))  # then it is frozen; airbench_muon: falling to 0
    muon_rest_momentum: float = field(default=0.85, metadata=_range(0, 0.9999))  # airbench_muon: of all but its kernels


@dataclass(slots=True)
class OptimizerConfig:
    """How the weights move; its links, in order, are in optim.py."""

    name: str = field(
        default="nesterov",
        metadata=_among(
            "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lamb", "lion", "muon",
            "airbench_sgd", "airbench_muon",
        ),
    )  # fmt: skip
    learning_rate: float = field(default=0.1, metadata=_range(above=0))  # at the schedule's peak
    reference_batch_size: int | None = field(default=None, metadata=_range(1))  # the rate is scaled by batch_size/this
    momentum: float = field(default=0.9, metadata=_range(0, 0.9999))  # momentum, nesterov, rmsprop (0: none), muons
    beta1: float = field(default=0.9, metadata=_range(0, 0.9999))  # adam, adamw, lamb, lion; muon's adam
    beta2: float | None = field(default=None, metadata=_range(0, 0.99999))  # none: lion 0.99, rmsprop 0.9, else 0.999
    epsilon: float = field(default=1e-8, metadata=_range(above=0))
    weight_decay: float = field(default=0.0, metadata=_range(0))  # on kernels only; airbench_*: see GroupsConfig
    weight_decay_mode: str = field(
        default="auto", metadata=_among("auto", "l2", "decoupled")
    )  # auto: as the name implies
    l1: float = field(default=0.0, metadata=_range(0))  # penalty sum |w|, on kernels only
    clip_norm: float | None = field(default=None, metadata=_range(above=0))  # global norm of the gradient
    clip_value: float | None = field(default=None, metadata=_range(above=0))  # each entry of the gradient
    accumulate: int = field(default=1, metadata=_range(1))  # micro-batches a step
    ema_decay: float | None = field(default=None, metadata=_range(above=0, high=0.999999))  # none: no average kept
    lookahead_every_steps: int | None = field(
        default=None, metadata=_range(1)
    )  # none: no lookahead; it has the average
    lookahead_decay: float = field(default=0.95**5, metadata=_range(0, 1))  # of lookahead's average, at the last step
    groups: GroupsConfig = field(default_factory=GroupsConfig)


@dataclass(slots=True)
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = field(
        default="cosine", metadata=_among("cosine", "step", "one_cycle", "triangle", "linear", "constant", "plateau")
    )
    warmup_epochs: float = field(
        default=0.0, metadata=_range(0)
    )  # linear, from 0; not for one_cycle, which has its own
    initial_fraction: float = field(default=0.0, metadata=_range(0, 1))  # triangle: first rate / peak rate
    final_fraction: float = field(default=0.0, metadata=_range(0, 1))  # last rate / peak rate; plateau: lowest / peak
    step_epochs: tuple[float, ...] = ()  # step: the epochs at which the rate is multiplied by step_factor
    step_factor: float = field(default=0.1, metadata=_range(above=0, high=1))
    peak_fraction: float = field(
        default=0.3, metadata=_range(above=0, high=0.99)
    )  # one_cycle, triangle: the peak's place
    # plateau: the peak's rate, until validation has not become better for a while; again and again
    plateau_evaluations: int = field(default=5, metadata=_range(1))  # so many without a better one, and the rate falls
    plateau_factor: float = field(default=0.1, metadata=_range(above=0, high=0.99))  # it is multiplied by this
    plateau_cooldown_evaluations: int = field(default=0, metadata=_range(0))  # after a fall, so many do not count
    plateau_metric: str | None = field(default=None, metadata=_among(*VALIDATION_METRICS))  # none: checkpoint's best
    plateau_min_delta: float = field(default=0.0, metadata=_range(0))  # better: by more than this, in the metric's unit


@dataclass(slots=True)
class FinetuneConfig:
    """Which layers train, from when, and how fast, beginning from weights that are already good: finetune.py.

    A layer is what the model's top module names (stage1_block2, head; a norm with its convolution), a stage what its
    name begins with (stage1). Depth counts layers from the head, which has 0.
    """

    frozen: tuple[str, ...] = ()  # patterns of parameters that stay as they are, e.g. 'stage1_*'; '!head': but not it
    unfreeze_epochs: tuple[float, ...] = field(default=(), metadata=_range(above=0))  # a stage each, from the head down
    layer_decay: float = field(default=1.0, metadata=_range(above=0, high=1))  # a layer's rate: times this ** depth
    head_rate: float = field(default=1.0, metadata=_range(above=0))  # the head's rate is multiplied by this


@dataclass(slots=True)
class CheckpointConfig:
    """What is saved, when, and which weights are the result."""

    every_epochs: float = field(default=1.0, metadata=_range(above=0))
    every_steps: int | None = field(default=None, metadata=_range(1))  # given: instead of every_epochs
    keep_last: int = field(default=2, metadata=_range(1))
    keep_best: int = field(default=1, metadata=_range(0))  # 0: the last weights are the result
    best_metric: str = field(default="accuracy", metadata=_among(*VALIDATION_METRICS))  # on validation
    asynchronous: bool = True  # write while training goes on


@dataclass(slots=True)
class EarlyStopConfig:
    """When a run ends before its last step: validation has not become better for a while."""

    patience_evaluations: int | None = field(default=None, metadata=_range(1))  # without a better one; none: off
    metric: str | None = field(default=None, metadata=_among(*VALIDATION_METRICS))  # none: checkpoint.best_metric
    min_delta: float = field(default=0.0, metadata=_range(0))  # better: by more than this, in the metric's unit


@dataclass(slots=True)
class TelemetryConfig:
    """What is measured of a step's inside: norms and histograms of weights, gradients, activations. telemetry.py."""

    every_steps: int | None = field(default=None, metadata=_range(0))  # 0: never; none: 100 rows a run; see build.py


@dataclass(slots=True)
class ProfileConfig:
    """What JAX's profiler records, for TensorBoard."""

    steps: str | None = None  # 10:20: from after step 10 to after step 20; none: nothing


@dataclass(slots=True)
class Config:
    """A run is a pure function of this, the data, and nothing else."""

    seed: int = field(default=0, metadata=_range(0, 2**31 - 1))
    batch_size: int = field(default=128, metadata=_range(1, 2**20))  # global, over all devices
    eval_batch_size: int | None = field(
        default=None, metadata=_range(1, 2**20)
    )  # none: batch_size; rounded up to devices
    eval_tta: str = field(default="none", metadata=_among("none", "flip", "flip_translate", "shifts"))  # views averaged
    num_epochs: float = field(default=10.0, metadata=_range(above=0, high=MOST_STEPS))
    num_steps: int | None = field(default=None, metadata=_range(1, MOST_STEPS))  # given: instead of num_epochs
    eval_every_epochs: float = field(default=1.0, metadata=_range(above=0))
    log_every_steps: int = field(default=50, metadata=_range(1))
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    init_from: str | None = None  # weights to begin with: FILE, a run's folder, torchvision:NAME, hf:ORGANISATION/NAME
    init_head: str = field(default="keep", metadata=_among("keep", "new"))  # new: of init_from all but the heads
    init_adapt: bool = False  # the first convolution to other channels, position embeddings to other sizes
    init_allow: tuple[str, ...] = ()  # patterns of arrays that may be missing in init_from, left over, of another shape
    parallel: str = field(default="jit", metadata=_among("jit", "pmap"))  # over a mesh, or pmap
    platform: str | None = field(default=None, metadata=_among("cpu", "gpu", "tpu"))  # none: the best there is
    num_devices: int | None = field(default=None, metadata=_range(1))  # none: all
    steps_per_call: int | None = field(default=None, metadata=_range(1))  # steps in one program; none: by platform
    tensorboard: bool = True  # scalars, histograms, the graph, hyperparameters
    tensorboard_media: bool = False  # images, PR curves, the projector, too: a second or more when the run ends
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    compilation_cache: bool = True  # compiled programs are kept under ~/.cache/jaxcnn (or $JAXCNN_CACHE_DIR)


# What may differ between two commands on one workdir: how a run is watched, kept and spread over devices, not what it
# computes.
RESUMABLE_FIELDS = (
    "eval_batch_size", "log_every_steps", "checkpoint.every_epochs", "checkpoint.every_steps", "checkpoint.keep_last",
    "checkpoint.asynchronous", "model.remat", "parallel", "platform", "num_devices", "steps_per_call", "tensorboard",
    "tensorboard_media", "telemetry.every_steps", "profile.steps", "compilation_cache", "data.dir", "data.cache",
    "data.damaged", "data.num_workers", "data.prefetch_batches",
    "data.resident", "data.expected_examples", "data.expected_classes",
    "data.exclude",  # where the list lies; what it says is compared by its digest, in workdir.py
)  # fmt: skip


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(data: dict[str, Any], schema: type = Config, where: str = "config") -> Any:
    """The inverse of `to_dict`, not validated. Raises UserError on a field that this version does not have."""
    if not isinstance(data, dict):
        raise UserError(f"{where} must be a group of fields, not {data!r}")
    hints = typing.get_type_hints(schema)
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
    crops_elsewhere = now.augment.random_resized_crop and (saved.data.resident is True) != (now.data.resident is True)
    resumable = set(RESUMABLE_FIELDS) - ({"data.resident"} if crops_elsewhere else set())
    return [
        f"{name} ({old.get(name)} -> {value})"
        for name, value in new.items()
        if value != old.get(name) and name not in resumable
    ]


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
