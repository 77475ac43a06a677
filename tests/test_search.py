"""Searches: spaces and what is refused of them; trials by one process and by several, pruned, killed, gone on with."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from etils import epath

from jaxcnn.ablation.search import (
    ALL_FAILED,
    JOURNAL,
    PRUNED,
    Goal,
    Search,
    Searching,
    check_pruner,
    claim,
    open_study,
    run_quietly,
)
from jaxcnn.ablation.search_results import experiment_text, found_by
from jaxcnn.ablation.space import Space, parse_space
from jaxcnn.config import Config, OptimizerConfig, from_dict, to_dict
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import RunError, UserError, WriteError
from tests.commands import ROOT, environment, run_here
from tests.runs import arrays, assert_same_arrays, rows, small_config, train

pytest.importorskip("optuna")

ACCURACY = Goal("accuracy", higher_is_better=True, evaluations=4)
LEARNING_RATE = "optimizer.learning_rate=log:1e-4:1"


def space(*texts: str, **changes: Any) -> Space:
    return parse_space(texts or (LEARNING_RATE,), small_config(**{"measure_test": False, **changes}))


def value_of(config: Config) -> float:
    """Best, 1, where the rate is 0.01."""
    return 1 - abs(math.log10(config.optimizer.learning_rate) + 2) / 4


def faked(order: Any, after_evaluation: Any) -> dict[str, Any]:
    """A run that learns at once, or is stopped."""
    for number in range(1, ACCURACY.evaluations + 1):
        stopped = after_evaluation(number, value_of(order.config))
        if stopped and number < ACCURACY.evaluations:
            return {"stopped": stopped, "splits": {"validation": {"accuracy": value_of(order.config)}}}
    return {"splits": {"validation": {"accuracy": value_of(order.config)}}}


def searching(folder: Path, search: Search, total: int, **options: Any) -> Searching:
    path = epath.Path(folder)
    claim(path, search, ACCURACY)
    return Searching(
        path, search, ACCURACY, total, open_study(path, search, ACCURACY), **{"run": faked, "say": print, **options}
    )


def searched(folder: Path, search: Search, total: int, **options: Any) -> Searching:
    going = searching(folder, search, total, **options)
    going.go_on()
    return going


# ---- spaces


def test_kinds_of_a_space():
    found = space(
        "batch_size=log:16:64",
        "model.dropout_rate=0:0.5:0.25",
        "optimizer.name=nesterov,adam",
        "model.hidden=(8,),(16, 8),none if optimizer.name=adam",
        "augment.flip=true,false",
    )
    kinds: dict[str, Any] = {each.field: each.kind for each in found.dimensions}
    assert list(kinds)[-1] == "model.hidden"  # behind what its condition names
    assert (kinds["batch_size"].low, kinds["batch_size"].log, kinds["batch_size"].integer) == (16, True, True)
    assert list(kinds["model.dropout_rate"].points()) == [0.0, 0.25, 0.5]
    assert list(kinds["model.hidden"].by_text.values()) == [(8,), (16, 8), None]
    assert list(kinds["augment.flip"].by_text.values()) == [True, False]
    config = found.config_of({"batch_size": 20, "optimizer.name": "adam", "augment.flip": "true"})
    assert (config.batch_size, config.optimizer.name, config.augment.flip) == (20, "adam", True)


def test_a_condition_decides_whether_a_field_varies():
    found = space(
        "optimizer.momentum=0:0.9:0.45 if optimizer.name=nesterov,momentum",
        "optimizer.name=nesterov,momentum,adam",
        "augment.flip=true,false if batch_size=48",  # which the base has: no condition
    )
    points = list(found.points())
    assert len(points) == 2 * (3 + 3 + 1) == found.size(most=100)
    varied = {("optimizer.momentum" in point, point["optimizer.name"]) for point in points}
    assert varied == {(True, "nesterov"), (True, "momentum"), (False, "adam")}
    assert len({json.dumps(point) for point in points}) == len(points)
    assert found.size(most=5) == 5


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["x"], "cannot be read; write FIELD=LOW:HIGH"),
        (["optimizer.learning_rat=1:2"], "did you mean 'learning_rate'"),
        (["optimizer=1:2"], "is a group"),
        (["optimizer.learning_rate=1:0.1"], "the bounds must grow"),
        (["optimizer.learning_rate=1:1"], "the bounds must grow"),
        (["optimizer.learning_rate=0:1"], "out of range"),
        (["optimizer.learning_rate=log:0:1"], "begins above 0"),
        (["optimizer.learning_rate=nan:1"], "between two numbers"),
        (["optimizer.learning_rate=0.1"], "this is one value"),
        (["optimizer.learning_rate=0.1:1:0.4"], "no step that leads from"),
        (["batch_size=1.5:3"], "must be an integer"),
        (["batch_size=32,32"], "twice"),
        (["optimizer.name=adam,adma"], "did you mean 'adam'"),
        (["augment.flip=true,maybe"], "must be true or false"),
        ([LEARNING_RATE, LEARNING_RATE], "names optimizer.learning_rate twice"),
        (["seed=0:9"], "what trials are compared by"),
        (["steps_per_call=1,2"], "changes nothing"),
        (["batch_size=16,32 if optimizer.name=adam"], "never met: optimizer.name is 'nesterov'"),
        (["batch_size=16,32 if optimizer.name=sgd", "optimizer.name=adam,adamw"], "is never 'sgd'"),
        (["batch_size=16,32 if model.width=1", "model.width=0.5:2"], "is a range"),
        (["batch_size=16,32 if model.depth=1", "model.depth=1,2 if batch_size=16"], "wait for each other"),
        (["batch_size=16,32 if optimizer.nam=sgd"], "did you mean 'name'"),
        (["optimizer.beta1=0.1:0.2"], "no config of the space is possible: optimizer.beta1"),
    ],
)
def test_what_is_no_space(texts, words):
    with pytest.raises(UserError, match=words) as raised:
        space(*texts)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


# ---- trials, of a faked run


def test_trials_are_the_same_by_seed_and_after_a_restart(tmp_path):
    whole = found_by(searched(tmp_path / "whole", Search("x", space(), seed=3), 14))
    for total in (3, 11, 14):  # three commands
        parts = found_by(searched(tmp_path / "parts", Search("x", space(), seed=3), total))
    other = found_by(searched(tmp_path / "other", Search("x", space(), seed=4), 14))
    assert parts == whole
    assert [row.fields for row in other.rows] != [row.fields for row in whole.rows]
    assert len({row.fields["optimizer.learning_rate"] for row in whole.rows}) == 14
    assert whole.best == max(whole.rows, key=lambda row: row.value or 0)
    assert set(whole.importances or ()) == {"optimizer.learning_rate"}


def test_tpe_comes_closer_than_random(tmp_path):
    def late(sampler: str) -> float:
        rows = found_by(searched(tmp_path / sampler, Search("x", space(), sampler), 40)).rows
        return sum(row.value or 0 for row in rows[20:])

    assert late("tpe") > late("random")


def test_a_grid_is_tried_once(tmp_path):
    texts = "optimizer.learning_rate=0.001,0.01,0.1", "optimizer.momentum=0:0.8:0.4 if optimizer.learning_rate=0.1,0.01"
    search = Search("x", space(*texts), "grid")
    rows = found_by(searched(tmp_path, search, 7)).rows
    assert [row.fields for row in rows] == [search.space.fields_of(point) for point in search.space.points()]
    assert {row.status for row in rows} == {"finished"}
    with pytest.raises(UserError, match="a grid needs steps or values"):
        space().points()


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruners_end_poor_trials(tmp_path, pruner):
    found = found_by(searched(tmp_path, Search("x", space(), "random", pruner), 30))
    pruned = [row for row in found.rows if row.status == "pruned"]
    assert 0 < len(pruned) < 30
    assert all(len(row.evaluations) < ACCURACY.evaluations for row in pruned)
    assert found.best is not None
    assert found.best.status == "finished"


def test_a_trial_that_fails_is_a_row(tmp_path):
    def run(order: Any, after_evaluation: Any) -> dict[str, Any]:
        if order.config.optimizer.learning_rate > 0.1:
            raise RunError("NaN or Inf")
        if order.config.optimizer.learning_rate < 0.001:
            raise ValueError("a shape")
        return faked(order, after_evaluation)

    search = Search("x", space(LEARNING_RATE, "optimizer.accumulate=1:5"), "random")
    found = found_by(searched(tmp_path, search, 20, run=run))
    errors = [row.error or "" for row in found.rows if row.status == "failed"]
    for words in ("NaN or Inf", "ValueError: a shape", "does not divide"):
        assert any(words in error for error in errors)
    number = next(row.number for row in found.rows if "a shape" in (row.error or ""))
    assert "Traceback" in (tmp_path / "trials" / f"{number:04}" / "run.log").read_text()
    assert found.best is not None


def test_a_full_disk_ends_the_search_and_loses_no_trial(tmp_path):
    calls = []

    def full(order: Any, after_evaluation: Any) -> dict[str, Any]:
        calls.append(order.config.optimizer.learning_rate)
        if len(calls) == 3:
            raise WriteError("no space")
        return faked(order, after_evaluation)

    search = Search("x", space())
    with pytest.raises(WriteError):
        searched(tmp_path, search, 6, run=full)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 5, "tri')  # the line that was being written
    found = found_by(searched(tmp_path, search, 6, run=full))
    assert [row.status for row in found.rows] == ["finished"] * 6
    assert calls[2] == calls[3]
    assert len(calls) == 7


def test_when_all_fail_the_search_ends(tmp_path):
    def fail(order: Any, after_evaluation: Any) -> dict[str, Any]:
        raise RunError("as always")

    with pytest.raises(RunError, match=f"all {ALL_FAILED} trials have failed, the last one so: as always"):
        searched(tmp_path, Search("x", space()), 99, run=fail)


WORKER = """
import sys, time
from pathlib import Path
from tests.test_search import Search, faked, searched, space
def slow(order, after_evaluation):
    with open(sys.argv[2], "a") as file:
        file.write(order.workdir.name + "\\n")
    time.sleep(float(sys.argv[3]))
    return faked(order, after_evaluation)
