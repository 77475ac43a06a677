"""Evaluation of trained networks on a split, with all that is needed to cite it: `evaluate_run`.

One checkpoint, or an ensemble of checkpoints and runs, on the run's own data or on others. Nothing is written here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxcnn.config import Config
from jaxcnn.config.choices import LOSSES
from jaxcnn.data import Source
from jaxcnn.data.records import classes_of
from jaxcnn.errors import RunError
from jaxcnn.results.members import LoadedMember, Measured, NotCalibrated, load_members, open_measured, validation_of
from jaxcnn.results.trained import TrainedModel
from jaxcnn.tasks.classification import confidence, scores
from jaxcnn.tasks.classification.losses import make_loss
from jaxcnn.training.build import is_resident
from jaxcnn.training.evaluation import collect
from jaxcnn.training.feed import Feed, Progress, ResidentFeed, StreamingFeed
from jaxcnn.training.parallel import Parallel, make_parallel

_all_scores = jax.jit(scores.all_scores)
_prediction_values = jax.jit(scores.prediction_values)
_probability_scores = jax.jit(scores.probability_scores)
_log_odds = jax.jit(scores.log_odds)


@dataclass(frozen=True)
class Member:
    """A checkpoint that was evaluated, and its own scores where there are several."""

    workdir: str
    experiment: str
    model: str
    step: int
    tta: str
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Bootstrap:
    """Options of intervals, which are percentiles of the scores of resampled examples."""

    resamples: int = 1000  # none: no intervals
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Calibration:
    """Temperature scaling, and what it would change."""

    temperature: float
    at_limit: bool  # of the temperatures that are tried
    num_examples: int  # of validation, that it was fitted on
    before: dict[str, float | None]  # scores of the split: `nll`, `brier` and `ece`
    after: dict[str, float | None]


@dataclass(frozen=True)
class Predictions:
    """Predictions of a split's examples, in its order."""

    places: np.ndarray  # int [n]: which of the split's examples these are; damaged ones are not among them
    labels: np.ndarray  # int [n]; of soft labels the likeliest class
    logits: np.ndarray  # float32 [n, K]; an ensemble's are logarithms of the mean of its members' probabilities

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities, float32 [n, K]."""
        return np.asarray(jax.nn.softmax(self.logits))

    @property
    def predicted(self) -> np.ndarray:
        """The predicted class, int [n]; of equal logits the first."""
        return self.logits.argmax(axis=1)

    @property
    def sureness(self) -> np.ndarray:
        """Log-odds of the prediction, float32 [n], which still differ where its probability rounds to 1."""
        return np.asarray(_log_odds(self.logits).max(axis=1))

    def surest_mistakes(self, count: int) -> np.ndarray:
        """Numbers of the wrong predictions, int, at most so many, the surest first; of equally sure ones the first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.sureness[wrong], kind="stable")[:count]]


@dataclass(frozen=True)
class Evaluation(Predictions):
    """A split's predictions and what they are worth. What is not defined is None."""

    members: tuple[Member, ...]
    split: str
    data: dict[str, Any]  # name, fingerprint, image_shape
    class_names: tuple[str, ...]
    identifiers: tuple[str, ...]  # of the records
    scores: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    interval_facts: dict[str, Any]  # how the intervals came about
    counts: dict[str, int]  # over how many classes a macro mean is taken
    classes: dict[str, list[Any]]  # by score, one value a class
    confusion_matrix: np.ndarray  # int [K, K]: row, the label; column, the prediction
    reliability: dict[str, list[Any]]  # by what, one value a bin of confidence
    calibration: Calibration | NotCalibrated
    notes: tuple[str, ...]  # what a reader should know: checkpoints that were given twice, damaged records

    @property
    def tta(self) -> str:
        """The views averaged over, the members' in turn where they differ."""
        return ", ".join(dict.fromkeys(member.tta for member in self.members))


