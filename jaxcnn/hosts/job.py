"""A job, several processes that make one run: how it begins, what its processes agree on, and how one ends them all.

JAX's multi-controller runtime does the work, and its coordinator carries what the processes tell each other; large
values go over the devices. Without a job, each function here does what a lone process needs.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.files import from_json, to_json
from jaxcnn.hosts.environment import Cluster, detect
from jaxcnn.terminal import complain, complain_at_length, one_line

SILENCE = 20  # seconds without a sign of a process before the others give it up
HEARTBEAT = 60  # seconds before JAX may give it up, which names nobody and aborts
_BEAT = 5.0  # seconds between two signs
BEGIN_WITHIN = 120  # seconds in which all processes must have begun
END_WITHIN = 30  # seconds in which all must leave, once all are done
AGREE_WITHIN = 6 * 3600  # seconds for the slowest to read its data, or for a checkpoint to be on disk
_PATIENCE = 5.0  # seconds that a process which fails leaves the others to hear of it
_IN_STORE = 1 << 20  # bytes: what is larger is told over the devices
_PIECE = 1 << 26  # bytes at a time over the devices
_FAILED = "jaxcnn/failed"

LOST = "the same command goes on from the last checkpoint"


@dataclass
class _Job:
    client: Any
    index: int
    names: list[str]  # of its processes: process 1 on gpu07
    told: int = 0  # agreements so far, the same number in each process
    asked: int = 0  # times that asked_to_stop was called, the same in each
    agreed: BaseException | None = None  # an error that every process has
    heard: dict[int, float] = field(default_factory=dict)  # process -> the clock at its last sign; of all in process 0
    ended: bool = False


_job: _Job | None = None


def number() -> int:
    """Processes of the run."""
    return 1 if _job is None else len(_job.names)


def is_first() -> bool:
    """Whether this is the process that writes the run's folder and to the terminal."""
    return _job is None or _job.index == 0


def names() -> list[str]:
    """What each process is called, by its number; none without a job."""
    return [] if _job is None else list(_job.names)


# ---- the beginning and the end


@contextlib.contextmanager
def joined(distributed: str) -> Iterator[None]:
    """Makes this process one of a job, for the block, where `--distributed` or the environment say so.

    An error in the block ends the processes of the job, each with its exit code and a line; nothing is raised then.

    Raises:
      UserError: there is no such job, or the others are not there.
    """
    global _job
    cluster = None if distributed == "jax" else detect(distributed, os.environ)
    if cluster is None and distributed != "jax":
        yield
        return
    if cluster is not None:
        _check_coordinator(cluster)
    _job = _begin(cluster)
    try:
        yield
        _end()
    except BaseException as error:
        _leave(error)
    _job = None


def _begin(cluster: Cluster | None) -> _Job:
    """Connects; None: JAX looks for itself, as on TPUs. Raises UserError."""
    import jax
    from jax._src import distributed

    where: dict[str, Any] = {}
    if cluster is not None:
        where = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
            "local_device_ids": cluster.local_device_ids,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=BEGIN_WITHIN,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=END_WITHIN,
        )
    except Exception as error:  # a port that is taken, a process that does not come, nothing that JAX can find
        raise UserError(f"the processes of the run do not find each other: {one_line(error)[:300]}") from None
    state = distributed.global_state
    signal.set_wakeup_fd(-1)  # a signal ends no process alone; SIGTERM is JAX's from here on
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    own = f"process {state.process_id} on {socket.gethostname()}"
    job = _Job(state.client, state.process_id, [own] * state.num_processes)
    job.names = _tell_all(job, own)
    watched = range(1, len(job.names)) if job.index == 0 else range(1)
    job.heard = dict.fromkeys(watched, time.monotonic())
    for target in (_listen, _give_signs, _watch):
        threading.Thread(target=target, args=(job,), name=target.__name__, daemon=True).start()
    return job


def _check_coordinator(cluster: Cluster) -> None:
    """Raises UserError unless process 0 listens, or this is process 0 and may. JAX would end the process."""
    host, _, port = cluster.coordinator.rpartition(":")
    address = host.strip("[]"), int(port)
    if cluster.process_id == 0:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", address[1]))
        except OSError as error:
            raise UserError(f"process 0 cannot listen at port {port}: {error.strerror}; choose another") from None
        return
    before = time.monotonic()
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() - before > BEGIN_WITHIN:
                raise UserError(
                    f"process {cluster.process_id} cannot reach the coordinator at {cluster.coordinator} "
                    f"({error.strerror or error}) within {BEGIN_WITHIN} s; is process 0 there, and the port open?"
                ) from None
        time.sleep(0.5)


