"""Sources of images: what a data set's name means, where it lies on disk, and which records make each split.

Opening reads metadata and at most a record or two; it never downloads, prepares or needs TensorFlow. A source answers
with uint8 images as they are stored; `fit_image` brings one to the size of the run.
"""

import contextlib
import gzip
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.order import HOLDOUT_STREAM
from jaxcnn.errors import RunError, UserError, nearest

Example = dict[str, Any]  # {"image": uint8 [H, W, C], "label": int}
ImageShape = tuple[int, int, int]

TEST_FRACTION = 0.1  # held out of train where a set has neither test nor validation


class NotPreparedError(UserError):
    """The set is not on this disk."""


class Records(Protocol):
    """Random access to stored examples by record number. Picklable, so that a decoding process can be given it."""

    @property
    def name(self) -> str:
        """Set and split, for messages."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What a cache of the decoded images depends on; empty where the images are in memory and need none."""

    def __len__(self) -> int: ...

    def __getitem__(self, record: int) -> Example: ...

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked; faster than one by one. RunError names a record that is damaged."""


@dataclass(frozen=True)
class Split:
    """Some of a set's records; several splits may share the records, as train and what is held out of it do."""

    records: Records
    indices: np.ndarray  # int [N]: which of the records, in the split's order

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.records[int(self.indices[index])]


@dataclass(frozen=True)
class Source:
    """A set that was found, and all that a run needs to know of it before an image is decoded."""

    name: str
    class_names: tuple[str, ...]
    image_shape: ImageShape  # of the run, after image_size
    splits: dict[str, Split]  # train, test, and validation unless the run has none
    fingerprint: str  # of what the data is, not of where it lies


def open_source(data: DataConfig) -> Source:
    """Finds the set and its splits: `test` is the source's own, else its `validation`, as for ImageNet.

    `validation` is `validation_split`, else the source's own where it has both, else a slice held out of train, else
    (validation_fraction=0) absent. Where a set has neither, test (a tenth) is held out of train too, disjoint from
    validation. Splits whose first label is negative count as absent: ImageNet's `test` is published without labels.
    """
    kind, _, rest = data.name.partition(":")
    if data.name == "digits":
        stored = _open_digits()
    elif kind == "tfds" and rest:
        stored = _open_tfds(data.name, rest, data.dir)
    else:
        valid = ["digits", *(f"tfds:{name}" for name in _prepared_sets(_tfds_directory(data.dir)))]
        raise UserError(
            f"data.name={data.name!r} is no known data set: {nearest(data.name, valid)}; "
            "a set that TFDS has prepared is named tfds:NAME"
        )
    image_shape = _run_shape(data, stored.image_shape)
    _check_expected(data, stored)
    return Source(
        name=data.name,
        class_names=stored.class_names,
        image_shape=image_shape,
        splits=_assign_splits(data, stored.splits),
        fingerprint=stored.fingerprint,
    )


def stand_in_source(data: DataConfig) -> Source | None:
    """The shapes of a set that is not here, from what the config expects of it; None where it says too little.

    It has no images to read: for a dry run.
    """
    if not (data.expected_examples and data.expected_classes and data.image_size and data.mean and data.std):
        return None
    nothing = _ImagesInMemory("", np.empty((data.expected_examples, 0)), np.empty(data.expected_examples, np.int32))
    sizes = {data.train_split: data.expected_examples, "test": 0}  # of the test split nothing is known
    stored = {name: Split(nothing, np.arange(size)) for name, size in sizes.items()}
    return Source(
        name=data.name,
        class_names=tuple(str(number) for number in range(data.expected_classes)),
        image_shape=(data.image_size, data.image_size, len(data.mean)),
        splits=_assign_splits(data, stored),
        fingerprint="",
    )


def _check_expected(data: DataConfig, stored: "_StoredSet") -> None:
    found = len(stored.splits[data.train_split]) if data.train_split in stored.splits else None
    for what, expected, actual in (
        ("examples", data.expected_examples, found),
        ("classes", data.expected_classes, len(stored.class_names)),
    ):
        if expected is not None and actual is not None and expected != actual:
            raise UserError(
                f"{data.name} {data.train_split} has {actual:,} {what}, not the {expected:,} of data.expected_{what}: "
                "prepare the set again, or set the field to none"
            )


