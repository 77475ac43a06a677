"""What a study costs beside its runs: python -m benchmarks.sweep [--runs 100] [--epochs 40] [--finished 10000]

Runs of the digits that differ in the seed, one after the other in one process, with a warm compilation cache: the
study's seconds, those that its loops spent training, evaluating and saving, and what is left. Then how long the command
takes on a study whose runs have all finished (copies of one run's summary), and lists it.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, begin, make_parser, say, set_up

LOOP = ("train", "evaluate", "save")


def command(*arguments: str) -> float:
    """Seconds of a sweep, as a process."""
    start = time.perf_counter()
    line = [sys.executable, "-m", "jaxcnn.sweep", *arguments]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def summaries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in folder.glob("runs/*/*/summary.json")]


def measure_overhead(folder: Path, options: list[str], *, runs: int, report: Report) -> None:
    """Of a study of so many seeds, after one that fills the cache."""
    command(*options, "--seeds=1", f"--workdir={folder / 'first'}")
    seconds = command(*options, f"--seeds={runs}", f"--workdir={folder / 'study'}")
    parts = {
        name: sum(each["seconds"][name] for each in summaries(folder / "study")) for name in (*LOOP, "setup", "compile")
    }
    training, loop = parts["train"], sum(parts[name] for name in LOOP)
    say(f"{runs} runs: {seconds:.1f} s, of which the loops had {loop:.1f} s (training {training:.1f} s)")
    say(f"beside the loops: {seconds - loop:.1f} s = {(seconds - loop) / loop:.1%} of theirs")
    say(f"beside training: {seconds - training:.1f} s = {(seconds - training) / training:.1%} of it")
    report.add(what="overhead", runs=runs, seconds=seconds, **parts, ratio=(seconds - loop) / loop)


def measure_finished(folder: Path, *, runs: int, report: Report) -> None:
    """Of the command on so many runs that have finished, and of listing them."""
    from etils import epath

    from jaxcnn.ablation.study import Study, read_plan, write_plan
    from jaxcnn.ablation.variation import Axis, grid

    base, experiment = read_plan(epath.Path(folder / "first"))
    variants = grid(base.config, [Axis("batch_size", tuple(range(8, 108)))])
    study = Study(base.config, variants, seeds=tuple(range(max(1, runs // len(variants)))))
    place, summary = folder / "finished", json.dumps(summaries(folder / "first")[0])
    write_plan(epath.Path(place), study, experiment=experiment)
    for run in study.runs():
        (place / run.folder).mkdir(parents=True)
        (place / run.folder / "summary.json").write_text(summary)
    count = len(study.variants) * len(study.seeds)
    for what, more in (("the same command again", []), ("--dry_run", ["--dry_run"])):
        seconds = command(f"--workdir={place}", *more)
        say(f"{count:,} finished runs, {what}: {seconds:.1f} s")
        report.add(what=what, runs=count, seconds=seconds)


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--finished", type=int, default=10_000)
    options = parser.parse_args()
    set_up(options)
    report, others = Report(options.json, "sweep"), Others()
    base = ["--config=experiments/digits.py", f"--config.num_epochs={options.epochs:g}"]
    with tempfile.TemporaryDirectory(prefix="jaxcnn-sweep-") as folder:
        measure_overhead(Path(folder), base, runs=options.runs, report=report)
        measure_finished(Path(folder), runs=options.finished, report=report)
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
