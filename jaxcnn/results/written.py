"""Files of an evaluation: evaluation.json and predictions.csv, their names and what they hold."""

import csv
import io
import re
from typing import Any

from jaxcnn.errors import RunError
from jaxcnn.files import to_json, write_atomically
from jaxcnn.machine import versions
from jaxcnn.results.measure import Calibration, Evaluation
from jaxcnn.results.members import WHOLE_SET, NotCalibrated
from jaxcnn.tasks.classification.scores import SHOWN_SCORES
from jaxcnn.terminal import one_line

LONGEST_PART = 60  # letters of what is added to a file's name


def suffix_of(
    evaluation: Evaluation, workdirs: list[Any], *, steps: list[str], data: str | None, tta: str | None
) -> str:
    """End of the files' names, by what was not as by default: `-validation-step-100-200-tta-flip`; mostly nothing."""
    parts = []
    if data is not None:
        parts.append(data)
    if evaluation.split != ("test" if data is None else WHOLE_SET):
        parts.append(evaluation.split)
    if steps != ["best"]:
        parts.append(f"step-{'-'.join(steps)}")
    if tta is not None:
        parts.append(f"tta-{tta}")
    parts += [f"with-{workdir}" for workdir in dict.fromkeys(workdirs[1:]) if workdir != workdirs[0]]
    return "".join(f"-{re.sub(r'[^A-Za-z0-9._]+', '-', part).strip('-')[-LONGEST_PART:]}" for part in parts)


def save(evaluation: Evaluation, folder: Any, suffix: str, *, command: list[str]) -> list[Any]:
    """Writes the files of an evaluation, as `write_files`."""
    return write_files(folder, suffix, contents(evaluation, command=command), predictions_csv(evaluation))


def write_files(folder: Any, suffix: str, content: dict[str, Any], predictions: str) -> list[Any]:
    """Writes evaluation{suffix}.json and predictions{suffix}.csv, each whole or not at all; returns where they are.

    Raises:
      RunError: they cannot be written.
    """
    files = [folder / f"evaluation{suffix}.json", folder / f"predictions{suffix}.csv"]
    lines = ",\n".join(f"  {to_json(name)}: {to_json(value)}" for name, value in content.items())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(files[1], predictions)
        write_atomically(files[0], f"{{\n{lines}\n}}\n")
    except Exception as error:  # a bucket's own errors are no OSError
        raise RunError(f"{folder} cannot be written ({one_line(error)}); pass another --output") from None
    return files


def contents(evaluation: Evaluation, *, command: list[str]) -> dict[str, Any]:
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
        "calibration": _calibration(evaluation.calibration),
        "reliability": evaluation.reliability,
        "class_names": list(evaluation.class_names),
        "classes": evaluation.classes,
        "confusion_matrix": evaluation.confusion_matrix.tolist(),
        "command": command,
        "versions": versions(),
    }


def _calibration(calibration: Calibration | NotCalibrated) -> dict[str, Any]:
    if isinstance(calibration, NotCalibrated):
        return {"not_done": calibration.reason}
    return {
        "temperature": calibration.temperature,
        "at_limit": calibration.at_limit,
        "fitted_on": {"split": "validation", "num_examples": calibration.num_examples},
        "before": calibration.before,
        "after": calibration.after,
    }


def predictions_csv(evaluation: Evaluation) -> str:
    """A line an example, as CSV: what it was, what was said, and the probability of each class."""
    names, probabilities = evaluation.class_names, evaluation.probabilities
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["index", "identifier", "label", "prediction", "confidence", "correct", *(f"p_{name}" for name in names)]
    )
    for place, identifier, label, prediction, row in zip(
        evaluation.places.tolist(),
        evaluation.identifiers,
        evaluation.labels.tolist(),
        evaluation.predicted.tolist(),
        probabilities.tolist(),
        strict=True,
    ):
        shown = [f"{p:.7g}" for p in row]
        right = int(label == prediction)
        writer.writerow([place, identifier, names[label], names[prediction], shown[prediction], right, *shown])
    return text.getvalue()


def line_of(evaluation: Evaluation) -> dict[str, Any]:
    """The last line that is printed: what a script wants first."""
    scores = {name: evaluation.scores[name] for name in SHOWN_SCORES if evaluation.scores[name] is not None}
    return {
        "split": evaluation.split,
        "step": _steps(evaluation),
        **scores,
        "num_examples": len(evaluation.labels),
    }


def _steps(evaluation: Evaluation) -> int | list[int]:
    steps = [member.step for member in evaluation.members]
    return steps[0] if len(steps) == 1 else steps
