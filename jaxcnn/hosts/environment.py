"""Which processes make a run: the command's --distributed, our own variables, or SLURM's and Open MPI's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxcnn.errors import UserError

OWN = ("JAXCNN_COORDINATOR", "JAXCNN_NUM_PROCESSES", "JAXCNN_PROCESS_ID")
LOCAL_DEVICE_IDS = "JAXCNN_LOCAL_DEVICE_IDS"  # which of this machine's GPUs the process takes: 0,1; else all it sees
MOST_PROCESSES = 65_536
_FIRST_PORT, _NUM_PORTS = 61_440, 4096  # of SLURM's jobs: two at once on one node get different ones


@dataclass(frozen=True)
class Cluster:
    """A run's processes, of which this is one."""

    coordinator: str  # HOST:PORT, at which process 0 listens
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None  # none: all that this process sees


def detect(distributed: str, environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that `--distributed` names, or that the environment speaks of where it is "auto"; None: one process.

    Raises UserError for what can be none.
    """
    if distributed == "off":
        return None
    if distributed != "auto":
        parts = distributed.rsplit(",", 2)
        if len(parts) != 3:
            raise UserError(f"--distributed={distributed[:80]} is neither auto, off, jax nor COORDINATOR:PORT,N,I")
        coordinator, number, index = parts
        return _checked(coordinator, number, index, environment.get(LOCAL_DEVICE_IDS), said_by="--distributed")
    own = [name for name in OWN if environment.get(name)]
    if own:
        missing = [name for name in OWN if name not in own]
        if missing:
            raise UserError(f"{own[0]} is set and {missing[0]} is not; set both, or pass --distributed=off")
        coordinator, number, index = (environment[name] for name in OWN)
        return _checked(coordinator, number, index, environment.get(LOCAL_DEVICE_IDS), said_by="the environment")
    return _of_slurm(environment) or _of_open_mpi(environment)


def _of_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """Of a step that srun began with several tasks. A batch script, and a shell of srun's, are one process."""
    number, index = environment.get("SLURM_STEP_NUM_TASKS", "1"), environment.get("SLURM_PROCID", "0")
    nodes, job = environment.get("SLURM_STEP_NODELIST"), environment.get("SLURM_JOB_ID", "")
    if number == "1" or nodes is None or not job.isdigit():
        return None
    coordinator = f"{first_node(nodes)}:{_FIRST_PORT + int(job) % _NUM_PORTS}"
    return _checked(coordinator, number, index, environment.get(LOCAL_DEVICE_IDS), said_by="SLURM")


def first_node(nodes: str) -> str:
    """The first name of a list of SLURM's: of `gpu[03-07,9],cpu1` gpu03."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?", nodes)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes[:80]} names no node; pass --distributed=COORDINATOR:PORT,N,I")
    return match[1] + (match[2] or "")


def _of_open_mpi(environment: Mapping[str, str]) -> Cluster | None:
    number = environment.get("OMPI_COMM_WORLD_SIZE", "1")
    if number == "1":
        return None
    address = re.search(r"tcp://([^,:;]+)[^:]*:(\d+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    if address is None:
        raise UserError(
            f"mpirun began {number} processes and does not say where the first one listens; pass mpirun "
            f"-x {OWN[0]}=HOST:PORT and --distributed=COORDINATOR:PORT,N,I, or --distributed=off"
        )
    coordinator = f"{address[1]}:{_FIRST_PORT + int(address[2]) % _NUM_PORTS}"
    index = environment.get("OMPI_COMM_WORLD_RANK", "0")
    return _checked(coordinator, number, index, environment.get(LOCAL_DEVICE_IDS), said_by="Open MPI")


def _checked(coordinator: str, number: str, index: str, device_ids: str | None, *, said_by: str) -> Cluster:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UserError(f"{said_by}: the coordinator {coordinator[:80]!r} is not HOST:PORT")
    if not re.fullmatch("[0-9]{1,5}", number) or not 0 < int(number) <= MOST_PROCESSES:
        raise UserError(f"{said_by}: {number[:20]!r} is no number of processes")
    if not re.fullmatch("[0-9]{1,5}", index) or int(index) >= int(number):
        raise UserError(f"{said_by}: {index[:20]!r} is not the number of one of {number} processes, which begin at 0")
    if device_ids is not None and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", device_ids):
        raise UserError(f"{LOCAL_DEVICE_IDS}={device_ids[:40]!r} is no list of devices, such as 0,1")
    ids = tuple(map(int, device_ids.split(","))) if device_ids else None
    return Cluster(coordinator, int(number), int(index), ids)