def fit_image(image: np.ndarray, image_shape: ImageShape) -> np.ndarray:
    """Resizes the shorter side (area when shrinking, cubic when growing), then crops the centre. [H, W, C] to that."""
    if image.shape == image_shape:
        return image
    height, width, channels = image_shape
    scale = max(height / image.shape[0], width / image.shape[1])
    resized_height = max(height, round(image.shape[0] * scale))
    resized_width = max(width, round(image.shape[1] * scale))
    image = resize_image(image, resized_height, resized_width)
    top, left = (resized_height - height) // 2, (resized_width - width) // 2
    return image[top : top + height, left : left + width].reshape(height, width, channels)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] to [height, width, C], also where C = 1, which OpenCV drops."""
    import cv2

    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation).reshape(height, width, image.shape[2])


@dataclass(frozen=True)
class _StoredSet:
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]  # none: varies
    splits: dict[str, Split]  # as the source names them
    fingerprint: str


def _run_shape(data: DataConfig, stored_shape: tuple[int | None, int | None, int]) -> ImageShape:
    height, width, channels = stored_shape
    if data.image_size is not None:
        return data.image_size, data.image_size, channels
    if height is None or width is None:
        raise UserError(f"{data.name} has images of many sizes: set data.image_size, for instance to 224")
    return height, width, channels


def _assign_splits(data: DataConfig, stored: dict[str, Split]) -> dict[str, Split]:
    """The source's splits under the run's three names; see open_source."""
    for field, name in (("train_split", data.train_split), ("validation_split", data.validation_split)):
        if name is not None and name not in stored:
            raise UserError(f"data.{field}={name!r}: {data.name} has no such split; {nearest(name, stored)}")
    if data.validation_split == data.train_split:
        raise UserError(f"data.validation_split={data.validation_split!r} is also what is learned from; name another")
    if data.train_split == "test":
        raise UserError("data.train_split='test' would measure on what was learned; name another split")

    train = stored[data.train_split]
    own = {name: stored[name] for name in ("validation", "test") if name in stored and name != data.train_split}
    test = own.get("test", own.get("validation"))
    validation = own.get("validation") if "test" in own else None
    if data.validation_split is not None:
        validation = stored[data.validation_split]

    order = np.random.default_rng([HOLDOUT_STREAM, data.split_seed]).permutation(len(train))
    holds_out = validation is None and data.validation_fraction > 0
    num_validation = max(1, round(data.validation_fraction * len(train))) if holds_out else 0
    num_test = max(1, round(TEST_FRACTION * len(train))) if test is None else 0
    if num_validation + num_test >= len(train):
        raise UserError(f"{data.name} {data.train_split} has {len(train)} examples, too few to hold some out")

    def taken(start: int, stop: int) -> Split:
        return Split(train.records, train.indices[np.sort(order[start:stop])])

    if holds_out:
        validation = taken(0, num_validation)
    return {
        "train": taken(num_validation + num_test, len(train)) if num_validation + num_test else train,
        **({} if validation is None else {"validation": validation}),
        "test": taken(num_validation, num_validation + num_test) if test is None else test,
    }


# ---- digits: 1,797 images of 8 x 8 that come with scikit-learn


@dataclass(frozen=True)
class _ImagesInMemory:
    name: str
    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int [N]
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, record: int) -> Example:
        return {"image": self.images[record], "label": int(self.labels[record])}

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        return (self[int(record)] for record in records)


def _open_digits() -> _StoredSet:
    levels, labels = _digits_table()  # levels of grey 0..16
    images = np.round(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    records = _ImagesInMemory("digits", images, labels)
    in_test = _stratified_fifth(labels)
    return _StoredSet(
        class_names=tuple(str(digit) for digit in range(10)),
        image_shape=(8, 8, 1),
        splits={"train": Split(records, np.flatnonzero(~in_test)), "test": Split(records, np.flatnonzero(in_test))},
        fingerprint=_fingerprint("digits", hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()),
    )


def _digits_table() -> tuple[np.ndarray, np.ndarray]:
    """Levels 0..16 [1797, 64] and labels [1797]."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: sklearn.datasets takes a second to import
    if package is None or not package.submodule_search_locations:
        raise UserError("data.name='digits' comes with scikit-learn: pip install scikit-learn")
    table = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if table.exists():
        with gzip.open(table, "rt") as lines:
            values = np.loadtxt(lines, delimiter=",", dtype=np.int64)
        return values[:, :-1], values[:, -1]
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.data.astype(np.int64), digits.target.astype(np.int64)


def _stratified_fifth(labels: np.ndarray) -> np.ndarray:
    """True for a fixed fifth (rounded up) of the examples, with every class in proportion. bool [N]"""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts / 5
    shares = np.floor(exact).astype(int)
    missing = -(-len(labels) // 5) - shares.sum()
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1  # largest remainders first
    generator = np.random.default_rng([HOLDOUT_STREAM, 0])
    chosen = np.zeros(len(labels), bool)
    for label, share in zip(classes, shares, strict=True):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:share]] = True
    return chosen


# ---- tfds: sets that TFDS has prepared as ArrayRecord


