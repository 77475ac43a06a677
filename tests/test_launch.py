"""Launching: a job on this machine with a stand-in for the training, and what other programs are told on clusters."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.launch import local
from jaxcnn.launch.__main__ import main as launch_main
from jaxcnn.launch.arguments import Command
from jaxcnn.run import workdir
from tests.commands import ROOT

EXPERIMENT = "--config=experiments/digits.py"
NEEDED = (  # all that a launch imports: no package
    "__init__.py", "errors.py", "machine.py", "run/__init__.py", "run/stopping.py", *(
        f"launch/{path.name}" for path in sorted((ROOT / "jaxcnn/launch").glob("*.py"))
    ),
)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a launch reads, whose set-up makes a `.venv/bin/python` that says what it was asked to run."""
    root = tmp_path / "it's a project"
    for each in NEEDED:
        (root / "jaxcnn" / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "jaxcnn" / each, root / "jaxcnn" / each)
    (root / "experiments").mkdir()
    for each in ("README.md", "LICENSE", "pyproject.toml", "experiments/digits.py"):
        (root / each).write_text("")
    (root / "launch.sh").write_text(
        "#!/usr/bin/env bash\nmkdir -p .venv/bin\ncp ../stand_in .venv/bin/python\necho set up with $JAXCNN_EXTRAS\n"
    )
    (root / "launch.sh").chmod(0o755)
    return root


def launch(*arguments: object, root: Path = ROOT, path: Path | None = None) -> tuple[int, str, str]:
    """The launcher as a process without any package, as on a login node; `path` is a folder of programs."""
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from jaxcnn.launch import __main__, tpu; "
        "tpu.WAIT_SECONDS = 0.1; sys.exit(__main__.main(sys.argv))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PATH": f"{path or '/nowhere'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


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
    assert errors == f"jaxcnn: {signal.Signals(number).name}: all save and stop\n"


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


# ---- on a cluster: programs of other people, for which a stand-in answers

ANSWERS = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(json.dumps([pathlib.Path(__file__).name, *sys.argv[1:]]), file=calls)
if "--filename=-" in sys.argv:
    (here / "given").write_text(sys.stdin.read())
