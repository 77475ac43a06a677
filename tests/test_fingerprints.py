"""Whether data are those of before: by content, whatever the names, sizes and times of their files say."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn.config import DataConfig
from jaxcnn.data import load_arrays, open_source
from jaxcnn.data.records import Source
from jaxcnn.errors import UserError
from jaxcnn.fingerprints import check_same_data, content_digest, same_data
from tests.fake_tfds import shard_path, write_set


def digest(content: bytes) -> str:
    return content_digest(io.BytesIO(content))


def test_digests_are_of_content() -> None:
    small = os.urandom(5000)
    assert digest(small) == digest(small)
    assert len({digest(small), digest(small[:-1]), digest(small[:2500] + b"\0\0" + small[2502:]), digest(b"")}) == 4
    large = bytes(range(256)) * 1024
    changed = [large[:at] + b"\xff\xff" + large[at + 2 :] for at in (0, (len(large) - 4096) // 2 + 100, len(large) - 2)]
    assert len({digest(each) for each in (large, large[:-256], large + large[:256], *changed)}) == 6
    file = io.BytesIO(large)
    content_digest(file)
    assert file.tell() == 0


def bitmaps(root: Path) -> None:
    """Two classes of pictures that all have one size in bytes, and one time."""
    for name, level in (("black", 0), ("white", 255)):
        (root / name).mkdir(parents=True)
        for number in range(6):
            file = root / name / f"{number}.bmp"
            Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(file)
            os.utime(file, ns=(1, 1))


def swap(one: Path, other: Path) -> None:
    """As cp -p, rsync -t and tar do it: names, sizes and times stay."""
    content = one.read_bytes(), other.read_bytes()
    for file, new in zip((one, other), reversed(content), strict=True):
        file.with_suffix(".new").write_bytes(new)
        os.utime(file.with_suffix(".new"), ns=(1, 1))
        file.with_suffix(".new").replace(file)


def images_of(source: Source, fingerprint: str) -> np.ndarray:
    return load_arrays(source.splits["train"], fingerprint=fingerprint, image_shape=(8, 8, 3), cache=True)[0]


def test_pictures_that_changed_in_secret_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))
    bitmaps(tmp_path / "set")
    config = DataConfig(name=f"folder:{tmp_path / 'set'}")
    before = open_source(config)
    images = images_of(before, before.fingerprint)
    for number in range(6):
        swap(tmp_path / "set" / "black" / f"{number}.bmp", tmp_path / "set" / "white" / f"{number}.bmp")
    np.testing.assert_array_equal(images_of(before, before.fingerprint), 255 - images)  # though opened before
    after = open_source(config)
    np.testing.assert_array_equal(images_of(after, after.fingerprint), 255 - images)
    with pytest.raises(UserError, match=r"data have changed since the run was trained.*evaluate --data") as error:
        open_source(config, kept=before.record_numbers)
    assert "\n" not in str(error.value)

    # A run of before, which has names and sizes alone, is held to these.
    kept = {**before.record_numbers, "fingerprint": np.array(before.fingerprint.partition("-")[0])}
    open_source(config, kept=kept)
    (tmp_path / "set" / "black" / "0.bmp").unlink()
    with pytest.raises(UserError, match=r"data are not those that the run was trained on.*--data_dir"):
        open_source(config, kept=kept)


def test_shards_that_changed_in_secret_are_noticed(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    open_set = lambda: open_source(DataConfig(name="tfds:shapes", dir=str(tmp_path), validation_fraction=0))
    before = open_set()
    shard = shard_path(folder, "shapes", "train", 0, 2)
    content = bytearray(shard.read_bytes())
    content[(len(content) - 4096) // 2 + 100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="data have changed"):
        check_same_data(before.fingerprint, open_set().fingerprint)


def test_what_two_fingerprints_say() -> None:
    assert same_data("a-b", "a-b")
    assert same_data("a", "a")
    assert same_data("a", "a-b")
    assert same_data("a-b", "a")
    assert not same_data("a-b", "a-c")
    assert not same_data("a-b", "c-b")
    assert not same_data("a", "b")
