"""A run's folder: who may write in it, and what is read of one that comes from somebody else."""

import copy
import io
import json
import os
import threading
import zipfile
from typing import Any

import numpy as np
import pytest
from etils import epath

from jaxcnn import files
from jaxcnn.config import Config, to_dict
from jaxcnn.errors import RunError, UserError
from jaxcnn.plain_data import Number, check, conforms
from jaxcnn.run import workdir
from jaxcnn.run.log import RunLog, read_rows

RUN: dict[str, Any] = {
    "experiment": "mine",
    "config": to_dict(Config()),
    "data": {
        "name": "digits", "fingerprint": "f", "splits": "s", "excluded": {"num_examples": 0, "digest": None},
        "image_shape": [8, 8, 1], "class_names": ["a", "b"], "num_examples": {"train": 9, "test": 3},
        "class_counts": {"train": {"a": 5, "b": 4}}, "stored_sizes": None, "mean": [0.5], "std": [0.2],
    },
    "command": ["main"], "versions": {"jax": "1"},
}  # fmt: skip
NAN = float("nan")


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


def changed(path, value):
    """RUN with another value at a path; without it, where the value is `...`."""
    run = copy.deepcopy(RUN)
    *groups, leaf = path.split(".")
    node: Any = run
    for group in groups:
        node = node[group]
    if value is ...:
        del node[leaf]
    else:
        node[leaf] = value
    return run


WRONG: dict[str, tuple[Any, ...]] = {
    "experiment": (["x"], ...), "config": ([], None, ...), "data": ([], None, ...), "config.data": (5,),
    "config.optimizer": ([], 3), "config.model.name": (["cnn"],), "config.model.width": (1e9,),
    "config.batch_size": ("x", -1), "config.unknown": (1,), "config.data.name": (None,),
    "data.class_names": (None, [1, 2], [], ...), "data.fingerprint": (3, ...), "data.excluded": ({}, 3),
    "data.image_shape": ("8x8", [-1, 8, 1], [8, 8], [60000, 60000, 1], [8.5, 8, 1], ...),
    "data.mean": ("abc", [NAN], [0.5, 0.5], [10**400], ...), "data.std": ([0.0], [-1], ...),
    "data.num_examples": ({}, {"train": 0}, {"train": "9"}, ...), "data.class_counts": ({"train": {}}, [1]),
    "versions": ([1],), "command": ("main",), "pretrained": ({},),
}  # fmt: skip


