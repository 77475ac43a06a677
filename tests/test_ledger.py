"""The ledger: rows of finished runs, the tables that are written from them, and a check that trains anew."""

import ast
import json
import math
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl import flags
from etils import epath
from scipy import stats

from jaxcnn import ledger as command
from jaxcnn.ablation import ledger
from jaxcnn.ablation.study import Study, write_plan
from jaxcnn.config.command_line import load_config
from jaxcnn.files import to_json
from jaxcnn.train import Order, train
from tests.commands import ROOT, run_here
from tests.runs import small_config

LEDGER = epath.Path(ROOT) / command.LEDGER
SHORT = ["--config.num_steps=20", "--config.model.name=tiny", "--config.tensorboard=false", "--config.num_devices=1",
         "--config.eval_every_epochs=10"]  # fmt: skip
ADD = ["--hardware=a machine"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A short run of the digits, and two of which the folders say that they differ in their seed alone."""
    assert small_config().model.name == "tiny"
    folder = tmp_path_factory.mktemp("runs")
    argv = ["main", f"--config={ROOT}/experiments/digits.py", *SHORT, "--config.seed=0"]
    config, experiment = load_config(argv, flag_values=flags.FlagValues())
    first = folder / "seed-0"
    summary = train(Order(config, experiment, epath.Path(first)), start=0.0)
    score = summary["splits"]["test"]["accuracy"]
    others = []
    for seed in (1, 2):
        other = altered(first, folder / f"seed-{seed}", "config.json", "config.seed", seed)
        change(other / "summary.json", "splits.test.accuracy", score + seed / 360)
        others.append(other)
    return [first, *others]


@pytest.fixture
def root(tmp_path) -> Path:
    """A project's folder with a ledger of one row of before, and its pages."""
    folder = tmp_path / "project"
    (folder / "docs").mkdir(parents=True)
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    write(folder, [before()])
    for page in command.PAGES:
        (folder / page).write_text("# Page\n\n<!-- results -->\n<!-- /results -->\n\nMore.\n")
    return folder


def altered(run: Path, folder: Path, file: str, path: str, value) -> Path:
    """A copy of a run of which one thing that a file says is another."""
    shutil.copytree(run, folder)
    change(folder / file, path, value)
    return folder


def change(file: Path, path: str, value) -> None:
    content = json.loads(file.read_text())
    *groups, leaf = path.split(".")
    node = content
    for each in groups:
        node = node[each]
    node[leaf] = value
    file.write_text(to_json(content))


def before(**changes) -> ledger.Row:
    row = {
        "name": "old", "experiment": "cifar10-resnet18", "overrides": {"num_epochs": 3.0}, "config_digest": None,
        "data": {"name": "tfds:cifar10", "fingerprint": None, "words": "CIFAR-10"}, "metric": "accuracy",
        "split": "test", "seeds": None, "scores": None, "n": 3, "mean": 0.8922, "std": 0.0019,
        "interval": ledger.interval_of(0.8922, 0.0019, 3), "train_seconds": [1560.0], "versions": {},
        "hardware": "a machine", "commit": None, "date": None, "from": ledger.BEFORE,
    } | changes  # fmt: skip
    return {"command": ledger.command_of(row["experiment"], row["overrides"]), **row}


def write(root: Path, rows: list[ledger.Row]) -> None:
    ledger.write_rows(epath.Path(root) / command.LEDGER, rows)


def read(root: Path) -> list[ledger.Row]:
    return ledger.read_rows(epath.Path(root) / command.LEDGER)


def call(root: Path, *arguments: object) -> tuple[int, str, str]:
    return run_here(f"--root={root}", *arguments, module="ledger")


# ---- the project's own


def test_the_pages_are_written_from_the_ledger():
    rows = ledger.read_rows(LEDGER)
    assert len(rows) >= 5
    for page, columns in command.PAGES.items():
        text = (ROOT / page).read_text()
        assert command.filled(text, rows, columns) == text, f"python -m jaxcnn.ledger --write, for {page}"


def test_each_row_has_a_command_that_is_taken_and_its_figure_in_the_experiment():
    for row in ledger.read_rows(LEDGER):
        config = ledger.config_of(epath.Path(ROOT), row["command"])
        assert config.data.name == row["data"]["name"]
        path = ROOT / row["command"][1].partition(":")[0]
        words = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        assert ledger.result_words(row) in words, f"{path.name} does not say {ledger.result_words(row)}"


# ---- adding


def test_runs_become_a_row(root, runs):
    code, output, errors = call(root, "--add", "short", runs[1], runs[0], runs[2], "--words=digits", *ADD, "--write")
    assert (code, errors) == (0, "")
    old, row = read(root)
    assert old == before()
    scores = [json.loads((each / "summary.json").read_text())["splits"]["test"]["accuracy"] for each in runs]
    assert (row["seeds"], row["scores"], row["n"]) == ([0, 1, 2], scores, 3)
    assert row["mean"] == pytest.approx(np.mean(scores))
    assert row["std"] == pytest.approx(np.std(scores, ddof=1))
    assert row["interval"] == pytest.approx(stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores)))
    assert row["command"] == [
        "--config", "experiments/digits.py", "--config.num_steps=20", "--config.eval_every_epochs=10",
        "--config.model.name=tiny",
    ]  # fmt: skip
    saved = json.loads((runs[0] / "config.json").read_text())
    assert row["data"] == {"name": "digits", "fingerprint": saved["data"]["fingerprint"], "words": "digits"}
    assert row["versions"]["jax"]
    assert row["commit"] is None, "outside of a checkout"
    config = ledger.config_of(epath.Path(root), row["command"], "--config.seed=7")
    assert ledger.digest_of(config) == row["config_digest"], "of another seed the same"
    assert ledger.digest_of(ledger.config_of(epath.Path(root), row["command"][:-1])) != row["config_digest"]
    page = (root / "README.md").read_text()
    assert page.startswith("# Page\n\n<!-- results -->\n| command |")
    assert page.endswith("<!-- /results -->\n\nMore.\n")
    assert f"| digits | 3 | {ledger.result_words(row)} |" in page
    assert "short" in output


