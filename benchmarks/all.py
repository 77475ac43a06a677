"""Every benchmark that makes sense on this machine, the most telling first: python -m benchmarks.all [--minutes 10]

--short: what tells most of a GPU within some 8 minutes, which benchmarks/gpu.sh runs.
Each runs in a process of its own and writes DIR/NAME.json after each row, so a kill loses nothing. With --minutes what
runs out of time is stopped, and the same command again, with the same DIR, goes on with those that have not finished.
Needs no network. Without PyTorch its columns stay empty; without prepared sets the rows that need them are skipped, and
a benchmark that needs a package which is not here is left out.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import LEFT_OUT, say

SECONDS_TO_START = 30  # less than this left: a benchmark is not begun


@dataclasses.dataclass(frozen=True)
class Entry:
    """A benchmark, and the minutes after which it is stopped even if there is time: others wait."""

    name: str  # of its JSON
    arguments: tuple[str, ...]
    minutes: float


GPU = (
    Entry("step_94", ("step", "--models", "airbench94", "--forward", "--precisions", "bf16,fp16", "--profile"), 6),
    Entry("accuracy_94_muon", ("accuracy", "--recipe", "94_muon", "--peer", "--compiled", "--seeds", "10"), 9),
    Entry("step", ("step", "--models", "resnet50,resnet18,resnet20,lenet5", "--profile"), 9),
    Entry("accuracy_94", ("accuracy", "--recipe", "94", "--peer", "--compiled", "--seeds", "10"), 9),
    Entry("step_scan", ("step", "--models", "airbench94,resnet20,lenet5", "--scan", "16", "--no_compile"), 4),
    Entry("input", ("input",), 4),
    Entry("augment", ("augment",), 4),
    Entry("seeds", ("seeds", "--models", "cnn,lenet5,resnet20"), 4),
    Entry("startup", ("startup", "digits.py", "cifar10.py"), 4),
    Entry("memory", ("memory",), 4),
    Entry("overhead", ("overhead",), 4),
    Entry("telemetry", ("telemetry",), 4),
)
# Within 8 minutes. PyTorch's max-autotune compiles for minutes: ours, or PyTorch eager, has a row before that.
GPU_SHORT = (
    Entry("short_94_muon", ("accuracy", "--recipe", "94_muon", "--peer", "--compiled", "--seeds", "5"), 3.5),
    Entry("short_resnets", ("step", "--models", "resnet50,resnet18", "--no_compile", "--repeats", "5"), 1.5),
    Entry("short_resnet50_compiled", ("step", "--models", "resnet50", "--repeats", "5"), 2),
    Entry("short_scan", ("step", "--models", "airbench94", "--scan", "16", "--no_compile", "--repeats", "3",
                         "--profile"), 1.5),
    Entry("short_input", ("input", "--what", "cifar10", "--seconds", "1"), 1),
    Entry("short_seeds", ("seeds", "--models", "resnet20", "--repeats", "3"), 1.5),
    Entry("short_augment", ("augment", "--size", "32", "--repeats", "3"), 1.5),
    Entry("short_resnet18_compiled", ("step", "--models", "resnet18", "--repeats", "5"), 1.5),
    Entry("short_overhead", ("overhead", "--repeats", "3"), 1.5),
)  # fmt: skip
# What makes each of these a matter of seconds, on a CPU too: to see that all of it runs.
SMALLEST = {
    "accuracy": ("--max_steps", "1", "--seeds", "1", "--set", "batch_size=8", "eval_batch_size=8", "eval_tta=none"),
    "step": ("--models", "lenet5", "--batch", "2", "--repeats", "1", "--scan", "0", "--no_compile"),
    "input": ("--seconds", "0.05", "--batch", "8", "--workers", "1", "--repeats", "1", "--model", "cnn"),
    "seeds": ("--models", "lenet5", "--batch", "2", "--seeds", "2", "--repeats", "1"),
    "augment": ("--pieces", "flip", "--batch", "2", "--no_step", "--repeats", "1"),
    "overhead": ("--repeats", "1", "--steps", "100"),
}
READ_CIFAR10 = ("accuracy", "input")  # and take --data
CPU = (
    Entry("step", ("step", "--forward"), 30),
    Entry("step_scan", ("step", "--models", "lenet5,resnet20,airbench94", "--scan", "2", "--no_compile",
                        "--repeats", "3"), 30),
    Entry("step_zoo", ("step", "--models", "zoo", "--no_compile", "--repeats", "3"), 15),
    Entry("zoo", ("zoo",), 30),
    Entry("overhead", ("overhead",), 10),
    Entry("telemetry", ("telemetry",), 10),
    Entry("startup", ("startup", "digits.py"), 5),
    Entry("input", ("input",), 10),
    Entry("augment", ("augment", "--size", "32"), 10),
    Entry("seeds", ("seeds",), 10),
    Entry("memory", ("memory",), 10),
    Entry("devices", ("devices",), 30),
    Entry("accuracy_94_muon", ("accuracy", "--recipe", "94_muon", "--peer", "--seeds", "1"), 240),
    Entry("accuracy_93", ("accuracy", "--recipe", "93", "--peer", "--seeds", "3"), 480),
)  # fmt: skip


def run(entry: Entry, out: Path, seconds: float) -> str:
    """Runs one for at most so long; returns how it ended."""
    command = [sys.executable, "-m", f"benchmarks.{entry.arguments[0]}", *entry.arguments[1:]]
    command += ["--json", str(out / f"{entry.name}.json")]
    say(f"\n== {' '.join(command[1:])}")
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "stopped: out of time"
    finally:
        _end(process)
    ends = {0: "finished", LEFT_OUT: "left out: it needs what is not installed here"}
    return ends.get(code, f"failed with exit code {code}")


def _end(process: subprocess.Popen) -> None:
    """Ends it and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        time.sleep(0.5)
    process.wait()


