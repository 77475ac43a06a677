"""Many runs of a study as one program: each folder is the one that the run would have left by itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from jaxcnn.ablation import one_program
from jaxcnn.ablation.claims import Claims
from jaxcnn.ablation.running import CLAIMS
from jaxcnn.errors import Preempted, RunError
from jaxcnn.run import trackers
from jaxcnn.run.workdir import claimed
from tests.commands import run_here

OPTIONS = (
    "--config=experiments/digits.py",
    "--config.model.name=mlp",
    "--config.model.dropout_rate=0",
    "--config.tensorboard=false",
    "--config.num_devices=1",
    "--config.num_steps=20",
    "--config.batch_size=80",
    "--config.log_every_steps=7",
)


def sweep(folder: Path, *options: str, code: int = 0) -> str:
    found, output, errors = run_here(*OPTIONS, *options, f"--workdir={folder}", module="sweep")
    assert found == code, errors
    return output + errors


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted(folder.glob("runs/*/*/metrics.jsonl"))
    return {str(file.parent.relative_to(folder)): [json.loads(line) for line in file.open()] for file in files}


def assert_same(one: Path, other: Path) -> None:
    """Rows, results and what is kept, to rounding."""
    left, right = rows(one), rows(other)
    assert left
    assert left.keys() == right.keys()
    for name in left:
        for ours, theirs in zip(left[name], right[name], strict=True):
            assert ours.keys() == theirs.keys()
            assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
            for key in ours.keys() - {"split"}:
                np.testing.assert_allclose(ours[key], theirs[key], rtol=2e-5, atol=1e-7, err_msg=f"{name}: {key}")
        mine, its = (json.loads((each / name / "summary.json").read_text()) for each in (one, other))
        assert mine.keys() == its.keys()
        assert mine["weights"] == its["weights"]
        assert mine["splits"]["test"]["accuracy"] == its["splits"]["test"]["accuracy"]
        configs = [json.loads((each / name / "config.json").read_text()) for each in (one, other)]
        assert configs[0]["data"] == configs[1]["data"]
        newest = [max(int(each.name) for each in (place / name / "checkpoints").iterdir()) for place in (one, other)]
        assert newest[0] == newest[1] == 20


@pytest.mark.parametrize("way", ["lax.map", "vmap"])
def test_seeds_and_traced_values_are_the_separate_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, separate: Path
) -> None:
    """Epochs are no whole number of steps; the decay varies, and all is smoothed."""
    monkeypatch.setattr(one_program, "_faster_way", lambda *arguments: way)
    sweep(tmp_path / "one", *VARIED, "--in_one_program")
    assert_same(tmp_path / "one", separate)
    run = next((tmp_path / "one").glob("runs/*/seed-1"))
    code, output, errors = run_here(f"--workdir={run}", module="evaluate")
    assert code == 0, errors
    assert "test" in output


VARIED = ("--over=optimizer.weight_decay=1e-4,1e-2", "--config.loss.label_smoothing=0.1", "--seeds=2")


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("separate") / "study"
    sweep(folder, *VARIED)
    return folder


def test_folds_are_the_separate_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own statistics of train."""
    monkeypatch.setattr(one_program, "_faster_way", lambda *arguments: "lax.map")
    options = ("--folds=3", "--seeds=1", "--config.model.dropout_rate=0.2")
    sweep(tmp_path / "one", *options, "--in_one_program")
    sweep(tmp_path / "separate", *options)
    assert_same(tmp_path / "one", tmp_path / "separate")


