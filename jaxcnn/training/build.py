"""Config -> the pieces of a run: the task, data, model, optimizer, steps bound to devices. Checks every name.

Everything derived from the config (steps, scaled rate, statistics of the data) is computed here, from its final
values.
"""

import copy
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
from jaxcnn.config import MOST_STEPS, Config, FinetuneConfig, parse_steps
from jaxcnn.config.choices import choose
from jaxcnn.data import Source
from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.conv import computed_by
from jaxcnn.layers.conv import words as convolutions_words
from jaxcnn.models.make import check_name, check_traces, has_batch_norm, make_model, params_in_order
from jaxcnn.tasks.metric import LOSS, Metrics
from jaxcnn.tasks.task import CONSTANTS, Losses, Prepare, Task, TaskKind
from jaxcnn.training.averaging import Average, averages, make_average
from jaxcnn.training.feed import Feed, Progress, ResidentFeed, StreamingFeed
from jaxcnn.training.finetune import EVERYTHING, Finetuning, make_finetuning
from jaxcnn.training.optim import make_optimizer, make_schedule
from jaxcnn.training.parallel import Parallel, make_parallel
from jaxcnn.training.patience import Selections, make_selections
from jaxcnn.training.step import TrainState, eval_step, init_state, train_step, train_steps
from jaxcnn.training.telemetry import telemetry_step
from jaxcnn.transfer.finding import find
from jaxcnn.transfer.pretrained import Pretrained, fit, read

RESIDENT_BYTES = 2 * 2**30  # a decoded set up to this size lives on the device
FIRST_EXAMPLES = 5000  # training examples that a model's from_data is handed
TELEMETRY_ROWS, TELEMETRY_STEPS = 100, 200  # by default so many rows a run, and at least so many steps between two
TELEMETRY_FROM_STEPS = 1000  # shorter runs have none by default: compiling it would be half of what they take
MAX_STEPS_PER_CALL = 32  # on accelerators; each call then costs the host 1/32 of a dispatch a step


@dataclass(frozen=True)
class Learning:
    """What a step does: the model, and how it learns."""

    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    losses: Losses
    prepare: Prepare
    metrics: Metrics
    selections: Selections  # which of the metrics decide
    average: Average | None  # of the weights
    finetuning: Finetuning  # what trains, from when, how fast
    steps_per_epoch: float  # batches may cross an epoch's end, so this is no whole number
    total_steps: int
    stream_steps: int | None  # steps that read train's streams once; None: the model carries nothing


@dataclass(frozen=True)
class Calls:
    """The steps as pure functions of arrays, and compiled for the devices; nothing is compiled yet."""

    step: Callable  # (state, batch, key) -> (state, totals)
    eval_step: Callable  # (variables, batch) -> totals
    train_call: Callable  # compiled: (state, totals, data, inputs, key) -> (state, totals, step)
    eval_call: Callable  # compiled: (variables, totals, data, inputs) -> totals
    telemetry_call: Callable  # compiled: (state, data, inputs, key) -> statistics
    steps_per_call: int
    eval_batch_size: int
    telemetry_every_steps: int  # 0: never


