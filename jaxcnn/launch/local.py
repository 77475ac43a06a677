"""Launches N processes of one training on this machine: launch.sh local N [--restarts K] [train] --config FILE …

Each has its share of the GPUs or cores. Process 0 writes to the terminal, each other one to a file in launch/ of the
run's folder. SIGTERM and Ctrl-C save and stop all; where one dies, all begin again from the last checkpoint.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.errors import Preempted, UserError
from jaxcnn.launch.arguments import COUNT, DRY_RUN, NUMBER, Option, command_of, parse
from jaxcnn.launch.system import appending, complain, last_lines, make_folder, quoted, tell
from jaxcnn.machine import cuda_devices

OPTIONS = {
    "restarts": Option("times that all begin again where a process died", "3", COUNT),
    "dry-run": DRY_RUN,
}
PATIENCE = 35.0  # seconds, once one has left: the others hear of it, or notice it, within 30
_LOOK_SECONDS = 0.1
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl


def launch(argv: list[str]) -> int:
    """Runs all until they end; returns the exit code of the job."""
    number, *rest = argv or [""]
    if not re.fullmatch(NUMBER, number):
        raise UserError(f"local {number[:20]!r}: give a number of processes first, as in: local 2 --config FILE")
    values, words = parse(rest, OPTIONS)
    command = command_of(words, OPTIONS, "train")
    parts = shares(int(number), on_cpu="cpu" in command.values_of("config.platform"))
    words = [sys.executable, *command.words]
    if values["dry-run"]:
        for index, part in enumerate(parts):
            variables = {**_contract(0, len(parts), index), **part.variables}
            tell(quoted(["env", *(f"{name}={value}" for name, value in variables.items()), *words]))
        return 0
    logs = command.logs / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    make_folder(logs)
    tell(f"{number} processes; what the others than the first one say: {logs}")
    return supervise(words, parts, logs, restarts=int(values["restarts"]))


# ---- what each process gets


@dataclass(frozen=True)
class Share:
    """What of the machine a process has."""

    cores: tuple[int, ...] = ()  # none: all
    devices: str | None = None  # CUDA_VISIBLE_DEVICES; none: CPUs

    @property
    def variables(self) -> dict[str, str]:
        """What of it the environment says."""
        return {} if self.devices is None else {"CUDA_VISIBLE_DEVICES": self.devices}


def shares(number: int, *, on_cpu: bool) -> list[Share]:
    """As many equal shares. More processes than cores share them all. Raises UserError where there are fewer GPUs."""
    on_cpu = on_cpu or os.environ.get("JAX_PLATFORMS") == "cpu"
    if number > 1 and not on_cpu and importlib.util.find_spec("libtpu") is not None:
        raise UserError(f"local {number}: one process has all TPU cores of a host; leave `local {number}` out")
    devices = [] if on_cpu else cuda_devices()
    if devices and number > len(devices):
        raise UserError(
            f"local {number}: there are {len(devices)} GPUs here; lower it, or set JAX_PLATFORMS=cpu to use CPUs"
        )
    pinned = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else []
    few, some = len(cores) // number, len(devices) // number
    return [
        Share(
            tuple(cores[index * few : (index + 1) * few]),
            ",".join(devices[index * some : (index + 1) * some]) if devices else None,
        )
        for index in range(number)
    ]


def _contract(port: int, number: int, index: int) -> dict[str, str]:
    """What jaxcnn/hosts/environment.py reads."""
    return {
        "JAXCNN_COORDINATOR": f"127.0.0.1:{port or 'PORT'}",
        "JAXCNN_NUM_PROCESSES": str(number),
        "JAXCNN_PROCESS_ID": str(index),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- the job


def supervise(words: list[str], parts: list[Share], logs: Path, *, restarts: int) -> int:
    """Runs the processes until they end, anew where one has died; returns the exit code of the job."""
    with _noted_signals() as signals:
        for again in range(restarts + 1):
            job = _Job(words, parts, logs)
            code, cause = job.run(signals)
            job.show_others(code)
            if cause is None or signals:
                return code
            if again < restarts:
                complain(f"{cause}; all begin again from the last checkpoint ({again + 1} of {restarts})")
        complain(f"{cause}, and so it was {restarts} times before; see {logs}")
    return code


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The numbers of the signals that come to this process, which do nothing else."""
    noted: list[int] = []
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, frame: noted.append(number))
    yield noted