answers = json.loads((here / "answers").read_text())
for number, (words, code, output) in enumerate(answers):
    if all(each in " ".join(sys.argv) for each in words.split()):
        answers.pop(number)
        (here / "answers").write_text(json.dumps(answers))
        print(output, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""


class Programs:
    """Stand-ins for programs on PATH; each answer, (words of the call, exit code, what it prints), is given once."""

    def __init__(self, folder: Path, *answers: tuple[str, int, str]):
        self.folder = folder / "bin"
        self.folder.mkdir()
        (self.folder / "answers").write_text(json.dumps(answers))
        for name in ("sbatch", "gcloud", "kubectl"):
            (self.folder / name).write_text(ANSWERS.format(python=sys.executable))
            (self.folder / name).chmod(0o755)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


SLURM = ("slurm", "--nodes", "2", "--gpus=8", "--time=4:00:00", "--partition=gpu,long", EXPERIMENT, "--workdir")


def test_slurm_gets_a_script_that_bash_reads_as_it_was_meant(tmp_path, project):
    programs = Programs(tmp_path, ("sbatch", 0, "41;cluster"))
    workdir = 'runs/100% "of $HOME" `it\'s`'
    code, output, errors = launch(*SLURM, workdir, root=project, path=programs.folder)
    assert (code, errors) == (0, "")
    logs = project / workdir / "launch"
    assert f"job 41 is queued; it writes to {logs}/41.out" in output
    escaped = str(logs).replace("%", "%%")
    assert programs.calls() == [
        ["sbatch", "--parsable", f"--chdir={project}", f"--output={escaped}/%j.out", f"{logs}/slurm.sh"]
    ]
    lines = (logs / "slurm.sh").read_text().splitlines()
    settings = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert settings == [
        "job-name=jaxcnn", "nodes=2", "ntasks-per-node=1", "cpus-per-task=8", "gpus-per-node=8", "time=4:00:00",
        "partition=gpu,long", "signal=TERM@120", "requeue", "open-mode=append",
    ]  # fmt: skip
    assert lines.index("set -u") > len(settings)  # SLURM reads none behind the first command
    srun = (
        "srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=8 .venv/bin/python -m jaxcnn.main "
        "--config=experiments/digits.py --workdir"
    )
    text = "\n".join(lines).replace("\\\n", "")
    assert [*srun.split(), workdir] in [
        shlex.split(line, comments=True) for line in text.splitlines() if "srun" in line
    ]


@pytest.mark.parametrize(
    ("code", "restarts", "array", "expected", "leaves"),
    [
        (0, "", "", None, 0),
        (1, "", "", None, 1),
        (2, "", "", None, 2),
        (75, "", "", "requeue 9", 0),
        (137, "49", "", "requeue 9", 0),
        (75, "50", "", None, 75),
        (75, "", "7", "requeue 7_3", 0),
    ],
)
def test_a_job_is_queued_again_where_that_helps(tmp_path, project, code, restarts, array, expected, leaves):
    """The script itself, with stand-ins for srun and scontrol."""
    (tmp_path / "stand_in").touch()
    _, output, _ = launch("slurm", "--dry-run", EXPERIMENT, root=project)
    for name, does in (("srun", f"exit {code}"), ("scontrol", 'echo "$@" >../asked'), ("flock", 'shift; exec "$@"')):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "9"} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    variables |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": "3"} if array else {}
    done = subprocess.run(
        ["bash", "-c", output.partition("\n# /")[0]],
        cwd=project,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
    )
    asked = tmp_path / "asked"
    assert (asked.read_text().strip() if asked.exists() else None, done.returncode) == (expected, leaves)


def test_a_process_for_each_gpu_in_a_container():
    code, output, _ = launch(
        "slurm", "--gpus=4", "--process-per=gpu", "--container=my image.sif", "--dry-run", "train", EXPERIMENT
    )
    assert code == 0
    assert "#SBATCH --ntasks-per-node=4\n" in output
    assert "launch.sh setup" not in output
    words = shlex.split(output[output.index("srun") : output.index("code=")].replace("\\\n", ""))
    own = words.index("bash")
    assert words[own + 4 : own + 7] == ["apptainer", "exec", "--nv"]
    assert words[own + 9 : own + 13] == ["my image.sif", "python3", "-m", "jaxcnn.main"]
    shown = [*words[own : own + 4], "printenv", "JAXCNN_LOCAL_DEVICE_IDS"]
    said = subprocess.run(shown, env={**os.environ, "SLURM_LOCALID": "3"}, capture_output=True, text=True)
    assert said.stdout == "3\n"


def test_a_sweep_is_an_array(tmp_path, project):
    programs = Programs(tmp_path, ("sbatch", 0, "41"))
    more = "--sbatch=--account=lab '--comment=two words'"
    code, output, _ = launch(
        "slurm", "--array=8%4", more, "sweep", EXPERIMENT, "--seeds=5", root=project, path=programs.folder
    )
    assert code == 0
    assert f"{project}/runs/launch/41_%a.out" in output
    script = (project / "runs/launch/slurm.sh").read_text()
    assert "#SBATCH --array=0-7%4\n" in script
    assert "-m jaxcnn.sweep --config=experiments/digits.py --seeds=5\n" in script
    assert programs.calls()[0][-3:-1] == ["--account=lab", "--comment=two words"]


def test_what_sbatch_refuses_is_one_line(tmp_path, project):
    programs = Programs(tmp_path, ("sbatch", 1, "sbatch: error: invalid partition"))
    code, _, errors = launch("slurm", EXPERIMENT, root=project, path=programs.folder)
    assert (code, errors) == (1, "jaxcnn: sbatch refused the job: sbatch: error: invalid partition\n")