def evaluate_run(
    workdirs: Sequence[str | epath.Path],
    *,
    steps: Sequence[str] = ("best",),
    split: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    tta: str | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    calibrate: bool = True,
    eval_batch_size: int | None = None,
    num_devices: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures the mean of the probabilities of each of `steps` of each of `workdirs`.

    Args:
      workdirs: folders of runs, or their URLs. Models may differ; the data may not.
      steps: best, last, or numbers of checkpoints.
      split: of the run's data, by default test; of `data`, as stored there, by default all of it.
      data: other data than the run's own, as config.data.name has them; classes are matched by name.
      data_dir: where data lie, if not where they did.
      tta: views to average over instead of the run's own, see augment.average_views.
      resamples, level, seed: see `Bootstrap`.
      calibrate: whether to fit a temperature on the run's validation, and to say what it would change.
      eval_batch_size: images a call, over all devices; none: the first run's.
      num_devices: none: all.
      progress: told while data are read.

    Raises:
      UserError: something is not there, or does not belong together.
      RunError: a checkpoint or the data are damaged.
    """
    progress = progress or (lambda *_: None)
    members, notes = load_members(workdirs, steps, tta=tta)
    parallel = make_parallel("jit", num_devices=num_devices)
    measured = open_measured(members, split=split, data=data, data_dir=data_dir, progress=progress)
    config = measured.config
    batch_size = eval_batch_size or config.eval_batch_size or config.batch_size
    predict = partial(
        _predict, members, config=config, parallel=parallel, batch_size=batch_size, progress=progress
    )  # fmt: skip
    predictions = predict(measured.source, measured.split)
    calibration: Calibration | NotCalibrated = NotCalibrated("not asked for")
    main = _score(predictions.logits, predictions.labels, _losses_of(members, predictions))
    if calibrate:
        validation = validation_of(members, measured, progress)
        if isinstance(validation, NotCalibrated):
            calibration = validation
        else:
            calibration = _calibrate(predict(validation, "validation"), predictions, before=main.values)
    return _evaluation(members, measured, predictions, main, calibration, Bootstrap(resamples, level, seed), notes)


def _evaluation(
    members: Sequence[LoadedMember],
    measured: Measured,
    predictions: "_MemberPredictions",
    main: "_Scores",
    calibration: Calibration | NotCalibrated,
    bootstrap: Bootstrap,
    notes: Sequence[str],
) -> Evaluation:
    """All of it, put together; the scores of each member and the intervals are computed here."""
    source, split, places = measured.source, measured.split, predictions.places
    records = source.splits[split]
    if missing := len(records) - len(places):
        notes = [*notes, f"{missing:,} damaged records of {split} are not counted (data.damaged=skip)"]
    return Evaluation(
        members=_with_own_scores(members, predictions, main),
        split=split,
        data={"name": source.name, "fingerprint": source.fingerprint, "image_shape": list(source.image_shape)},
        class_names=members[0].model.class_names,
        logits=predictions.logits,
        labels=predictions.labels,
        places=places,
        identifiers=tuple(records.records.identifier(int(records.indices[place])) for place in places),
        scores=main.values,
        intervals=_intervals(predictions.logits, predictions.labels, main.losses, bootstrap),
        interval_facts={"method": "percentile bootstrap over examples", **vars(bootstrap)},
        counts={name: int(value) for name, value in main.raw["counts"].items()},
        classes={name: _plain(values) for name, values in main.raw["classes"].items()},
        confusion_matrix=main.raw["confusion_matrix"],
        reliability={name: _plain(values) for name, values in main.raw["reliability"].items()},
        calibration=calibration,
        notes=tuple(notes),
    )


# ---- the pass


@dataclass(frozen=True)
class _MemberPredictions:
    """Logits of members for a split's examples that are not damaged, in its order."""

    of_members: Sequence[np.ndarray]  # logits, float32 [n, K] each
    targets: np.ndarray  # labels as stored: classes int [n], or soft [n, K]
    places: np.ndarray  # int [n], which of the split's examples these are

    @cached_property
    def logits(self) -> np.ndarray:
        """The logarithm of the mean of probabilities, float32 [n, K]; one member's logits stay what they are."""
        if len(self.of_members) == 1:
            return self.of_members[0]
        total = jax.nn.log_softmax(self.of_members[0])
        for logits in self.of_members[1:]:
            total = jnp.logaddexp(total, jax.nn.log_softmax(logits))
        return np.asarray(total - math.log(len(self.of_members)))

    @cached_property
    def labels(self) -> np.ndarray:
        """Classes, int32 [n]."""
        return classes_of(self.targets).astype(np.int32)


def _predict(
    members: Sequence[LoadedMember],
    source: Source,
    split: str,
    *,
    config: Config,
    parallel: Parallel,
    batch_size: int,
    progress: Progress,
) -> _MemberPredictions:
    """One pass of all members over a split. Raises RunError where an output is not finite."""
    examples = source.splits[split]
    # Not under the name of train, where what takes a damaged record's place would be counted; `train` tells the labels'
    # shape.
    only = replace(source, splits={"train": examples, "measured": examples})
    kind = ResidentFeed if is_resident(config, replace(source, splits={"train": examples})) else StreamingFeed
    feed: Feed = kind(config, only, parallel, progress)
    batch_size = math.ceil(min(batch_size, len(examples)) / parallel.num_devices) * parallel.num_devices
    functions: dict[str, Any] = {}  # checkpoints of one run share a program
    for member in members:
        logits = partial(_float32_logits, model=member.model, views=member.views)
        functions.setdefault(str(member.folder), logits)
    try:
        outputs, targets, places = collect(
            [(functions[str(member.folder)], member.model.variables) for member in members],
            feed.evaluation("measured", batch_size),
            targets=lambda batch: batch["label"],
            fetch=feed.fetch,
            parallel=parallel,
            num_examples=lambda: feed.num_counted("measured"),
        )
    finally:
        feed.close()
    _check_finite(outputs, members, split)
    return _MemberPredictions(outputs, targets, places)


def _check_finite(outputs: Sequence[np.ndarray], members: Sequence[LoadedMember], split: str) -> None:
    """Raises RunError where a network's outputs are not all finite: nothing could be said of them."""
    for logits, member in zip(outputs, members, strict=True):
        bad = len(logits) - int(np.isfinite(logits).all(axis=1).sum())
        if bad:
            raise RunError(
                f"the outputs of {member.model.source} are not finite for {bad:,} of {len(logits):,} examples of "
                f"{split}: the run has diverged; train with a lower optimizer.learning_rate, or evaluate an earlier "
                "--step"
            )


def _float32_logits(variables: dict[str, Any], batch: Any, *, model: TrainedModel, views: str) -> jax.Array:
    return model.logits_of(variables, batch["image"], views=views).astype(jnp.float32)


# ---- numbers


@dataclass(frozen=True)
class _Scores:
    """The scores of some logits."""

    values: dict[str, float | None]  # by name
    raw: dict[str, Any]  # of scores.all_scores
    losses: np.ndarray | None  # float32 [n]; none where there is no such loss


def _losses_of(members: Sequence[LoadedMember], predictions: _MemberPredictions) -> np.ndarray | None:
    """The first run's own loss of each example; none where an ensemble has no such loss."""
    config = members[0].model.config
    if len(members) > 1 and LOSSES[config.loss.name].of_logits:
        return None
    return _losses(predictions.logits, predictions.targets, config)


def _losses(logits: np.ndarray, targets: np.ndarray, config: Config) -> np.ndarray:
    """The run's own loss of each example, without weights of classes, float32 [n]."""
    return np.asarray(jax.jit(make_loss(config.loss))(logits, targets))


def _score(logits: np.ndarray, labels: np.ndarray, losses: np.ndarray | None) -> _Scores:
    every = np.ones(len(labels), bool)
    raw = jax.device_get(_all_scores(logits, labels, every))
    values = {name: _number(value) for name, value in raw["scores"].items()}
    for name in ("accuracy", "micro_precision", "micro_recall", "micro_f1", "top5_accuracy"):
        values[name] = round(float(raw["scores"][name]) * len(labels)) / len(labels)  # of so many examples, exactly
    if logits.shape[-1] <= 5:
        values["top5_accuracy"] = None
    values["loss"] = None if losses is None else _number(scores.masked_mean(jnp.asarray(losses), jnp.asarray(every)))
    return _Scores(values, raw, losses)


def _with_own_scores(
    members: Sequence[LoadedMember], predictions: _MemberPredictions, main: _Scores
) -> tuple[Member, ...]:
    """The members, each with the scores that it has alone."""
    targets, labels = predictions.targets, predictions.labels
    records = []
    for member, logits in zip(members, predictions.of_members, strict=True):
        config = member.model.config
        alone = main if len(members) == 1 else _score(logits, labels, _losses(logits, targets, config))
        records.append(
            Member(
                workdir=str(member.folder),
                experiment=member.saved["experiment"],
                model=config.model.name,
                step=member.step,
                tta=member.views,
                scores=alone.values,
            )
        )
    return tuple(records)


def _intervals(
    logits: np.ndarray, labels: np.ndarray, losses: np.ndarray | None, bootstrap: Bootstrap
) -> dict[str, tuple[float, float]]:
    """Intervals (low, high) of each score that is a function of examples or of counts."""
    values = jax.device_get(_prediction_values(logits, labels))
    means = {"nll": values["nll"], "brier": values["brier"]}
    if losses is not None:
        means["loss"] = losses
    if logits.shape[-1] > 5:
        means["top5_accuracy"] = values["in_top5"]
    return confidence.bootstrap(
        labels,
        values["prediction"],
        np.asarray(scores.confidence_bins(values["confidence"])),
        values["confidence"] - values["correct"],
        means,
        num_classes=logits.shape[-1],
        **vars(bootstrap),
    )


def _calibrate(
    validation: _MemberPredictions, predictions: _MemberPredictions, *, before: dict[str, float | None]
) -> Calibration:
    """The temperature that is fitted on validation, and its effect on the split, whose scores were `before`."""
    temperature = confidence.fit_temperature(validation.logits, validation.labels)
    logits, labels = predictions.logits / np.float32(temperature), predictions.labels
    after = jax.device_get(_probability_scores(logits, labels, np.ones(len(labels), bool)))
    return Calibration(
        temperature=temperature,
        at_limit=temperature in confidence.TEMPERATURES,
        num_examples=len(validation.labels),
        before={name: before[name] for name in after},
        after={name: _number(value) for name, value in after.items()},
    )


def _number(value: Any) -> float | None:
    """A number with the seven digits that float32 has; None for what is not finite."""
    return float(f"{float(value):.7g}") if math.isfinite(value) else None


def _plain(values: np.ndarray) -> list[Any]:
    return [_number(value) if isinstance(value, float) else value for value in values.tolist()]
