"""Log of a run: metrics.jsonl, timing.jsonl, telemetry.jsonl, summary.json, and the lines and bar in the terminal.

metrics.jsonl and telemetry.jsonl hold nothing that depends on the clock: a run that was killed and resumed writes the
same bytes as one that was not.
"""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxcnn.errors import UserError, WriteError
from jaxcnn.files import append, finite, from_json, is_remote, read_bytes, to_json, write_atomically
from jaxcnn.hosts import job
from jaxcnn.plain_data import Number, conforms
from jaxcnn.run.tensorboard import TensorBoard
from jaxcnn.run.trackers import Trackers
from jaxcnn.terminal import PatientConsole, complain_once, one_line

EXAMPLES_PER_SECOND = "images_per_second"  # in timing.jsonl and summary.json, of whatever the examples are
LARGEST_FILE = 1 << 30  # bytes of rows that are read
_STEP, _VALUE = Number(0, 2**53, integer=True), (Number(), None)  # null is a number that is not finite
# What a row of each file has.
_FILES: dict[str, Any] = {
    "metrics.jsonl": {"step": _STEP, "epoch": Number(0), "split": str, "loss": _VALUE, str: _VALUE},
    "timing.jsonl": {
        "step": _STEP, **dict.fromkeys(("seconds", EXAMPLES_PER_SECOND, "data_wait", "device_wait"), _VALUE),
    },
    "telemetry.jsonl": {
        "step": _STEP,
        "gradient_norm": _VALUE,
        "layers": {str: dict.fromkeys(("weight_norm", "gradient_norm", "update_ratio"), _VALUE)},
        "activations": {str: dict.fromkeys(("mean", "std", "dead"), _VALUE)},
        "not_finite?": [str],
    },
    "samples.jsonl": {"step": _STEP, "epoch": Number(0), "text": str},
}  # fmt: skip
_NOT_ALWAYS = "telemetry.jsonl", "samples.jsonl"  # not there where there is nothing for them


def read_rows(path: epath.Path, *, having: str = "") -> list[dict[str, Any]]:
    """The rows of one of a run's JSON-lines files up to the first that is damaged; none when there is no file.

    Lines without the text `having` are not looked at: of many runs' files most rows are not wanted.

    What is not finite is None, however it was written. A damaged row is reported on stderr, once a file, and so are the
    rows after it; a last line without an end is a row that is being written, or that a kill cut off. Raises UserError
    for a file that cannot be read.
    """
    try:
        lines = read_bytes(path, limit=LARGEST_FILE).split(b"\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); delete it to go on without it") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if number < len(lines) and having.encode() not in line:
            continue
        row = _parsed_row(line, _FILES[path.name])
        if row is None:
            if number < len(lines):
                left_out = f"rows {number} to {len(lines) - 1} are" if number < len(lines) - 1 else "it is"
                complain_once(f"{path}: row {number} is damaged; {left_out} left out")
            break
        rows.append(row)
    return rows