@dataclass(frozen=True)
class Run:
    """A config's pieces, ready to be called."""

    config: Config
    task: Task
    source: Source
    resident: bool  # the data live on the devices
    facts: dict[str, Any]  # that the task has measured on train
    parallel: Parallel
    learning: Learning
    calls: Calls
    examples: Callable[[int], dict[str, np.ndarray]]  # count -> the first examples of train

    def init(self) -> TrainState:
        """The state before the first step, on the default device: drawn, then what `pretrained` has in its place."""
        from_data = hasattr(self.learning.model, "from_data")
        examples = self.examples(FIRST_EXAMPLES) if from_data else None
        state = self._init(jax.random.key(self.config.seed), examples)
        if self.pretrained is None:
            return state
        variables = self.pretrained.over({"params": state.params, "batch_stats": state.batch_stats})
        # what the optimizer begins with may depend on the weights; two donated arguments may not share a buffer
        return state.replace(
            **variables,
            opt_state=jax.jit(self.learning.optimizer.init)(variables["params"]),
            ema=jax.tree.map(jnp.copy, variables) if state.ema is not None else None,
        )

    @cached_property
    def _init(self) -> Callable:
        return jax.jit(self.init_from)

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
            channels=self.task.example.shape[-1],
            head=config.init_head,
            adapt=config.init_adapt,
            allow=config.init_allow,
        )

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state; computes nothing."""
        return self._abstract_state

    @cached_property
    def _abstract_state(self) -> TrainState:
        return jax.eval_shape(self.init_from, jax.random.key(self.config.seed))

    @property
    def convolutions(self) -> str | None:
        """What computes its convolutions where that is a choice: on CPUs, in models that have some."""
        has_some = any(leaf.ndim == 4 for leaf in jax.tree.leaves(self.abstract_state().params))
        return convolutions_words(self.config.model.convolution) if self.parallel.on_cpu and has_some else None

    def init_from(self, key: jax.Array, examples: Any = None) -> TrainState:
        """The state before the first step, as a pure function of the run's key and, for from_data, train's examples."""
        learning = self.learning
        if examples is not None:
            examples, _ = learning.prepare(None, None, jax.tree.map(lambda x: x[:FIRST_EXAMPLES], examples))
        with computed_by("xla"):  # what it computes is not looked at: this is traced fastest
            return init_state(
                key,
                self.task.example,
                model=learning.model,
                optimizer=learning.optimizer,
                initializer=self.config.model.initializer,
                ema=learning.average is not None,
                examples=examples,
                carries=None if learning.stream_steps is None else self.config.batch_size,
            )

    def with_seed(self, config: Config) -> "Run":
        """The same pieces, with all that was traced of them, of a config that differs in the seed alone."""
        run = copy.copy(self)
        object.__setattr__(run, "config", config)  # it is frozen for all but its maker
        return run

    @property
    def measured_splits(self) -> list[str]:
        """The splits that the result is measured on."""
        wanted = ("validation", *(("test",) if self.config.measure_test else ()))
        return [split for split in wanted if split in self.source.splits]

    def data_facts(self) -> dict[str, Any]:
        """What a run's folder says of its data."""
        facts = self.source.facts()
        measured = {name: value for name, value in self.facts.items() if name not in facts}
        return facts | {name: list(value) if isinstance(value, tuple) else value for name, value in measured.items()}


def build(
    config: Config,
    *,
    progress: Progress | None = None,
    facts: dict[str, Any] | None = None,
    kept_splits: dict[str, np.ndarray] | None = None,
    stand_in: bool = False,
) -> tuple[Run, Feed]:
    """Builds a run and the feed of its data.

    Args:
      config: validated.
      progress: told while examples are decoded.
      facts: what the task measured on train when the run began, when it already did: `data` of its config.json.
      kept_splits: the splits that it was trained with, the same; see data/splits.py.
      stand_in: a set that is not here may be replaced by its expected shapes: enough for a dry run.

    Raises:
      UserError: a name, a size or a device that is not there.
    """
    parallel = _devices(config)
    check_name(config.model)
    kind: Any = choose("task", config.task).load()
    source = _open_source(kind, config, progress, kept_splits, facts, stand_in=stand_in)
    resident = is_resident(config, source)
    device_batch = config.batch_size // parallel.num_devices
    task = kind.make_task(config, source, resident=resident, device_batch=device_batch, progress=progress)
    model = make_model(config.model, **task.model, axis_name=parallel.axis_name)
    check_traces(model, task.example, one_alone=normalised_over(model, config, parallel) == 1)
    selections = make_selections(config, task, averaged=averages(config.optimizer))
    _check_validation(config, source)
    tell = progress or (lambda *_: None)
    stream_steps = _stream_steps(config, task, source, model, resident=resident)
    feed: Feed

    def beside() -> dict[str, Any]:
        if task.constants is None:
            return {}
        arrays = feed.arrays("train")[0] if isinstance(feed, ResidentFeed) else None
        return {CONSTANTS: task.constants.arrays(facts or {}, arrays)}

    if resident:
        feed = ResidentFeed(config, source, parallel, tell, in_streams=stream_steps is not None, beside=beside)
    else:
        feed = StreamingFeed(config, source, parallel, tell, beside=beside)
    if facts is None:
        facts = task.facts((lambda: feed.arrays("train")[0]) if isinstance(feed, ResidentFeed) else None)
    learning = _learning(config, task, source, model, task.prepare(facts), selections, stream_steps)
    return (
        Run(
            config=config,
            task=task,
            source=source,
            resident=resident,
            facts=facts,
            parallel=parallel,
            learning=learning,
            calls=_calls(config, task, source, learning, parallel, feed),
            examples=feed.examples,
        ),
        feed,
    )