def test_a_run_that_fails_is_a_row_and_the_rate_varies(tmp_path: Path) -> None:
    """One program, three rates; the same command again runs nothing."""
    options = ("--over=optimizer.learning_rate=0.001,0.002,1e30", "--seeds=1", "--in_one_program")
    output = sweep(tmp_path / "study", *options, code=1)
    assert "3 runs in one program by" in output
    assert "NaN or Inf at step" in output
    assert "2 finished, 1 failed" in output
    before = rows(tmp_path / "study")
    assert len(before) == 2
    rates = {
        row["learning_rate"] for each in before.values() for row in each if row["step"] == 20 and "learning_rate" in row
    }
    assert len(rates) == 2
    assert "in one program" not in sweep(tmp_path / "study", *options, code=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--workers=2",), "--in_one_program trains in one process; leave --workers out"),
        (("--config.early_stop.patience_evaluations=3",), "early_stop.patience_evaluations lets evaluations decide"),
        (("--config.data.resident=false",), "needs data that live on the device: set data.resident=true"),
        (("--config.data.sampling=balanced",), "data.sampling=balanced is not for a whole run in one program"),
        (("--folds=3", "--config.loss.class_weights=balanced"), "loss.class_weights are of each fold's own train"),
        (("--config.profile.steps=2:4", "--config.tensorboard=true"), "profile.steps is not for --in_one_program"),
        (("--metric=acuracy",), "--metric=acuracy is not measured"),
        (("--config.trackers=('wandbb',)",), "trackers='wandbb' is not known"),
        (("--over=schedule.name=cosine,plateau",), "schedule.name=plateau lets evaluations decide"),
        (("--config.telemetry.every_steps=5",), "telemetry.every_steps is not for --in_one_program"),
    ],
)
def test_what_is_not_for_one_program_is_named(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    assert says in sweep(tmp_path / "study", "--seeds=2", "--in_one_program", *options, code=2)
    assert not list(tmp_path.glob("study/runs/*/*/config.json"))


def test_weights_that_end_as_no_numbers_are_a_failure_as_in_the_loop(tmp_path: Path) -> None:
    """The only loss is finite, and what the step makes of the weights is not."""
    options = (
        "--config.num_steps=1",
        "--config.optimizer.name=adamw",
        "--config.optimizer.weight_decay=100",
        "--config.optimizer.learning_rate=9e37",
        "--config.schedule.name=constant",
        "--config.schedule.warmup_epochs=0",
        "--seeds=1",
    )
    output = sweep(tmp_path / "one", *options, "--in_one_program", code=1)
    assert "NaN or Inf at step 2" in output


def test_test_is_not_looked_at_where_it_is_not_to_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[set[str]] = []
    group = one_program._group

    def looked_at(*arguments: Any) -> Any:
        found = group(*arguments)
        splits.append(set(found.data))
        return found

    monkeypatch.setattr(one_program, "_group", looked_at)
    options = ("--seeds=1", "--config.measure_test=false", "--split=validation", "--in_one_program")
    sweep(tmp_path / "study", *options)
    assert splits == [{"train", "validation"}]


def test_trackers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []

    class Told:
        def __init__(self, names: Any, workdir: Any, rows: Any, *, study: str, config: Any):
            assert (tuple(names), list(rows), study) == (("mlflow",), [], "study")

        def scalars(self, split: str, step: int, values: dict[str, float]) -> None:
            told.append((split, step))

        def close(self, summary: Any) -> None:
            if summary is not None:
                told.append((summary["status"], summary["seed"]))

    monkeypatch.setattr(trackers, "Trackers", Told)
    monkeypatch.setattr(trackers, "check", lambda names, workdir: None)
    sweep(tmp_path / "study", "--seeds=2", "--config.trackers=('mlflow',)", "--in_one_program")
    assert [each for each in told if each[0] == "finished"] == [("finished", 0), ("finished", 1)]
    assert told.count(("train", 20)) == told.count(("validation", 20)) == 2


def test_what_is_stopped_leaves_nothing_and_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any) -> None:
        raise RunError("stopped")

    options = ("--seeds=1", "--in_one_program")
    with monkeypatch.context() as patched:
        patched.setattr(one_program, "_train", stopped)
        sweep(tmp_path / "study", *options, code=RunError.exit_code)
    assert not list(tmp_path.glob("study/runs/*/*"))
    assert "1 finished" in sweep(tmp_path / "study", *options)


def test_runs_that_others_have_are_left_to_them(tmp_path: Path) -> None:
    """One by a claim of a process that lives, this one; one by the lock of a command of its own."""
    study = tmp_path / "study"
    sweep(study, "--seeds=1", "--in_one_program")
    assert Claims(study / CLAIMS).take("base@seed-1", step=0)
    locked = study / "runs" / "base" / "seed-2"
    locked.mkdir()
    with claimed(epath.Path(locked)):
        output = sweep(study, "--seeds=4", "--in_one_program", "--nowait", code=Preempted.exit_code)
    assert "2 finished, 2 left to others" in output
    assert [name[-6:] for name in rows(study)] == ["seed-0", "seed-3"]
