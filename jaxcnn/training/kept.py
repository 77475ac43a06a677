"""Pieces of runs that are kept for runs after them: those that differ in the seed alone are not traced anew."""

import dataclasses
from typing import Any

from jaxcnn import data as data_lib
from jaxcnn.config import Config, to_dict
from jaxcnn.files import to_json
from jaxcnn.training.build import Run, build
from jaxcnn.training.feed import Feed, Progress, ResidentFeed

MOST_PIECES = 32  # a study goes through its variants for each seed: where they are more, the others are traced anew
MOST_BYTES = 1 << 30  # of decoded examples in host memory


class Kept:
    """Builds runs as `build` does, of the pieces of a run before where these serve."""

    def __init__(self) -> None:
        self._pieces: dict[str, tuple[Run, ResidentFeed]] = {}
        self._bytes = 0

    def build(
        self,
        config: Config,
        *,
        progress: Progress | None = None,
        facts: dict[str, Any] | None = None,
        kept_splits: dict[str, Any] | None = None,
    ) -> tuple[Run, Feed]:
        """A run and its feed; of a run that goes on (`facts`) always anew. Raises as `build`."""
        if facts is not None:
            return build(config, progress=progress, facts=facts, kept_splits=kept_splits)
        key = to_json(to_dict(dataclasses.replace(config, seed=0)))
        if key not in self._pieces:
            run, feed = build(config, progress=progress)
            size = data_lib.resident_bytes(run.source)
            # what a task samples, and weights that are read, may depend on the seed, or change between two runs
            serves = isinstance(feed, ResidentFeed) and run.task.sample is None and config.init_from is None
            if not serves or len(self._pieces) == MOST_PIECES or self._bytes + size > MOST_BYTES:
                return run, feed
            assert isinstance(feed, ResidentFeed)
            self._pieces[key], self._bytes = (run, feed), self._bytes + size
        run, feed = self._pieces[key]
        return run.with_seed(config), feed.with_seed(config)