# ---- the devices and the data


def _devices(config: Config) -> Parallel:
    parallel = make_parallel(
        config.parallel,
        platform=config.platform,
        num_devices=config.num_devices,
        convolution=config.model.convolution,
    )
    if config.batch_size % (parallel.num_devices * config.optimizer.accumulate):
        raise UserError(
            f"batch_size={config.batch_size} does not divide over {parallel.num_devices} devices x "
            f"optimizer.accumulate={config.optimizer.accumulate}"
        )
    return parallel


def _open_source(
    kind: TaskKind,
    config: Config,
    progress: Progress | None,
    kept_splits: dict[str, np.ndarray] | None,
    facts: dict[str, Any] | None,
    *,
    stand_in: bool,
) -> Source:
    try:
        if facts is not None:
            return kind.reopen(config, facts, progress=progress, kept=kept_splits)
        return kind.open_source(config, progress=progress, kept=kept_splits)
    except data_lib.NotPreparedError as error:
        source = kind.stand_in_source(config) if stand_in else None
        if source is None:
            raise
        if progress:
            progress(f"not the data, only what the config expects of them: {error}", 0, 0)
        return source


def is_resident(config: Config, source: Source) -> bool:
    """Whether the set lives on the devices, decoded."""
    if config.data.resident is not None:
        return config.data.resident
    return data_lib.resident_bytes(source) <= RESIDENT_BYTES and not config.augment.random_resized_crop


def _stream_steps(config: Config, task: Task, source: Source, model: nn.Module, *, resident: bool) -> int | None:
    """Steps that read train's streams once; None where nothing is carried from batch to batch. Raises UserError."""
    if not (task.continued and getattr(model, "reads_streams", False)):
        return None
    count = len(source.splits["train"])
    if not resident:
        raise UserError(
            f"model.name={config.model.name} reads streams, which live on the device; set data.resident=true"
        )
    if count % config.batch_size:
        raise UserError(
            f"{count:,} {task.examples} of train make no batch_size={config.batch_size} streams of one length"
        )
    return count // config.batch_size


def _check_validation(config: Config, source: Source) -> None:
    """Raises UserError where there is no validation split, and something of the config needs one."""
    if "validation" in source.splits:
        return
    if config.checkpoint.keep_best:
        raise UserError(
            f"checkpoint.keep_best={config.checkpoint.keep_best} needs a validation split, and with "
            "data.validation_fraction=0 there is none: set checkpoint.keep_best=0, and the last weights are the result"
        )
    for name, watches in (
        ("early_stop.patience_evaluations", config.early_stop.patience_evaluations is not None),
        ("schedule.name=plateau", config.schedule.name == "plateau"),
        ("measure_test=false", not config.measure_test),
    ):
        if watches:
            raise UserError(f"{name} needs a validation split, and there is none: set data.validation_fraction above 0")


# ---- what a step does