def entries_here() -> tuple[Entry, ...]:
    # Asked in a process of its own: this one must not hold the accelerator's memory.
    code = "import jax; print(jax.default_backend())"
    place = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()[-1:]
    return GPU if place == ["gpu"] else CPU


def with_options(entry: Entry, options: argparse.Namespace) -> Entry:
    """The entry with what --data and --smallest add to it; the last of an argument counts."""
    name = entry.arguments[0]
    data = ("--data", options.data) if options.data and name in READ_CIFAR10 else ()
    smallest = SMALLEST[name] if options.smallest else ()
    return dataclasses.replace(entry, arguments=(*entry.arguments, *data, *smallest))


def finished(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()).get("finished"))
    except (OSError, ValueError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the JSON files")
    parser.add_argument("--minutes", type=float, help="for all together (default: no limit)")
    parser.add_argument("--only", help="comma-separated names, in the order to run them")
    parser.add_argument("--short", action="store_true", help="what tells most of a GPU, within 8 minutes")
    parser.add_argument("--smallest", action="store_true", help="with --short: seconds each, only to see that all runs")
    parser.add_argument("--data", help="data.name of CIFAR-10, e.g. npz:FILE (default: tfds:cifar10)")
    parser.add_argument("--list", action="store_true", help="say what would run, and stop")
    options = parser.parse_args()
    if options.smallest and not options.short:
        parser.error("--smallest goes with --short")
    end = time.monotonic() + 60 * (options.minutes or 1e6)
    entries = [with_options(entry, options) for entry in (GPU_SHORT if options.short else entries_here())]
    if options.only:
        names = options.only.split(",")
        unknown = set(names) - {entry.name for entry in entries}
        if unknown:
            raise SystemExit(f"--only: {', '.join(sorted(unknown))} is not among {', '.join(e.name for e in entries)}")
        entries = [entry for name in names for entry in entries if entry.name == name]
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for entry in entries:
        left = end - time.monotonic()
        if options.list:
            outcomes[entry.name] = " ".join(entry.arguments)
        elif finished(options.out / f"{entry.name}.json"):
            outcomes[entry.name] = "finished before"
        elif left < SECONDS_TO_START:
            outcomes[entry.name] = "not begun: out of time"
        else:
            outcomes[entry.name] = run(entry, options.out, min(left, 60 * entry.minutes))
    say("")
    for name, outcome in outcomes.items():
        say(f"{name:<24}{outcome}")


if __name__ == "__main__":
    main()
