"""What any task's finished run is worth on a split, by its metrics and hooks alone.

The command comes here for every task that config/choices.py:TASKS does not send elsewhere. Nothing here knows what an
example is.
"""

import copy
import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data import Source, num_shared
from jaxcnn.errors import RunError, UserError
from jaxcnn.files import to_json
from jaxcnn.machine import versions
from jaxcnn.results.finished import FinishedRun, load, task_of
from jaxcnn.results.members import NotCalibrated
from jaxcnn.results.tables import classes_table
from jaxcnn.results.written import write_files
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog
from jaxcnn.tasks.classification.scores import SHOWN_SCORES, all_scores
from jaxcnn.tasks.metric import Metric, Metrics
from jaxcnn.tasks.task import Calibrated
from jaxcnn.training.build import is_resident
from jaxcnn.training.evaluation import collect
from jaxcnn.training.feed import Feed, Progress, ResidentFeed, StreamingFeed
from jaxcnn.training.parallel import make_parallel, set_up

MOST_WEIGHTS = 1 << 22  # of resamples times examples that are held at a time


@dataclass(frozen=True)
class CalibratedScores:
    """What was fitted on validation, and what it changes of the split's scores."""

    fitted: Calibrated
    num_examples: int  # of validation
    before: dict[str, float | None]
    after: dict[str, float | None]


@dataclass(frozen=True)
class ClassScores:
    """What classification measures beside the task's metrics, where outputs are logits of classes."""

    scores: dict[str, float | None]  # by name, without intervals
    of_each: dict[str, list[float | None]]  # by name, one value a class
    confusion_matrix: list[list[int]]  # row, the label; column, the prediction

    @staticmethod
    def of(logits: np.ndarray, labels: np.ndarray) -> "ClassScores":
        """Of logits [n, K] and classes [n]."""
        found = jax.device_get(jax.jit(all_scores)(logits, labels, np.ones(len(labels), bool)))
        shown = {name: _number(float(found["scores"][name])) for name in SHOWN_SCORES if name in found["scores"]}
        if logits.shape[-1] <= 5:
            shown["top5_accuracy"] = None
        of_each = {name: [_number(value) for value in each.tolist()] for name, each in found["classes"].items()}
        for name in ("support", "predicted"):
            of_each[name] = found["classes"][name].tolist()
        return ClassScores(shown, of_each, found["confusion_matrix"].tolist())


@dataclass(frozen=True)
class Evaluation:
    """A split's predictions and what they are worth. What is not defined is None."""

    run: FinishedRun
    split: str
    source: Source
    metrics: tuple[Metric, ...]  # the loss first
    scores: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    interval_facts: dict[str, Any]
    places: np.ndarray  # int [n]: which of the split's examples these are
    identifiers: tuple[str, ...]
    columns: dict[str, list[Any]]  # of each example, what it was and what was said
    calibration: CalibratedScores | NotCalibrated | None  # None: the task fits nothing
    classes: ClassScores | None = None  # None: the task has none