def _parsed_row(line: bytes, expected: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = finite(from_json(line.decode()))
    except ValueError:
        return None
    return row if conforms(row, expected) else None


class RunLog:
    """Writes one run's folder and terminal; of a job of several processes the first alone does."""

    def __init__(
        self,
        workdir: epath.Path,
        *,
        tensorboard: bool = True,
        trackers: Callable[[list[dict[str, Any]]], Trackers] | None = None,
        console: Console | None = None,
        start: float | None = None,
    ):
        """`start` is time.perf_counter() when the command began; `trackers` opens them, by the rows so far."""
        self._workdir = workdir
        self._start = time.perf_counter() if start is None else start
        self._remote = is_remote(workdir)
        self._writes = job.is_first()
        self.console = console or PatientConsole(soft_wrap=True, quiet=not self._writes)
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _FILES}
        self._with_tensorboard = tensorboard
        self.tensorboard: TensorBoard | None = None  # from resume on
        self._open_trackers = trackers
        self._trackers: Trackers | None = None  # from resume on, too
        self._progress: Progress | None = None
        self._resumed_at = 0
        self.examples = "images"  # what they are called
        self._work: Progress | None = None
        self._task = self._work_task = TaskID(0)
        self._since_epoch: Any = None  # sums of the metrics since the last evaluation
        self._timing: dict[str, float] = {}

    def resume(self, step: int) -> None:
        """Opens the files. Rows after `step`, which a killed run wrote and this one will write again, are dropped."""
        self._resumed_at = step
        if not self._writes:
            return
        for name in _FILES:
            self._rows[name] = [row for row in read_rows(self._workdir / name) if row["step"] <= step]
            if name not in _NOT_ALWAYS or self._rows[name] or os.path.lexists(self._workdir / name):
                self._rewrite(name)
        if self._with_tensorboard:
            self.tensorboard = TensorBoard(self._workdir / "tensorboard", step)
        if self._open_trackers:
            self._trackers = self._open_trackers(self._rows["metrics.jsonl"])

    def metrics(self, step: int, epoch: float, split: str, values: dict[str, float]) -> None:
        """A row of metrics.jsonl and its points in TensorBoard."""
        self._append("metrics.jsonl", {"step": step, "epoch": round(epoch, 4), "split": split, **values})
        if self.tensorboard:
            self.tensorboard.scalars(split, step, values)
        if self._trackers:
            self._trackers.scalars(split, step, values)

    def timing(self, step: int, values: dict[str, float]) -> None:
        """A row of timing.jsonl: seconds and rates."""
        self._append("timing.jsonl", {"step": step, **{name: float(f"{v:.6g}") for name, v in values.items()}})
        if self.tensorboard:
            self.tensorboard.scalars("train", step, values)

    def telemetry(
        self, step: int, row: dict[str, Any], histograms: dict[str, tuple[Any, Any]], *, shown: set[str]
    ) -> None:
        """A row of telemetry.jsonl, and in TensorBoard the histograms, and charts of the layers that are `shown`."""
        self._append("telemetry.jsonl", {"step": step, **row})
        if self.tensorboard:
            charts = {"telemetry/gradient_norm": row["gradient_norm"]}
            for group in ("layers", "activations"):
                for layer, values in row[group].items():
                    if group == "activations" or layer in shown:
                        charts |= {f"{group}_{name}/{layer}": value for name, value in values.items()}
            self.tensorboard.scalars("train", step, charts)
            self.tensorboard.histograms("train", step, histograms)

    def sample(self, step: int, epoch: float, text: str) -> None:
        """A row of samples.jsonl, and the text in TensorBoard."""
        self._append("samples.jsonl", {"step": step, "epoch": round(epoch, 4), "text": text})
        if self.tensorboard:
            self.tensorboard.text("validation", "sample", step, text)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if not self._writes:
            return
        self._rows[name].append(row)
        if not self._remote:  # object stores do not append: there the file is rewritten by flush
            self._writing(partial(append, self._workdir / name, _line(row)))

    def _rewrite(self, name: str) -> None:
        content = "".join(_line(row) for row in self._rows[name])
        self._writing(partial(write_atomically, self._workdir / name, content))

    def _writing(self, write: Callable[[], None]) -> None:
        """Writes. Raises WriteError where that fails, which leaves the run as it was at its last checkpoint."""
        if not self._writes:
            return
        try:
            write()
        except Exception as error:  # a bucket's own errors are no OSError
            raise WriteError(
                f"writing to {self._workdir} failed ({one_line(error)}); make room, and run the same command again"
            ) from error

    def flush(self) -> None:
        """Writes everything logged so far into the run's folder. Called before each save."""
        if self._remote:
            for name in _FILES:
                if name not in _NOT_ALWAYS or self._rows[name]:
                    self._rewrite(name)
        if self.tensorboard:
            self._writing(self.tensorboard.flush)

    def say(self, line: str, *, style: str | None = None) -> None:
        """A line on the terminal."""
        self.console.print(line, style=style)

    def work(self, what: str, done: int, total: int) -> None:
        """Tells of long work before training: a bar where someone is looking, else a line when it begins."""
        if not self.console.is_terminal or not total:
            if done == 0:
                self.say(f"{what}: {total:,}" if total else what)
            return
        if self._work is None:
            self._work = Progress(
                TextColumn("{task.description}", markup=False),
                *Progress.get_default_columns()[1:],
                console=self.console,
                transient=True,
            )
            self._work_task = self._work.add_task(what, total=total)
            self._work.start()
        self._work.update(self._work_task, completed=done, description=what)
        if done >= total:
            self._work.stop()
            self._work = None

    def start_progress(self, total_steps: int, step: int) -> None:
        """Shows a bar, where someone is looking."""
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps  {task.fields[values]}", markup=False),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task("training", total=total_steps, completed=step, values="compiling …")
            self._progress.start()

    def first_step(self, seconds: float) -> None:
        """Says that the first call has compiled and run, in so many seconds."""
        since = time.perf_counter() - self._start
        self.say(f"first step {since:.1f} s after the command, {seconds:.1f} s of them to compile and run it")

    def interval(self, step: int, values: dict[str, float], totals: Any, timing: dict[str, float]) -> None:
        """Moves the bar. `totals` are the metrics' sums (tasks/metric.py) on the host."""
        self._timing = timing or self._timing
        self._since_epoch = totals if self._since_epoch is None else self._since_epoch.merge(totals)
        if self._progress:
            shown = (f"{name} {value:.4f}" for name, value in values.items() if name != "learning_rate")
            text = "  ".join([*list(shown)[:2], self._rate()])
            self._progress.update(self._task, completed=step, values=text)

    def _rate(self) -> str:
        if not self._timing:
            return ""
        rate = f"{self._timing[EXAMPLES_PER_SECOND]:,.0f} {self.examples}/s"
        # The devices idle only when the host never waits for them.
        starved = self._timing["data_wait"] > 0.2 and self._timing["device_wait"] < 0.1
        return rate + (f", {self._timing['data_wait']:.0%} of the time waiting for data" if starved else "")

    def epoch(self, epoch: float, num_epochs: float, validation: dict[str, float]) -> None:
        """The line that an evaluation leaves."""
        parts = [f"epoch {epoch:.1f}/{num_epochs:.1f}" if num_epochs >= 1 else f"epoch {epoch:.3f}/{num_epochs:.3f}"]
        train = {} if self._since_epoch is None else self._since_epoch.compute()
        self._since_epoch = None
        after_resume = f"train since step {self._resumed_at:,}" if self._resumed_at else "train"
        self._resumed_at = 0
        for name, values in ((after_resume, train), ("validation", validation)):
            shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
            parts += [f"{name}  {shown}"] if shown else []
        self.say(" | ".join([*parts, self._rate()] if self._timing else parts))

    def stop_progress(self) -> None:
        """Takes the bar away."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, the last act of a run that finished."""
        if self.tensorboard:
            self.tensorboard.finished()
        self.flush()
        content = to_json(summary, indent=2) + "\n"
        self._writing(partial(write_atomically, self._workdir / "summary.json", content))
        if self._trackers:
            self._trackers.close(summary)

    def close(self) -> None:
        """Takes the bars away and closes the files."""
        self.stop_progress()
        if self._work:
            self._work.stop()
        if self.tensorboard:
            self.tensorboard.close()
        if self._trackers:
            self._trackers.close(None)


