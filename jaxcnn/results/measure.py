"""What a trained network is worth on a split, with all that is needed to cite it: `evaluate_run`.

One checkpoint, or an ensemble of checkpoints and runs, on the run's own data or on others. Nothing is written here.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxcnn.augment import VIEWS
from jaxcnn.config import Config, DataConfig
from jaxcnn.data import Source, Split, num_shared, open_source
from jaxcnn.data.records import ChosenClasses, classes_of, label_shape
from jaxcnn.data.sources import open_stored
from jaxcnn.data.splits import join
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.fingerprints import same_data
from jaxcnn.results.trained import TrainedModel, load
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.tasks.classification import confidence, scores
from jaxcnn.tasks.classification.losses import make_loss
from jaxcnn.training.build import is_resident
from jaxcnn.training.evaluation import collect
from jaxcnn.training.feed import Feed, Progress, ResidentFeed, StreamingFeed
from jaxcnn.training.parallel import Parallel, make_parallel

WHOLE_SET = "all"  # the split of other data that has every example
_OF_LOGITS = ("mse", "mae")  # losses that compare logits, of which a mean of probabilities has none
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
class Evaluation:
    """A split's predictions and what they are worth. What is not defined is None."""

    members: tuple[Member, ...]
    split: str
    data: dict[str, Any]  # name, fingerprint, image_shape
    class_names: tuple[str, ...]
    logits: np.ndarray  # float32 [n, K]; an ensemble's are logarithms of the mean of its members' probabilities
    labels: np.ndarray  # int [n]; of soft labels the likeliest class
    places: np.ndarray  # int [n]: which of the split's examples these are; damaged ones are not among them
    identifiers: tuple[str, ...]  # of the records
    scores: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    interval_facts: dict[str, Any]  # how the intervals came about
    counts: dict[str, int]  # over how many classes a macro mean is taken
    classes: dict[str, list[Any]]  # by score, one value a class
    confusion_matrix: np.ndarray  # int [K, K]: row, the label; column, the prediction
    reliability: dict[str, list[Any]]  # by what, one value a bin of confidence
    calibration: dict[str, Any]  # temperature scaling: what it changes; or why there is none
    notes: tuple[str, ...]  # what a reader should know: checkpoints that were given twice, damaged records

    @property
    def probabilities(self) -> np.ndarray:
        """float32 [n, K]."""
        return np.asarray(jax.nn.softmax(self.logits))

    @property
    def sureness(self) -> np.ndarray:
        """float32 [n]: the log-odds of the prediction, which still differ where its probability rounds to 1."""
        return np.asarray(_log_odds(self.logits).max(axis=1))

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
      resamples, level, seed: of the bootstrap; no resamples, no intervals.
      calibrate: whether to fit a temperature on the run's validation, and to say what it would change.
      eval_batch_size: images a call, over all devices; none: the first run's.
      num_devices: none: all.
      progress: told while data are read.

    Raises:
      UserError: something is not there, or does not belong together.
      RunError: a checkpoint or the data are damaged.
    """
    if tta is not None and tta not in VIEWS:
        raise UserError(f"--tta={tta} is not known; {nearest(tta, VIEWS)}")
    notes: list[str] = []
    folders, models = _load(workdirs, steps, notes)
    saved = {str(folder): workdir_lib.read_config(folder) for folder in folders}
    first = models[0]
    views = [tta or model.config.eval_tta for model in models]
    config = copy.deepcopy(first.config)
    config.data.exclude = None  # what is left of it stands in the run's splits
    config.data.dir = data_dir or config.data.dir
    _check_same_classes(folders, models)
    parallel = make_parallel("jit", num_devices=num_devices)
    wanted = eval_batch_size or config.eval_batch_size or config.batch_size
    tell = progress or (lambda *_: None)

    def measure(source: Source, name: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        found = _logits(
            folders, models, views, source, name, config=config, parallel=parallel, wanted=wanted, tell=tell
        )
        _check_finite(found[0], models, name)
        return found

    if data is None:
        split = split or "test"
        for folder in folders[1:]:
            _check_same_data(folders[0], folder, saved, split)
        source = _own_source(folders[0], saved[str(folders[0])], config, tell)
        if split not in source.splits:
            raise UserError(f"--split={split}: the run has none (data.validation_fraction=0)")
    else:
        split = split or WHOLE_SET
        source = _other_source(data, split, data_dir, first, tell)
    members_logits, targets, places = measure(source, split)
    if missing := len(source.splits[split]) - len(places):
        notes.append(f"{missing:,} damaged records of {split} are not counted (data.damaged=skip)")
    logits, labels = _mean_of_probabilities(members_logits), classes_of(targets).astype(np.int32)

    losses = _losses(logits, targets, first.config, ensemble=len(models) > 1)
    main, raw = _measured(logits, labels, losses)
    own = [main]
    if len(models) > 1:
        own = [
            _measured(each, labels, _losses(each, targets, model.config))[0]
            for each, model in zip(members_logits, models, strict=True)
        ]
    calibration: dict[str, Any] = {"not_done": "not asked for"}
    if calibrate:
        found = _validation(folders, saved, source, split, config, tell, own=data is None)
        if isinstance(found, str):
            calibration = {"not_done": found}
        else:
            fitting, targets, _ = measure(found, "validation")
            calibration = _calibration(_mean_of_probabilities(fitting), classes_of(targets), logits, labels, main)
    records = source.splits[split]
    return Evaluation(
        members=tuple(
            Member(
                workdir=str(folder),
                experiment=saved[str(folder)]["experiment"],
                model=model.config.model.name,
                step=step_of(model),
                tta=view,
                scores=values,
            )
            for folder, model, view, values in zip(folders, models, views, own, strict=True)
        ),
        split=split,
        data={"name": source.name, "fingerprint": source.fingerprint, "image_shape": list(source.image_shape)},
        class_names=first.class_names,
        logits=logits,
        labels=labels,
        places=places,
        identifiers=tuple(records.records.identifier(int(records.indices[place])) for place in places),
        scores=main,
        intervals=_intervals(logits, labels, losses, resamples=resamples, level=level, seed=seed),
        interval_facts={
            "method": "percentile bootstrap over examples", "resamples": resamples, "level": level, "seed": seed
        },
        counts={name: int(value) for name, value in raw["counts"].items()},
        classes={name: _plain(values) for name, values in raw["classes"].items()},
        confusion_matrix=raw["confusion_matrix"],
        reliability={name: _plain(values) for name, values in raw["reliability"].items()},
        calibration=calibration,
        notes=tuple(notes),
    )  # fmt: skip


def step_of(model: TrainedModel) -> int:
    """The step of its checkpoint."""
    return int(model.source.rpartition(" ")[2])


# ---- members


def _load(
    workdirs: Sequence[str | epath.Path], steps: Sequence[str], notes: list[str]
) -> tuple[list[epath.Path], list[TrainedModel]]:
    """The checkpoints, each once, and the folder of each."""
    folders, models, seen = [], [], set()
    for workdir in workdirs:
        folder = workdir_lib.resolve(str(workdir))
        folder = folder if "://" in str(folder) else folder.resolve()
        for step in steps:
            model = load(str(folder), step)
            if model.source in seen:
                notes.append(f"step {step_of(model):,} of {folder} was given more than once; it is counted once")
                continue
            seen.add(model.source)
            folders.append(folder)
            models.append(model)
    return folders, models


def _check_same_classes(folders: list[epath.Path], models: list[TrainedModel]) -> None:
    for folder, model in zip(folders[1:], models[1:], strict=True):
        for what, mine, other in (
            ("classes", models[0].class_names, model.class_names),
            ("image shapes", models[0].image_shape, model.image_shape),
        ):
            if mine != other:
                raise UserError(
                    f"{folders[0]} and {folder} have other {what} ({_some(mine)} and {_some(other)}), "
                    "so that they make no ensemble; evaluate each alone"
                )


def _some(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values[:5])) + (f", … {len(values):,} in all" if len(values) > 5 else "")


def _check_same_data(first: epath.Path, other: epath.Path, saved: dict[str, Any], split: str) -> None:
    mine, theirs = (saved[str(each)]["data"] for each in (first, other))
    if not same_data(mine["fingerprint"], theirs["fingerprint"]):
        raise UserError(
            f"{first} was trained on other data ({mine['name']}) than {other} ({theirs['name']}): their {split} is not "
            "the same; pass --data for one set that both are measured on"
        )
    if not _same_split(first, other, saved, split):
        raise UserError(
            f"{first} and {other} have other splits of {mine['name']}: their {split} is not the same, so that one may "
            "have learned what the other is measured on; pass --data, or evaluate each alone"
        )


def _same_split(first: epath.Path, other: epath.Path, saved: dict[str, Any], split: str) -> bool:
    """Whether two runs on the same data have the same examples in it, in the same order."""
    mine, theirs = (saved[str(each)]["data"].get("splits") for each in (first, other))
    if mine == theirs:
        return True
    kept = [workdir_lib.read_splits(each) for each in (first, other)]
    if None in kept:
        return False
    one, two = ({name: x for name, x in (each or {}).items() if name.startswith(f"{split}/")} for each in kept)
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


# ---- data


def _own_source(folder: epath.Path, saved: dict[str, Any], config: Config, tell: Progress) -> Source:
    """The run's data, checked to be those."""
    try:
        source = open_source(config.data, progress=tell, kept=workdir_lib.read_splits(folder))
    except UserError as error:
        where = "" if "--data_dir" in str(error) else "; if the data lie elsewhere now, pass their folder as --data_dir"
        raise UserError(f"{error}{where}") from None
    facts = {"fingerprint": source.fingerprint, "splits": source.splits_digest}
    workdir_lib.check_data(folder, saved["data"], facts)
    return source


