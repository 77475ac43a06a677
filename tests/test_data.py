"""Order, sources, splits, the decoded cache and streaming, on digits and on small sets written here."""

import errno
import json
import os
import pickle
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils import murmurhash3_32

from jaxcnn.config import DataConfig
from jaxcnn.data import (
    batch_indices,
    channel_statistics,
    load_arrays,
    open_source,
    order,
    resident_bytes,
)
from jaxcnn.data import resident as resident_module
from jaxcnn.data.decoding import fit_image, resize_image
from jaxcnn.data.order import permutation
from jaxcnn.data.records import Split
from jaxcnn.errors import UserError
from tests.fake_tfds import shard_path, write_set
from tests.hostile_images import jpeg_that_says

ROOT = Path(__file__).resolve().parent.parent
PREPARED = Path(os.environ.get("JAXCNN_TEST_TFDS_DIR") or ROOT.parent / "shared" / "data" / "tfds")


# ---- order


@pytest.mark.parametrize(("num_examples", "batch_size"), [(12, 4), (13, 4), (5, 13), (1, 3), (7, 7)])
def test_every_example_once_an_epoch(num_examples: int, batch_size: int) -> None:
    num_epochs = 6
    num_steps = -(-num_epochs * num_examples // batch_size)
    batches = [batch_indices(3, step, num_examples=num_examples, batch_size=batch_size) for step in range(num_steps)]
    assert all(batch.shape == (batch_size,) for batch in batches)
    stream = np.concatenate(batches)
    epochs = stream[: num_epochs * num_examples].reshape(num_epochs, num_examples)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_examples), (num_epochs, 1)))
    if num_examples > 5:  # of 5, two of six orders are alike by chance
        assert len({tuple(epoch) for epoch in epochs}) == num_epochs  # a fresh permutation each


def test_order_depends_on_seed_and_step_alone() -> None:
    def order(seed: int, steps: range) -> np.ndarray:
        return np.stack([batch_indices(seed, step, num_examples=100, batch_size=32) for step in steps])

    whole = order(0, range(12))
    np.testing.assert_array_equal(order(0, range(7, 12)), whole[7:])
    np.testing.assert_array_equal(order(0, range(11, -1, -1))[::-1], whole)
    assert (order(1, range(12)) != whole).mean() > 0.9


def test_order_is_pinned() -> None:
    """A changed order would change every run that is resumed. Against scikit-learn's own MurmurHash3."""
    hashes = [murmurhash3_32(np.array([1, 42, 3, i], "<u4").tobytes(), positive=True) for i in range(10)]
    np.testing.assert_array_equal(batch_indices(42, 6, num_examples=10, batch_size=5), np.argsort(hashes)[:5])


@pytest.mark.parametrize(("seed", "epoch", "num_examples"), [(0, 0, 1), (0, 7, 1293), (2**31 - 1, 40_000, 50_000)])
def test_order_is_the_same_in_a_compiled_program(seed: int, epoch: int, num_examples: int) -> None:
    jitted = jax.jit(lambda seed, epoch: permutation(seed, epoch, num_examples, xp=jnp))
    np.testing.assert_array_equal(jitted(seed, epoch), permutation(seed, epoch, num_examples))


def test_order_is_as_good_as_random() -> None:
    """At fixed seeds, against what chance does: where examples stand, who follows whom, one order beside another."""
    num_examples, num_orders = 20, 8000
    orders = np.stack([permutation(0, epoch, num_examples) for epoch in range(num_orders)])
    by_position = np.stack([np.bincount(column, minlength=num_examples) for column in orders.T])
    pairs = np.bincount((orders[:, :-1] * num_examples + orders[:, 1:]).ravel(), minlength=num_examples**2)
    pairs = pairs.reshape(num_examples, num_examples)[~np.eye(num_examples, dtype=bool)]
    for counts, freedom in ((by_position, (num_examples - 1) ** 2), (pairs, pairs.size - 1)):
        assert counts.sum() == counts.mean() * counts.size > 0
        chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)  # its mean and 4 standard deviations

    # Orders of neighbouring seeds and epochs: no correlation beyond chance, of standard deviation 1 / sqrt(n).
    size = 4096  # a power of two, where a weak hash only moves the examples about
    orders = np.stack([permutation(seed, epoch, size) for seed in range(8) for epoch in range(8)])
    correlation = np.corrcoef(orders)[~np.eye(len(orders), dtype=bool)]
    assert np.abs(correlation).max() < 5 / np.sqrt(size)
    assert np.std(correlation) == pytest.approx(1 / np.sqrt(size), rel=0.1)
    moved = orders[:, None, :] ^ orders[None, :, :]  # an order that is another's under i -> i ^ c, for one c
    assert min(len(np.unique(row)) for row in moved[~np.eye(len(orders), dtype=bool)]) > size / 2


