"""Worker processes on this host: each on its share of the cores or accelerators, started once, ended with their parent.

They tell each other nothing: what they do is in the study's folder (running.py).
"""

import importlib.util
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from jaxcnn.ablation.board import Board
from jaxcnn.ablation.running import Job, work
from jaxcnn.ablation.study import StudyRun
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.machine import cuda_devices, quiet_libraries
from jaxcnn.run import stopping
from jaxcnn.terminal import one_line, take_over

LOOK_SECONDS = 0.5  # between two looks at the folder, and at the most until a signal is passed on
MOST_RESTARTS = 10  # of workers, without a run that has ended


@dataclass(frozen=True)
class Share:
    """What of the machine a worker has."""

    cores: tuple[int, ...]  # none: where the system pins no process
    devices: str | None  # CUDA_VISIBLE_DEVICES; none: CPUs


def shares(workers: int, platform: str | None) -> list[Share]:
    """As many equal shares; equal, since runs on other numbers of cores are equal up to rounding alone.

    Raises UserError where they do not fit.
    """
    pinned = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else list(range(os.cpu_count() or 1))
    on_cpu = platform == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu"
    if not on_cpu and importlib.util.find_spec("libtpu") is not None:
        raise UserError(f"--workers={workers}: one process has all TPU cores of a host; leave --workers out")
    devices = [] if on_cpu else cuda_devices()
    what, available = ("accelerators", devices) if devices else ("cores", list(map(str, cores)))
    if workers > len(available):
        raise UserError(f"--workers={workers}, but there are {len(available)} {what} here; lower it")
    most = max(1, len(cores) // workers)
    each = len(devices) // workers
    return [
        Share(
            tuple(cores[number * most : (number + 1) * most]) if pinned else (),
            ",".join(devices[number * each : (number + 1) * each]) if devices else None,
        )
        for number in range(workers)
    ]


# ---- in a worker


def _worker(job: Job, left: list[StudyRun], share: Share, answer: Connection) -> None:
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C is the parent's to hear: a second signal would end this process unsaved
    if share.cores:
        os.sched_setaffinity(0, share.cores)
    if share.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = share.devices
    quiet_libraries()
    take_over()
    stopping.at_once()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        work(job, left)
        answer.send((0, ""))
    except Preempted as error:
        _tell(answer, error)
        os._exit(error.exit_code)  # as run_command does
    except (UserError, RunError) as error:
        _tell(answer, error)
        os._exit(error.exit_code)
    except Exception as error:  # our own fault: another worker would meet it, too
        _tell(answer, RunError(f"{type(error).__name__}: {one_line(error)}"))
        raise


def _tell(answer: Connection, error: Any) -> None:
    try:
        answer.send((error.exit_code, one_line(error)))
        answer.close()
    except OSError:  # the parent is gone
        return


def _end_with_parent() -> None:
    """Has this process save and end where its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


# ---- in their parent


def supervise(job: Job, parts: list[Share], board: Board) -> None:
    """Has a worker on each share run what is left, until nothing is; another takes the place of one that was killed.

    Raises:
      UserError: the study cannot run here.
      RunError: the disk is full, or workers end as soon as they begin.
      Preempted: a signal came, and the workers have saved.
    """
    crew: dict[Share, tuple[Any, Any]] = {}
    restarts = 0
    with stopping.between_steps() as signals:
        try:
            for share in parts:
                crew[share] = _start(job, board.standing.left, share)
            while crew and not signals:
                wait([process.sentinel for process, _ in crew.values()], timeout=LOOK_SECONDS)
                num_left = len(board.standing.left)
                board.look()
                restarts = restarts if len(board.standing.left) == num_left else 0
                for share in [share for share, (process, _) in crew.items() if not process.is_alive()]:
                    if _has_finished(*crew.pop(share)):
                        continue
                    restarts += 1
                    if restarts > MOST_RESTARTS:
                        raise RunError("workers are killed again and again, maybe for want of memory; lower --workers")
                    crew[share] = _start(job, board.standing.left, share)
        finally:
            _stop(crew)


def _start(job: Job, left: list[StudyRun], share: Share) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    answer, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(job, left, share, theirs))
    process.start()
    theirs.close()
    return process, answer


def _has_finished(process: Any, answer: Any) -> bool:
    """Whether a worker that has ended found nothing left; False: it was killed. Raises what it ended with."""
    try:
        code, line = answer.recv()
    except (EOFError, OSError):
        return False
    for kind in (UserError, RunError, Preempted):
        if code == kind.exit_code:
            raise kind(line)
    return True


def _stop(crew: dict[Share, tuple[Any, Any]]) -> None:
    """Has all of them save and end, and waits for it."""
    for process, _ in crew.values():
        process.terminate()
    for process, _ in crew.values():
        process.join()
