"""A real SLURM of two nodes by name on this machine, by loopback alone. Needs root, slurm-wlm and munge."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "unshare")
# A requeued job waits until its credential has expired.
CONF = """\
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool.%n
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.%n.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=1
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
LaunchParameters=disable_send_gids
SlurmdTimeout=10
ReturnToService=2
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return "SLURM's daemons need root" if os.getuid() else f"not installed: {', '.join(absent)}" if absent else None


@dataclass
class Cluster:
    """Two nodes: the environment of SLURM's commands, and each node's daemon, in a mount namespace of its own."""

    environment: dict[str, str]
    begin: Callable[[list[str]], subprocess.Popen]
    commands: list[list[str]]
    nodes: list[subprocess.Popen]

    def kill_node(self, index: int) -> None:
        """Kills all that runs on a node, as when its power fails."""
        here = os.readlink(f"/proc/{self.nodes[index].pid}/ns/mnt")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns/mnt") == here:
                    os.kill(int(process.name), signal.SIGKILL)
        self.nodes[index].wait()

    def start_node(self, index: int) -> None:
        """Has a node come back."""
        self.nodes[index] = self.begin(self.commands[index])


@contextlib.contextmanager
def cluster(here: Path) -> Iterator[Cluster]:
    """Daemons that run until the end."""
    (here / "state").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listed = "".join(
        f"NodeName=node{index} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port + 1 + index} CPUs=2\n"
        for index in range(2)
    )
    conf, hosts, key = here / "slurm.conf", here / "hosts", here / "munge.key"
    conf.write_text(f"{CONF.format(here=here, port=port)}{listed}PartitionName=main Nodes=node[0-1] Default=YES\n")
    hosts.write_text(Path("/etc/hosts").read_text() + "127.0.0.1 node0\n127.0.0.1 node1\n")
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    # The first node's name is the coordinator's address: these daemons alone see hosts in which it is.
    as_node = 'mount --bind "$0" /etc/hosts && exec slurmd -D -N "$1"'
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={here}/munge.socket",
         f"--pid-file={here}/munged.pid", f"--seed-file={here}/munged.seed", f"--log-file={here}/munged.log"],
        ["slurmctld", "-D", "-c"],
    ]  # fmt: skip
    nodes = [["unshare", "-m", "sh", "-c", as_node, str(hosts), f"node{index}"] for index in range(2)]
    running = []

    def begin(daemon: list[str]) -> subprocess.Popen:
        with open(here / "daemons.log", "ab") as log:
            running.append(subprocess.Popen(daemon, env=environment, stdout=log, stderr=log))
        time.sleep(0.5)
        return running[-1]

    try:
        for daemon in daemons:
            begin(daemon)
        found = Cluster(environment, begin, nodes, [begin(node) for node in nodes])
        _wait_until_idle(environment)
        yield found
        subprocess.run(["scancel", "--user=root"], env=environment)
    finally:
        for each in reversed(running):
            each.terminate()
        for each in reversed(running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(timeout=20)
            each.kill()


def _wait_until_idle(environment: dict[str, str]) -> None:
    for _ in range(120):
        told = subprocess.run(
            ["sinfo", "-h", "-t", "idle", "-o", "%D"], env=environment, capture_output=True, text=True
        )
        if told.stdout.strip() == "2":
            return
        time.sleep(0.5)
    raise AssertionError("the nodes are not idle")