def test_order_cannot_be_spoiled_by_its_reader() -> None:
    with pytest.raises(ValueError, match="read-only"):
        batch_indices(0, 0, num_examples=10, batch_size=5)[0] = 99


def test_order_costs_microseconds() -> None:
    batch_indices(0, 0, num_examples=50_000, batch_size=128)
    start = time.perf_counter()
    for step in range(390):
        batch_indices(0, step, num_examples=50_000, batch_size=128)
    assert (time.perf_counter() - start) / 390 < 50e-6  # 1 on an idle core


# ---- sources and splits


def labels_of(split: Split) -> np.ndarray:
    return np.array([split[index]["label"] for index in range(len(split))])


def test_digits() -> None:
    source = open_source(DataConfig())
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 1293,
        "validation": 144,
        "test": 360,
    }
    assert (source.image_shape, source.class_names) == ((8, 8, 1), tuple("0123456789"))
    everything = np.concatenate([split.indices for split in source.splits.values()])
    np.testing.assert_array_equal(np.sort(everything), np.arange(1797))

    from sklearn.datasets import load_digits

    bundled = load_digits()
    split = source.splits["test"]
    for index in range(0, 360, 7):
        example = split[index]
        record = split.indices[index]
        assert (example["image"].dtype, example["image"].shape) == (np.uint8, (8, 8, 1))
        np.testing.assert_array_equal(example["image"][:, :, 0], np.round(bundled.images[record] * 255 / 16))
        assert example["label"] == bundled.target[record]
    np.testing.assert_allclose(np.bincount(labels_of(split)), np.bincount(bundled.target) / 5, atol=1)


def test_held_out_slice_follows_split_seed_alone() -> None:
    def held_out(**fields: Any) -> set[int]:
        source = open_source(DataConfig(**fields))
        validation = source.splits["validation"].indices
        assert not set(validation) & set(source.splits["train"].indices)
        assert len(validation) + len(source.splits["train"]) == 1437
        np.testing.assert_array_equal(validation, np.sort(validation))
        return set(validation.tolist())

    assert held_out() == held_out()
    assert len(held_out(split_seed=1) & held_out()) < 40  # 14 of 144 by chance
    assert held_out() < held_out(validation_fraction=0.3)


def open_set(directory: Path, name: str = "shapes", **fields: Any) -> Any:
    return open_source(DataConfig(name=f"tfds:{name}", dir=str(directory), **fields))


@pytest.mark.parametrize(
    ("stored", "fields", "expected"),
    [
        ({"train": 40, "test": 12}, {}, {"train": 36, "validation": 4, "test": 12}),
        ({"train": 40, "validation": 8, "test": 12}, {}, {"train": 40, "validation": 8, "test": 12}),
        ({"train": 40, "validation": 8}, {}, {"train": 36, "validation": 4, "test": 8}),  # as ImageNet
        ({"train": 40}, {}, {"train": 32, "validation": 4, "test": 4}),
        ({"train": 40}, {"validation_fraction": 0.25}, {"train": 26, "validation": 10, "test": 4}),
        ({"train": 40, "test": 12}, {"validation_split": "test"}, {"train": 40, "validation": 12, "test": 12}),
        ({"train": 40, "extra": 20, "test": 12}, {"train_split": "extra"}, {"train": 18, "validation": 2, "test": 12}),
    ],
)
def test_which_split_is_which(
    tmp_path: Path, stored: dict[str, int], fields: dict[str, Any], expected: dict[str, int]
) -> None:
    write_set(tmp_path, splits=stored)
    source = open_set(tmp_path, **fields)
    assert {name: len(split) for name, split in source.splits.items()} == expected
    taken: dict[str, list[int]] = {}
    for split in source.splits.values():
        taken.setdefault(split.records.name, []).extend(split.indices.tolist())
    if "validation_split" not in fields:
        assert all(len(records) == len(set(records)) for records in taken.values())


