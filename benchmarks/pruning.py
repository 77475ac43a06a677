"""What pruning costs in accuracy and gains in speed: python -m benchmarks.pruning [--config experiments/digits.py]

Trains an experiment, or takes a finished run of it (--workdir); prunes it to several parts of its channels by the real
command; trains each on; prints test accuracy and the time of prediction beside the whole network's. Times are of the
default device, in turn, as the command measures them. More seeds vary the training and what follows from it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, Table, begin, make_parser, say


def command(module: str, *arguments: object) -> None:
    """Runs a command, quietly. Raises SystemExit with its words where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"jaxcnn.{module}", *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip() or f"jaxcnn.{module} failed")


def accuracy(folder: Path) -> float:
    """The test accuracy of a finished run."""
    return json.loads((folder / "summary.json").read_text())["splits"]["test"]["accuracy"]


def pruned(whole: Path, out: Path, keep: float, options: Any) -> dict[str, Any]:
    """Prunes a run and trains it on; what the command measured, and `accuracy`."""
    given = [f"--{name}={value}" for name in ("by", "ranked", "multiple", "epochs", "learning_rate", "batch_size")
             if (value := getattr(options, name)) is not None]  # fmt: skip
    command("prune", f"--workdir={whole}", f"--out={out}", f"--keep={keep}", *given)
    (experiment,) = out.glob("*.py")
    command("main", f"--config={experiment}", f"--workdir={out}")
    return {**json.loads((out / "compression.json").read_text()), "accuracy": accuracy(out)}


def main() -> None:
    parser = make_parser(__doc__, repeats=0)
    parser.add_argument("--config", default="experiments/digits.py")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the experiment: num_epochs=3")
    parser.add_argument("--workdir", type=Path, help="a finished run, instead of training one a seed")
    parser.add_argument("--keep", default="0.7,0.5,0.35,0.25", help="parts of the channels, comma-separated")
    parser.add_argument("--by", default="l1", help="l1, norm or taylor")
    parser.add_argument("--ranked", help="layer or network")
    parser.add_argument("--multiple", type=int, help="of which layers keep some")
    parser.add_argument("--epochs", type=float, help="after pruning; the run's own")
    parser.add_argument("--learning_rate", type=float, help="the same")
    parser.add_argument("--batch_size", type=int, default=256, help="images that are timed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where runs are kept; none: nowhere")
    options = parser.parse_args()
    keeps = [float(each) for each in options.keep.split(",")]
    if not Path("experiments").is_dir():
        raise SystemExit("run from the project's root, where experiments/ lies")
    report, others, start = Report(options.json, "pruning"), Others(), time.perf_counter()
    found: dict[float, list[dict[str, Any]]] = {keep: [] for keep in keeps}
    whole_accuracies = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for seed in range(options.seeds):
            whole = options.workdir or folder / f"whole-{seed}"
            if not options.workdir:
                overrides = [f"--config.{each}" for each in options.set]
                command("main", f"--config={options.config}", f"--workdir={whole}", f"--config.seed={seed}", *overrides)
            whole_accuracies.append(accuracy(whole))
            for keep in keeps:
                found[keep].append(pruned(whole, folder / f"keep-{keep:g}-{seed}", keep, options))
                report.add(seed=seed, whole=whole_accuracies[-1], **found[keep][-1])
    table = Table(channels=9, parameters=11, multiply_adds=14, times_faster=13, accuracy=14, points_lost=12)
    table.row(1, 1, 1, 1, percent(whole_accuracies), "")
    for keep, rows in found.items():
        ratios = {
            name: statistics.median(row["after"][name] / row["before"][name] for row in rows)
            for name in ("parameters", "multiply_adds", "seconds")
        }
        accuracies = [row["accuracy"] for row in rows]
        lost = 100 * (statistics.fmean(whole_accuracies) - statistics.fmean(accuracies))
        table.row(keep, ratios["parameters"], ratios["multiply_adds"], f"{1 / ratios['seconds']:.2f}",
                  percent(accuracies), f"{lost:.2f}")  # fmt: skip
    report.finish()
    say(f"{options.seeds} seeds; {(time.perf_counter() - start) / 60:.1f} minutes")
    others.warn()


def percent(values: list[float]) -> str:
    """Mean, and standard deviation where there are several, times 100."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


if __name__ == "__main__":
    begin(main)
