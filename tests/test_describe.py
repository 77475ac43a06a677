"""What `python -m jaxcnn.data describe` and `prepare` say and draw."""

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcnn.data import __main__ as command
from jaxcnn.data.describing import describe
from jaxcnn.data.records import DamagedRecordError, ImagesInMemory, Split, StoredSet
from jaxcnn.data.resident import channel_statistics
from jaxcnn.data.sheet import Row, class_rows, draw
from jaxcnn.errors import UserError
from jaxcnn.results.augmented import augmented_images
from jaxcnn.training.build import build
from jaxcnn.training.step import train_step
from tests import fake_tfds
from tests.large_images import HELD, CountedRecords
from tests.runs import small_config

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> int:
    return command.main(["jaxcnn.data", *arguments], 0.0)


class Broken(ImagesInMemory):
    """One record of it cannot be read."""

    def __getitem__(self, record):
        if record == 3:
            raise DamagedRecordError("record 3 is damaged")
        return super().__getitem__(record)


@pytest.fixture
def small_set() -> StoredSet:
    images = np.random.default_rng(0).integers(0, 256, (30, 10, 20, 3)).astype(np.uint8)
    labels = np.array([0] * 20 + [1] * 10)
    splits = {
        "train": Split(Broken("broken", images, labels), np.arange(25)),
        "test": Split(ImagesInMemory("whole", images, labels), np.arange(25, 30)),
    }
    return StoredSet(("many", "few"), (10, 20, 3), splits, "print")


