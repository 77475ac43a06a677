"""Writes small image classification sets as TFDS prepares them, in ArrayRecord and without TensorFlow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

VARIED_SIZES = ((40, 56), (56, 40), (48, 48), (72, 37), (24, 30))


def write_set(
    directory: Path,
    name: str = "shapes",
    *,
    splits: Mapping[str, int] | None = None,
    image_shape: tuple[int | None, int | None, int] = (12, 12, 3),
    num_classes: int = 5,
    num_shards: int = 2,
    encoding: str = "png",
    version: str = "1.0.0",
    config: str | None = None,
    file_format: str = "array_record",
    unlabelled: tuple[str, ...] = (),
    seed: int = 0,
    texture: float = 0.0,
) -> Path:
    """Writes directory/name[/config]/version and returns it; `splits` gives examples a split (train 40, test 12).

    An image shape with None gets images of many sizes, as ImageNet's. Images show a bright bar whose angle and colour
    tell the class, so a model can learn them; `texture` is the deviation, in levels, of the noise over it. Example i of
    a split is the same whatever the number of shards.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    splits = {"train": 40, "test": 12} if splits is None else dict(splits)
    folder = directory / name / (config or "") / version
    folder.mkdir(parents=True)
    for split_number, (split, num_examples) in enumerate(splits.items()):
        examples = [
            _example(
                np.random.default_rng([seed, split_number, i]),
                i,
                image_shape,
                num_classes,
                encoding,
                split in unlabelled,
                texture,
            )
            for i in range(num_examples)
        ]
        for shard, length in enumerate(shard_lengths(num_examples, num_shards)):
            path = shard_path(folder, name, split, shard, num_shards, file_format)
            first = sum(shard_lengths(num_examples, num_shards)[:shard])
            if file_format != "array_record":
                path.write_bytes(b"not read by any test")
                continue
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for example in examples[first : first + length]:
                writer.write(example)
            writer.close()
    (folder / "dataset_info.json").write_text(json.dumps(info(name, version, config, splits, num_shards, file_format)))
    (folder / "features.json").write_text(json.dumps(features_of(image_shape, num_classes, encoding)))
    (folder / "label.labels.txt").write_text("".join(f"class{number}\n" for number in range(num_classes)))
    return folder


def write_jpegs(directory: Path, name: str, jpegs: Sequence[bytes]) -> Path:
    """A set of files of any size, as train and as test, with labels 0 to 9 in turn."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder, splits = directory / name / "1.0.0", {"train": len(jpegs), "test": len(jpegs)}
    folder.mkdir(parents=True)
    for split in splits:
        writer = ArrayRecordWriter(str(shard_path(folder, name, split, 0, 1)), "group_size:1")
        for number, encoded in enumerate(jpegs):
            writer.write(serialized(encoded, number % 10, f"{number:08d}.jpeg"))
        writer.close()
    (folder / "dataset_info.json").write_text(json.dumps(info(name, "1.0.0", None, splits, 1, "array_record")))
    (folder / "features.json").write_text(json.dumps(features_of((None, None, 3), 10, "jpeg")))
    (folder / "label.labels.txt").write_text("".join(f"class{number}\n" for number in range(10)))
    return folder


def shard_lengths(num_examples: int, num_shards: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(num_examples), num_shards)]


def shard_path(
    folder: Path, name: str, split: str, shard: int, num_shards: int, file_format: str = "array_record"
) -> Path:
    return folder / f"{name}-{split}.{file_format}-{shard:05d}-of-{num_shards:05d}"


def draw_image(generator: np.random.Generator, label: int, height: int, width: int, channels: int) -> np.ndarray:
    """A bar through a jittered centre, over a dim gradient: uint8 [height, width, channels]."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    rows, columns = rows / height - generator.uniform(0.3, 0.7), columns / width - generator.uniform(0.3, 0.7)
    angle = label * 0.6 + generator.normal(0, 0.05)
    bar = np.exp(-(((columns * np.sin(angle) + rows * np.cos(angle)) / 0.12) ** 2))
    colours = 0.35 + 0.65 * np.abs(np.cos(label + np.arange(channels)))
    background = 60 + 40 * (rows + columns)
    image = background[:, :, None] * (1 - bar[:, :, None]) + 250 * bar[:, :, None] * colours
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _example(
    generator: np.random.Generator,
    number: int,
    image_shape: tuple[int | None, int | None, int],
    num_classes: int,
    encoding: str,
    unlabelled: bool,
    texture: float,
) -> bytes:
    label = int(generator.integers(num_classes))
    height, width = image_shape[0], image_shape[1]
    if height is None or width is None:
        height, width = VARIED_SIZES[number % len(VARIED_SIZES)]
    image = draw_image(generator, label, height, width, image_shape[2])
    if texture:
        image = np.clip(image + generator.normal(0, texture, image.shape), 0, 255).astype(np.uint8)
    ok, encoded = cv2.imencode(f".{encoding}", image[:, :, ::-1])  # OpenCV's order is BGR
    assert ok
    return serialized(encoded.tobytes(), -1 if unlabelled else label, f"{number:08d}.{encoding}")


def serialized(encoded: bytes, label: int, file_name: str) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(encoded)
    example.features.feature["label"].int64_list.value.append(label)
    example.features.feature["file_name"].bytes_list.value.append(file_name.encode())
    return example.SerializeToString()


def info(
    name: str, version: str, config: str | None, splits: Mapping[str, int], num_shards: int, file_format: str
) -> dict[str, Any]:
    described = {
        "name": name,
        "version": version,
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(length) for length in shard_lengths(num_examples, num_shards)],
                "numBytes": "1",
            }
            for split, num_examples in splits.items()
        ],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
    }
    return described | ({"configName": config} if config else {})


def features_of(image_shape: tuple[int | None, int | None, int], num_classes: int, encoding: str) -> dict[str, Any]:
    module = "tensorflow_datasets.core.features"
    dimensions = [str(-1 if size is None else size) for size in image_shape]
    image = {"shape": {"dimensions": dimensions}, "dtype": "uint8", "encodingFormat": encoding}
    return {
        "pythonClassName": f"{module}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "image": {"pythonClassName": f"{module}.image_feature.Image", "image": image},
                "label": {
                    "pythonClassName": f"{module}.class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": str(num_classes)},
                },
                "file_name": {"pythonClassName": f"{module}.text_feature.Text", "text": {}},
            }
        },
    }
