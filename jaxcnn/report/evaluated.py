"""A finished run of any task, measured on a split when a section first asks: what the sections of tasks share."""

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxcnn.report.files import RunFiles
from jaxcnn.report.page import table
from jaxcnn.results.finished import FinishedRun, load
from jaxcnn.results.general import Evaluation, evaluate_run
from jaxcnn.run.log import number_in_words
from jaxcnn.training.feed import Progress
from jaxcnn.training.parallel import set_up


@dataclass(frozen=True)
class Evaluated:
    """A run, the flags' values, and what it is worth on the split that they name."""

    run: RunFiles
    values: Any
    progress: Progress

    resamples = 0  # of the bootstrap; none: no intervals

    @cached_property
    def finished(self) -> FinishedRun:
        """The network, and its task."""
        set_up(None, compilation_cache=self.run.saved["config"].get("compilation_cache", True))
        return load(str(self.run.workdir), self.values.step)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Its predictions, and their scores."""
        return evaluate_run(
            self.finished,
            split=self.values.split,
            data_dir=self.values.data_dir,
            progress=self.progress,
            resamples=self.resamples,
        )

    @property
    def of_what(self) -> str:
        """A sentence: which split, how many, which weights."""
        evaluation, count = self.evaluation, len(self.evaluation.places)
        things = self.finished.finished.task.examples
        return f"{evaluation.split.capitalize()} split, n = {count:,} {things}; step {self.finished.step:,}."

    def scores_table(self, *, without: Container[str] = ()) -> str:
        """A row a score, with its interval where it has one. `without`: scores that are shown elsewhere."""
        evaluation = self.evaluation
        units = {metric.name: metric.unit for metric in evaluation.metrics}
        rows = []
        for name, value in evaluation.scores.items():
            if value is None or name in without:
                continue
            interval = evaluation.intervals.get(name)
            between = "" if interval is None else " – ".join(map(number_in_words, interval))
            rows.append([f"{name} ({units[name]})" if units.get(name) else name, number_in_words(value), between])
        return table(["", "value", "95 % interval"], rows, label="scores")
