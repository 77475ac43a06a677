"""A finished run of any task, from its folder alone, and what it says of new data: the task's hooks behind `predict`.

The command comes here for every task that config/choices.py:TASKS does not send elsewhere. Nothing here knows what an
example is.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np
from absl import logging

from jaxcnn.command import check_outputs, check_step
from jaxcnn.config import Config, from_dict
from jaxcnn.config.choices import choose
from jaxcnn.errors import UserError
from jaxcnn.files import to_json, writing
from jaxcnn.models.make import make_model
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.tasks.task import Finished, TaskKind
from jaxcnn.terminal import PatientConsole, complain
from jaxcnn.training.parallel import set_up
from jaxcnn.transfer.pretrained import fitted, run_arrays

NOT_FINITE = "the network's output is not finite for it; its values are far from those that it has learned"


@dataclass(frozen=True)
class FinishedRun:
    """A run's network, its task, and what its folder says."""

    folder: Any
    saved: dict[str, Any]
    config: Config
    kind: TaskKind
    finished: Finished
    module: Any
    variables: dict[str, Any]
    step: int

    def outputs(self, variables: dict[str, Any], batch: Any) -> Any:
        """The pure function behind every answer: of a batch as the source has it."""
        inputs, _ = self.prepare(batch)
        return self.finished.task.apply(partial(self.module.apply, variables, train=False), inputs)

    def targets(self, batch: Any) -> Any:
        """What a batch's outputs are compared with."""
        return self.prepare(batch)[1]

    def prepare(self, batch: Any) -> Any:
        """(inputs, targets) of a batch, as evaluated."""
        return self.finished.task.prepare(self.saved["data"])(None, None, batch)

    @property
    def batch_size(self) -> int:
        """Of evaluation."""
        return self.config.eval_batch_size or self.config.batch_size


def load(workdir: str, step: str = "best") -> FinishedRun:
    """A run's network, from its folder alone. Raises UserError, RunError as jaxcnn.load."""
    folder = workdir_lib.resolve(workdir)
    saved = workdir_lib.read_config(folder)
    config = from_dict(saved["config"])
    kind: Any = choose("task", config.task).load()
    if kind.finish is None:
        raise UserError(f"{folder} holds a run of task={config.task}, which says nothing of finished runs")
    finished = kind.finish(config, saved["data"])
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what is opened to be read cannot be written
    try:
        tensors, _ = run_arrays(folder, step)
    finally:
        logging.set_verbosity(verbosity)
    module = make_model(config.model, **finished.task.model)
    variables = fitted(module, tensors.arrays, finished.task.example, tensors.source)
    number = int(tensors.source.rpartition(" ")[2])
    return FinishedRun(folder, saved, config, kind, finished, module, variables, number)


def task_of(workdir: str) -> str:
    """The name of a run's task. Raises UserError where there is no run."""
    return str(workdir_lib.read_config(workdir_lib.resolve(workdir))["config"]["task"])


# ---- predict


def predict(run: FinishedRun, path: str, *, top_k: int = 1) -> Iterator[dict[str, Any] | tuple[dict, ValueError]]:
    """The rows of each example of a file: how the file names it, and the answer, or (that, what is wrong with it).

    Raises UserError: the file cannot be read, or is none of the task's.
    """
    call = jax.jit(run.outputs)
    variables = jax.device_put(run.variables)
    given = run.finished.read(path)
    while batch := list(islice(given, run.batch_size)):
        sound = [arrays for _, arrays in batch if not isinstance(arrays, ValueError)]
        answers: Iterator[dict[str, Any] | ValueError] = iter(())
        if sound:
            rows = [*sound, *[sound[0]] * (run.batch_size - len(sound))]  # padded to one size, compiled once
            stacked = {name: np.stack([each[name] for each in rows]) for name in sound[0]}
            outputs = jax.tree.map(lambda x: x[: len(sound)], jax.device_get(call(variables, stacked)))
            answers = iter(_finite_answers(run.finished, outputs, top_k))
        for named, arrays in batch:
            if isinstance(arrays, ValueError):
                yield named, arrays
            elif isinstance(answer := next(answers), ValueError):
                yield named, answer
            else:
                yield from run.finished.rows(named, arrays, answer)


def _finite_answers(finished: Finished, outputs: Any, top_k: int) -> Sequence[dict[str, Any] | ValueError]:
    leaves = [each.reshape(len(each), -1) for each in jax.tree.leaves(outputs)]
    finite = np.all([np.isfinite(each).all(axis=1) for each in leaves], axis=0)
    fault = ValueError(NOT_FINITE)
    answers = finished.answers(outputs, top_k)
    return [answer if is_finite else fault for answer, is_finite in zip(answers, finite, strict=True)]


OF_CLASSES = dict.fromkeys(("tta", "explain", "target"), "classes of images")  # options, and what they are for
OF_MASKS = dict.fromkeys(("masks", "drawn"), "masks")


def predict_command(values: Any, given: list[str]) -> int:
    """What `python -m jaxcnn.predict` does for such a run. Raises UserError, RunError."""
    check_command(values, given, refused=OF_CLASSES | OF_MASKS)
    set_up(None, compilation_cache=True)
    run = load(values.workdir, values.step)
    run = replace(run, config=replace(run.config, eval_batch_size=values.batch_size or run.config.eval_batch_size))
    rows, faults = [], 0
    for path in given:
        for row in predict(run, path, top_k=values.top_k):
            if isinstance(row, tuple):
                faults += 1
                named = ", ".join(f"{name} {value}" for name, value in row[0].items())
                complain(f"{path}, {named}: {row[1]}")
            else:
                rows.append({"path": path, **row} if len(given) > 1 else row)
    tell(values, run, rows, faults)
    return 1 if faults else 0


def check_command(values: Any, given: list[str], *, refused: dict[str, str]) -> None:
    """Raises UserError for a command that cannot be meant. `refused`: options that the run's task has not."""
    for option, what in refused.items():
        if values[option].value is not None:
            raise UserError(f"--{option} is for {what}, and the run is of task={task_of(values.workdir)}; leave it out")
    if not given or "-" in given:
        raise UserError("no files given; pass those that the run's task reads: docs/tasks.md")
    if values.csv == values.json == "-":
        raise UserError("--csv=- and --json=- would both write to stdout; give one of them a file")
    check_step(values.step)
    check_outputs(values, "csv", "json")


def tell(values: Any, run: FinishedRun, rows: list[dict[str, Any]], faults: int, folders: tuple[str, ...] = ()) -> None:
    """Writes rows where the command says, or shows them, and says in a line what was done.

    `folders`: that pictures of them were written to, so that they need not be shown.
    """
    console = PatientConsole()
    for output, text in ((values.csv, _as_csv), (values.json, _as_json)):
        if output:
            with writing(output) as file:
                file.write(text(rows))
    outputs = [output for output in (values.csv, values.json, *folders) if output]
    if not outputs:
        _print_table(rows, console)
    if "-" not in outputs:
        told = [f"{len(rows):,} {run.finished.task.examples} predicted by {run.folder}, step {run.step:,}"]
        told += [f"{faults:,} left out"] if faults else []
        console.print("; ".join([*told, *(f"written to {output}" for output in outputs)]), soft_wrap=True)


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _as_json(rows: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(map(to_json, rows)) + "\n]\n" if rows else "[]\n"


def _print_table(rows: list[dict[str, Any]], console: Any) -> None:
    from rich.table import Table

    table = Table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