def test_a_row_is_renewed_and_keeps_its_place_and_its_words(root, runs):
    call(root, "--add", "short", *runs, "--words=the digits", *ADD)
    write(root, list(reversed(read(root))))
    code, _, errors = call(root, "--add", "short", *runs[:2], "--metric=loss", "--split=validation")
    assert (code, errors) == (0, "")
    row, old = read(root)
    assert (row["name"], row["n"], row["data"]["words"], row["hardware"]) == ("short", 2, "the digits", "a machine")
    assert (row["metric"], row["split"], old["name"]) == ("loss", "validation", "old")
    assert ledger.COLUMNS["test accuracy"](row).endswith(" (loss, validation)")


def test_a_variant_of_a_study_becomes_a_row(root, runs, tmp_path):
    study, folder = (
        Study(small_config(), {"base": {}, "slow": {"batch_size": 8}}, (0, 1, 2), metric="loss"),
        tmp_path / "s",
    )
    write_plan(epath.Path(folder), study, experiment="digits")
    for seed, run in enumerate(runs):
        shutil.copytree(run, folder / "runs" / "base" / f"seed-{seed}")
    code, _, errors = call(root, "--add", "base", f"{folder}:base", *ADD)
    assert (code, errors) == (0, "")
    assert (read(root)[1]["metric"], read(root)[1]["n"]) == ("loss", 3)
    code, _, errors = call(root, "--add", "base", f"{folder}:bas", *ADD)
    assert code == 2
    assert "did you mean 'base'" in errors
    assert call(root, "--add", "base", f"{folder}:slow", *ADD)[0] == 2, "has not run"


@pytest.mark.parametrize(
    ("file", "path", "value", "words"),
    [
        ("config.json", "config.batch_size", 32, "batch_size (64 -> 32)"),
        ("config.json", "config.seed", 0, "seed 0 is there twice"),
        ("config.json", "data.fingerprint", "0123", "the data"),
        ("config.json", "experiment", "mnist", "the experiment"),
        ("config.json", "teacher", {"sha256": "0"}, "the teacher"),
        ("summary.json", "versions.jax", "0.0.1", "the versions"),
        ("summary.json", "status", "failed", "has not finished"),
        ("summary.json", "splits.test", {"num_examples": 360, "loss": 1.0}, "has no 'accuracy' on test"),
        ("summary.json", "splits.test.accuracy", None, "is not finite"),
        ("summary.json", "splits", {}, "was not measured on 'test'"),
    ],
)
def test_runs_that_are_not_alike_are_no_row(root, runs, tmp_path, file, path, value, words):
    other = altered(runs[1], tmp_path / "other", file, path, value)
    code, _, errors = call(root, "--add", "short", runs[0], other, *ADD)
    assert (code, errors.count("\n")) == (2, 1)
    assert words in errors
    assert read(root) == [before()], "nothing is written"


