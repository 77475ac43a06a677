"""evaluate_run and its command: every example once, ensembles, other data, calibration, what is written and refused."""

import csv
import json
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from etils import epath
from sklearn import metrics

from jaxcnn import evaluate
from jaxcnn.errors import RunError, UserError
from jaxcnn.results import written
from jaxcnn.results.measure import Calibration, evaluate_run
from jaxcnn.results.members import NotCalibrated
from jaxcnn.run import workdir
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.tasks.classification import confidence
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed
from tests.runs import small_config, train

QUICK: dict[str, Any] = {"resamples": 0, "calibrate": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: a run of the digits, one of another model, not trained, and some that make no ensemble with it."""
    folder = tmp_path_factory.mktemp("runs")
    options: dict[str, Any] = {
        "num_steps": 4,
        "checkpoint__every_steps": 2,
        "eval_every_epochs": 0.1,
        "compilation_cache": True,
    }
    config = small_config(**options, model__name="mlp", optimizer__ema_decay=None)
    train(config, folder / "first")
    other = small_config(**options, eval_tta="flip")
    run, _ = build(other)
    (folder / "tiny").mkdir()
    workdir.write_config(epath.Path(folder / "tiny"), "test", other, run.data_facts(), {})
    checkpoints = Checkpoints(folder / "tiny" / "checkpoints")
    tree = {"state": jax.device_get(run.init()), "totals": jax.device_get(run.learning.metrics.empty())}
    checkpoints.save(2, tree, {})
    checkpoints.close()
    source = build(small_config(data__split_seed=1))[0].source
    copy_of(folder / "first", folder / "other_split", data={"splits": source.splits_digest})
    for name, numbers in (("first", run.source.record_numbers), ("other_split", source.record_numbers)):
        workdir.write_splits(epath.Path(folder / name), numbers)
    copy_of(folder / "first", folder / "other_classes", data={"class_names": list("9876543210")})
    copy_of(folder / "first", folder / "other_data", data={"fingerprint": "another"})
    return folder


def copy_of(run, folder, **changes):
    """A run with the same checkpoints that says other things of itself."""
    folder.mkdir()
    (folder / "checkpoints").symlink_to(run / "checkpoints")
    saved = json.loads((run / "config.json").read_text())
    for name, values in changes.items():
        (saved["config"] if name == "config" else saved)["data"].update(values)
    (folder / "config.json").write_text(json.dumps(saved))


@pytest.fixture(scope="module")
def alone(runs):
    """The first run's test, on one device, with everything."""
    return evaluate_run([runs / "first"], num_devices=1)


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


def test_the_numbers_are_those_of_the_data(runs, alone):
    run, feed = build(small_config(num_devices=1))
    assert isinstance(feed, ResidentFeed)
    labels = feed.arrays("test")[0]["label"]
    np.testing.assert_array_equal(alone.labels, labels)
    summary = alone.scores
    predicted = alone.probabilities.argmax(axis=1)
    assert summary["accuracy"] == metrics.accuracy_score(labels, predicted)  # to the last digit
    assert summary["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert summary["loss"] == summary["nll"] == pytest.approx(metrics.log_loss(labels, alone.probabilities), rel=1e-5)
    records = run.source.splits["test"]
    assert alone.identifiers == tuple(records.records.identifier(int(record)) for record in records.indices)
    low, high = alone.intervals["accuracy"]
    assert low < summary["accuracy"] < high
    assert {"loss", "macro_f1", "ece", "brier", "top5_accuracy"} < alone.intervals.keys()
    assert sum(alone.reliability["count"]) == len(labels)


@pytest.mark.parametrize(("eval_batch_size", "num_devices"), [(1, 1), (7, 1), (128, 1), (1, 8), (7, 8), (128, 8)])
def test_any_batch_size_and_device_count_gives_the_same(runs, alone, eval_batch_size, num_devices):
    found = evaluate_run([runs / "first"], eval_batch_size=eval_batch_size, num_devices=num_devices, **QUICK)
    np.testing.assert_array_equal(found.labels, alone.labels)
    np.testing.assert_array_equal(found.places, np.arange(360))
    close(found.logits, alone.logits)
    for name, value in alone.scores.items():
        assert found.scores[name] == pytest.approx(value, abs=1e-6, rel=1e-6), name


def test_a_temperature_is_fitted_on_validation_alone(runs, alone):
    validation = evaluate_run([runs / "first"], split="validation", num_devices=1, resamples=0)
    assert validation.calibration == NotCalibrated("a temperature is fitted on validation, which is what is reported")
    temperature = confidence.fit_temperature(validation.logits, validation.labels)
    found = alone.calibration
    assert found.temperature == pytest.approx(temperature)
    assert found.temperature != pytest.approx(confidence.fit_temperature(alone.logits, alone.labels), rel=1e-3)
    assert found.num_examples == 144
    logits = alone.logits.astype(np.float64) / temperature
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.after["nll"] == pytest.approx(metrics.log_loss(alone.labels, p), rel=1e-5)
    assert found.before == {name: alone.scores[name] for name in ("nll", "brier", "ece")}


def test_an_ensemble_is_the_mean_of_probabilities(runs, alone):
    """Of two models, each with its own views; checkpoints that are named twice count once."""
    folders = [runs / "first", runs / "tiny", runs / "other_split" / ".." / "first"]
    together = evaluate_run(folders, steps=("2", "best"), num_devices=1, resamples=0)
    best = alone.members[0].step
    found = [(member.model, member.step, member.tta) for member in together.members]
    assert found == [("mlp", 2, "none"), ("mlp", best, "none"), ("tiny", 2, "flip")]
    assert [note.partition(" of ")[0] for note in together.notes] == ["step 2", "step 2", f"step {best}"]
    of_two, of_tiny = (evaluate_run([runs / name], steps=("2",), num_devices=1, **QUICK) for name in ("first", "tiny"))
    probabilities = 0
    for member, own in zip(together.members, (of_two, alone, of_tiny), strict=True):
        probabilities = probabilities + own.probabilities / 3
        for name, value in own.scores.items():
            assert member.scores[name] == pytest.approx(value, rel=1e-5), name
    close(together.probabilities, probabilities)
    assert together.scores["nll"] == pytest.approx(metrics.log_loss(alone.labels, probabilities), rel=1e-4)
    assert isinstance(together.calibration, Calibration)


def test_a_run_whose_data_have_moved_says_how_to_name_their_place(runs, tmp_path):
    copy_of(runs / "first", tmp_path / "moved", config={"name": "folder:nowhere/pets"})
    with pytest.raises(UserError, match=r"nowhere/pets.* pass their folder as --data_dir"):
        evaluate_run([tmp_path / "moved"], **QUICK)


def test_outputs_that_are_not_finite_are_an_error(runs, monkeypatch):
    monkeypatch.setattr(
        "jaxcnn.results.measure.collect", lambda *_, **__: ([np.full((9, 10), np.nan)], np.zeros(9), np.arange(9))
    )
    with pytest.raises(RunError, match="are not finite for 9 of 9 examples of test: the run has diverged"):
        evaluate_run([runs / "first"], **QUICK)


def test_runs_on_other_data_make_no_ensemble(runs):
    with pytest.raises(UserError, match=r"other classes \(0, 1, 2, 3, 4, … 10 in all and 9, 8, "):
        evaluate_run([runs / "first", runs / "other_classes"], **QUICK)
    with pytest.raises(UserError, match="other splits of digits: their validation is not the same"):
        evaluate_run([runs / "first", runs / "other_split"], split="validation", **QUICK)
    both = evaluate_run([runs / "first", runs / "other_split"], num_devices=1, resamples=0)  # test is the digits' own
    assert both.calibration == NotCalibrated("the runs have no validation split in common to fit a temperature on")
    with pytest.raises(UserError, match="was trained on other data"):
        evaluate_run([runs / "first", runs / "other_data"], **QUICK)


@pytest.fixture(scope="module")
def images(runs, alone, tmp_path_factory):
    """Some of test as files, of four of the ten classes; and which example each is."""
    _, feed = build(small_config(num_devices=1))
    assert isinstance(feed, ResidentFeed)
    arrays, _ = feed.arrays("test")
    pixels, labels = arrays["image"], arrays["label"]
    folder, place = tmp_path_factory.mktemp("images"), {}
    for number in np.flatnonzero(np.isin(labels, (2, 5, 7, 9)))[:40]:
        split = "train" if number % 3 and labels[number] != 5 else "test"
        name = f"{split}/{labels[number]}/{number:03}.png"
        place[name] = int(number)
    for name, number in place.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), pixels[number])
    return folder, place