searched(Path(sys.argv[1]), Search("x", space("optimizer.learning_rate=log:1e-4:1", model__name="cnn")), 12, run=slow)
"""


def worker(folder: Path, log: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(log), str(seconds)], cwd=ROOT, env=environment()
    )


def test_processes_share_trials_and_take_over_those_of_the_dead(tmp_path):
    folder, log = tmp_path / "search", tmp_path / "log"
    first, second = worker(folder, log, 0.1), worker(folder, log, 0.1)
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split()) >= 4) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=120) == 0
    search = Search("x", space("optimizer.learning_rate=log:1e-4:1", model__name="cnn"))
    rows = found_by(searching(folder, search, 12)).rows
    assert [(row.number, row.status) for row in rows] == [(number, "finished") for number in range(12)]
    begun = log.read_text().split()
    assert set(begun) == {f"{number:04}" for number in range(12)}
    assert len(begun) <= 13  # the one that was killed, at most, was begun twice
    assert not list((folder / "trials").glob("*.lock"))


# ---- what a run gives to a search


def test_after_evaluation_may_end_a_run(tmp_path):
    from jaxcnn.train import Order
    from jaxcnn.train import train as train_order

    told = []

    def after(number: int, value: float) -> str | None:
        told.append((number, value))
        return f"{PRUNED} by median at evaluation {number}" if number == 1 else None

    config = small_config(num_devices=1, measure_test=False)
    summary = run_quietly(Order(config, "x", epath.Path(tmp_path / "a")), after)
    assert summary["stopped"].startswith("pruned by median at evaluation 1, at step ")
    assert list(summary["splits"]) == ["validation"]
    assert [number for number, _ in told] == [1]
    assert [value for _, value in told] == [row["ema_accuracy"] for row in rows(tmp_path / "a", "validation")]
    assert (tmp_path / "a" / "checkpoints" / str(summary["step"])).is_dir()
    assert "validation" in (tmp_path / "a" / "run.log").read_text()
    (tmp_path / "a" / "summary.json").unlink()  # as if killed just before
    again = train_order(Order(config, "x", epath.Path(tmp_path / "a")), start=0.0)
    assert again["stopped"] == summary["stopped"]
    assert again["splits"] == summary["splits"]


def test_a_run_is_the_same_with_and_without_who_is_told(tmp_path):
    from jaxcnn.train import Order

    config = small_config(num_devices=1)
    run_quietly(Order(config, "x", epath.Path(tmp_path / "told")), lambda number, value: None)
    train(config, tmp_path / "plain")
    assert (tmp_path / "told" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()
    assert_same_arrays(arrays(tmp_path / "told", config), arrays(tmp_path / "plain", config))


def test_a_result_without_test_needs_validation(tmp_path):
    with pytest.raises(UserError, match="measure_test=false needs a validation split"):
        train(
            small_config(measure_test=False, data__validation_fraction=0.0, checkpoint__keep_best=0), tmp_path / "none"
        )
    assert list(train(small_config(num_devices=1), tmp_path / "plain")["splits"]) == ["validation", "test"]


def test_a_card_tells_no_scores_of_a_run_without_test(tmp_path):
    from jaxcnn.export.hub import scores_of

    (tmp_path / "summary.json").write_text(json.dumps({"splits": {"validation": {"num_examples": 1, "loss": 0.5}}}))
    with pytest.raises(UserError, match="has no scores to tell"):
        scores_of(epath.Path(tmp_path))


# ---- the command

DIGITS = (
    "--config=experiments/digits.py", "--config.num_steps=4", "--config.eval_every_epochs=0.1",
    "--config.model.name=mlp", "--config.model.dropout_rate=none", "--config.model.hidden=(8,)",
    "--config.schedule.warmup_epochs=0", "--config.tensorboard=false", "--config.num_devices=1",
    "--config.telemetry.every_steps=0",
)  # fmt: skip
SPACE = f"--space={LEARNING_RATE}"


def command(folder: Path, *options: str) -> tuple[int, str, str]:
    return run_here(*DIGITS, f"--workdir={folder}", *options, module="search")


def test_the_command_goes_on_and_refuses_another_search(tmp_path):
    folder = tmp_path / "search"
    code, output, errors = command(folder, SPACE, "--trials=2", "--sampler=random")
    assert (code, errors) == (0, "")
    assert "best of 2 values is optimistic" in output
    code, output, _ = command(folder, SPACE, "--trials=3", "--sampler=random")
    assert code == 0
    assert "2 of 3 trials have ended" in output
    for folder_of_run in sorted((folder / "trials").iterdir()):
        summary = json.loads((folder_of_run / "summary.json").read_text())
        assert list(summary["splits"]) == ["validation"]
        assert "test" not in {row["split"] for row in map(json.loads, (folder_of_run / "metrics.jsonl").open())}
    result = json.loads((folder / "search_result.json").read_text())
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 3
    best = result["trials"][result["best"]["trial"]]
    saved = json.loads((folder / best["folder"] / "config.json").read_text())["config"]
    config, name = load_config(["x", f"--config={folder / 'best.py'}"], flag_values=flags.FlagValues())
    assert name == "best"
    assert to_dict(config) == {**saved, "measure_test": True}
    assert (folder / "trials.csv").read_text().count("\n") == 4
    for options, words in (
        ((SPACE, "--sampler=tpe"), "sampler (random -> tpe)"),
        (("--space=optimizer.learning_rate=log:1e-4:2", "--sampler=random"), "space ("),
        ((SPACE, "--sampler=random", "--config.batch_size=32"), "batch_size (64 -> 32)"),
        ((SPACE, "--sampler=random", "--seed=1"), "seed (0 -> 1)"),
    ):
        code, _, errors = command(folder, *options)
        assert (code, errors.count("\n")) == (2, 1)
        assert words in errors
    (folder / JOURNAL).write_text("{}\nno\n{}\n")
    code, _, errors = command(folder, SPACE, "--sampler=random")
    assert (code, errors.count("\n")) == (2, 1)
    assert "cannot be read" in errors


def test_pruned_for_real(tmp_path):
    """A trial that is pruned stops at an evaluation, and keeps its checkpoint."""
    folder = tmp_path / "search"
    code, output, errors = command(
        folder, "--space=optimizer.learning_rate=1e-2,1e-6", "--trials=2", "--sampler=grid", "--pruner=halving",
        "--config.num_steps=12",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    result = json.loads((folder / "search_result.json").read_text())
    assert [trial["status"] for trial in result["trials"]] == ["finished", "pruned"], output
    summary = json.loads((folder / "trials/0001/summary.json").read_text())
    assert summary["stopped"].startswith("pruned by halving at evaluation ")
    assert (folder / "trials/0001/checkpoints" / str(summary["step"])).is_dir()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nothing is searched"),
        ([SPACE, "--sampler=tpee"], "did you mean 'tpe'"),
        ([SPACE, "--pruner=mean"], "did you mean 'median'"),
        ([SPACE, "--trials=0"], "trials"),
        ([SPACE, "--trials=x"], "trials"),
        ([SPACE, "--seed=-1"], "seed"),
        ([SPACE, "--metric=accuracu"], "did you mean 'accuracy'"),
        ([SPACE, "--sampler=grid"], "a grid needs steps or values"),
        (["--space=augment.crop_padding=0,1"], "--trials=50 of a space of 2 points"),
        (["--space=model.name=mlp,cnnn", "--trials=2"], "did you mean 'cnn'"),
        (["--space=model.width=0.5:2"], "mlp has no such option"),
        ([SPACE, "--config.data.validation_fraction=0", "--config.checkpoint.keep_best=0"], "needs a validation split"),
        ([SPACE, "--pruner=median", "--config.eval_every_epochs=9"], "lower eval_every_epochs"),
        ([SPACE, "--workdir=gs://bucket/x"], "takes a local folder"),
        ([SPACE, "--workdir=jaxcnn"], "holds no search"),
        ([SPACE, "--workdir="], "--workdir is empty"),
        ([SPACE, "more"], "unexpected argument"),
        ([SPACE, "--config.optimizer.lr=1"], "has no field 'lr'"),
    ],
)
def test_wrong_commands(tmp_path, options, words):
    code, _, errors = command(tmp_path / "none", "--dry_run", *options)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert words in errors
    assert not (tmp_path / "none").exists()


def test_dry_run_writes_nothing(tmp_path):
    options = SPACE, "--space=optimizer.accumulate=1:8"
    code, output, errors = command(tmp_path / "none", "--dry_run", *options)
    assert (code, errors) == (0, "")
    assert "highest validation accuracy, of up to" in output
    assert "are possible; one that is not: batch_size=64 does not divide" in output
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_a_trial_the_run_goes_on_bit_for_bit(tmp_path, sent):
    """A signal once a trial has saved a checkpoint; then the same command."""
    options = [
        SPACE,
        "--trials=1",
        "--config.num_steps=60",
        "--config.checkpoint.every_steps=5",
        "--config.eval_every_epochs=1",
    ]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxcnn.search", *DIGITS, f"--workdir={killed}", *options],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (killed / "trials/0000/checkpoints/5").is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert process.returncode == 75
        assert "0 of 1 trials have ended, the same command goes on" in said
    assert not (killed / "trials/0000/summary.json").exists()
    for folder in (killed, whole):
        code, _, errors = command(folder, *options)
        assert (code, errors) == (0, "")
    assert "resuming at step" in (killed / "trials/0000/run.log").read_text()
    for name in ("metrics.jsonl", "config.json"):
        ours, theirs = ((folder / "trials/0000" / name).read_text() for folder in (killed, whole))
        if name == "metrics.jsonl":
            assert ours == theirs
        else:
            assert json.loads(ours)["config"] == json.loads(theirs)["config"]


def test_a_run_is_an_experiment_that_says_only_what_differs(tmp_path):
    config = Config(batch_size=32, optimizer=OptimizerConfig(name='a"b\n', clip_norm=1e-7), init_allow=("x",))
    config.optimizer.groups.head_rate = 2.5
    names: dict[str, Any] = {}
    exec(experiment_text(config, "Words.\n"), names)
    assert names["get_config"]() == config
    assert "seed" not in experiment_text(config, "Words.\n")
    assert from_dict(to_dict(names["get_config"]())) == config


def test_nothing_is_pruned_between_no_evaluations():
    with pytest.raises(UserError, match="lower eval_every_epochs"):
        check_pruner(Search("x", space(), pruner="median"), Goal("accuracy", True, 1))