def test_an_experiment_that_is_none_of_the_project_is_named(root, runs, tmp_path):
    mine = [altered(run, tmp_path / run.name, "config.json", "experiment", "mine") for run in runs]
    code, _, errors = call(root, "--add", "short", *mine, *ADD)
    assert (code, errors.count("\n")) == (2, 1)
    assert "mine.py' does not exist" in errors
    assert call(root, "--add", "short", *mine, *ADD, "--experiment=digits")[0] == 0


# ---- wrong commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--add=x"], "has no runs"),
        (["--add=x", "NONE"], "holds no run"),
        (["--add=a|b", "NONE"], "can be no row's name"),
        (["--add=x", "NONE:base"], "holds no run"),
        (["--add=x", "RUN"], "pass --hardware"),
        (["--add=x", "RUN", "--check=old"], "two commands"),
        (["--add=x", "RUN", "--seeds=3"], "--seeds is read with --check alone"),
        (["--add=x", "RUN", "--metric=accurracy"], "did you mean 'accuracy'"),
        (["--add=x", "RUN", "--split=tset"], "did you mean 'test'"),
        (["--add=x", "RUN", "--experiment=../digits"], "names no experiment"),
        (["--check=odl"], "did you mean 'old'"),
        (["--check=single"], "is of one run"),
        (["--check=old", "--seeds=0"], "in the range [1, 1000]"),
        (["--check=old", "--write"], "--write is read with --add alone"),
        (["--hardware=x"], "--hardware is read with --add alone"),
        (["stray"], "unexpected argument 'stray'"),
        (["--root=NONE"], "pass --root"),
        (["--wrte"], "wrte"),
    ],
)
def test_a_wrong_command_is_one_line(root, runs, tmp_path, arguments, words):
    write(root, [before(), before(name="single", n=1, std=None, interval=None)])
    held = (root / command.LEDGER).read_bytes()
    named = [each.replace("NONE", str(tmp_path / "none")).replace("RUN", str(runs[0])) for each in arguments]
    code, output, errors = call(root, *named)
    assert (code, errors.count("\n"), output) == (2, 1, "")
    assert words in errors
    assert (root / command.LEDGER).read_bytes() == held


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": 0.95}, "interval"),
        ({"from": ""}, "not one seed and one score"),
        ({"scores": [0.9, 0.9, 0.9], "seeds": [0, 0, 1]}, "not one seed and one score"),
        ({"scores": [0.9, 0.9, 0.9], "seeds": [0, 1, 2]}, "mean"),
        ({"std": None}, "standard deviation"),
        ({"command": ["--config", "/tmp/evil.py"]}, "is not that of its experiment"),
        ({"experiment": "../evil"}, "names no experiment"),
        ({"mean": math.inf}, "mean"),
        ({"std": 1e300}, "std"),
        ({"n": 2.5}, "n is 2.5"),
        ({"train_seconds": []}, "no training time"),
        ({"hardware": None}, "hardware"),
    ],
)
def test_a_row_that_a_hand_has_changed_is_refused(root, changes, words):
    (root / command.LEDGER).write_text(json.dumps({"rows": [{**before(), **changes}]}))
    code, _, errors = call(root)
    assert (code, errors.count("\n")) == (2, 1)
    assert "is no ledger" in errors
    assert words in errors


def test_pages_without_markers_are_left_alone(root, runs):
    (root / "docs" / "results.md").write_text("# Page\n")
    code, _, errors = call(root, "--add", "short", *runs, *ADD, "--write")
    assert (code, errors.count("\n")) == (2, 1)
    assert "results.md takes no table: it has 0 pairs" in errors
    assert read(root) == [before()]
    assert "| command |" not in (root / "README.md").read_text()