def test_other_data_are_matched_by_the_names_of_their_classes(runs, alone, images, tmp_path):
    """Of four classes, one of them in one split only, whose numbers in the folder are others; or of one."""
    folder, place = images
    found = evaluate_run([runs / "first"], data=f"folder:{folder}", num_devices=1, resamples=0)
    assert (found.split, found.data["name"]) == ("all", f"folder:{folder}")
    assert sorted(found.identifiers) == sorted(place)
    numbers = [place[name] for name in found.identifiers]
    np.testing.assert_array_equal(found.labels, alone.labels[numbers])
    close(found.logits, alone.logits[numbers])
    assert isinstance(found.calibration, Calibration)
    assert found.calibration.temperature == pytest.approx(alone.calibration.temperature)
    assert found.counts["roc_auc"] == 4
    assert [area is None for area in found.classes["roc_auc"]] == [name not in "2579" for name in found.class_names]
    sevens = [name for name in sorted(place) if name.startswith("train/7")]
    (tmp_path / "sevens" / "test").mkdir(parents=True)  # a single class, and no train
    (tmp_path / "sevens" / "test" / "7").symlink_to(folder / "train" / "7")
    one = evaluate_run([runs / "first"], data=f"folder:{tmp_path / 'sevens'}", num_devices=1, **QUICK)
    close(one.logits, alone.logits[[place[name] for name in sevens]])
    assert set(one.labels) == {7}
    assert one.scores["macro_roc_auc"] is None
    own = evaluate_run([runs / "first"], data="digits", split="test", num_devices=1, resamples=0)
    close(own.logits, alone.logits)
    assert isinstance(own.calibration, NotCalibrated)
    assert "the run's own" in own.calibration.reason