def test_a_set_of_tfds_is_known_without_its_prefix(tmp_path, monkeypatch):
    """A prepared one, with its config and version; one that could be prepared; not a name of another kind."""
    (tmp_path / "own_set" / "1.0.0").mkdir(parents=True)
    (tmp_path / "own_set" / "1.0.0" / "dataset_info.json").write_text("{}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "mnist").mkdir()
    for name, full in (
        ("own_set", "tfds:own_set"), ("own_set:1.0.0", "tfds:own_set:1.0.0"),
        ("own_set/a:1.0.0", "tfds:own_set/a:1.0.0"),
        ("cifar10", "tfds:cifar10"), ("tfds:cifar10", "tfds:cifar10"), ("digits", "digits"), ("digit", "digit"),
        ("mnist", "mnist"), ("folder:cifar10", "folder:cifar10"), ("csv:own_set", "csv:own_set"),
    ):  # fmt: skip
        assert command.full_name(name, str(tmp_path)) == full
    for arguments in (("describe",), ("check",), ("describe", "--augment=experiments/digits.py", "--sheet=a.png")):
        monkeypatch.chdir(ROOT)
        with pytest.raises(UserError, match="tfds:cifar10 is not prepared"):
            run(arguments[0], "cifar10", f"--data_dir={tmp_path}", *arguments[1:])


def test_numbers_are_those_of_numpy(small_set):
    description = describe("small", small_set)
    train, test = description.splits["train"], description.splits["test"]
    assert (train.num_images, train.num_unreadable, test.num_unreadable) == (25, 1, 0)
    assert train.class_counts == {"many": 19, "few": 5}
    assert train.imbalance == 19 / 5
    assert test.imbalance is None, "a class has no image there"
    assert (train.height.min, train.width.max, train.aspect.median) == (10, 20, 2)
    assert train.channels == {"3": 24}
    assert train.decoded_bytes == 24 * 600
    read = np.delete(small_set.splits["test"].records.images[:25], 3, axis=0)  # type: ignore[attr-defined]
    np.testing.assert_allclose(train.mean, (read / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(train.std, (read / 255).std((0, 1, 2)), rtol=1e-12)


def test_many_sizes_and_what_a_run_makes_of_them(tmp_path):
    fake_tfds.write_set(tmp_path, image_shape=(None, None, 3), splits={"train": 10, "test": 5})
    from jaxcnn.config import DataConfig
    from jaxcnn.data import load_arrays, open_source
    from jaxcnn.data.sources import open_stored

    data = DataConfig(name="tfds:shapes", dir=str(tmp_path), validation_fraction=0)
    stored = open_stored(data)
    train = describe(data.name, stored).splits["train"]
    sizes = sorted(fake_tfds.VARIED_SIZES * 2)
    assert (train.height.min, train.height.max) == (sizes[0][0], sizes[-1][0])
    assert train.width.median == np.median([width for _, width in sizes])
    assert train.file_bytes == sum(file.stat().st_size for file in stored.splits["train"].records.files)
    data.image_size = 16
    source = open_source(data)
    images, _ = load_arrays(source.splits["train"], fingerprint="", image_shape=source.image_shape, cache=False)
    fitted = describe(data.name, stored, image_size=16).splits["train"]
    assert (fitted.mean, fitted.std) == channel_statistics(images)


def test_the_command_prints_tables_or_json(capsys):
    assert run("describe", "digits") == 0
    out = capsys.readouterr().out
    assert "1,437" in out
    assert "mean (0.30" in out
    assert run("describe", "digits", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["splits"]["train"]["num_images"] == 1437
    assert sum(plain["splits"]["test"]["class_counts"].values()) == 360


# ---- sheets


def test_a_sheet_shows_the_pixels_of_each_image_in_its_place():
    generator = np.random.default_rng(0)
    tiny = generator.integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    large = np.full((200, 400, 3), (250, 10, 60), np.uint8)
    sheet = np.asarray(draw([Row("größer ×2 犬", list(tiny)), Row("x" * 200, [large])], columns=["one", "two"]))
    enlarged = np.repeat(np.repeat(tiny[1, :, :, 0], 12, axis=0), 12, axis=1)
    found = [
        (row, column)
        for row in range(sheet.shape[0] - 95)
        for column in np.flatnonzero(sheet[row, : sheet.shape[1] - 95, 0] == enlarged[0, 0])
        if (sheet[row : row + 96, column : column + 96] == enlarged[:, :, None]).all()
    ]
    assert len(found) == 1
    assert (sheet == (250, 10, 60)).all(axis=2).sum() == 96 * 48
    assert sheet.shape[1] < 600, "a long name is cut"


def test_a_row_a_class_of_images_spread_over_it(small_set):
    rows = class_rows(small_set.splits["train"], small_set.class_names, num_images=4)
    assert [(row.name, len(row.images)) for row in rows] == [("many", 4), ("few", 4)]
    stored = small_set.splits["train"].records.images  # type: ignore[attr-defined]
    assert [np.array_equal(image, stored[number]) for image, number in zip(rows[0].images, (0, 6, 13, 19), strict=True)]
    assert np.array_equal(rows[1].images[-1], stored[24])
    everything = class_rows(small_set.splits["train"], small_set.class_names, num_images=100)
    assert len(everything[0].images) == 19, "what cannot be read is left out"
    assert len(everything[1].images) == 5


@pytest.mark.parametrize("image_size", [None, 16])
def test_large_images_are_not_held(image_size):
    records = CountedRecords()
    stored = StoredSet(("even", "odd"), (600, 500, 3), {"train": records.split()}, "print")
    described = describe("counted", stored, image_size=image_size).splits["train"]
    assert (described.num_images, records.most <= HELD) == (60, True)
    records = CountedRecords()
    rows = class_rows(records.split(), ("even", "odd"), num_images=30)
    assert [len(row.images) for row in rows] == [30, 30]
    assert records.most == 1
    large = Row("even", [records[record]["image"] for record in range(0, 60, 2)])
    assert draw(rows[:1]).tobytes() == draw([large]).tobytes()


@pytest.fixture(scope="module")
def streamed(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("streamed")
    fake_tfds.write_set(folder, image_shape=(None, None, 3), splits={"train": 40, "test": 12})
    return str(folder)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_version_0_is_what_the_first_step_trains_on(resident, streamed):
    """Beside the images that train_step itself gets from its augmentation."""
    own = (
        {"augment__cutout": 3, "augment__alternating_flip": True}
        if resident
        else {
            "data__name": "tfds:shapes", "data__dir": streamed, "data__image_size": 16, "data__resident": False,
            "data__num_workers": 0, "augment__random_resized_crop": True, "augment__flip": True, "batch_size": 16,
        }
    )  # fmt: skip
    run, feed = build(small_config(num_devices=1, **own))
    try:
        shown = augmented_images(run, feed, num_images=12, num_versions=3)
        batch: Any = feed.batch(0)
        key = jax.random.key(run.config.seed)
        trained_on = jax.jit(partial(_trained_on, run))(batch, key)
    finally:
        feed.close()
    pixels = (
        np.asarray(trained_on)[:12] * np.array(run.facts["std"], np.float32) + np.array(run.facts["mean"], np.float32)
    ) * 255
    assert np.abs(shown.versions[:, 0] - pixels).max() < 0.51
    split = run.source.splits["train"]
    if resident:
        stored = np.stack([split[int(number)]["image"] for number in batch["index"][:12]])
        assert np.array_equal(shown.originals, stored)
        alike = shown.versions == shown.originals[:, None]
        alike_mirrored = shown.versions == shown.originals[:, None, :, ::-1]
        share, share_mirrored = (each.mean(axis=(2, 3, 4)) for each in (alike, alike_mirrored))
        assert (np.maximum(share, share_mirrored) >= 1 - 9 / 64).all(), "all but the square that is cut out"
        assert ((share > share_mirrored)[:, :-1] != (share > share_mirrored)[:, 1:]).mean() > 0.9, "every other time"
    else:  # nearer to their own original than to the others'
        flat = shown.versions[:, 1].reshape(12, -1).astype(float)
        distances = np.abs(flat[:, None] - shown.originals.reshape(12, -1)).mean(axis=2)
        assert distances.diagonal().mean() < 0.85 * distances.mean()
    assert np.array_equal(shown.labels, batch["label"][:12])
    assert (shown.versions[:, 1] != shown.versions[:, 2]).any(axis=(1, 2, 3)).all(), "each version has draws of its own"


def _trained_on(run: Any, batch: Any, key: jax.Array) -> jax.Array:
    """The images that train_step's own call of its augmentation makes; it ends there."""
    seen = []

    def prepare(*arguments):
        seen.append(run.learning.prepare(*arguments)[0])
        raise StopIteration

    state: Any = SimpleNamespace(step=np.int32(0))
    with pytest.raises(StopIteration):
        train_step(
            state, batch, key, model=run.learning.model, optimizer=run.learning.optimizer,
            loss=run.learning.losses.train, prepare=prepare, metrics=run.learning.metrics,
        )  # fmt: skip
    return seen[0]


def test_the_command_draws_both_sheets_and_overwrites_none(tmp_path, capsys):
    classes, augmented = tmp_path / "classes.png", tmp_path / "augmented.png"
    assert run("describe", "digits", f"--sheet={classes}") == 0
    with Image.open(classes) as sheet:
        assert sheet.size[1] >= 10 * 96
    experiment = ["--augment", "experiments/digits.py", "--config.augment.crop_padding=2"]
    assert run("describe", "digits", *experiment, "--sheet", str(augmented)) == 0
    with Image.open(augmented) as sheet:
        assert sheet.size[0] > 9 * 96
    with pytest.raises(UserError, match="--force"):
        run("describe", "digits", f"--sheet={classes}")


@pytest.mark.parametrize(("arguments", "words"), [
    (["--augment=experiments/digits.py"], "say where"),
    (["--config.augment.flip=true"], "is for --augment"),
    (["--augment=experiments/digit.py", "--sheet=x.png"], "did you mean"),
    (["--augment=experiments/digits.py", "--sheet=x.png", "--config.augment.flap=true"], "'flip'"),
    (["--sheet=x.jpg"], "PNG"),
    (["--image_size=0"], "image_size"),
])  # fmt: skip
def test_a_wrong_command_gets_one_line(arguments, words):
    with pytest.raises(UserError, match=words) as error:
        run("describe", "digits", *arguments)
    assert "\n" not in str(error.value)


def test_help_of_each_command(capsys):
    for arguments in (["--help"], ["describe", "--help"], ["check", "digits", "--help"], ["prepare", "-h"]):
        assert run(*arguments) == 0
        assert "jaxcnn.data" in capsys.readouterr().out


def test_prepare_hands_on_what_it_is_given(monkeypatch, tmp_path, capsys):
    given: dict[str, Any] = {}
    module = ModuleType("jaxcnn.data.prepare")
    module.prepare = lambda name, **rest: given.update(name=name, **rest) or tmp_path / "mnist"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jaxcnn.data.prepare", module)
    assert run("prepare", "tfds:mnist", "--data_dir=/there", "--archive=a.gz", "--archive", "b.gz") == 0
    assert "prepared" in capsys.readouterr().err
    given.pop("progress")
    assert [str(path) for path in given.pop("archives")] == ["a.gz", "b.gz"]
    assert given == {"name": "mnist", "data_dir": "/there"}
