"""Splits by slice, hold-out and fold, what a run keeps of them, exclusion lists, imbalance, and soft labels."""

import dataclasses
import itertools
import json
import time
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.utils.class_weight import compute_class_weight

from jaxcnn import evaluate, main
from jaxcnn.config import Config, DataConfig, LossConfig, validate
from jaxcnn.data import batch_examples, load_arrays, open_source
from jaxcnn.data import sources as sources_module
from jaxcnn.data import splits as splits_module
from jaxcnn.data.exclusion import read_exclusion, write_exclusion
from jaxcnn.data.order import DrawnGroups
from jaxcnn.data.records import ImagesInMemory, JoinedRecords, Split, StoredSet
from jaxcnn.data.splits import (
    assign_splits,
    holdout_order,
    labels_of,
    num_shared,
    only_classes,
    parts_of,
    record_numbers,
    restore_splits,
)
from jaxcnn.data.tfds import TfdsRecords
from jaxcnn.errors import Preempted, UserError
from jaxcnn.fingerprints import fingerprint_of
from jaxcnn.run import workdir
from jaxcnn.tasks.classification.losses import class_weights, make_loss
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed
from jaxcnn.training.preview import describe
from jaxcnn.training.whole_run import Hyperparameters, pieces_of, train_in_chunks
from tests import runs
from tests.fake_tfds import shard_path, write_set
from tests.nasty_images import write_classes
from tests.runs import small_config
from tests.test_loop import stop_at  # noqa: F401

LABELS = np.random.default_rng(0).choice(5, size=200, p=[0.5, 0.25, 0.15, 0.07, 0.03])
CHEAP: dict[str, Any] = {"model__name": "mlp", "model__dropout_rate": 0.0, "num_devices": 1}  # to compile
LAYOUTS: dict[str, dict[str, int]] = {
    "train": {"train": 203},
    "train and test": {"train": 203, "test": 31},
    "train and validation": {"train": 203, "validation": 31},
    "all": {"train": 203, "validation": 31, "test": 31},
}


def in_memory(sizes: dict[str, int], seed: int = 0, **fields: Any) -> dict[str, Split]:
    """Splits of imbalanced classes, the rarest with a single example; an image's pixel tells which record it is."""
    stored = {}
    for number, (name, size) in enumerate(sizes.items()):
        generator = np.random.default_rng([seed, number])
        classes = generator.permutation(np.r_[generator.choice(4, size=size - 1, p=[0.6, 0.2, 0.15, 0.05]), 4])
        images = np.arange(size).astype(np.uint8).reshape(size, 1, 1, 1)
        stored[name] = Split(ImagesInMemory(name, images, classes, **fields), np.arange(size))
    return stored


def members(split: Split) -> list[tuple[str, int]]:
    """(records, number) of each example."""
    return [(records.name, int(number)) for records, numbers in parts_of(split) for number in numbers]


def classes_in(split: Split) -> np.ndarray:
    return split.records.labels()[split.indices]


# ---- slices


@pytest.mark.parametrize(
    "spec",
    [
        "train[:80%]", "train[80%:]", "train[10:]", "train[-7:]", "train[:-7]", "train[33%:67%]", "train[5:6]",
        "train[:25%]+train[75%:]", "train+extra", "extra[3:] + train[:10]", "train[0.5%:3.3%]", "train[:100%]",
    ],
)  # fmt: skip
def test_slices_are_tfds_own(spec: str, tfds_set: Path) -> None:
    """Read record by record, against what TFDS reads for the same words."""
    import tensorflow_datasets as tfds

    data = DataConfig(name="tfds:shapes", dir=str(tfds_set), train_split=spec, validation_fraction=0)
    split = open_source(data).splits["train"]
    official = tfds.data_source("shapes", split=spec, data_dir=tfds_set)
    assert len(split) == len(official)
    images, labels = load_arrays(split, fingerprint="", image_shape=(6, 6, 3), cache=False)
    for index in range(len(split)):
        np.testing.assert_array_equal(images[index], official[index]["image"])
        assert labels[index] == official[index]["label"]


@pytest.fixture(scope="module")
def tfds_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    write_set(folder, splits={"train": 61, "extra": 20, "test": 12}, image_shape=(6, 6, 3), num_shards=3)
    return folder


def test_slices_make_the_three_splits() -> None:
    stored = in_memory(LAYOUTS["all"])
    data = DataConfig(train_split="train[:80%]", validation_split="train[80%:]", test_split="validation+test[:5]")
    splits = assign_splits(data, stored)
    assert members(splits["train"]) == [("train", number) for number in range(162)]
    assert members(splits["validation"]) == [("train", number) for number in range(162, 203)]
    assert members(splits["test"]) == [("validation", n) for n in range(31)] + [("test", n) for n in range(5)]
    # What is learned from is no longer free to measure on: validation is then held out.
    splits = assign_splits(DataConfig(train_split="train+validation"), stored)
    assert {name: len(split) for name, split in splits.items()} == {"train": 211, "validation": 23, "test": 31}
    assert {records for records, _ in members(splits["validation"])} == {"train", "validation"}
    splits = assign_splits(DataConfig(test_split="validation"), stored)
    assert not num_shared(splits["validation"], splits["test"])


