"""Trackers, with the real packages and no network: what they are told, and that nothing depends on them."""

import importlib
import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from jaxcnn.errors import UserError
from jaxcnn.run import trackers
from jaxcnn.run.trackers import Trackers, check
from tests.commands import run_here

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra wandb")
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow")
OPTIONS = ("--config=experiments/digits.py", "--config.model.name=mlp", "--config.tensorboard=false")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def opened(folder: Path, *names: str, step: int = 0) -> Trackers:
    return Trackers(names, epath.Path(folder), step, study="", config={"seed": 3, "data.name": "digits"})


def points(folder: Path, metric: str) -> list[tuple[float, int]]:
    """(value, step) of what MLflow's files hold of a metric."""
    (file,) = (folder / "mlruns").glob(f"*/*/metrics/{metric}")
    return [(float(value), int(step)) for _, value, step in map(str.split, file.read_text().splitlines())]


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of W&B's newest file: records of a LevelDB log, in blocks of 32 KiB."""
    records: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    files = (folder / "wandb").glob("offline-run-*/*.wandb")
    content, rows, record = max(files, key=lambda file: file.stat().st_mtime_ns).read_bytes(), [], b""
    place = 7  # after the file's own heading
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            parsed, record = records.Record.FromString(record), b""
            if parsed.WhichOneof("record_type") == "history":
                items = parsed.history.item
                rows.append({each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items})
    return rows


@needs_wandb
@needs_mlflow
def test_a_run_tells_both_and_stays_the_same(tmp_path: Path) -> None:
    options = (*OPTIONS, "--config.num_epochs=1")
    assert run_here(*options, f"--workdir={tmp_path}/alone")[0] == 0
    code, _, errors = run_here(*options, "--config.trackers=('wandb','mlflow')", f"--workdir={tmp_path}/told")
    assert (code, errors) == (0, "")
    metrics = (tmp_path / "told" / "metrics.jsonl").read_bytes()
    assert metrics == (tmp_path / "alone" / "metrics.jsonl").read_bytes()
    (row,) = [row for row in map(json.loads, metrics.splitlines()) if row["split"] == "validation"]
    assert points(tmp_path / "told", "validation/accuracy") == [(row["accuracy"], row["step"])]
    (told,) = [each for each in wandb_rows(tmp_path / "told") if "validation/accuracy" in each]
    assert (told["validation/accuracy"], told["_step"]) == (row["accuracy"], row["step"])
    (seed,) = (tmp_path / "told" / "mlruns").glob("*/*/params/seed")
    assert seed.read_text() == "0"
    # they may be switched off in a run that goes on, as TensorBoard may
    assert run_here(*options, f"--workdir={tmp_path}/told")[0] == 0


@needs_mlflow
def test_mlflow_gets_no_point_twice(tmp_path: Path) -> None:
    first = opened(tmp_path, "mlflow")
    for step in (1, 2, 3):
        first.scalars("train", step, {"loss": float(step), "odd": float("nan")})
    # killed here; the run goes on from a checkpoint at step 1
    second = opened(tmp_path, "mlflow", step=1)
    for step in (2, 3, 4):
        second.scalars("train", step, {"loss": float(step)})
    second.close({"weights": "last", "splits": {"test": {"accuracy": 0.5}}})
    assert points(tmp_path, "train/loss") == [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4)]
    (tag,) = (tmp_path / "mlruns").glob("*/*/tags/result/test/accuracy")
    assert tag.read_text() == "0.5"


@needs_wandb
def test_wandb_goes_on_with_its_run(tmp_path: Path) -> None:
    for step in (0, 1):
        each = opened(tmp_path, "wandb", step=step)
        each.scalars("train", 1, {"loss": 1.0})
        each.scalars("train", 2, {"loss": 2.0})
        each.close(None)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len({folder.name.split("-")[3] for folder in folders}) == 1
    assert [row["_step"] for row in wandb_rows(tmp_path)] == [2]


def test_one_that_fails_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Failing:
        told = 0

        def scalars(self, *arguments: Any) -> None:
            Failing.told += 1
            raise ConnectionError("no server\nthere")

        def close(self, summary: Any) -> None:
            raise AssertionError("it was given up")

    monkeypatch.setitem(trackers._MADE_BY, "mlflow", lambda *arguments: (Failing(), "0" * 32))
    both = opened(tmp_path, "mlflow")
    both.scalars("train", 1, {"loss": 1.0})
    both.scalars("train", 2, {"loss": 1.0})
    both.close(None)
    assert Failing.told == 1
    assert "trackers=mlflow is given up, the run goes on (ConnectionError: no server there)" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="trackers='wandbb' is not known; did you mean 'wandb'"):
        check(("wandbb",), epath.Path(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxcnn\[mlflow\]'"):
        check(("mlflow",), epath.Path(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        check(("mlflow",), epath.Path("gs://bucket/run"))
    (tmp_path / "wandb").symlink_to(tmp_path)
    with pytest.raises(UserError, match="wandb is a link"):
        check(("wandb",), epath.Path(tmp_path))


@pytest.mark.parametrize("content", ['{"mlflow": "../../etc"}', "[1]", "{", '{"mlflow": 3}'])
def test_a_folder_of_a_stranger_names_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "trackers.json").write_text(content)
    assert trackers._ids(epath.Path(tmp_path)) == {}
