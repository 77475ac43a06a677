"""Evaluates runs from their folders: python -m jaxcnn.evaluate --workdir DIR [--workdir DIR2] [--split test] …

Several checkpoints (--step=100,best) or folders make an ensemble. Prints tables, then a line of JSON. Writes
evaluation.json and predictions.csv; what is not as by default follows the name: evaluation-validation-tta-flip.json.
Exit codes as jaxcnn.main's. docs/evaluation.md says what the numbers mean.
"""

import csv
import io
import re
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxcnn.command import check_outputs, check_step, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import Config, from_dict, validate
from jaxcnn.config.choices import TASKS, load_function
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.files import to_json, write_atomically
from jaxcnn.machine import versions
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog
from jaxcnn.terminal import one_line

if TYPE_CHECKING:
    from jaxcnn.results.measure import Evaluation

MAIN_SCORES = (
    "accuracy", "top5_accuracy", "loss", "nll", "macro_precision", "macro_recall", "macro_f1", "weighted_f1",
    "balanced_accuracy", "cohen_kappa", "matthews", "macro_roc_auc", "macro_average_precision", "ece", "brier",
)  # fmt: skip
SUMMARY_SCORES = ("accuracy", "loss", "nll", "macro_f1", "ece", "brier")
CLASSES_SHOWN = 20
LONGEST_PART = 60  # letters of what is added to a file's name


def main(argv: list[str], start: float) -> int:
    """Parses, measures, writes, prints; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_multi_string("workdir", None, "a run's folder; several make an ensemble", flag_values=values)
    flags.DEFINE_string("split", None, "train, validation or test; test, or all of --data", flag_values=values)
    flags.DEFINE_string("data", None, "other data, as config.data.name has them: folder:PATH", flag_values=values)
    flags.DEFINE_string("data_dir", None, "where prepared sets lie, if not where they did", flag_values=values)
    flags.DEFINE_string(
        "step", "best", "checkpoints: best (on validation), last, or steps; 100,200", flag_values=values
    )
    flags.DEFINE_string("tta", None, "views that are averaged; none: as the run's eval_tta", flag_values=values)
    flags.DEFINE_integer("resamples", 1000, "of the bootstrap's intervals; 0: none", 0, 10**6, flag_values=values)
    flags.DEFINE_integer("batch_size", None, "images on the devices; default the run's", 1, 10**6, flag_values=values)
    flags.DEFINE_bool("calibrate", True, "fit a temperature on validation", flag_values=values)
    flags.DEFINE_string("output", None, "folder of the files; the first --workdir", flag_values=values)
    if {"--help", "-help", "-h", "--helpfull"} & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    parse_flags(values, argv, takes_arguments=False)
    workdirs, _ = _check(values)
    command: Any = load_function(TASKS[_config(workdirs[0]).task].evaluate)
    return int(command(values, argv))


def evaluate_images(values: flags.FlagValues, argv: list[str]) -> int:
    """The command for classification's runs."""
    workdirs, steps = _check(values)

    from jaxcnn.results.measure import evaluate_run
    from jaxcnn.training.parallel import set_up

    set_up(None, compilation_cache=_config(workdirs[0]).compilation_cache)
    log = RunLog(workdirs[0], tensorboard=False)
    evaluation = evaluate_run(
        workdirs,
        steps=steps,
        split=values.split,
        data=values.data,
        data_dir=values.data_dir,
        tta=values.tta,
        eval_batch_size=values.batch_size,
        resamples=values.resamples,
        calibrate=values.calibrate,
        progress=log.work,
    )
    show(evaluation, log.console)
    output = workdir_lib.resolve(values.output) if values.output else workdirs[0]
    suffix = suffix_of(evaluation, workdirs, steps=steps, data=values.data, tta=values.tta)
    files = save(evaluation, output, suffix, command=argv)
    log.say(f"everything is in {' and '.join(map(str, files))}")
    log.say(to_json(line_of(evaluation)))
    return 0


