"""pmap = jit over a mesh = one device = scan = accumulation, on eight simulated devices, within stated tolerances."""

import functools
import itertools

import jax
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed
from jaxcnn.training.loop import evaluate_raw_and_ema
from jaxcnn.training.parallel import make_parallel
from jaxcnn.training.preview import step_cost
from tests.runs import small_config

STEPS = 10
TOLERANCE = 1e-4  # relative, over the first ten steps in float32
MODES = [("jit", 1), ("jit", 2), ("jit", 8), ("pmap", 1), ("pmap", 2), ("pmap", 8)]


@functools.cache
def losses(**changes):
    """Train losses of ten steps, and the state after them; each call is fetched alone. Once for what is asked twice."""
    config = small_config(num_steps=STEPS, batch_size=48, log_every_steps=1, augment__crop_padding=1, **changes)
    run, feed = build(config)
    parallel = run.parallel
    state, key, data = parallel.replicate(run.init()), parallel.replicate(jax.random.key(config.seed)), feed.data()
    found, step = [], 0
    while step < STEPS:
        num_steps = min(run.calls.steps_per_call, STEPS - step)
        totals = parallel.replicate(run.learning.metrics.empty())
        state, totals, _ = run.calls.train_call(state, totals, data, feed.inputs(step, num_steps), key)
        found.append(float(parallel.unreplicate(totals).compute()["loss"]))
        step += num_steps
    return np.array(found), parallel.unreplicate(state), run, feed, state


def without_dropout(**changes):
    return losses(**{"model__dropout_rate": 0.0, **changes})


@pytest.fixture(scope="module")
def reference():
    return without_dropout(num_devices=1)


