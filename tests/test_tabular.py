"""Tables: what is refused and in which words, what is measured on which rows, and the commands on their runs."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TableConfig,
    from_dict,
    to_dict,
)
from jaxcnn.config.choices import TABLES
from jaxcnn.data.records import Source
from jaxcnn.errors import UserError
from jaxcnn.models import MODELS
from jaxcnn.models.make import check_traces
from jaxcnn.models.mlp import MLP
from jaxcnn.results import general
from jaxcnn.run.facts import read_facts
from jaxcnn.run.workdir import read_config
from jaxcnn.tasks.metric import Metrics
from jaxcnn.tasks.tabular import TABULAR, metrics
from jaxcnn.tasks.tabular.source import TableSource, open_source
from jaxcnn.training.build import build
from tests.runs import arrays, assert_same_arrays, changed, train


def table_config(name: str, **changes: Any) -> Config:
    """A tiny MLP, 12 steps of 16 rows; a key `a__b` sets config.a.b."""
    config = Config(
        task="tabular", num_steps=12, batch_size=16, eval_every_epochs=2, log_every_steps=4,
        data=DataConfig(name=name), model=ModelConfig(name="mlp", hidden=(8,)),
        loss=LossConfig(name="cross_entropy"), optimizer=OptimizerConfig(name="adam", learning_rate=0.02),
        checkpoint=CheckpointConfig(every_steps=4, keep_last=8), tensorboard=False, compilation_cache=False,
    )  # fmt: skip
    return changed(config, changes)


def csv_of(folder: Path, text: str, name: str = "table.csv") -> str:
    (folder / name).write_text(text)
    return f"csv:{folder / name}"


def houses(folder: Path, count: int = 60) -> str:
    """Numbers, a column of text, and a price of a million or so."""
    rng = np.random.default_rng(0)
    rows = ["rooms,age,town,price"]
    for number in range(count):
        rooms, age, town = rng.integers(1, 9), rng.uniform(0, 80), "abc"[number % 3]
        rows.append(f"{rooms},{age:.2f},{town},{1e6 + 1e5 * rooms - 1e3 * age + (town == 'a') * 1e5:.1f}")
    return csv_of(folder, "\n".join(rows) + "\n", "houses.csv")


# ---- what is refused


ROWS = "1,2,3.5\n2,3,4.5\n3,4,5.25\n"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty; a table begins with a line that names its columns"),
        ("1,2,3\n4,5,6\n", {}, "begins with numbers (1, 2, 3); its first line must name the columns"),
        ("a,b,y\n", {}, "has a header and no rows"),
        ("a,b,y\n1,2,3\n1,2\n", {}, "line 3, has 2 cells, and the header 3"),
        ("a,a,y\n" + ROWS, {}, "has two columns 'a'"),
        ("a;b;y\n1;2;3\n", {}, "has its cells between ';'; save it with commas"),
        ("a,b,y\n" + ROWS, {"target": "yy"}, "table.target='yy': {name} has no such column; did you mean 'y'?"),
        ("a,b,y\n" + ROWS, {"drop": ("c",)}, "table.drop='c': {name} has no such column"),
        ("a,b,y\n" + ROWS, {"drop": ("y",), "target": "y"}, "table.drop names 'y', which is the target"),
        ("a,b,y\n" + ROWS, {"drop": ("a", "b")}, "has no column beside the target 'y' to learn from"),
        ("a,b,y\n1,2,3.5\n1,two,4.5\n", {}, "has text in 'b' ('two', line 3)"),
        ("a,b,y\n1,2,3.5\n1,1_0,4.5\n", {}, "has text in 'b' ('1_0', line 3)"),
        ("a,b,y\n1,2,3.5\n1,inf,4.5\n", {}, "line 3, column 'b': 'inf' is not finite, or beyond 1e+18"),
        ("a,b,y\n1,2,3.5\n1,1e30,4.5\n", {}, "line 3, column 'b': '1e30' is not finite"),
        ("a,b,y\n1,2,3.5\n1,NaN,4.5\n", {}, "line 3, column 'b' is empty (1 empty cells in 'b')"),
        ("a,b,y\n1,2,\n1,3,4.5\n", {"missing": "mean"}, "line 2, column 'y' is empty"),
        ("a,b,y\n1,,1\n,3,4.5\n", {"missing": "drop"}, "every row has empty cells"),
        ("a,b,y\n1,2,5\n2,3,5\n", {}, "the target 'y' is 5 in all 2 rows: there is nothing to learn"),
        ("a,b,y\n1,2,x\n2,3,x\n", {}, "the target 'y' is x in all 2 rows"),
        ("a,b,y\n1,2,x\n2,3,z\n", {"kind": "regression"}, "the target 'y' is text ('x', line 2)"),
        (
            "a,y\n" + "".join(f"{n},{n}.5\n" for n in range(50)), {"kind": "classification"},
            "the target 'y' has 50 values in 50 rows, which are no classes; set table.kind=regression",
        ),
        ('a,b,y\n1,"2,3\n', {}, "is no CSV"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line(tmp_path, text, options, message):
    name = csv_of(tmp_path, text)
    config = Config(task="tabular", data=DataConfig(name=name), table=TableConfig(**options))
    with pytest.raises(UserError) as error:
        open_source(config)
    assert message.format(name=name) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_bytes_and_large_files_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "latin.csv").write_bytes("a,b\n1,\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match="is no text in UTF-8"):
        open_source(Config(task="tabular", data=DataConfig(name=f"csv:{tmp_path / 'latin.csv'}")))
    monkeypatch.setattr("jaxcnn.tasks.tabular.table.LARGEST_FILE", 10)
    with pytest.raises(UserError, match="too large for a table"):
        open_source(Config(task="tabular", data=DataConfig(name=csv_of(tmp_path, "a,b,y\n" + ROWS))))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("irs", "is no known table: did you mean 'iris'?"),
        ("iris:3", "is no known table"),
        ("houses.csv", "did you mean csv:houses.csv?"),
        ("csv:nowhere.csv", "there is no 'nowhere.csv'"),
        ("digits", "is no known table"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(UserError) as error:
        open_source(Config(task="tabular", data=DataConfig(name=name)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment__flip": True}, "augment.flip=True is read by task=classification, multilabel, segmentation only"),
        ({"eval_tta": "flip"}, "eval_tta=flip is read by task=classification, multilabel, segmentation only"),
        ({"data__image_size": 8}, "data.image_size=8 is read by task=classification, multilabel, segmentation only"),
        ({"task": "classification", "table__encode": True}, "table.encode=True is read by task=tabular only"),
        ({"loss__huber_delta": 2.0}, "loss.huber_delta=2.0 is read by loss.name=huber only"),
    ],
)
def test_options_of_another_task_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        table_config("iris", **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "diabetes",
            {},
            "loss.name=cross_entropy is for classes and pixels, and the target 'target' is of numbers; "
            "set loss.name=mse, or one of: mae, huber; or, to learn each value as a class, table.kind=classification",
        ),
        ("diabetes", {"loss__name": "mse", "data__sampling": "balanced"}, "data.sampling=balanced is for classes"),
        ("diabetes", {"loss__name": "mse", "checkpoint__best_metric": "accuracy"}, "not measured with a number"),
        ("iris", {"checkpoint__best_metric": "rmse"}, "is not measured with 3 classes"),
        ("iris", {"model__name": "cnn", "model__hidden": None}, "is for images [height, width, channels]"),
        ("iris", {"model__name": "cnn"}, "model.hidden=(8,): cnn has no such option"),
    ],
)
def test_what_does_not_suit_a_table_is_one_line(name, changes, message):
    with pytest.raises(UserError) as error:
        build(table_config(name, **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lenet5", "cnn", "resnet20", "vgg11", "vit_ti_16", "mixer_s32", "densenet121"])
def test_every_kind_of_model_for_images_refuses_a_table(name):
    with pytest.raises(UserError, match=r"an example here has the shape \(4,\); set model.name=mlp"):
        check_traces(MODELS[name](num_classes=3), jax.ShapeDtypeStruct((4,), jnp.float32), one_alone=False)


# ---- what is read


def test_columns_are_encoded_by_trains_values(tmp_path):
    source = open_source(table_config(houses(tmp_path), table__encode=True, loss__name="mse"))
    assert source.layout.columns[2].values == ("a", "b", "c")
    assert (source.layout.width, source.class_names, source.image_shape) == (5, (), None)
    assert source.words() == "3 columns (5 inputs), target price"
    lines = ["x,kind,y", *(f"{n},{'only' if n == 0 else 'other'},{n % 2}" for n in range(30))]
    name = csv_of(tmp_path, "\n".join(lines))
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("line:2\n")
    source = open_source(table_config(name, table__encode=True, data__exclude=str(exclude)))
    assert source.layout.columns[1].values == ("other",)  # what train has not is unknown
    assert source.num_excluded == 1
    assert TABULAR.finish is not None
    prepare = TABULAR.finish(Config(task="tabular"), _facts(source)).task.prepare(_facts(source))
    inputs, _ = prepare(None, None, {"features": jnp.array([[0.0, -1.0], [0.0, 0.0]])})
    np.testing.assert_array_equal(inputs[:, 1], [0, 1])


def _facts(source: Source) -> dict[str, Any]:
    data = source.facts()
    count = len(data["table"]["columns"])
    return {**data, "mean": [0.0] * count, "std": [1.0] * count}


def test_missing_cells_are_dropped_or_filled_with_trains_mean(tmp_path):
    rows = [f"{'' if n % 7 == 0 else n},{n * n},{n + 0.5}" for n in range(70)]
    name, told = csv_of(tmp_path, "\n".join(["a,b,y", *rows])), []
    tell = lambda *what: told.append(what[0])
    dropped = open_source(table_config(name, table__missing="drop", loss__name="mse"), progress=tell)
    assert sum(map(len, dropped.splits.values())) == 60
    assert told == [f"{name}: 10 of 70 rows are left out: 10 empty cells in 'a' (table.missing=drop)"]
    run, feed = build(table_config(name, table__missing="mean", loss__name="mse"))
    batch = feed.examples(40)
    inputs, _ = run.learning.prepare(None, None, jax.device_put(batch))
    assert (np.asarray(inputs[:, 0])[np.isnan(batch["features"][:, 0])] == 0).all()
    assert np.isfinite(inputs).all()


def test_statistics_are_of_train_alone(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.normal(5, 3, 100)
    name = csv_of(tmp_path, "\n".join(["x,c,y", *(f"{v},7,{2 * v + 100}" for v in values)]))
    run, _ = build(table_config(name, loss__name="mse", data__fold="2/5"))
    train = run.source.splits["train"].indices
    assert len(train) == 72
    np.testing.assert_allclose(run.facts["mean"][0], values[train].mean(), rtol=1e-6)
    np.testing.assert_allclose(run.facts["std"][0], values[train].std(), rtol=1e-6)
    assert run.facts["std"][1] == 1  # a constant
    np.testing.assert_allclose(run.facts["target"]["std"], 2 * values[train].std(), rtol=1e-6)
    assert abs(run.facts["mean"][0] - values.mean()) > 1e-3  # of all rows it would be another


def test_folds_are_disjoint_stratified_and_cover(tmp_path):
    validation = []
    for fold in range(1, 6):
        source = open_source(table_config("iris", data__fold=f"{fold}/5"))
        assert source.class_counts is not None
        assert set(source.class_counts["validation"].values()) == {9}
        assert not set(source.splits["validation"].indices) & set(source.splits["train"].indices)
        validation += source.splits["validation"].indices.tolist()
    assert len(validation) == len(set(validation)) == 135
    sliced = open_source(table_config("iris", data__train_split="train[:50%]"))  # iris stands class by class
    assert sliced.class_counts is not None
    assert set(sliced.class_counts["train"]) == {"setosa", "versicolor", "virginica"}
    assert min(sliced.class_counts["train"].values()) > 15


def test_kinds_of_targets(tmp_path):
    whole = csv_of(tmp_path, "\n".join(["x,y", *(f"{n},{n % 3}" for n in range(30))]))
    assert open_source(table_config(whole)).class_names == ("0", "1", "2")
    assert open_source(table_config(whole, table__kind="regression", loss__name="mse")).class_names == ()
    assert open_source(table_config(whole, table__target="x", loss__name="mse")).class_names == ()
    drawn = [
        open_source(table_config("make_regression", data__split_seed=seed, loss__name="mse")) for seed in (0, 0, 1)
    ]
    assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint


def test_a_changed_file_is_other_data(tmp_path):
    name = houses(tmp_path)
    config = table_config(name, table__encode=True, loss__name="mse")
    kept = open_source(config).record_numbers
    open_source(config, kept=kept)
    file = Path(name.removeprefix("csv:"))
    file.write_text(file.read_text().replace(",a,", ",c,", 1))
    with pytest.raises(UserError, match="the data are not those"):
        open_source(config, kept=kept)


@pytest.mark.parametrize("name", [name for name, choice in TABLES.items() if not choice.takes])
def test_bundled_tables_open(name):
    loss = "mse" if name in ("diabetes", "make_regression") else "cross_entropy"
    source = open_source(table_config(name, loss__name=loss))
    assert isinstance(source, TableSource)
    assert bool(source.class_names) == (loss == "cross_entropy")


# ---- numbers


def test_metrics_equal_scikit_learns():
    from sklearn import metrics as theirs

    rng = np.random.default_rng(2)
    value, outputs = rng.normal(size=200), rng.normal(size=(200, 1))
    targets = {"value": jnp.float32(value), "unit": jnp.full(200, 50.0)}
    own = Metrics(metrics.metrics_for("price"))
    values = own.of_examples(jnp.float32(outputs), targets, jnp.zeros(200))
    found = {name: general.finished_mean(own.by_name[name], np.asarray(each)) for name, each in values.items()}
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(50 * value, 50 * outputs[:, 0]), rel=1e-5)
    assert found["rmse"] == pytest.approx(theirs.root_mean_squared_error(50 * value, 50 * outputs[:, 0]), rel=1e-5)
    assert found["r2"] == pytest.approx(theirs.r2_score(value, outputs[:, 0]), rel=1e-5)
    same = {"value": jnp.ones(9), "unit": jnp.ones(9)}
    constant = own.of_examples(jnp.zeros((9, 1)), same, jnp.zeros(9))["r2"]
    assert general.finished_mean(own.by_name["r2"], np.asarray(constant)) == 0  # as theirs
    assert not own.by_name["rmse"].higher_is_better
    assert own.by_name["r2"].higher_is_better


def test_intervals_are_those_of_means():
    rng = np.random.default_rng(3)
    errors = rng.normal(size=400)
    own = Metrics(metrics.metrics_for("y"))
    targets = {"value": jnp.zeros(400), "unit": jnp.ones(400)}
    values = jax.device_get(own.of_examples(jnp.float32(errors[:, None]), targets, jnp.float32(errors**2)))
    low, high = general.bootstrap(own, values, resamples=500, level=0.95, seed=0)["mae"]
    mean, error = np.abs(errors).mean(), np.abs(errors).std() / 20
    assert low == pytest.approx(mean - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.3 * error)


def test_huber_is_half_the_square_and_then_linear():
    from jaxcnn.tasks.classification.losses import huber

    found = huber(jnp.array([[0.5], [3.0]]), jnp.zeros((2, 1)), LossConfig(name="huber"))
    np.testing.assert_allclose(found, [0.125, 2.5])


def test_an_mlps_tree_is_as_before_unless_it_has_norms():
    tree = lambda **options: jax.eval_shape(
        lambda: MLP(num_classes=3, hidden=(8,), **options).init(jax.random.key(0), jnp.zeros((1, 4)), train=False)
    )
    assert {name: set(layer) for name, layer in tree()["params"].items()} == {
        "dense1": {"kernel", "bias"},
        "head": {"kernel", "bias"},
    }
    run, _ = build(table_config("iris", model__norm="batch", model__dropout_rate=0.1))
    assert set(run.abstract_state().params["norm1"]) == {"scale", "bias"}
    assert set(run.abstract_state().params["dense1"]) == {"kernel"}


# ---- configs and folders of before


def test_configs_of_before_load():
    old = to_dict(Config())
    del old["table"], old["model"]["hidden"], old["loss"]["huber_delta"]
    assert from_dict(old) == Config()


# ---- runs


@pytest.fixture(scope="module")
def price_run(tmp_path_factory) -> Path:
    """A regression that has finished."""
    folder = tmp_path_factory.mktemp("prices")
    config = table_config(
        houses(folder), table__encode=True, loss__name="huber", num_steps=60, optimizer__ema_decay=0.9,
        checkpoint__every_steps=20, early_stop__patience_evaluations=50,
    )  # fmt: skip
    train(config, folder / "run")
    return folder


def test_a_regression_is_evaluated_in_its_own_unit(price_run, monkeypatch, capsys):
    from sklearn.metrics import root_mean_squared_error

    from jaxcnn import evaluate

    workdir = price_run / "run"
    assert evaluate.main(["evaluate", "--workdir", str(workdir), "--resamples=50"], 0.0) == 0
    said = json.loads((workdir / "evaluation.json").read_text())
    rows = [line.split(",") for line in (workdir / "predictions.csv").read_text().splitlines()]
    assert rows[0] == ["index", "identifier", "label", "prediction", "error"]
    labels, predicted = (np.array([float(row[place]) for row in rows[1:]]) for place in (2, 3))
    prices = [float(line.split(",")[3]) for line in (price_run / "houses.csv").read_text().splitlines()[1:]]
    numbers = [int(row[1].removeprefix("line:")) - 2 for row in rows[1:]]
    np.testing.assert_allclose(labels, np.array(prices)[numbers], rtol=1e-6)
    assert said["scores"]["rmse"] == pytest.approx(root_mean_squared_error(labels, predicted), rel=1e-4)
    low, high = said["intervals"]["rmse"]
    assert low < said["scores"]["rmse"] < high
    assert said["scores"]["r2"] > 0.3
    assert (said["num_examples"], said["units"]["rmse"]) == (6, "price")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rmse"] == said["scores"]["rmse"]
    assert read_facts(_epath(workdir)).predictions is None  # no classes to collapse


def _epath(path: Path) -> Any:
    from etils import epath

    return epath.Path(path)


def test_a_regression_predicts_a_file(price_run, capsys):
    from jaxcnn import predict

    file, out = price_run / "new.csv", price_run / "out.csv"
    file.write_text("extra,town,age,rooms\nx,a,10,3\nx,unknown,10,3\nx,a,ten,3\nx,a,10\nx,a,,3\nx,b,40,8\n")
    argv = ["predict", "--workdir", str(price_run / "run"), str(file), "--csv", str(out)]
    assert predict.main(argv, 0.0) == 1
    lines = out.read_text().splitlines()
    assert lines[0] == "line,prediction"
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "3", "7"]
    assert all(5e5 < float(line.split(",")[1]) < 3e6 for line in lines[1:])
    said = capsys.readouterr().err
    assert f"{file}, line 4: column 'age': 'ten' is no number" in said
    assert f"{file}, line 5: it has 3 cells, and the header 4" in said
    assert f"{file}, line 6: column 'age' is empty" in said
    for option in ("--tta=flip", "--explain=there", "--target=a"):
        with pytest.raises(UserError, match="is for classes of images"):
            predict.main(["predict", "--workdir", str(price_run / "run"), str(file), option], 0.0)
    file.write_text("town,rooms\na,3\n")
    with pytest.raises(UserError, match="has no column 'age'; one of"):
        predict.main(argv, 0.0)


def test_a_regression_is_diagnosed_and_reported(price_run):
    from jaxcnn import diagnose, load
    from jaxcnn.report import __main__ as report

    workdir = str(price_run / "run")
    assert diagnose.main(["diagnose", "--workdir", workdir, "--json", str(price_run / "found.json")], 0.0) == 0
    found = json.loads((price_run / "found.json").read_text())
    assert "nothing measures the accuracy of classes in this run" in [each["sentence"] for each in found]
    assert report.main(["report", "--workdir", workdir, "--output", str(price_run / "page")], 0.0) == 0
    page = (price_run / "page" / "report.html").read_text()
    assert "validation rmse so far" in page
    assert "Lower is better" in page
    assert "could not be made" not in page.lower()
    with pytest.raises(UserError, match="holds a run of task=tabular, which is not of single classes of images"):
        load(workdir)


def test_what_evaluate_cannot_do_is_one_line(price_run, tmp_path):
    from jaxcnn import evaluate

    (tmp_path / "config.json").write_bytes((price_run / "run" / "config.json").read_bytes())
    for option in ("--tta=flip", "--data=csv:other.csv", "--step=20,40", f"--workdir={tmp_path}"):
        with pytest.raises(UserError, match="a run of task=tabular is evaluated alone"):
            evaluate.main(["evaluate", "--workdir", str(price_run / "run"), option], 0.0)
    with pytest.raises(UserError, match="--calibrate: a run of task=tabular has nothing that is fitted on validation"):
        evaluate.main(["evaluate", "--workdir", str(price_run / "run"), "--calibrate"], 0.0)


def test_a_folder_whose_columns_do_not_fit_is_refused(price_run, tmp_path):
    saved = json.loads((price_run / "run" / "config.json").read_text())
    for change, message in (
        ({"mean": [0.0]}, "mean and std have 1 and 3 values for 3 columns"),
        ({"table": {"target": "price", "columns": []}}, "for 0 columns"),
        ({"std": [0.0, 1.0, 1.0]}, "std"),
        ({"target": {"mean": 0.0, "std": 0.0}}, "target.std"),
    ):
        broken = {**saved, "data": {**saved["data"], **change}}
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(UserError) as error:
            read_config(_epath(tmp_path))
        assert message in str(error.value)


@pytest.mark.slow
def test_streamed_and_resident_learn_alike_and_a_run_goes_on(tmp_path):
    """Four devices, too: bit for bit on the same, to rounding on others."""
    config = table_config("iris", model__dropout_rate=0.1, num_devices=1)
    train(config, tmp_path / "whole")
    streamed = table_config("iris", model__dropout_rate=0.1, num_devices=1, data__resident=False)
    train(streamed, tmp_path / "streamed")
    assert_same_arrays(arrays(tmp_path / "whole", config), arrays(tmp_path / "streamed", streamed))
    import shutil

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(step))
    train(config, tmp_path / "resumed")
    assert_same_arrays(arrays(tmp_path / "whole", config), arrays(tmp_path / "resumed", config))
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "resumed" / "metrics.jsonl").read_bytes()
    four = table_config("iris", model__dropout_rate=0.1, num_devices=4, parallel="pmap")
    train(four, tmp_path / "four")
    one, other = (
        arrays(tmp_path / name, each)["state/params/head/kernel"] for name, each in (("whole", config), ("four", four))
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