def test_what_a_row_says_stays_in_its_cell(root):
    row = before(data={"name": "x", "fingerprint": None, "words": "a|b\n| c \x1b[2J"}, hardware="<!-- /results -->")
    text = ledger.markdown([row], tuple(ledger.COLUMNS))
    assert text.count("\n") == 3
    assert r"a\|b \| c \x1b[2J" in text
    assert "<!--" not in text


@pytest.mark.parametrize(
    ("mean", "std", "metric", "words"),
    [
        (0.99537, 0.00161, "accuracy", "99.54 ± 0.16 %"),
        (0.568, 0.054, "accuracy", "56.8 ± 5.4 %"),
        (0.741, None, "accuracy", "74.1 %"),
        (0.99, 0.0, "accuracy", "99 ± 0 %"),
        (59.16, 4.84, "rmse", "59.2 ± 4.8"),
        (1234.5, 321.0, "rmse", "1234 ± 321"),
        (0.5, 1e-12, "loss", "0.500000 ± 0.000000"),
    ],
)
def test_a_figure_has_the_digits_that_its_spread_leaves(mean, std, metric, words):
    assert ledger.result_words(before(mean=mean, std=std, metric=metric)) == words


# ---- checking


def test_a_check_trains_anew_and_says_whether_the_row_holds(root, runs, tmp_path):
    """The same folder again goes on with what is there."""
    call(root, "--add", "short", *runs, *ADD)
    row, kept = read(root)[1], tmp_path / "kept"
    check = ("--check=short", "--seeds=1", f"--workdir={kept}")
    write(root, [{**row, **ledger.statistics_of([0.0, 0.5, 1.0])}])  # which any run lies in
    code, output, errors = call(root, *check)
    assert (code, errors) == (0, "")
    assert "it is inside" in output
    assert [each.name for each in kept.iterdir()] == ["seed-3"]
    config = json.loads((kept / "seed-3" / "config.json").read_text())["config"]
    assert (config["seed"], config["num_steps"], config["model"]["name"]) == (3, 20, "tiny")
    written = (kept / "seed-3" / "metrics.jsonl").stat().st_mtime_ns
    write(root, [{**row, **ledger.statistics_of([2.0, 2.001, 2.002])}])  # which none does
    code, _, errors = call(root, *check)
    assert (code, errors.count("\n")) == (1, 1)
    assert "it is outside" in errors
    write(root, [{**row, "data": {**row["data"], "fingerprint": "0123"}}])
    code, _, errors = call(root, *check)
    assert (code, errors.count("\n")) == (2, 1)
    assert "the data of short here are not those of the row" in errors
    assert (kept / "seed-3" / "metrics.jsonl").stat().st_mtime_ns == written


def test_a_check_without_a_folder_keeps_nothing(root, runs):
    call(root, "--add", "short", *runs, *ADD)
    seen = []

    def score(row, root, seed, workdir):
        seen.append(workdir)
        workdir.mkdir(parents=True)
        return row["mean"]

    with mock.patch.object(command, "_score", score):
        assert call(root, "--check=short", "--seeds=1")[0] == 0
    assert [each.name for each in seen] == ["seed-3"]
    assert not seen[0].exists()


def test_a_changed_experiment_is_told(root, runs):
    call(root, "--add", "short", *runs, *ADD)
    write(root, [{**row, "config_digest": "0123"} for row in read(root)[1:]])
    with mock.patch.object(command, "_score", lambda row, *_: row["mean"]):
        assert "no longer that of the row" in call(root, "--check=short")[1]


def test_the_prediction_interval_holds_as_often_as_it_says():
    """Of normal scores: the mean of 2 new ones lies within, given 4 old ones, in 95 of 100 cases."""
    generator, inside, trials = np.random.default_rng(0), 0, 4000
    for _ in range(trials):
        low, high = ledger.expected(before(**ledger.statistics_of(list(generator.normal(0.9, 0.01, 4)))), 2)
        inside += low <= generator.normal(0.9, 0.01, 2).mean() <= high
    assert abs(inside / trials - 0.95) < 0.012  # 3.5 standard errors


def test_new_seeds_are_none_of_the_rows():
    assert ledger.new_seeds(before(seeds=[0, 7]), 2) == [8, 9]
    assert ledger.new_seeds(before(), 2) == [1000, 1001]
