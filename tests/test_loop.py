"""The loop, in this process: resume bit for bit, across modes, cadences, NaN, the best weights, the log's contract."""

import json
import os
import signal
import sys

import numpy as np
import pytest
from etils import epath

import jaxcnn
from jaxcnn.errors import Preempted, RunError, UserError
from jaxcnn.report.files import read_runs
from jaxcnn.report.from_files import curves, overview
from jaxcnn.results.diagnosis import diagnose
from jaxcnn.run import workdir
from jaxcnn.run.facts import read_facts
from jaxcnn.run.log import RunLog, read_rows
from jaxcnn.training.parallel import Parallel
from tests.runs import arrays, assert_same_arrays, rows, small_config, train


@pytest.fixture
def stop_at(monkeypatch):
    """Sends this process a signal once a row of that step is logged."""

    def arm(step, number=signal.SIGTERM):
        original = RunLog.interval

        def interval(self, at, *arguments):
            original(self, at, *arguments)
            if at == step:
                monkeypatch.setattr(RunLog, "interval", original)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(RunLog, "interval", interval)

    return arm


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of eight steps that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(small_config(), folder)
    return folder, result


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_killed_and_resumed_is_never_killed(tmp_path, whole, stop_at, number):
    """Bit for bit: params, optimizer, batch statistics, average, metrics.jsonl, the result."""
    config = small_config()
    stop_at(3, number)
    with pytest.raises(Preempted, match=rf"{number.name}: saved at step \d"):
        train(config, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    stopped_at = len([row for row in rows(tmp_path) if row["step"] <= 8])
    assert 0 < stopped_at < len(rows(whole[0]))
    result = train(config, tmp_path)
    assert_same_arrays(arrays(tmp_path, config), arrays(whole[0], config))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert result["splits"] == whole[1]["splits"]


def test_the_signal_handlers_are_put_back(tmp_path, stop_at):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop_at(3)
    with pytest.raises(Preempted):
        train(small_config(), tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_rows_of_a_killed_run_are_written_again(tmp_path, whole):
    """Killed without warning: rows after the last checkpoint, and half a line, are on disk."""
    config = small_config()
    train(config, tmp_path)
    for step in (4, 6, 8):
        for path in (tmp_path / "checkpoints").glob(str(step)):
            path.rename(tmp_path / f"gone-{step}")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ep')
    train(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("damage", "kept", "said"),
    [
        (lambda lines: [*lines[:2], b"{}", *lines[3:]], 2, "row 3 is damaged; rows 3 to 6 are left out"),
        (lambda lines: [*lines[:5], b'{"step": 9, "ep'], 5, "row 6 is damaged; it is left out"),
        (lambda lines: [b"\xff", *lines[1:]], 0, "row 1 is damaged; rows 1 to 6 are left out"),
    ],
)
def test_a_damaged_row_and_those_after_it_are_left_out_and_said(tmp_path, capsys, damage, kept, said):
    row = {"step": 1, "epoch": 0.5, "split": "train", "loss": 1.0, "accuracy": None}
    lines = [json.dumps({**row, "step": step}).encode() for step in range(6)]
    file = epath.Path(tmp_path / "metrics.jsonl")
    file.write_bytes(b"\n".join(damage(lines)) + b"\n")
    for _ in range(2):
        assert [each["step"] for each in read_rows(file)] == list(range(kept))
    assert capsys.readouterr().err == f"jaxcnn: {file}: {said}\n"


def test_a_row_that_is_being_written_is_left_out_in_silence(tmp_path, capsys):
    file = epath.Path(tmp_path / "metrics.jsonl")
    row = {"step": 1, "epoch": 0.5, "split": "train", "loss": 1.0, "accuracy": None}
    file.write_text(json.dumps(row) + '\n{"step": 9, "ep')
    assert read_rows(file) == [row]
    assert capsys.readouterr().err == ""


def test_a_damaged_checkpoint_costs_only_time(tmp_path, whole):
    config = small_config()
    train(config, tmp_path)
    for file in (tmp_path / "checkpoints" / "8").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:50])
    reports: list[str] = []
    result = train(config, tmp_path, report=reports.append)
    assert len(reports) == 1
    assert "checkpoints/8 is damaged" in reports[0]
    assert_same_arrays(arrays(tmp_path, config), arrays(whole[0], config))
    assert result["splits"] == whole[1]["splits"]