def test_a_test_split_without_labels_is_no_test(tmp_path: Path) -> None:
    write_set(tmp_path, splits={"train": 40, "validation": 8, "test": 12}, unlabelled=("test",))
    splits = open_set(tmp_path).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 36, "validation": 4, "test": 8}
    assert "'validation'" in splits["test"].records.name


def test_records_are_what_was_written(tmp_path: Path) -> None:
    """PNG is lossless, so channel order, record order over shards and labels are all held by equality."""
    write_set(tmp_path / "one", num_shards=1)
    write_set(tmp_path / "three", num_shards=3)
    one, three = (open_set(tmp_path / folder).splits["test"] for folder in ("one", "three"))
    import tensorflow_datasets as tfds

    official = tfds.data_source("shapes", split="test", data_dir=tmp_path / "three")
    for index in range(12):
        for key in ("image", "label"):
            np.testing.assert_array_equal(one[index][key], official[index][key])
            np.testing.assert_array_equal(three[index][key], official[index][key])
    assert official[0]["image"].max() > 150
    copy = pickle.loads(pickle.dumps(three))
    np.testing.assert_array_equal(copy[5]["image"], three[5]["image"])


def test_fingerprint_is_of_the_data_not_of_its_place(tmp_path: Path) -> None:
    write_set(tmp_path / "here")
    write_set(tmp_path / "there")
    write_set(tmp_path / "more", splits={"train": 41, "test": 12})
    write_set(tmp_path / "newer", version="1.0.1")
    here, there, more, newer = (open_set(tmp_path / name) for name in ("here", "there", "more", "newer"))
    assert here.fingerprint == there.fingerprint
    assert len({here.fingerprint, more.fingerprint, newer.fingerprint}) == 3


def test_versions_and_configs(tmp_path: Path) -> None:
    write_set(tmp_path, splits={"train": 20, "test": 2}, version="2.0.0")
    write_set(tmp_path, splits={"train": 30, "test": 3}, version="10.0.0")
    write_set(tmp_path, "sized", splits={"train": 20, "test": 4}, config="small")
    assert len(open_set(tmp_path).splits["test"]) == 3
    assert len(open_set(tmp_path, "shapes:2.0.0").splits["test"]) == 2
    assert len(open_set(tmp_path, "sized").splits["test"]) == 4
    assert len(open_set(tmp_path, "sized/small:1.0.0").splits["test"]) == 4
    write_set(tmp_path, "sized", config="large")
    with pytest.raises(UserError, match="configs: large, small"):
        open_set(tmp_path, "sized")


def test_grey_and_colour(tmp_path: Path) -> None:
    write_set(tmp_path, "grey", image_shape=(10, 14, 1))
    source = open_set(tmp_path, "grey", image_size=8)
    assert source.image_shape == (8, 8, 1)
    split = source.splits["test"]
    images, _ = load_arrays(split, fingerprint="", image_shape=source.image_shape, cache=False)
    assert images.shape == (12, 8, 8, 1)


