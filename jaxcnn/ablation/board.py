"""What a terminal shows while a study runs: one bar over its runs, how long the rest may take, and what has failed."""

import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxcnn.ablation.running import Failure, Standing, outcome_of, seconds_of
from jaxcnn.ablation.study import StudyRun

LOOKING = 0.05  # the share of the time that may pass with looking at what others have done


class Board:
    """Looks into the folder, and tells what is new there."""

    def __init__(self, standing: Standing, folder: Path, console: Console, *, workers: int):
        self.standing = standing
        self._folder, self._console, self._workers = folder, console, workers
        self._next_look = 0.0
        self._progress = Progress(
            TextColumn("runs"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[rest]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=2,
            disable=not console.is_terminal,
        )
        total = len(standing.finished) + len(standing.failed) + len(standing.left)
        self._task = self._progress.add_task("runs", total=total, rest="")
        self._progress.start()
        self._move()

    def look(self, *, now: bool = False) -> None:
        """Tells of runs that have ended since the last look, by whomever. It may skip a look, but not one `now`."""
        began = time.monotonic()
        if began < self._next_look and not now:
            return
        left = []
        for run in self.standing.left:
            outcome = outcome_of(self._folder / run.folder)
            if outcome is None:
                left.append(run)
            elif isinstance(outcome, Failure):
                self.standing.failed[run] = outcome.line
                if self._console.is_terminal:  # elsewhere the last lines are enough
                    self._console.print(f"failed: {words(run)}: {outcome.line}")
            else:
                self.standing.finished[run] = seconds_of(outcome)
                if not self._console.is_terminal:
                    self._console.print(f"finished: {words(run)}, {self.standing.finished[run]:.1f} s")
        self.standing.left = left
        self._move()
        ended = time.monotonic()
        self._next_look = ended + (ended - began) / LOOKING

    def _move(self) -> None:
        ended = len(self.standing.finished) + len(self.standing.failed)
        self._progress.update(self._task, completed=ended, rest=self._rest())

    def _rest(self) -> str:
        seconds = predicted_seconds(self.standing.finished.values(), len(self.standing.left), self._workers)
        return "" if seconds is None else f"about {duration(seconds)} left"

    def close(self) -> None:
        """Takes the bar away."""
        self._progress.stop()


def predicted_seconds(finished: Iterable[float], num_left: int, workers: int) -> float | None:
    """What is left, each run as long as the middle one of those that have finished; None where none has."""
    seconds = list(finished)
    return statistics.median(seconds) * -(-num_left // workers) if seconds else None


def words(run: StudyRun) -> str:
    """A run's name, for people."""
    return f"{run.variant}, seed {run.seed}" + ("" if run.fold is None else f", fold {run.fold}")


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
