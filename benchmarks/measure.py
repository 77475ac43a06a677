"""What the benchmarks share: sides measured in turn, waiting for devices, tables, JSON. Knows nothing of models.

A figure of a side is the median over rounds; a ratio is the median of the rounds' own ratios, with the smallest and the
largest beside it, so that a machine that slows down slows both sides of a ratio. PyTorch is a peer where it is
installed, never needed.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_INSTALLED = "not installed"
LEFT_OUT = 3  # the exit code of a benchmark that needs what is not here


def make_parser(doc: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; its help is the module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds: each measures every side once")
    parser.add_argument("--json", type=Path, help="write the results here, after each row")
    parser.add_argument("--threads", type=int, help="CPU cores that both sides may use (default: all)")
    return parser


def begin(main: Callable[[], None]) -> None:
    """Runs a benchmark. Where it needs a package that is not here, it ends with a line and the code LEFT_OUT."""
    try:
        main()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("jaxcnn", "benchmarks"):
            raise
        say(f"left out: it needs {error.name}, which is {NOT_INSTALLED}")
        raise SystemExit(LEFT_OUT) from None


def set_up(options: argparse.Namespace, *, compilation_cache: bool = True, torch_here: bool = True) -> None:
    """Settings that must come before JAX's or PyTorch's first use: the same cores, and memory for both, for both."""
    from jaxcnn.machine import begin_anew

    begin_anew()  # as jaxcnn's commands do; PyTorch's processes have them, too
    if options.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # JAX would take 3/4 of a GPU's memory at once
    from jaxcnn.training.parallel import set_up as set_up_jax

    set_up_jax(None, compilation_cache=compilation_cache)
    if torch_here and has_torch():
        set_up_torch()


def set_up_torch() -> None:
    """The same cores, and the same arithmetic, as XLA's."""
    import torch

    torch.set_flush_denormal(True)  # as XLA does; threads that start later inherit it
    torch.set_num_threads(num_cores())


def num_cores() -> int:
    """That this process may use: XLA takes as many threads, and `set_up` gives PyTorch as many."""
    return len(os.sched_getaffinity(0))


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def on_gpu() -> bool:
    import jax

    return jax.default_backend() == "gpu"


def timed(call: Callable[[], Any], wait: Callable[[], Any], *, at_least: float = 0.5) -> Callable[[], float]:
    """A measurement of the seconds a call takes, over as many calls as take `at_least` seconds together.

    Warms up now, so whatever `call` compiles is compiled now. `wait` returns when the device has done all calls.
    """

    def seconds(count: int) -> float:
        call()  # memory that lay idle while others had their turn comes back, as it is there in a steady run
        wait()
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return (time.perf_counter() - start) / count

    call()  # the first call compiles, the second may still have to
    call()
    once = seconds(1)
    count = max(1, math.ceil(at_least / max(once, 1e-6)))
    if count > 1:  # a first call alone says little of a short one
        count = max(1, math.ceil(at_least / max(seconds(min(count, 10)), 1e-6)))
    return lambda: seconds(count)


