"""The one way out to a terminal: names are shown as text, whatever they hold, and a reader may leave early.

A control character in a file's or a class's name could otherwise move the cursor or set the window's title, and square
brackets would be taken for markup.
"""

import os
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

# C0 and C1 controls but for the end of a line and the tab, what changes a line's direction, ends of lines of Unicode,
# and the halves of characters by which Python holds bytes that are no UTF-8.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def shown(text: str) -> str:
    r"""The text with its control characters written out, as \x1b."""
    return _UNSHOWN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    """Any text, an error's for one, on one line, with its control characters written out."""
    return shown(" ".join(str(text).split()))


class PatientConsole(Console):
    """A terminal for names of any kind. Goes quiet, rather than end the run, when whoever read its lines has left."""

    def __init__(self, **options: Any):
        """Options are rich's. Strings are text: no markup, no emoji codes, and controls are written out."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for every string, those in tables too."""
        return super().render_str(shown(text), **options)

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(error: BaseException | str) -> None:
    """One line on stderr."""
    print(f"jaxcnn: {one_line(error)}", file=sys.stderr, flush=True)
