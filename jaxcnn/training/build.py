"""Config -> the pieces of a run: sources, model, optimizer, steps bound to devices. Checks every name.

Everything derived from the config (steps, scaled rate, statistics of the data) is computed here, from its final
values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import data as data_lib
from jaxcnn.augment import Augment, check_augment, make_augment, make_normalise
from jaxcnn.config import MOST_STEPS, Config, FinetuneConfig, parse_steps
from jaxcnn.data import Source
from jaxcnn.errors import UserError
from jaxcnn.layers.norm import BatchNorm, without_axis
from jaxcnn.models.make import check_name, make_model
from jaxcnn.tasks.classification.losses import Loss, class_weights, make_loss
from jaxcnn.tasks.classification.metrics import Metrics, metrics_for
from jaxcnn.training.averaging import Average, make_average
from jaxcnn.training.feed import Feed, Progress, ResidentFeed, StreamingFeed
from jaxcnn.training.finetune import EVERYTHING, Finetuning, make_finetuning
from jaxcnn.training.optim import make_optimizer, make_schedule
from jaxcnn.training.parallel import Parallel, make_parallel
from jaxcnn.training.step import TrainState, eval_step, init_state, train_step, train_steps
from jaxcnn.training.telemetry import telemetry_step
from jaxcnn.transfer.finding import find
from jaxcnn.transfer.pretrained import Pretrained, fit, read

RESIDENT_BYTES = 2 * 2**30  # a decoded set up to this size lives on the device
FIRST_EXAMPLES = 5000  # training images that a model's from_data is handed
TELEMETRY_ROWS, TELEMETRY_STEPS = 100, 200  # by default so many rows a run, and at least so many steps between two
TELEMETRY_FROM_STEPS = 1000  # shorter runs have none by default: compiling it would be half of what they take
MAX_STEPS_PER_CALL = 32  # on accelerators; each call then costs the host 1/32 of a dispatch a step


@dataclass(frozen=True)
class Run:
    """A config's pieces, ready to be called; nothing is compiled yet."""

    config: Config
    source: Source
    resident: bool
    mean: tuple[float, ...]  # per channel, of images in 0..1
    std: tuple[float, ...]
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    parallel: Parallel
    metrics: type[Metrics]
    steps_per_epoch: float  # batches may cross an epoch's end, so this is no whole number
    total_steps: int
    steps_per_call: int
    eval_batch_size: int
    class_weights: np.ndarray | None  # float32 [K], of the losses in training
    loss: Loss  # in training
    augment: Augment
    average: Average | None  # of the weights
    finetuning: Finetuning  # what trains, from when, how fast
    examples: Callable[[int], np.ndarray]  # count -> the first images of train, uint8
    step: Callable  # (state, batch, key) -> (state, metrics)
    eval_step: Callable  # (variables, batch) -> metrics
    train_call: Callable  # compiled: (state, totals, data, inputs, key) -> (state, totals, step)
    eval_call: Callable  # compiled: (variables, totals, data, inputs) -> totals
    telemetry_call: Callable  # compiled: (state, data, inputs, key) -> statistics
    telemetry_every_steps: int  # 0: never

    def init(self) -> TrainState:
        """The state before the first step, on the default device: drawn, then what `pretrained` has in its place."""
        from_data = hasattr(self.model, "from_data")
        examples = self.examples(FIRST_EXAMPLES) if from_data else None
        state = jax.jit(self.init_from)(jax.random.key(self.config.seed), examples)
        if self.pretrained is None:
            return state
        variables = self.pretrained.over({"params": state.params, "batch_stats": state.batch_stats})
        # what the optimizer begins with may depend on the weights; two donated arguments may not share a buffer
        return state.replace(
            **variables,
            opt_state=jax.jit(self.optimizer.init)(variables["params"]),
            ema=jax.tree.map(jnp.copy, variables) if state.ema is not None else None,
        )

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that config.init_from names, read when they are first asked for. Raises UserError, RunError."""
        config = self.config
        if config.init_from is None:
            return None
        state = self.abstract_state()
        return fit(
            *read(find(config.init_from)),
            {"params": state.params, "batch_stats": state.batch_stats},
            model=config.model.name,
            channels=self.source.image_shape[-1],
            head=config.init_head,
            adapt=config.init_adapt,
            allow=config.init_allow,
        )

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state; computes nothing."""
        return jax.eval_shape(self.init_from, jax.random.key(self.config.seed))

    def data_facts(self) -> dict[str, Any]:
        """What a run's folder says of its data."""
        sizes = self.source.stored_sizes
        return {
            "name": self.source.name,
            "fingerprint": self.source.fingerprint,
            "splits": self.source.splits_digest,
            "excluded": {"num_examples": self.source.num_excluded, "digest": self.source.exclusion_digest},
            "image_shape": list(self.source.image_shape),
            "class_names": list(self.source.class_names),
            "num_examples": {name: len(split) for name, split in self.source.splits.items()},
            "class_counts": self.source.class_counts,
            "stored_sizes": None
            if sizes is None
            else {
                "smallest": sizes.min(axis=0).tolist(),
                "median": np.median(sizes, axis=0).tolist(),
                "largest": sizes.max(axis=0).tolist(),
            },
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def init_from(self, key: jax.Array, examples: jax.Array | None = None) -> TrainState:
        """The state before the first step, as a pure function of the run's key and, for from_data, train's images."""
        return init_state(
            key,
            self.source.image_shape,
            model=self.model,
            optimizer=self.optimizer,
            initializer=self.config.model.initializer,
            ema=self.average is not None,
            examples=None if examples is None else make_normalise(self.mean, self.std)(examples[:FIRST_EXAMPLES]),
        )


def build(
    config: Config,
    *,
    progress: Progress | None = None,
    statistics: tuple[Any, Any] | None = None,
    kept_splits: dict[str, np.ndarray] | None = None,
    stand_in: bool = False,
) -> tuple[Run, Feed]:
    """Builds a run and the feed of its data.

    Args:
      config: validated.
      progress: told while images are decoded.
      statistics: (mean, std) that the run was trained with, when it already was.
      kept_splits: the splits that it was trained with, the same; see data/splits.py.
      stand_in: a set that is not here may be replaced by its expected shapes: enough for a dry run.

    Raises:
      UserError: a name, a size or a device that is not there.
    """
    parallel = make_parallel(config.parallel, platform=config.platform, num_devices=config.num_devices)
    if config.batch_size % (parallel.num_devices * config.optimizer.accumulate):
        raise UserError(
            f"batch_size={config.batch_size} does not divide over {parallel.num_devices} devices x "
            f"optimizer.accumulate={config.optimizer.accumulate}"
        )
    check_name(config.model)
    source = _open_source(config, progress, kept_splits, stand_in=stand_in)
    num_train = len(source.splits["train"])
    resident = is_resident(config, source)
    model = make_model(
        config.model,
        num_classes=len(source.class_names),
        image_size=min(source.image_shape[:2]),
        axis_name=parallel.axis_name,
    )
    _check_traces(model, source, normalised_over(model, config, parallel))
    check_augment(config.augment, source.image_shape, device_batch=config.batch_size // parallel.num_devices)
    metrics = metrics_for(len(source.class_names))
    train_labels = lambda: data_lib.labels_of(source.splits["train"], progress)
    weights = class_weights(config.loss, train_labels, len(source.class_names))
    loss = make_loss(config.loss, weights)
    if config.checkpoint.keep_best and "validation" not in source.splits:
        raise UserError(
            f"checkpoint.keep_best={config.checkpoint.keep_best} needs a validation split, and with "
            "data.validation_fraction=0 there is none: set checkpoint.keep_best=0, and the last weights are the result"
        )
    for name, watches in (
        ("early_stop.patience_evaluations", config.early_stop.patience_evaluations is not None),
        ("schedule.name=plateau", config.schedule.name == "plateau"),
    ):
        if watches and "validation" not in source.splits:
            raise UserError(f"{name} needs a validation split, and there is none: set data.validation_fraction above 0")
    for name, metric in (
        ("checkpoint.best_metric", config.checkpoint.best_metric),
        ("early_stop.metric", config.early_stop.metric),
        ("schedule.plateau_metric", config.schedule.plateau_metric),
    ):
        if metric is not None and metric not in metrics.__dataclass_fields__:
            raise UserError(
                f"{name}={metric} is not measured with {len(source.class_names)} classes; choose accuracy or loss"
            )
    feed = (ResidentFeed if resident else StreamingFeed)(config, source, parallel, progress or (lambda *_: None))
    if statistics is None and None in _given(config):
        statistics = feed.statistics()
    measured = statistics or ((), ())
    mean, std = (tuple(map(float, given or own)) for given, own in zip(_given(config), measured, strict=True))
    channels = source.image_shape[-1]
    if not len(mean) == len(std) == channels:
        raise UserError(f"data.mean and data.std need {channels} values each, one a channel; got {mean} and {std}")

    steps_per_epoch = num_train / config.batch_size
    total_steps = config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))
    if total_steps > MOST_STEPS:
        raise UserError(f"num_epochs={config.num_epochs:g} are {total_steps:,} steps; a run has at most {MOST_STEPS:,}")
    if config.profile.steps is not None and parse_steps(config.profile.steps)[1] > total_steps:
        raise UserError(f"profile.steps={config.profile.steps} goes beyond the {total_steps:,} steps of the run")
    schedule = make_schedule(
        config.schedule, peak=peak_rate(config), total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    finetuning = EVERYTHING
    if config.finetune != FinetuneConfig():
        params = params_in_order(model, source.image_shape)
        finetuning = make_finetuning(config.finetune, params, steps_per_epoch=steps_per_epoch)
    optimizer = make_optimizer(config.optimizer, schedule, finetuning, plateau=config.schedule.name == "plateau")
    average = make_average(config.optimizer, total_steps=total_steps)
    augment = make_augment(
        config.augment,
        mean=mean,
        std=std,
        image_shape=source.image_shape,
        num_classes=len(source.class_names),
        cropped_at_decode=not resident,
    )
    learning: dict[str, Any] = dict(
        model=model,
        optimizer=optimizer,
        loss=loss,
        augment=augment,
        accumulate=config.optimizer.accumulate,
        finetuning=finetuning,
        axis_name=parallel.axis_name,
    )
    step = partial(train_step, **learning, metrics=metrics, average=average)
    look: Callable = partial(telemetry_step, **learning, histograms=config.tensorboard)

    def look_at_first(state, data, inputs, key):
        return look(state, feed.fetch(data, jax.tree.map(lambda x: x[0], inputs)), key)

    evaluate_batch = partial(
        eval_step,
        model=model,
        loss=make_loss(config.loss),
        normalise=make_normalise(mean, std),
        metrics=metrics,
        views=config.eval_tta,
        axis_name=parallel.axis_name,
    )

    def eval_batch(variables, totals, data, inputs):
        return totals.merge(evaluate_batch(variables, feed.fetch(data, inputs)))

    steps_per_call = _steps_per_call(config, parallel, resident, steps_per_epoch)
    wanted = min(config.eval_batch_size or config.batch_size, max(len(s) for s in source.splits.values()))
    run = Run(
        config=config,
        source=source,
        resident=resident,
        mean=mean,
        std=std,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        parallel=parallel,
        metrics=metrics,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        steps_per_call=steps_per_call,
        eval_batch_size=math.ceil(wanted / parallel.num_devices) * parallel.num_devices,
        class_weights=weights,
        loss=loss,
        augment=augment,
        average=average,
        finetuning=finetuning,
        examples=feed.examples,
        step=step,
        eval_step=evaluate_batch,
        train_call=parallel.compile(
            partial(train_steps, step=step, fetch=feed.fetch),
            sharded={3: 1},
            donate=(0, 1),
            remat=config.model.remat,
        ),
        eval_call=parallel.compile(eval_batch, sharded={3: 0}, donate=(1,)),
        telemetry_call=parallel.compile(look_at_first, sharded={2: 1}, remat=config.model.remat),
        telemetry_every_steps=_telemetry_every_steps(config, total_steps),
    )
    return run, feed


def describe(run: Run, experiment: str, num_params: int) -> str:
    """The first lines a person sees: backend, data, model, and over what batch norm normalises."""
    parallel, source, config = run.parallel, run.source, run.config
    device = parallel.devices[0]
    backend = device.platform if device.device_kind == device.platform else f"{device.platform} ({device.device_kind})"
    sizes = " / ".join(f"{len(split):,} {name}" for name, split in source.splits.items())
    lines = [
        f"{experiment}: {backend}, {_count(parallel.num_devices, 'device')} "
        f"by {parallel.mode}, {_count(jax.process_count(), 'process')}",
        f"data {source.name}: {sizes}; {'x'.join(map(str, source.image_shape))}, {len(source.class_names)} classes, "
        + (f"{source.num_excluded:,} records excluded, " if source.num_excluded else "")
        + ("on the device" if run.resident else f"streamed by {_decoders(run)}"),
        f"model {config.model.name}: {num_params:,} parameters, {config.model.dtype}; "
        f"{run.total_steps:,} steps of {config.batch_size} images, {run.steps_per_call} a call",
    ]
    validation, test = source.splits.get("validation"), source.splits["test"]
    if validation is not None and (shared := data_lib.num_shared(validation, test)):
        lines.append(
            f"validation and test share {shared:,} examples: test is no measure apart from what chose the weights"
        )
    normalised = normalised_over(run.model, config, parallel)
    if normalised is not None:
        lines.append(f"batch norm normalises over {normalised} images ({config.model.batch_norm})")
    return "\n".join(lines)


def _decoders(run: Run) -> str:
    num_workers = data_lib.choose_workers(
        run.config.data.num_workers,
        batch_size=run.config.batch_size // jax.process_count(),
        image_shape=run.source.image_shape,
    )
    return _count(num_workers, "process") if num_workers else "threads"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('ss') else 's'}"


