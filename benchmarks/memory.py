"""What --dry_run predicts a device needs, beside what it took: python -m benchmarks.memory [--models resnet20]

Each model in a process of its own, on the bundled digits at the model's image size, with and without donating the
state. Taken: on a GPU the device's own peak; on a CPU the peak of the process's memory over what it held once all was
compiled, which counts what XLA's runtime keeps to itself too.
"""

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import Report, Table, begin, make_parser, on_gpu, say, set_up

MODELS = {  # name: (image size, batch on a CPU, batch on a GPU, further overrides)
    "lenet5": (28, 512, 4096, ()),
    "resnet20": (32, 128, 1024, ()),
    "resnet18": (32, 32, 512, ()),
    "resnet50": (64, 16, 256, ()),
}


def measure_here(argv: list[str], *, donate: bool) -> dict[str, float]:
    """MiB: predicted, and taken by three steps in this process."""
    import jax
    from absl import flags

    from jaxcnn.config.command_line import load_config
    from jaxcnn.training.build import build
    from jaxcnn.training.preview import step_cost

    config, _ = load_config(["", *argv], flag_values=flags.FlagValues())
    run, feed = build(config)
    _, predicted = step_cost(run)
    train_call = run.calls.train_call if donate else jax.jit(run.calls.train_call.__wrapped__)  # type: ignore[attr-defined]
    key = jax.random.key(0)

    def steps(count: int) -> None:
        state, totals, data = run.init(), run.learning.metrics.empty(), feed.data()
        state, totals = run.parallel.replicate((state, totals))
        for step in range(count):
            state, totals, _ = train_call(state, totals, data, feed.inputs(step, 1), key)
        jax.block_until_ready((state, totals))

    device = run.parallel.devices[0]
    statistics = device.memory_stats()
    if statistics:
        steps(3)
        taken = device.memory_stats()["peak_bytes_in_use"]
    else:
        steps(1)  # compiles
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        steps(3)
        taken = _status("VmHWM") - before
    feed.close()
    return {"predicted": predicted.peak / 2**20, "taken": taken / 2**20}


def _status(name: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--one", choices=MODELS, help="measure this model in this process, and print JSON")
    parser.add_argument("--not_donated", action="store_true", help="with --one: the state is copied")
    options = parser.parse_args()
    if options.one:
        set_up(options)
        size, cpu_batch, gpu_batch, overrides = MODELS[options.one]
        argv = ["--config=experiments/digits.py", f"--config.data.image_size={size}",
                f"--config.model.name={options.one}", "--config.model.dropout_rate=0", "--config.steps_per_call=1",
                f"--config.batch_size={gpu_batch if on_gpu() else cpu_batch}", *overrides]  # fmt: skip
        print(json.dumps(measure_here(argv, donate=not options.not_donated)))
        return
    report = Report(options.json, "memory")
    table = Table(model=12, state=12, predicted_MiB=14, taken_MiB=12, taken_by_predicted=19)
    for name in options.models.split(","):
        for donated in (True, False):
            found = in_subprocess(name, donated)
            state = "donated" if donated else "copied"
            if found is None:
                say(f"{name}, {state}: failed")
                continue
            table.row(name, state, found["predicted"], found["taken"], found["taken"] / found["predicted"])
            report.add(model=name, donated=donated, mebibytes=found)
    report.finish()


def in_subprocess(name: str, donated: bool) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name, *([] if donated else ["--not_donated"])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        say(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    begin(main)
