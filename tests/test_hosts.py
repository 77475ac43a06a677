"""Several processes as one run: which they are, that they compute what one does, and how the end of one ends all."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.hosts import job
from jaxcnn.hosts.environment import Cluster, detect, first_node
from tests.commands import ROOT, environment, run

OPTIONS = ("--config=experiments/digits.py", "--config.num_epochs=2", "--config.tensorboard=false")
FEW = ("--config.model.name=mlp", "--config.eval_every_epochs=1")


# ---- which processes there are

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "gpu[03-07,9],c1",
}  # fmt: skip
OWN = {"JAXCNN_COORDINATOR": "host:12", "JAXCNN_NUM_PROCESSES": "2", "JAXCNN_PROCESS_ID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1,10.1.0.1:4100",
}  # fmt: skip


@pytest.mark.parametrize(
    ("distributed", "variables", "expected"),
    [
        ("auto", {}, None),
        ("off", OWN, None),
        ("auto", OWN, Cluster("host:12", 2, 1)),
        ("auto", {**OWN, "JAXCNN_LOCAL_DEVICE_IDS": "0,3"}, Cluster("host:12", 2, 1, (0, 3))),
        ("auto", {**SLURM, **OWN}, Cluster("host:12", 2, 1)),
        ("[::1]:70,8,7", {}, Cluster("[::1]:70", 8, 7)),
        ("auto", SLURM, Cluster("gpu03:61441", 3, 2)),
        ("auto", {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell of srun's
        ("auto", {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "3", "SLURM_PROCID": "0"}, None),  # the batch script itself
        ("auto", OPEN_MPI, Cluster("10.0.0.1:61444", 4, 3)),
    ],
)
def test_the_environment_names_the_processes(distributed: str, variables: dict[str, str], expected: Any) -> None:
    assert detect(distributed, variables) == expected


@pytest.mark.parametrize(
    ("nodes", "first"), [("a", "a"), ("a,b", "a"), ("a[1-3]", "a1"), ("n-1-[007,9]", "n-1-007"), ("a1.b", "a1.b")]
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("distributed", "variables", "says"),
    [
        ("yes", {}, "neither auto, off, jax nor COORDINATOR:PORT,N,I"),
        ("", {}, "neither auto, off"),
        ("host,2,1", {}, "'host' is not HOST:PORT"),
        (":1,2,1", {}, "not HOST:PORT"),
        ("h:70000,2,1", {}, "not HOST:PORT"),
        ("h:1,0,0", {}, "'0' is no number of processes"),
        ("h:1,-2,0", {}, "no number of processes"),
        ("h:1,2,2", {}, "'2' is not the number of one of 2 processes"),
        ("h:1,2,x", {}, "'x' is not the number"),
        ("auto", {"JAXCNN_PROCESS_ID": "1"}, "JAXCNN_PROCESS_ID is set and JAXCNN_COORDINATOR is not"),
        ("auto", {**OWN, "JAXCNN_LOCAL_DEVICE_IDS": "0;1"}, "no list of devices"),
        ("auto", {**SLURM, "SLURM_STEP_NODELIST": "[1-3]"}, "names no node"),
        ("auto", {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": ""}, "does not say where the first one listens"),
    ],
)
def test_what_names_no_processes_is_refused(distributed: str, variables: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        detect(distributed, variables)


def test_a_coordinator_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "BEGIN_WITHIN", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"process 1 cannot reach the coordinator at 127.0.0.1:{port}"):
            job._check_coordinator(Cluster(f"127.0.0.1:{port}", 2, 1))
        taken.listen()
        with pytest.raises(UserError, match=f"process 0 cannot listen at port {port}: Address already in use"):
            job._check_coordinator(Cluster(f"127.0.0.1:{port}", 2, 0))


def test_without_a_job_there_is_one_process(capsys: pytest.CaptureFixture) -> None:
    with job.joined("off"), job.together():
        assert (job.number(), job.is_first(), job.names()) == (1, True, [])
        assert job.tell_all({"a": 1}) == [{"a": 1}]
        assert job.from_first(lambda: 5) == 5
        assert not job.asked_to_stop()
        job.check_same("data", lambda: 1 / 0)  # is not made


# ---- jobs


class Job:
    """Processes of a job on this machine, each with so many CPU devices."""

    def __init__(self, number: int, devices: int, *options: object, each: Any = lambda index: (), **changes: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "jaxcnn.main", *map(str, options), *each(index)],
                cwd=ROOT,
                env=environment(
                    devices,
                    JAXCNN_COORDINATOR=coordinator,
                    JAXCNN_NUM_PROCESSES=str(number),
                    JAXCNN_PROCESS_ID=str(index),
                    **changes,
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(number)
        ]

    def wait(self) -> tuple[list[int], list[str]]:
        """Exit codes and what was written to stderr, of each."""
        errors = [process.communicate(timeout=300)[1] for process in self.processes]
        return [process.returncode for process in self.processes], errors

    def wait_for(self, file: Path, text: str) -> None:
        """Returns once a file of the run has this in it."""
        while not (file.exists() and text in file.read_text()):
            assert all(process.poll() is None for process in self.processes), [p.communicate() for p in self.processes]
            time.sleep(0.05)


def rows(workdir: Path) -> dict[tuple[int, str], dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {(row["step"], row["split"]): row for row in map(json.loads, lines)}


def largest_difference(one: Path, other: Path, steps: int) -> float:
    """Of the losses, relative, up to a step; what evaluations count is equal."""
    left, right = rows(one), rows(other)
    assert left.keys() == right.keys()
    assert all(left[key].keys() == right[key].keys() for key in left)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (one, other)]
    counts = [{name: each["num_examples"] for name, each in summary["splits"].items()} for summary in summaries]
    assert counts[0] == counts[1]
    return max(abs(left[key]["loss"] / right[key]["loss"] - 1) for key in left if key[0] <= steps)


def test_two_processes_stopped_and_resumed_are_one(tmp_path: Path) -> None:
    """2 x 2 devices, SIGTERM to the one that writes nothing, against 1 x 4; and only process 0 touches the folder."""
    options = (*OPTIONS, *FEW, "--config.log_every_steps=1")
    code, _, errors = run(*options, f"--workdir={tmp_path}/one", devices=4)
    assert code == 0, errors

    def each(index: int) -> tuple[str, ...]:
        return (f"--workdir={tmp_path}/two",)

    first = Job(2, 2, *options, each=each)
    first.wait_for(tmp_path / "two" / "metrics.jsonl", '"step": 3,')
    first.processes[1].send_signal(signal.SIGTERM)
    codes, said = first.wait()
    if codes != [0, 0]:  # a quick machine may have been through
        assert codes == [75, 75]
        assert "SIGTERM: saved at step" in said[0]
        assert not said[1]
    codes, said = Job(2, 2, *options, each=each).wait()
    assert codes == [0, 0], said
    assert largest_difference(tmp_path / "one", tmp_path / "two", 10) < 1e-5
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["num_processes"] == 2


def test_what_one_process_finds_wrong_ends_all(tmp_path: Path) -> None:
    """A set that process 1 alone lacks; it has another home."""
    images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2
    (tmp_path / "home").mkdir()
    np.savez(tmp_path / "home" / "set.npz", x_train=images, y_train=labels)
    options = (*OPTIONS, "--config.data.name=npz:~/set.npz", f"--workdir={tmp_path}/run")
    environments = [{"HOME": str(tmp_path / "home")}, {"HOME": str(tmp_path)}]
    started = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    for index, changes in enumerate(environments):
        command = [sys.executable, "-m", "jaxcnn.main", *options, f"--distributed={coordinator},2,{index}"]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment(1, **changes), **pipes))
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2], errors
    assert "process 1 on" in errors[0]
    assert "set.npz" in errors[0]
    assert errors[0].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_processes_of_different_settings_are_refused(tmp_path: Path) -> None:
    def each(index: int) -> tuple[str, ...]:
        return (f"--config.seed={index}", f"--workdir={tmp_path}/run")

    codes, errors = Job(2, 1, *OPTIONS, each=each).wait()
    assert codes == [2, 2]
    assert "process 1 on" in errors[0]
    assert "has other settings than process 0 on" in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("resident", ["true", "false"])
@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (8, 1)], ids=str)
def test_any_number_of_processes_is_one(tmp_path: Path, mode: str, resident: str, shape: tuple[int, int]) -> None:
    options = (
        *OPTIONS,
        f"--config.parallel={mode}",
        f"--config.data.resident={resident}",
        "--config.log_every_steps=1",
    )
    assert run(*options, f"--workdir={tmp_path}/one", devices=8)[0] == 0
    codes, errors = Job(*shape, *options, f"--workdir={tmp_path}/job").wait()
    assert codes == [0] * shape[0], errors
    difference = largest_difference(tmp_path / "one", tmp_path / "job", 10)
    print(f"{mode}, resident {resident}, {shape[0]} x {shape[1]}: {difference:.2g}")
    assert difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_a_fault_ends_all_and_the_same_command_goes_on(tmp_path: Path, seed: int, undisturbed: Path) -> None:
    """A random process meets a fault at a random time; the run ends as one that was let alone."""
    draw = np.random.default_rng(seed)
    number = 2 if seed < 20 else 4
    options = (*OPTIONS, *FEW, "--config.num_epochs=8", f"--workdir={tmp_path}/run")
    fault = ("SIGKILL", "SIGSTOP", "SIGTERM", "full disk", "partial checkpoint")[seed % 5]
    started = Job(number, 4 // number, *options)
    if fault == "partial checkpoint":
        while len(checkpoints(tmp_path / "run")) < 2:  # one is left when the other is torn
            assert any(process.poll() is None for process in started.processes)
            time.sleep(0.05)
    else:
        started.wait_for(tmp_path / "run" / "config.json", "")
    time.sleep(draw.uniform(0, 8))
    victim = started.processes[0 if fault == "full disk" else draw.integers(number)]
    others = [each for each in started.processes if each is not victim]
    before = time.monotonic()
    if fault == "full disk":  # files cannot grow
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    else:
        victim.send_signal(signal.SIGKILL if fault == "partial checkpoint" else getattr(signal, fault))
    for each in others:
        each.wait(timeout=60)
    print(f"{fault}: the others ended within {time.monotonic() - before:.1f} s")
    assert time.monotonic() - before < 60
    if fault == "SIGSTOP":
        victim.kill()
    codes, errors = started.wait()
    print(codes)
    if codes != [0] * number:
        for process, code, said in zip(started.processes, codes, errors, strict=True):
            assert process is victim or (code in (1, 75, 134, -6) and (said or code == 75)), (codes, errors)
        if fault == "full disk":
            assert codes[0] == 1, codes
            assert errors[0].splitlines()[-1].startswith("jaxcnn: "), errors
        if fault == "partial checkpoint":
            tear_newest_checkpoint(tmp_path / "run", draw)
        codes, errors = Job(number, 4 // number, *options).wait()
        assert codes == [0] * number, errors
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (undisturbed / str(number)).read_bytes()


def checkpoints(workdir: Path) -> list[Path]:
    found = [each for each in workdir.glob("checkpoints/*") if each.name.isdigit()]
    return sorted(found, key=lambda each: int(each.name))


def tear_newest_checkpoint(workdir: Path, draw: np.random.Generator) -> None:
    """Of its largest files one loses its second half, as when a machine dies before its disk has all."""
    newest = checkpoints(workdir)[-1]
    files = sorted((each for each in newest.rglob("*") if each.is_file()), key=lambda each: -each.stat().st_size)[:3]
    torn = files[draw.integers(len(files))]
    os.truncate(torn, torn.stat().st_size // 2)
    print(f"torn: {torn.relative_to(workdir)}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    for number in (2, 4):
        options = (*OPTIONS, *FEW, "--config.num_epochs=8", f"--workdir={folder}/run{number}")
        assert Job(number, 4 // number, *options).wait()[0] == [0] * number
        os.link(folder / f"run{number}" / "metrics.jsonl", folder / str(number))
    return folder
