"""Early stopping and schedule.name=plateau: what evaluations decide, and that a killed run decides the same."""

import io
import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxcnn.config import Config, EarlyStopConfig, ScheduleConfig, changed_fields, from_dict, to_dict, validate
from jaxcnn.errors import Preempted, UserError
from jaxcnn.run.checkpoint import flatten
from jaxcnn.run.log import RunLog, closing_table
from jaxcnn.tasks.classification.metrics import ACCURACY
from jaxcnn.tasks.metric import LOSS, Selection
from jaxcnn.training.build import build
from jaxcnn.training.optim import set_rate_factor
from jaxcnn.training.parallel import Parallel
from jaxcnn.training.patience import Best, Watch, make_selections
from jaxcnn.training.whole_run import pieces_of
from tests.runs import arrays, assert_same_arrays, rows, small_config, train

ACCURATE, LOW = Selection(ACCURACY, averaged=False), Selection(LOSS, averaged=False)


def selections(config, averaged=False):
    task: Any = SimpleNamespace(metrics=(ACCURACY,), best_metric="accuracy", learns="10 classes")
    return make_selections(config, task, averaged=averaged)


def plateau_config(**changes: Any) -> Config:
    """Evaluates after steps 3, 6, 9 and 11. By 0.5 nothing is better, so the rate falls after 6 and after 9."""
    return small_config(
        **{
            "num_steps": 11,
            "num_devices": 1,
            "log_every_steps": 2,
            "eval_every_epochs": 3 / (1293 / 48),
            "schedule__name": "plateau",
            "schedule__plateau_evaluations": 1,
            "schedule__plateau_factor": 0.5,
            "schedule__plateau_min_delta": 0.9,
            "early_stop__patience_evaluations": 3,  # which are over at the last step: that is no early stop
            "early_stop__min_delta": 0.9,
            **changes,
        }
    )


@pytest.fixture
def stop_at(monkeypatch):
    """Sends this process SIGTERM once a row of that step is logged."""

    def arm(step):
        original = RunLog.interval

        def interval(self, at, *arguments):
            original(self, at, *arguments)
            if at == step:
                monkeypatch.setattr(RunLog, "interval", original)
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(RunLog, "interval", interval)

    return arm


