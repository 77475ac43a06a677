"""Two faults of what Orbax stands on, mended for the whole process when the first checkpoints are opened."""

import asyncio
import glob
from functools import cache
from typing import Any

from etils import epath


@cache
def mend_orbax() -> None:
    """Makes both mends, once. A policy of event loops that somebody has set stays."""
    if type(asyncio.get_event_loop_policy()) is asyncio.DefaultEventLoopPolicy:
        asyncio.set_event_loop_policy(_LenientPolicy())
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


class _LenientPolicy(asyncio.DefaultEventLoopPolicy):
    """How Orbax comes by its loops."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _LenientLoop()


def _take_folders_as_they_are() -> None:
    """A folder's own name is no pattern: epath takes `runs [new]` for one, and Orbax then loses what it saved there."""
    local_path: Any = type(epath.Path())
    as_it_comes = local_path.glob
    local_path.glob = lambda folder, pattern: as_it_comes(local_path(glob.escape(str(folder))), pattern)
