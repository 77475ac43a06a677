"""The seam between the training core and what is learned: a task is plain data and pure functions.

The core knows of a batch only `index`, `epoch`, `mask`, `valid` and `constants`; all else of it is the task's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxcnn.config import Config
from jaxcnn.data import Source, open_source
from jaxcnn.tasks.metric import Metric

Batch = dict[str, jax.Array]  # arrays [B, ...], as the source has them
Loss = Callable[[Any, Any], jax.Array]  # (outputs, targets) [B, ...] -> float32 [B]
# (the run's key, a key for each example, batch) -> (inputs, targets); without keys, (None, None, batch), as evaluated
Prepare = Callable[[Any, Any, Batch], tuple[Any, Any]]


def open_images(config: Config, **options: Any) -> Source:
    """A source of images, as `config.data` names it. Options and errors as of `jaxcnn.data.open_source`."""
    return open_source(config.data, **options)


@dataclass(frozen=True)
class TaskKind:
    """An entry of config.choices.TASKS: how its data are opened, and how a task is made of config and source."""

    make_task: Callable[..., "Task"]  # (config, source, *, resident, device_batch, progress) -> Task
    open_source: Callable[..., Source] = open_images  # (config, *, progress, kept) -> Source
    stand_in_source: Callable[..., Source | None] = lambda config: None  # of data that are not here, for a dry run
    # (config, `data` of config.json, *, progress, kept) -> Source, of a run that exists; none: as open_source has it
    open_again: Callable[..., Source] | None = None
    # (config, `data` of config.json) -> Finished: what results/general.py evaluates and results/finished.py predicts by
    finish: Callable[..., "Finished"] | None = None

    def reopen(self, config: Config, data: dict[str, Any], **options: Any) -> Source:
        """The data of a run that exists, whose config.json has this `data`. Options as of `open_source`."""
        if self.open_again is None:
            return self.open_source(config, **options)
        return self.open_again(config, data, **options)


CONSTANTS = "constants"  # in a training batch, what is not an example's: the arrays of `Constants`


@dataclass(frozen=True)
class Constants:
    """Arrays that `prepare` is given with each training batch, whole, as batch["constants"].

    They are no part of the state, so they neither learn nor are saved; each device holds them once. They are read when
    they are first asked for: a run is evaluated without them.
    """

    # (what `facts` measured, train's arrays, or None where they are streamed) -> a tree of arrays, by traceable code
    arrays: Callable[[dict[str, Any], dict[str, Any] | None], Any]
    facts: Callable[[], dict[str, Any]]  # for config.json; their `sha256` must be the same when a run goes on
    words: Callable[[], str]  # for people


@dataclass(frozen=True)
class Losses:
    """What is minimised, and what is reported."""

    train: Loss  # with the weights of examples, where there are some
    evaluate: Loss


@dataclass(frozen=True)
class Task:
    """What is learned from a source, made once from it and the config; config/choices.py names all.

    `facts` measures, once, what `prepare` needs to know of the train split, such as statistics: plain data, which
    config.json keeps. It is given what returns train's arrays, or None where they are streamed.
    """

    learns: str  # what there is to learn, for messages: "10 classes"
    example: Any  # shapes and dtypes of one example's inputs, as the model gets them, without the batch's axis
    model: dict[str, Any]  # keywords that the model needs: {"num_classes": 10}
    facts: Callable[[Callable[[], dict[str, np.ndarray]] | None], dict[str, Any]]
    prepare: Callable[[dict[str, Any]], Prepare]
    losses: Callable[[Any], Losses]  # config.loss, whose numbers may be traced -> the losses
    metrics: tuple[Metric, ...]  # all that can be asked for, beside the loss
    recorded: tuple[str, ...]  # those that are always measured
    best_metric: str  # chooses the weights, unless the config says
    apply: Callable[[Callable[[Any], Any], Any], Any] = lambda model, inputs: model(inputs)  # in evaluation
    # (model, its variables) -> a text that the log keeps of each evaluation while it trains
    sample: Callable[[Any, Any], str] | None = None
    continued: bool = False  # train's examples continue one another, so that a model that `reads_streams` may carry on
    constants: Constants | None = None  # what `prepare` needs beside a training batch
    examples: str = "examples"  # what they are called, in lines for people


@dataclass(frozen=True)
class Calibrated:
    """What was fitted on a finished run's validation split, which decides it alone."""

    what: str  # in lines for people: "thresholds"
    facts: dict[str, Any]  # plain data, for evaluation.json
    metrics: tuple[Metric, ...]  # those that it changes, as they are with it
    notes: tuple[str, ...] = ()  # what a reader should know


@dataclass(frozen=True)
class Finished:
    """A task as its run's folder alone makes it, without the data, and what the host makes of outputs.

    Outputs and targets are those of some examples, arrays [n, ...] on the host; in evaluation, what `kept` leaves.
    """

    task: Task
    # an example of new data for each row of a file: (how the file names it, its arrays; or what is wrong with it)
    read: Callable[[str], Iterator[tuple[dict[str, Any], dict[str, np.ndarray] | ValueError]]]
    answers: Callable[[Any, int], list[dict[str, Any]]]  # (outputs, top_k) -> a row an example, for people
    compared: Callable[[Any, Any], dict[str, list[Any]]]  # (outputs, targets) -> columns of predictions.csv
    calibrate: Callable[[Any, Any], Calibrated] | None = None  # (outputs, targets), both of validation
    # of outputs that are logits [n, K] and targets that are classes [n]: evaluation has scores of each, and a confusion
    # matrix
    class_names: tuple[str, ...] = ()
    # (how the file names an example, its arrays, its answer) -> the rows that are told of it
    rows: Callable[[dict[str, Any], dict[str, np.ndarray], dict[str, Any]], list[dict[str, Any]]] = (
        lambda named, arrays, answer: [{**named, **answer}]
    )
    # in evaluation, of a batch's (outputs, targets) [B, ...], what is kept of each to be compared; metrics see all
    kept: Callable[[Any, Any], tuple[Any, Any]] = lambda outputs, targets: (outputs, targets)
