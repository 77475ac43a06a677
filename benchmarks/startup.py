"""From the command to its first step, cold and with a warm compilation cache: python -m benchmarks.startup

Each repeat starts the real command twice with an empty cache folder: cold (imports warm, since the files were read
before), then again in a new workdir. Seconds from the start of the process to the line that tells of the first step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def first_step_seconds(experiment: str, workdir: Path, cache: Path) -> float:
    """Runs the command until its first step; returns the seconds."""
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
    process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("experiments", nargs="*", default=["digits.py"])
    options = parser.parse_args()
    results = {}
    print(f"{'experiment':<16}{'cold s':>8}{'warm s':>8}{'warm/cold':>11}")
    for experiment in options.experiments:
        cold, warm = [], []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for number, times in enumerate((cold, warm)):
                    times.append(first_step_seconds(experiment, Path(folder) / f"run{number}", Path(folder) / "cache"))
        medians = statistics.median(cold), statistics.median(warm)
        print(f"{experiment:<16}{medians[0]:>8.2f}{medians[1]:>8.2f}{medians[1] / medians[0]:>11.2f}")
        results[experiment] = {"cold": cold, "warm": warm}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
