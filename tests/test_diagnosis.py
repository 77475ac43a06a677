"""Diagnosis: silent on healthy runs, each threshold seen from both sides, every remedy an option that exists."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from etils import epath

from jaxcnn import diagnose as command
from jaxcnn.config import Config, to_dict
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from jaxcnn.results.diagnosis import SEVERITIES, Finding, diagnose
from jaxcnn.run.facts import Facts, SavedPredictions, read_facts

RUNS = Path(__file__).parent / "goldens" / "runs"
CLASSES = 10
EVALUATIONS = 20


def curve(first: float, last: float, count: int = EVALUATIONS) -> list[float]:
    """Falls or rises fast, then ever slower."""
    return list(last + (first - last) * 0.7 ** np.arange(count))


def facts(
    *,
    train: dict[str, list[float]] | None = None,
    validation: dict[str, list[float]] | None = None,
    options: dict[str, Any] | None = None,
    num_validation: int = 5000,
    class_counts: dict[str, int] | None = None,
    **changes: Any,
) -> Facts:
    """A run in which nothing is wrong, of two rows of training and one of validation an epoch, but for the changes."""
    train = {"loss": curve(2.3, 0.2, 40), "accuracy": curve(0.1, 0.93, 40), **(train or {})}
    validation = {"loss": curve(2.3, 0.3), "accuracy": curve(0.1, 0.91), **(validation or {})}
    rows: list[dict[str, Any]] = []
    for epoch in range(len(validation["loss"])):
        for half in range(2):
            values = {name: column[2 * epoch + half] for name, column in train.items()}
            rows.append({"step": 50 * (2 * epoch + half + 1), "split": "train", "learning_rate": 0.1, **values})
        values = {name: column[epoch] for name, column in validation.items()}
        rows.append({"step": 100 * (epoch + 1), "split": "validation", **values})
    config = to_dict(Config())
    for path, value in (options or {}).items():
        group, _, name = path.rpartition(".")
        (config[group] if group else config)[name] = value
    names = [f"class{number}" for number in range(CLASSES)]
    data = {
        "name": "folder:SET",
        "class_names": names,
        "num_examples": {"train": 45000, "validation": num_validation, "test": 10000},
        "class_counts": {"train": class_counts or dict.fromkeys(names, 4500), "validation": dict.fromkeys(names, 500)},
    }
    return Facts(**{"config": config, "data": data, "rows": rows, "summary": {"status": "finished"}, **changes})


def found(facts: Facts) -> dict[str, Finding]:
    """By name, without what could not be examined; a name once."""
    wrong = [finding for finding in diagnose(facts) if finding.severity != "not examined"]
    assert len({finding.name for finding in wrong}) == len(wrong)
    return {finding.name: finding for finding in wrong}


def telemetry(
    norms: list[float], *, layer: float = 1.0, ratio: float = 1e-3, dead: float = 0.0
) -> list[dict[str, Any]]:
    """Records of three layers, the last of them frozen; `layer` is the gradient norm of the first."""
    return [
        {
            "step": 50 * number + 1,
            "gradient_norm": norm,
            "layers": {
                "conv1": {"weight_norm": 1.0, "gradient_norm": layer, "update_ratio": ratio},
                "conv2": {"weight_norm": 1.0, "gradient_norm": 1.0, "update_ratio": ratio},
                "conv3": {"weight_norm": 1.0, "gradient_norm": 0.0, "update_ratio": 0.0},
            },
            "activations": {"stage1": {"mean": 0.5, "std": 1.0, "dead": dead}},
        }
        for number, norm in enumerate(norms)
    ]


def predictions(*, wrong_and_sure: int = 0, never: int = 0, sure: int = 1000) -> SavedPredictions:
    """1,000 examples, all right but so many of the `sure` ones, or with so many classes that are called class0."""
    labels = [f"class{number % CLASSES}" for number in range(1000)]
    made = [label if int(label[5:]) >= never or label == "class0" else "class0" for label in labels]
    for number in range(wrong_and_sure):
        made[number] = "class1" if labels[number] == "class0" else "class0"
    confidences = [0.995] * sure + [0.9] * (1000 - sure)
    return SavedPredictions([f"image{number}" for number in range(1000)], labels, made, confidences)


def at(column: list[float], place: int, value: float) -> list[float]:
    """The column with another value there."""
    return [value if number == place % len(column) else each for number, each in enumerate(column)]


def zigzag(rises: int) -> list[float]:
    """40 losses that fall by about 15 %, but rise so many times."""
    return list(2.3 + np.cumsum([0.0, *[0.001] * rises, *[-0.01] * (39 - rises)]))


def named(*, rare: int) -> SavedPredictions:
    """All right, but a class of so many examples that is called another."""
    labels = ["common"] * 500 + ["other"] * 480 + ["rare"] * rare
    return SavedPredictions(labels, labels, [label.replace("rare", "common") for label in labels], [0.9] * len(labels))


def waited(seconds: float, devices: float) -> list[dict[str, Any]]:
    """A row of timing.jsonl in which the host waits for data."""
    return [{"step": 50, "seconds": seconds, "data_wait": 0.21, "device_wait": devices}]


def short(epochs: int, **columns: list[float]) -> Facts:
    """A run of so many evaluations in which only the given accuracies are not as they should."""
    train = {"loss": curve(2.3, 0.2, 2 * epochs), "accuracy": columns.get("train", curve(0.1, 0.93, 2 * epochs))}
    validation = {"loss": curve(2.3, 0.3, epochs), "accuracy": columns.get("validation", curve(0.1, 0.91, epochs))}
    options = {"model.dropout_rate": 0.0}
    return facts(train=train, validation=validation, options=options, num_validation=700)


NORMS = [1.0] * 20
LOSSES = curve(2.3, 0.2, 40)

# name of the finding, facts on the right side of its threshold, on the wrong side, the figures in the sentence
CASES: list[tuple[str, Facts, Facts, tuple[str, ...]]] = [
    (
        "not finite",
        facts(),
        facts(validation={"loss": at(curve(2.3, 0.3), 7, float("nan"))}),
        ("loss of validation is not finite at step 800",),
    ),
    (
        "diverged",
        facts(train={"loss": at(LOSSES, -1, 1.1)}),
        facts(train={"loss": at(LOSSES, -1, 2.0)}),
        ("ends at 2, 10.0 times its least, 0.2 at step 1,950",),
    ),
    (
        "learning rate at the edge",
        facts(train={"loss": at(LOSSES, 30, 0.42)}),  # twice, but by less than a tenth of ln 10
        facts(train={"loss": at(LOSSES, 30, 0.44)}),
        ("jumps in 1 of 40 rows", "from 0.2 to 0.44 at step 1,550", "rate is 0.1"),
    ),
    (
        "learning rate at the edge",
        facts(train={"loss": at([2.0] * 40, 30, 3.99)}),  # by enough, but not twice
        facts(train={"loss": at([2.0] * 40, 30, 4.01)}),
        ("from 2 to 4.01",),
    ),
    (
        "learning rate too small",
        facts(train={"loss": list(np.linspace(2.3, 2.3 * 0.74, 40)), "accuracy": [0.5] * 40}),
        facts(train={"loss": list(np.linspace(2.3, 2.3 * 0.76, 40)), "accuracy": [0.5] * 40}),
        ("falls in 100% of 40 rows", "by 24.0% in all", "from 2.3 to 1.75"),
    ),
    (
        "overfitting",
        facts(validation={"accuracy": curve(0.1, 0.84)}),
        facts(validation={"accuracy": curve(0.1, 0.82)}),
        ("93.0% in training and 81.9% in validation", "under augmentation, dropout and weights that still moved"),
    ),
    (
        "overfitting",
        facts(validation={"loss": [*curve(2.3, 0.9, 10), *np.linspace(0.9, 1.1, 10)]}),
        facts(validation={"loss": [*curve(2.3, 0.9, 10), *np.linspace(0.9, 1.3, 10)]}),
        ("rose from 0.9 at step 1,100 to 1.3, while training's fell from",),
    ),
    (
        "underfitting",
        facts(validation={"accuracy": curve(0.1, 0.56)}, train={"accuracy": curve(0.1, 0.5, 40)}),
        facts(validation={"accuracy": curve(0.1, 0.54)}, train={"accuracy": curve(0.1, 0.5, 40)}),
        ("50.0% in training and at best 53.9% in validation: 49% of the way",),
    ),
    (
        "nothing learned",
        facts(validation={"accuracy": [0.115] * EVALUATIONS}, train={"accuracy": [0.1] * 40}),
        facts(validation={"accuracy": [0.11] * EVALUATIONS}, train={"accuracy": [0.1] * 40}),
        ("best validation accuracy is 11.0%, no more than the 10.0%", "5,000 examples"),
    ),
    (
        "validation better than training",
        facts(validation={"accuracy": curve(0.1, 0.97)}, options={"model.dropout_rate": 0.0}),
        facts(validation={"accuracy": curve(0.1, 0.99)}, options={"model.dropout_rate": 0.0}),
        ("98.9% in validation and 93.0% in training",),
    ),
    (
        "validation better than training",
        facts(validation={"accuracy": curve(0.1, 0.9)}, train={"accuracy": curve(0.1, 0.71, 40)}),
        facts(validation={"accuracy": curve(0.1, 0.92)}, train={"accuracy": curve(0.1, 0.71, 40)}),
        ("91.9% in validation and 71.0% in training",),  # the model's own dropout may be on: four times the gap
    ),
    (
        "still improving",
        facts(validation={"accuracy": [*curve(0.1, 0.9, 16), 0.9, 0.902, 0.904, 0.906]}),
        facts(validation={"accuracy": [*curve(0.1, 0.88, 16), 0.88, 0.89, 0.90, 0.91]}),
        ("grew by 3.0% over the last 4 of 20 evaluations, to 91.0%",),
    ),
    (
        "stopped improving long ago",
        facts(validation={"accuracy": at([0.9] * EVALUATIONS, 6, 0.92)}),
        facts(validation={"accuracy": at([0.9] * EVALUATIONS, 5, 0.92)}),
        ("92.0%, was reached at step 600 of 2,000, 14 evaluations before the end",),
    ),
    (
        "validation too small",
        facts(validation={"accuracy": [*curve(0.1, 0.91, 8), *[0.91] * 8, 0.92, 0.9, 0.91, 0.91]}, num_validation=900),
        facts(validation={"accuracy": [*curve(0.1, 0.91, 8), *[0.91] * 8, 0.92, 0.9, 0.91, 0.91]}, num_validation=700),
        ("on 700 examples 91.0% is known to ± 2.1%", "last 10 evaluations", "differ by 2.0%"),
    ),
    (
        "devices wait for data",
        facts(timing=[{"step": 50, "seconds": 11.0, "data_wait": 0.19, "device_wait": 0.05}]),
        facts(timing=[{"step": 50, "seconds": 11.0, "data_wait": 0.21, "device_wait": 0.05}]),
        ("spends 21% of training waiting for data",),
    ),
    (
        "exploding gradients",
        facts(telemetry=telemetry(at(NORMS, 7, 99.0))),
        facts(telemetry=telemetry(at(NORMS, 7, 101.0))),
        ("norm is 101 at step 351, 101 times its median",),
    ),
    (
        "exploding gradients",
        facts(telemetry=telemetry(NORMS)),
        facts(telemetry=telemetry(at(NORMS, 7, float("inf")))),
        ("not finite at step 351",),
    ),
    (
        "vanishing gradients",
        facts(telemetry=telemetry(NORMS, layer=1.1e-4)),
        facts(telemetry=telemetry(NORMS, layer=0.9e-4)),
        ("in 1 of 3 layers", "below 0.0001 of the largest", "least is 9e-05, in conv1"),
    ),
    (
        "learning rate at the edge",
        facts(telemetry=telemetry(NORMS, ratio=0.09)),
        facts(telemetry=telemetry(NORMS, ratio=0.11)),
        ("changes a layer's weights by 0.1 of their norm",),
    ),
    (
        "learning rate too small",
        facts(telemetry=telemetry(NORMS, ratio=1.1e-5)),
        facts(telemetry=telemetry(NORMS, ratio=0.9e-5)),
        ("changes a layer's weights by 9e-06 of their norm",),
    ),
    (
        "dead channels",
        facts(telemetry=telemetry(NORMS, dead=0.39)),
        facts(telemetry=telemetry(NORMS, dead=0.41)),
        ("at step 951 41% of the channels of stage1",),
    ),
    (
        "class collapse",
        facts(predictions=predictions()),
        facts(predictions=predictions(never=3)),
        ("2 of 10 classes are never predicted (class1, class2); 30% of the predictions are class0",),
    ),
    (
        "labels to look at",
        facts(predictions=predictions(wrong_and_sure=19)),
        facts(predictions=predictions(wrong_and_sure=20)),
        ("20 of 1,000 predictions of confidence >= 0.99", "2.0% where 1 % may", "image0 (class0, predicted class1)"),
    ),
    (
        "labels to look at",
        facts(predictions=predictions(wrong_and_sure=4, sure=20)),
        facts(predictions=predictions(wrong_and_sure=5, sure=20)),
        ("5 of 20 predictions",),
    ),
    (
        "class imbalance",
        facts(class_counts={f"class{number}": 999 if number else 100 for number in range(CLASSES)}),
        facts(class_counts={f"class{number}": 1000 if number else 100 for number in range(CLASSES)}),
        ("1,000 examples of class1 and 100 of class0, 10 times fewer",),
    ),
    (
        "class without examples",
        facts(class_counts={f"class{number}": max(1, number) for number in range(CLASSES)}),
        facts(class_counts={f"class{number}": number for number in range(CLASSES)}),
        ("1 of 10 classes have no example in train: class0",),
    ),
    (
        "splits share examples",
        facts(shared={("train", "validation"): 0, ("validation", "test"): 0}),
        facts(shared={("train", "validation"): 0, ("validation", "test"): 7}),
        ("validation and test share 7 of 10,000 examples",),
    ),
    (
        "diverged",
        facts(train={"loss": at(curve(2.3, 0.5, 40), -1, 1.95)}),
        facts(train={"loss": at(curve(2.3, 0.5, 40), -1, 2.05)}),
        ("4.1 times its least",),
    ),
    (
        "overfitting",
        facts(validation={"loss": [*curve(2.3, 1.5, 10), *np.linspace(1.5, 1.85, 10)]}),
        facts(validation={"loss": [*curve(2.3, 1.5, 10), *np.linspace(1.5, 1.9, 10)]}),
        ("rose from 1.5 at step 1,100 to 1.9",),
    ),
    (
        "still improving",
        facts(validation={"accuracy": [*[0.9] * 16, *np.linspace(0.9, 0.9095, 4)]}, num_validation=50000),
        facts(validation={"accuracy": [*[0.9] * 16, *np.linspace(0.9, 0.9105, 4)]}, num_validation=50000),
        ("grew by 1.1%",),
    ),
    # how many rows, evaluations and examples it takes
    (
        "learning rate at the edge",
        facts(train={"loss": at([2.0] * 40, 4, 5.0)}),
        facts(train={"loss": at([2.0] * 40, 5, 5.0)}),
        ("jumps in 1 of 40 rows, the furthest from 2 to 5 at step 300",),
    ),
    (
        "learning rate too small",
        facts(train={"loss": zigzag(8), "accuracy": [0.5] * 40}),
        facts(train={"loss": zigzag(7), "accuracy": [0.5] * 40}),
        ("falls in 82% of 40 rows",),
    ),
    (
        "learning rate too small",
        dataclasses.replace(facts(), rows=facts(train={"loss": list(np.linspace(2.3, 2.0, 40))}).rows[:13]),
        dataclasses.replace(facts(), rows=facts(train={"loss": list(np.linspace(2.3, 2.0, 40))}).rows[:14]),
        ("of 10 rows",),
    ),
    (
        "overfitting",
        facts(validation={"accuracy": curve(0.1, 0.82)}, num_validation=100),
        facts(validation={"accuracy": curve(0.1, 0.82)}, num_validation=150),
        ("93.0% in training",),
    ),
    (
        "validation better than training",
        short(4, validation=[0.99] * 4, train=[0.9] * 8),
        short(5, validation=[0.99] * 5, train=[0.9] * 10),
        ("99.0% in validation and 90.0% in training",),
    ),
    (
        "validation better than training",
        short(6, validation=[0.99] * 6, train=[0.8] * 10 + [0.9] * 2),  # the weights still move fast
        short(6, validation=[0.99] * 6, train=[0.88] * 10 + [0.9] * 2),
        ("99.0% in validation and 90.0% in training",),
    ),
    (
        "still improving",
        facts(validation={"accuracy": [*[0.88] * 16, *[0.91] * 4]}),
        facts(validation={"accuracy": [*[0.88] * 17, *[0.91] * 3]}),
        ("over the last 4 of 20 evaluations",),
    ),
    (
        "stopped improving long ago",
        short(9, validation=at([0.9] * 9, 1, 0.92)),
        short(10, validation=at([0.9] * 10, 1, 0.92)),
        ("step 200 of 1,000, 8 evaluations before the end",),
    ),
    (
        "validation too small",
        short(6, validation=[0.5, 0.8, 0.9, 0.91, 0.9, 0.91]),
        short(7, validation=[0.5, 0.8, 0.9, 0.91, 0.9, 0.91, 0.91]),
        ("the last 4 evaluations",),
    ),
    ("devices wait for data", facts(timing=waited(9.9, 0.05)), facts(timing=waited(10.1, 0.05)), ("21%",)),
    ("devices wait for data", facts(timing=waited(11.0, 0.11)), facts(timing=waited(11.0, 0.09)), ("21%",)),
    (
        "exploding gradients",
        facts(telemetry=telemetry(at(NORMS[:5], 2, 101.0))),
        facts(telemetry=telemetry(at(NORMS[:6], 2, 101.0))),
        ("101 times its median",),
    ),
    (
        "class collapse",
        facts(predictions=named(rare=9)),
        facts(predictions=named(rare=10)),
        ("1 of 3 classes are never predicted (rare)",),
    ),
    (
        "copies between splits",
        facts(data_check={"kinds": {"duplicate": {"title": "same picture again in its split", "count": 3}}}),
        facts(data_check={"kinds": {"leak": {"title": "same picture in two splits", "count": 3}}}),
        ("found, 3 times: same picture in two splits",),
    ),
]


def test_a_validation_of_one_class_tells_nothing_of_what_was_learned():
    one_class = facts(validation={"accuracy": curve(0.5, 1.0)}, num_validation=2)
    counts: Any = one_class.data["class_counts"]
    counts["validation"] = {"class0": 2, "class1": 0}
    assert not {"nothing learned", "underfitting"} & {each.name for each in diagnose(one_class)}


def test_a_few_examples_cannot_tell_that_nothing_was_learned():
    """All eight of two classes right is less than three standard errors above guessing."""
    perfect = facts(
        train={"accuracy": curve(0.5, 1.0, 40)},
        validation={"accuracy": curve(0.5, 1.0)},
        num_validation=8,
        class_counts={"class0": 20, "class1": 20},
    )
    counts: Any = perfect.data["class_counts"]
    counts["validation"] = {"class0": 4, "class1": 4}
    assert "nothing learned" not in [each.name for each in diagnose(perfect)]


@pytest.mark.parametrize(("name", "right", "wrong", "figures"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_each_threshold_from_both_sides(name, right, wrong, figures):
    assert name not in found(right)
    finding = found(wrong)[name]
    assert finding.severity in SEVERITIES[:3]
    for figure in figures:
        assert figure in finding.sentence
    assert finding.remedies
    assert "\n" not in finding.sentence


def test_every_remedy_is_an_option_that_exists():
    """What is offered, one at a time, is accepted on top of an experiment."""
    remedies = {remedy for _, _, wrong, _ in CASES for finding in diagnose(wrong) for remedy in finding.remedies}
    options = {remedy.split(" (")[0] for remedy in remedies if remedy.startswith("--config.")}
    options = {option for option in options if not {"FILE", "NAMES"} & set(option.replace("=", " ").split())}
    assert len(options) > 20
    experiment = str(Path(__file__).parents[1] / "experiments" / "digits.py")
    for option in options:
        load_config(["diagnose", "--config", experiment, option], flag_values=flags.FlagValues())


def test_what_is_on_already_is_no_remedy():
    spike = CASES[2][2]
    assert "--config.optimizer.clip_norm=1" in found(spike)["learning rate at the edge"].remedies
    config = {**spike.config, "optimizer": {**spike.config["optimizer"], "clip_norm": 1.0}}
    same = found(dataclasses.replace(spike, config=config))["learning rate at the edge"]
    assert "--config.optimizer.clip_norm=1" not in same.remedies
    counts = {f"class{number}": 1000 if number else 10 for number in range(CLASSES)}
    assert "class imbalance" in found(facts(class_counts=counts))
    assert not found(facts(class_counts=counts, options={"loss.class_weights": "balanced"}))
    assert not found(facts(class_counts=counts, options={"data.sampling": "balanced"}))


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_healthy_runs_have_nothing(name):
    """Real ones: experiments/digits.py and mnist.py, seed 0, whole; and the one that the cases here begin with."""
    assert not found(facts())
    run = read_facts(epath.Path(RUNS / name))
    assert len(run.rows) > 90
    assert not found(run)


def test_what_is_missing_is_said_with_what_makes_it():
    unexamined = {finding.name: finding for finding in diagnose(facts(summary=None))}
    assert list(unexamined) == [
        "whether it trained long enough",
        "gradients, dead channels, sizes of updates",
        "class collapse, label noise",
        "copies between splits",
    ]
    assert (
        "python -m jaxcnn.data check folder:SET --json DIR/data_check.json"
        in unexamined["copies between splits"].remedies
    )
    whole = facts(telemetry=telemetry(NORMS), predictions=predictions(), data_check={"kinds": {}})
    assert diagnose(whole) == []
    nothing = diagnose(facts(train={"loss": []}, validation={"loss": []}))
    assert {finding.severity for finding in nothing} == {"not examined"}
    assert nothing[0].name == "training"


def test_a_run_that_goes_on_is_not_judged_by_its_end():
    for name in ("underfitting", "nothing learned", "still improving", "stopped improving long ago"):
        wrong = next(wrong for case, _, wrong, _ in CASES if case == name)
        assert name in found(wrong)
        assert name not in found(dataclasses.replace(wrong, summary=None))
    stopped = next(wrong for case, _, wrong, _ in CASES if case == "stopped improving long ago")
    assert not found(dataclasses.replace(stopped, summary={"stopped": "no better validation accuracy"}))


def test_the_average_is_judged_where_one_is_kept():
    """By what chooses the weights; training is compared with the weights themselves."""
    column = at([0.9] * EVALUATIONS, 5, 0.92)
    run = facts(validation={"ema_accuracy": column, "ema_loss": [0.3] * EVALUATIONS})
    assert set(found(run)) == {"stopped improving long ago"}


def test_the_gravest_comes_first():
    run = facts(
        train={"loss": at(LOSSES, -1, 2.0)},
        validation={"accuracy": at([0.9] * EVALUATIONS, 5, 0.92)},
        shared={("validation", "test"): 7},
    )
    severities = [finding.severity for finding in diagnose(run)]
    assert severities == sorted(severities, key=SEVERITIES.index)
    assert severities[0] == "error"
    assert "note" in severities


# ---- the folder and the command


@pytest.fixture
def folder(tmp_path):
    """The digits run with everything that others write beside it."""
    for file in (RUNS / "digits").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rows = telemetry(at(NORMS, 7, 101.0))
    (tmp_path / "telemetry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')
    columns = "index,identifier,label,prediction,confidence,correct,p0,p1\n"
    lines = [f'{n},"test, {n}",zero,{"one" if n < 9 else "zero"},0.999,{n >= 9},0.001,0.999\n' for n in range(20)]
    (tmp_path / "predictions.csv").write_text(columns + "".join(lines))
    leak = {"num_images": {}, "kinds": {"near_leak": {"title": "nearly the same picture", "count": 2}}, "faults": []}
    (tmp_path / "data_check.json").write_text(json.dumps(leak))
    return tmp_path


def test_the_command_reads_it_all(folder, capsys):
    assert command.main(["diagnose", "--workdir", str(folder), "--json", str(folder / "found.json")], 0.0) == 0
    said = capsys.readouterr().out
    assert "3 found" in said
    assert "9 of 20 predictions of confidence >= 0.99 contradict the label" in said
    assert "test, 0 (zero, predicted one)" in said
    assert "the gradient's norm is 101 at step 351" in said
    assert "jaxcnn.data check found, 2 times: nearly the same picture" in said
    assert "not examined" not in said
    written = json.loads((folder / "found.json").read_text())
    assert [each["name"] for each in written] == ["exploding gradients", "copies between splits", "labels to look at"]
    assert command.main(["diagnose", "--workdir", str(RUNS / "mnist")], 0.0) == 0
    assert "mnist: nothing found" in capsys.readouterr().out


def test_shared_examples_are_found_in_the_runs_splits(folder):
    assert read_facts(epath.Path(folder)).shared == {
        ("train", "validation"): 0,
        ("train", "test"): 0,
        ("validation", "test"): 0,
    }
    with np.load(folder / "splits.npz") as stored:
        splits = dict(stored)
    (test,) = (name for name in splits if name.startswith("test/"))
    (validation,) = (name for name in splits if name.startswith("validation/"))
    numbers = np.union1d(np.cumsum(splits[test]), np.cumsum(splits[validation])[:5])
    np.savez(folder / "splits.npz", **{**splits, test: np.diff(numbers, prepend=0)})
    finding = found(read_facts(epath.Path(folder)))["splits share examples"]
    assert (finding.severity, finding.sentence[:46]) == ("warning", "validation and test share 5 of 360 examples: t")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run given; pass --workdir"),
        (["--workdir", "/nowhere/at/all"], "holds no run"),
        (["--workdir", "x", "y"], "unexpected argument 'y'"),
        (["--workdirr", "x"], "workdirr"),
        (["--workdir", str(RUNS / "digits"), "--json", "/nowhere/at/all"], "--json=/nowhere/at/all cannot be written"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        command.main(["diagnose", *arguments], 0.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("predictions.csv", "index,label\n0,1\n"),
        ("predictions.csv", "identifier,label,prediction,confidence\na,b,c,much\n"),
        ("data_check.json", "{"),
        ("data_check.json", "[1]"),
    ],
)
def test_a_damaged_file_is_named(folder, file, text):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file} is damaged .*; make it anew, or delete it"):
        read_facts(epath.Path(folder))