def evaluate_run(
    run: FinishedRun,
    *,
    split: str = "test",
    data_dir: str | None = None,
    eval_batch_size: int | None = None,
    num_devices: int | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    calibrate: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures every metric of the task, and the loss, on a split of the run's data.

    Args:
      data_dir: where data lie, if not where they did.
      eval_batch_size: examples a call, over all devices; none: the run's.
      num_devices: none: all.
      resamples, level, seed: of the bootstrap; no resamples, no intervals.
      calibrate: whether what the task fits on validation is fitted, and its scores stand beside the others.
      progress: told while data are read.

    Raises:
      UserError: the data are not there, or not the run's.
      RunError: they are damaged, or outputs are not finite.
    """
    source = _own_source(run, data_dir, progress)
    if split not in source.splits:
        raise UserError(f"--split={split}: the run has none (data.validation_fraction=0)")
    pass_over = partial(
        _pass_over, run, source, wanted=eval_batch_size or run.batch_size, num_devices=num_devices,
        tell=progress or (lambda *_: None),
    )  # fmt: skip
    metrics = Metrics(run.finished.task.metrics)
    outputs, targets, places, values = pass_over(split, metrics)
    measure = partial(_measure, run, outputs, targets)
    scores = _scores(metrics, values)
    calibration: CalibratedScores | NotCalibrated | None = None
    if fit := run.finished.calibrate:
        calibration = reason_not_to_fit(source, split, is_asked=calibrate)
        calibration = calibration or _calibrate(fit, pass_over("validation", Metrics()), measure, scores)
    records = source.splits[split]
    classes = ClassScores.of(outputs, targets) if run.finished.class_names else None
    return Evaluation(
        run=run,
        split=split,
        source=source,
        metrics=tuple(metrics.by_name.values()),
        scores={**(classes.scores if classes else {}), **scores},
        classes=classes,
        intervals=bootstrap(metrics, values, resamples=resamples, level=level, seed=seed) if resamples else {},
        interval_facts={
            "method": "percentile bootstrap over examples", "resamples": resamples, "level": level, "seed": seed
        },
        places=places,
        identifiers=tuple(records.records.identifier(int(records.indices[place])) for place in places),
        columns=run.finished.compared(outputs, targets),
        calibration=calibration,
    )  # fmt: skip


def _measure(
    run: FinishedRun, outputs: Any, targets: Any, metrics: tuple[Metric, ...]
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """(the metrics, with the loss; what each averages of the examples, [n] or [n, size])."""
    losses = jax.jit(run.finished.task.losses(run.config.loss).evaluate)(outputs, targets)
    measured = Metrics(metrics)
    return measured, jax.device_get(measured.of_examples(outputs, targets, losses))


def _scores(metrics: Metrics, values: dict[str, np.ndarray]) -> dict[str, float | None]:
    return {name: _number(finished_mean(metrics.by_name[name], value)) for name, value in values.items()}


def reason_not_to_fit(source: Source, split: str, *, is_asked: bool) -> NotCalibrated | None:
    """The reason that nothing may be fitted on validation where a split is reported; None: it may."""
    if not is_asked:
        return NotCalibrated("not asked for")
    if split == "validation":
        return NotCalibrated("it is fitted on validation, which is what is reported")
    if "validation" not in source.splits:
        return NotCalibrated("the run has no validation split to fit on")
    if shared := num_shared(source.splits["validation"], source.splits[split]):
        return NotCalibrated(f"validation, to fit on, shares {shared:,} examples with {split}")
    return None


def _calibrate(
    fit: Callable[[Any, Any], Calibrated],
    validation: tuple[Any, Any, np.ndarray, Any],
    measure: Callable[[tuple[Metric, ...]], tuple[Metrics, dict[str, np.ndarray]]],
    scores: dict[str, float | None],
) -> CalibratedScores:
    """What is fitted on validation, as `_pass_over` gives it; `measure` and `scores` are of the reported split."""
    outputs, targets, places, _ = validation
    fitted = fit(outputs, targets)
    after = _scores(*measure(fitted.metrics))
    names = [metric.name for metric in fitted.metrics]
    return CalibratedScores(
        fitted, len(places), {name: scores[name] for name in names}, {name: after[name] for name in names}
    )


def finished_mean(metric: Metric, values: np.ndarray) -> float:
    """A metric of all examples, from what it averages of each, [n] or [n, size]."""
    return float(metric.finish(np.asarray(values, np.float64).mean(axis=0)))


def bootstrap(
    metrics: Metrics, values: dict[str, np.ndarray], *, resamples: int, level: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over resampled examples (Efron & Tibshirani 1993, section 13.3).

    Args:
      values: what each metric averages, [n] or [n, size].
      resamples: how many sets of n examples are drawn, with replacement.
      level: the share of them that lies within the interval.
      seed: of the draws; the weights of the examples are a function of it, of n and of the resample alone.
    """
    count, generator = len(next(iter(values.values()))), np.random.default_rng(seed)
    means: dict[str, list[np.ndarray]] = {name: [] for name in values}
    piece = max(1, MOST_WEIGHTS // count)
    for start in range(0, resamples, piece):
        drawn = [generator.integers(0, count, count) for _ in range(min(piece, resamples - start))]
        weights = np.stack([np.bincount(each, minlength=count) for each in drawn]) / count
        for name, each in values.items():
            means[name].append(weights @ np.asarray(each, np.float64))
    tails = (1 - level) / 2, (1 + level) / 2
    intervals = {}
    for name, pieces in means.items():
        resampled = np.asarray(metrics.by_name[name].finish(np.concatenate(pieces)), np.float64)
        low, high = np.quantile(resampled, tails)
        if math.isfinite(low) and math.isfinite(high):
            intervals[name] = float(low), float(high)
    return intervals


def _own_source(run: FinishedRun, data_dir: str | None, progress: Progress | None) -> Source:
    """The run's data, checked to be those."""
    config = copy.deepcopy(run.config)
    config.data.exclude = None  # what is left of it stands in the run's splits
    config.data.dir = data_dir or config.data.dir
    kept = workdir_lib.read_splits(run.folder)
    source = run.kind.reopen(config, run.saved["data"], progress=progress, kept=kept)
    facts = {"fingerprint": source.fingerprint, "splits": source.splits_digest}
    workdir_lib.check_data(run.folder, run.saved["data"], facts)
    return source


def _pass_over(
    run: FinishedRun,
    source: Source,
    split: str,
    metrics: Metrics,
    *,
    wanted: int,
    num_devices: int | None,
    tell: Progress,
) -> tuple[Any, Any, np.ndarray, dict[str, np.ndarray]]:
    """(outputs, targets, which of the split's examples these are, what each metric averages), each [n, ...].

    Raises RunError where outputs are not finite.
    """
    parallel = make_parallel("jit", num_devices=num_devices)
    examples = source.splits[split]
    only = replace(source, splits={"train": examples, "measured": examples})  # in train damaged ones are replaced
    feed_kind = ResidentFeed if is_resident(run.config, only) else StreamingFeed
    feed: Feed = feed_kind(run.config, only, parallel, tell)
    batch_size = math.ceil(min(wanted, len(examples)) / parallel.num_devices) * parallel.num_devices
    try:
        (found,), _, places = collect(
            [(partial(_of_batch, run, metrics), run.variables)],
            feed.evaluation("measured", batch_size),
            targets=lambda batch: (),
            fetch=feed.fetch,
            parallel=parallel,
            num_examples=lambda: feed.num_counted("measured"),
        )
    finally:
        feed.close()
    outputs, targets = found["kept"]
    if bad := int((~found["finite"]).sum()):
        raise RunError(
            f"the outputs of {run.folder}, step {run.step:,}, are not finite for {bad:,} of {len(places):,} examples "
            f"of {split}: the run has diverged; train with a lower optimizer.learning_rate"
        )
    return outputs, targets, places, found["values"]


def _of_batch(run: FinishedRun, metrics: Metrics, variables: Any, batch: Any) -> dict[str, Any]:
    """Of a batch, what is kept of outputs and targets, what each metric averages, and whether outputs are finite."""
    outputs, targets = run.outputs(variables, batch), run.targets(batch)
    losses = run.finished.task.losses(run.config.loss).evaluate(outputs, targets)
    finite = [jnp.isfinite(each).reshape(len(each), -1).all(axis=1) for each in jax.tree.leaves(outputs)]
    return {
        "kept": run.finished.kept(outputs, targets),
        "values": metrics.of_examples(outputs, targets, losses),
        "finite": jnp.stack(finite).all(axis=0),
    }


def _number(value: float) -> float | None:
    """With the seven digits that float32 has; None for what is not a number."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def evaluate_command(values: Any, argv: list[str]) -> int:
    """What `python -m jaxcnn.evaluate` does for such a run. Raises UserError, RunError."""
    task = task_of(values.workdir[0])
    for option, is_asked in (
        ("--tta", values.tta is not None),
        ("--data", values.data is not None),
        ("several --workdir", len(set(values.workdir)) > 1),
        ("several --step", "," in values.step),
    ):
        if is_asked:
            raise UserError(f"{option}: a run of task={task} is evaluated alone, as it is, on its own data")
    set_up(None, compilation_cache=True)
    folder = workdir_lib.resolve(values.workdir[0])
    run = load(values.workdir[0], values.step.strip())
    if run.finished.calibrate is None and values["calibrate"].present and values.calibrate:
        raise UserError(f"--calibrate: a run of task={task} has nothing that is fitted on validation; leave it out")
    log = RunLog(folder, tensorboard=False)
    evaluation = evaluate_run(
        run,
        split=values.split or "test",
        data_dir=values.data_dir,
        eval_batch_size=values.batch_size,
        resamples=values.resamples,
        calibrate=values.calibrate,
        progress=log.work,
    )
    _show(evaluation, log.console)
    output = workdir_lib.resolve(values.output) if values.output else folder
    suffix = "" if evaluation.split == "test" else f"-{evaluation.split}"
    suffix += "" if values.step == "best" else f"-step-{values.step.strip()}"
    files = write_files(output, suffix, contents(evaluation, argv), predictions(evaluation))
    log.say(f"everything is in {' and '.join(map(str, files))}")
    scores = {name: value for name, value in evaluation.scores.items() if value is not None}
    line = {"split": evaluation.split, "step": evaluation.run.step, **scores, "num_examples": len(evaluation.places)}
    log.say(to_json(line))
    return 0


def contents(evaluation: Evaluation, command: list[str]) -> dict[str, Any]:
    """All of evaluation.json."""
    run, source = evaluation.run, evaluation.source
    member = {
        "workdir": str(run.folder),
        "experiment": run.saved["experiment"],
        "model": run.config.model.name,
        "step": run.step,
        "scores": evaluation.scores,
    }
    return {
        "experiment": run.saved["experiment"],
        "task": run.config.task,
        "split": evaluation.split,
        "data": {"name": source.name, "fingerprint": source.fingerprint},
        "num_examples": len(evaluation.places),
        "step": run.step,
        "members": [member],
        "scores": evaluation.scores,
        "units": {metric.name: metric.unit for metric in evaluation.metrics},
        "intervals": evaluation.intervals,
        "interval_facts": evaluation.interval_facts,
        **({} if evaluation.calibration is None else {"calibration": _calibration(evaluation.calibration)}),
        "class_names": list(source.class_names),
        **_of_classes(evaluation.classes),
        "command": command,
        "versions": versions(),
    }


def _of_classes(classes: ClassScores | None) -> dict[str, Any]:
    return {} if classes is None else {"classes": classes.of_each, "confusion_matrix": classes.confusion_matrix}


def _calibration(calibration: CalibratedScores | NotCalibrated) -> dict[str, Any]:
    if isinstance(calibration, NotCalibrated):
        return {"not_done": calibration.reason}
    return {
        **calibration.fitted.facts,
        "fitted_on": {"split": "validation", "num_examples": calibration.num_examples},
        "before": calibration.before,
        "after": calibration.after,
    }


def predictions(evaluation: Evaluation) -> str:
    """A line an example, as CSV."""
    columns = {"index": evaluation.places.tolist(), "identifier": evaluation.identifiers, **evaluation.columns}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _show(evaluation: Evaluation, console: Any) -> None:
    from rich.table import Table

    run = evaluation.run
    table = Table(
        title=f"{run.saved['experiment']}, step {run.step:,}: {evaluation.split} of {evaluation.source.name}, "
        f"{len(evaluation.places):,} examples",
        title_justify="left",
    )
    level = 100 * evaluation.interval_facts["level"]
    for column in ("score", "value", *([f"{level:g} % interval"] if evaluation.intervals else [])):
        table.add_column(column, justify="left" if column == "score" else "right")
    for metric in evaluation.metrics:
        value, bounds = evaluation.scores[metric.name], evaluation.intervals.get(metric.name)
        name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
        interval = "" if bounds is None else f"{bounds[0]:.4f} – {bounds[1]:.4f}"
        table.add_row(name, "" if value is None else f"{value:.4f}", *([interval] if evaluation.intervals else []))
    if evaluation.classes is not None:
        for name, value in evaluation.classes.scores.items():
            if value is not None and all(name != metric.name for metric in evaluation.metrics):
                table.add_row(name, f"{value:.4f}", *([""] if evaluation.intervals else []))
    console.print(table)
    if evaluation.classes is not None:
        console.print(classes_table(evaluation.classes.of_each, evaluation.run.finished.class_names))
    if isinstance(evaluation.calibration, CalibratedScores):
        _show_calibration(evaluation.calibration, console)
    elif evaluation.calibration is not None:
        console.print(f"nothing fitted: {evaluation.calibration.reason}", soft_wrap=True)


def _show_calibration(calibration: CalibratedScores, console: Any) -> None:
    changes = [
        f"{name} {_shown(value)} -> {_shown(calibration.after[name])}" for name, value in calibration.before.items()
    ]
    line = (
        f"{calibration.fitted.what} fitted on {calibration.num_examples:,} examples of validation: {', '.join(changes)}"
    )
    for each in (line, *calibration.fitted.notes):
        console.print(each, soft_wrap=True)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
