"""What --dry_run predicts a device needs, beside what it took: python -m benchmarks.memory [--models resnet20]

Each model in a process of its own, on the bundled digits at the model's image size, with and without donating the
state, and PyTorch's eager step of the same network and batch where it is installed. Taken: on a GPU the device's own
peak; on a CPU what the process held of state and data, and by how much three steps made it grow at their peak.
"""

import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Report, Table, begin, has_torch, make_parser, on_gpu, say, set_up

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
    state, totals = run.parallel.replicate((run.init(), run.learning.metrics.empty()))
    data = feed.data()

    def steps(count: int) -> None:
        nonlocal state, totals
        for step in range(count):
            state, totals, _ = train_call(state, totals, data, feed.inputs(step, 1), key)
        jax.block_until_ready((state, totals))

    statistics = run.parallel.devices[0].memory_stats()
    steps(1)  # compiles
    if statistics:
        steps(3)
        taken = run.parallel.devices[0].memory_stats()["peak_bytes_in_use"]
    else:
        taken = grown(lambda: steps(3)) + predicted.arguments + predicted.other_splits
    feed.close()
    expected = predicted.peak + (0 if donate else predicted.aliased)
    return {"predicted": expected / 2**20, "taken": taken / 2**20}


def measure_torch(name: str) -> dict[str, float]:
    """MiB taken by three of PyTorch's eager steps in this process: `taken`."""
    from benchmarks import torch_peers
    from benchmarks.measure import set_up_torch
    from benchmarks.step import CASES, random_batch

    set_up_torch()
    size, batch, *_ = MODELS[name]
    case = next(each for each in CASES if each.model == name)
    case = dataclasses.replace(case, image_shape=(size, size, 1), num_classes=10, stem="small")
    arrays = random_batch(case, batch)
    model = torch_peers.make(name, 10, stem="small")
    step = torch_peers.Step(model, arrays["image"].repeat(_channels(model), axis=-1), arrays["label"],
                            precision="f32", compiled=False)  # fmt: skip
    for _ in range(2):
        step.train()
    parameters = sum(each.numel() * each.element_size() for each in model.parameters())
    taken = grown(lambda: [step.train() for _ in range(3)]) + 3 * parameters  # with gradients and momentum
    return {"taken": taken / 2**20}


def _channels(model: Any) -> int:
    """Of the images that a PyTorch model takes."""
    return next(each.shape[1] for each in model.parameters() if each.ndim == 4)


def grown(call: Callable[[], Any]) -> int:
    """Bytes by which this process's memory grew in a call, at its peak, over what it held before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--one", choices=MODELS, help="measure this model in this process, and print JSON")
    parser.add_argument("--not_donated", action="store_true", help="with --one: the state is copied")
    parser.add_argument("--torch", action="store_true", help="with --one: PyTorch's step")
    options = parser.parse_args()
    if options.one and options.torch:
        set_up(options, torch_here=False)
        print(json.dumps(measure_torch(options.one)))
        return
    if options.one:
        set_up(options, torch_here=False)
        size, cpu_batch, gpu_batch, overrides = MODELS[options.one]
        argv = ["--config=experiments/digits.py", f"--config.data.image_size={size}",
                f"--config.model.name={options.one}", "--config.model.dropout_rate=0", "--config.steps_per_call=1",
                f"--config.batch_size={gpu_batch if on_gpu() else cpu_batch}", *overrides]  # fmt: skip
        print(json.dumps(measure_here(argv, donate=not options.not_donated)))
        return
    report = Report(options.json, "memory")
    table = Table(model=12, side=12, predicted_MiB=14, taken_MiB=12, taken_by_predicted=19)
    sides: dict[str, tuple[str, ...]] = {"donated": (), "copied": ("--not_donated",)}
    if has_torch() and not on_gpu():
        sides["PyTorch"] = ("--torch",)
    for name in options.models.split(","):
        for side, flags in sides.items():
            found = in_subprocess(name, flags)
            if found is None:
                say(f"{name}, {side}: failed")
                continue
            predicted = found.get("predicted")
            table.row(name, side, predicted, found["taken"], predicted and found["taken"] / predicted)
            report.add(model=name, side=side, mebibytes=found)
    report.finish()


def in_subprocess(name: str, flags: Sequence[str]) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        say(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    begin(main)