def _end() -> None:
    """Waits for all, then disconnects."""
    import jax

    job = _need_job()
    _wait_for_all(job)
    job.ended = True
    if job.index == 0:
        job.client.key_value_set(_FAILED, "")  # whoever listens can leave
    jax.distributed.shutdown()


def _leave(error: BaseException) -> NoReturn:
    """Ends this process, and by what it tells the others all of the job."""
    job = _need_job()
    if isinstance(error, Preempted) or error is job.agreed:
        code = getattr(error, "exit_code", 1)
        if job.index == 0:
            complain(error)
        with contextlib.suppress(Exception):
            _end()
        _exit(code)
    if _is_of_another(error):
        _say_lost(job, error)
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    if out_of_memory or isinstance(error, UserError | RunError | OSError | KeyboardInterrupt):
        code, line = getattr(error, "exit_code", 1), f"{job.names[job.index]} failed: {one_line(error)}"
        complain(line)
    elif isinstance(error, SystemExit):
        code, line = int(error.code or 0), f"{job.names[job.index]} left with {error.code}"
    else:
        code, line = 1, f"{job.names[job.index]} failed: {type(error).__name__}: {one_line(error)}"
        complain_at_length(traceback.format_exc())
    _tell_failure(job, code, line)
    _exit(code)


def _tell_failure(job: _Job, code: int, line: str) -> None:
    """Tells the others; the coordinator's process stays until they know."""
    told = {"process": job.index, "code": code, "line": line[:1000]}
    with contextlib.suppress(Exception):  # another has failed before, or the coordinator is gone
        job.client.key_value_set(_FAILED, to_json(told))
    if job.index:
        return
    before = time.monotonic()
    with contextlib.suppress(Exception):
        while time.monotonic() - before < _PATIENCE and len(job.client.key_value_dir_get("jaxcnn/heard/")) + 1 < len(
            job.names
        ):
            time.sleep(0.05)


def _listen(job: _Job) -> None:
    """Ends this process as soon as another has failed, or is lost, whatever this one waits for."""
    while True:
        try:
            told = job.client.blocking_key_value_get(_FAILED, 3_600_000)
            break
        except Exception as error:
            if job.ended:
                return
            if "DEADLINE_EXCEEDED" not in str(error):
                _say_lost(job, error)
    if not told:
        return
    failure = from_json(told)
    if failure["process"] == job.index:
        return
    with contextlib.suppress(Exception):
        job.client.key_value_set(f"jaxcnn/heard/{job.index}", "")
    time.sleep(0.2)  # who has the same error by itself says it in its own words
    complain(failure["line"])
    _exit(failure["code"])


def _give_signs(job: _Job) -> None:
    """Tells every few seconds that this process is there; in process 0 sees who else is."""
    last: dict[str, str] = {}
    count = 0
    while not job.ended:
        with contextlib.suppress(Exception):  # _listen says what is wrong
            count += 1
            job.client.key_value_set(f"jaxcnn/signs/{job.index}", str(count), allow_overwrite=True)
            now = time.monotonic()
            if job.index:
                job.heard[0] = now
            else:
                signs = dict(job.client.key_value_dir_get("jaxcnn/signs/"))
                job.heard |= {int(each.rpartition("/")[2]): now for each in signs if signs[each] != last.get(each)}
                last = signs
        time.sleep(_BEAT)


def _watch(job: _Job) -> None:
    """Ends this process where another has given no sign for long: process 0 watches all, the others process 0."""
    while not job.ended:
        before = time.monotonic()
        time.sleep(1)
        if time.monotonic() - before > _BEAT:  # this process stood still itself
            job.heard = dict.fromkeys(job.heard, time.monotonic())
            continue
        silent = [number for number, when in job.heard.items() if number != job.index and before - when > SILENCE]
        if silent and not job.ended:
            line = _lost_words([job.names[number] for number in silent])
            complain(line)
            if job.index == 0:  # else it is the coordinator that is silent
                _tell_failure(job, Preempted.exit_code, line)
            _exit(Preempted.exit_code)


def _lost_words(names: list[str]) -> str:
    whom = ", ".join(names[:4]) or "another process"
    return f"lost {whom}: it was killed, or stands still, or its network is gone; {LOST}"


def _is_of_another(error: BaseException) -> bool:
    """Whether an error is what JAX makes of another process that is gone."""
    words = "gloo|connection|socket|coordination|UNAVAILABLE|heartbeat|NCCL|barrier|ABORTED"
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and bool(re.search(words, str(error), re.I))


