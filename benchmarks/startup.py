"""How long commands take that compute little: python -m benchmarks.startup [digits.py] [--commands predict,report]

From the command to its first step, cold and with a warm compilation cache; then whole commands, warm, of a digits run
made for them: `predict` on one image, `evaluate`, `report`, and `--dry_run` of ImageNet, wall-clock and CPU seconds.

Each repeat starts the real command twice with an empty cache folder: cold (imports warm, since the files were read
before), then again in a new workdir. Seconds from the start of the process to the line that tells of the first step,
and of these the ones that the line counts as compiling and running it. `--help`, and the imports alone, beside them.
"""

import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Others, Report, Table, begin, make_parser, say, set_up

IMPORTS = {"jax": "import jax", "all": "import jaxcnn.main, jaxcnn.training.build, jaxcnn.training.loop"}
# What the first step waits for, apart: seconds of building (data, model), tracing, compiling, and one call.
PIECES = """
import sys, time
start = time.perf_counter()
from absl import flags
from jaxcnn.config.command_line import load_config
from jaxcnn.training.parallel import set_up
from jaxcnn.training.build import build
import jax
marks = [time.perf_counter()]
config, _ = load_config(["", f"--config=experiments/{sys.argv[1]}"], flag_values=flags.FlagValues())
set_up(None, compilation_cache=True)
run, feed = build(config)
parallel = run.parallel
data, inputs = feed.data(), feed.inputs(0, run.calls.steps_per_call)
marks.append(time.perf_counter())
state, totals = parallel.replicate(run.init()), parallel.replicate(run.learning.metrics.empty())
key = parallel.replicate(jax.random.key(config.seed))
jax.block_until_ready(state)
marks.append(time.perf_counter())
lowered = run.calls.train_call.lower(state, totals, data, inputs, key)
marks.append(time.perf_counter())
compiled = lowered.compile()
marks.append(time.perf_counter())
jax.block_until_ready(compiled(state, totals, data, inputs, key))
marks.append(time.perf_counter())
feed.close()
print(*(after - before for before, after in zip([start, *marks], marks)))
"""
PIECE_NAMES = ("import", "data", "init", "trace", "compile", "first step")


def first_step_seconds(experiment: str, workdir: Path, cache: Path) -> tuple[float, float, float]:
    """Runs the command until its first step; returns the seconds, those of compiling and running it, and of CPU."""
    command = [sys.executable, "-m", "jaxcnn.main", f"--config=experiments/{experiment}", f"--workdir={workdir}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAXCNN_CACHE_DIR": str(cache)}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("first step"):
            break
    else:
        raise SystemExit(f"{' '.join(command)} took no step")
    seconds = time.perf_counter() - start
    process.kill()
    _, _, usage = os.wait4(process.pid, 0)
    cpu = usage.ru_utime + usage.ru_stime
    return seconds, float(re.findall(r"([\d.]+) s", line)[1]), cpu


def command_seconds(*arguments: str) -> float:
    """Of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def commands_of(folder: Path) -> dict[str, list[str]]:
    """Whole commands by name, of a run and an image in `folder`."""
    run, image = f"--workdir={folder / 'run'}", str(folder / "digit.png")
    dry_run = ["--config=experiments/imagenet_resnet50.py", f"--workdir={folder / 'imagenet'}", "--dry_run"]
    return {
        "predict": ["-m", "jaxcnn.predict", run, image],
        "evaluate": ["-m", "jaxcnn.evaluate", run, f"--output={folder / 'evaluation'}"],
        "report": ["-m", "jaxcnn.report", run, f"--output={folder / 'report'}"],
        "imagenet_dry_run": ["-m", "jaxcnn.main", *dry_run],
    }


def prepare_run(folder: Path, environment: dict[str, str]) -> None:
    """A finished run of the digits, and an image of one."""
    from PIL import Image
    from sklearn.datasets import load_digits

    command = ["-m", "jaxcnn.main", "--config=experiments/digits.py", f"--workdir={folder / 'run'}"]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment)
    Image.fromarray((load_digits().images[0] * 15).astype("uint8")).save(folder / "digit.png")


def wall_and_cpu(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(wall-clock, CPU) seconds of a Python process, and of those that it starts."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_commands(names: list[str], repeats: int, report: Report) -> None:
    """A row a command, after one run of each that fills the caches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "JAXCNN_CACHE_DIR": str(folder / "cache")}
        prepare_run(folder, environment)
        table = Table(command=16, wall_s=8, cpu_s=8, cpu_range=16)
        for what in names:
            arguments = commands_of(folder)[what]
            times = [wall_and_cpu(arguments, environment) for _ in range(repeats + 1)][1:]
            wall, cpu = zip(*times, strict=True)
            middle = statistics.median
            table.row(what, f"{middle(wall):.2f}", f"{middle(cpu):.2f}", f"{min(cpu):.2f}..{max(cpu):.2f}")
            report.add(what=what, wall=wall, cpu=cpu)


def pieces(experiment: str, cache: Path) -> list[float]:
    """Seconds of each of PIECE_NAMES, in a process of its own."""
    environment = {**os.environ, "JAXCNN_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PIECES, experiment], capture_output=True, text=True, env=environment, check=True
    )
    return [float(each) for each in done.stdout.split()[-len(PIECE_NAMES) :]]


def main() -> None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("experiments", nargs="*", default=["digits.py"])
    known = list(commands_of(Path()))
    parser.add_argument("--commands", default=",".join(known), help="whole commands to time; empty: none")
    options = parser.parse_args()
    commands = [each for each in options.commands.split(",") if each]
    if unknown := set(commands) - set(known):
        parser.error(f"--commands: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    set_up(options)
    report, others = Report(options.json, "startup"), Others()
    middle = statistics.median
    for name, arguments in (
        ("--help", ("-m", "jaxcnn.main", "--help")),
        *((f"import {name}", ("-c", code)) for name, code in IMPORTS.items()),
    ):
        times = [command_seconds(*arguments) for _ in range(options.repeats + 1)][1:]
        say(f"{name:<16}{middle(times):8.2f} s ({min(times):.2f}..{max(times):.2f})")
        report.add(what=name, seconds=times)
    table = Table(experiment=16, cold_s=8, of_it_step=11, cpu_s=8, warm_s=8, of_it_step_=11, cpu_s_=8, warm_by_cold=13)
    for experiment in options.experiments:
        cold, warm = [], []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for number, times in enumerate((cold, warm)):
                    times.append(first_step_seconds(experiment, Path(folder) / f"run{number}", Path(folder) / "cache"))
        medians = [middle(each[i] for each in times) for times in (cold, warm) for i in (0, 1, 2)]
        share = middle(b[0] / a[0] for a, b in zip(cold, warm, strict=True))
        table.row(experiment, *(f"{value:.2f}" for value in medians), f"{share:.2f}")
        report.add(what="first step", experiment=experiment, cold=cold, warm=warm, ratio=share)
        with tempfile.TemporaryDirectory() as folder:
            split = {name: pieces(experiment, Path(folder)) for name in ("cold", "warm")}
        for name, values in split.items():
            words = "  ".join(f"{what} {value:.2f}" for what, value in zip(PIECE_NAMES, values, strict=True))
            say(f"  {name}, apart: {words} s")
        report.add(what="pieces", experiment=experiment, names=PIECE_NAMES, **split)
    measure_commands(commands, options.repeats, report)
    report.finish()
    others.warn()


if __name__ == "__main__":
    begin(main)