class Elsewhere:
    """A side that is made and measured in a process of its own: neither side's threads or allocator touch the other's.

    `make(*arguments)`, a function of a module, returns (a measurement, facts). Raises RuntimeError where it fails.
    """

    def __init__(self, make: Callable[..., tuple[Callable[[], float], dict[str, Any]]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        made, self.facts = self._receive()
        if not made:
            raise RuntimeError(self.facts)

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return False, "died"

    def __call__(self) -> float:
        """Seconds of one call."""
        self._pipe.send(True)
        seconds = self._receive()
        if not isinstance(seconds, float):
            raise RuntimeError("the other process died")
        return seconds

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()


def _serve(pipe: Any, make: Callable, arguments: tuple) -> None:
    try:
        measure, facts = make(*arguments)
    except Exception as error:  # inductor needs a C++ compiler, and fails in many ways of its own
        pipe.send((False, type(error).__name__))
        return
    pipe.send((True, facts))
    while pipe.recv():
        pipe.send(measure())


def in_turn(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """A B A B …: what each side measures in each round. Every second round goes backwards."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    return found


class Others:
    """How much of this machine's CPU time went to other processes since this was made. On shared cores, PyTorch's
    threads wait for one another and slow down most: a table made while others work says little."""

    def __init__(self) -> None:
        self._start = self._read()

    def _read(self) -> tuple[float, float, float] | None:
        try:
            fields = [float(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        own = os.times()
        idle = fields[3] + fields[4]
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(fields) / ticks, (sum(fields) - idle) / ticks, sum(own[:4])

    def share(self) -> float | None:
        """Of all cores' time, 0..1; None where the system does not tell."""
        now = self._read()
        if now is None or self._start is None:
            return None
        passed, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - own) / max(passed, 1e-9)

    def warn(self) -> None:
        """A line where others took more than a twentieth."""
        share = self.share()
        if share is not None and share > 0.05:
            say(f"other processes took {100 * share:.0f} % of this machine's CPU time meanwhile: measure again")


@dataclass(frozen=True)
class Ratio:
    """Of two sides measured in the same rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def ratio(found: Mapping[str, Sequence[float]], side: str, other: str) -> Ratio | None:
    """`side` / `other`; None where one was not measured."""
    if not (found.get(side) and found.get(other)):
        return None
    each = [a / b for a, b in zip(found[side], found[other], strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values)) if values else math.nan


def milliseconds(values: Sequence[float]) -> str:
    """The median, and half the spread as a share of it."""
    middle = statistics.median(values)
    return f"{1000 * middle:.4g} ±{50 * (max(values) - min(values)) / middle:.0f}%"


class Table:
    """Rows as they come, aligned, on the terminal."""

    def __init__(self, **widths: int):
        """Column names (underscores become spaces) and their widths; the first is to the left, the others right."""
        self._widths = list(widths.values())
        self.row(*(name.replace("_", " ") for name in widths))

    def row(self, *cells: Any) -> None:
        texts = [f"{cell:.3f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in cells]
        aligned = [
            text.ljust(width) if number == 0 else text.rjust(width)
            for number, (text, width) in enumerate(zip(texts, self._widths, strict=True))
        ]
        say(" ".join(aligned).rstrip())


def say(line: str) -> None:
    """A line on the terminal, at once."""
    print(line, flush=True)


class Report:
    """The JSON of a benchmark: the machine, the versions, the rows. Written after each row: a kill loses nothing."""

    def __init__(self, path: Path | None, benchmark: str):
        self._path = path
        self._content: dict[str, Any] = {"benchmark": benchmark, "arguments": sys.argv[1:], "rows": []}
        self._described = False

    def add(self, **row: Any) -> None:
        """Ratios may be among the values."""
        self._content["rows"].append(row)
        self.write()

    def set(self, name: str, value: Any) -> None:
        """A value of the whole, beside the rows."""
        self._content[name] = value
        self.write()

    def finish(self) -> None:
        """All rows are there."""
        self.set("finished", True)

    def write(self) -> None:
        if self._path is None:
            return
        if not self._described:
            self._content = {"machine": machine(), "versions": versions(), **self._content}
            self._described = True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}.partial")
        aside.write_text(json.dumps(self._content, indent=1, default=vars) + "\n")
        aside.replace(self._path)


def machine() -> dict[str, Any]:
    """The CPU's model and cores, and the accelerators that JAX sees."""
    import jax

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    devices = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    return {"cpu": model, "cores": num_cores(), "accelerators": devices}


def versions() -> dict[str, str]:
    from jaxcnn.machine import versions as own_versions

    if not has_torch():
        return own_versions() | {"torch": NOT_INSTALLED}
    import torch

    return own_versions() | {"torch": torch.__version__}