def test_slices_of_files_have_all_classes(tmp_path: Path) -> None:
    """Files lie class by class, so that slices are of another order."""
    write_classes(tmp_path, {"ant": 20, "bee": 9, "cat": 1})
    parts = [f"train[{start}%:{start + 25}%]" for start in (0, 25, 50, 75)]
    taken = []
    for seed, part in itertools.product((0, 1), parts):
        data = DataConfig(
            name=f"folder:{tmp_path}", train_split=part, test_split=parts[parts.index(part) - 1],
            validation_fraction=0, split_seed=seed,
        )  # fmt: skip
        split = open_source(data).splits["train"]
        assert (np.abs(np.bincount(classes_in(split), minlength=3)[:2] - [5, 2.25]) <= 1).all()
        assert (np.diff(split.indices) > 0).all()
        assert (part == parts[0]) == (2 in classes_in(split))  # the only one of a class goes to the first part
        taken.append(split.indices)
    for quarters in (taken[:4], taken[4:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(quarters)), np.arange(30))
    assert not np.array_equal(taken[0], taken[4])


def test_classes_that_train_lacks_are_told(tfds_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    for data, says in (
        (DataConfig(train_split="train[:2]", validation_fraction=0), "digits: train has no example of 8 of 10 classes"),
        (DataConfig(name="tfds:shapes", dir=str(tfds_set), train_split="train[:1]", validation_fraction=0),
         "tfds:shapes: train has no example of"),
    ):  # fmt: skip
        caplog.clear()
        open_source(data)
        assert [record.getMessage()[: len(says)] for record in caplog.records] == [says]
    caplog.clear()
    open_source(DataConfig())
    assert not caplog.records


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train_split": "train[:90%]", "validation_split": "train[80%:]"}, "validation_split.*shares 21 examples"),
        ({"train_split": "train[:50%]", "test_split": "train[49%:]"}, "test_split.*shares 3 examples"),
        ({"train_split": "train+test"}, "measure on what was learned"),
        ({"train_split": "train[:50%]+train[40%:]"}, "names 21 examples twice"),
        ({"train_split": "train[50%:50%]"}, "has no examples"),
        ({"train_split": "train[60%:50%]"}, "has no examples"),
        ({"test_split": "tset[:50%]"}, r"data.test_split='tset\[:50%\]'.*no split 'tset'; did you mean 'test'"),
        ({"train_split": "train[:50%"}, r"is no slice of.*train\[:80%\]"),
        ({"train_split": "train[:1000]"}, "is no slice of.*203 examples"),
        ({"train_split": "train[:2shard]"}, "is no slice of"),
        ({"train_split": ""}, "no split ''"),
        ({"fold": "0/5"}, "data.fold='0/5' is no fold; write 1/5"),
        ({"fold": "6/5"}, "is no fold"),
        ({"fold": "1/1"}, "is no fold"),
        ({"fold": "two of five"}, "is no fold"),
        ({"fold": "1/999"}, "too few examples"),
        ({"fold": "1/5", "validation_split": "test"}, "set data.validation_split=none"),
        ({"exclude": "/nowhere/list.txt"}, "data.exclude='/nowhere/list.txt' cannot be read.*one a line"),
    ],
)
def test_mistakes_are_answered_in_one_line(fields: dict[str, Any], says: str, monkeypatch: Any) -> None:
    stored = StoredSet(tuple("abcde"), (1, 1, 1), in_memory(LAYOUTS["all"]), "")
    monkeypatch.setattr(sources_module, "open_digits", lambda: stored)

    def open_checked(data: DataConfig) -> None:
        validate(Config(data=data))
        open_source(data)

    with pytest.raises(UserError, match=says) as error:
        open_checked(DataConfig(**fields))
    assert "\n" not in str(error.value)


# ---- held out


def test_every_path_is_free_of_leaks() -> None:
    """Disjoint and complete, whatever the set has and the config asks for; and test stays the same."""
    tests: dict[Any, Any] = {}
    for layout, seed in itertools.product(LAYOUTS, range(4)):
        stored = in_memory(LAYOUTS[layout], seed)
        for fraction, fold, stratify in itertools.product((0, 0.013, 0.1, 0.5), (None, "1/3", "7/7"), (True, False)):
            data = DataConfig(validation_fraction=fraction, fold=fold, stratify=stratify, split_seed=seed)
            splits = assign_splits(data, stored)
            found = {name: set(members(split)) for name, split in splits.items()}
            assert all(len(found[name]) == len(split) > 0 for name, split in splits.items())
            for one, other in itertools.combinations(found.values(), 2):
                assert not one & other
            given = {(name, number) for name, size in LAYOUTS[layout].items() for number in range(size)}
            if fold is None or layout != "all":  # the set's own validation is not used beside folds
                assert set.union(*found.values()) == given
            key = (layout, seed, stratify)
            assert tests.setdefault(key, found["test"]) == found["test"]
            assert ("validation" in found) == bool(fraction or fold or layout == "all")
            if stratify and fold is None:
                assert 4 in classes_in(splits["train"])  # the only example of a class is learned from