def count_traces(patch: pytest.MonkeyPatch) -> list[int]:
    """How often each program that a run compiles is traced; the train step's is the first."""
    counts: list[int] = []
    original = Parallel.compile

    def compile_and_count(self, function, **keywords):
        number = len(counts)
        counts.append(0)

        def counted(*arguments):
            counts[number] += 1
            return function(*arguments)

        return original(self, counted, **keywords)

    patch.setattr(Parallel, "compile", compile_and_count)
    return counts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A plateau run that nothing disturbs: its folder, its result, and how often its train step was traced."""
    folder = tmp_path_factory.mktemp("plateau")
    with pytest.MonkeyPatch.context() as patch:
        counts = count_traces(patch)
        result = train(plateau_config(), folder)
    return folder, result, counts[0]


# ---- what is decided


def test_plateau_decides_as_optax_does():
    """optax.contrib.reduce_on_plateau, over losses with ties, deltas, cooldowns and a floor."""
    generator = np.random.default_rng(0)
    for patience, cooldown, min_delta, floor in ((1, 0, 1e-6, 0.0), (2, 1, 0.25, 0.05), (3, 2, 1e-6, 0.2)):
        config = Config(
            schedule=ScheduleConfig(
                name="plateau",
                plateau_evaluations=patience,
                plateau_factor=0.5,
                plateau_cooldown_evaluations=cooldown,
                plateau_metric="loss",
                plateau_min_delta=min_delta,
                final_fraction=floor,
            )
        )
        theirs = optax.contrib.reduce_on_plateau(
            factor=0.5, patience=patience, rtol=0.0, atol=min_delta, cooldown=cooldown, min_scale=floor
        )
        update, state, watch, seen = jax.jit(theirs.update), theirs.init(None), Watch(), set()
        for loss in np.round(3 * 0.97 ** np.arange(60) + generator.normal(0, 0.3, 60), 1):
            _, state = update({}, state, value=float(np.float32(loss)))
            watch = watch.after({"loss": float(np.float32(loss))}, config, selections(config), warming_up=False)
            assert watch.rate_factor == pytest.approx(float(state.scale), rel=1e-6)
            assert watch.plateau.evaluations_since == int(state.plateau_count)
            seen.add(watch.rate_factor)
        assert len(seen) > 2


def test_better_is_by_more_than_the_delta_and_finite():
    best = Best().after(0.5, selection=ACCURATE, min_delta=0.1)
    assert best == Best(0.5)
    assert best.after(0.6, selection=ACCURATE, min_delta=0.1) == Best(0.5, 1)  # 0.6 - 0.5 < 0.1 in floats
    assert best.after(0.625, selection=ACCURATE, min_delta=0.1) == Best(0.625)
    assert best.after(0.4, selection=LOW, min_delta=0.05) == Best(0.4)
    for value in (float("nan"), float("inf"), -float("inf")):
        assert best.after(value, selection=LOW, min_delta=0.0) == Best(0.5, 1)


def test_the_metric_is_the_checkpoints_unless_given_and_the_averages_where_one_is_kept():
    metrics = {"accuracy": 0.1, "loss": 2.0, "ema_accuracy": 0.3, "ema_loss": 4.0}
    for changes, averaged, expected in (
        ({}, False, 0.1),
        ({}, True, 0.3),
        ({"early_stop__metric": "loss"}, True, 4.0),
        ({"checkpoint__best_metric": "loss"}, False, 2.0),
    ):
        config = small_config(early_stop__patience_evaluations=3, **changes)
        watch = Watch().after(metrics, config, selections(config, averaged), warming_up=False)
        assert watch.stop == Best(expected)
        assert watch.plateau == Best()


def test_warm_up_does_not_count_for_plateau_but_for_stopping():
    config = plateau_config(early_stop__patience_evaluations=5, early_stop__min_delta=0.9)
    watch = Watch()
    for _ in range(5):
        watch = watch.after({"accuracy": 0.1}, config, selections(config), warming_up=True)
    assert (watch.rate_factor, watch.plateau.evaluations_since, watch.stop.evaluations_since) == (1.0, 0, 4)
    assert not watch.is_over(config)
    watch = watch.after({"accuracy": 0.1}, config, selections(config), warming_up=False)
    assert watch.rate_factor == 0.5
    assert watch.is_over(config)
    assert (
        watch.why_over(config, selections(config), 12)
        == "no better validation accuracy by more than 0.9 for 5 evaluations, at step 12"
    )


def test_a_watch_survives_json():
    watch = Watch(Best(1 / 3, 2), Best(0.1 + 0.2, 1), 3, 0.1**3)
    assert Watch.of(json.loads(json.dumps(watch.saved()))) == watch
    assert Watch.of(None) == Watch()


# ---- the run


def test_plateau_lowers_the_rate_that_is_logged(whole):
    rates = {row["step"]: row["learning_rate"] for row in rows(whole[0])}
    assert rates == pytest.approx(
        {2: 0.05, 3: 0.05, 4: 0.05, 6: 0.05, 8: 0.025, 9: 0.025, 10: 0.0125, 11: 0.0125}, rel=1e-6
    )
    assert "stopped" not in whole[1]


def test_the_factor_multiplies_the_step(whole):
    """Decoupled decay too, also where layers have optimizer states and rates of their own; nothing else changes."""
    saved = arrays(whole[0], plateau_config())
    (name,) = (name for name in saved if name.endswith("rate_factor"))
    assert saved[name] == 0.125  # the last evaluation, after step 11, counts too
    changes = {"optimizer__name": "adamw", "optimizer__weight_decay": 0.1, "finetune__unfreeze_epochs": (1.0,)}
    run, feed = build(plateau_config(finetune__head_rate=2.0, **changes))
    feed.close()
    params = run.init().params
    gradients = jax.tree.map(jnp.cos, params)
    whole_rate = run.learning.optimizer.init(params)
    lower_rate = set_rate_factor(whole_rate, jnp.float32(0.25))
    update = jax.jit(run.learning.optimizer.update)
    for _ in range(2):
        expected, whole_rate = update(gradients, whole_rate, params)
        seen, lower_rate = update(gradients, lower_rate, params)
        assert_same_arrays(flatten(seen), flatten(jax.tree.map(lambda x: 0.25 * x, expected)))
    left, right = flatten(whole_rate), flatten(lower_rate)
    assert [name for name in left if not np.array_equal(left[name], right[name])] == [
        name for name in left if name.endswith("rate_factor")
    ]


@pytest.mark.parametrize("step", [6, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_killed_and_resumed_decides_the_same(tmp_path, whole, stop_at, step):
    """Killed at, before and after the evaluation at which the rate falls: bit for bit."""
    config = plateau_config()
    stop_at(step)
    with pytest.raises(Preempted, match=r"saved at step \d"):
        train(config, tmp_path)
    train(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert_same_arrays(arrays(tmp_path, config), arrays(whole[0], config))


@pytest.mark.parametrize("mode", ["pmap", pytest.param("jit", marks=pytest.mark.slow)])
def test_lowering_the_rate_compiles_nothing_anew(tmp_path, whole, monkeypatch, mode):
    """On one device and on eight, in both modes, with the state donated; and the rates are the same."""
    assert whole[2] == 1
    counts = count_traces(monkeypatch)
    changes = {"parallel": mode, "num_devices": 8, "checkpoint__every_steps": 11, "model__name": "mlp"}
    train(plateau_config(**changes, model__dropout_rate=0.0), tmp_path)
    assert counts[0] == 1
    expected = [(row["step"], row["learning_rate"]) for row in rows(whole[0])]
    assert [(row["step"], row["learning_rate"]) for row in rows(tmp_path)] == expected


def stop_config(**changes: Any) -> Config:
    """Nothing is better by 0.9, so of 40 steps it makes 9: evaluations after 3, 6 and 9."""
    return plateau_config(
        **{
            "num_steps": 40,
            "schedule__name": "cosine",
            "schedule__plateau_evaluations": 5,
            "schedule__plateau_factor": 0.1,
            "schedule__plateau_min_delta": 0.0,
            "early_stop__patience_evaluations": 2,
            "early_stop__min_delta": 0.9,
            **changes,
        }
    )


def test_a_run_that_stops_early_is_finished(tmp_path, stop_at):
    config = stop_config(checkpoint__every_steps=100)
    stop_at(6)
    with pytest.raises(Preempted):
        train(config, tmp_path)
    result = train(config, tmp_path)
    assert result["step"] == 9
    assert result["epochs"] == pytest.approx(9 * 48 / 1293, abs=1e-4)
    assert result["stopped"] == "no better validation accuracy by more than 0.9 for 2 evaluations, at step 9"
    assert result["splits"]["test"]["num_examples"] == 360
    assert [row["step"] for row in rows(tmp_path, "validation")] == [3, 6, 9]
    assert (tmp_path / "checkpoints" / "9").is_dir()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = train(config, tmp_path)  # as if killed before summary.json: it measures, and trains no further
    for name in ("step", "stopped", "weights", "splits"):
        assert again[name] == result[name]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    summary = {"experiment": "digits", **result, "num_params": 1, "seconds": {"setup": 0.0, **result["seconds"]}}
    text = io.StringIO()
    closing_table(Console(file=text, width=200), summary)
    assert "stopped early: no better validation accuracy by more than 0.9 for 2 evaluations" in text.getvalue()


# ---- runs from before


def test_runs_from_before_go_on():
    """Their state has these arrays, their config.json no such fields, their checkpoints' JSON no `watch`."""
    config = small_config(num_devices=1)
    run, feed = build(config)
    feed.close()
    layers = ["conv1/kernel", "conv2/kernel", "head/bias", "head/kernel"]
    layers += ["norm1/bias", "norm1/scale", "norm2/bias", "norm2/scale"]
    assert set(flatten({"opt_state": run.abstract_state().opt_state})) == {
        *(f"opt_state/4/trace/{layer}" for layer in layers),
        "opt_state/7/count",
    }
    saved = to_dict(config)
    del saved["early_stop"]
    saved["schedule"] = {name: value for name, value in saved["schedule"].items() if not name.startswith("plateau_")}
    assert changed_fields(from_dict(saved), config) == []
    assert Watch.of(None) == Watch()


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule__plateau_factor": 0.5, "schedule__name": "cosine"},
            r"plateau_factor=0.5 is read by schedule.name=pl",
        ),
        ({"early_stop__min_delta": 0.1}, r"early_stop.min_delta are read with early_stop.patience_evaluations only"),
        ({"early_stop__patience_evaluations": 0}, r"patience_evaluations=0 is out of range; it must be >= 1"),
        (
            {"schedule__name": "plateau", "early_stop__patience_evaluations": 5},
            r"early_stop.patience_evaluations=5 ends the run before .*=5 lowers the rate; make it larger, e.g. 11",
        ),
        ({"schedule__name": "plateau", "optimizer__name": "airbench_sgd"}, r"airbench_sgd has rates of its own"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        small_config(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early_stop__patience_evaluations": 3}, "early_stop.patience_evaluations needs a validation split"),
        ({"schedule__name": "plateau"}, "schedule.name=plateau needs a validation split"),
    ],
)
def test_it_needs_validation_and_is_not_for_one_program(changes, message):
    with pytest.raises(UserError, match=message):
        build(small_config(data__validation_fraction=0.0, checkpoint__keep_best=0, num_devices=1, **changes))
    run, feed = build(small_config(num_devices=1, **changes))
    feed.close()
    with pytest.raises(UserError, match=r"lets evaluations decide, which one program of a whole run does not"):
        pieces_of(run)


def test_a_metric_that_is_not_measured_is_refused():
    with pytest.raises(UserError, match=r"early_stop.metric=top5_accuracy is not measured with 10 classes"):
        build(small_config(early_stop__patience_evaluations=3, early_stop__metric="top5_accuracy"))
    with pytest.raises(UserError, match=r"checkpoint.best_metric=accuracu is not measured .* did you mean 'accuracy'"):
        build(small_config(checkpoint__best_metric="accuracu"))


def test_the_defaults_are_off():
    config = Config()
    validate(config)
    assert config.early_stop == EarlyStopConfig()
    watch = Watch()
    for _ in range(100):
        watch = watch.after({"accuracy": 0.0, "loss": 9.0}, config, selections(config), warming_up=False)
    assert watch == Watch(evaluations=100)
    assert not watch.is_over(config)