@pytest.mark.parametrize(
    ("mode", "num_devices"), [("jit", 8), ("pmap", 8), pytest.param("pmap", 1, marks=pytest.mark.slow)]
)
def test_resumes_on_other_devices_and_in_another_mode(tmp_path, stop_at, mode, num_devices):
    """Without dropout, whose masks may differ: within 1e-4."""
    config = small_config(model__dropout_rate=0.0, num_devices=1)
    other = small_config(model__dropout_rate=0.0, parallel=mode, num_devices=num_devices)
    train(config, tmp_path / "whole")
    stop_at(3)
    with pytest.raises(Preempted):
        train(config, tmp_path / "moved")
    train(other, tmp_path / "moved")
    expected, found = rows(tmp_path / "whole"), rows(tmp_path / "moved")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for a, b in zip(found, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_several_steps_a_call_stop_between_calls(tmp_path, stop_at):
    config = small_config(steps_per_call=3, log_every_steps=1)
    train(config, tmp_path / "whole")
    stop_at(3)
    with pytest.raises(Preempted, match=r"saved at step (3|6);"):
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert_same_arrays(arrays(tmp_path / "stopped", config), arrays(tmp_path / "whole", config))


def test_streamed_is_the_same_run(tmp_path, whole):
    """The same order, augmentation and validation, whether the images live on the device or come by stream."""
    config = small_config(data__resident=False, data__num_workers=0)
    train(config, tmp_path)
    for split in ("train", "validation"):
        for a, b in zip(rows(tmp_path, split), rows(whole[0], split), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["step"] == b["step"]


def test_the_log_holds_what_it_should(whole):
    folder, result = whole
    train_rows, validation = rows(folder), rows(folder, "validation")
    assert [row["step"] for row in train_rows] == [3, 5, 6, 8]
    assert [row["step"] for row in validation] == [5, 8]
    assert train_rows[0].keys() == {"step", "epoch", "split", "loss", "accuracy", "learning_rate"}
    assert validation[0].keys() == {"step", "epoch", "split", "loss", "accuracy", "ema_loss", "ema_accuracy"}
    assert train_rows[-1]["epoch"] == pytest.approx(8 * 48 / 1293, abs=1e-3)
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert {row["step"] for row in timing} <= {3, 5, 6, 8}
    assert all(row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 for row in timing)
    assert result["step"] == 8
    assert result["splits"]["test"]["num_examples"] == 360
    saved = json.loads((folder / "config.json").read_text())
    assert saved["data"]["num_examples"] == {"train": 1293, "validation": 144, "test": 360}
    assert {path.name for path in folder.iterdir()} == {"config.json", "checkpoints", "metrics.jsonl", "timing.jsonl"}


def test_train_metrics_are_of_every_example_since_the_last_row(tmp_path):
    """Sums and counts: two rows of three steps and one of six say the same."""
    fine = small_config(num_steps=6, log_every_steps=3, eval_every_epochs=9.0)
    coarse = small_config(num_steps=6, log_every_steps=6, eval_every_epochs=9.0)
    train(fine, tmp_path / "fine")
    train(coarse, tmp_path / "coarse")
    for name in ("loss", "accuracy"):
        values = [row[name] for row in rows(tmp_path / "fine")]
        assert np.mean(values) == pytest.approx(rows(tmp_path / "coarse")[0][name], rel=1e-6)


def test_the_result_is_of_the_best_weights_by_validation(tmp_path):
    """A rate that rises until it destroys them: the best is neither the first nor the last."""
    changes = dict(
        num_steps=60,
        num_devices=1,
        optimizer__ema_decay=None,
        optimizer__name="adam",
        optimizer__learning_rate=3.0,
        schedule__name="constant",
        schedule__warmup_epochs=60 / 26.9,
        checkpoint__keep_last=1,
        checkpoint__every_steps=60,
        model__dropout_rate=0.0,
    )
    result = train(small_config(**changes), tmp_path / "best")
    validation = rows(tmp_path / "best", "validation")
    best = max(validation, key=lambda row: (row["accuracy"], row["step"]))
    assert validation[0]["step"] < best["step"] < validation[-1]["step"]
    assert result["weights"] == "best validation accuracy"
    for name in ("accuracy", "loss"):
        assert result["splits"]["validation"][name] == pytest.approx(best[name], rel=1e-5)
    last = train(small_config(**changes, checkpoint__keep_best=0), tmp_path / "last")
    assert last["weights"] == "last"
    assert last["splits"]["validation"]["accuracy"] == pytest.approx(validation[-1]["accuracy"])
    by_loss = train(small_config(**changes, checkpoint__best_metric="loss"), tmp_path / "loss")
    lowest = min(row["loss"] for row in validation)
    assert by_loss["splits"]["validation"]["loss"] == pytest.approx(lowest, rel=1e-5)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_nan_names_the_step_and_the_layer_and_keeps_what_is_good(tmp_path, steps_per_call):
    config = small_config(
        num_steps=40,
        num_devices=1,
        model__name="mlp",
        model__dropout_rate=0.0,
        optimizer__name="sgd",
        optimizer__learning_rate=1e12,
        schedule__name="constant",
        schedule__warmup_epochs=4.0,
        log_every_steps=7,
        steps_per_call=steps_per_call,
    )
    with pytest.raises(RunError, match=r"NaN or Inf at step \d+, first in .*(dense|head|loss)") as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value)
    step = int(str(error.value).split("step ")[1].split(",")[0])
    kept = (
        arrays(tmp_path, config)
        if (tmp_path / "checkpoints").exists() and list((tmp_path / "checkpoints").glob("[0-9]*"))
        else {}
    )
    assert all(np.isfinite(array).all() for array in kept.values())
    assert 1 <= step <= 40
    with pytest.raises(RunError, match=f"at step {step},"):  # and it is the same step again
        train(config, tmp_path)


def test_a_diverging_run_keeps_its_best_and_says_what_happened(tmp_path):
    config = small_config(
        num_steps=40, num_devices=1, model__name="mlp", model__dropout_rate=0.0,
        optimizer__name="sgd", optimizer__learning_rate=1e12,
        optimizer__ema_decay=None, schedule__name="constant", schedule__warmup_epochs=4.0, log_every_steps=1,
        eval_every_epochs=0.03, checkpoint__every_steps=1, checkpoint__keep_last=1, checkpoint__best_metric="loss",
    )  # fmt: skip
    with pytest.raises(RunError, match="NaN or Inf at step"):
        train(config, tmp_path)
    for name in ("metrics.jsonl", "telemetry.jsonl", "timing.jsonl"):
        for line in (tmp_path / name).read_text().splitlines() if (tmp_path / name).exists() else ():
            json.loads(line, parse_constant=pytest.fail)  # called for NaN and Infinity
    seen = {row["step"]: row["loss"] for row in rows(tmp_path, "validation")}
    assert None in seen.values()
    best = min((step for step in seen if seen[step] is not None), key=lambda step: (seen[step], -step))
    model = jaxcnn.load(tmp_path)
    assert model.source.endswith(f"step {best}")
    assert np.isfinite(model.predict(np.zeros((2, 8, 8, 1), np.uint8))).all()
    findings = [each.sentence for each in diagnose(read_facts(epath.Path(tmp_path))) if each.name == "not finite"]
    last = rows(tmp_path)[-1]
    assert last["loss"] is None
    assert any(f"the loss of training is not finite at step {last['step']}" in sentence for sentence in findings)
    assert any("of validation is not finite" in sentence for sentence in findings)
    (run,) = read_runs([str(tmp_path)])
    assert f"It ended at step {last['step']}, where the training loss was not finite" in overview(run).body
    assert "not finite" in curves([run]).body


def test_early_trouble_is_no_success(tmp_path, monkeypatch):
    """A save that cannot begin ends the run; one that fails later is in test_checkpoint.py."""

    def fail(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(RunError, match=r"No space left on device.*check space and rights"):
        train(small_config(), tmp_path)


def test_no_checkpoint_left_is_no_new_start(tmp_path):
    """All damaged: said each time, and nothing is overwritten."""
    config = small_config()
    train(config, tmp_path)
    for file in (tmp_path / "checkpoints").rglob("d/*"):
        file.write_bytes(b"")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(RunError, match="no checkpoint could be read"):
            train(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_run_in_the_folder_is_refused(tmp_path):
    train(small_config(), tmp_path)
    with pytest.raises(UserError, match=r"checkpoint.best_metric \(accuracy -> loss\)"):
        train(small_config(checkpoint__best_metric="loss"), tmp_path)
    with pytest.raises(UserError, match=r"other settings: seed \(0 -> 1\), optimizer.learning_rate \(0.05 -> 0.1\)"):
        train(small_config(seed=1, optimizer__learning_rate=0.1), tmp_path)
    with pytest.raises(UserError, match="holds a run of 'test'"):
        workdir.check(workdir.resolve(str(tmp_path)), "other", small_config())
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["data"]["fingerprint"] = "other"
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="data are not those"):
        train(small_config(), tmp_path)


def test_two_processes_cannot_share_a_folder(tmp_path):
    path = workdir.resolve(str(tmp_path))
    with workdir.claimed(path), pytest.raises(UserError, match="another process is training"), workdir.claimed(path):
        pass
    with workdir.claimed(path):
        pass


def test_tensorboard_reads_it_back(tmp_path, stop_at):
    """Also after a resume: one value a step."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = small_config(tensorboard=True)
    stop_at(3)
    with pytest.raises(Preempted):
        train(config, tmp_path)
    train(config, tmp_path)
    for split in ("train", "validation"):
        accumulator = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / split))
        accumulator.Reload()
        points = [(event.step, event.value) for event in accumulator.Scalars("loss")]
        expected = [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows(tmp_path, split)]
        assert points == expected


def test_no_host_sync_a_step(tmp_path, monkeypatch):
    """Between two rows of the log nothing is fetched from the devices."""
    fetched = []
    original = Parallel.unreplicate

    def unreplicate(self, tree):
        fetched.append(tree)
        return original(self, tree)

    monkeypatch.setattr(Parallel, "unreplicate", unreplicate)
    config = small_config(num_steps=24, log_every_steps=24, eval_every_epochs=9.0, checkpoint__every_steps=24)
    train(config, tmp_path)
    # the row; at the end two evaluations, the state and sums to save, the chosen weights, two splits
    assert len(fetched) <= 9
    assert "tensorflow" not in sys.modules
