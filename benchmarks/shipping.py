"""From a trained run to what is shipped, by the real commands: python -m benchmarks.shipping [--seeds 3]

For each seed: train; prune; train on, alone and taught by the whole network (distillation); quantise the taught one to
int8; export. A row a stage: test accuracy, mean ± standard deviation, its change beside the whole network's of the same
seed, the ONNX file's size, multiply-adds, and milliseconds an image in onnxruntime, one thread, batch 1, of the last
seed, in turn, beside the whole network's.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, Table, begin, make_parser, say
from benchmarks.pruning import accuracy, command, percent

STAGES = ("trained", "pruned", "pruned, taught", "pruned, taught, int8")
ROUNDS, CALLS = 7, 50  # of a file's timing


def chain(folder: Path, seed: int, options: Any) -> list[dict[str, Any]]:
    """The stages of one seed: `accuracy`, `file`, `multiply_adds`, which int8 shares with what it was made of."""
    whole, half, taught = folder / "whole", folder / "half", folder / "taught"
    given = [f"--config.{each}" for each in options.set]
    command("main", f"--config={options.config}", f"--workdir={whole}", f"--config.seed={seed}", *given)
    epochs = [] if options.epochs is None else [f"--epochs={options.epochs}"]
    command("prune", f"--workdir={whole}", f"--out={half}", f"--keep={options.keep}", *epochs)
    (experiment,) = half.glob("*.py")
    teacher = f"--config.distill.teacher={whole}"
    command("main", f"--config={experiment}", f"--workdir={taught}", teacher)  # begins with the pruned weights
    command("main", f"--config={experiment}", f"--workdir={half}")
    int8, facts = folder / "int8.onnx", folder / "int8.json"
    command("quantize", f"--workdir={taught}", int8, f"--json={facts}")
    counts = json.loads((half / "compression.json").read_text())
    stages = []
    for run, when in ((whole, "before"), (half, "after"), (taught, "after")):
        file = folder / f"{run.name}.onnx"
        command("export", f"--workdir={run}", "--to=onnx", file)
        stages.append({"accuracy": accuracy(run), "file": file, "multiply_adds": counts[when]["multiply_adds"]})
    measured = json.loads(facts.read_text())["accuracy"]["int8"]
    return [*stages, {"accuracy": measured, "file": int8, "multiply_adds": counts["after"]["multiply_adds"]}]


def milliseconds(files: list[Path]) -> list[float]:
    """Of a call with one image, one thread, medians of rounds in turn."""
    import numpy as np
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(file), settings) for file in files]
    given = sessions[0].get_inputs()[0]
    image = {given.name: np.zeros((1, *given.shape[1:]), np.uint8)}
    rounds: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for place, session in enumerate(sessions):
            start = time.process_time()
            for _ in range(CALLS):
                session.run(None, image)
            rounds[place].append(1e3 * (time.process_time() - start) / CALLS)
    return [statistics.median(each) for each in rounds]


def main() -> None:
    parser = make_parser(__doc__, repeats=0)
    parser.add_argument("--config", default="experiments/mnist.py:cnn")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the experiment: num_epochs=3")
    parser.add_argument("--keep", type=float, default=0.5, help="part of the channels")
    parser.add_argument("--epochs", type=float, help="after pruning; the run's own")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where all is kept; none: nowhere")
    options = parser.parse_args()
    if not Path("experiments").is_dir():
        raise SystemExit("run from the project's root, where experiments/ lies")
    report, others = Report(options.json, "shipping"), Others()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        seeds = []
        for seed in range(options.seeds):
            seeds.append(chain(folder / str(seed), seed, options))
            report.add(
                seed=seed, accuracy={name: each["accuracy"] for name, each in zip(STAGES, seeds[-1], strict=True)}
            )
        times = milliseconds([each["file"] for each in seeds[-1]])
        table = Table(stage=22, accuracy=14, change=14, megabytes=10, multiply_adds=14, ms=8, times_faster=13)
        for place, name in enumerate(STAGES):
            found = [stages[place] for stages in seeds]
            changes = [stages[place]["accuracy"] - stages[0]["accuracy"] for stages in seeds]
            size = statistics.median(each["file"].stat().st_size for each in found) / 1e6
            table.row(
                name, percent([each["accuracy"] for each in found]), percent(changes) if place else "",
                f"{size:.3f}", found[0]["multiply_adds"], f"{times[place]:.3f}", f"{times[0] / times[place]:.2f}",
            )  # fmt: skip
            report.add(stage=name, megabytes=size, milliseconds=times[place])
    report.finish()
    say(f"{options.seeds} seeds")
    others.warn()


if __name__ == "__main__":
    begin(main)
