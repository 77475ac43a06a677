"""Two repairs of what Orbax stands on, made for the whole process when the first checkpoints are opened."""

import asyncio
import glob
from functools import cache
from typing import Any

from etils import epath


@cache
def mend_orbax() -> None:
    """Makes both mends, once. Loops that there are, and a policy that somebody has set, stay as they are."""
    policy: Any = asyncio.get_event_loop_policy()
    if type(policy) is asyncio.DefaultEventLoopPolicy:
        policy._loop_factory = _LenientLoop  # type: ignore[attr-defined]
    _take_folders_as_they_are()


class _LenientLoop(asyncio.SelectorEventLoop):
    """Lets late answers go: Orbax closes its loop at the first array that fails, before TensorStore is done with all.

    They would each be a traceback on stderr.
    """

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise


def _take_folders_as_they_are() -> None:
    """A folder's own name is no pattern: epath takes `runs [new]` for one, and Orbax then loses what it saved there."""
    local_path: Any = type(epath.Path())
    as_it_comes = local_path.glob
    local_path.glob = lambda folder, pattern: as_it_comes(local_path(glob.escape(str(folder))), pattern)
