"""Images and masks as a run has them: which set is meant, its splits, and how often each class occurs in train."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxcnn.config import Config
from jaxcnn.config.choices import MASKS
from jaxcnn.data.chosen import choose_splits
from jaxcnn.data.folder import find_path
from jaxcnn.data.records import DamagedRecordError, ImageShape, Source, StoredSet, read_or_error
from jaxcnn.data.splits import Progress
from jaxcnn.errors import UserError
from jaxcnn.tasks.segmentation.classes import Classes
from jaxcnn.tasks.segmentation.losses import VOID

_COUNTED = 1024  # masks of train, at most, that classes are counted in


@dataclass(frozen=True, kw_only=True)
class MaskSource(Source):
    """Images with masks, and their splits."""

    shape: ImageShape  # of an image, as the model gets it
    classes: Classes

    def facts(self) -> dict[str, Any]:
        """With the shape, and what the masks' values mean."""
        return {**super().facts(), "shape": list(self.shape), "classes": self.classes.to_plain()}

    def words(self) -> str:
        """`64x64x3, 11 classes`."""
        return f"{'x'.join(map(str, self.shape))}, {len(self.classes)} classes"

    @cached_property
    def pixels(self) -> np.ndarray:
        """How many pixels each class has in train, int64 [K]: of masks that are evenly spaced, at most 1,024."""
        train, counts = self.splits["train"], np.zeros(VOID + 1, np.int64)
        chosen = np.unique(np.linspace(0, len(train) - 1, min(len(train), _COUNTED)).round().astype(int))
        for example in read_or_error(train.records, train.indices[chosen]):
            if not isinstance(example, DamagedRecordError):  # training tells of it, or skips it
                counts += np.bincount(example["label"].ravel(), minlength=VOID + 1)
        return counts[: len(self.classes)]


def open_source(
    config: Config, *, progress: Progress | None = None, kept: dict[str, np.ndarray] | None = None
) -> MaskSource:
    """Finds a set of images and masks, and splits it as sets of images are.

    Args:
      config: validated.
      progress: told while files are read.
      kept: the splits of a run that exists, as Source.record_numbers had them: they are its splits for good.

    Raises:
      UserError: there is no such set, or nothing can be learned of it as it is.
      RunError: files of it cannot be read.
    """
    data = config.data
    stored = _stored(config, progress or (lambda *_: None))
    chosen = choose_splits(data, stored.splits, stored.fingerprint, kept=kept, progress=progress)
    records: Any = next(iter(stored.splits.values())).records
    return MaskSource(
        name=data.name,
        class_names=stored.class_names,
        image_shape=None,
        splits=chosen.splits,
        fingerprint=stored.fingerprint,
        stored_sizes=stored.stored_sizes,
        record_numbers=chosen.record_numbers,
        num_excluded=chosen.num_excluded,
        exclusion_digest=chosen.exclusion_digest,
        shape=records.shape,
        classes=records.classes,
    )


def _stored(config: Config, progress: Progress) -> StoredSet:
    data = config.data
    kind, colon, rest = data.name.partition(":")
    choice = MASKS.get(kind)
    if choice is None or not colon or (choice.takes == "NAME" and not rest):
        valid = [f"{name}:{'NAME' if each.takes == 'NAME' else 'PATH'}" for name, each in MASKS.items()]
        raise UserError(f"data.name={data.name!r} is no known set of images and masks: one of {', '.join(valid)}")
    where = rest if choice.takes == "NAME" else find_path(data.name, kind, rest, data.dir)
    stored: StoredSet = choice.load()(data, config.segmentation, where, progress)
    return stored
