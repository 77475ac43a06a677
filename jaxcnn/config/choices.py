"""The only lists of tasks, losses, optimizers, schedules and sources: a name in the config, and what it stands for.

An entry says which function makes the thing and which options that function reads. A new one is a function and an entry
here; an experiment's file may add one for itself: `LOSSES["mine"] = LossChoice(my_loss)`. Functions are written as text
and imported when they are asked for, so that a config is checked before JAX is imported.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxcnn.config.schema import Config, FinetuneConfig
from jaxcnn.errors import UserError, nearest


def load_function(named: str | Callable[..., Any]) -> Callable[..., Any]:
    """What `package.module:function` names, imported now. Raises UserError where there is none."""
    if not isinstance(named, str):
        return named
    module, _, function = named.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{named!r} is no function, as package.module:function is: {error}") from error


@dataclass(frozen=True)
class Choice:
    """What one name stands for."""

    made_by: str | Callable[..., Any]  # package.module:function; what it takes stands above each dict
    # Options, or with a dot or an underscore at the end the beginning of several. One that any entry of a dict reads is
    # refused under those that do not.
    reads: tuple[str, ...] = ()
    check: Callable[[Config], Iterable[str]] | None = None  # what is wrong with the rest of a config that chooses it

    def load(self) -> Callable[..., Any]:
        """The function. Raises UserError where there is none."""
        return load_function(self.made_by)

    def is_reader_of(self, option: str) -> bool:
        """Whether `reads` names the option, a path as on the command line."""
        return any(option.startswith(each) if each.endswith((".", "_")) else option == each for each in self.reads)


@dataclass(frozen=True)
class TaskChoice(Choice):
    """A task, and what does its part of the commands: (the flags' values, the whole command line) -> exit code."""

    evaluate: str = "jaxcnn.results.general:evaluate_command"
    predict: str = "jaxcnn.results.finished:predict_command"
    sections: str | None = None  # (RunFiles, the flags' values, progress) -> {title: what makes the report's section}
    looks_inside: bool = False  # jaxcnn.load and the report look at its network; else at the run's files alone


@dataclass(frozen=True)
class LossChoice(Choice):
    """A loss, with what it compares."""

    of: tuple[Literal["classes", "numbers", "labels", "series", "pixels"], ...] = (
        "classes",
    )  # the targets that it can be used for
    of_logits: bool = False  # logits with targets, not probabilities: a mean of probabilities has no such loss


@dataclass(frozen=True)
class SourceChoice(Choice):
    """A kind of source, with what stands after its colon."""

    takes: Literal["", "NAME", "FOLDER", "FILE"] = ""  # FILE: its suffix is the kind's own, as of csv:pets.csv


# ---- what a choice asks of other options: the message where it does not get it


def _needs_vectors(config: Config) -> Iterator[str]:
    if config.text.channels != "tuned" and config.text.embeddings is None:
        yield f"text.channels={config.text.channels} keeps word vectors as they are; name them: text.embeddings=FILE"


def _needs_epochs(config: Config) -> Iterator[str]:
    if not config.schedule.step_epochs:
        yield "schedule.name=step needs schedule.step_epochs, e.g. --config.schedule.step_epochs='(30,60)'"


def _warms_up_by_itself(config: Config) -> Iterator[str]:
    if config.schedule.warmup_epochs:
        yield f"schedule.name={config.schedule.name} warms up by itself; set schedule.warmup_epochs=0"


def _acts_before_the_run_ends(config: Config) -> Iterator[str]:
    early_stop, schedule = config.early_stop, config.schedule
    if (
        early_stop.patience_evaluations is not None
        and early_stop.patience_evaluations <= schedule.plateau_evaluations
        and early_stop.metric == schedule.plateau_metric
    ):
        yield (
            f"early_stop.patience_evaluations={early_stop.patience_evaluations} ends the run before "
            f"schedule.plateau_evaluations={schedule.plateau_evaluations} lowers the rate; make it larger, "
            f"e.g. {2 * schedule.plateau_evaluations + 1}"
        )


def _airbench(config: Config) -> Iterator[str]:
    """The optimizers of the CIFAR-10 speed records are whole: rates, decay and groups of their own."""
    optimizer = config.optimizer
    if config.schedule.name == "plateau":
        yield (
            f"optimizer.name={optimizer.name} has rates of its own; for schedule.name=plateau choose another, "
            "e.g. nesterov"
        )
    if optimizer.l1 or optimizer.weight_decay_mode != "auto":
        yield (
            f"optimizer.name={optimizer.name} has a decay of its own; set optimizer.l1=0 and "
            "optimizer.weight_decay_mode=auto"
        )
    if config.finetune != FinetuneConfig():
        yield f"optimizer.name={optimizer.name} has groups of its own; for finetune.* choose another, e.g. nesterov"


def _airbench_muon(config: Config) -> Iterator[str]:
    if config.optimizer.reference_batch_size is not None:
        yield (
            "optimizer.name=airbench_muon has a rate that does not go with the batch; set "
            "optimizer.reference_batch_size=none"
        )
    yield from _airbench(config)


def _language(config: Config) -> Iterator[str]:
    options = config.language
    longest = options.eval_length or options.length
    if options.context >= longest:
        yield (
            f"language.context={options.context} leaves nothing to count of windows of {longest} tokens; set it below, "
            f"e.g. to {longest // 4}"
        )
    if config.model.name == "transformer" and longest > options.length:
        yield (
            f"language.eval_length={longest} is beyond language.length={options.length}, and a transformer has learned "
            "no places beyond that; set language.eval_length=none"
        )


def _increasing_quantiles(config: Config) -> Iterator[str]:
    quantiles = config.loss.quantiles
    if list(quantiles) != sorted(set(quantiles)) or 0.5 not in quantiles:
        yield f"loss.quantiles={quantiles} must increase, with 0.5, the forecast, among them, e.g. '(0.1, 0.5, 0.9)'"


# ---- the lists

# A TaskKind: tasks/task.py
_OF_IMAGES = (
    "augment.", "loss.", "eval_tta", "data.image_size", "data.channels", "data.mean", "data.std", "data.cache",
    "data.damaged",
)  # fmt: skip
_DRAWN = (  # splits that are drawn among examples without an order
    "data.train_split", "data.validation_split", "data.test_split", "data.stratify", "data.exclude",
    "data.examples_per_class", "data.sampling",
)  # fmt: skip
TASKS: dict[str, TaskChoice] = {
    "classification": TaskChoice(
        "jaxcnn.tasks.classification:CLASSIFICATION",
        reads=(*_OF_IMAGES, *_DRAWN, "distill.", "tensorboard_media", "data.classes", "data.expected_"),
        evaluate="jaxcnn.evaluate:evaluate_images",
        predict="jaxcnn.predict:predict_images",
        looks_inside=True,
    ),
    "multilabel": TaskChoice("jaxcnn.tasks.multilabel:MULTILABEL", reads=("multilabel.", *_OF_IMAGES, *_DRAWN)),
    "tabular": TaskChoice("jaxcnn.tasks.tabular:TABULAR", reads=("table.", "loss.", *_DRAWN)),
    "text": TaskChoice(
        "jaxcnn.tasks.text:TEXT", reads=("text.", "loss.", *_DRAWN), check=_needs_vectors,
        sections="jaxcnn.report.from_texts:sections",
    ),
    "language": TaskChoice(
        "jaxcnn.tasks.language:LANGUAGE", reads=("language.",), check=_language,
        sections="jaxcnn.report.from_language:sections",
    ),
    "forecasting": TaskChoice(
        "jaxcnn.tasks.forecasting:FORECASTING",
        reads=("forecast.", "loss.name", "loss.huber_delta", "loss.quantiles"),
        sections="jaxcnn.report.from_forecasts:sections",
    ),
    "segmentation": TaskChoice(
        "jaxcnn.tasks.segmentation:SEGMENTATION",
        reads=("segmentation.", *(each for each in _OF_IMAGES if each != "data.cache"), *_DRAWN),
        predict="jaxcnn.results.segmented:predict_command",
        sections="jaxcnn.report.from_masks:sections",
    ),
}  # fmt: skip

# (logits [B, K], targets [B, K], LossConfig) -> [B], in float32
LOSSES: dict[str, LossChoice] = {
    "cross_entropy": LossChoice(
        "jaxcnn.tasks.classification.losses:cross_entropy", reads=("loss.label_smoothing",), of=("classes", "pixels")
    ),
    "focal": LossChoice(
        "jaxcnn.tasks.classification.losses:focal", reads=("loss.focal_gamma",), of=("classes", "pixels")
    ),
    "kl": LossChoice("jaxcnn.tasks.classification.losses:kl"),
    "mse": LossChoice("jaxcnn.tasks.classification.losses:mse", of=("classes", "numbers"), of_logits=True),
    "mae": LossChoice("jaxcnn.tasks.classification.losses:mae", of=("classes", "numbers"), of_logits=True),
    "binary_cross_entropy": LossChoice("jaxcnn.tasks.multilabel:binary_cross_entropy", of=("labels",)),
    "huber": LossChoice(
        "jaxcnn.tasks.classification.losses:huber", reads=("loss.huber_delta",), of=("classes", "numbers"),
        of_logits=True,
    ),
    "pinball": LossChoice(
        "jaxcnn.tasks.forecasting:pinball", reads=("loss.quantiles",), check=_increasing_quantiles, of=("series",)
    ),
    # of an image's pixels together: (logits [B, N, K], targets [B, N, K], LossConfig) -> [B]
    "dice": LossChoice("jaxcnn.tasks.segmentation.losses:dice", of=("pixels",)),
    "jaccard": LossChoice("jaxcnn.tasks.segmentation.losses:jaccard", of=("pixels",)),
    "tversky": LossChoice(
        "jaxcnn.tasks.segmentation.losses:tversky", reads=("loss.tversky_alpha",), of=("pixels",)
    ),
    "dice_cross_entropy": LossChoice(
        "jaxcnn.tasks.segmentation.losses:dice_cross_entropy", reads=("loss.label_smoothing",), of=("pixels",)
    ),
}  # fmt: skip

# (OptimizerConfig, optim.Rate) -> optax.GradientTransformation, which makes the step that is added to the weights
_MOMENTUM, _ADAM = ("optimizer.momentum",), ("optimizer.beta1", "optimizer.beta2", "optimizer.epsilon")
OPTIMIZERS: dict[str, Choice] = {
    "sgd": Choice("jaxcnn.training.optim:sgd"),
    "momentum": Choice("jaxcnn.training.optim:momentum", reads=_MOMENTUM),
    "nesterov": Choice("jaxcnn.training.optim:nesterov", reads=_MOMENTUM),
    "adagrad": Choice("jaxcnn.training.optim:adagrad", reads=("optimizer.epsilon",)),
    "rmsprop": Choice(
        "jaxcnn.training.optim:rmsprop", reads=(*_MOMENTUM, "optimizer.beta2", "optimizer.epsilon")
    ),
    "adam": Choice("jaxcnn.training.optim:adam", reads=_ADAM),
    "adamw": Choice("jaxcnn.training.optim:adamw", reads=_ADAM),
    "lamb": Choice("jaxcnn.training.optim:lamb", reads=_ADAM),
    "lion": Choice("jaxcnn.training.optim:lion", reads=("optimizer.beta1", "optimizer.beta2")),
    "muon": Choice("jaxcnn.training.optim:muon", reads=(*_MOMENTUM, *_ADAM)),
    "airbench_sgd": Choice(
        "jaxcnn.training.airbench_optim:airbench_sgd", reads=(*_MOMENTUM, "optimizer.groups."), check=_airbench
    ),
    "airbench_muon": Choice(
        "jaxcnn.training.airbench_optim:airbench_muon", reads=(*_MOMENTUM, "optimizer.groups."), check=_airbench_muon
    ),
}  # fmt: skip

# (ScheduleConfig, optim.Span) -> optax.Schedule: the learning rate by the number of updates already applied
SCHEDULES: dict[str, Choice] = {
    "cosine": Choice("jaxcnn.training.optim:cosine", reads=("schedule.final_fraction",)),
    "linear": Choice("jaxcnn.training.optim:linear", reads=("schedule.final_fraction",)),
    "step": Choice("jaxcnn.training.optim:step", reads=("schedule.step_",), check=_needs_epochs),
    "one_cycle": Choice(
        "jaxcnn.training.optim:one_cycle", reads=("schedule.peak_fraction",), check=_warms_up_by_itself
    ),
    "triangle": Choice(
        "jaxcnn.training.optim:triangle",
        reads=("schedule.initial_fraction", "schedule.final_fraction", "schedule.peak_fraction"),
        check=_warms_up_by_itself,
    ),
    "constant": Choice("jaxcnn.training.optim:constant"),
    "plateau": Choice(
        "jaxcnn.training.optim:constant",  # what validation makes of it is in the optimizer's state: RateFactor
        reads=("schedule.final_fraction", "schedule.plateau_"),
        check=_acts_before_the_run_ends,
    ),
}  # fmt: skip

# (DataConfig, what stands after the colon: a path that exists, or text; sources.Opening) -> StoredSet
SOURCES: dict[str, SourceChoice] = {
    "digits": SourceChoice("jaxcnn.data.sources:digits"),
    "tfds": SourceChoice("jaxcnn.data.sources:tfds", takes="NAME"),
    "folder": SourceChoice("jaxcnn.data.sources:folder", takes="FOLDER"),
    "csv": SourceChoice("jaxcnn.data.sources:csv", takes="FILE"),
    "npz": SourceChoice("jaxcnn.data.sources:npz", takes="FILE"),
}

# (DataConfig, TextConfig, what stands after the colon: a path that exists, or text) -> StoredTexts: tasks/text/texts.py
TEXTS: dict[str, SourceChoice] = {
    "csv": SourceChoice("jaxcnn.tasks.text.texts:read_csv", takes="FILE"),
    "folder": SourceChoice("jaxcnn.tasks.text.texts:read_folder", takes="FOLDER"),
    "tfds": SourceChoice("jaxcnn.tasks.text.texts:read_tfds", takes="NAME"),
}

# (split_seed, what stands after the colon: a path that exists) -> Table: tasks/tabular/table.py
TABLES: dict[str, SourceChoice] = {
    "csv": SourceChoice("jaxcnn.tasks.tabular.table:read_csv", takes="FILE"),
    "iris": SourceChoice("jaxcnn.tasks.tabular.table:iris"),
    "wine": SourceChoice("jaxcnn.tasks.tabular.table:wine"),
    "breast_cancer": SourceChoice("jaxcnn.tasks.tabular.table:breast_cancer"),
    "diabetes": SourceChoice("jaxcnn.tasks.tabular.table:diabetes"),
    "make_classification": SourceChoice("jaxcnn.tasks.tabular.table:make_classification"),
    "make_regression": SourceChoice("jaxcnn.tasks.tabular.table:make_regression"),
}

# data.name of task=forecasting: (a file that exists, ForecastConfig, progress, name=), or (split_seed) -> SeriesSet
SERIES: dict[str, SourceChoice] = {
    "csv": SourceChoice("jaxcnn.tasks.forecasting.series:read_csv", takes="FILE"),
    "make_seasonal": SourceChoice("jaxcnn.tasks.forecasting.series:make_seasonal"),
}

# (DataConfig, SegmentationConfig, what stands after the colon, progress) -> StoredSet of images and masks
MASKS: dict[str, SourceChoice] = {
    "folder": SourceChoice("jaxcnn.tasks.segmentation.files:read_folder", takes="FOLDER"),
    "npz": SourceChoice("jaxcnn.tasks.segmentation.arrays:read_npz", takes="FILE"),
    "scenes": SourceChoice("jaxcnn.tasks.segmentation.scenes:read_scenes", takes="NAME"),
}

# Which field chooses from which. data.name does too, by its kind, which is told where sets are opened.
CHOICES: dict[str, Mapping[str, Choice]] = {
    "task": TASKS,
    "schedule.name": SCHEDULES,
    "loss.name": LOSSES,
    "optimizer.name": OPTIMIZERS,
}


def choose(field: str, name: str) -> Choice:
    """The entry that a field's value stands for. Raises UserError naming the nearest."""
    choices = CHOICES[field]
    if name not in choices:
        raise UserError(f"{field} is {name!r}: {nearest(name, choices)}")
    return choices[name]
