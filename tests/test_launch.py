"""Launching: a job on this machine with a stand-in for the training, and what other programs are told on clusters."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import ROOT

EXPERIMENT = "--config=experiments/digits.py"


def launch(*arguments: object, **changes: str) -> tuple[int, str, str]:
    """The launcher as a process, without the packages of the environment, as on a login node."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BARE, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


BARE = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jaxcnn.launch.__main__ import main; sys.exit(main(sys.argv))"
)


# ---- on this machine

STAND_IN = """
import os, pathlib, signal, sys, time
index, folder = int(os.environ["JAXCNN_PROCESS_ID"]), pathlib.Path(sys.argv[1])
attempt = len(list(folder.glob(f"{index}.*")))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("process", index, "of", os.environ["JAXCNN_NUM_PROCESSES"], flush=True)
port = os.environ["JAXCNN_COORDINATOR"]
(folder / f"new.{index}").write_text(f"{os.getpid()} {port}")
(folder / f"new.{index}").rename(folder / f"{index}.{attempt}")
def all_there():
    while len(list(folder.glob(f"[0-9].{attempt}"))) < int(os.environ["JAXCNN_NUM_PROCESSES"]):
        time.sleep(0.01)
all_there()
"""
SUPERVISE = """
import sys
from pathlib import Path
from jaxcnn.launch import local
local.PATIENCE = float(sys.argv[4])
folder, program = sys.argv[2:4]
words = [sys.executable, "-S", "-c", program, folder]
sys.exit(local.supervise(words, local.shares(int(sys.argv[1]), on_cpu=True), Path(folder), restarts=2))
"""
FOREVER = "time.sleep(1000)\n"


def start(folder: Path, then: str, *, number: int = 2, patience: float = 30) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(number), str(folder), STAND_IN + then, str(patience)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def job(folder: Path, then: str, **options: float) -> tuple[int, str, str]:
    """Runs a job of stand-ins, each of which ends as `then` says; its code, output and errors."""
    process = start(folder, then, **options)  # type: ignore[arg-type]
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def attempts(folder: Path) -> int:
    return len(list(folder.glob("0.*")))


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pids(folder: Path, number: int) -> list[int]:
    """Of all processes of the first attempt, once they are there and hear signals."""
    wait_for(*(folder / f"{index}.0" for index in range(number)))
    return [int((folder / f"{index}.0").read_text().split()[0]) for index in range(number)]


def test_processes_get_a_coordinator_and_their_number(tmp_path):
    code, output, errors = job(tmp_path, "", number=3)
    assert (code, output, errors) == (0, "process 0 of 3\n", "")
    ports = {file.read_text().split()[1] for file in tmp_path.glob("[0-9].0")}
    assert len(ports) == 1
    assert re.fullmatch(r"127\.0\.0\.1:\d+", ports.pop())
    assert (tmp_path / "process2.log").read_text() == "process 2 of 3\n"


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_ends_all_and_is_not_tried_again(tmp_path, code):
    then = f"if index == 1:\n    print('no such thing'); sys.exit({code})\n{FOREVER}"
    found, output, errors = job(tmp_path, then, patience=0.2)
    assert (found, attempts(tmp_path)) == (code, 1)
    assert "process 1 said last" in errors
    assert "no such thing" in output


def test_all_begin_again_where_one_was_killed(tmp_path):
    then = f"if attempt < 2:\n    index and os.kill(os.getpid(), 9)\n    {FOREVER}"
    code, _, errors = job(tmp_path, then)
    assert (code, attempts(tmp_path)) == (0, 3)
    assert errors.count("process 1 died by SIGKILL; all begin again from the last checkpoint") == 2


def test_a_process_that_always_dies_is_given_up(tmp_path):
    code, _, errors = job(tmp_path, f"index and os.abort()\n{FOREVER}")
    assert (code, attempts(tmp_path)) == (128 + signal.SIGABRT, 3)
    assert "process 1 died by SIGABRT, and so it was 2 times before" in errors


def test_all_begin_again_where_one_hangs_and_the_others_gave_it_up(tmp_path):
    code, _, errors = job(tmp_path, f"if attempt == 0:\n    index or sys.exit(75)\n    {FOREVER}", patience=0.2)
    assert (code, attempts(tmp_path)) == (0, 2)
    assert "process 1 did not end with the others" in errors


def test_an_error_counts_for_more_than_deaths_that_follow(tmp_path):
    code, _, _ = job(tmp_path, "if index == 1:\n    sys.exit(2)\ntime.sleep(0.5)\nos.abort()\n")
    assert (code, attempts(tmp_path)) == (2, 1)


def test_stopped_by_someone_else_is_not_begun_again(tmp_path):
    process = start(tmp_path, FOREVER)
    for each in pids(tmp_path, 2):
        os.kill(each, signal.SIGTERM)
    process.communicate(timeout=30)
    assert (process.returncode, attempts(tmp_path)) == (75, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_to_all_as_sigterm(tmp_path, number):
    process = start(tmp_path, FOREVER, number=3)
    pids(tmp_path, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, attempts(tmp_path)) == (75, 1)
    assert f"{signal.Signals(number).name}: all save and stop" in errors


def test_a_second_signal_ends_all(tmp_path):
    deaf = """
signal.signal(signal.SIGTERM, lambda *_: (folder / f'told{index}').touch())
(folder / f'deaf{index}').touch()
"""
    process = start(tmp_path, deaf + FOREVER)
    for each in ("deaf", "told"):
        wait_for(tmp_path / f"{each}0", tmp_path / f"{each}1")
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert (process.returncode, attempts(tmp_path)) == (128 + signal.SIGKILL, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent has died")
def test_a_process_ends_with_a_launcher_that_is_killed(tmp_path):
    process = start(tmp_path, FOREVER, number=1)
    pids(tmp_path, 1)
    process.kill()
    process.communicate(timeout=30)  # the process holds the other end
    assert process.returncode == -signal.SIGKILL
