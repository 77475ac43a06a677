"""The ways a run can end other than well, each with the exit code that the command returns for it.

A message is one line: what is wrong, then what to do about it.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The command, the config or the workdir is wrong; nothing was started."""

    exit_code = 2


class RunError(Exception):
    """The run failed: a loss that is not finite, damaged data, a save that did not succeed."""

    exit_code = 1


class WriteError(RunError):
    """What the run writes could not be written: of any other run there it would be no different."""


class Preempted(BaseException):
    """The run was told to stop and has saved; the same command continues it."""

    exit_code = 75


def nearest(name: str, valid: Iterable[str]) -> str:
    """Ends an error message: the nearest valid name and, when there are few, all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    listed = f"one of: {', '.join(valid)}" if len(valid) <= 40 else f"one of {len(valid)} names"
    return f"did you mean {close[0]!r}? ({listed})" if close else listed