TPU = ("tpu", "dogs", "--zone=us-central2-b", "--type=v4-16", "--spot")
RUN = (EXPERIMENT, "--workdir=gs://bucket/it's")
NONE = (1, "ERROR: (gcloud) NOT_FOUND: there is none")


def verbs(programs: Programs) -> list[str]:
    """`tpu-vm describe` and so on, without what only looks."""
    found = [" ".join(call[3:5]) for call in programs.calls()]
    return [each for each in found if "describe" not in each]


def test_a_tpu_is_made_and_runs_on_all_workers(tmp_path, project):
    programs = Programs(
        tmp_path, ("tpu-vm describe", *NONE), ("queued-resources describe", *NONE), ("tpu-vm describe", *NONE),
        ("queued-resources describe", 0, "WAITING_FOR_RESOURCES"), ("tpu-vm describe", 0, "READY"),
    )  # fmt: skip
    code, output, errors = launch(*TPU, *RUN, root=project, path=programs.folder)
    assert (code, output, errors) == (0, "waiting for dogs: WAITING_FOR_RESOURCES\n", "")
    made, copied, ran = (call for call in programs.calls() if "describe" not in call)
    zone = "--zone=us-central2-b"
    assert made == [
        "gcloud", "compute", "tpus", "queued-resources", "create", "dogs", "--node-id=dogs",
        "--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot", "--async", zone,
    ]  # fmt: skip
    assert copied[3:] == [
        "tpu-vm", "scp", f"{project}/runs/launch/tpu-dogs.tar.gz", "dogs:jaxcnn.tar.gz", "--worker=all", zone,
    ]  # fmt: skip
    assert ran[3:7] == ["tpu-vm", "ssh", "dogs", "--worker=all"]
    assert ran[7].startswith("--command=bash -c ")