@pytest.mark.parametrize("labels", [LABELS, np.arange(1000) % 10, np.repeat([3, 1, 7], [2, 97, 400])])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.33])
def test_held_out_classes_are_in_the_proportions_of_scikit_learn(labels: np.ndarray, share: float) -> None:
    count = round(share * len(labels))
    if count < len(np.unique(labels)):
        return
    (_, theirs) = next(StratifiedShuffleSplit(1, test_size=count, random_state=0).split(labels, labels))
    orders = [holdout_order(labels, seed) for seed in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(len(labels)))
        found = np.bincount(labels[order[:count]], minlength=10)
        exact = np.bincount(labels, minlength=10) * share
        assert np.abs(found - exact).max() <= 1
        assert np.abs(found - np.bincount(labels[theirs], minlength=10)).max() <= 1
    assert (orders[0] != orders[1]).mean() > 0.9
    np.testing.assert_array_equal(orders[0], holdout_order(labels, 0))
    # Which of a class are held out is chance: each about as often.
    often = Counter(
        i for seed in range(300) for i in holdout_order(LABELS, seed)[:50].tolist() if LABELS[i] == 0
    ).values()
    assert min(often) > 0.25 * 300 * 0.6
    assert max(often) < 0.25 * 300 * 1.5


def test_without_stratifying_chance_decides() -> None:
    stored = in_memory({"train": 203, "test": 31})
    proportions = [
        [np.mean(classes_in(assign_splits(DataConfig(split_seed=seed, stratify=stratify), stored)["validation"]) == 0)
         for seed in range(30)]
        for stratify in (True, False)
    ]  # fmt: skip
    assert np.std(proportions[0]) < 1e-9 < 0.05 < np.std(proportions[1])


def test_folds_are_scikit_learns() -> None:
    stored = in_memory({"train": 203, "test": 31})
    labels = stored["train"].records.labels()
    folds = [assign_splits(DataConfig(fold=f"{k}/5", split_seed=3), stored) for k in range(1, 6)]
    with pytest.warns(UserWarning, match="only 1 member"):
        theirs = list(StratifiedKFold(5, shuffle=True, random_state=3).split(labels, labels))
    for splits, (outside, inside) in zip(folds, theirs, strict=True):
        np.testing.assert_array_equal(splits["train"].indices, outside)
        np.testing.assert_array_equal(splits["validation"].indices, inside)
        assert splits["test"] is stored["test"]
    together = np.concatenate([splits["validation"].indices for splits in folds])
    np.testing.assert_array_equal(np.sort(together), np.arange(203))


def test_labels_of_a_prepared_set_are_read_once(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    folder = write_set(tmp_path, splits={"train": 40, "test": 4}, image_shape=(6, 6, 3))
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))
    read: list[int] = []
    told: list[tuple[str, int, int]] = []
    label = TfdsRecords._label

    def counting(self: TfdsRecords, example: bytes) -> int:
        read.append(1)
        return label(self, example)

    monkeypatch.setattr(TfdsRecords, "_label", counting)

    def open_once() -> tuple[int, Any]:
        read.clear()
        data = DataConfig(name="tfds:shapes", dir=str(tmp_path))
        source = open_source(data, progress=lambda *what: told.append(what))
        return len(read), source.splits["train"].records.labels()

    num_read, labels = open_once()
    assert num_read == 40
    assert told[0] == ("reading the labels of tfds:shapes split 'train', once", 0, 40)
    assert told[-1][1:] == (40, 40)
    split = open_source(DataConfig(name="tfds:shapes", dir=str(tmp_path), validation_fraction=0)).splits["train"]
    np.testing.assert_array_equal(labels, [split[index]["label"] for index in range(40)])
    assert open_once()[0] == 0
    (kept,) = (tmp_path / "cache" / "labels").iterdir()
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    kept.write_bytes(damaged)
    with pytest.raises(zipfile.BadZipFile):
        np.load(kept)["labels"]
    num_read, again = open_once()
    assert num_read == 40
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(again, labels)
    shard = shard_path(folder, "shapes", "train", 1, 2)  # a record that cannot be parsed is said when it is needed
    stored = shard.read_bytes()
    place = stored.rfind(b"00000025.png")
    assert place > 0
    shard.write_bytes(stored[: place - 30] + b"\xff" * 40 + stored[place + 10 :])
    num_read, changed = open_once()
    assert num_read >= 40
    assert np.flatnonzero(changed < 0).tolist() == [25]
    np.testing.assert_array_equal(np.delete(changed, 25), np.delete(labels, 25))