@dataclass(frozen=True)
class _TfdsRecords:
    name: str
    files: tuple[Path, ...]
    serialized: Any  # array_record's data source: bytes of a tf.train.Example by record number
    image_key: str
    label_key: str
    image_shape: tuple[int | None, int | None, int]
    num_classes: int

    def __len__(self) -> int:
        return len(self.serialized)

    def __getitem__(self, record: int) -> Example:
        return next(self.read([record]))

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        _allow_open_files(len(self.files))
        numbers = [int(record) for record in records]
        try:  # at once takes a quarter of the time of one by one
            serialized = self.serialized.__getitems__(numbers)
        except Exception:
            serialized = (self._read_one(record) for record in numbers)  # names the one that is damaged
        for record, example in zip(numbers, serialized, strict=True):
            yield self._decode(record, example)

    def first_label(self) -> int:
        return self._parse(self._read_one(0))[1]

    def _read_one(self, record: int) -> bytes:
        try:
            return bytes(self.serialized[record])
        except Exception as error:
            raise self._damaged(record, one_line(error)) from error

    def _parse(self, serialized: bytes) -> tuple[bytes, int]:
        from tensorflow_datasets.proto import tf_example_pb2

        features = tf_example_pb2.Example.FromString(serialized).features.feature
        return features[self.image_key].bytes_list.value[0], features[self.label_key].int64_list.value[0]

    def _decode(self, record: int, serialized: bytes) -> Example:
        try:
            encoded, label = self._parse(serialized)
            image = _decode_image(encoded, self.image_shape[2])
        except Exception as error:
            raise self._damaged(record, one_line(error)) from error
        if not 0 <= label < self.num_classes:
            raise self._damaged(record, f"label {label} of {self.num_classes} classes")
        if any(declared not in (None, size) for declared, size in zip(self.image_shape, image.shape, strict=True)):
            raise self._damaged(record, f"an image of {image.shape} where {self.image_shape} was declared")
        return {"image": image, "label": label}

    def _damaged(self, record: int, reason: str) -> RunError:
        return RunError(f"{self.name}: record {record} is damaged ({reason}); prepare the set again")


def _decode_image(encoded: bytes, num_channels: int) -> np.ndarray:
    """As TensorFlow does: grey becomes RGB where the set declares it, and EXIF orientation is ignored."""
    import cv2

    mode = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(num_channels, cv2.IMREAD_UNCHANGED)
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("neither JPEG nor PNG")
    if num_channels >= 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB if num_channels == 3 else cv2.COLOR_BGRA2RGBA)
    return image if image.ndim == 3 else image[:, :, None]


def _allow_open_files(num_files: int) -> None:
    """ImageNet has 1,024 shards and each stays open, as many as Linux allows a process unless it asks for more."""
    if num_files < 256:
        return
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = num_files + 1024
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _open_tfds(full_name: str, rest: str, data_dir: str | None) -> _StoredSet:
    directory = _tfds_directory(data_dir)
    folder = _set_folder(full_name, rest, directory)

    import tensorflow_datasets as tfds  # takes half a second; imports TensorFlow only to prepare

    try:
        builder = tfds.builder_from_directory(folder)  # the files alone: tfds.builder would ask the network
        info: Any = builder.info
        formats = {str(form.value) for form in info.available_file_formats()}
    except Exception as error:
        raise RunError(f"{full_name}: what describes the set in {folder} is damaged: {one_line(error)}") from error
    if "array_record" not in formats:
        raise UserError(
            f"{full_name} in {folder} is stored as {', '.join(sorted(formats)) or 'an unknown format'}, but only "
            "ArrayRecord can be read at random; convert it once (this needs TensorFlow, reading does not): "
            f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        )
    image_key, label_key = _image_and_label(full_name, info)
    image_shape = tuple(info.features[image_key].shape)
    class_names = tuple(info.features[label_key].names)

    splits: dict[str, Split] = {}
    files: list[Path] = []
    for split_name, split_info in info.splits.items():
        if split_info.num_examples == 0:
            continue
        serialized = builder.as_data_source(
            split_name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format="array_record"
        ).data_source
        shards = tuple(Path(path) for path in info.splits[split_name].filepaths)
        records = _TfdsRecords(
            name=f"{full_name} split {split_name!r}",
            files=shards,
            serialized=serialized,
            image_key=image_key,
            label_key=label_key,
            image_shape=image_shape,
            num_classes=len(class_names),
        )
        _check_shards(records.name, shards, split_info.shard_lengths)
        if split_name in ("test", "validation") and records.first_label() < 0:
            continue  # published without labels
        splits[split_name] = Split(records, np.arange(len(records)))
        files += shards
    return _StoredSet(
        class_names=class_names,
        image_shape=image_shape,
        splits=splits,
        fingerprint=_fingerprint(
            info.full_name,
            [(path.name, path.stat().st_size) for path in files],
            {split_name: len(split) for split_name, split in splits.items()},
        ),
    )