def _check(values: flags.FlagValues) -> tuple[list[Any], list[str]]:
    """(folders, steps) as asked for. Raises UserError; JAX is not imported."""
    if not values.workdir or not all(values.workdir):
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    splits = ("train", "validation", "test")
    if values.data is None and values.split not in (None, *splits):
        raise UserError(f"--split={values.split} is not known; {nearest(values.split, splits)}")
    check_outputs(values, "output", folder=True)
    if values.resamples == 1:
        raise UserError(f"--resamples={values.resamples}: give many, e.g. 1000, or 0 for no intervals")
    steps = [step.strip() for step in values.step.split(",")]
    for step in steps:
        check_step(step)
    workdirs = [workdir_lib.resolve(each) for each in values.workdir]
    for workdir in workdirs:
        config = _config(workdir)
        if values.tta is not None:
            config.eval_tta = values.tta
            try:
                validate(config, unread=False)
            except UserError as error:
                raise UserError(str(error).replace("eval_tta", "--tta")) from None
    return workdirs, steps


def _config(workdir: Any) -> Config:
    config = from_dict(workdir_lib.read_config(workdir)["config"])
    config.platform = config.num_devices = None  # wherever it was trained, it is evaluated here
    return config


# ---- files


def suffix_of(
    evaluation: "Evaluation", workdirs: list[Any], *, steps: list[str], data: str | None, tta: str | None
) -> str:
    """What the files' names say of what was not as by default: `-validation-step-100-200-tta-flip`; mostly nothing."""
    parts = []
    if data is not None:
        parts.append(data)
    if evaluation.split != ("test" if data is None else "all"):
        parts.append(evaluation.split)
    if steps != ["best"]:
        parts.append(f"step-{'-'.join(steps)}")
    if tta is not None:
        parts.append(f"tta-{tta}")
    parts += [f"with-{workdir}" for workdir in dict.fromkeys(workdirs[1:]) if workdir != workdirs[0]]
    return "".join(f"-{re.sub(r'[^A-Za-z0-9._]+', '-', part).strip('-')[-LONGEST_PART:]}" for part in parts)


def save(evaluation: "Evaluation", folder: Any, suffix: str, *, command: list[str]) -> list[Any]:
    """Writes evaluation{suffix}.json and predictions{suffix}.csv, each whole or not at all; returns where they are.

    Raises:
      RunError: they cannot be written.
    """
    files = [folder / f"evaluation{suffix}.json", folder / f"predictions{suffix}.csv"]
    content = contents(evaluation, command=command)
    lines = ",\n".join(f"  {to_json(name)}: {to_json(value)}" for name, value in content.items())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(files[1], predictions(evaluation))
        write_atomically(files[0], f"{{\n{lines}\n}}\n")
    except Exception as error:  # a bucket's own errors are no OSError
        raise RunError(f"{folder} cannot be written ({one_line(error)}); pass another --output") from None
    return files


def contents(evaluation: "Evaluation", *, command: list[str]) -> dict[str, Any]:
    """All of evaluation.json; what is not defined is None."""
    members = evaluation.members
    return {
        "experiment": members[0].experiment,
        "split": evaluation.split,
        "data": evaluation.data,
        "num_examples": len(evaluation.labels),
        "tta": evaluation.tta,
        "step": _steps(evaluation),
        "members": [vars(member) for member in members],
        "notes": list(evaluation.notes),
        "scores": evaluation.scores,
        "intervals": evaluation.intervals,
        "interval_facts": evaluation.interval_facts,
        "num_classes_averaged": evaluation.counts,
        "calibration": evaluation.calibration,
        "reliability": evaluation.reliability,
        "class_names": list(evaluation.class_names),
        "classes": evaluation.classes,
        "confusion_matrix": evaluation.confusion_matrix.tolist(),
        "command": command,
        "versions": versions(),
    }


def predictions(evaluation: "Evaluation") -> str:
    """A line an example, as CSV: what it was, what was said, and the probability of each class."""
    names, probabilities = evaluation.class_names, evaluation.probabilities
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["index", "identifier", "label", "prediction", "confidence", "correct", *(f"p_{name}" for name in names)]
    )
    predicted = evaluation.logits.argmax(axis=1)  # of equal probabilities, as the scores have it
    for place, identifier, label, prediction, row in zip(
        evaluation.places.tolist(),
        evaluation.identifiers,
        evaluation.labels.tolist(),
        predicted.tolist(),
        probabilities.tolist(),
        strict=True,
    ):
        shown = [f"{p:.7g}" for p in row]
        right = int(label == prediction)
        writer.writerow([place, identifier, names[label], names[prediction], shown[prediction], right, *shown])
    return text.getvalue()


