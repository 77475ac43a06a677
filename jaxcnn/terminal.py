"""Terminal output: names are shown as text, whatever they hold, and a reader may leave early.

A control character in a file's or a class's name could otherwise move the cursor or set the window's title, and square
brackets would be taken for markup.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# C0 and C1 controls but for the end of a line and the tab, what changes a line's direction, ends of lines of Unicode,
# and the halves of characters by which Python holds bytes that are no UTF-8.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

_PLAIN = str.maketrans("▁▂▃▄▅▆▇█–…", ".:-=+*%#-.")  # of what we draw, on a terminal that lacks it


def shown(text: str) -> str:
    r"""The text with its control characters written out, as \x1b."""
    return _UNSHOWN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def named(name: str) -> str:
    r"""A name with its control characters written out, its ends of lines too, as \n."""
    return shown(name).replace("\n", "\\n").replace("\t", "\\t")


def one_line(text: object) -> str:
    """Any text, an error's for one, on one line, with its control characters written out."""
    if isinstance(text, OSError) and text.strerror:
        text = f"{os.fsdecode(text.filename)}: {text.strerror}" if _is_path(text.filename) else text.strerror
    return shown(" ".join(str(text).split()))


def short_line(error: object) -> str:
    """One line of at most 200 characters: what a library said, as a part of a message of ours."""
    return one_line(error)[:200]


def _is_path(name: object) -> bool:
    return bool(name) and isinstance(name, str | bytes | os.PathLike)


class PatientConsole(Console):
    """A terminal for names of any kind. Goes quiet, rather than end the run, when whoever read its lines has left."""

    def __init__(self, **options: Any):
        """Options are rich's. Strings are text: no markup, no emoji codes, and controls are written out."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    @property
    def encoding(self) -> str:
        """Encoding of the terminal; rich takes all but a file of its own for UTF-8, and draws boxes by it."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for every string, those in tables too."""
        return super().render_str(self._writable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Called by rich for all that is drawn: what came as rich's own Text, as in bars, is text too."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._writable(segment.text), segment.style)

    def _writable(self, text: str) -> str:
        text = shown(text)
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            text = text.translate(_PLAIN).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        self.quiet = True
        _discard_output()


def print_text(text: str) -> None:
    """Text of any kind to stdout, as it stands; on a terminal with its control characters written out."""
    try:
        sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has left
        _discard_output()


def complain(error: BaseException | str) -> None:
    """One line on stderr, where anybody can read it."""
    _complaints.add(one_line(error))
    with contextlib.suppress(OSError, ValueError):
        print(f"jaxcnn: {one_line(error)}", file=sys.stderr, flush=True)


def complain_at_length(text: str) -> None:
    """A traceback on stderr: of a fault of our own."""
    with contextlib.suppress(OSError, ValueError):
        print(shown(text), file=sys.stderr, end="", flush=True)


_complaints: set[str] = set()


def complain_once(error: BaseException | str) -> None:
    """Prints an error once: of a thread, or at the end of the process, what has failed already may fail again."""
    if one_line(error) not in _complaints:
        complain(error)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"jaxcnn: {one_line(record.getMessage())}"


def _is_told(record: logging.LogRecord) -> bool:
    """Whether nobody has said by a NullHandler, as libraries should, that it is not for a terminal."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.name != "py.warnings":  # which logging itself gives one
        if any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return False
        logger = logger.parent
    return True


def take_over() -> None:
    """Takes over logs and warnings of libraries, as lines like ours; a letter that the terminal lacks is no error."""
    if sys.stdout is None:  # closed by who called us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    handler.addFilter(_is_told)
    logging.root.handlers = [handler]
    threading.excepthook = lambda raised: complain_once(raised.exc_value or raised.exc_type.__name__)
    sys.unraisablehook = lambda raised: complain_once(raised.exc_value or raised.exc_type.__name__)
    warnings.formatwarning = lambda message, category, *place: f"{category.__name__}: {message}"
    logging.captureWarnings(True)


def exit_code(code: int) -> int:
    """Exit code, once all that was printed is out: 1 where it could not be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has left
        _discard_output()
    except OSError as error:
        _discard_output()
        complain(f"stdout cannot be written: {error.strerror}")
        return code or 1
    return code


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