# ---- kept with the run


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"fold": "2/3"}, {"train_split": "train[50%:]+validation+train[:10%]"}, {"validation_split": "test[:7]"},
        {"train_split": "validation+train", "test_split": "test[5:]"},
    ],
)  # fmt: skip
def test_what_is_kept_gives_the_splits_back(fields: dict[str, Any]) -> None:
    stored = in_memory(LAYOUTS["all"])
    splits = assign_splits(DataConfig(**fields), stored)
    again = restore_splits(record_numbers(splits, stored, "fingerprint"), stored, "fingerprint")
    assert {name: members(split) for name, split in again.items()} == {n: members(s) for n, s in splits.items()}
    for name, split in splits.items():
        np.testing.assert_array_equal(classes_in(again[name]), classes_in(split))
        assert [again[name][i]["image"].item() for i in range(7)] == [split[i]["image"].item() for i in range(7)]
    with pytest.raises(UserError, match="data are not those"):
        restore_splits(record_numbers(splits, stored, "fingerprint"), stored, "other")
    for planted in (
        {"train/0/train": np.array([10**12])},
        {"train/0/train": np.array([-1])},
        {"train/0/no": np.zeros(1)},
    ):
        with pytest.raises(UserError, match="that the data have not"):
            restore_splits({"fingerprint": np.array("f"), **planted}, stored, "f")


def test_a_test_that_chose_the_weights_is_said() -> None:
    for fields, words in (({}, 0), ({"data__validation_split": "test[:100]"}, 1)):
        run, _ = build(small_config(**fields, **CHEAP))
        assert describe(run, "test", 1).count("validation and test share 100 examples") == words


def test_joined_records_are_their_parts() -> None:
    parts = [split.records for split in in_memory(LAYOUTS["all"]).values()]
    joined = JoinedRecords(tuple(parts))
    numbers = np.random.default_rng(0).permutation(len(joined))
    starts = [0, 203, 234]
    for number, example in zip(numbers, joined.read(numbers), strict=True):
        part = np.searchsorted(starts, number, side="right") - 1
        assert joined.identifier(number) == f"{parts[part].name}:{number - starts[part]}"
        expected = parts[part][int(number - starts[part])]
        assert (example["image"].item(), example["label"]) == (expected["image"].item(), expected["label"])
    np.testing.assert_array_equal(joined.labels(), np.concatenate([part.labels() for part in parts]))
    assert joined.files == ()


def command(module: Any, *arguments: str) -> int:
    return module.main(["command", *arguments], time.perf_counter())


