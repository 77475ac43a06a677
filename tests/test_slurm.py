"""launch.sh slurm on a real SLURM of two nodes by name: signalled, queued again, killed, cancelled, finished."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import slurm
from tests.commands import ROOT, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]
STAND_IN = """#!/usr/bin/env bash
trap 'echo $SLURM_PROCID saved; exit 75' TERM
echo "$SLURM_PROCID of $SLURM_STEP_NUM_TASKS began on $SLURM_STEP_NODELIST as $$ after ${SLURM_RESTART_COUNT:-0}"
while [ ! -e end ]; do sleep 0.1; done
"""
SHORT = ("--config.model.name=mlp", "--config.num_epochs=5", "--config.tensorboard=false")
TRAINING = f"""#!/usr/bin/env bash
export PYTHONPATH={ROOT}
exec {sys.executable} "$@"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "here") as found:
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project, installed: what its interpreter is each test says."""
    return installed(tmp_path)


def installed(folder: Path) -> Path:
    for each in ("jaxcnn", "experiments"):
        shutil.copytree(ROOT / each, folder / each)
    (folder / "launch.sh").write_text("#!/usr/bin/env bash\necho set up\n")
    (folder / "launch.sh").chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    return folder


class Job:
    """A job of two nodes, a core each."""

    def __init__(self, project: Path, cluster: slurm.Cluster, python: str, *arguments: str, name: str = "run"):
        self.environment, self.folder = {**environment(), **cluster.environment}, project / name
        interpreter = project / ".venv/bin/python"
        interpreter.write_text(python)
        interpreter.chmod(0o755)
        words = ["--nodes=2", "--cpus=1", "--config=experiments/digits.py", f"--workdir={self.folder}", *arguments]
        output = self.run(sys.executable, "-m", "jaxcnn.launch", "slurm", *words, cwd=project)
        self.number = output.split()[1]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self) -> str:
        file = self.folder / "launch" / f"{self.number}.out"
        return file.read_text() if file.exists() else ""

    def told(self, pattern: str) -> str:
        """What SLURM says of the job."""
        found = re.search(pattern, self.run("scontrol", "show", "job", self.number))
        assert found
        return found[1]

    def signal(self) -> None:
        self.run("scancel", "--signal=TERM", self.number)

    def wait(self, is_so: Callable[[], bool], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def wait_for_state(self, state: str) -> None:
        self.wait(lambda: self.told(r"JobState=(\w+)") == state)


def test_a_signal_a_death_and_an_end(project, cluster):
    job = Job(project, cluster, STAND_IN)
    job.wait(lambda: job.log().count("began") == 2)
    assert "0 of 2 began on node[0-1]" in job.log()
    job.signal()
    job.wait(lambda: job.log().count("began") == 4)
    assert job.log().count("saved") == 2
    *_, last = re.findall(r"as (\d+) after 1", job.log())
    subprocess.run(["kill", "-9", last], check=True)
    job.signal()  # in place of what the other process notices
    job.wait(lambda: job.log().count("began") == 6)
    (project / "end").touch()
    job.wait_for_state("COMPLETED")
    assert job.told(r"Restarts=(\d+)") == "2"


def test_a_job_that_is_cancelled_is_not_queued_again(project, cluster):
    job = Job(project, cluster, STAND_IN)
    job.wait(lambda: job.log().count("began") == 2)
    job.run("scancel", job.number)
    job.wait(lambda: job.log().count("saved") == 2)
    time.sleep(3)
    assert job.told(r"JobState=(\w+)") == "CANCELLED"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cluster: slurm.Cluster) -> Path:
    """The metrics of a run that nothing disturbs."""
    job = Job(installed(tmp_path_factory.mktemp("whole")), cluster, TRAINING, *SHORT)
    job.wait_for_state("COMPLETED")
    return job.folder / "metrics.jsonl"


def test_a_training_that_was_queued_again_is_the_same(project, cluster, whole):
    """As one that nothing disturbs. `launch.sh local` gives each process fewer cores: equal to rounding alone."""
    job = Job(project, cluster, TRAINING, *SHORT)
    metrics = job.folder / "metrics.jsonl"
    job.wait(lambda: metrics.exists() and metrics.read_text().count("validation") >= 2)
    job.signal()
    job.wait_for_state("COMPLETED")
    assert job.told(r"Restarts=(\d+)") == "1"
    assert "SIGTERM: saved at step" in job.log()
    assert metrics.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_dies_costs_what_was_not_saved(project, cluster, whole, node):
    """The first has the coordinator and writes the run; SLURM finds out by itself, and queues the job again."""
    job = Job(project, cluster, TRAINING, *SHORT)
    metrics = job.folder / "metrics.jsonl"
    job.wait(lambda: metrics.exists() and metrics.read_text().count("validation") >= 2)
    cluster.kill_node(node)
    job.wait(lambda: job.told(r"JobState=(\w+)") in ("PENDING", "REQUEUED"), seconds=120)
    cluster.start_node(node)
    job.wait_for_state("COMPLETED")
    assert int(job.told(r"Restarts=(\d+)")) >= 1
    assert metrics.read_bytes() == whole.read_bytes()
