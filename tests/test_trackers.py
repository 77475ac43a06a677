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


def opened(folder: Path, *names: str, losses: dict[int, float | None] | None = None) -> Trackers:
    """With the rows of a run that is resumed after the last of the steps in `losses`."""
    rows = [{"step": step, "epoch": 1.0, "split": "train", "loss": loss} for step, loss in (losses or {}).items()]
    return Trackers(names, epath.Path(folder), rows, study="", config={"seed": 3, "data.name": "digits"})


def points(folder: Path, metric: str) -> list[tuple[float, int]]:
    """(value, step) of what MLflow's files hold of a metric."""
    (file,) = (folder / "mlruns").glob(f"*/*/metrics/{metric}")
    return [(float(value), int(step)) for _, value, step in map(str.split, file.read_text().splitlines())]


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of W&B's newest file: records of a LevelDB log, in blocks of 32 KiB."""
    importlib.import_module("wandb").teardown()  # its process writes on after a run's end; this waits for that
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")  # made when it is imported: no types

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
            parsed, record = proto.Record.FromString(record), b""
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
    assert saved_config(tmp_path / "told") == saved_config(tmp_path / "alone")


@needs_mlflow
def test_switched_on_in_a_run_that_goes_on(tmp_path: Path) -> None:
    """It is told what came before, and then off again: neither changes the run."""
    options = (*OPTIONS, "--config.num_steps=8", "--config.log_every_steps=2", f"--workdir={tmp_path}")
    assert run_here(*options)[0] == 0
    metrics, config = (tmp_path / "metrics.jsonl").read_bytes(), saved_config(tmp_path)
    (tmp_path / "summary.json").unlink()  # so that it goes on from its last checkpoint
    for trackers_on in (["--config.trackers=('mlflow',)"], []):
        assert run_here(*options, *trackers_on)[::2] == (0, "")
        assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
        assert saved_config(tmp_path) == config
    rows = [row for row in map(json.loads, metrics.splitlines()) if row["split"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert points(tmp_path, "train/loss") == [(row["loss"], row["step"]) for row in rows]


def saved_config(folder: Path) -> dict[str, Any]:
    """A run's config.json but for what was asked of trackers."""
    saved = json.loads((folder / "config.json").read_text())
    del saved["command"], saved["config"]["trackers"]
    return saved


@needs_mlflow
def test_mlflow_gets_no_point_twice(tmp_path: Path) -> None:
    first = opened(tmp_path, "mlflow")
    for step in (1, 2, 3):
        first.scalars("train", step, {"loss": float(step), "odd": float("nan")})
    # killed here; the run goes on from a checkpoint at step 1
    second = opened(tmp_path, "mlflow", losses={1: 1.0})
    for step in (2, 3, 4):
        second.scalars("train", step, {"loss": float(step)})
    second.close({"weights": "last", "splits": {"test": {"accuracy": 0.5}}})
    assert points(tmp_path, "train/loss") == [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4)]
    (tag,) = (tmp_path / "mlruns").glob("*/*/tags/result/test/accuracy")
    assert tag.read_text() == "0.5"


@needs_wandb
def test_wandb_goes_on_with_its_run(tmp_path: Path) -> None:
    """In one file, which has every row once, also those that a kill kept from the file before."""
    first = opened(tmp_path, "wandb")
    for step in (2, 3):
        first.scalars("train", step, {"loss": float(step)})
    first.close(None)
    (before,) = (tmp_path / "wandb").glob("offline-run-*")
    second = opened(tmp_path, "wandb", losses={1: None, 2: 2.0})
    for step in (3, 4):
        second.scalars("train", step, {"loss": float(step)})
    second.close(None)
    (after,) = (tmp_path / "wandb").glob("offline-run-*")
    assert after.name.split("-")[3] == before.name.split("-")[3]
    rows = [(row["_step"], row["train/loss"]) for row in wandb_rows(tmp_path) if "train/loss" in row]
    assert rows == [(2, 2.0), (3, 3.0), (4, 4.0)]


@needs_mlflow
def test_a_server_that_is_gone_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its package is told of patience, which it alone acts on."""
    from mlflow import environment_variables

    for name in trackers._ENVIRONMENT["mlflow"]:
        monkeypatch.delenv(name, raising=False)
    opened(tmp_path, "mlflow").close(None)
    assert environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 2
    assert environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 10
    assert environment_variables.MLFLOW_DISABLE_TELEMETRY.get()


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
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "1").symlink_to(tmp_path)
    with pytest.raises(UserError, match="1 is a link"):
        check(("mlflow",), epath.Path(tmp_path))


def test_a_place_that_cannot_be_written_is_a_tracker_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(trackers._MADE_BY, "mlflow", lambda *arguments: (None, "0" * 32))
    (tmp_path / "trackers.json").mkdir()
    opened(tmp_path, "mlflow", losses={1: 1.0}).close(None)
    assert capsys.readouterr().err.count("trackers=mlflow is given up") == 1


@pytest.mark.parametrize("content", ['{"mlflow": "../../etc"}', "[1]", "{", '{"mlflow": 3}'])
def test_a_folder_of_a_stranger_names_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "trackers.json").write_text(content)
    assert trackers._ids(epath.Path(tmp_path)) == {}
