"""What the launcher prints, writes and calls. Other programs get lists of arguments, never a line for a shell."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from jaxcnn.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the project's files


def tell(text: str) -> None:
    """To the terminal."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: object) -> None:
    """One line on stderr, its control characters written out."""
    print(f"jaxcnn: {one_line(text)}", file=sys.stderr, flush=True)


def one_line(text: object) -> str:
    """Any text on one line, in which nothing moves a cursor."""
    words = " ".join(str(text).split())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in words)


def quoted(command: list[str]) -> str:
    """The command as a shell would read it."""
    return shlex.join(command)


def to_json(value: Any) -> str:
    """For people to read, too."""
    return json.dumps(value, indent=2)


def write(file: Path, text: str) -> None:
    """A text file, and the folders above it. Raises UserError."""
    make_folder(file.parent)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None


def make_folder(folder: Path) -> None:
    """Raises UserError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; pass another --workdir") from None


def pack(archive: Path, names: Iterable[str]) -> None:
    """Packs files and folders of the project, as tar and gzip have them. Raises UserError."""
    make_folder(archive.parent)
    with tarfile.open(archive, "w:gz") as file:
        for name in names:
            file.add(ROOT / name, name, filter=lambda each: None if "__pycache__" in each.name else each)


def appending(file: Path) -> IO[bytes]:
    """A log that a program writes to."""
    return open(file, "ab")


def last_lines(file: Path, number: int = 10) -> str:
    """The end of a log, of any size."""
    with open(file, "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - (1 << 16)))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-number:])


def need(program: str, what: str) -> None:
    """Raises UserError where a program is not on PATH; `what` says where it comes from."""
    if shutil.which(program) is None:
        raise UserError(f"{program} is not on PATH; {what}")


def call(command: list[str], *, given: str | None = None) -> int:
    """Exit code of a program that writes to the terminal. `given` is its input."""
    return subprocess.run(command, input=given, text=True, cwd=ROOT).returncode


def ask(command: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a program."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout.strip(), done.stderr.strip()
