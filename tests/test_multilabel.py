"""Images with several labels: sets in a CSV, a sigmoid a label, metrics as scikit-learn has them, evaluate, predict."""

import csv
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import jaxcnn
from jaxcnn import evaluate, predict
from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.tasks.metric import Metrics
from jaxcnn.tasks.multilabel import metrics_for
from jaxcnn.training.build import build
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss__name": "cross_entropy"}, "loss.name=cross_entropy is for classes, and task=multilabel has sets of"),
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
