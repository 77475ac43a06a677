"""Runs a training on all workers of a Cloud TPU: launch.sh tpu NAME --zone Z --type T [train] --config FILE …

NAME is a TPU VM that is ready, or a queued resource, which is made where there is none and anew where it was suspended.
The run outlives this command; the same command again shows it. launch.sh tpu NAME --zone Z logs, stop or delete.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.launch.arguments import COUNT, DRY_RUN, Command, Option, command_of, parse
from jaxcnn.launch.system import ROOT, ask, call, complain, need, pack, quoted, tell

OPTIONS = {
    "zone": Option("the zone, as us-central2-b"),
    "type": Option("the accelerator's type, as v4-8"),
    "version": Option("the TPU software", "tpu-ubuntu2204-base"),
    "project": Option("the cloud project; none: gcloud's", "", "[a-z][a-z0-9:.-]{1,80}", "a project's name"),
    "spot": Option("a cheaper TPU, which may be taken away", is_flag=True),
    "restarts": Option("times that it goes on by itself on a TPU made anew, or after a process died", "20", COUNT),
    "dry-run": DRY_RUN,
}
ACTIONS = {
    "logs": "tail -n 100 -F jaxcnn/run.log",
    "stop": 'kill -TERM -- "-$(cat jaxcnn/run.pid)"',  # the run saves first
}
FILES = ("launch.sh", "pyproject.toml", "README.md", "LICENSE", "jaxcnn", "experiments")
WAIT_SECONDS = 20.0  # between two looks at a TPU that is not there yet
_TPU_NAME = "[a-z]([a-z0-9-]{0,60}[a-z0-9])?"
_DEAD = ("SUSPENDED", "FAILED")  # a queued resource, which nothing brings back
_LOST = 255  # ssh's own exit code: the connection, or the machine


def launch(argv: list[str]) -> int:
    """Brings the TPU up, copies the project there, and follows the run; returns the run's exit code."""
    name, *rest = argv or [""]
    if not re.fullmatch(_TPU_NAME, name):
        raise UserError(f"tpu {name[:40]!r}: give the TPU's name first: small letters, digits and '-'")
    values, words = parse(rest, OPTIONS)
    if not values["zone"]:
        raise UserError("no zone given; pass --zone=us-central2-b or another")
    tpu = Tpu(name, values)
    command = None if words in (["logs"], ["stop"], ["delete"]) else command_of(words, OPTIONS, "train")
    if command is not None:
        _check(values, command)
    if not values["dry-run"]:
        need("gcloud", "install Google's Cloud SDK, or look with --dry-run")
    if command is None:
        return _act(tpu, words[0], show=bool(values["dry-run"]))
    script = remote_script(command)
    if values["dry-run"]:
        for each in (
            tpu.describe("tpu-vm"),
            tpu.describe("queued-resources"),
            tpu.create(),
            tpu.copy(),
            tpu.ssh(script),
        ):
            tell(quoted(each))
        return 0
    return _follow(tpu, script, int(values["restarts"]))


def _check(values: dict[str, str], command: Command) -> None:
    """Raises UserError where it could not run."""
    if not values["type"]:
        raise UserError("no type of TPU given; pass --type=v4-8 or another")
    if not (command.workdir or "").startswith("gs://"):
        raise UserError("a TPU's disks go with it, and its workers share none: pass --workdir=gs://BUCKET/NAME")