def _tfds_directory(data_dir: str | None) -> Path:
    directory = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in directory:
        raise UserError(
            f"data.dir={directory!r}: ArrayRecord is read at random, which only a local disk serves; copy the set "
            f"first (gcloud storage cp -r {directory.rstrip('/')}/NAME DIR/) and set data.dir=DIR"
        )
    return Path(directory).expanduser().absolute()


def _set_folder(full_name: str, rest: str, directory: Path) -> Path:
    """The folder NAME[/CONFIG]/VERSION of a prepared set; the newest version where none is named."""
    match = re.fullmatch(r"(?P<name>\w+)(/(?P<config>[^/:]+))?(:(?P<version>[\w.*]+))?", rest)
    if match is None:
        raise UserError(f"data.name={full_name!r} is not of the form tfds:NAME[/CONFIG][:VERSION]")
    name, config, version = match["name"], match["config"], match["version"]
    set_folder = directory / name
    if not set_folder.is_dir():
        raise NotPreparedError(
            f"{full_name} is not prepared: {_what_is_there(directory, name)}; {_how_to_prepare(rest, directory)}"
        )
    if config is None and not _versions(set_folder):
        configs = sorted(path.name for path in set_folder.iterdir() if path.is_dir() and _versions(path))
        if len(configs) > 1:
            raise UserError(f"{full_name} is prepared in {set_folder} with configs: {', '.join(configs)}; name one")
        config = configs[0] if configs else None
    config_folder = set_folder / config if config else set_folder
    versions = _versions(config_folder)
    if not versions:
        raise NotPreparedError(
            f"{full_name} is not prepared: {config_folder} has none; {_how_to_prepare(rest, directory)}"
        )
    if version is not None and version not in versions:
        raise UserError(
            f"{full_name}: {config_folder} has version {', '.join(versions)}; name one of those, or none for the newest"
        )
    return config_folder / (version or versions[-1])


def _versions(folder: Path) -> list[str]:
    """Prepared versions in a folder, oldest first."""
    found = [
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").exists()
    ]
    return sorted(found, key=lambda version: [int(number) for number in version.split(".")])


def _prepared_sets(directory: Path) -> list[str]:
    pattern = ("*/[0-9]*/dataset_info.json", "*/*/[0-9]*/dataset_info.json")
    with contextlib.suppress(OSError):
        return sorted({path.relative_to(directory).parts[0] for glob in pattern for path in directory.glob(glob)})
    return []


def _what_is_there(directory: Path, name: str) -> str:
    if not directory.is_dir():
        return f"there is no folder {directory} (data.dir, else $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    prepared = _prepared_sets(directory)
    return f"looked in {directory}, {nearest(name, prepared) if prepared else 'which holds no prepared set'}"


def _how_to_prepare(rest: str, directory: Path) -> str:
    return (
        'prepare it once (this needs TensorFlow, reading does not): python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{rest}', data_dir='{directory}', file_format='array_record').download_and_prepare()\""
    )


def _image_and_label(full_name: str, info: Any) -> tuple[str, str]:
    """Names of the image and the label: the set's supervised pair, else its only Image and only ClassLabel."""
    import tensorflow_datasets as tfds

    features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = tuple(info.supervised_keys or ())
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        image_key, label_key = supervised
    elif (len(images) == 1 or "image" in images) and (len(labels) == 1 or "label" in labels):
        image_key = "image" if "image" in images else images[0]
        label_key = "label" if "label" in labels else labels[0]
    else:
        raise UserError(
            f"{full_name} has no image with a class label (features: {', '.join(features)}); "
            "choose an image classification set"
        )
    if info.features[image_key].np_dtype != np.uint8 or len(info.features[image_key].shape) != 3:
        raise UserError(f"{full_name}: {image_key} is not an image of 8 bits a channel; choose another set")
    return image_key, label_key


def _check_shards(name: str, shards: Sequence[Path], lengths: Sequence[int]) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    def check(shard: Path, length: int) -> None:
        if not shard.exists():
            raise RunError(f"{name}: {shard} is missing; prepare or copy the set again")
        try:
            reader = ArrayRecordReader(str(shard))
            num_records = reader.num_records()
            reader.close()
        except Exception as error:
            raise RunError(f"{name}: {shard} is damaged ({one_line(error)}); prepare the set again") from error
        if num_records != length:
            raise RunError(f"{name}: {shard} has {num_records} records, not {length}; prepare the set again")

    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(check, shards, lengths):
            pass


def one_line(error: Exception) -> str:
    """What a library said, short enough to stand within a message of ours."""
    return " ".join(str(error).split())[:200]


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