@pytest.mark.skipif(sys.platform != "linux", reason="the workers' system has setsid and tail --pid")
def test_a_tpus_worker_sets_up_runs_and_shows(tmp_path, project):
    """What a worker is told, run here; the same again while it runs shows it, and begins nothing."""
    programs = Programs(tmp_path, ("tpu-vm describe", 0, "READY"))
    assert launch(*TPU, *RUN, root=project, path=programs.folder)[0] == 0
    line = programs.calls()[-1][-2].removeprefix("--command=")
    shutil.move(project / "runs/launch/tpu-dogs.tar.gz", tmp_path / "jaxcnn.tar.gz")
    (tmp_path / "stand_in").write_text(
        '#!/usr/bin/env bash\ntrap "echo saved; exit 75" TERM\nprintf "%s\\n" began "$@"\n'
        "while [ ! -e end ]; do sleep 0.05; done\nexit 3\n"
    )
    (tmp_path / "stand_in").chmod(0o755)
    place, log = tmp_path / "jaxcnn", tmp_path / "jaxcnn/run.log"

    def worker(line: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def wait_for_line(count: int) -> None:
        deadline = time.monotonic() + 30
        while not (log.exists() and log.read_text().count("began") == count):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    first = worker(line)
    wait_for_line(1)
    second = worker(line)
    assert second.stdout is not None
    assert second.stdout.readline() == "began\n"  # it shows the first one's run, which has not ended
    (place / "end").touch()
    outputs = [each.communicate(timeout=30)[0] for each in (first, second)]
    assert (first.returncode, second.returncode) == (3, 3)
    said = "\n".join(["began", "-m", "jaxcnn.main", *RUN, "--distributed=jax"])
    assert outputs[0] == f"set up with tpu,gcs\n{said}\n"
    assert log.read_text().count("began") == 1
    (place / "end").unlink()
    third = worker(line)
    wait_for_line(2)
    _, stop, _ = launch(*TPU, "--dry-run", "stop")
    assert worker(shlex.split(stop)[-2].removeprefix("--command=")).wait(timeout=30) == 0
    assert third.communicate(timeout=30)[0].endswith("saved\n")
    assert third.returncode == 75


def test_a_tpu_that_is_taken_away_is_made_anew(tmp_path, project):
    programs = Programs(
        tmp_path, ("tpu-vm describe", 0, "READY"), ("tpu-vm ssh", 255, "lost"), ("tpu-vm describe", 0, "PREEMPTED"),
        ("queued-resources describe", 0, "SUSPENDING"), ("tpu-vm describe", 0, "PREEMPTED"),
        ("queued-resources describe", 0, "SUSPENDED"), ("tpu-vm describe", *NONE),
        ("queued-resources describe", *NONE), ("tpu-vm describe", 0, "READY"),
    )  # fmt: skip
    code, output, errors = launch(*TPU, *RUN, root=project, path=programs.folder)
    assert code == 0
    assert "the run on dogs ended with 255; it goes on (1 of 20)" in errors
    assert "dogs is SUSPENDED: it is deleted and made anew" in output
    assert verbs(programs) == [
        "tpu-vm scp", "tpu-vm ssh", "queued-resources delete", "queued-resources create", "tpu-vm scp", "tpu-vm ssh",
    ]  # fmt: skip


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_run_that_ended_on_a_ready_tpu_is_left(tmp_path, project, code):
    ready = ("tpu-vm describe", 0, "READY")
    programs = Programs(tmp_path, ready, ready, ("tpu-vm ssh", code, ""))
    assert launch(*TPU, *RUN, root=project, path=programs.folder)[0] == code
    assert verbs(programs) == ["tpu-vm scp", "tpu-vm ssh"]


def test_a_tpu_that_is_gone_before_the_copy_is_waited_for(tmp_path, project):
    """gcloud's own 1 is not the run's."""
    ready = ("tpu-vm describe", 0, "READY")
    programs = Programs(tmp_path, ready, ("tpu-vm scp", 1, "not ready"), ("tpu-vm describe", 0, "REPAIRING"), ready)
    assert launch(*TPU, *RUN, root=project, path=programs.folder)[0] == 0
    assert verbs(programs) == ["tpu-vm scp", "tpu-vm scp", "tpu-vm ssh"]


def test_gcloud_that_cannot_say_is_one_line(tmp_path, project):
    programs = Programs(tmp_path, ("tpu-vm describe", 1, "ERROR: you do not have an active account\nRun: gcloud auth"))
    code, _, errors = launch(*TPU, *RUN, root=project, path=programs.folder)
    assert (code, errors) == (1, "jaxcnn: gcloud: ERROR: you do not have an active account Run: gcloud auth\n")


def test_a_tpu_is_deleted_whoever_made_it(tmp_path, project):
    programs = Programs(tmp_path, ("queued-resources describe", *NONE), ("queued-resources describe", 0, "ACTIVE"))
    for _ in range(2):
        assert launch("tpu", "dogs", "--zone=z", "--project=pets", "delete", root=project, path=programs.folder)[0] == 0
    alone, queued = (call for call in programs.calls() if "describe" not in call)
    assert alone[3:] == ["tpu-vm", "delete", "dogs", "--quiet", "--zone=z", "--project=pets"]
    assert queued[3:] == ["queued-resources", "delete", "dogs", "--force", "--quiet", "--zone=z", "--project=pets"]


K8S = ("k8s", "dogs", "--image=registry/jaxcnn:1", "--nodes=4")


def made(programs: Programs) -> dict[str, Any]:
    return dict(json.loads((programs.folder / "given").read_text()))


def test_kubernetes_gets_a_jobset(tmp_path, project):
    programs = Programs(tmp_path)
    given = (*K8S, "--gpus=8", "--claim=disk", "--namespace=lab", EXPERIMENT, "--workdir=/runs/$(HOME)")
    code, _, errors = launch(*given, root=project, path=programs.folder)
    assert (code, errors) == (0, "")
    assert programs.calls() == [["kubectl", "--namespace=lab", "create", "--filename=-"]]
    jobset = made(programs)
    assert (jobset["apiVersion"], jobset["kind"], jobset["metadata"]) == (
        "jobset.x-k8s.io/v1alpha2", "JobSet", {"name": "dogs"},
    )  # fmt: skip
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"], job["backoffLimit"]) == ("Indexed", 4, 4, 0)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "jaxcnn.main", EXPERIMENT, "--workdir=/runs/$$(HOME)"]
    assert container["resources"] == {"requests": {"nvidia.com/gpu": "8"}, "limits": {"nvidia.com/gpu": "8"}}
    env = {each["name"]: each.get("value") for each in container["env"]}
    # The name that JobSet gives the first pod, in the service that it makes.
    coordinator = f"dogs-{replicated['name']}-0-0.dogs:8476"
    assert env == {
        "JAX_PLATFORMS": "cuda", "JAXCNN_COORDINATOR": coordinator, "JAXCNN_NUM_PROCESSES": "4",
        "JAXCNN_PROCESS_ID": None,
    }  # fmt: skip
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    # A wrong command is not tried again: the names must agree.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["onExitCodes"]["containerName"], rule["onExitCodes"]["values"]) == (container["name"], [1, 2])
    assert (pod["restartPolicy"], jobset["spec"]["failurePolicy"]["maxRestarts"]) == ("Never", 20)


def test_kubernetes_gives_tpus(tmp_path, project):
    programs = Programs(tmp_path)
    given = (*K8S, "--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--account=writer", "--memory=64Gi", *RUN)
    assert launch(*given, root=project, path=programs.folder)[0] == 0
    pod = made(programs)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["resources"] == {
        "requests": {"memory": "64Gi", "google.com/tpu": "4"}, "limits": {"google.com/tpu": "4"},
    }  # fmt: skip
    assert (pod["serviceAccountName"], pod["containers"][0]["env"][0]["value"]) == ("writer", "tpu")


def test_kubernetes_shows_and_deletes(tmp_path, project):
    programs = Programs(tmp_path, ("logs", 1, "no pods"))
    assert launch("k8s", "dogs", "logs", root=project, path=programs.folder)[0] == 1
    assert launch("k8s", "dogs", "delete", root=project, path=programs.folder)[0] == 0
    assert programs.calls()[1] == ["kubectl", "delete", "jobset", "dogs"]


@pytest.mark.parametrize("place", ["local", "slurm", "tpu", "k8s"])
def test_each_place_has_help(place):
    code, output, errors = launch(place, "--help")
    assert (code, errors) == (0, "")
    assert f"launch.sh {place}" in output
    assert "--dry-run: " in output


WRONG = {
    "no such place": ("slrum --nodes 2", "did you mean 'slurm'"),
    "no number": ("local", "give a number of processes first"),
    "number of none": ("local 0 EXPERIMENT", "give a number of processes first"),
    "no experiment": ("local 2", "no experiment given"),
    "no such experiment": ("slurm --config=experiments/digit.py", "there is no such file"),
    "an option that is none": ("slurm --node=2 EXPERIMENT", "did you mean '--nodes'"),
    "an option without a value": ("slurm --nodes --gpus=1 EXPERIMENT", "--nodes has no value"),
    "a flag with a value": ("slurm --dry-run=1 EXPERIMENT", "--dry-run takes no value"),
    "nodes that are no number": ("slurm --nodes=two EXPERIMENT", "--nodes=two is not a number from 1"),
    "a line in a name": ("slurm --name=a$'\\n'#SBATCH EXPERIMENT", "--name=a #SBATCH is not a name"),
    "a time that is none": ("slurm --time=soon EXPERIMENT", "--time=soon is not a time"),
    "an array of one run": ("slurm --array=4 EXPERIMENT", "--array is for sweep and search"),
    "a sweep over nodes": ("slurm --nodes=2 sweep EXPERIMENT", "pass --array=N"),
    "a process for no GPU": ("slurm --process-per=gpu EXPERIMENT", "--process-per=gpu without GPUs"),
    "an open quote for sbatch": ('slurm --sbatch="--comment=\'a" EXPERIMENT', "No closing quotation"),
    "a script for sbatch": ("slurm --sbatch=other.sh EXPERIMENT", "--sbatch takes options"),
    "what is not launched": ("slurm evaluate --workdir=x", "evaluate is nothing that is launched so"),
    "sweep on TPUs": ("tpu a --zone=z --type=v4-8 sweep EXPERIMENT", "one of: train"),
    "a workdir of nothing": ("slurm EXPERIMENT --workdir=", "--workdir is empty"),
    "an argument of two lines": ("slurm EXPERIMENT --config.data.name=a$'\\n'b", "has an end of line"),
    "an argument that is no text": ("slurm EXPERIMENT --config.data.name=a$'\\xff'", "is no UTF-8"),
    "a home of nobody": ("slurm EXPERIMENT --workdir='~nobody-here/a'", "write the home folder out"),
    "a name that is too long": ("slurm --config=$(printf %5000s | tr ' ' x)", "there is no such file"),
    "no name": ("tpu --zone=z EXPERIMENT", "give the TPU's name first"),
    "no zone": ("tpu a EXPERIMENT", "no zone given"),
    "no type": ("tpu a --zone=z EXPERIMENT", "no type of TPU given"),
    "a disk of a TPU": ("tpu a --zone=z --type=v4-8 EXPERIMENT --workdir=runs/a", "pass --workdir=gs://"),
    "a name that no host has": ("k8s A_1 EXPERIMENT", "small letters, digits and '-'"),
    "no image": ("k8s a EXPERIMENT --workdir=gs://b/c", "no image given"),
    "TPUs without a topology": ("k8s a --image=i --tpu=t EXPERIMENT", "--tpu and --topology go together"),
    "GPUs and TPUs": ("k8s a --image=i --tpu=t --topology=2x2 --gpus=1 EXPERIMENT", "one or the other"),
    "a disk of a pod": ("k8s a --image=i EXPERIMENT --workdir=runs/a", "a pod's disk goes with it"),
    "beside the claim": ("k8s a --image=i --claim=c EXPERIMENT --workdir=runs/a", "pass --workdir=/runs/NAME"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_is_one_line(name, capsys):
    line, says = WRONG[name]
    words = subprocess.run(  # as a shell splits it
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, errors="surrogateescape"
    ).stdout.split("\0")[:-1]
    code = launch_main(["launch", *(EXPERIMENT if word == "EXPERIMENT" else word for word in words)])
    output, errors = capsys.readouterr()
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert says in errors


def test_a_reader_may_leave_early():
    line = (
        f"{shlex.quote(sys.executable)} -m jaxcnn.launch slurm --dry-run {EXPERIMENT} | true; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_gpu_goes_to_one_process(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(local, "cuda_devices", lambda: ["0", "1", "2", "3", "GPU-5"])
    assert [each.variables for each in local.shares(2, on_cpu=False)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]  # fmt: skip
    assert local.shares(6, on_cpu=True)[0].variables == {}
    with pytest.raises(UserError, match="there are 5 GPUs here"):
        local.shares(6, on_cpu=False)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system pins no process")
def test_each_core_goes_to_one_process_while_there_are_enough(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 6, 7})
    assert [each.cores for each in local.shares(2, on_cpu=True)] == [(0, 1), (2, 6)]
    assert [each.cores for each in local.shares(6, on_cpu=True)] == [()] * 6


def test_launch_sh_leads_there():
    done = subprocess.run(
        ["./launch.sh", "slurm", "--dry-run", EXPERIMENT], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("#!/usr/bin/env bash\n#SBATCH")


def test_what_a_launch_leaves_may_lie_where_a_run_begins(tmp_path):
    command = Command("train", (EXPERIMENT, f"--workdir={tmp_path}"))
    assert command.logs.name == workdir.LAUNCH
    command.logs.mkdir()
    assert workdir.check(epath.Path(tmp_path), "digits", Config()) is False