def _learning(
    config: Config,
    task: Task,
    source: Source,
    model: nn.Module,
    prepare: Prepare,
    selections: Selections,
    stream_steps: int | None,
) -> Learning:
    steps_per_epoch = len(source.splits["train"]) / config.batch_size
    total_steps = _total_steps(config, steps_per_epoch)
    schedule = make_schedule(
        config.schedule, peak=peak_rate(config), total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    finetuning = EVERYTHING
    if config.finetune != FinetuneConfig():
        params = params_in_order(model, task.example)
        finetuning = make_finetuning(config.finetune, params, steps_per_epoch=steps_per_epoch)
    return Learning(
        model=model,
        optimizer=make_optimizer(config.optimizer, schedule, finetuning, plateau=config.schedule.name == "plateau"),
        schedule=schedule,
        losses=task.losses(config.loss),
        prepare=prepare,
        metrics=_recorded(config, task, selections),
        selections=selections,
        average=make_average(config.optimizer, total_steps=total_steps),
        finetuning=finetuning,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        stream_steps=stream_steps,
    )


def _total_steps(config: Config, steps_per_epoch: float) -> int:
    total_steps = config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))
    if total_steps > MOST_STEPS:
        raise UserError(f"num_epochs={config.num_epochs:g} are {total_steps:,} steps; a run has at most {MOST_STEPS:,}")
    if config.profile.steps is not None and parse_steps(config.profile.steps)[1] > total_steps:
        raise UserError(f"profile.steps={config.profile.steps} goes beyond the {total_steps:,} steps of the run")
    return total_steps


def peak_rate(config: Config) -> float:
    """The schedule's peak: learning_rate, scaled linearly with the batch where asked (Goyal et al. 2017)."""
    reference = config.optimizer.reference_batch_size
    return config.optimizer.learning_rate * (config.batch_size / reference if reference else 1)


def _recorded(config: Config, task: Task, selections: Selections) -> Metrics:
    """The metrics of each row: those that the task always has, that the config names, and that decide something."""
    known = {each.name: each for each in task.metrics}
    for name in config.metrics:
        if name not in known:
            raise UserError(f"metrics={name!r} is not measured with {task.learns}; {nearest(name, known)}")
    names = dict.fromkeys((*task.recorded, *config.metrics, *(each.metric.name for each in selections.watched(config))))
    return Metrics(known[name] for name in names if name != LOSS.name)


def normalised_over(model: nn.Module, config: Config, parallel: Parallel) -> int | None:
    """Over how many examples batch norm normalises in training; None where the model has none."""
    if not has_batch_norm(model):
        return None
    share = config.batch_size // config.optimizer.accumulate
    return share if config.model.batch_norm == "global" else share // parallel.num_devices


# ---- calls


def _calls(config: Config, task: Task, source: Source, learning: Learning, parallel: Parallel, feed: Feed) -> Calls:
    common: dict[str, Any] = dict(
        model=learning.model, prepare=learning.prepare, metrics=learning.metrics, axis_name=parallel.axis_name
    )
    of_step = common | dict(
        optimizer=learning.optimizer,
        loss=learning.losses.train,
        accumulate=config.optimizer.accumulate,
        finetuning=learning.finetuning,
    )
    step = partial(train_step, **of_step, average=learning.average, stream_steps=learning.stream_steps)
    statistics: Callable = partial(telemetry_step, **of_step, histograms=config.tensorboard)
    evaluate_batch: Callable = partial(eval_step, **common, loss=learning.losses.evaluate, apply=task.apply)

    def statistics_of_first(state, data, inputs, key):
        return statistics(state, feed.fetch(data, jax.tree.map(lambda x: x[0], inputs)), key)

    def add_batch(variables, totals, data, inputs):
        return totals.merge(evaluate_batch(variables, feed.fetch(data, inputs)))

    wanted = min(config.eval_batch_size or config.batch_size, max(len(s) for s in source.splits.values()))
    return Calls(
        step=step,
        eval_step=evaluate_batch,
        train_call=parallel.compile(
            partial(train_steps, step=step, fetch=feed.fetch),
            sharded={3: 1},
            donate=(0, 1),
        ),
        eval_call=parallel.compile(add_batch, sharded={3: 0}, donate=(1,)),
        telemetry_call=parallel.compile(statistics_of_first, sharded={2: 1}),
        steps_per_call=_steps_per_call(config, parallel, isinstance(feed, ResidentFeed), learning.steps_per_epoch),
        eval_batch_size=math.ceil(wanted / parallel.num_devices) * parallel.num_devices,
        telemetry_every_steps=_telemetry_every_steps(config, learning.total_steps),
    )


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