def test_no_later_version_changes_the_splits_of_a_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The commands themselves, with a splitter that has changed since; then without splits.npz."""
    folder = tmp_path / "run"
    fields = {  # a batch of 50 is evaluated on one device
        "model.name": "mlp", "model.dropout_rate": 0, "augment.crop_padding": 0, "num_devices": 1, "num_steps": 2,
        "batch_size": 50, "tensorboard": "false",
    }  # fmt: skip
    arguments = ["--config=experiments/digits.py", f"--workdir={folder}"]
    arguments += [f"--config.{name}={value}" for name, value in fields.items()]
    assert command(main, *arguments) == 0
    summary = json.loads((folder / "summary.json").read_text())
    kept = workdir.read_splits(workdir.resolve(str(folder)))
    assert kept is not None
    assert (folder / "splits.npz").stat().st_size < 4000
    validation = np.cumsum(kept["validation/0/train"])
    np.testing.assert_array_equal(validation, open_source(DataConfig()).splits["validation"].indices)

    monkeypatch.setattr(splits_module, "holdout_order", lambda classes, seed: np.arange(len(classes)))
    assert not np.array_equal(validation, open_source(DataConfig()).splits["validation"].indices)
    capsys.readouterr()
    assert command(evaluate, f"--workdir={folder}", "--split=validation") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loss"] == pytest.approx(summary["splits"]["validation"]["loss"], rel=1e-5)
    (folder / "summary.json").unlink()  # as if it had been killed before its last line
    assert command(main, *arguments) == 0
    assert json.loads((folder / "summary.json").read_text())["splits"] == summary["splits"]

    (folder / "summary.json").unlink()
    content = bytearray((folder / "splits.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "splits.npz").write_bytes(content)
    for module, given in ((main, arguments), (evaluate, [f"--workdir={folder}"])):
        with pytest.raises(UserError, match=r"splits.npz is damaged .*delete it"):
            command(module, *given)
    (folder / "splits.npz").unlink()
    for module, given in ((main, arguments), (evaluate, [f"--workdir={folder}"])):
        with pytest.raises(UserError, match=r"other splits of the data, and no splits\.npz of"):
            command(module, *given)
    monkeypatch.undo()
    assert not (folder / "splits.npz").exists()


# ---- exclusion lists


def test_a_list_is_left_out_before_all_else(tmp_path: Path, monkeypatch: Any) -> None:
    stored = StoredSet(tuple("abcde"), (1, 1, 1), in_memory(LAYOUTS["all"]), "")
    monkeypatch.setattr(sources_module, "open_digits", lambda: stored)
    file = tmp_path / "clean list.txt"
    entries = [("train:7", "blank"), ("train:202", "blank"), ("test:0", "in train too")]
    write_exclusion(file, entries, comments=["of a check"])
    assert file.read_text() == "# of a check\n# blank\ntrain:7\ntrain:202\n# in train too\ntest:0\n"
    assert read_exclusion(str(file)).identifiers == ("train:7", "train:202", "test:0")
    source = open_source(DataConfig(exclude=str(file), train_split="train[:7]+train[7:]", fold="1/2"))
    assert source.num_excluded == 3
    everything = {member for split in source.splits.values() for member in members(split)}
    assert everything == {("train", n) for n in range(202) if n != 7} | {("test", n) for n in range(1, 31)}
    sliced = open_source(DataConfig(exclude=str(file), train_split="train[:8]", validation_fraction=0))
    assert members(sliced.splits["train"]) == [("train", n) for n in (*range(7), 8)]

    other = tmp_path / "other"
    other.write_text("test:0\n\n#train:1\n  train:202 \ntrain:7\ntrain:7")
    assert read_exclusion(str(other)).digest == read_exclusion(str(file)).digest  # what it says, not how
    other.write_text("train:7\nvalidation:9999\ntrane:1\n")
    with pytest.raises(UserError, match=r"names 2 records that digits .*first 'validation:9999'; .* like 'train:0'"):
        open_source(DataConfig(exclude=str(other)))
    other.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        open_source(DataConfig(exclude=str(other)))
    other.write_bytes(b"train:7\r\n# of another editor\r\ntrain:202\r\ntest:0\r\n")
    assert read_exclusion(str(other)).digest == read_exclusion(str(file)).digest
    other.write_bytes(b"train:7\ntrain:1\rtrain:2\n")
    with pytest.raises(UserError, match=r"line 2 has the control character '\\r'"):
        read_exclusion(str(other))
    for name in ("a\nb", "a\rb", "a\x85b", "\ufeffa", "#a", " a", ""):
        with pytest.raises(UserError, match="cannot stand in an exclusion list"):
            write_exclusion(other, [(name, "")])
    for unknown in ("~nosuchuser/list", "a\0b", "/dev/zero"):
        with pytest.raises(UserError, match="cannot be read"):
            read_exclusion(unknown)


def test_a_list_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    """It may move; a changed one is refused."""
    lists = [tmp_path / name for name in ("list.txt", "moved.txt", "changed.txt")]
    for file, content in zip(lists, ("digits:3\ndigits:4\n", "digits:4\ndigits:3\n", "digits:3\n"), strict=True):
        file.write_text(content)
    runs_of = {file: build(small_config(data__exclude=str(file), model__name="mlp"))[0] for file in lists}
    folder = workdir.resolve(str(tmp_path / "run"))
    folder.mkdir()
    first = runs_of[lists[0]]
    assert first.data_facts()["excluded"]["num_examples"] == 2
    assert sum(first.data_facts()["num_examples"].values()) == 1795
    assert "10 classes, 2 records excluded, on the device" in describe(first, "test", 1)
    workdir.write_config(folder, "test", first.config, first.data_facts(), {})
    workdir.write_splits(folder, first.source.record_numbers)
    workdir.check(folder, "test", runs_of[lists[1]].config)
    for digest in (None, runs_of[lists[2]].source.exclusion_digest):
        with pytest.raises(UserError, match=r"data.exclude=list.txt does not say what it said"):
            workdir.check_excluded(folder, "list.txt", digest)
    workdir.write_config(folder, "test", first.config, runs_of[lists[1]].data_facts(), {})
    kept = workdir.read_splits(folder)
    changed, _ = build(small_config(data__exclude=str(lists[2]), model__name="mlp"), kept_splits=kept)
    with pytest.raises(UserError, match=r"data.exclude=.*changed.txt does not say"):
        workdir.write_config(folder, "test", changed.config, changed.data_facts(), {})


# ---- imbalance: weights


def weights_of(config: LossConfig, labels: np.ndarray, num_classes: int) -> np.ndarray:
    weights = class_weights(config, lambda: labels, num_classes)
    assert weights is not None
    return weights


def test_balanced_weights_are_scikit_learns() -> None:
    config = LossConfig(class_weights="balanced")
    weights = weights_of(config, np.r_[LABELS, -1], 7)
    np.testing.assert_allclose(weights[:5], compute_class_weight("balanced", classes=np.arange(5), y=LABELS), rtol=1e-6)
    np.testing.assert_array_equal(weights[5:], 1)  # classes that train does not have
    assert weights[LABELS].mean() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(weights_of(config, np.eye(7, dtype=np.float32)[LABELS], 7), weights, rtol=1e-6)
    soft = np.random.default_rng(0).dirichlet(np.ones(4), size=50).astype(np.float32)
    assert (soft @ weights_of(config, soft, 4)).mean() == pytest.approx(1, rel=1e-5)
    assert class_weights(LossConfig(), lambda: LABELS, 5) is None
    given = LossConfig(class_weight_values=(1.0, 0.0, 3.5))
    np.testing.assert_array_equal(weights_of(given, LABELS, 3), np.array([1, 0, 3.5], np.float32))
    for config, says in (
        (given, "has 3 weights, but there are 5 classes"),
        (LossConfig(class_weight_values=(0.0,) * 5), "are all 0"),
    ):
        with pytest.raises(UserError, match=says):
            class_weights(config, lambda: LABELS, 5)
    with pytest.raises(UserError, match="both weigh classes"):
        validate(Config(loss=LossConfig(class_weights="balanced", class_weight_values=(1.0,))))


def test_weights_multiply_each_loss() -> None:
    logits, classes = jax.random.normal(jax.random.key(0), (6, 3)), np.array([0, 1, 2, 2, 1, 0])
    weights = np.array([1, 0, 3.5], np.float32)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    loss = make_loss(LossConfig(), weights)
    np.testing.assert_allclose(loss(logits, jnp.asarray(classes)), plain * weights[classes], rtol=1e-6)
    np.testing.assert_allclose(loss(logits, jnp.eye(3)[classes]), plain * weights[classes], rtol=1e-6)
    mixed = jnp.full((6, 3), 1 / 3)
    np.testing.assert_allclose(
        loss(logits, mixed), optax.softmax_cross_entropy(logits, mixed) * weights.mean(), rtol=1e-6
    )


def test_weights_over_devices_and_in_evaluation(monkeypatch: Any) -> None:
    """The losses of training have them, on one device as on eight; evaluation's has not."""
    monkeypatch.setattr(sources_module, "open_digits", lambda: imbalanced_digits())
    changes = {"num_steps": 2, "optimizer__ema_decay": None, "loss__class_weights": "balanced", **CHEAP}
    found = []
    for num_devices in (1, 8):
        run, feed = build(small_config(**{**changes, "num_devices": num_devices}))
        parallel, losses = run.parallel, []
        state, key = parallel.replicate(run.init()), parallel.replicate(jax.random.key(0))
        for step in range(2):
            totals = parallel.replicate(run.learning.metrics.empty())
            state, totals, _ = run.calls.train_call(state, totals, feed.data(), feed.inputs(step, 1), key)
            losses.append(float(parallel.unreplicate(totals).compute()["loss"]))
        found.append((losses, parallel.unreplicate(state).params))
    (losses, params), (on_eight, their_params) = found
    assert on_eight == pytest.approx(losses, rel=1e-5)
    for a, b in zip(jax.tree.leaves(their_params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    run, feed = build(small_config(**changes))
    batch = feed.batch(0)
    weights = class_weights(run.config.loss, lambda: labels_of(run.source.splits["train"]), 10)
    assert weights is not None
    images = jnp.asarray((batch["image"] / 255 - np.array(run.facts["mean"])) / np.array(run.facts["std"]), jnp.float32)
    logits = run.learning.model.apply({"params": run.init().params}, images, train=True)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    weighted = plain * weights[batch["label"]]
    assert losses[0] == pytest.approx(float(weighted.mean()), rel=1e-5)
    assert abs(losses[0] / float(plain.mean()) - 1) > 0.02
    evaluated: Any = run.calls.eval_step
    np.testing.assert_allclose(evaluated.keywords["loss"](logits, batch["label"]), plain, rtol=1e-5)
    steps: Any = pieces_of(run).steps(Hyperparameters(label_smoothing=np.float32(0)))
    for step, expected in zip(steps, (weighted, plain), strict=True):
        np.testing.assert_allclose(step.keywords["loss"](logits, batch["label"]), expected, rtol=1e-5)


def imbalanced_digits(soft: Any = None) -> StoredSet:
    """The digits with ever fewer of the later classes; labels as `soft` makes them of classes."""
    from jaxcnn.data.digits import open_digits

    plain = open_digits()
    records = plain.splits["train"].records
    assert isinstance(records, ImagesInMemory)
    classes = records.labels()
    keep = np.random.default_rng(0).random(len(classes)) < 0.8**classes
    if soft is not None:
        records = ImagesInMemory("digits", records.images, soft(classes))
    splits = {name: Split(records, split.indices[keep[split.indices]]) for name, split in plain.splits.items()}
    return dataclasses.replace(plain, splits=splits, fingerprint=fingerprint_of("imbalanced", soft is None))


# ---- imbalance: sampling


@pytest.mark.parametrize("batch_size", [1, 7, 64, 333])
def test_balanced_sampling(batch_size: int) -> None:
    """Every class once a round; each class through permutations of its own; the same from wherever one begins."""
    groups = DrawnGroups.of(np.r_[LABELS, -1])
    draw = partial(batch_examples, num_examples=201, batch_size=batch_size, groups=groups)
    num_steps = -(-201 * 12 // batch_size)
    steps = [draw(5, step) for step in range(num_steps)]
    index, seen = (np.concatenate(arrays) for arrays in zip(*steps, strict=True))
    assert all(len(each) == batch_size for each, _ in steps)
    rounds = LABELS[index[: len(index) // 5 * 5]].reshape(-1, 5)
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile(np.arange(5), (len(rounds), 1)))
    assert len({tuple(each) for each in rounds}) > 60  # of 120 orders
    for label in range(5):
        members_of, drawn = np.flatnonzero(label == LABELS), index[LABELS[index] == label]
        np.testing.assert_array_equal(seen[LABELS[index] == label], np.arange(len(drawn)) // len(members_of))
        passes = [tuple(drawn[i : i + len(members_of)]) for i in range(0, len(drawn), len(members_of))]
        assert all(sorted(each) == members_of.tolist() for each in passes[:-1])
        if len(passes) > 3 and len(members_of) > 4:
            assert len(set(passes)) > len(passes) * 0.9
    for step in (num_steps - 1, num_steps // 2):
        draw(6, step)
        for a, b in zip(draw(5, step), steps[step], strict=True):
            np.testing.assert_array_equal(a, b)
    assert (draw(6, 0)[0] != steps[0][0]).any() or batch_size == 1


def test_balanced_sampling_in_runs(tmp_path: Path, monkeypatch: Any, stop_at: Any) -> None:  # noqa: F811
    """Killed and resumed bit for bit; streamed = resident, host by host; the loss falls on classes alike."""
    monkeypatch.setattr(sources_module, "open_digits", lambda: imbalanced_digits())
    config = small_config(
        data__sampling="balanced",
        augment__alternating_flip=True,
        num_steps=5,
        optimizer__ema_decay=None,
        data__validation_fraction=0,
        checkpoint__keep_best=0,
        **CHEAP,
    )
    runs.train(config, tmp_path / "whole")
    stop_at(2)
    with pytest.raises(Preempted):
        runs.train(config, tmp_path / "killed")
    runs.train(config, tmp_path / "killed")
    runs.assert_same_arrays(runs.arrays(tmp_path / "killed", config), runs.arrays(tmp_path / "whole", config))
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert rows[0] == rows[1]

    (_, resident), (_, streaming) = (build(dataclasses.replace(config, data=dataclasses.replace(
        config.data, resident=each, num_workers=0))) for each in (True, False))  # fmt: skip
    for step in (0, 17):
        batches = resident.batch(step), streaming.batch(step), jax.tree.map(lambda x: x[0], streaming.inputs(step, 1))
        for other in batches[1:]:
            assert batches[0].keys() == other.keys()
            for name in other:
                np.testing.assert_array_equal(batches[0][name], other[name])
    classes = np.concatenate([resident.batch(step)["label"] for step in range(10)])
    np.testing.assert_array_equal(np.bincount(classes), 48)
    streaming.close()
    with pytest.raises(UserError, match=r"data\.sampling=balanced is not for a whole run in one program"):
        pieces_of(build(config)[0])


# ---- soft labels


def test_soft_labels_that_are_classes_train_as_classes(monkeypatch: Any) -> None:
    """Steps, metrics and evaluation, in one program; what the feeds give the loop's are the same labels."""
    ends = {}
    for name, soft in (("classes", None), ("soft", lambda classes: np.eye(10)[classes])):
        monkeypatch.setattr(sources_module, "open_digits", lambda soft=soft: imbalanced_digits(soft))
        run, feed = build(small_config(num_steps=2, **CHEAP))
        assert isinstance(feed, ResidentFeed)
        ends[name] = list(train_in_chunks(run, feed, Hyperparameters(), num_steps=2, pieces=pieces_of(run)))[-1]
        assert feed.data()["label"].shape[1:] == run.source.label_shape
    for split in ("train", "validation"):
        for metric in ("loss", "accuracy"):
            np.testing.assert_allclose(ends["soft"][1][split][metric], ends["classes"][1][split][metric], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(ends["soft"][0]), jax.tree.leaves(ends["classes"][0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    streaming_run, streaming = build(small_config(num_steps=2, data__resident=False, data__num_workers=0, **CHEAP))
    for step in (0, 1):
        inputs = streaming.inputs(step, 1)
        np.testing.assert_array_equal(inputs["label"][0], feed.batch(step)["label"])
        np.testing.assert_array_equal(streaming.batch(step)["label"], feed.batch(step)["label"])
    state, totals, key = run.abstract_state(), run.learning.metrics.empty(), jax.random.key(0)
    for each, data, given in ((run, feed.data(), feed.inputs(0, 1)), (streaming_run, {}, inputs)):
        (_, sums, _) = jax.eval_shape(each.calls.train_call, state, totals, data, given, key)
        assert sums.loss.total.shape == ()
    streaming.close()


def test_soft_labels_on_their_way(tmp_path: Path, monkeypatch: Any) -> None:
    """As they are, through the cache of decoded images and an evaluation's last, short batch; stratified by class."""
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "set.npz"
    file.write_bytes(b"stands for the records' file")
    labels = np.random.default_rng(0).dirichlet(np.full(5, 0.3), size=201)
    images = np.random.default_rng(1).integers(0, 256, (201, 8, 8, 1)).astype(np.uint8)
    records = ImagesInMemory("soft", images, labels, (file,))
    stored = StoredSet(tuple("abcde"), (8, 8, 1), {"train": Split(records, np.arange(201))}, "soft")
    monkeypatch.setattr(sources_module, "open_digits", lambda: stored)
    source = open_source(DataConfig())
    assert source.label_shape == (5,)
    held_out = np.bincount(labels.argmax(1)[source.splits["validation"].indices], minlength=5)
    assert np.abs(held_out - np.bincount(labels.argmax(1)) / 10).max() <= 1
    load = partial(load_arrays, source.splits["train"], fingerprint="soft", image_shape=(8, 8, 1), cache=True)
    for progress in (None, lambda *_: pytest.fail("decoded again")):
        _, found = load(progress=progress)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, labels[source.splits["train"].indices].astype(np.float32))
    _, feed = build(small_config(data__resident=False, data__num_workers=0, model__name="mlp"))
    batches = [jax.device_get(batch) for _, batch in feed.evaluation("test", 16)]
    assert [batch["label"].shape for batch in batches] == [(16, 5)] * 2
    found = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(found, labels[source.splits["test"].indices].astype(np.float32))
    feed.close()


# ---- some classes, a few examples of each


def test_only_some_classes_in_a_new_order(tmp_path: Path) -> None:
    """As TFDS stores them, by name or number; slices, hold-outs and the record numbers kept are of what is left."""
    write_set(tmp_path, splits={"train": 60, "test": 20}, image_shape=(6, 6, 3), num_classes=5)
    every = open_source(DataConfig(name="tfds:shapes", dir=str(tmp_path)))
    data = DataConfig(name="tfds:shapes", dir=str(tmp_path), classes=("class3", 1))
    source = open_source(data)
    assert source.class_names == ("class3", "class1")
    for name in ("train", "validation", "test"):
        load = partial(load_arrays, fingerprint=source.fingerprint, image_shape=(6, 6, 3))
        images, labels = load(source.splits[name], cache=False)
        for _ in range(2):  # made, then read; it serves the whole set, so its labels are the set's own
            np.testing.assert_array_equal(load(source.splits[name], cache=True)[1], labels)
        whole = source.splits[name].records.whole.labels()[source.splits[name].indices]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(labels, np.where(whole == 3, 0, 1))
        np.testing.assert_array_equal(np.isin(whole, [1, 3]), True)
        np.testing.assert_array_equal(source.splits[name].records.labels()[source.splits[name].indices], labels)
        for index in (0, len(labels) - 1):
            example = source.splits[name][index]
            assert example["label"] == labels[index]
            np.testing.assert_array_equal(example["image"], images[index])
    in_all = sum(int(np.isin(labels_of(each), [1, 3]).sum()) for each in every.splits.values())
    assert sum(map(len, source.splits.values())) == in_all
    restored = open_source(data, kept=source.record_numbers)
    assert {k: v.indices.tolist() for k, v in restored.splits.items()} == {
        k: v.indices.tolist() for k, v in source.splits.items()
    }
    assert restored.splits["train"].records.labels().tolist() == source.splits["train"].records.labels().tolist()
    cached = load_arrays(every.splits["test"], fingerprint=every.fingerprint, image_shape=(6, 6, 3), cache=True)[1]
    np.testing.assert_array_equal(cached, every.splits["test"].records.labels())


def test_a_few_examples_of_each_class() -> None:
    """Drawn by split_seed, fewer among more, from train alone, whose other examples are in no split."""
    stored = in_memory(LAYOUTS["train and test"])
    rest = DataConfig(classes=(0, 1, 2))
    chosen = only_classes(stored, (0, 1, 2), "it")
    whole = assign_splits(rest, chosen)

    def few(count: int, seed: int = 0) -> set[tuple[str, int]]:
        splits = assign_splits(dataclasses.replace(rest, examples_per_class=count, split_seed=seed), chosen)
        assert Counter(classes_in(splits["train"]).tolist()) == dict.fromkeys(range(3), count)
        if seed == 0:
            assert members(splits["validation"]) == members(whole["validation"])
        assert members(splits["train"]) == sorted(members(splits["train"]))
        return set(members(splits["train"]))

    assert few(3) < few(10) < set(members(whole["train"]))
    assert few(10, seed=1) != few(10)
    with pytest.raises(UserError, match=r"examples_per_class=100: train has only \d+ of class 1; ask for fewer"):
        few(100)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("7", "sevn"), "digits has no class 'sevn'"),
        ((3, 10), "digits has no class '10'"),
        ((3, "3"), "names a class twice"),
        ((3,), "only one class"),
    ],
)
def test_classes_that_cannot_be(classes: tuple[int | str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_source(DataConfig(classes=classes))


def test_a_run_on_some_classes_streams_what_it_has_resident(tmp_path: Path) -> None:
    write_set(tmp_path, splits={"train": 60, "test": 20}, image_shape=(6, 6, 3), num_classes=5)
    config = small_config(**CHEAP, batch_size=8, data__name="tfds:shapes", data__dir=str(tmp_path), data__num_workers=0)
    config.data.classes, config.data.examples_per_class = (4, 0, 2), 5
    batches = []
    for resident in (True, False):
        config.data.resident = resident
        run, feed = build(config)
        assert len(run.source.splits["train"]) == 15
        batches.append(feed.batch(1))
        feed.close()
    for name in ("image", "label"):
        np.testing.assert_array_equal(batches[0][name], batches[1][name])
    assert set(batches[0]["label"]) <= {0, 1, 2}


def test_shared_records_are_counted_once():
    records: Any = range(6)
    one, other = (Split(records, np.array(numbers)) for numbers in ([0, 2, 2, 4], [2, 3, 4, 4]))
    assert splits_module.num_shared(one, other) == 2
    assert splits_module.num_shared(one, Split(records, np.array([1, 3]))) == 0