def peak_rate(config: Config) -> float:
    """The schedule's peak: learning_rate, scaled linearly with the batch where asked (Goyal et al. 2017)."""
    reference = config.optimizer.reference_batch_size
    return config.optimizer.learning_rate * (config.batch_size / reference if reference else 1)


def _given(config: Config) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    return config.data.mean, config.data.std


def _open_source(
    config: Config, progress: Progress | None, kept_splits: dict[str, np.ndarray] | None, *, stand_in: bool
) -> Source:
    try:
        return data_lib.open_source(config.data, progress=progress, kept=kept_splits)
    except data_lib.NotPreparedError as error:
        source = data_lib.stand_in_source(config.data) if stand_in else None
        if source is None:
            raise
        if progress:
            progress(f"not the data, only what the config expects of them: {error}", 0, 0)
        return source


def normalised_over(model: nn.Module, config: Config, parallel: Parallel) -> int | None:
    """Over how many images batch norm normalises in training; None where the model has none."""
    norm = getattr(model, "norm", None)
    if not (isinstance(norm, partial) and norm.func is BatchNorm):
        return None
    share = config.batch_size // config.optimizer.accumulate
    return share if config.model.batch_norm == "global" else share // parallel.num_devices


def _check_traces(model: nn.Module, source: Source, normalised: int | None) -> None:
    """Traces the model abstractly, so that what does not fit the images is said before anything is compiled."""
    key, images = jax.random.key(0), jax.ShapeDtypeStruct((2, *source.image_shape), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), key, images)
    if normalised == 1:  # which may be too few for batch norm
        images = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.float32)
        train = partial(without_axis(model).apply, train=True, mutable=True, rngs={"params": key, "dropout": key})
        jax.eval_shape(train, variables, images)