class _Job:
    """One start of all processes."""

    def __init__(self, words: list[str], parts: list[Share], logs: Path):
        port = _free_port()
        self.logs = [logs / f"process{index}.log" for index in range(len(parts))]
        self.ended: dict[int, int] = {}  # process -> exit code, in the order in which they left
        self.killed: set[int] = set()  # by us
        self.processes = [
            self._start(words, part, _contract(port, len(parts), index), index) for index, part in enumerate(parts)
        ]

    def _start(self, words: list[str], part: Share, contract: dict[str, str], index: int) -> subprocess.Popen[bytes]:
        """A group of its own keeps the terminal's Ctrl-C away: it comes once, from us, as SIGTERM."""
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(appending(self.logs[index])) if index else None
            return subprocess.Popen(
                words,
                env={**os.environ, **contract, **part.variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                preexec_fn=_in_child(part.cores),
            )

    def run(self, signals: list[int]) -> tuple[int, str | None]:
        """Exit code, and what makes another start worth while; none where it ended by itself."""
        passed_on, last = 0, float("inf")
        while len(self.ended) < len(self.processes):
            for number in range(passed_on, len(signals)):
                complain(
                    f"{signal.Signals(signals[number]).name}: " + ("ending all" if number else "all save and stop")
                )
                self._send(signal.SIGKILL if number else signal.SIGTERM)
            passed_on = len(signals)
            for index, process in enumerate(self.processes):
                code = process.poll()
                if code is None or index in self.ended:
                    continue
                self.ended[index] = code
                if code:  # a process that was killed leaves the others nothing to wait for
                    last = min(last, time.monotonic() + (0 if code < 0 and not signals else PATIENCE))
            if time.monotonic() >= last:
                self._send(signal.SIGKILL)
                last = float("inf")
            time.sleep(_LOOK_SECONDS)
        return self._outcome(bool(signals))

    def _send(self, number: int) -> None:
        for index, process in enumerate(self.processes):
            if process.poll() is None:
                if number == signal.SIGKILL:
                    self.killed.add(index)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def _outcome(self, stopped: bool) -> tuple[int, str | None]:
        codes = {index: code for index, code in self.ended.items() if code and index not in self.killed}
        verdicts = [code for code in codes.values() if code > 0 and code != Preempted.exit_code]
        if verdicts:
            return verdicts[0], None
        dead = {index: -code for index, code in codes.items() if code < 0}
        if dead and not stopped:
            index, number = next(iter(dead.items()))
            return 128 + number, f"process {index} died by {signal.Signals(number).name}"
        if self.killed and not stopped:
            return Preempted.exit_code, f"process {min(self.killed)} did not end with the others"
        if stopped and (dead or self.killed):
            return 128 + (next(iter(dead.values())) if dead else signal.SIGKILL), None
        return next(iter(codes.values()), 0), None

    def show_others(self, code: int) -> None:
        """The end of what each process but the first one said, where it was the first to fail."""
        index = next((index for index, each in self.ended.items() if each), 0)
        if code not in (0, Preempted.exit_code) and index and (text := last_lines(self.logs[index])):
            complain(f"process {index} said last ({self.logs[index]}):")
            tell(text)


def _in_child(cores: tuple[int, ...]) -> Callable[[], None]:
    """What a new process does before it is the program: takes its cores, and ends with us, however we end (Linux)."""

    def begin() -> None:
        if cores:
            os.sched_setaffinity(0, cores)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)

    return begin