def test_data_dir_falls_back_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "variable")
    write_set(tmp_path / "home" / "tensorflow_datasets", splits={"train": 20, "test": 3})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))
    assert len(open_source(DataConfig(name="tfds:shapes")).splits["test"]) == 12
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert len(open_source(DataConfig(name="tfds:shapes")).splits["test"]) == 3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "shapes"}, r"did you mean 'tfds:shapes'\?"),
        ({"name": "digit"}, r"did you mean 'digits'\?"),
        ({"name": "tfds:"}, "tfds:NAME"),
        ({"name": "tfds:shapes:1.0.0:2"}, r"tfds:NAME\[/CONFIG\]"),
        ({"name": "tfds:shape"}, r"did you mean 'shapes'\?.*prepare it once: python -m jaxcnn.data prepare shape "),
        ({"name": "tfds:shapes:9.9.9"}, "has version 1.0.0"),
        ({"name": "tfds:shapes", "dir": "gs://bucket/sets"}, "gs://bucket/sets.*copy the set"),
        ({"name": "tfds:shapes", "dir": "/nowhere"}, "no folder /nowhere"),
        ({"name": "tfds:shapes", "dir": "~nosuchuser"}, "no home folder of '~nosuchuser'"),
        ({"name": "tfds:" + "x" * 5000}, "is not prepared: looked in"),
        ({"name": "tfds:shapes/" + "x" * 5000}, "is not prepared"),
        ({"name": "tfds:shapes", "train_split": "trian"}, r"data.train_split='trian'.*did you mean 'train'\?"),
        ({"name": "tfds:shapes", "validation_split": "vali"}, "data.validation_split='vali'.*test, train"),
        ({"name": "tfds:shapes", "validation_split": "train"}, "learned from"),
        ({"name": "tfds:shapes", "train_split": "test"}, "measure on what was learned"),
        ({"name": "tfds:varied"}, "image_size"),
        ({"name": "tfds:records"}, "stored as tfrecord.*convert it once: python -m jaxcnn.data prepare records"),
        ({"name": "tfds:tiny"}, "too few"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    write_set(tmp_path)
    write_set(tmp_path, "varied", image_shape=(None, None, 3))
    write_set(tmp_path, "records", file_format="tfrecord")
    write_set(tmp_path, "tiny", splits={"train": 2})
    with pytest.raises(UserError, match=says) as error:
        open_source(DataConfig(**{"dir": str(tmp_path), **fields}))
    assert "\n" not in str(error.value)


def test_a_set_without_labels_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["label"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match="no image with a class label"):
        open_set(tmp_path)


def test_no_network_no_tensorflow_and_no_jax(tmp_path: Path) -> None:
    write_set(tmp_path)
    program = f"""
import socket, sys
def refuse(*arguments, **keywords): raise AssertionError(f"network: {{arguments}}")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from jaxcnn.config import DataConfig
from jaxcnn.data import open_source
from jaxcnn.errors import UserError
open_source(DataConfig())
slow = {{"sklearn", "jax", "tensorflow_datasets", "grain"}} & set(sys.modules)
assert not slow, slow
source = open_source(DataConfig(name="tfds:shapes", dir={str(tmp_path)!r}))
assert source.splits["train"][0]["image"].shape == (12, 12, 3)
for name in ("shape", "mnist", "imagenet2012"):
    try:
        open_source(DataConfig(name="tfds:" + name, dir={str(tmp_path)!r}))
        raise SystemExit("opened what is not there")
    except UserError:
        pass
assert not {{"tensorflow", "torch"}} & set(sys.modules)
print("read")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "read\n", done.stderr


@pytest.mark.parametrize(("name", "shape", "train"), [("cifar10", (32, 32, 3), 45_000), ("mnist", (28, 28, 1), 54_000)])
def test_real_sets(name: str, shape: tuple[int, int, int], train: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (PREPARED / name).is_dir():
        pytest.skip(f"{name} is not prepared in {PREPARED}; $JAXCNN_TEST_TFDS_DIR names another folder")

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    source = open_set(PREPARED, name)
    sizes = {split_name: len(split) for split_name, split in source.splits.items()}
    assert sizes == {"train": train, "validation": train // 9, "test": 10_000}
    assert (source.image_shape, len(source.class_names)) == (shape, 10)
    test = Split(source.splits["test"].records, np.arange(0, 10_000, 5))
    images, labels = load_arrays(test, fingerprint="", image_shape=shape, cache=False)
    assert np.bincount(labels, minlength=10).min() > 120
    mean, std = channel_statistics(images)
    expected = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)) if name == "cifar10" else ((0.131,), (0.308,))
    np.testing.assert_allclose((mean, std), expected, atol=0.01)


# ---- resizing


@pytest.mark.parametrize(("height", "width"), [(10, 20), (20, 10), (40, 30), (3, 5), (15, 16), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_keeps_the_aspect_and_the_centre(height: int, width: int, channels: int) -> None:
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.round(255 * ((columns + 0.5) / width + (rows + 0.5) / height) / 2).astype(np.uint8)
    image = np.repeat(ramp[:, :, None], channels, axis=2)
    fitted = fit_image(image, (16, 16, channels))
    assert (fitted.shape, fitted.dtype) == ((16, 16, channels), np.uint8)
    scale = max(16 / height, 16 / width)
    steps = (np.arange(16) - 7.5) / scale  # of the source's pixels, around its centre
    expected = 255 * (0.5 + steps[None, :] / width / 2 + steps[:, None] / height / 2)
    inner = slice(3, 13)  # away from the border, where interpolation has to make up pixels
    np.testing.assert_allclose(fitted[inner, inner, 0], expected[inner, inner], atol=9)


@pytest.mark.parametrize(("shape", "middle"), [((1, 60_000), 40), ((60_000, 1), 40), ((3, 90_000), 120), ((1, 1), 1)])
def test_a_picture_of_any_length_takes_little_memory(shape: tuple[int, int], middle: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    tracemalloc.start()
    fitted, resized = fit_image(image, (224, 224, 3)), resize_image(image, 224, 224)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20
    assert resized.shape == (224, 224, 3)
    kept = [slice((size - min(size, middle)) // 2, (size + min(size, middle)) // 2) for size in shape]
    np.testing.assert_array_equal(fitted, fit_image(image[kept[0], kept[1]], (224, 224, 3)))


@pytest.mark.parametrize("shape", [(30, 470), (470, 30), (333, 2000), (40, 50)])
def test_an_ordinary_picture_is_resized_as_a_whole(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    height, width = (round(size * 32 / min(shape)) for size in shape)
    top, left = (height - 32) // 2, (width - 32) // 2
    whole = resize_image(image, height, width)
    np.testing.assert_array_equal(fit_image(image, (32, 32, 3)), whole[top : top + 32, left : left + 32])


def test_a_record_that_says_it_is_huge_is_refused() -> None:
    """OpenCV reads its limit when it is imported, and is imported here; in a command it is not yet."""
    code = """
import sys
from jaxcnn.data.decoding import decode_image
try:
    decode_image(sys.stdin.buffer.read(), 3)
except ValueError as error:
    print(error)
"""
    bomb = jpeg_that_says(20_000, 20_000)
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=bomb, stdout=subprocess.PIPE, check=True).stdout
    assert said == b"neither JPEG nor PNG, or too large\n"


# ---- resident


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any, Any]]:
    """Loads a split of a set written below tmp_path; gives how many records were decoded, images and labels."""
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))

    def load(name: str = "train", cache: bool = True, **fields: Any) -> tuple[int, Any, Any]:
        source = open_set(tmp_path, **fields)
        decoded = [0]
        arrays = load_arrays(
            source.splits[name],
            fingerprint=source.fingerprint,
            image_shape=source.image_shape,
            cache=cache,
            progress=lambda done, total: decoded.append(done),
        )
        return max(decoded), *arrays

    return load


def test_arrays_are_the_split(tmp_path: Path, cached: Callable[..., tuple[int, Any, Any]]) -> None:
    write_set(tmp_path)
    split = open_set(tmp_path).splits["train"]
    for _, images, labels in (cached(), cached(), cached(cache=False)):
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, np.stack([split[index]["image"] for index in range(36)]))
        np.testing.assert_array_equal(labels, labels_of(split))


def test_each_record_is_decoded_once(tmp_path: Path, cached: Callable[..., tuple[int, Any, Any]]) -> None:
    write_set(tmp_path)
    assert [cached(name)[0] for name in ("train", "validation", "test", "train", "test")] == [40, 0, 12, 0, 0]
    assert [cached(name, cache=False)[0] for name in ("train", "validation")] == [36, 4]
    assert cached(split_seed=5, validation_fraction=0.2)[0] == 0  # other slices of the same records
    assert [cached(image_size=size)[0] for size in (6, None, 6)] == [40, 0, 0]
    assert not list((tmp_path / "cache" / "decoded").glob(".*"))


def test_digits_need_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))
    source = open_source(DataConfig())
    images, labels = load_arrays(
        source.splits["train"], fingerprint=source.fingerprint, image_shape=(8, 8, 1), cache=True
    )
    assert images.shape == (1293, 8, 8, 1)
    np.testing.assert_array_equal(labels, labels_of(source.splits["train"]))
    assert not (tmp_path / "cache").exists()


def test_changed_data_is_decoded_again(tmp_path: Path, cached: Callable[..., tuple[int, Any, Any]]) -> None:
    folder = write_set(tmp_path)
    _, before, _ = cached()
    shard = shard_path(folder, "shapes", "train", 0, 2)
    write_set(tmp_path / "other", seed=1)
    other = shard_path(tmp_path / "other" / "shapes" / "1.0.0", "shapes", "train", 0, 2)
    shard.write_bytes(other.read_bytes())
    decoded, after, _ = cached()
    assert decoded == 40
    assert (before != after).any()
    os.utime(shard, ns=(1, 1))
    assert cached()[0] == 40


def test_a_small_part_of_a_large_set_is_not_all_decoded(
    cached: Callable[..., tuple[int, Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path)
    monkeypatch.setattr(resident_module, "_ALWAYS_WHOLE", 0)
    assert cached("validation")[0] == 4
    assert [cached(name)[0] for name in ("train", "validation")] == [40, 0]


def test_the_cache_is_private(
    cached: Callable[..., tuple[int, Any, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_set(tmp_path)
    cached()
    for folder in (tmp_path / "cache", tmp_path / "cache" / "decoded"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert cached()[0] == 0
    (tmp_path / "cache" / "decoded").chmod(0o775)  # as versions before made it
    assert cached()[0] == 0
    assert (tmp_path / "cache" / "decoded").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 10**6)  # another's may hold what to train on
    assert [cached()[0] for _ in range(2)] == [36, 36]
    assert caplog.text.count("others may write to") == 2  # of labels and of images, once each


@pytest.mark.parametrize("damage", ["flip", "truncate", "shape", "missing", "garbage"])
def test_a_damaged_cache_is_noticed_and_rebuilt(
    tmp_path: Path, cached: Callable[..., tuple[int, Any, Any]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path)
    _, before, _ = cached()
    (images,) = (tmp_path / "cache" / "decoded").glob("*/images.npy")
    stored = bytearray(images.read_bytes())
    if damage == "flip":
        stored[-1000] ^= 1
        images.write_bytes(stored)
    elif damage == "truncate":
        images.write_bytes(stored[:-1000])
    elif damage == "shape":
        np.save(images, before)
    elif damage == "missing":
        (images.parent / "labels.npy").unlink()
    else:
        (images.parent / "facts.json").write_text("{")
    decoded, after, _ = cached()
    assert decoded == 40
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(after, before)
    assert cached()[0] == 0


def test_no_room_for_a_cache_is_a_warning(
    tmp_path: Path,
    cached: Callable[..., tuple[int, Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_set(tmp_path)
    _, expected, _ = cached(cache=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "file" / "cache"))  # unwritable, also for root
    decoded, images, _ = cached()
    assert decoded == 36
    assert "cannot write in" in caplog.text
    np.testing.assert_array_equal(images, expected)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "full"))
    monkeypatch.setattr(resident_module.np, "save", full)
    decoded, images, _ = cached()
    assert decoded == 40
    assert "No space left" in caplog.text
    np.testing.assert_array_equal(images, expected)
    assert not list((tmp_path / "full" / "decoded").iterdir())


def test_two_at_once_leave_one_good_cache(
    tmp_path: Path, cached: Callable[..., tuple[int, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path)
    decode = resident_module._decode
    started: list[bool] = []

    def decode_while_another_saves(*arguments: Any, **keywords: Any) -> Any:
        arrays = decode(*arguments, **keywords)
        if not started:
            started.append(True)
            assert cached()[0] == 40
        return arrays

    monkeypatch.setattr(resident_module, "_decode", decode_while_another_saves)
    decoded, images, _ = cached()
    assert (decoded, started) == (40, [True])
    assert [path.name[0] for path in (tmp_path / "cache" / "decoded").iterdir()] == ["s"]
    decoded, again, _ = cached()
    assert decoded == 0
    np.testing.assert_array_equal(again, images)


def test_channel_statistics_are_exact() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 33, 31, 3)).astype(np.uint8)
    images[..., 2] = 7
    mean, std = channel_statistics(images)
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std[:2], pixels.std(axis=0)[:2], rtol=1e-10)
    assert std[2] == 1 / 255  # constant


def test_resident_bytes() -> None:
    assert resident_bytes(open_source(DataConfig())) == 1797 * (64 + 4)


def test_a_large_sets_next_order_is_made_ahead(monkeypatch):
    monkeypatch.setattr(order, "MADE_AHEAD", 50)
    order._being_made.cache_clear()
    for epoch in range(3):
        found = batch_indices(7, epoch * 10, num_examples=100, batch_size=10)
        np.testing.assert_array_equal(found, order.permutation(7, epoch, 100)[:10])
        assert order._being_made.cache_info().currsize == epoch + 2
    assert not found.flags.writeable