@dataclass(frozen=True)
class Tpu:
    """What gcloud is told of one TPU."""

    name: str
    values: dict[str, str]

    def _gcloud(self, kind: str, verb: str, *more: str) -> list[str]:
        project = [f"--project={self.values['project']}"] if self.values["project"] else []
        return ["gcloud", "compute", "tpus", kind, verb, *more, f"--zone={self.values['zone']}", *project]

    def describe(self, kind: str) -> list[str]:
        """Prints the state."""
        field = "state" if kind == "tpu-vm" else "state.state"
        return self._gcloud(kind, "describe", self.name, f"--format=value({field})")

    def create(self) -> list[str]:
        """Queues for one."""
        return self._gcloud(
            "queued-resources", "create", self.name, f"--node-id={self.name}",
            f"--accelerator-type={self.values['type']}", f"--runtime-version={self.values['version']}",
            *(["--spot"] if self.values["spot"] else []), "--async",
        )  # fmt: skip

    def delete(self, kind: str) -> list[str]:
        """Deletes it, and of a queued resource the TPU."""
        return self._gcloud(kind, "delete", self.name, *(["--force"] if kind == "queued-resources" else []), "--quiet")

    def copy(self) -> list[str]:
        """Copies the project's archive to every worker."""
        return self._gcloud("tpu-vm", "scp", str(self.archive), f"{self.name}:jaxcnn.tar.gz", "--worker=all")

    def ssh(self, script: str, worker: str = "all") -> list[str]:
        """Runs a script of bash's on workers."""
        line = quoted(["bash", "-c", script])
        return self._gcloud("tpu-vm", "ssh", self.name, f"--worker={worker}", f"--command={line}")

    def state(self, kind: str) -> str | None:
        """None: there is none. Raises RunError where gcloud cannot say."""
        code, output, errors = ask(self.describe(kind))
        if code and re.search("NOT_FOUND|not found", errors):
            return None
        if code:
            raise RunError(f"gcloud: {errors}")
        return output

    @property
    def archive(self) -> Path:
        """Of the project's files, here."""
        return ROOT / "runs" / "launch" / f"tpu-{self.name}.tar.gz"


def _act(tpu: Tpu, action: str, *, show: bool) -> int:
    """`logs`, `stop` or `delete`."""
    if action == "delete":
        is_queued = show or tpu.state("queued-resources") is not None
        command = tpu.delete("queued-resources" if is_queued else "tpu-vm")
    else:
        command = tpu.ssh(ACTIONS[action], worker="0" if action == "logs" else "all")
    if show:
        tell(quoted(command))
        return 0
    return call(command)


def _follow(tpu: Tpu, script: str, restarts: int) -> int:
    """Runs it, and goes on with it where the TPU was taken away, the connection was lost or a process was killed."""
    code = Preempted.exit_code
    for again in range(restarts + 1):
        _bring_up(tpu)
        pack(tpu.archive, FILES)
        code = call(tpu.copy()) or call(tpu.ssh(script))
        if code in (0, 2) or (code < 128 and tpu.state("tpu-vm") == "READY"):
            return code
        if again < restarts:
            complain(f"the run on {tpu.name} ended with {code}; it goes on ({again + 1} of {restarts})")
    return Preempted.exit_code if code == _LOST else code


def _bring_up(tpu: Tpu) -> None:
    """Returns once the TPU is ready. Raises RunError where it cannot be."""
    told = None
    while (vm := tpu.state("tpu-vm")) != "READY":
        queued = tpu.state("queued-resources")
        if queued in _DEAD:
            tell(f"{tpu.name} is {queued}: it is deleted and made anew")
            _must(tpu.delete("queued-resources"))
        elif queued is None and vm == "PREEMPTED":
            tell(f"{tpu.name} is {vm}: it is deleted and made anew")
            _must(tpu.delete("tpu-vm"))
        elif queued is None and vm in ("STOPPED", "TERMINATED"):
            raise RunError(f"{tpu.name} is {vm}; start it, or launch.sh tpu {tpu.name} delete")
        elif queued is None and vm is None:
            _must(tpu.create())
        else:
            if (queued, vm) != told:
                tell(f"waiting for {tpu.name}: {queued or vm}")
            told = (queued, vm)
            time.sleep(WAIT_SECONDS)


def _must(command: list[str]) -> None:
    if call(command):
        raise RunError(f"gcloud failed, and says above why: {quoted(command)}")


def remote_script(command: Command) -> str:
    """What each worker does: begins the run, where it is not there, and shows it; its exit code is the run's."""
    words = [".venv/bin/python", *command.words]
    words += [] if command.values_of("distributed") else ["--distributed=jax"]
    return SCRIPT.format(run=quoted(words))


SCRIPT = """\
mkdir -p jaxcnn && cd jaxcnn || exit
if ! kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null; then
  rm -rf jaxcnn experiments run.code
  tar -xzf ../jaxcnn.tar.gz || exit
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    [ -x .venv/bin/python ] || {{ python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --seed --python 3.12 .venv; }} || exit
    export PYTHON=.venv/bin/python
  fi
  JAXCNN_EXTRAS=tpu,gcs ./launch.sh setup || exit
  setsid nohup bash -c 'trap : TERM; "$@"; echo $? >run.code' run {run} >>run.log 2>&1 </dev/null &
  echo $! >run.pid
fi
tail -n 50 -F --pid="$(cat run.pid)" run.log
exit "$(cat run.code || echo 255)"
"""
