"""Sets that TFDS has prepared as ArrayRecord: where they lie, and their records, read without TensorFlow.

Opening reads metadata and at most a record a split; it never downloads or prepares.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.decoding import decode_image
from jaxcnn.data.label_cache import cached_labels
from jaxcnn.data.records import (
    DamagedRecordError,
    Example,
    NotPreparedError,
    Progress,
    Split,
    StoredSet,
)
from jaxcnn.data.tfds_description import check_image_and_label, open_builder
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.files import open_regular, user_path
from jaxcnn.fingerprints import content_digest, fingerprint_of_files
from jaxcnn.terminal import short_line

RECORD_LIMIT = 256 << 20  # bytes of a record
_LABELS_AT_ONCE = 4096  # records whose bytes are in memory together


@dataclass(frozen=True)
class TfdsRecords:
    """A split's records, each the bytes of a tf.train.Example."""

    name: str
    split: str
    files: tuple[Path, ...]
    lengths: tuple[int, ...]  # records a file
    serialized: Any  # array_record's data source: bytes of a tf.train.Example by record number
    image_key: str
    label_key: str
    image_shape: tuple[int | None, int | None, int]
    num_classes: int

    def __len__(self) -> int:
        return len(self.serialized)

    def __getitem__(self, record: int) -> Example:
        return next(self.read([record]))

    def labels(self, progress: Progress | None = None) -> np.ndarray:
        """int32 [N], -1 where a record cannot be read. Reads every record once; after that they are kept on disk."""

        def read_all() -> np.ndarray:
            labels = np.empty(len(self), np.int32)
            for start in range(0, len(self), _LABELS_AT_ONCE):
                if progress is not None:
                    progress(start, len(self))
                numbers = range(start, min(start + _LABELS_AT_ONCE, len(self)))
                try:
                    labels[start : numbers.stop] = [self._label(example) for example in self._serialized(numbers)]
                except Exception:  # what is damaged is said once it is needed
                    labels[start : numbers.stop] = [self._label_or_unknown(record) for record in numbers]
            if progress is not None:
                progress(len(self), len(self))
            return labels

        return cached_labels(self.name, self.files, len(self), read_all)

    def identifier(self, record: int) -> str:
        """`SPLIT:NUMBER`."""
        return f"{self.split}:{record}"

    def read(self, records: Sequence[int] | np.ndarray) -> Iterator[Example]:
        """The examples in the order asked; faster than one by one."""
        numbers = [int(record) for record in records]
        for record, example in zip(numbers, self._serialized(numbers), strict=True):
            yield self._decode(record, example)

    def encoded(self, records: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The image files as they are stored, in the order asked."""
        numbers = [int(record) for record in records]
        for record, example in zip(numbers, self._serialized(numbers), strict=True):
            yield self._parsed(record, example)[0]

    def first_label(self) -> int:
        """Label of the first record; negative where a split is published without labels."""
        return self._parsed(0, self._read_one(0))[1]

    def _serialized(self, numbers: Sequence[int]) -> Iterable[bytes]:
        allow_open_files(len(self.files))
        try:  # at once takes a quarter of the time of one by one
            return self.serialized.__getitems__(numbers)
        except Exception:
            return (self._read_one(record) for record in numbers)  # names the one that is damaged

    def _read_one(self, record: int) -> bytes:
        try:
            return bytes(self.serialized[record])
        except Exception as error:
            raise self._damaged(record, short_line(error)) from error

    def _label(self, serialized: bytes) -> int:
        """Label of a record; -1 for what is no class, as where a record cannot be read."""
        label = self._parse(serialized)[1]
        return label if 0 <= label < self.num_classes else -1

    def _label_or_unknown(self, record: int) -> int:
        try:
            return self._label(self._read_one(record))
        except Exception:
            return -1

    def _parse(self, serialized: bytes) -> tuple[bytes, int]:
        from tensorflow_datasets.proto import tf_example_pb2

        if len(serialized) > RECORD_LIMIT:
            raise ValueError(f"{len(serialized):,} bytes, of at most {RECORD_LIMIT:,}")
        features = tf_example_pb2.Example.FromString(serialized).features.feature
        return features[self.image_key].bytes_list.value[0], features[self.label_key].int64_list.value[0]

    def _parsed(self, record: int, serialized: bytes) -> tuple[bytes, int]:
        try:
            return self._parse(serialized)
        except Exception as error:
            raise self._damaged(record, short_line(error)) from error

    def _decode(self, record: int, serialized: bytes) -> Example:
        encoded, label = self._parsed(record, serialized)
        try:
            image = decode_image(encoded, self.image_shape[2])
        except Exception as error:
            raise self._damaged(record, short_line(error)) from error
        if not 0 <= label < self.num_classes:
            raise self._damaged(record, f"label {label} of {self.num_classes} classes")
        if any(declared not in (None, size) for declared, size in zip(self.image_shape, image.shape, strict=True)):
            raise self._damaged(record, f"an image of {image.shape} where {self.image_shape} was declared")
        return {"image": image, "label": label}

    def _damaged(self, record: int, reason: str) -> DamagedRecordError:
        ends = np.cumsum(self.lengths)
        file = int(np.searchsorted(ends, record, side="right"))
        number = record - (ends[file] - self.lengths[file])
        return DamagedRecordError(
            f"{self.name}: record {record} is damaged ({reason}), number {number} of {self.files[file]}; prepare the "
            "set again, or leave such records out: data.damaged=skip"
        )


def allow_open_files(num_files: int) -> None:
    """Raises the limit of open files: ImageNet has 1,024 shards, which all stay open."""
    if num_files < 256:
        return
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = num_files + 1024
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def open_tfds(full_name: str, rest: str, data_dir: str | None) -> StoredSet:
    """The set `tfds:REST`, from the files alone. NotPreparedError where it is not on this disk."""
    folder, builder = open_prepared(full_name, rest, data_dir)
    info: Any = builder.info
    image_key, label_key = image_and_label(full_name, info)
    try:
        check_image_and_label(info.features[image_key], info.features[label_key])
    except ValueError as error:
        raise RunError(f"{full_name}: what describes the set in {folder} is damaged: it declares {error}") from error
    image_shape = tuple(info.features[image_key].shape)
    class_names = tuple(info.features[label_key].names)

    splits: dict[str, Split] = {}
    files: list[Path] = []
    for split_name, name, shards, lengths, serialized in prepared_splits(full_name, builder):
        records = TfdsRecords(
            name=name,
            split=split_name,
            files=shards,
            lengths=lengths,
            serialized=serialized,
            image_key=image_key,
            label_key=label_key,
            image_shape=image_shape,
            num_classes=len(class_names),
        )
        if split_name in ("test", "validation") and records.first_label() < 0:
            continue  # published without labels
        splits[split_name] = Split(records, np.arange(len(records)))
        files += shards
    return StoredSet(
        class_names=class_names,
        image_shape=image_shape,
        splits=splits,
        fingerprint=fingerprint_of_files(
            info.full_name,
            [(path.name, path.stat().st_size) for path in files],
            {split_name: len(split) for split_name, split in splits.items()},
            contents=_contents(files),
        ),
    )


def open_prepared(full_name: str, rest: str, data_dir: str | None) -> tuple[Path, Any]:
    """(the folder of `tfds:REST`, TFDS's builder for reading it). NotPreparedError where it is not on this disk."""
    folder = set_folder(full_name, rest, data_dir)
    try:
        builder = open_builder(folder)
        formats = {str(form.value) for form in builder.info.available_file_formats()}
    except Exception as error:
        raise RunError(f"{full_name}: what describes the set in {folder} is damaged: {short_line(error)}") from error
    if "array_record" not in formats:
        raise UserError(
            f"{full_name} in {folder} is stored as {', '.join(sorted(formats)) or 'an unknown format'}, but only "
            f"ArrayRecord can be read at random; convert it once: {how_to_prepare(rest, data_dir)}"
        )
    return folder, builder


def prepared_splits(full_name: str, builder: Any) -> Iterator[tuple[str, str, tuple[Path, ...], tuple[int, ...], Any]]:
    """Of each split that has records: its name, the same for messages, its files, records a file, and their bytes."""
    import tensorflow_datasets as tfds  # takes half a second; imports TensorFlow only to prepare

    for split_name, split_info in builder.info.splits.items():
        if split_info.num_examples == 0:
            continue
        serialized = builder.as_data_source(
            split_name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format="array_record"
        ).data_source
        shards = tuple(Path(path) for path in split_info.filepaths)
        name = f"{full_name} split {split_name!r}"
        _check_shards(name, shards, split_info.shard_lengths)
        yield split_name, name, shards, tuple(split_info.shard_lengths), serialized


def _contents(shards: Sequence[Path]) -> list[str]:
    def content(shard: Path) -> str:
        with open_regular(shard) as file:
            return content_digest(file)

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(content, shards))


def tfds_directory(data_dir: str | None) -> Path:
    """Folder of prepared sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    directory = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in directory:
        raise UserError(
            f"data.dir={directory!r}: ArrayRecord is read at random, which only a local disk serves; copy the set "
            f"first (gcloud storage cp -r {directory.rstrip('/')}/NAME DIR/) and set data.dir=DIR"
        )
    try:
        return Path(os.path.abspath(user_path(directory)))
    except ValueError as error:
        raise UserError(f"data.dir={directory[:200]!r}: {error}; name the folder of prepared sets") from None


def set_folder(full_name: str, rest: str, data_dir: str | None) -> Path:
    """The folder NAME[/CONFIG]/VERSION of a prepared set; the newest version where none is named."""
    directory = tfds_directory(data_dir)
    match = re.fullmatch(r"(?P<name>\w+)(/(?P<config>[^/:.][^/:]*))?(:(?P<version>[\w*][\w.*]*))?", rest)
    if match is None:
        raise UserError(f"data.name={full_name!r} is not of the form tfds:NAME[/CONFIG][:VERSION]")
    name, config, version = match["name"], match["config"], match["version"]
    home = directory / name
    if not os.path.isdir(home):
        raise NotPreparedError(
            f"{full_name} is not prepared: {_what_is_there(directory, name)}; prepare it once: "
            + how_to_prepare(rest, data_dir)
        )
    if config is None and not _versions(home):
        configs = sorted(path.name for path in home.iterdir() if path.is_dir() and _versions(path))
        if len(configs) > 1:
            raise UserError(f"{full_name} is prepared in {home} with configs: {', '.join(configs)}; name one")
        config = configs[0] if configs else None
    config_folder = home / config if config else home
    versions = _versions(config_folder)
    if not versions:
        raise NotPreparedError(
            f"{full_name} is not prepared: {config_folder} has none; prepare it once: " + how_to_prepare(rest, data_dir)
        )
    if version is not None and version not in versions:
        raise UserError(
            f"{full_name}: {config_folder} has version {', '.join(versions)}; name one of those, or none for the newest"
        )
    return config_folder / (version or versions[-1])


def _versions(folder: Path) -> list[str]:
    """Prepared versions in a folder, oldest first."""
    versions = [
        path.name
        for path in (folder.iterdir() if os.path.isdir(folder) else ())
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").exists()
    ]
    return sorted(versions, key=lambda version: [int(number) for number in version.split(".")])


def prepared_sets(directory: Path) -> list[str]:
    """Names of the sets in a folder."""
    pattern = ("*/[0-9]*/dataset_info.json", "*/*/[0-9]*/dataset_info.json")
    with contextlib.suppress(OSError):
        return sorted({path.relative_to(directory).parts[0] for glob in pattern for path in directory.glob(glob)})
    return []


def _what_is_there(directory: Path, name: str) -> str:
    if not directory.is_dir():
        return f"there is no folder {directory} (data.dir, else $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    prepared = prepared_sets(directory)
    return f"looked in {directory}, {nearest(name, prepared) if prepared else 'which holds no prepared set'}"


def how_to_prepare(rest: str, data_dir: str | None) -> str:
    """The command that brings a set here, or converts it."""
    return f"python -m jaxcnn.data prepare {rest}" + (f" --data_dir={data_dir}" if data_dir else "")


def image_and_label(full_name: str, info: Any) -> tuple[str, str]:
    """Names of the image and the label: the set's supervised pair, else its only Image and only ClassLabel."""
    image_key, label_key = pair_of(full_name, info, "image")
    if info.features[image_key].np_dtype != np.uint8 or len(info.features[image_key].shape) != 3:
        raise UserError(f"{full_name}: {image_key} is not an image of 8 bits a channel; choose another set")
    return image_key, label_key


def pair_of(full_name: str, info: Any, kind: str) -> tuple[str, str]:
    """Names of what is classified, an "image" or a "text", and of the label.

    They are the set's supervised pair, else its only feature of the kind, or the one of that name, and its only label.
    """
    import tensorflow_datasets as tfds

    of_kind: Any = {"image": tfds.features.Image, "text": tfds.features.Text}[kind]
    features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
    inputs = [name for name, feature in features.items() if isinstance(feature, of_kind)]
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = tuple(info.supervised_keys or ())
    if len(supervised) == 2 and supervised[0] in inputs and supervised[1] in labels:
        return supervised[0], supervised[1]
    if (len(inputs) == 1 or kind in inputs) and (len(labels) == 1 or "label" in labels):
        return kind if kind in inputs else inputs[0], "label" if "label" in labels else labels[0]
    article = "a text" if kind == "text" else "an image"
    raise UserError(
        f"{full_name} has no {kind} with a class label (features: {', '.join(features)}); "
        f"choose {article} classification set"
    )


def _check_shards(name: str, shards: Sequence[Path], lengths: Sequence[int]) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    def check(shard: Path, length: int) -> None:
        if not shard.exists():
            raise RunError(f"{name}: {shard} is missing; prepare or copy the set again")
        try:
            size = shard.stat().st_size
            reader = ArrayRecordReader(str(shard))
            num_records = reader.num_records()
            reader.close()
        except Exception as error:
            raise RunError(f"{name}: {shard} is damaged ({short_line(error)}); prepare the set again") from error
        if num_records != length or length > size:
            raise RunError(f"{name}: {shard} has {num_records} records, not {length}; prepare the set again")

    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(check, shards, lengths):
            pass
