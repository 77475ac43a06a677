"""Description of a TFDS set on disk, checked before TFDS uses it: files, their names, their number, features.

Such a folder may come from a stranger. TFDS itself would import any module that features.json names, format any pattern
of file names, and read whatever lies there, a pipe too.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcnn.files import open_regular

DESCRIPTION_LIMIT = 64 << 20  # bytes of dataset_info.json, features.json, or a list of class names
MOST_SHARDS = 100_000  # of a set
MOST_CLASSES = 1_000_000
MOST_PIXELS = 65_535  # a side
_FEATURES = "tensorflow_datasets.core.features."  # where all features are that TFDS writes
_NAME = re.compile(r"[\w.\-]{1,200}")
_TEMPLATE = re.compile(r"([\w.\-=@]|\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\}){0,400}")


def open_builder(folder: Path) -> Any:
    """TFDS's builder for reading a prepared set, from its files alone: tfds.builder would ask the network.

    Raises OSError, ValueError, or whatever TFDS makes of a description that is damaged.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info

    _check_files(folder)
    _check_info(dataset_info.read_proto_from_builder_dir(folder))
    with _features_of_tfds():
        builder = tfds.builder_from_directory(folder)
    for name, split in builder.info.splits.items():
        paths = [Path(path) for path in split.filepaths]
        if len(set(paths)) < len(paths) or any(path.parent != folder for path in paths):
            raise ValueError(f"split {name!r} has no file of its own for each shard")
    return builder


def check_image_and_label(image: Any, label: Any) -> None:
    """Raises ValueError for features that no set of images has."""
    height, width, channels = image.shape
    if channels not in (1, 3, 4) or not all(side is None or 0 < side <= MOST_PIXELS for side in (height, width)):
        raise ValueError(f"images of {image.shape}")
    if label.num_classes is None or not 0 < label.num_classes <= MOST_CLASSES:
        raise ValueError(f"{label.num_classes or 0:,} classes, of at most {MOST_CLASSES:,}")


def _check_files(folder: Path) -> None:
    """Raises OSError or ValueError where a file is none, or is too large for what it is."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt"):
            try:
                open_regular(path, limit=DESCRIPTION_LIMIT).close()
            except (OSError, ValueError) as error:
                raise ValueError(f"{path.name}: {error}") from error
        elif not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.name} is missing, or a device or pipe, not a file")


def _check_info(info: Any) -> None:
    """Raises ValueError where names would lead out of the folder, or numbers are none of records."""
    names = [info.name, info.file_format or "-", *info.alternative_file_formats, *(split.name for split in info.splits)]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:200]!r} is no name")
    for split in info.splits:
        if not _TEMPLATE.fullmatch(split.filepath_template):
            raise ValueError(f"{split.filepath_template[:200]!r} is no pattern of file names")
        if any(length < 0 for length in split.shard_lengths):
            raise ValueError(f"split {split.name!r} has a shard of fewer than no records")
    if sum(len(split.shard_lengths) for split in info.splits) > MOST_SHARDS:
        raise ValueError(f"more than {MOST_SHARDS:,} shards")


@contextlib.contextmanager
def _features_of_tfds() -> Iterator[None]:
    """Inside, only TFDS's own features exist; for others TFDS would import, and so run, the module that they name."""
    from tensorflow_datasets.core.features.feature import FeatureConnector

    original = FeatureConnector.cls_from_name

    def known(python_class_name: str) -> Any:
        if not python_class_name.startswith(_FEATURES):
            raise ValueError(f"it names {python_class_name[:200]!r}, which is no feature of TFDS")
        return original(python_class_name)

    FeatureConnector.cls_from_name = known
    try:
        yield
    finally:
        FeatureConnector.cls_from_name = original