def _other_source(data: str, split: str, data_dir: str | None, model: TrainedModel, tell: Progress) -> Source:
    """A set that the run has not seen, as its model wants it: size, channels, and the classes in its order."""
    own = model.config.data
    stored = open_stored(
        DataConfig(
            name=data,
            dir=data_dir or (own.dir if data.startswith("tfds:") else None),
            channels=model.image_shape[2] if model.image_shape[2] in (1, 3) else None,
        ),
        progress=tell,
        damaged=own.damaged == "skip",
        partial=True,
    )
    if split == WHOLE_SET:
        chosen = join([(each.records, each.indices) for each in stored.splits.values()])
    elif split in stored.splits:
        chosen = stored.splits[split]
    else:
        raise UserError(
            f"--split={split}: {data} has no such split; {nearest(split, stored.splits)}; without --split, all of it"
        )
    unknown = [name for name in stored.class_names if name not in model.class_names]
    if unknown:
        raise UserError(
            f"--data={data} has class {unknown[0]!r} ({len(unknown)} in all), which the run does not know; "
            f"{nearest(unknown[0], model.class_names)}"
        )
    if stored.class_names != model.class_names:
        if label_shape(chosen.records):
            raise UserError(f"--data={data} has soft labels, of other classes than the run's")
        place = {name: number for number, name in enumerate(stored.class_names)}
        absent = len(place)  # a number that no record has
        numbers = tuple(place.get(name, absent + number) for number, name in enumerate(model.class_names))
        chosen = Split(ChosenClasses(chosen.records, numbers), chosen.indices)
    return Source(
        name=data,
        class_names=model.class_names,
        image_shape=model.image_shape,
        splits={split: chosen},
        fingerprint=stored.fingerprint,
    )