def _line(row: dict[str, Any]) -> str:
    return to_json(row) + "\n"


def number_in_words(value: float | None, form: str = ".4f") -> str:
    """A number for people; None is one that is not finite."""
    return "not finite" if value is None or not math.isfinite(value) else format(value, form)


def splits_table(console: Console, title: str, splits: dict[str, dict[str, Any]]) -> None:
    """A row a split: its size and its metrics."""
    table = Table(title=title, title_justify="left")
    names = sorted({name for values in splits.values() for name in values} - {"num_examples"})
    for column in ("split", "examples", *names):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, values in splits.items():
        table.add_row(split, f"{values['num_examples']:,}", *(number_in_words(values.get(name)) for name in names))
    console.print(table)


def closing_table(console: Console, summary: dict[str, Any]) -> None:
    """The table that ends a run, from its summary."""
    splits_table(console, f"{summary['experiment']}: {summary['weights']}", summary["splits"])
    seconds = summary["seconds"]
    if "stopped" in summary:
        console.print(f"stopped early: {summary['stopped']}")
    console.print(
        f"{summary['step']:,} steps, {summary['epochs']:g} epochs, {summary['num_params']:,} parameters; "
        f"training {seconds['train']:.1f} s "
        f"({summary[EXAMPLES_PER_SECOND]:,.0f} {summary.get('examples', 'images')}/s), "
        f"set-up {seconds['setup']:.1f} s, compiling {seconds['compile']:.1f} s, "
        f"evaluating {seconds['evaluate']:.1f} s, saving {seconds['save']:.1f} s",
    )