def line_of(evaluation: "Evaluation") -> dict[str, Any]:
    """The last line that is printed: what a script wants first."""
    scores = {name: evaluation.scores[name] for name in MAIN_SCORES if evaluation.scores[name] is not None}
    return {
        "split": evaluation.split,
        "step": _steps(evaluation),
        **scores,
        "num_examples": len(evaluation.labels),
    }


def _steps(evaluation: "Evaluation") -> int | list[int]:
    steps = [member.step for member in evaluation.members]
    return steps[0] if len(steps) == 1 else steps


# ---- tables


def show(evaluation: "Evaluation", console: Any) -> None:
    """The main scores with their intervals, the members of an ensemble, and the classes, of many the worst."""
    from rich.table import Table

    members = evaluation.members
    what = f"step {members[0].step:,}" if len(members) == 1 else f"{len(members)} members, probabilities averaged"
    table = Table(
        title=f"{members[0].experiment}, {what}: {evaluation.split} of {evaluation.data['name']}, "
        f"{len(evaluation.labels):,} examples, tta {evaluation.tta}",
        title_justify="left",
    )
    level = evaluation.interval_facts["level"]
    for column in ("score", "value", *([f"{100 * level:g} % interval"] if evaluation.intervals else [])):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name in MAIN_SCORES:
        if (value := evaluation.scores[name]) is not None:
            low_high = evaluation.intervals.get(name)
            table.add_row(name, f"{value:.4f}", "" if low_high is None else f"{low_high[0]:.4f} – {low_high[1]:.4f}")
    console.print(table)
    if len(members) > 1:
        console.print(_members_table(evaluation))
    console.print(_classes_table(evaluation))
    console.print(_calibration_line(evaluation.calibration))
    for note in evaluation.notes:
        console.print(note)


def _members_table(evaluation: "Evaluation") -> Any:
    from rich.table import Table

    table = Table(title="members, each alone", title_justify="left")
    table.add_column("run", overflow="fold")
    for column in ("step", *SUMMARY_SCORES):
        table.add_column(column, justify="right")
    for member in evaluation.members:
        table.add_row(
            member.workdir, f"{member.step:,}", *(_four_digits(member.scores[name]) for name in SUMMARY_SCORES)
        )
    return table


def _classes_table(evaluation: "Evaluation") -> Any:
    from rich.table import Table

    classes, names = evaluation.classes, evaluation.class_names
    order = list(range(len(names)))
    title = "classes"
    if len(names) > CLASSES_SHOWN:
        present = [number for number in order if classes["support"][number]]
        order = sorted(present, key=lambda number: classes["f1"][number])[:CLASSES_SHOWN]
        title = f"the {len(order)} of {len(names):,} classes with the lowest F1"
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    shown = ("precision", "recall", "f1", "roc_auc", "average_precision")
    for column in ("examples", *shown):
        table.add_column(column, justify="right")
    for number in order:
        numbers = (_four_digits(classes[name][number]) for name in shown)
        table.add_row(names[number], f"{classes['support'][number]:,}", *numbers)
    return table


def _four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _calibration_line(calibration: dict[str, Any]) -> str:
    if "not_done" in calibration:
        return f"no temperature: {calibration['not_done']}"
    before, after = calibration["before"], calibration["after"]
    changes = ", ".join(f"{name} {_four_digits(before[name])} -> {_four_digits(after[name])}" for name in after)
    limit = ", the limit of what is tried" if calibration["at_limit"] else ""
    count = calibration["fitted_on"]["num_examples"]
    return f"temperature {calibration['temperature']:.4g}{limit}, fitted on {count:,} examples of validation: {changes}"


if __name__ == "__main__":
    run_command(main, less_memory="lower --batch_size")
