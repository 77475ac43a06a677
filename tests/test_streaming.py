"""Streamed batches: the same whatever decodes them, and what happens when a record, a worker or a disk fails."""

import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxcnn.config import AugmentConfig, DataConfig
from jaxcnn.data import (
    batch_indices,
    channel_statistics,
    choose_workers,
    evaluation_batches,
    load_arrays,
    measure_statistics,
    open_source,
    train_batches,
)
from jaxcnn.data import streaming as streaming_module
from jaxcnn.data.decoding import fit_image, resize_image
from jaxcnn.data.order import AUGMENT_STREAM
from jaxcnn.data.records import Split
from jaxcnn.data.streaming import random_resized_crop
from jaxcnn.errors import RunError, UserError
from jaxcnn.training.build import build
from tests import test_command
from tests.fake_tfds import VARIED_SIZES, shard_lengths, shard_path, write_set
from tests.runs import rows, small_config, train

ROOT = Path(__file__).resolve().parent.parent


def open_set(directory: Path, **fields: Any) -> Any:
    return open_source(DataConfig(name="tfds:shapes", dir=str(directory), **fields))


def labels_of(split: Split) -> np.ndarray:
    return np.array([split[index]["label"] for index in range(len(split))])


VARIED = (20, 20, 3)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """33 JPEGs of five sizes in 3 shards."""
    directory = tmp_path_factory.mktemp("varied")
    write_set(directory, splits={"train": 33, "test": 17}, image_shape=(None, None, 3), encoding="jpeg", num_shards=3)
    source = open_set(directory, image_size=20, validation_split="test")
    assert source.image_shape == VARIED
    assert {source.splits["train"][index]["image"].shape[:2] for index in range(5)} == set(VARIED_SIZES)
    return source.splits["train"]


def stream(split: Split, **fields: Any) -> Any:
    defaults = {
        "seed": 5, "batch_size": 8, "start_step": 0, "image_shape": VARIED, "num_workers": 0, "prefetch_batches": 2,
        "augment": AugmentConfig(),
    }  # fmt: skip
    return train_batches(split, **{**defaults, **fields})


def take(batches: Any, num: int) -> list[dict[str, np.ndarray]]:
    with batches:
        return list(itertools.islice(batches, num))


def assert_same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


def test_batches_are_the_records_in_order(varied: Split) -> None:
    for step, batch in enumerate(take(stream(varied), 10)):
        indices = batch_indices(5, step, num_examples=33, batch_size=8)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        assert type(batch["image"]) is np.ndarray
        for row, index in enumerate(indices):
            np.testing.assert_array_equal(batch["image"][row], fit_image(varied[index]["image"], VARIED))
            assert batch["label"][row] == varied[index]["label"]


def test_batches_do_not_depend_on_workers_or_start(varied: Split) -> None:
    augment = AugmentConfig(random_resized_crop=True)
    expected = take(stream(varied, augment=augment), 9)
    position = 8 * 4 + 3
    record = batch_indices(5, 4, num_examples=33, batch_size=8)[3]
    crop = random_resized_crop(np.random.default_rng([AUGMENT_STREAM, 5, position]), varied[record]["image"], VARIED)
    np.testing.assert_array_equal(expected[4]["image"][3], crop)
    assert_same(take(stream(varied, augment=augment, start_step=4), 5), expected[4:])
    assert_same(take(stream(varied, augment=augment, start_step=1, num_workers=1), 4), expected[1:5])
    assert_same(take(stream(varied, augment=augment, start_step=2, num_workers=2), 7), expected[2:])


def test_hosts_share_a_batch(varied: Split) -> None:
    augment = AugmentConfig(random_resized_crop=True)
    whole = take(stream(varied, augment=augment), 3)
    parts = [take(stream(varied, augment=augment, process_index=i, process_count=4), 3) for i in range(4)]
    joined = [{key: np.concatenate([part[step][key] for part in parts]) for key in whole[0]} for step in range(3)]
    assert_same(joined, whole)
    with pytest.raises(UserError, match="batch_size=8 does not divide over 3 hosts"):
        stream(varied, process_count=3)