# ---- the pass


def _logits(
    folders: list[epath.Path],
    models: list[TrainedModel],
    views: list[str],
    source: Source,
    split: str,
    *,
    config: Config,
    parallel: Parallel,
    wanted: int,
    tell: Progress,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Of each model float32 [n, K]; labels as stored; and which of the split's examples these are."""
    examples = source.splits[split]
    # Not under the name of train, where what takes a damaged record's place would be counted; `train` tells the labels'
    # shape.
    only = replace(source, splits={"train": examples, "measured": examples})
    kind = ResidentFeed if is_resident(config, replace(source, splits={"train": examples})) else StreamingFeed
    feed: Feed = kind(config, only, parallel, tell)
    batch_size = math.ceil(min(wanted, len(examples)) / parallel.num_devices) * parallel.num_devices
    # Checkpoints of one run share a program.
    functions: dict[str, Any] = {}
    for folder, model, view in zip(folders, models, views, strict=True):
        functions.setdefault(str(folder), partial(_float32_logits, model=model, views=view))
    try:
        return collect(
            [(functions[str(folder)], model.variables) for folder, model in zip(folders, models, strict=True)],
            feed.evaluation("measured", batch_size),
            fetch=feed.fetch,
            parallel=parallel,
            num_examples=lambda: feed.num_counted("measured"),
        )
    finally:
        feed.close()


def _check_finite(logits: Sequence[np.ndarray], models: Sequence[TrainedModel], split: str) -> None:
    """Raises RunError where a network's outputs are not all finite: nothing could be said of them."""
    for each, model in zip(logits, models, strict=True):
        bad = len(each) - int(np.isfinite(each).all(axis=1).sum())
        if bad:
            raise RunError(
                f"the outputs of {model.source} are not finite for {bad:,} of {len(each):,} examples of {split}: the "
                "run has diverged; train with a lower optimizer.learning_rate, or evaluate an earlier --step"
            )


def _float32_logits(variables: dict[str, Any], images: jax.Array, *, model: TrainedModel, views: str) -> jax.Array:
    return model.logits_of(variables, images, views=views).astype(jnp.float32)


def _mean_of_probabilities(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Its logarithm, float32 [n, K]; one model's logits stay what they are."""
    if len(logits) == 1:
        return logits[0]
    total = jax.nn.log_softmax(logits[0])
    for each in logits[1:]:
        total = jnp.logaddexp(total, jax.nn.log_softmax(each))
    return np.asarray(total - math.log(len(logits)))


# ---- numbers


def _losses(logits: np.ndarray, targets: np.ndarray, config: Config, *, ensemble: bool = False) -> np.ndarray | None:
    """The run's own loss of each example, without weights of classes; none where an ensemble has none."""
    if ensemble and config.loss.name in _OF_LOGITS:
        return None
    return np.asarray(jax.jit(make_loss(config.loss))(logits, targets))


def _measured(
    logits: np.ndarray, labels: np.ndarray, losses: np.ndarray | None
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """(scores, all that scores.all_scores says) of predictions."""
    every = np.ones(len(labels), bool)
    raw = jax.device_get(_all_scores(logits, labels, every))
    values = {name: _number(value) for name, value in raw["scores"].items()}
    for name in ("accuracy", "micro_precision", "micro_recall", "micro_f1", "top5_accuracy"):
        values[name] = round(float(raw["scores"][name]) * len(labels)) / len(labels)  # of so many examples, exactly
    if logits.shape[-1] <= 5:
        values["top5_accuracy"] = None
    values["loss"] = None if losses is None else _number(scores.masked_mean(jnp.asarray(losses), jnp.asarray(every)))
    return values, raw


def _intervals(
    logits: np.ndarray, labels: np.ndarray, losses: np.ndarray | None, **options: Any
) -> dict[str, tuple[float, float]]:
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
        **options,
    )


def _validation(
    folders: list[epath.Path],
    saved: dict[str, Any],
    source: Source,
    split: str,
    config: Config,
    tell: Progress,
    *,
    own: bool,
) -> Source | str:
    """The runs' data, whose validation a temperature may be fitted on; or why on none. `own`: they are `source`."""
    if own and split == "validation":
        return "a temperature is fitted on validation, which is what is reported"
    if not own:
        if same_data(saved[str(folders[0])]["data"]["fingerprint"], source.fingerprint):
            return "the data are the run's own, on whose validation a temperature is fitted"
        try:
            source = _own_source(folders[0], saved[str(folders[0])], config, tell)
        except UserError as error:
            return f"the run's own data, on whose validation a temperature is fitted, are not here: {error}"
    if "validation" not in source.splits:
        return "the run has no validation split to fit a temperature on"
    if own and (shared := num_shared(source.splits["validation"], source.splits[split])):
        return f"validation, on which a temperature is fitted, shares {shared:,} examples with {split}"
    for folder in folders[1:]:
        mine, theirs = (saved[str(each)]["data"]["fingerprint"] for each in (folders[0], folder))
        if not same_data(mine, theirs) or not _same_split(folders[0], folder, saved, "validation"):
            return "the runs have no validation split in common to fit a temperature on"
    return source


def _calibration(
    fitting: np.ndarray,
    fitting_labels: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    before: dict[str, float | None],
) -> dict[str, Any]:
    """What a temperature that is fitted on validation changes on the split, whose scores were `before`."""
    temperature = confidence.fit_temperature(fitting, fitting_labels.astype(np.int32))
    after = jax.device_get(_probability_scores(logits / np.float32(temperature), labels, np.ones(len(labels), bool)))
    return {
        "temperature": temperature,
        "at_limit": temperature in confidence.TEMPERATURES,
        "fitted_on": {"split": "validation", "num_examples": len(fitting_labels)},
        "before": {name: before[name] for name in after},
        "after": {name: _number(value) for name, value in after.items()},
    }


def _number(value: Any) -> float | None:
    """With the seven digits that float32 has; None for what is not a number."""
    return float(f"{float(value):.7g}") if math.isfinite(value) else None


def _plain(values: np.ndarray) -> list[Any]:
    return [_number(value) if isinstance(value, float) else value for value in values.tolist()]
