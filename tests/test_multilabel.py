"""Images with several labels: sets in a CSV, a sigmoid a label, metrics as scikit-learn has them, evaluate, predict."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

import jaxcnn
from jaxcnn import evaluate, predict
from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.results import general
from jaxcnn.results.members import NotCalibrated
from jaxcnn.tasks.metric import Metrics
from jaxcnn.tasks.multilabel import MULTILABEL, fit_thresholds, metrics_for
from jaxcnn.training.build import build
from tests.commands import run_here
from tests.runs import rows, small_config, train

LABELS = ("bottom", "left", "top")
PARTS: Any = (np.s_[5:], np.s_[:, :3], np.s_[:3])  # of an image: where its labels make it bright


@pytest.fixture(scope="module")
def listed(tmp_path_factory: Any) -> Path:
    """96 images of 8 x 8, bright where their labels say; every seventh has none."""
    folder, generator = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    lines = ["path,label"]
    for number in range(96):
        chosen = generator.random(3) < (0.5 if number % 7 else 0)
        pixels = generator.integers(0, 60, (8, 8))
        for is_there, part in zip(chosen, PARTS, strict=True):
            pixels[part] += 150 * int(is_there)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
        named = "|".join(name for name, is_there in zip(LABELS, chosen, strict=True) if is_there)
        lines.append(f"{number:02}.png,{named or '-'}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def config_of(listed: Path, **changes: Any) -> Config:
    return small_config(
        task="multilabel", data__name=f"csv:{listed}", data__cache=False, loss__name="binary_cross_entropy",
        data__validation_fraction=0.25, batch_size=24, augment__crop_padding=0, num_steps=60, eval_every_epochs=5,
        log_every_steps=20, checkpoint__every_steps=60, optimizer__learning_rate=0.2, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(listed: Path, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config_of(listed, num_devices=1), folder)
    return folder


def test_labels_are_learned(trained: Path) -> None:
    last = rows(trained, "validation")[-1]
    assert last["mean_average_precision"] > 0.9
    assert {"exact_match", "micro_f1", "macro_f1", "loss"} <= last.keys()


def test_evaluate_and_predict(trained: Path, listed: Path, tmp_path: Path) -> None:
    assert evaluate.main(["evaluate", "--workdir", str(trained), "--resamples=50"], 0.0) == 0
    said = json.loads((trained / "evaluation.json").read_text())
    low, high = said["intervals"]["mean_average_precision"]
    assert low <= said["scores"]["mean_average_precision"] <= high
    assert said["class_names"] == list(LABELS)
    with pytest.raises(UserError, match="task=multilabel, which is not of single classes of images"):
        jaxcnn.load(str(trained))
    answers = tmp_path / "answers.csv"
    image = str(listed.parent / "01.png")
    assert predict.main(["predict", "--workdir", str(trained), image, f"--csv={answers}"], 0.0) == 0
    (answer,) = csv.DictReader(answers.read_text().splitlines())
    probabilities = {label: float(answer[f"p_{label}"]) for label in LABELS}
    assert answer["labels"] == ("|".join(label for label in LABELS if probabilities[label] >= 0.5) or "-")


def test_metrics_equal_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    targets = (generator.random((400, 4)) < 0.3).astype(np.float32)
    probabilities = np.clip(np.round(generator.random((400, 4)) * 0.6 + 0.35 * targets, 2) + 0.005, 0.005, 0.995)
    logits = np.log(probabilities / (1 - probabilities))
    metrics = Metrics(metrics_for(np.array([0.5, 0.4, 0.6, 0.5], np.float32)))
    values = metrics.of_examples(jnp.asarray(logits), jnp.asarray(targets), jnp.zeros(400))
    scores = metrics.sums(values, jnp.ones(400, bool)).compute()
    said = probabilities >= [0.5, 0.4, 0.6, 0.5]
    assert scores["exact_match"] == pytest.approx((said == targets).all(axis=1).mean())
    for average in ("micro", "macro"):
        assert scores[f"{average}_f1"] == pytest.approx(f1_score(targets, said, average=average), rel=1e-5)
    # The steps are bins of 0.01, so examples of one bin tie in scikit-learn's too.
    expected = average_precision_score(targets, np.floor(probabilities * 100), average="macro")
    assert scores["mean_average_precision"] == pytest.approx(expected, rel=1e-4)


def test_thresholds_have_the_highest_f1() -> None:
    generator = np.random.default_rng(2)
    targets = generator.random((60, 4)) < 0.3
    steps = np.array([10, 100, 1000, 10])  # some tie
    probabilities = (np.round((generator.random((60, 4)) * 0.6 + 0.35 * targets) * steps) / steps).astype(np.float32)
    targets[:, 3], given = False, np.array([0.5, 0.5, 0.5, 0.4], np.float32)
    thresholds = fit_thresholds(probabilities, targets, given)
    for label in range(3):
        scores = {
            each: f1_score(targets[:, label], probabilities[:, label] >= each) for each in probabilities[:, label]
        }
        fitted = f1_score(targets[:, label], probabilities[:, label] >= thresholds[label])
        assert fitted == pytest.approx(max(scores.values()))
        assert fitted > scores[probabilities[:, label].min()]
        assert thresholds[label] not in scores  # half way between two
    assert thresholds[3] == given[3]


def test_neighbours_in_float32_are_told_apart() -> None:
    lower = np.float32(0.3)
    upper = np.nextafter(lower, np.float32(1))
    thresholds = fit_thresholds(np.array([[lower], [upper]]), np.array([[False], [True]]), np.array([0.5], np.float32))
    assert thresholds[0] == upper


def table_of(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(bool [n, 3], the labels; float32 [n, 3], their probabilities) of a predictions.csv."""
    said = list(csv.DictReader(file.read_text().splitlines()))
    labels = np.array([[label in row["labels"].split("|") for label in LABELS] for row in said])
    return labels, np.array([[row[f"p_{label}"] for label in LABELS] for row in said], np.float32)