@pytest.mark.parametrize(("batch_size", "process_count"), [(8, 1), (33, 1), (50, 1), (16, 4), (1, 1)])
def test_evaluation_sees_every_record_once(varied: Split, batch_size: int, process_count: int) -> None:
    parts = [
        list(
            evaluation_batches(
                varied, batch_size=batch_size, image_shape=VARIED, num_workers=0, prefetch_batches=2,
                process_index=index, process_count=process_count,
            )
        )
        for index in range(process_count)
    ]  # fmt: skip
    num_batches = -(-33 // batch_size)
    assert [len(part) for part in parts] == [num_batches] * process_count
    joined = {
        key: np.concatenate([part[step][key] for step in range(num_batches) for part in parts])
        for key in ("image", "label", "mask")
    }
    assert joined["mask"].tolist() == [True] * 33 + [False] * (num_batches * batch_size - 33)
    np.testing.assert_array_equal(joined["label"][:33], labels_of(varied))
    np.testing.assert_array_equal(
        joined["image"][:33], np.stack([fit_image(varied[index]["image"], VARIED) for index in range(33)])
    )
    assert not joined["image"][33:].any()


def test_evaluation_with_workers_ends(varied: Split) -> None:
    def evaluate(num_workers: int) -> list[dict[str, np.ndarray]]:
        return list(
            evaluation_batches(varied, batch_size=9, image_shape=VARIED, num_workers=num_workers, prefetch_batches=3)
        )

    assert_same(evaluate(2), evaluate(0))


def test_random_resized_crop_is_a_box_of_the_image() -> None:
    """On a ramp, what a crop shows tells where its box lay."""
    rows, columns = np.mgrid[0:60, 0:80]
    image = np.stack([rows * 4, columns * 3, rows * 0], axis=2).astype(np.uint8)
    areas, aspects, tops = [], [], []
    for position in range(400):
        crop = random_resized_crop(np.random.default_rng([AUGMENT_STREAM, 0, position]), image, (32, 32, 3)).astype(
            float
        )
        assert crop.shape == (32, 32, 3)
        height = (crop[-4, 16, 0] - crop[3, 16, 0]) / 4 * 32 / 25
        width = (crop[16, -4, 1] - crop[16, 3, 1]) / 3 * 32 / 25
        areas.append(height * width / 4800)
        aspects.append(width / height)
        tops.append(crop[3, 16, 0] / 4)
    assert 0.05 < min(areas) < 0.13
    assert 0.9 < max(areas) < 1.08
    assert 0.45 < np.mean(areas) < 0.58  # uniform in 0.08..1 but for boxes that do not fit
    assert 0.68 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.45
    assert np.ptp(tops) > 25


def test_measured_statistics(varied: Split) -> None:
    mean, std = measure_statistics(varied, image_shape=VARIED)
    images, _ = load_arrays(varied, fingerprint="", image_shape=VARIED, cache=False)
    np.testing.assert_allclose((mean, std), channel_statistics(images), rtol=1e-12)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_record_is_named(tmp_path: Path, num_workers: int) -> None:
    """Bytes of one record in the second shard are overwritten."""
    folder = write_set(tmp_path, encoding="png", splits={"train": 40, "test": 12})
    shard = shard_path(folder, "shapes", "train", 1, 2)
    split = open_set(tmp_path, validation_split="test").splits["train"]
    stored = bytearray(shard.read_bytes())
    encoded = cv2.imencode(".png", split[25]["image"][:, :, ::-1])[1].tobytes()
    place = stored.find(encoded[40:80])
    assert place >= 0
    stored[place : place + 40] = bytes(40)
    shard.write_bytes(stored)
    split = open_set(tmp_path, validation_split="test").splits["train"]
    says = r"tfds:shapes split 'train': record 25 is damaged"
    with pytest.raises(RunError, match=says) as error:
        take(stream(split, image_shape=(12, 12, 3), num_workers=num_workers), 5)
    assert "\n" not in str(error.value)
    if num_workers == 0:
        with pytest.raises(RunError, match=says):
            load_arrays(split, fingerprint="", image_shape=(12, 12, 3), cache=False)


def test_damaged_sets_are_refused_when_opened(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    shard = shard_path(folder, "shapes", "train", 1, 2)
    whole = shard.read_bytes()
    information = json.loads((folder / "dataset_info.json").read_text())
    assert shard_lengths(40, 2) == [20, 20]

    information["splits"][0]["shardLengths"] = ["20", "21"]
    (folder / "dataset_info.json").write_text(json.dumps(information))
    with pytest.raises(RunError, match=r"split 'train'.*has 20 records, not 21"):
        open_set(tmp_path)
    information["splits"][0]["shardLengths"] = ["20", "20"]
    (folder / "dataset_info.json").write_text(json.dumps(information))

    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="split 'train'"):
        open_set(tmp_path)
    shard.unlink()
    with pytest.raises(RunError, match="is missing"):
        open_set(tmp_path)
    shard.write_bytes(whole)
    assert len(open_set(tmp_path).splits["train"]) == 36
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        open_set(tmp_path)


def test_a_label_or_size_other_than_declared_is_damage(tmp_path: Path) -> None:
    folder = write_set(tmp_path, num_classes=5)
    features = json.loads((folder / "features.json").read_text())
    label = features["featuresDict"]["features"]["label"]
    label["classLabel"]["numClasses"] = "2"
    (folder / "label.labels.txt").write_text("a\nb\n")
    (folder / "features.json").write_text(json.dumps(features))
    split = open_set(tmp_path).splits["train"]
    with pytest.raises(RunError, match=r"record \d+ is damaged \(label \d of 2 classes\)"):
        take(stream(split, image_shape=(12, 12, 3)), 5)

    label["classLabel"]["numClasses"] = "5"
    (folder / "label.labels.txt").write_text("a\nb\nc\nd\ne\n")
    features["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = ["13", "12", "3"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(RunError, match=r"\(12, 12, 3\) where \(13, 12, 3\)"):
        _ = open_set(tmp_path).splits["train"][0]


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Left open at exit, and killed: neither leaves processes behind; SIGTERM to a worker alone does not end it."""
    write_set(tmp_path, splits={"train": 40, "test": 12})
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import os, signal, sys, time, multiprocessing
from jaxcnn.config import AugmentConfig, DataConfig
from jaxcnn.data import open_source, train_batches
if __name__ == "__main__":
    split = open_source(DataConfig(name="tfds:shapes", dir={str(tmp_path)!r})).splits["train"]
    batches = train_batches(split, seed=0, batch_size=4, start_step=0, image_shape=(12, 12, 3),
                            augment=AugmentConfig(), num_workers=1, prefetch_batches=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    for _ in range(8):
        next(batches)
    print(worker.pid, flush=True)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for ending, code in (("exit", 0), ("kill", -9)):
        done = subprocess.run(
            [sys.executable, program, ending], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        if ending == "exit":
            assert "Exception ignored" not in done.stderr
        worker = int(done.stdout)
        deadline = time.monotonic() + 10
        while is_alive(worker):
            assert time.monotonic() < deadline, f"worker {worker} outlives its parent ({ending})"
            time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")  # a zombie that nobody waits for counts as ended
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


# ---- damaged records


def damage(folder: Path, split: str, *records: int) -> None:
    """Overwrites the pixels of some records: of 40 in train and 12 in test, in two files each."""
    for record in records:
        lengths = shard_lengths({"train": 40, "test": 12}[split], 2)
        path = shard_path(folder, "shapes", split, int(record >= lengths[0]), 2)
        stored = bytearray(path.read_bytes())
        image = open_set(folder.parents[1], validation_split="test").splits[split][record]["image"]
        encoded = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
        place = stored.find(encoded[40:80])
        assert place >= 0
        stored[place : place + 40] = bytes(40)
        path.write_bytes(stored)


@pytest.fixture(scope="module")
def partly_damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of train records 3, 4 and 39 cannot be read, of test 7: a set in a folder of its own."""
    directory = tmp_path_factory.mktemp("damaged")
    folder = write_set(directory, splits={"train": 40, "test": 12})
    damage(folder, "test", 7)
    damage(folder, "train", 3, 4, 39)
    return directory


SMALL = {"image_shape": (12, 12, 3), "num_workers": 0, "prefetch_batches": 2}


def test_a_skipped_record_makes_room_for_the_next(partly_damaged: Path) -> None:
    """Whatever decodes, and on a set in memory too; 3 and 4 give way to 5, and 39 to 0."""
    split = open_set(partly_damaged, validation_split="test").splits["train"]
    batches = stream(split, **SMALL, skip_damaged=True)
    found = take(batches, 11)
    assert len(batches.damaged) == 3
    assert {error.split("damaged (")[0] for error in batches.damaged} == {
        f"tfds:shapes split 'train': record {record} is " for record in (3, 4, 39)
    }
    stand_in = {3: 5, 4: 5, 39: 0}
    for step, batch in enumerate(found):
        assert batch.keys() == {"image", "label"}
        for row, record in enumerate(batch_indices(5, step, num_examples=40, batch_size=8).tolist()):
            expected = split[stand_in.get(record, record)]
            np.testing.assert_array_equal(batch["image"][row], expected["image"])
            assert batch["label"][row] == expected["label"]
    by_process = stream(split, **{**SMALL, "num_workers": 1}, skip_damaged=True, start_step=4)
    assert_same(take(by_process, 7), found[4:])
    assert by_process.damaged
    assert by_process.damaged <= batches.damaged

    feed = feed_of(partly_damaged, resident=True)
    for step in (0, 3):
        np.testing.assert_array_equal(feed.batch(step)["image"], feed_of(partly_damaged).batch(step)["image"])
    assert feed.count_damaged() == 3


def feed_of(directory: Path, *, resident: bool = False, said: list[str] | None = None) -> Any:
    config = small_config(
        data__name="tfds:shapes", data__dir=str(directory), data__resident=resident, data__damaged="skip",
        data__validation_split="test", data__num_workers=0, data__mean=(0.5,) * 3, data__std=(0.5,) * 3, batch_size=8,
    )  # fmt: skip
    return build(config, progress=lambda what, done, total: None if said is None else said.append(what))[1]


@pytest.mark.parametrize("resident", [True, False])
def test_a_damaged_record_is_not_counted_in_evaluation(partly_damaged: Path, resident: bool) -> None:
    said: list[str] = []
    feed = feed_of(partly_damaged, resident=resident, said=said)
    batches = [feed.fetch(data, inputs) for data, inputs in feed.evaluation("validation", 8)]
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.tolist() == [number < 12 and number != 7 for number in range(16)]
    assert feed.num_counted("validation") == 11
    told = [line for line in said if line.startswith("skipped")]
    assert len(told) == feed.count_damaged() == 1
    assert "record 7 is damaged" in told[0]
    assert "number 1 of" in told[0]
    assert told[0].count("shapes-test.array_record-00001-of-00002") == 1


def test_a_cache_of_skipped_records_does_not_hide_them(partly_damaged: Path) -> None:
    split = open_set(partly_damaged, validation_split="test").splits["train"]
    options: dict[str, Any] = {"fingerprint": "damaged", "image_shape": (12, 12, 3), "cache": True}
    _, labels = load_arrays(split, **options, skip_damaged=True)
    assert np.flatnonzero(labels < 0).tolist() == [3, 4, 39]
    with pytest.raises(RunError, match=r"record 3 is damaged .*number 3 of .*00000-of-00002"):
        load_arrays(split, **options)


def test_a_run_that_skips_says_so_at_the_end(partly_damaged: Path, tmp_path: Path) -> None:
    """And where all that there is, is damaged, it ends."""
    config = small_config(
        data__name="tfds:shapes", data__dir=str(partly_damaged), data__damaged="skip", data__num_workers=0,
        data__resident=False, data__validation_split="test", num_steps=1, batch_size=8,
        num_devices=1, model__name="mlp", model__dropout_rate=0.0, optimizer__ema_decay=None,
    )  # fmt: skip
    result = train(config, tmp_path)
    assert result["splits"]["test"]["num_examples"] == 11
    assert np.isfinite(rows(tmp_path)[-1]["loss"])
    split = open_set(partly_damaged, validation_split="test").splits["train"]
    hopeless = Split(split.records, np.array([3, 4]))
    with pytest.raises(RunError, match="2 records in a row are damaged"):
        take(stream(hopeless, **SMALL, skip_damaged=True), 1)
    with pytest.raises(RunError, match="no record of those"):
        measure_statistics(hopeless, image_shape=(12, 12, 3), skip_damaged=True)


# ---- workers that stop


def test_a_stopped_worker_is_told_of_and_a_killed_one_ends_the_run(
    varied: Split, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streaming_module, "_PATIENCE", 0.3)
    with stream(varied, num_workers=1, prefetch_batches=1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid
        os.kill(worker.pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (worker.pid, signal.SIGCONT)).start()
        with caplog.at_level(logging.WARNING):
            taken = 0
            while not caplog.records and taken < 20:
                next(batches)
                taken += 1
        assert "no batch for" in caplog.text
        assert varied.records.name in caplog.text
        next(batches)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RunError, match=r"decoding failed .*exit code -9.*lower data.num_workers"):
            take(batches, 20)
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize(
    ("asked", "cores", "free", "expected"),
    [
        (3, 64, 0, 3), (0, 64, 1 << 40, 0),  # as asked
        (None, 2, 1 << 40, 0),  # threads suffice
        (None, 8, 1 << 40, 8), (None, 64, 1 << 40, 16),
        (None, 64, 64 << 20, 0),  # a container's /dev/shm
    ],
)  # fmt: skip
def test_workers_by_cores_and_shared_memory(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, cores: int, free: int, expected: int
) -> None:
    monkeypatch.setattr(streaming_module, "num_cores", lambda: cores)
    monkeypatch.setattr(streaming_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert choose_workers(asked, batch_size=256, image_shape=(224, 224, 3)) == expected


# ---- resizing


def test_resizing_is_as_good_as_pillows() -> None:
    """Against its antialiased bilinear filter, on a photo: shrinking, growing, and one axis each way."""
    from sklearn.datasets import load_sample_image

    photo = np.ascontiguousarray(load_sample_image("china.jpg")[:400, :600])
    for height, width in ((340, 510), (230, 350), (130, 190), (64, 64), (500, 700), (250, 900)):
        pillow = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR)).astype(float)

        def off(image: np.ndarray, pillow: np.ndarray = pillow) -> float:
            return float(np.sqrt(np.mean((image.astype(float) - pillow) ** 2)))

        area = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
        found = resize_image(photo, height, width)
        assert found.shape == (height, width, 3)
        assert off(found) < 3
        assert off(found) <= off(area)
    blocks = photo.reshape(200, 2, 300, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(photo, 200, 300) - blocks).max() <= 0.5
    grey = photo[:, :, :1]
    np.testing.assert_array_equal(resize_image(grey, 90, 130), resize_image(photo, 90, 130)[:, :, :1])


# ---- the real command


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_streaming_run_that_is_killed_goes_on_bit_for_bit(tmp_path: Path, num_workers: int) -> None:
    """SIGKILL at a random step, some records damaged; and SIGTERM, which leaves no process behind."""
    folder = write_set(tmp_path / "sets", splits={"train": 40, "test": 12}, image_shape=(12, 12, 3))
    damage(folder, "test", 7)
    damage(folder, "train", 3, 4, 39)
    arguments = [
        test_command.DIGITS, *test_command.SHORT, "--config.data.name=tfds:shapes", "--config.batch_size=8",
        f"--config.data.dir={tmp_path / 'sets'}", "--config.data.resident=false", "--config.data.damaged=skip",
        "--config.augment.random_resized_crop=true", "--config.augment.crop_padding=0", "--config.num_steps=200",
        f"--config.data.num_workers={num_workers}", "--config.log_every_steps=1", "--config.checkpoint.every_steps=5",
    ]  # fmt: skip
    whole = tmp_path / "whole"
    code, output, errors = test_command.run(*arguments, "--config.data.num_workers=0", f"--workdir={whole}")
    assert code == 0, errors
    assert "4 damaged records were skipped" in output
    for number, name in ((signal.SIGKILL, "killed"), (signal.SIGTERM, "ended")):
        process = test_command.start(*arguments, f"--workdir={tmp_path / name}")
        metrics, wanted = tmp_path / name / "metrics.jsonl", random.randint(20, 120)
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < wanted:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for task in tasks for child in task.read_text().split()]
        assert len(children) >= num_workers
        sent = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=30)
        assert time.monotonic() - sent < 15
        assert process.returncode == (-number if number == signal.SIGKILL else 75)
        while any(is_alive(int(child)) for child in children):
            assert time.monotonic() - sent < 30
            time.sleep(0.05)
        code, _, errors = test_command.run(*arguments, f"--workdir={tmp_path / name}")
        assert code == 0, errors
        assert metrics.read_bytes() == (whole / "metrics.jsonl").read_bytes()
        saved = [run / "checkpoints" / "200" / "json" / "metadata" for run in (tmp_path / name, whole)]
        first, second = (json.loads(path.read_text())["checksums"] for path in saved)
        assert first == second
        assert len(first) > 10