def params_in_order(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes of a model's parameters, on top in the order in which images meet them; computes nothing."""
    names: list[str] = []

    def init(key: jax.Array) -> Any:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        params = model.init({"params": key, "dropout": key}, images, train=True)["params"]
        names.extend(params)  # flax keeps the order; what comes out of eval_shape is sorted
        return params

    params = jax.eval_shape(init, jax.random.key(0))
    return {name: params[name] for name in names}


def is_resident(config: Config, source: Source) -> bool:
    """Whether the set lives on the devices, decoded."""
    if config.data.resident is not None:
        return config.data.resident
    return data_lib.resident_bytes(source) <= RESIDENT_BYTES and not config.augment.random_resized_crop


def _telemetry_every_steps(config: Config, total_steps: int) -> int:
    """0 for never. A row costs about two steps: by default a hundredth of the time, at most."""
    if config.telemetry.every_steps is not None:
        return config.telemetry.every_steps
    return max(TELEMETRY_STEPS, total_steps // TELEMETRY_ROWS) if total_steps >= TELEMETRY_FROM_STEPS else 0


def _steps_per_call(config: Config, parallel: Parallel, resident: bool, steps_per_epoch: float) -> int:
    """From config and platform alone. On CPUs a step is long beside its dispatch, and one a call stops sooner."""
    if not resident:
        if config.steps_per_call not in (None, 1):
            raise UserError("steps_per_call is for data that lives on the device; streaming takes one step a call")
        return 1
    if config.steps_per_call is not None:
        return config.steps_per_call
    if parallel.on_cpu:
        return 1
    return min(MAX_STEPS_PER_CALL, 2 ** int(math.log2(max(1.0, steps_per_epoch / 8))))
