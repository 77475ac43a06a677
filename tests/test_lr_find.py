"""The learning-rate range test: the real train step at the rates it says, what is read from its losses, the command."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcnn import lr_find
from jaxcnn.config import ScheduleConfig
from jaxcnn.errors import RunError, UserError
from jaxcnn.training.build import build
from jaxcnn.training.optim import make_optimizer
from jaxcnn.training.rate_range import growing_rates, range_test, read_range, smooth, sparkline
from tests.runs import small_config

RATES = growing_rates(1e-3, 10.0, 41)  # ten steps a decade
DECADES = np.log10(RATES)


def curve(*, least_at: float = 0.1, steepest_at: float = 0.03) -> list[float]:
    """Falls from 2.5 to about 1, fastest at one rate, and rises from another on, by a lot."""
    fall = 1.5 / (1 + np.exp(-8 * (DECADES - math.log10(steepest_at))))
    return list(2.5 - fall + np.exp(6 * (DECADES - math.log10(least_at) - 0.5)))


def sweep(rates, **changes):
    """Losses of a range test of the tiny network, without dropout."""
    config = small_config(model__dropout_rate=0.0, optimizer__weight_decay=1e-3, augment__crop_padding=1, **changes)
    run, feed = build(lr_find.for_range_test(config, len(rates)))
    found = range_test(run, feed, rates)
    feed.close()
    return found, config


@pytest.fixture(scope="module")
def swept():
    """By eight devices under pmap, until it diverges."""
    changes = {"optimizer__accumulate": 2, "optimizer__ema_decay": None}
    return sweep(growing_rates(1e-4, 1e4, 40), num_devices=8, parallel="pmap", **changes)


# ---- the steps


def test_each_step_is_the_runs_own_at_its_rate(swept):
    """One device, step by step, with a constant rate each: with augmentation, accumulation and decay."""
    found, config = swept
    run, feed = build(dataclasses.replace(config, num_devices=1, parallel="jit"))

    @jax.jit
    def step(state, batch, rate):
        optimizer = make_optimizer(config.optimizer, lambda _: rate)
        return run.calls.step(state, batch, jax.random.key(config.seed), optimizer=optimizer)

    state, losses = run.init(), []
    for number in range(10):
        state, metrics = step(state, feed.batch(number), 1e-4 * 1e8 ** (number / 39))
        losses.append(float(metrics.compute()["loss"]))
    feed.close()
    np.testing.assert_allclose(found.losses[:10], losses, rtol=1e-4)


def test_it_ends_where_the_loss_is_four_times_its_least(swept):
    found, _ = swept
    assert len(found.rates) == len(found.losses) < 40
    assert found.diverged == found.rates[-1]
    smoothed = smooth(found.losses, growing_rates(1e-4, 1e4, 40))
    if math.isfinite(smoothed[-1]):
        assert smoothed[-1] > 4 * smoothed.min()
        before = smooth(found.losses[:-1], growing_rates(1e-4, 1e4, 40))
        assert before[-1] <= 4 * before.min()
    assert found.suggested <= found.least < found.diverged
    assert not found.still_falling


def test_a_schedule_that_follows_validation_is_no_hindrance():
    """Nor is early stopping, nor the lack of validation."""
    config = small_config(
        schedule__name="plateau",
        early_stop__patience_evaluations=9,
        data__validation_fraction=0.1,
        num_devices=1,
    )
    swept = lr_find.for_range_test(config, 20)
    assert (swept.num_steps, swept.schedule) == (20, ScheduleConfig(name="constant"))
    assert config.schedule.name == "plateau"  # the caller's own stays as it was
    assert config.checkpoint.keep_best == 1
    swept.data.validation_fraction = 0.0
    run, feed = build(swept)
    feed.close()
    assert run.learning.total_steps == 20


# ---- what is read from the losses


def test_the_rates_that_stand_out():
    losses = curve()
    so_far = [smooth(np.array(losses[:count]), RATES) for count in range(1, 42)]
    stop = next(len(each) for each in so_far if each[-1] > 4 * each.min())
    found = read_range(RATES, losses[:stop])
    assert found.suggested == pytest.approx(0.03, rel=0.3)
    smoothed = smooth(np.array(losses[:stop]), RATES)
    assert found.least == RATES[smoothed.argmin()]
    assert 0.05 < found.least < 0.2
    assert found.diverged == RATES[stop - 1]
    assert RATES[stop - 1] > 2 * found.least


def test_smoothing_has_no_lag_and_does_not_depend_on_the_steps():
    noise = np.random.default_rng(0).normal(0, 0.15, 401)
    for steps in (41, 401):
        rates = growing_rates(1e-3, 10.0, steps)
        decades = np.log10(rates)
        losses = 2 - np.exp(-((decades + 1) ** 2)) + noise[:steps]
        assert rates[smooth(losses, rates).argmin()] == pytest.approx(0.1, rel=0.6)
        clean = 2 - np.exp(-((decades + 1) ** 2))
        assert rates[smooth(clean, rates).argmin()] == pytest.approx(0.1, rel=0.01)


def test_a_loss_that_is_not_finite_ends_it():
    losses = [*curve()[:22], float("nan")]
    found = read_range(RATES, losses)
    assert found.diverged == RATES[22]
    assert math.isnan(found.smoothed[-1])
    assert np.isfinite(found.smoothed[:-1]).all()
    with pytest.raises(RunError, match=r"not finite at the lowest learning rate, 0.001; lower --min"):
        read_range(RATES, [float("nan")])


def test_one_that_never_rises_has_no_end():
    found = read_range(RATES, list(np.linspace(2.5, 1.0, 41)))
    assert found.diverged is None
    assert found.least == RATES[-1]
    assert found.still_falling
    rises_again = read_range(RATES, [*np.linspace(2.5, 1.0, 30), *np.linspace(1.0, 2.3, 11)])
    assert rises_again.diverged is None
    assert not rises_again.still_falling


def test_no_fall_is_no_suggestion():
    with pytest.raises(RunError, match=r"falls at no learning rate from 0.001 to 10 \(from 2.3, at best to 2.3\)"):
        read_range(RATES, [2.3] * 41)
    falls_a_little = [2.3, *np.linspace(2.3, 2.3 * 0.97, 40)]
    assert read_range(RATES, falls_a_little).least == RATES[-1]


def test_a_line_of_blocks():
    assert sparkline(np.array([3.0, 2.0, 1.0, 2.0, 9.0, np.nan])) == "█▅▁▅██"
    assert len(sparkline(np.linspace(2, 1, 500))) == 60


# ---- the command


@pytest.fixture
def experiment(tmp_path):
    """An experiment file whose run is tiny, and whose rate is scaled by the batch."""
    file = tmp_path / "tiny.py"
    file.write_text(
        "from tests.runs import small_config\n"
        "def get_config():\n"
        "    return small_config(num_devices=1, optimizer__ema_decay=None, optimizer__reference_batch_size=24,\n"
        "                        model__dropout_rate=0.0)\n"
    )
    return str(file)


def test_the_command_suggests_and_writes(tmp_path, experiment, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["lr_find", "--config", experiment, "--min=1e-4", "--max=1e3", "--steps=30"]
    output = tmp_path / "found"
    assert lr_find.main([*arguments, f"--output={output}"], 0.0) == 0
    said = capsys.readouterr().out
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}  # Python's own, beside the experiment
    assert left == {"found", "tiny.py"}
    written = json.loads((output / "lr_find.json").read_text())
    assert written["suggested"] in written["rates"]
    assert written["optimizer.learning_rate"] == pytest.approx(written["suggested"] / 2)  # 48 images, 24 the reference
    assert len(written["rates"]) == len(written["losses"]) == len(written["smoothed"]) <= 30
    assert f"--config.optimizer.learning_rate={written['suggested'] / 2:.2g}, which is x 2 by" in said
    assert "diverged" in said
    assert "▁" in said
    with Image.open(output / "lr_find.png") as image:
        assert image.size == (1050, 600)
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min=0"], r"--min=0: 0.0 is not a number in the range \[1e-30, 1e\+30\]"),
        (["--min=nan"], "rates must grow"),
        (["--min=1", "--max=0.1"], "--min=1 --max=0.1: rates must grow"),
        (["--max=inf"], "not a number in the range"),
        (["--steps=3"], "--steps=3: 3 is not an integer in the range"),
        (["--steps=1000000000000"], "not an integer in the range"),
        (["--stepz=3"], "stepz"),
        (["--config.optimizer.lr=3"], "config.optimizer has no field 'lr'"),
        (["--output={file}"], "cannot be written: Not a directory"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(experiment, arguments, message):
    arguments = [argument.format(file=experiment) for argument in arguments]
    with pytest.raises(UserError, match=message) as error:
        lr_find.main(["lr_find", "--config", experiment, *arguments], 0.0)
    assert "\n" not in str(error.value)


def test_without_an_experiment_it_says_so():
    with pytest.raises(UserError, match="no experiment given"):
        lr_find.main(["lr_find"], 0.0)


def test_rates_grow_by_one_factor():
    rates = growing_rates(1e-5, 10.0, 7)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10.0)
    assert jnp.asarray(rates, jnp.float32)[-1] == 10.0
