"""The seam: a task, a metric, from outside; what the core may not know; and the example that docs/tasks.md gives."""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from jaxcnn.config import Config, validate
from jaxcnn.config.choices import TASKS, TaskChoice
from jaxcnn.errors import Preempted, UserError
from jaxcnn.tasks.classification import metrics as classification_metrics
from jaxcnn.tasks.metric import LOSS, Metric, Metrics, Selection
from jaxcnn.training.build import build
from tests.runs import arrays, assert_same_arrays, rows, small_config, train
from tests.test_loop import stop_at  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
CORE = [
    *(ROOT / "jaxcnn" / "training" / f"{name}.py" for name in (
        "step", "loop", "feed", "evaluation", "parallel", "whole_run", "telemetry", "bad_layer", "patience", "clock",
    )),
    ROOT / "jaxcnn" / "run" / "checkpoint.py",
]  # fmt: skip


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_knows_no_task(path):
    """No word of images, labels or classes, and no import of a task's losses, augmentation or scores."""
    text = path.read_text()
    words = r"\b(images?|pixels?|labels?|logits?|class_\w+|num_classes|classes|accuracy|top5\w*)\b"
    assert not re.findall(words, text, re.IGNORECASE)
    assert not re.findall(r"jaxcnn\.(augment|tasks\.(?!task\b|metric\b)\w+|results|report)", text)


@pytest.fixture
def rotation(monkeypatch):
    """The module of docs/tasks.md, and its entry as the page writes it."""
    page = (ROOT / "docs" / "tasks.md").read_text()
    code, entry = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    module = types.ModuleType("my_package.rotation")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_package.rotation", module)
    monkeypatch.setitem(TASKS, "rotation", None)  # so that what the entry puts there goes again
    exec(entry, {"TASKS": TASKS, "TaskChoice": TaskChoice})
    return module


def rotation_config(**changes) -> Config:
    return small_config(task="rotation", **{"num_steps": 8, "augment__crop_padding": 0, **changes})


def test_the_pages_task_trains_resumes_and_evaluates(rotation, tmp_path, capsys):
    """With nothing changed elsewhere, on one device and on eight."""
    result = train(rotation_config(), tmp_path / "whole")
    assert result["weights"] == "best validation turn_accuracy, ema"
    assert set(result["splits"]["test"]) == {"loss", "turn_accuracy", "num_examples"}
    assert {"turn_accuracy", "loss"} <= set(rows(tmp_path / "whole")[0])
    train(rotation_config(num_devices=1), tmp_path / "alone")
    for several, alone in zip(rows(tmp_path / "whole"), rows(tmp_path / "alone"), strict=True):
        assert several["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_options_of_another_task_are_refused(rotation):
    config = rotation_config()
    config.augment.flip = True
    with pytest.raises(UserError, match=r"augment\.flip=True is read by task=classification.* and task is rotation"):
        validate(config)


# ---- metrics


def test_metrics_of_counts_equal_scikit_learns():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(300, 7)), generator.integers(0, 6, 300)
    logits[np.arange(300), labels] += 1
    metrics = Metrics(classification_metrics.metrics_for(7))
    mask = np.arange(300) < 250
    totals = metrics.empty()
    for start in range(0, 300, 100):
        part = slice(start, start + 100)
        values = metrics.of_examples(jnp.asarray(logits[part]), jnp.asarray(labels[part]), jnp.zeros(100))
        totals = totals.merge(metrics.sums(values, jnp.asarray(mask[part])))
    found, predicted = totals.compute(), logits[mask].argmax(axis=1)
    assert found["macro_f1"] == pytest.approx(f1_score(labels[mask], predicted, average="macro"), rel=1e-5)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels[mask], predicted), rel=1e-5)


def test_another_metric_chooses_the_best(tmp_path):
    """Macro F1, which the rows then have."""
    result = train(small_config(num_steps=6, checkpoint__best_metric="macro_f1"), tmp_path / "f1")
    assert result["weights"] == "best validation macro_f1, ema"
    validation = rows(tmp_path / "f1", "validation")
    best = max(row["ema_macro_f1"] for row in validation)
    assert result["splits"]["validation"]["macro_f1"] == pytest.approx(best)


def test_a_new_metric_lets_an_old_run_go_on(tmp_path, stop_at):  # noqa: F811
    """Its sums begin where it comes in; the state, and all else, is as if it had always been there."""
    config, watched = small_config(), small_config(metrics=("balanced_accuracy",))
    stop_at(3)
    with pytest.raises(Preempted):
        train(config, tmp_path / "old")
    result = train(watched, tmp_path / "old")
    train(config, tmp_path / "plain")
    ends = [arrays(tmp_path / name, each) for name, each in (("old", watched), ("plain", config))]
    states = [{name: array for name, array in end.items() if name.startswith("state/")} for end in ends]
    assert_same_arrays(*states)
    assert "balanced_accuracy" in result["splits"]["test"]


def test_a_metric_that_is_not_known_is_one_line():
    with pytest.raises(UserError, match=r"metrics='macro_f2' is not measured with 10 classes; did you mean 'macro_f1'"):
        build(small_config(metrics=("macro_f2",)))


def test_a_selection_says_which_way_is_better():
    low, high = Selection(LOSS, averaged=True), Selection(Metric("x", lambda *_: jnp.zeros(1), True), averaged=False)
    assert (low.name, high.name) == ("ema_loss", "x")
    assert low.gain(1.0, 2.0) == 1.0 == high.gain(2.0, 1.0)
    assert jax.tree.leaves(Metrics().empty())  # the loss alone
