"""Telemetry: what it says is what one computes by hand, and the run is the same run with it and without."""

import json
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import Preempted
from jaxcnn.layers.features import FEATURES
from jaxcnn.run.log import RunLog
from jaxcnn.training.build import build
from jaxcnn.training.step import example_keys
from jaxcnn.training.telemetry import NUM_BINS, Telemetry, count, edges, histograms, row
from tests.runs import arrays, assert_same_arrays, small_config, train

LAYERS = ["conv1", "conv2", "head", "norm1", "norm2"]  # of TinyNet
ONE_STEP: dict[str, Any] = dict(
    tensorboard=True, model__dropout_rate=0.0, telemetry__every_steps=1, optimizer__clip_norm=0.01
)


def told(folder):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (folder / "telemetry.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=no_constant) for line in lines]


def take(config, step=0):
    """Host statistics of the step that comes after the initial state."""
    run, feed = build(config)
    p, call = run.parallel, run.calls.telemetry_call
    found = call(p.replicate(run.init()), feed.data(), feed.inputs(step, 1), p.replicate(jax.random.key(config.seed)))
    return run, feed, p.unreplicate(found)


def counted(x):
    """The bins of values, found among the edges one by one."""
    x = np.asarray(x, np.float64).ravel()
    x = x[np.isfinite(x)]
    ends = edges()
    place = np.where(x > 0, np.searchsorted(ends, x, side="right"), np.searchsorted(ends, x, side="left"))
    place[np.abs(x) < ends[NUM_BINS // 2]] = NUM_BINS // 2
    return np.bincount(np.clip(place, 0, NUM_BINS - 1), minlength=NUM_BINS)


def test_bins():
    ends = edges()
    assert len(ends) == NUM_BINS
    assert (np.diff(ends) > 0).all()
    assert ends[NUM_BINS // 2] == 2.0**-40
    assert ends[-1] == 2.0**16
    generator = np.random.default_rng(0)
    spread = generator.normal(size=4000) * 10.0 ** generator.uniform(-14, 6, 4000)
    exact = [0.0, -0.0, 1.0, -1.0, 1.25, -1.75, 2.0**-40, -(2.0**-40), 2.0**-41, 1e30, -1e30, 1e-45]
    x = np.concatenate([spread, exact, [np.nan, np.inf, -np.inf]]).astype(np.float32)
    found = np.asarray(jax.jit(count)(x))
    np.testing.assert_array_equal(found, counted(x))
    assert found.sum() == np.isfinite(x).sum()
    assert found[-1] >= 1  # what is too large is in the last bin
    assert np.asarray(count(jnp.asarray([0.3], jnp.bfloat16))).sum() == 1


@pytest.fixture(scope="module")
def by_hand():
    """A step's statistics, and its gradients and features by plain jax.grad."""
    config = small_config(**ONE_STEP, num_devices=1)
    run, feed, found = take(config)
    state, batch = run.init(), feed.batch(0)
    keys = example_keys(jax.random.key(config.seed), 0, jnp.arange(config.batch_size))
    images, labels = run.learning.prepare(jax.random.key(config.seed), keys, batch)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, shown = run.learning.model.apply(variables, images, train=True, mutable=["batch_stats", FEATURES])
        chosen = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return -chosen.mean(), shown[FEATURES]

    grads, features = jax.jit(jax.grad(loss, has_aux=True))(state.params)
    return run, found, *jax.device_get((state.params, grads, features))


def test_norms_are_those_of_plain_gradients(by_hand):
    run, found, params, grads, _ = by_hand
    norm = lambda tree: np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
    said = row(LAYERS, found)
    assert said["gradient_norm"] == pytest.approx(norm(grads), rel=1e-4)
    assert list(said["layers"]) == LAYERS
    # The first step of Nesterov momentum 0.9, of a gradient that is clipped to 0.01.
    scale = 1.9 * float(run.learning.schedule(0)) * 0.01 / norm(grads)
    for name, values in said["layers"].items():
        assert values["weight_norm"] == pytest.approx(norm(params[name]), rel=1e-4)
        assert values["gradient_norm"] == pytest.approx(norm(grads[name]), rel=1e-3)
        assert values["update_ratio"] == pytest.approx(scale * norm(grads[name]) / norm(params[name]), rel=1e-3)
    assert "not_finite" not in said


def test_activations_and_histograms_are_those_of_plain_features(by_hand):
    _, found, params, grads, features = by_hand
    assert set(found["activations"]) == {"stage1", "stage2", "pooled"}
    for tap, x in features.items():
        values = found["activations"][tap]
        assert values["mean"] == pytest.approx(x.mean(), rel=1e-4)
        assert values["std"] == pytest.approx(x.std(), rel=1e-4)
        assert values["dead"] == pytest.approx(np.mean(x.reshape(-1, x.shape[-1]).max(axis=0) <= 0), abs=1e-6)
        assert np.abs(values["counts"] - counted(x)).sum() <= 0.002 * x.size
    assert found["activations"]["pooled"]["dead"] > 0  # there is something to see
    for number, name in enumerate(("conv1", "conv2", "head")):
        np.testing.assert_array_equal(found["weights"][number], counted(params[name]["kernel"]))
        size = grads[name]["kernel"].size
        assert np.abs(found["gradients"][number] - counted(grads[name]["kernel"])).sum() <= max(4, 0.01 * size)
    shown = histograms(["conv1/kernel", "conv2/kernel", "head/kernel"], found)
    assert set(shown) == {
        *(f"{what}/{name}/kernel" for what in ("weights", "gradients") for name in ("conv1", "conv2", "head")),
        *(f"activations/{tap}" for tap in features),
        "update_ratio_log10",
    }
    for ends, _ in shown.values():
        assert (np.diff(ends) > 0).all()
        assert len(ends) < 150
    assert shown["weights/conv1/kernel"][1].sum() == params["conv1"]["kernel"].size
    assert shown["update_ratio_log10"][1].sum() == 5


@pytest.mark.parametrize(
    ("given", "num_steps", "every"), [(None, 999, 0), (None, 1000, 200), (None, 50_000, 500), (0, 5000, 0), (7, 5, 7)]
)
def test_the_default_goes_with_the_run(given, num_steps, every):
    run, feed = build(small_config(telemetry__every_steps=given, num_steps=num_steps))
    feed.close()
    assert run.calls.telemetry_every_steps == every


def test_histograms_of_a_rate_of_nothing():
    """At a schedule's end updates are tiny, or none."""
    norms = np.array([[1.0, 1.0], [1.0, 1.0], [1e-20, 0.0]], np.float32)
    found = {"norms": norms, "weights": np.eye(NUM_BINS, dtype=np.float32)[:1], "activations": {}}
    ends, counts = histograms(["kernel"], found)["update_ratio_log10"]
    assert (ends.tolist(), counts.tolist()) == ([-7.75], [1])


def assert_same_statistics(found, expected):
    for name in ("gradient_norm", "norms"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
    for tap, values in expected["activations"].items():
        for name in ("mean", "std", "dead"):
            np.testing.assert_allclose(found["activations"][tap][name], values[name], rtol=1e-4)
        counts = values["counts"]
        assert counts.sum() == found["activations"][tap]["counts"].sum()
        assert np.abs(counts - found["activations"][tap]["counts"]).sum() <= 0.002 * counts.sum()
    np.testing.assert_array_equal(found["weights"], expected["weights"])


@pytest.mark.slow  # the next has eight devices too
def test_one_device_and_eight_say_the_same(by_hand):
    _, _, found = take(small_config(**ONE_STEP, num_devices=8))
    assert_same_statistics(found, by_hand[1])


def test_micro_batches_over_devices(by_hand):
    """By pmap too. Batch norm sees less at a time, so these are other numbers than those of the whole batch."""
    _, _, one = take(small_config(**ONE_STEP, num_devices=1, optimizer__accumulate=2))
    _, _, eight = take(small_config(**ONE_STEP, num_devices=8, optimizer__accumulate=2, parallel="pmap"))
    assert_same_statistics(eight, one)
    stage = one["activations"]["stage1"]
    assert stage["counts"].sum() == by_hand[1]["activations"]["stage1"]["counts"].sum()
    assert stage["std"] == pytest.approx(by_hand[1]["activations"]["stage1"]["std"], rel=0.1)


def test_streamed_and_frozen(by_hand):
    """The same gradients of the same batch, but for what is frozen, which does not move."""
    changes = ONE_STEP | dict(tensorboard=False, data__resident=False, data__num_workers=0)
    _, feed, found = take(small_config(**changes, finetune__frozen=("conv1",)))
    feed.close()
    said, expected = (row(LAYERS, each)["layers"] for each in (found, by_hand[1]))
    assert said["conv1"]["weight_norm"] > 0
    assert said["conv1"]["gradient_norm"] == said["conv1"]["update_ratio"] == 0
    for name in LAYERS[1:]:
        assert said[name]["gradient_norm"] == pytest.approx(expected[name]["gradient_norm"], rel=1e-3)
        assert said[name]["update_ratio"] > 0
    assert "weights" not in found  # without TensorBoard no histograms are made


@pytest.mark.parametrize(
    ("every", "num_steps", "rows"),
    [(2, 1, [2, 4, 6, 8]), (3, 2, [3, 5]), (4, 3, [4, 7]), (1, 4, [1, 5]), (9, 1, []), (0, 1, [])],
)
def test_the_cadence(every, num_steps, rows):
    """A row is of the first step of a call that has a multiple in it."""
    called: list[int] = []

    def call(step, *_):
        called.append(step + 1)
        return {}

    nothing: Any = None
    telemetry = Telemetry(call, every, params={}, parallel=nothing, log=nothing)
    for step in range(0, 8, num_steps):
        telemetry.observe(step, min(num_steps, 8 - step), step, None, None, None)
    assert called == rows


def test_what_is_not_finite_is_named():
    found = {
        "gradient_norm": np.float32(np.inf),
        "norms": np.array([[1.0, 0.0], [np.nan, 2.0], [0.5, 0.1]], np.float32),
        "activations": {"stage1": {"mean": np.float32(np.nan), "std": np.float32(1), "dead": np.float32(0)}},
    }
    said = row(["conv1", "token"], found)
    assert said["layers"] == {
        "conv1": {"weight_norm": 1.0, "gradient_norm": None, "update_ratio": 0.5},
        "token": {"weight_norm": 0.0, "gradient_norm": 2.0, "update_ratio": None},
    }
    assert said["not_finite"] == ["gradient_norm", "conv1: gradient_norm", "stage1: mean"]
    assert json.loads(json.dumps(said, allow_nan=False)) == said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of eight steps, with a row every other step."""
    folder = tmp_path_factory.mktemp("whole")
    train(small_config(telemetry__every_steps=2), folder)
    return folder


def test_the_run_is_the_same_with_it_and_without(tmp_path, whole):
    config = small_config()
    train(config, tmp_path)
    assert not (tmp_path / "telemetry.jsonl").exists()  # too short a run for the default cadence
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_arrays(arrays(tmp_path, config), arrays(whole, config))
    assert [each["step"] for each in told(whole)] == [2, 4, 6, 8]


def test_killed_and_resumed_writes_the_same_rows(tmp_path, whole, monkeypatch):
    config = small_config(telemetry__every_steps=2)
    original = RunLog.interval

    def interval(self, at, *arguments):
        original(self, at, *arguments)
        if at == 3:
            monkeypatch.setattr(RunLog, "interval", original)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "interval", interval)
    with pytest.raises(Preempted):
        train(config, tmp_path)
    assert 1 <= len(told(tmp_path)) < 4
    with (tmp_path / "telemetry.jsonl").open("a") as file:
        file.write('{"step": 8, "gradient_norm": 1}\n{"step": 9, "gr')  # of a process that was killed without warning
    train(config, tmp_path)
    assert (tmp_path / "telemetry.jsonl").read_bytes() == (whole / "telemetry.jsonl").read_bytes()
