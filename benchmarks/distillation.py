"""A student alone and taught: python -m benchmarks.distillation [--seeds 5] [--student mnist.py:mlp --teacher mnist.py]

Trains the teacher once, then the same student three ways, a seed of each in turn: alone; with the teacher, by the
defaults of config.distill; and by the teacher's answers alone (alpha 1). Prints test accuracies of the last weights,
mean ± standard deviation, the mean of the seeds' own differences to `alone` ± its standard error, and the seconds of a
run.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.accuracy import OurRuns, describe
from benchmarks.measure import Others, Report, Table, begin, in_turn, make_parser, say, set_up

ROOT = Path(__file__).resolve().parents[1]
ALONE = "alone"


class Student:
    """A way of training the student; called, the next seed's run. Its runs are kept."""

    def __init__(self, experiment: str, epochs: float | None, options: list[str]):
        of_length = [] if epochs is None else [f"--config.num_epochs={epochs}"]
        self._runs = OurRuns([f"--config={experiment}", *of_length, *options])
        self.results: list[dict[str, float]] = []

    def __call__(self) -> float:
        self.results.append(self._runs(len(self.results)))
        return self.results[-1]["seconds"]


def train_teacher(experiment: str, epochs: float | None, folder: str) -> None:
    """Trains a run in a folder, as its command does."""
    from jaxcnn.main import main

    of_length = [] if epochs is None else [f"--config.num_epochs={epochs}"]
    argv = ["main", f"--config={experiment}", f"--workdir={folder}", "--config.tensorboard=False", *of_length]
    if main(argv, time.perf_counter()):
        raise SystemExit("the teacher's run failed")


def gain(results: list[dict[str, float]], alone: list[dict[str, float]]) -> tuple[float, float]:
    """(mean, standard error) of the seeds' own differences in accuracy."""
    differences = [{"accuracy": a["accuracy"] - b["accuracy"]} for a, b in zip(results, alone, strict=True)]
    mean, _, error = describe(differences)
    return mean, error


def main() -> None:
    parser = make_parser(__doc__, repeats=0)
    parser.add_argument("--seeds", type=int, default=5, help="of the student, each way")
    parser.add_argument("--teacher", default="digits.py", help="an experiment")
    parser.add_argument("--student", default="distill_digits.py:alone", help="an experiment, on the teacher's data")
    parser.add_argument("--epochs", type=float, help="of teacher and student (default: the experiments' own)")
    options = parser.parse_args()
    set_up(options, torch_here=False)
    report, others = Report(options.json, "distillation"), Others()
    experiments = [f"{ROOT}/experiments/{name}" for name in (options.teacher, options.student)]
    with tempfile.TemporaryDirectory() as folder:
        train_teacher(experiments[0], options.epochs, folder)
        taught = [f"--config.distill.teacher={folder}"]
        ways: dict[str, Any] = {
            name: Student(experiments[1], options.epochs, options_of_it)
            for name, options_of_it in (
                (ALONE, []),
                ("taught", taught),
                ("its answers alone", [*taught, "--config.distill.alpha=1.0"]),
            )
        }
        in_turn(ways, options.seeds)
    table = Table(student=20, accuracy=18, gain=18, seconds=9)
    for name, student in ways.items():
        mean, spread, _ = describe(student.results)
        more, error = gain(student.results, ways[ALONE].results)
        seconds = statistics.median(each["seconds"] for each in student.results)
        differs = "" if name == ALONE else f"{100 * more:+.2f} ± {100 * error:.2f}"
        table.row(name, f"{100 * mean:.2f} ± {100 * spread:.2f} %", differs, f"{seconds:.1f}")
        report.add(student=name, results=student.results, gain=more, gain_standard_error=error)
    say(f"n = {options.seeds} seeds; the teacher is one run")
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