@pytest.mark.parametrize("resident", [True, False])
def test_damaged_records_are_left_out_and_said(runs, alone, images, tmp_path, resident):
    folder, place = images
    copied = tmp_path / "images"
    for damaged in ("skip", "error"):
        changes = {"resident": resident, "cache": False, "num_workers": 0, "damaged": damaged}
        copy_of(runs / "first", tmp_path / damaged, config=changes)
    names = sorted(place)
    for name in names:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        content = (folder / name).read_bytes()
        (copied / name).write_bytes(content[:45] if name in (names[-2], names[-9]) else content)  # its header is whole
    options: dict[str, Any] = {"data": f"folder:{copied}", "split": "train", "eval_batch_size": 8, "num_devices": 2}
    found = evaluate_run([tmp_path / "skip"], **options, **QUICK)
    trained = [name for name in names if name.startswith("train")]
    whole = [name for name in trained if name not in (names[-2], names[-9])]
    assert len(whole) == len(trained) - 2
    assert found.identifiers == tuple(sorted(whole, key=lambda name: (name.split("/")[1], name)))
    numbers = [place[name] for name in found.identifiers]
    np.testing.assert_array_equal(found.labels, alone.labels[numbers])
    close(found.logits, alone.logits[numbers])
    assert any("damaged records of train are not counted" in note for note in found.notes)
    with pytest.raises(RunError, match="cannot be read"):
        evaluate_run([tmp_path / "error"], **options, **QUICK)