def test_evaluate_fits_thresholds_on_validation_alone(trained: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["evaluate", "--workdir", str(trained), "--resamples=0", "--step=last", f"--output={tmp_path}"]
    assert evaluate.main([*command, "--split=validation"], 0.0) == 0
    assert "nothing fitted: it is fitted on validation, which is what is reported" in capsys.readouterr().out
    assert evaluate.main(command, 0.0) == 0
    said = json.loads((tmp_path / "evaluation-step-last.json").read_text())
    calibration = said["calibration"]
    assert f"thresholds fitted on {calibration['fitted_on']['num_examples']} examples" in capsys.readouterr().out
    labels, probabilities = table_of(tmp_path / "predictions-validation-step-last.csv")
    assert calibration["fitted_on"] == {"split": "validation", "num_examples": len(labels)}
    for number, threshold in enumerate(calibration["thresholds"]):
        precision, recall, least = precision_recall_curve(labels[:, number], probabilities[:, number])
        best = (2 * precision * recall / (precision + recall + 1e-12))[:-1].argmax()
        assert threshold == pytest.approx((least[best] + (least[best - 1] if best else 0)) / 2, rel=1e-5)
    labels, probabilities = table_of(tmp_path / "predictions-step-last.csv")
    for name, thresholds in (("before", [0.5]), ("after", calibration["thresholds"])):
        predicted = probabilities >= thresholds
        assert calibration[name]["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-5)
        assert calibration[name]["exact_match"] == pytest.approx((predicted == labels).all(axis=1).mean())
    assert calibration["before"] == {name: said["scores"][name] for name in ("exact_match", "micro_f1", "macro_f1")}
    assert (calibration["given_thresholds"], calibration["kept_as_given"]) == ([0.5] * 3, [])
    assert evaluate.main([*command, "--nocalibrate"], 0.0) == 0
    said = json.loads((tmp_path / "evaluation-step-last.json").read_text())
    assert said["calibration"] == {"not_done": "not asked for"}


def test_nothing_is_fitted_on_what_is_reported(listed: Path) -> None:
    source = build(config_of(listed))[0].source
    without = replace(source, splits={name: source.splits[name] for name in ("train", "test")})
    mixed = replace(source, splits={**source.splits, "validation": source.splits["test"]})
    for opened, reason in (
        (without, "the run has no validation split to fit on"),
        (mixed, f"validation, to fit on, shares {len(source.splits['test'])} examples with test"),
    ):
        assert general.reason_not_to_fit(opened, "test", is_asked=True) == NotCalibrated(reason)
    assert general.reason_not_to_fit(source, "test", is_asked=True) is None


def test_a_label_that_validation_has_not_is_named() -> None:
    data = {"class_names": list(LABELS), "image_shape": [8, 8, 1], "mean": [0.5], "std": [0.25]}
    config = Config(task="multilabel")
    config.loss.name, config.multilabel.thresholds = "binary_cross_entropy", (0.3,)
    assert MULTILABEL.finish is not None
    calibrate = MULTILABEL.finish(config, data).calibrate
    assert calibrate is not None
    targets = np.zeros((4, 3), np.float32)
    targets[:2, :2] = 1
    fitted = calibrate(np.where(targets > 0, 1.0, -1.0), targets)
    assert fitted.facts["kept_as_given"] == ["top"]
    assert fitted.facts["thresholds"] == [0.5, 0.5, 0.3]
    assert fitted.notes == ("no image of validation has top: kept as given",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss__name": "cross_entropy"},
            "loss.name=cross_entropy is for classes and pixels, and task=multilabel has sets of",
        ),
        ({"multilabel__thresholds": (0.5, 0.4)}, r"multilabel.thresholds has 2 values, and there are 3 labels; give"),
        ({"loss__class_weights": "balanced"}, "weigh classes, of which an image has one"),
    ],
)
def test_what_does_not_suit_is_one_line(listed: Path, changes: Any, message: str) -> None:
    config = config_of(listed)
    for path, value in changes.items():
        group, name = path.split("__")
        setattr(getattr(config, group), name, value)
    with pytest.raises(UserError, match=message):
        build(config)


def test_a_list_that_cannot_be_learned_is_one_line(listed: Path, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes((listed.parent / "01.png").read_bytes())
    for labels, message in (
        (("a||b", "a"), r"'a\|\|b' has an empty label"),
        (("a", "b"), "test has the label 'b', which train has not"),
        (("-", "-"), "no image of train has a label"),
    ):
        lines = ["path,label,split", f"0.png,{labels[0]},train", f"1.png,{labels[1]},test"]
        (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
        config = config_of(tmp_path / "list.csv", checkpoint__keep_best=0)
        config.data.validation_fraction = 0
        with pytest.raises(UserError, match=message):
            build(config)


def test_export(trained: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    file = tmp_path / "model.onnx"
    code, output, errors = run_here("--workdir", trained, "--to=onnx", file, module="export.__main__")
    assert (code, errors) == (0, "")
    assert "100.00 % same predictions" in output
    facts = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert (facts["task"], json.loads(facts["class_names"])) == ("multilabel", list(LABELS))
