"""What several processes of one run cost each other: python -m benchmarks.processes [--processes 1 2 4] [--repeats 5]

On this machine, each process with one CPU device, by `jaxcnn/hosts/job.py`: beginning, agreeing, asking whether to
stop, telling all what process 0 has read, and a step of the digits' network. On few cores the processes take turns:
what is seen is what the host's part costs, not how training scales.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Others, Report, Table, begin, make_parser, say, set_up

MEGABYTES = 100  # that process 0 tells the others, as a checkpoint that is restored
COLUMNS = ("begin_s", "agree_ms", "ask_us", "tell_s", "step_ms")


def median(call: Callable[[], Any], repeats: int) -> float:
    """Seconds."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measure(file: Path, repeats: int) -> None:
    """In one process of the job; process 0 writes what it found."""
    import jax
    import numpy as np
    from absl import flags

    from jaxcnn.config.command_line import load_config
    from jaxcnn.hosts import job
    from jaxcnn.training.build import build

    start = time.perf_counter()
    with job.joined("auto"):
        jax.devices()
        found = {"begin_s": time.perf_counter() - start}
        found["agree_ms"] = 1000 * median(lambda: job.tell_all(1), 20)
        found["ask_us"] = 1e6 * median(lambda: [job.asked_to_stop() for _ in range(1000)], 5) / 1000
        content = np.zeros(MEGABYTES << 20, np.uint8)
        found["tell_s"] = median(lambda: job.from_first(lambda: content), 3)
        argv = ["processes", "--config=experiments/digits.py"]
        config, _ = load_config(argv, flag_values=flags.FlagValues(), unread=False)
        run, feed = build(config)
        replicate = run.parallel.replicate
        state, totals = replicate(run.init()), replicate(run.learning.metrics.empty())
        key, data = replicate(jax.random.key(0)), feed.data("train")

        def steps(count: int = 20) -> None:
            nonlocal state, totals
            for step in range(count):
                state, totals, ticket = run.calls.train_call(state, totals, data, feed.inputs(step, 1), key)
            jax.block_until_ready(ticket)

        steps()
        found["step_ms"] = 1000 * median(steps, repeats) / 20
        if job.is_first():
            file.write_text(json.dumps(found))


def of_job(number: int, repeats: int) -> dict[str, float]:
    """What process 0 of a job of so many found."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.processes", f"--measure={file}", f"--repeats={repeats}"]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAXCNN_COORDINATOR": f"127.0.0.1:{free.getsockname()[1]}",
            "JAXCNN_NUM_PROCESSES": str(number),
        }
        free.close()
        processes = [
            subprocess.Popen(command, env={**environment, "JAXCNN_PROCESS_ID": str(index)}, stdout=subprocess.DEVNULL)
            for index in range(number)
        ]
        for process in processes:
            if process.wait():
                raise SystemExit(f"a job of {number} processes failed")
        found: dict[str, float] = json.loads(file.read_text())
        return found


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--measure", type=Path)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.repeats)
        return
    set_up(options, torch_here=False)
    report, others = Report(options.json, "processes"), Others()
    table = Table(processes=10, **dict.fromkeys(COLUMNS, 10))
    for number in options.processes:
        found = of_job(number, options.repeats)
        table.row(str(number), *(f"{found[name]:.3g}" for name in COLUMNS))
        report.add(what="processes", processes=number, **found)
    say(f"tell: {MEGABYTES} MiB")
    others.warn()
    report.finish()


if __name__ == "__main__":
    begin(main)