# ---- the command


def command(*arguments):
    return evaluate.main(["evaluate", *map(str, arguments)], 0.0)


def test_what_is_written_and_printed(runs, alone, tmp_path, capsys):
    before = {path.name for path in (runs / "first").iterdir()}
    assert command(f"--workdir={runs / 'first'}", "--batch_size=7") == 0
    printed = capsys.readouterr().out
    line = json.loads(printed.splitlines()[-1])
    assert line["accuracy"] == alone.scores["accuracy"]
    assert (line["split"], line["step"], line["num_examples"]) == ("test", alone.members[0].step, 360)
    assert f"temperature {alone.calibration.temperature:.4g}"[:15] in printed
    assert {path.name for path in (runs / "first").iterdir()} - before == {"evaluation.json", "predictions.csv"}
    content = json.loads((runs / "first" / "evaluation.json").read_text())
    assert content["intervals"] == {name: pytest.approx(list(each), abs=1e-4) for name, each in alone.intervals.items()}
    assert content["members"][0]["workdir"] == str(runs / "first")
    assert content["command"] == ["evaluate", f"--workdir={runs / 'first'}", "--batch_size=7"]
    assert content["confusion_matrix"] == alone.confusion_matrix.tolist()
    assert {"scores", "classes", "calibration", "reliability", "versions", "tta", "data"} <= content.keys()
    with (runs / "first" / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [each["identifier"] for each in lines] == list(alone.identifiers)
    assert [int(each["label"]) for each in lines] == alone.labels.tolist()
    assert np.mean([int(each["correct"]) for each in lines]) == pytest.approx(alone.scores["accuracy"])
    close([[float(each[f"p_{name}"]) for name in alone.class_names] for each in lines], alone.probabilities)
    assert all(float(each["confidence"]) == float(each[f"p_{each['prediction']}"]) for each in lines)

    kept = (runs / "first" / "evaluation.json").read_bytes()
    options = ("--split=validation", "--step=2", "--tta=shifts", "--resamples=0", f"--workdir={runs / 'tiny'}")
    assert command(f"--workdir={runs / 'first'}", *options, f"--output={tmp_path / 'new'}") == 0
    assert (runs / "first" / "evaluation.json").read_bytes() == kept
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert [name.partition("-with-")[0] for name in files] == [
        f"{kind}-validation-step-2-tta-shifts" for kind in ("evaluation", "predictions")
    ]
    other = json.loads((tmp_path / "new" / files[0]).read_text())
    assert (other["split"], other["tta"], other["step"]) == ("validation", "shifts", [2, 2])
    assert (other["intervals"], other["num_examples"]) == ({}, 144)
    assert "members, each alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tta=flop"], "--tta='flop'.* did you mean 'flip'"),
        (["--step=best,sooner"], "--step=sooner is neither best, last nor"),
        (["--step=99"], "there are checkpoints of steps 2, .*; or best, last"),
        (["--split=tset"], "did you mean 'test'"),
        (["--resamples=-1"], "not an integer in the range"),
        (["--resamples=many"], "resamples"),
        (["--workdir=nowhere"], "holds no run"),
        (["--data=folder:nowhere"], "there is no 'nowhere'"),
        (["--data=digits", "--split=tset"], "digits has no such split; did you mean 'test'"),
        (["--data=folder:{tmp}/strange"], "has class 'cat' .* which the run does not know"),
        (["digits"], "unexpected argument"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(runs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "strange" in str(arguments):
        for name in ("2", "cat"):
            (tmp_path / "strange" / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / "strange" / name / "a.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=message) as error:
        command(f"--workdir={runs / 'first'}", *(each.format(tmp=tmp_path) for each in arguments))
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_said(alone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*; pass another --output"):
        written.save(alone, tmp_path / "file", "", command=[])