@pytest.mark.parametrize(
    "run",
    [
        [], None, {}, "run",
        *(changed(path, value) for path, values in WRONG.items() for value in values),
    ],
)  # fmt: skip
def test_a_config_json_that_is_no_runs_is_one_line(folder, run):
    (folder / "config.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="cannot be read") as error:
        workdir.read_config(folder)
    assert "\n" not in str(error.value)


def test_a_config_json_of_an_older_version_is_made_whole(folder):
    (folder / "config.json").write_text(json.dumps(changed("config.finetune", ...)))
    assert workdir.read_config(folder) == RUN


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000, b""])
def test_what_is_no_json_is_one_line(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        workdir.read_config(folder)


@pytest.mark.parametrize(
    "arrays",
    [
        {"train/0/train": np.zeros((2, 2), int)},
        {"train/0/train": np.zeros(2)},
        {"train": np.zeros(2, int)},
        {"test/0/train": np.array([None])},
    ],
)
def test_splits_that_are_none_are_one_line(folder, arrays):
    np.savez(folder / "splits.npz", fingerprint=np.array("f"), **arrays)
    with pytest.raises(UserError, match=r"splits\.npz is damaged"):
        workdir.read_splits(folder)


def test_splits_that_swell_are_not_read(folder, monkeypatch):
    monkeypatch.setattr(workdir, "LARGEST_SPLITS", 4096)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fingerprint.npy", b"\0" * 100_000)
    (folder / "splits.npz").write_bytes(content.getvalue())
    with pytest.raises(UserError, match=r"splits\.npz is damaged .too large"):
        workdir.read_splits(folder)


def test_rows_end_where_they_are_none(folder):
    row = {"step": 1, "epoch": 0.1, "split": "validation", "loss": None, "accuracy": 0.5}
    good = [json.dumps(row), json.dumps({**row, "loss": NAN}), json.dumps({**row, "top5_accuracy": float("inf")})]
    for bad in (b"[]", b"3", b"\xff", b'{"step": 2}', json.dumps({**row, "step": "2"}).encode(), b'{"step": 2, "ep'):
        (folder / "metrics.jsonl").write_bytes("\n".join(good).encode() + b"\n" + bad + b"\n" + good[0].encode())
        read = read_rows(folder / "metrics.jsonl")
        assert len(read) == 3
        assert read[1] == row
        assert read[2]["top5_accuracy"] is None


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_what_was_there(folder, monkeypatch):
    log = RunLog(folder, tensorboard=False)
    log.resume(0)
    log.metrics(1, 0.1, "validation", {"loss": NAN, "accuracy": 0.5})
    before = (folder / "metrics.jsonl").read_text()
    assert json.loads(before)["loss"] is None

    def fill(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxcnn.run.log.append", fill)
    with pytest.raises(RunError, match=r"No space left on device.*; make room, and run the same command again"):
        log.metrics(2, 0.2, "train", {"loss": 1.0, "accuracy": 0.5})
    monkeypatch.undo()
    again = RunLog(folder, tensorboard=False)
    again.resume(1)
    assert (folder / "metrics.jsonl").read_text() == before


# ---- whose it is


def test_the_lock_changes_nothing_and_follows_no_link(folder):
    precious = folder / "precious"
    precious.write_text("precious")
    (folder / "run").mkdir()
    os.symlink(precious, folder / "run" / ".lock")
    with pytest.raises(UserError, match="cannot be written"), workdir.claimed(folder / "run"):
        pass
    assert precious.read_text() == "precious"


def test_who_waits_for_a_lock_that_is_deleted_does_not_share_the_folder(folder, monkeypatch):
    """B opens the file, A deletes it and leaves; B must not hold what is no longer there while C makes it anew."""
    lock, opened, go_on = folder / ".lock", threading.Event(), threading.Event()
    flock, done = files.fcntl.flock, threading.Event()

    def slow(descriptor, operation):
        if threading.current_thread().name == "B" and not opened.is_set():
            opened.set()
            go_on.wait(10)
        return flock(descriptor, operation)

    def b():
        with files.locked(lock):
            go_on.clear()
            done.set()
            go_on.wait(10)

    monkeypatch.setattr(files.fcntl, "flock", slow)
    thread = threading.Thread(target=b, name="B")
    with files.locked(lock):
        thread.start()
        assert opened.wait(10)
        os.unlink(lock)
    go_on.set()
    assert done.wait(10)
    with pytest.raises(BlockingIOError), files.locked(lock):
        pass
    go_on.set()
    thread.join()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "damaged_checkpoints", "tensorboard/train"])
def test_nothing_is_written_through_a_link(folder, name):
    (folder / "outside").mkdir()
    (folder / "run" / "tensorboard").mkdir(parents=True)
    link = folder / "run" / name
    if link.exists():
        link.rmdir()
    os.symlink(folder / "outside", link)
    with pytest.raises(UserError, match=f"{name} is a link"), workdir.claimed(folder / "run"):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [("nope://x/y", "no storage that is known"), ("~nosuchuser/x", "no such user"), ("{file}/x", "which is a file")],
)
def test_a_workdir_that_cannot_be(folder, text, message):
    (folder / "file").write_text("")
    with pytest.raises(UserError, match=message):
        workdir.check(workdir.resolve(text.format(file=folder / "file")), "mine", Config())


def test_schema():
    expected = {"a": [Number(0, 5, integer=True)], "b?": (str, None), str: Number()}
    right: list[Any] = [{"a": []}, {"a": [0, 5], "b": None}, {"a": [1], "b": "x", "c": 1.5}]
    wrong: list[Any] = [
        [],
        {},
        {"a": 1},
        {"a": [True]},
        {"a": [1.0]},
        {"a": [6]},
        {"a": [], "b": 1},
        {"a": [], "c": NAN},
    ]
    assert all(conforms(value, expected) for value in right)
    assert not any(conforms(value, expected) for value in wrong)
    with pytest.raises(ValueError, match=r"it.a\[1\] is 9, not an integer of at least 0 and at most 5"):
        check({"a": [1, 9]}, expected, "it")
