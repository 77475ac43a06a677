"""A study in TensorBoard's HParams: the fields that vary as columns, a row a variant, and the metric that is compared.

The runs' own event files have all fields of their configs, and no score on test; so this is a folder of its own.
"""

from collections.abc import Sequence
from typing import Any

from etils import epath

from jaxcnn.files import to_json
from jaxcnn.report.study_files import StudyFiles
from jaxcnn.run.tensorboard import ROOT, TensorBoard

FOLDER = "tensorboard"
FOLDERS = (FOLDER, f"{FOLDER}/runs", f"{FOLDER}/runs/*")  # what is written into: none of it may be a link


def write_board(study: StudyFiles, folder: epath.Path) -> None:
    """Writes an event file for each run that has a score, instead of that of before. Raises OSError."""
    columns = {field: _column([study.fields_of(name)[field] for name in study.variants]) for field in study.varied}
    for number, (name, variant) in enumerate(study.variants.items()):
        values = {field: column[number] for field, column in columns.items()}
        for run in variant["runs"]:
            if run["score"] is None:
                continue
            place = folder / run["folder"]
            if place.exists():
                place.rmtree()
            board = TensorBoard(place, 0)
            board.hyperparameters(values, [(ROOT, study.metric)], group=name)
            board.scalars(ROOT, 0, {study.metric: run["score"]})
            board.finished()
            board.flush()
            board.close()


def _column(values: Sequence[Any]) -> list[Any]:
    """The values of a field, all of one kind: TensorBoard sorts and filters a column by it."""
    for kind in (bool, str, int | float):
        if all(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for value in values):
            return list(values)
    return [to_json(value) for value in values]