@pytest.mark.parametrize(("mode", "num_devices"), MODES)
def test_modes_and_device_counts_agree(mode, num_devices, reference):
    """Batch norm's statistics are over the global batch: one device with 48 images = eight with six each."""
    found, state, *_ = without_dropout(parallel=mode, num_devices=num_devices)
    np.testing.assert_allclose(found, reference[0], rtol=TOLERANCE)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(reference[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert int(state.step) == STEPS


@pytest.mark.parametrize(("mode", "num_devices", "accumulate"), [("jit", 8, 1), ("pmap", 2, 3)])
def test_dropout_is_of_the_example(mode, num_devices, accumulate, mlp_with_dropout):
    """Not of the device, nor of the micro-batch."""
    changes = {"model__name": "mlp", "model__dropout_rate": 0.3, "optimizer__accumulate": accumulate}
    found, *_ = losses(parallel=mode, num_devices=num_devices, **changes)
    np.testing.assert_allclose(found, mlp_with_dropout, rtol=TOLERANCE)


@pytest.fixture(scope="module")
def mlp_with_dropout():
    return losses(num_devices=1, model__name="mlp", model__dropout_rate=0.3)[0]


@pytest.mark.parametrize(("accumulate", "batch_norm", "num_devices"), [(8, "global", 1), (1, "per_device", 8)])
def test_batch_norm_of_one_value_is_refused(accumulate, batch_norm, num_devices):
    """It would train, and learn nothing: each value less its mean is 0."""
    changes = {"optimizer__accumulate": accumulate, "model__batch_norm": batch_norm, "num_devices": num_devices}
    changes |= {"model__name": "resnet18", "model__dropout_rate": None, "model__width": 0.25}
    with pytest.raises(UserError, match=r"stage4_block1/.* one value a channel.*raise batch_size"):
        build(small_config(batch_size=8, **changes))
    build(small_config(batch_size=16, **changes))


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_batch_norm_per_device_differs_and_keeps_one_state(mode, reference):
    found, _, _, _, state = without_dropout(parallel=mode, num_devices=8, model__batch_norm="per_device")
    assert abs(found[0] / reference[0][0] - 1) > 1e-3
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(shard.tobytes() == shards[0].tobytes() for shard in shards)


@pytest.mark.parametrize("steps_per_call", [3, 5])
def test_several_steps_a_call_agree(steps_per_call, reference):
    """Also where the last call is shorter."""
    found, state, *_ = without_dropout(num_devices=1, steps_per_call=steps_per_call)
    edges = [*range(0, STEPS, steps_per_call), STEPS]
    expected = [reference[0][a:b].mean() for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(reference[1].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_devices", [2, 4])
def test_accumulation_with_batch_norm_agrees(num_devices):
    """Micro-batches hold the same examples on any number of devices."""
    one, *_ = without_dropout(num_devices=1, optimizer__accumulate=2)
    several, *_ = without_dropout(num_devices=num_devices, optimizer__accumulate=2)
    np.testing.assert_allclose(several, one, rtol=TOLERANCE)


@pytest.mark.parametrize(("accumulate", "num_devices"), [(4, 1), (2, 8)])
def test_accumulation_agrees(accumulate, num_devices):
    found, *_ = without_dropout(num_devices=num_devices, optimizer__accumulate=accumulate, model__name="mlp")
    whole, *_ = without_dropout(num_devices=1, model__name="mlp")
    np.testing.assert_allclose(found, whole, rtol=TOLERANCE)


def test_bfloat16_computes_low_and_keeps_high(reference):
    found, state, *_ = without_dropout(num_devices=1, model__dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found, reference[0], rtol=0.05)
    assert not np.array_equal(found, reference[0])


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_state_is_donated(mode, num_devices):
    """No second copy of it is kept: each result takes its argument's place, and all that is new is the ticket."""
    run, feed = build(small_config(parallel=mode, num_devices=num_devices))
    parallel, host = run.parallel, (run.init(), run.learning.metrics.empty())
    _, memory = step_cost(run)
    donated = sum(leaf.nbytes for leaf in jax.tree.leaves(host))
    assert donated <= memory.aliased < 1.1 * donated + 1024  # buffers may be padded
    assert memory.results - memory.aliased < 1024
    state, totals = (parallel.replicate(tree) for tree in host)
    run.calls.train_call(state, totals, feed.data(), feed.inputs(0, 1), parallel.replicate(jax.random.key(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state, totals)))


@pytest.mark.parametrize(
    ("mode", "num_devices", "eval_batch_size"),
    [
        ("jit", 1, 1),
        *((mode, count, size) for mode, count in [("jit", 1), ("jit", 8), ("pmap", 8)] for size in (7, 144)),
    ],
)
def test_evaluation_counts_every_example_once(mode, num_devices, eval_batch_size, expected_evaluation):
    """144 validation examples, whatever the batch and the devices; evaluate() itself asserts the count."""
    config = small_config(parallel=mode, num_devices=num_devices, eval_batch_size=eval_batch_size)
    run, feed = build(config)
    found = evaluate_raw_and_ema(run, feed, run.parallel.replicate(run.init()), "validation")
    assert found.keys() == {"loss", "accuracy", "ema_loss", "ema_accuracy"}
    for name, value in found.items():
        assert value == pytest.approx(expected_evaluation[name.removeprefix("ema_")], rel=1e-6)


@pytest.fixture(scope="module")
def expected_evaluation():
    """By numpy, from all logits at once."""
    run, feed = build(small_config(num_devices=1))
    assert isinstance(feed, ResidentFeed)
    arrays, _ = feed.arrays("validation")
    images, labels = arrays["image"], arrays["label"]
    state = run.init()
    x = (images / 255.0 - np.array(run.facts["mean"])) / np.array(run.facts["std"])
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = np.asarray(run.learning.model.apply(variables, x.astype(np.float32), train=False), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert len(labels) == 144
    return {
        "loss": -log_p[np.arange(len(labels)), labels].mean(),
        "accuracy": (logits.argmax(1) == labels).mean(),
    }


def test_impossible_devices_are_refused():
    with pytest.raises(UserError, match="platform=tpu has no device here"):
        make_parallel("jit", platform="tpu")
    with pytest.raises(UserError, match="num_devices=9, but there are 8"):
        make_parallel("jit", num_devices=9)
    with pytest.raises(UserError, match="does not divide over 8 devices"):
        build(small_config(batch_size=50))
