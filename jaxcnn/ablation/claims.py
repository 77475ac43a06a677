"""Who runs what, where processes of any number of hosts share a study's folder: claims are files, each made by one.

A run's claims are numbered: generation k + 1 may be made once who made k is gone. Whoever finds a newer one than its
own has been given up for dead, and must write no more.
"""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxcnn.files import create, read_json, read_sizeless, to_json, write_atomically
from jaxcnn.plain_data import Number, conforms
from jaxcnn.run import stopping

BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # on another host: then its process counts as gone
LARGEST_CLAIM = 1 << 16  # bytes
_COUNT = Number(0, 2**53, integer=True)
_CLAIM = {"host": str, "process": (str, None), "step": _COUNT, "kills": _COUNT, "released": bool}


@dataclass(frozen=True)
class Claim:
    """A run that is this process's: its `generation`, and of its claims, how many in a row ended by a kill."""

    run: str
    generation: int
    step: int  # of the newest checkpoint when it was made
    kills: int  # processes that died in this run at this step


class Claims:
    """The claims in a folder, which is made. `run` is a file's name."""

    def __init__(self, folder: Path):
        """Raises OSError where the folder cannot be made."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = folder / f".clock-{socket.gethostname()}-{os.getpid()}"

    def take(self, run: str, *, step: int) -> Claim | None:
        """A claim of a run whose newest checkpoint is at `step`, or None where another process has it.

        Raises OSError where it cannot be written.
        """
        generation, kills = self.newest(run), 0
        if generation:
            before = self._read(run, generation)
            if not self._is_over(run, generation, before):
                return None
            if before is not None and not before["released"]:
                kills = 1 + (before["kills"] if before["step"] == step else 0)
        claim = Claim(run, generation + 1, step, kills)
        try:
            create(self._file(run, claim.generation), self._content(claim, released=False))
        except FileExistsError:  # another was faster
            return None
        return claim

    def is_free(self, run: str) -> bool:
        """Whether no living process has the run."""
        generation = self.newest(run)
        return not generation or self._is_over(run, generation, self._read(run, generation))

    def newest(self, run: str) -> int:
        """The generation of a run's newest claim; 0 where there is none."""
        generation = 0
        while os.path.lexists(self._file(run, generation + 1)):
            generation += 1
        return generation

    def release(self, claim: Claim) -> None:
        """Lets others take the run at once. Raises OSError."""
        if self.newest(claim.run) == claim.generation:
            write_atomically(self._file(claim.run, claim.generation), self._content(claim, released=True))

    @contextlib.contextmanager
    def held(self, claim: Claim, *, overtaken: Callable[[], None]) -> Iterator[None]:
        """Shows that this process lives until the block ends; calls `overtaken`, in a thread, where it was given up.

        A signal that ends the process within lets go of the claim: a stop counts as no kill.
        """
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(claim, ended, overtaken), name="claim", daemon=True)
        beat.start()
        try:
            with stopping.before_leaving(partial(self.release, claim)):
                yield
        finally:
            ended.set()
            beat.join()

    def _beat(self, claim: Claim, ended: threading.Event, overtaken: Callable[[], None]) -> None:
        file = self._file(claim.run, claim.generation)
        while not ended.wait(BEAT_SECONDS):
            if os.path.lexists(self._file(claim.run, claim.generation + 1)):
                overtaken()
                return
            with contextlib.suppress(OSError):  # a share that is away for a moment
                os.utime(file)

    def _file(self, run: str, generation: int) -> Path:
        return self._folder / f"{run}.{generation}"

    def _content(self, claim: Claim, *, released: bool) -> str:
        content = {"host": socket.gethostname(), "process": this_process(), "step": claim.step, "kills": claim.kills}
        return to_json(content | {"released": released}) + "\n"

    def _read(self, run: str, generation: int) -> dict[str, Any] | None:
        """A claim's content; None where it is not whole: it is being written, or a kill cut it off."""
        try:
            content = read_json(self._file(run, generation), limit=LARGEST_CLAIM)
        except (OSError, ValueError):
            return None
        return content if conforms(content, _CLAIM) else None

    def _is_over(self, run: str, generation: int, content: dict[str, Any] | None) -> bool:
        """Whether whoever made a claim has let go of it, or is gone."""
        if content is not None:
            if content["released"]:
                return True
            lives = is_alive(content["process"])
            if lives is not None:
                return not lives
        try:
            return self._now() - self._file(run, generation).stat().st_mtime > SILENT_SECONDS
        except OSError:
            return False

    def _now(self) -> float:
        """The time by the clock of the file system, which every host's claims are stamped with."""
        with contextlib.suppress(FileExistsError):
            create(self._clock, "")
        os.utime(self._clock)
        now = self._clock.stat().st_mtime
        self._clock.unlink()
        return now


def this_process() -> str | None:
    """The process among all that ever ran: its number, when it began, and on which start of which kernel.

    None where the system does not tell.
    """
    return _process(os.getpid())


def is_alive(process: str | None) -> bool | None:
    """Whether a process, as `this_process` named it, still runs; None where that cannot be told from here."""
    number, _, place = (process or "").partition("@")
    mine = this_process()
    if mine is None or place.partition("@")[2] != mine.split("@", 2)[2] or not re.fullmatch("[0-9]{1,9}", number):
        return None  # of another host, or another container on this one
    return _process(int(number)) == process


def _process(number: int) -> str | None:
    try:
        content = read_sizeless(f"/proc/{number}/stat", limit=LARGEST_CLAIM)
        boot = read_sizeless("/proc/sys/kernel/random/boot_id", limit=LARGEST_CLAIM).decode().strip()
        space = os.readlink("/proc/self/ns/pid")
    except (OSError, ValueError):
        return None
    fields = content.rpartition(b")")[2].split()  # from the third on: a name may have spaces
    return None if fields[0] in (b"Z", b"X") else f"{number}@{fields[19].decode()}@{boot}@{space}"
