"""Records that a run has of a set: in splits, without those that a list excludes; alike for all kinds of data."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.exclusion import read_exclusion, without
from jaxcnn.data.records import Split
from jaxcnn.data.splits import Progress, assign_splits, record_numbers, restore_splits


@dataclass(frozen=True)
class Chosen:
    """The splits of a run, and what its folder keeps of how they came about."""

    splits: dict[str, Split]
    record_numbers: dict[str, np.ndarray]
    num_excluded: int  # records that the exclusion list took out
    exclusion_digest: str | None  # of the list's content


def choose_splits(
    data: DataConfig,
    stored: dict[str, Split],
    fingerprint: str,
    *,
    kept: dict[str, np.ndarray] | None,
    progress: Progress | None,
    check: Callable[[dict[str, Split]], None] = lambda available: None,
) -> Chosen:
    """Leaves out of a set what data.exclude names, and splits the rest; or gives the splits of a run that exists.

    Args:
      stored, fingerprint: of the set.
      kept: the run's, as `record_numbers` had them; none: a new run's.
      progress: told while labels are read.
      check: of a new run's examples, those of the list left out; raises UserError.
    """
    exclusion = None if data.exclude is None else read_exclusion(data.exclude)
    available, num_excluded = (stored, 0) if exclusion is None else without(stored, exclusion, data.name)
    if kept is None:
        check(available)
        splits = assign_splits(data, available, progress)
    else:
        splits = restore_splits(kept, stored, fingerprint)
    digest = None if exclusion is None else exclusion.digest
    return Chosen(splits, record_numbers(splits, stored, fingerprint), num_excluded, digest)
