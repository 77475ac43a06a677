"""Weights and data sets of strangers: whatever they hold, they are read, or refused in a line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from jaxcnn.data.tfds import open_tfds
from jaxcnn.data.tfds_description import open_builder
from jaxcnn.data.tfrecord import read_tfrecord
from jaxcnn.errors import RunError, UserError
from jaxcnn.transfer.state_dicts import read_file
from tests import hostile_files
from tests.fake_tfds import shard_path, write_set


def outcome(read: Callable[[], Any]) -> str:
    """The line that it ends in, or nothing. Any other exception is a fault."""
    line = ""
    try:
        read()
    except (UserError, RunError) as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1500
    return line


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".tfrecord"])
def test_mutated_files_are_read_or_refused_in_a_line(suffix, tmp_path):
    file = tmp_path / f"a{suffix}"
    read = (lambda: list(read_tfrecord(file))) if suffix == ".tfrecord" else (lambda: read_file(epath.Path(file)))
    found = []
    for seed in range(100):
        file.write_bytes(hostile_files.MAKERS[suffix](seed))
        found.append(outcome(read))
    assert 0 < found.count("") < 50  # some are honest


@pytest.fixture
def prepared(tmp_path) -> Path:
    return write_set(tmp_path, splits={"train": 8}, num_shards=1)


def read_all(folder: Path) -> None:
    """All that a run reads of a set, but that it decodes three images."""
    for split in open_tfds("tfds:shapes", "shapes", str(folder.parents[1])).splits.values():
        split.records.labels()
        for number in range(3):
            split[number]


def test_mutated_sets_are_read_or_refused_in_a_line(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))
    names = ("dataset_info.json", "features.json")
    kept = [(prepared / name).read_bytes() for name in names]
    for seed in range(40):
        for name, content in zip(names, hostile_files.description(seed), strict=True):
            (prepared / name).write_bytes(content)
        outcome(lambda: read_all(prepared))
    for name, content in zip(names, kept, strict=True):
        (prepared / name).write_bytes(content)
    for seed in range(20):
        shard_path(prepared, "shapes", "train", 0, 1).write_bytes(hostile_files.array_record(seed, count=8))
        outcome(lambda: read_all(prepared))


def test_a_set_imports_no_module_that_it_names(prepared, tmp_path, monkeypatch):
    """However deep: TFDS reads JSON within JSON."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    evil = {"pythonClassName": "evil.Feature", "featuresDict": {"features": {}}}
    module = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    for features in (
        evil,
        {"python_class_name": "evil.Feature"},
        {"type": "evil.Feature", "content": {}},
        {"pythonClassName": module, "featuresDict": {"features": {"image": evil}}},
        {"pythonClassName": module, "jsonFeature": {"json": json.dumps({"image": evil})}},
        {"pythonClassName": "tensorflow_datasets.core.features../evil.Feature"},
        {"pythonClassName": "tensorflow_datasets.testing.Feature"},
    ):
        (prepared / "features.json").write_text(json.dumps(features))
        assert "what describes the set" in outcome(lambda: read_all(prepared))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filepathTemplate": "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}, "no pattern of file names"),
        ({"filepath_template": "/etc/{SPLIT}"}, "no pattern of file names"),
        ({"filepathTemplate": "{DATASET:>999999999}"}, "no pattern of file names"),
        ({"filepathTemplate": "{SPLIT}", "shardLengths": ["4", "4"]}, "file of its own"),
        ({"name": "../train"}, "is no name"),
        ({"name": "train[:1%]"}, "is no name"),
        ({"shardLengths": ["1"] * 100_001}, "100,000 shards"),
        ({"shardLengths": ["-8"]}, "fewer than no records"),
        ({"shardLengths": [str(2**62)]}, "has 8 records"),
    ],
)
def test_false_splits_are_told(changes, said, prepared):
    info = json.loads((prepared / "dataset_info.json").read_text())
    if "filepath_template" in changes:
        del info["splits"][0]["filepathTemplate"]
    info["splits"][0] |= changes
    (prepared / "dataset_info.json").write_text(json.dumps(info))
    assert said in outcome(lambda: read_all(prepared))


@pytest.mark.parametrize(
    ("feature", "value", "said"),
    [
        ("label", {"classLabel": {"numClasses": str(2**40)}}, "1,099,511,627,776 classes"),
        ("image", {"image": {"shape": {"dimensions": [str(2**31), "12", "3"]}, "dtype": "uint8"}}, "images of"),
        ("image", {"image": {"shape": {"dimensions": ["12", "-1", "-1"]}, "dtype": "uint8"}}, "images of"),
    ],
)
def test_false_features_are_told(feature, value, said, prepared):
    (prepared / "label.labels.txt").unlink()
    features = json.loads((prepared / "features.json").read_text())
    features["featuresDict"]["features"][feature] |= value
    (prepared / "features.json").write_text(json.dumps(features))
    assert said in outcome(lambda: read_all(prepared))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt", "another"])
def test_a_sets_files_are_regular(name, prepared, monkeypatch):
    (prepared / name).unlink(missing_ok=True)
    os.mkfifo(prepared / name)
    assert "pipe, not a file" in outcome(lambda: read_all(prepared))
    (prepared / name).unlink()
    monkeypatch.setattr("jaxcnn.data.tfds_description.DESCRIPTION_LIMIT", 10)
    if name != "another":
        (prepared / name).write_bytes(b"more than ten bytes")
        with pytest.raises(ValueError, match="at most 10"):
            open_builder(prepared)


def test_labels_out_of_range_are_unknown(tmp_path, monkeypatch):
    from array_record.python.array_record_module import ArrayRecordWriter

    from tests.fake_tfds import serialized

    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))
    folder = write_set(tmp_path, splits={"train": 5}, num_shards=1)
    writer = ArrayRecordWriter(str(shard_path(folder, "shapes", "train", 0, 1)), "group_size:1")
    for record in [serialized(b"", label, "") for label in (4, 5, 2**40, -(2**63))] + [b"\x0a\xff\xff\xff\xff\x07"]:
        writer.write(record)
    writer.close()
    (split,) = open_tfds("tfds:shapes", "shapes", str(tmp_path)).splits.values()
    np.testing.assert_array_equal(split.records.labels(), [4, -1, -1, -1, -1])
    assert "record 4 is damaged" in outcome(lambda: list(split.records.encoded([4])))  # type: ignore[attr-defined]