def _say_lost(job: _Job, error: BaseException) -> NoReturn:
    """Ends this process with the name of the one that is gone, unless that one has said why."""
    try:
        job.client.key_value_set(f"jaxcnn/alive/{job.index}", "", allow_overwrite=True)
        time.sleep(3)  # for the others to say that they are there; _listen ends this process where one says why
        alive = {int(name.rpartition("/")[2]) for name, _ in job.client.key_value_dir_get("jaxcnn/alive/")}
        gone = [name for number, name in enumerate(job.names) if number not in alive]
    except Exception:
        gone = job.names[:1]  # the coordinator itself
    complain(_lost_words(gone))
    _exit(Preempted.exit_code)


def _exit(code: int) -> NoReturn:
    """Leaves now: JAX's own way out waits for processes that may be gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


# ---- what the processes agree on


def asked_to_stop() -> bool:
    """Whether all processes stop here, since one of them has been told to. Each must ask as often as the others."""
    if _job is None:
        return False
    from jax.experimental import multihost_utils

    _job.asked += 1
    return multihost_utils.reached_preemption_sync_point(_job.asked)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that each process runs by itself: an error of one is everybody's once all are through."""
    if _job is None:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except (UserError, RunError, OSError) as raised:
        error = raised
    kind = None if error is None else "UserError" if isinstance(error, UserError) else "RunError"
    told = _tell_all(_job, None if error is None else {"kind": kind, "line": one_line(error)})
    faults = [(name, each) for name, each in zip(_job.names, told, strict=True) if each is not None]
    if not faults:
        return
    name, fault = faults[0]
    line = fault["line"] if fault == told[0] or len(faults) == len(told) else f"{name}: {fault['line']}"
    _job.agreed = UserError(line) if fault["kind"] == "UserError" else RunError(line)
    raise _job.agreed


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in process 0, which alone calls it; an error there is everybody's.

    It is plain data, without tuples, and numpy arrays.
    """
    if _job is None:
        return make()
    from flax import serialization

    content = b""
    with together():
        if _job.index == 0:
            content = serialization.msgpack_serialize({"it": make()})
    return serialization.msgpack_restore(_broadcast(_job, content))["it"]


def check_same(what: str, value: Callable[[], Any]) -> None:
    """Raises UserError where a process has another plain value than process 0; a lone one does not make it."""
    if _job is None:
        return
    told = _tell_all(_job, to_json(value()))
    other = next((name for name, each in zip(_job.names, told, strict=True) if each != told[0]), None)
    if other is not None:
        _job.agreed = UserError(f"{other} has other {what} than {_job.names[0]}; give each the same")
        raise _job.agreed


def tell_all(value: Any) -> list[Any]:
    """The plain values of all processes, by their numbers."""
    return [value] if _job is None else _tell_all(_job, value)


def _need_job() -> _Job:
    assert _job is not None
    return _job


def _wait_for_all(job: _Job) -> None:
    job.told += 1
    job.client.wait_at_barrier(f"jaxcnn/{job.told}", AGREE_WITHIN * 1000)


def _tell_all(job: _Job, value: Any) -> list[Any]:
    job.told += 1
    place = f"jaxcnn/told/{job.told}"
    job.client.key_value_set(f"{place}/{job.index}", to_json(value))
    _wait_for_all(job)
    found = {name.rpartition("/")[2]: from_json(text) for name, text in job.client.key_value_dir_get(f"{place}/")}
    return [found[str(index)] for index in range(len(job.names))]


def _broadcast(job: _Job, content: bytes) -> bytes:
    """Process 0's bytes, in every process."""
    job.told += 1
    place = f"jaxcnn/bytes/{job.told}"
    if job.index == 0:
        small = len(content) <= _IN_STORE
        job.client.key_value_set_bytes(f"{place}/size", str(len(content)).encode())
        if small:
            job.client.key_value_set_bytes(f"{place}/content", content)
    size = int(job.client.blocking_key_value_get_bytes(f"{place}/size", AGREE_WITHIN * 1000))
    if size <= _IN_STORE:
        return job.client.blocking_key_value_get_bytes(f"{place}/content", AGREE_WITHIN * 1000)
    return _over_devices(content, size)


def _over_devices(content: bytes, size: int) -> bytes:
    import numpy as np
    from jax.experimental import multihost_utils

    pieces = []
    for start in range(0, size, _PIECE):
        piece = np.zeros(_PIECE, np.uint8)
        own = np.frombuffer(content[start : start + _PIECE], np.uint8)
        piece[: len(own)] = own
        pieces.append(np.asarray(multihost_utils.broadcast_one_to_all(piece)).tobytes())
    return b"".join(pieces)[:size]
