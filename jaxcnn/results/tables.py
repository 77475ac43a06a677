"""Tables of an evaluation, as the terminal shows them: scores, members, classes, and a line on calibration."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxcnn.results.measure import Calibration, Evaluation
from jaxcnn.results.members import NotCalibrated
from jaxcnn.tasks.classification.scores import SHOWN_SCORES

MEMBER_SCORES = ("accuracy", "loss", "nll", "macro_f1", "ece", "brier")
CLASS_SCORES = ("precision", "recall", "f1", "roc_auc", "average_precision")
CLASSES_SHOWN = 20


def show(evaluation: Evaluation, console: Console) -> None:
    """The main scores with their intervals, the members of an ensemble, and the classes, of many the worst."""
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
    for name in SHOWN_SCORES:
        if (value := evaluation.scores[name]) is not None:
            low_high = evaluation.intervals.get(name)
            table.add_row(name, f"{value:.4f}", "" if low_high is None else f"{low_high[0]:.4f} – {low_high[1]:.4f}")
    console.print(table)
    if len(members) > 1:
        console.print(_members_table(evaluation))
    console.print(classes_table(evaluation.classes, evaluation.class_names))
    console.print(_calibration_line(evaluation.calibration))
    for note in evaluation.notes:
        console.print(note)


def _members_table(evaluation: Evaluation) -> Table:
    table = Table(title="members, each alone", title_justify="left")
    table.add_column("run", overflow="fold")
    for column in ("step", *MEMBER_SCORES):
        table.add_column(column, justify="right")
    for member in evaluation.members:
        table.add_row(
            member.workdir, f"{member.step:,}", *(_four_digits(member.scores[name]) for name in MEMBER_SCORES)
        )
    return table


def classes_table(classes: dict[str, list[Any]], names: Sequence[str]) -> Table:
    """Scores of each class, by name a list over the classes; of many the worst."""
    order = list(range(len(names)))
    title = "classes"
    if len(names) > CLASSES_SHOWN:
        present = [number for number in order if classes["support"][number]]
        order = sorted(present, key=lambda number: classes["f1"][number])[:CLASSES_SHOWN]
        title = f"the {len(order)} of {len(names):,} classes with the lowest F1"
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    for column in ("examples", *CLASS_SCORES):
        table.add_column(column, justify="right")
    for number in order:
        numbers = (_four_digits(classes[name][number]) for name in CLASS_SCORES)
        table.add_row(names[number], f"{classes['support'][number]:,}", *numbers)
    return table


def _four_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _calibration_line(calibration: Calibration | NotCalibrated) -> str:
    if isinstance(calibration, NotCalibrated):
        return f"no temperature: {calibration.reason}"
    before, after = calibration.before, calibration.after
    changes = ", ".join(f"{name} {_four_digits(before[name])} -> {_four_digits(after[name])}" for name in after)
    limit = ", the limit of what is tried" if calibration.at_limit else ""
    count = calibration.num_examples
    return f"temperature {calibration.temperature:.4g}{limit}, fitted on {count:,} examples of validation: {changes}"
