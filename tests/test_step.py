"""The pure core, on one device: arithmetic of a step, accumulation, averages, the guard, named streams."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.augment import make_augment
from jaxcnn.config import AugmentConfig, LossConfig
from jaxcnn.layers.features import AUXILIARY, tap
from jaxcnn.layers.norm import BatchNorm, GroupNorm, NoNorm
from jaxcnn.models import MODELS
from jaxcnn.tasks.classification.losses import make_loss
from jaxcnn.tasks.classification.metrics import ACCURACY, TOP5_ACCURACY, metrics_for
from jaxcnn.tasks.metric import Metrics
from jaxcnn.training.averaging import exponential
from jaxcnn.training.bad_layer import first_bad_layer
from jaxcnn.training.step import eval_step, gather, init_state, scan, train_step, train_steps
from tests.runs import TinyNet

SHAPE = (8, 8, 1)
KEY = jax.random.key(0)
EXAMPLE = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
METRICS = Metrics([ACCURACY])


def data(count=32, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(generator.integers(0, 256, (count, *SHAPE), dtype=np.uint8)),
        "label": jnp.asarray(generator.integers(0, 10, count, dtype=np.int32)),
    }


def preparing(augment=None):
    augmented = make_augment(augment or AugmentConfig(), mean=(0.3,), std=(0.4,), image_shape=SHAPE)

    def prepare(key, keys, batch):
        if keys is None:
            return batch["image"] / 255.0, batch["label"]
        return augmented(keys, batch["image"], batch["label"])

    return prepare


def pieces(model=None, *, augment=None, optimizer=None, **options):
    model = model or MODELS["mlp"](num_classes=10, dtype=jnp.float32)
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    loss = make_loss(LossConfig())
    step = partial(
        train_step, model=model, optimizer=optimizer, loss=loss, prepare=preparing(augment), metrics=METRICS, **options
    )
    return init_state(KEY, EXAMPLE, model=model, optimizer=optimizer, ema="average" in options), step


def assert_close(left, right, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_one_step_by_hand():
    """Softmax regression: the gradient of cross-entropy is x^T (p - y) / n."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(10, name="head")(images.reshape(len(images), -1))

    state, step = pieces(Linear(), optimizer=optax.sgd(0.5))
    batch = data()
    x = ((np.asarray(batch["image"], np.float64) / 255 - 0.3) / 0.4).reshape(32, -1)
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    logits = x @ kernel
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    one_hot = np.eye(10)[np.asarray(batch["label"])]
    new, metrics = step(state, batch, KEY)
    np.testing.assert_allclose(new.params["head"]["kernel"], kernel - 0.5 * x.T @ (p - one_hot) / 32, atol=1e-6)
    computed = metrics.compute()
    np.testing.assert_allclose(computed["loss"], -np.log((p * one_hot).sum(1)).mean(), rtol=1e-6)
    assert computed["accuracy"] == pytest.approx((logits.argmax(1) == np.asarray(batch["label"])).mean())
    assert int(new.step) == 1
    assert int(metrics.loss.count) == 32


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_auxiliary_heads_losses_are_added_by_their_weight(weight):
    """Both heads see the same constant, so their biases' gradients differ by the weight alone."""

    class TwoHeads(nn.Module):
        auxiliary_weight: float

        @nn.compact
        def __call__(self, images, *, train):
            zeros = jnp.zeros((len(images), 1))
            if train:
                tap(self, "auxiliary_logits", nn.Dense(10, name="auxiliary")(zeros), collection=AUXILIARY)
            return nn.Dense(10, name="head")(zeros)

    state, step = pieces(TwoHeads(weight), optimizer=optax.sgd(1.0))
    new, metrics = jax.jit(step)(state, data(), KEY)
    moved = jax.tree.map(jnp.subtract, new.params, state.params)
    assert float(jnp.abs(moved["head"]["bias"]).max()) > 0.01
    np.testing.assert_allclose(moved["auxiliary"]["bias"], weight * moved["head"]["bias"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics.compute()["loss"], np.log(10), rtol=1e-6)  # the head's alone


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulation_is_one_large_batch(accumulate):
    """Where no batch statistics are in play."""
    state, whole = pieces()
    _, parts = pieces(accumulate=accumulate)
    a, b = whole(state, data(), KEY), jax.jit(parts)(state, data(), KEY)
    assert_close(a[0].params, b[0].params)
    assert_close(a[1].compute(), b[1].compute())


def test_accumulation_carries_batch_statistics():
    """Each micro-batch moves the running statistics, as separate steps would."""
    model = TinyNet(num_classes=10, norm=partial(BatchNorm, momentum=0.9))
    state, step = pieces(model, accumulate=2)
    new, _ = jax.jit(step)(state, data(8), KEY)
    _, whole = pieces(model)
    frozen = optax.sgd(0.0)
    first = state
    for half in (slice(0, 8, 2), slice(1, 8, 2)):
        batch = {name: array[half] for name, array in data(8).items()}
        stepped, _ = jax.jit(partial(whole, optimizer=frozen))(
            first.replace(opt_state=frozen.init(first.params)), batch, KEY
        )
        first = stepped
    assert_close(new.batch_stats, first.batch_stats, 1e-5)


def test_average_of_weights_and_statistics():
    model = TinyNet(num_classes=10)
    state, step = pieces(model, average=exponential(0.2))
    step = jax.jit(step)
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    for t in range(1, 4):
        state, _ = step(state, data(8, seed=t), KEY)
        decay = min(0.2, (1 + t) / (10 + t))
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(lambda e, n, d=decay: d * e + (1 - d) * n, expected, now)
    assert_close(state.ema, expected, 1e-5)


def test_init_depends_on_the_key_alone():
    one, _ = pieces()
    two, _ = pieces()
    assert_close(one, two, 0)
    other = init_state(jax.random.key(1), EXAMPLE, model=MODELS["mlp"](num_classes=10), optimizer=optax.sgd(0.1))
    assert not np.allclose(jax.tree.leaves(one.params)[1], jax.tree.leaves(other.params)[1])


def test_init_state_shares_no_buffer_with_its_average():
    state, _ = pieces(average=exponential(0.9))
    for param, average in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema["params"]), strict=True):
        assert param.unsafe_buffer_pointer() != average.unsafe_buffer_pointer()


def test_streams_are_separate():
    """Dropout and augmentation draw by step and stream: the same step repeats, another differs."""
    model = TinyNet(num_classes=10, dropout_rate=0.5)
    state, plain = pieces(model)
    _, augmented = pieces(model, augment=AugmentConfig(crop_padding=2))
    loss = lambda step, state: float(jax.jit(step)(state, data(), KEY)[1].compute()["loss"])
    assert loss(plain, state) == loss(plain, state)
    assert loss(plain, state) != loss(plain, state.replace(step=jnp.int32(1)))
    assert loss(plain, state) != loss(augmented, state)


def test_several_steps_in_one_program():
    state, step = pieces(TinyNet(num_classes=10, dropout_rate=0.2), average=exponential(0.9))
    step = jax.jit(step)
    indices = jnp.asarray(np.random.default_rng(0).integers(0, 32, (5, 8)))
    totals = METRICS.empty()
    looped = jax.jit(partial(train_steps, step=step, fetch=gather))(state, totals, data(), indices, KEY)
    one_by_one = state
    for index in indices:
        one_by_one, metrics = step(one_by_one, gather(data(), index), KEY)
        totals = totals.merge(metrics)
    assert_close(looped[0], one_by_one, 1e-5)
    assert_close(looped[1].compute(), totals.compute(), 1e-5)
    assert int(looped[2]) == 5


def test_one_step_is_no_loop():
    """In which flax's own convolutions would be ~30 x slower on CPUs."""
    state, step = pieces(TinyNet(num_classes=10))
    calls = partial(train_steps, step=step, fetch=gather)
    program = lambda steps: str(
        jax.make_jaxpr(calls)(state, METRICS.empty(), data(), jnp.zeros((steps, 8), jnp.int32), KEY)
    )
    assert "scan[" not in program(1)
    assert "while[" not in program(1)
    assert "scan[" in program(2)


@pytest.mark.parametrize("length", [1, 4])
def test_scan_equals_lax_scan(length):
    body = lambda carry, x: (carry + x, carry * x)
    found, expected = (each(body, 1.0, jnp.arange(2.0, 2.0 + length)) for each in (scan, jax.lax.scan))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_step_that_is_not_finite_is_not_applied():
    """Nor is any after it, until the host has looked."""
    state, step = pieces()
    bad = data()
    indices = jnp.asarray([[0, 1], [2, 3], [4, 5], [6, 7]])

    def fetch(batch_data, index):
        batch = gather(batch_data, index)
        return {
            **batch,
            "label": jnp.where(index[0] == 4, jnp.full((2, 10), jnp.nan), jax.nn.one_hot(batch["label"], 10)),
        }

    loss = make_loss(LossConfig(name="kl"))
    step = partial(step, loss=loss)
    calls = jax.jit(partial(train_steps, step=step, fetch=fetch))
    good, _, _ = calls(state, METRICS.empty(), bad, indices[:2], KEY)
    after, totals, ticket = calls(state, METRICS.empty(), bad, indices, KEY)
    assert_close(after, good, 0)
    assert int(ticket) == 2
    assert not np.isfinite(totals.loss.total)
    again, _, _ = calls(after, jax.tree.map(lambda x: x * 0, totals), bad, indices[:1], KEY)
    assert int(again.step) == 2


class Chain(nn.Module):
    """Three layers; the second can be made to overflow by its parameters alone."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        for name in ("first", "second", "head"):
            x = nn.Dense(10, name=name)(x)
        return x


def test_the_first_bad_layer_is_named():
    model = Chain()
    state, _ = pieces(model)
    parts: dict[str, Any] = dict(
        model=model,
        loss=make_loss(LossConfig()),
        prepare=preparing(),
    )
    fine = first_bad_layer(state, data(), KEY, **parts)
    assert "no layer" in fine
    params = jax.tree.map(lambda x: x, state.params)
    params["second"]["kernel"] = jnp.full_like(params["second"]["kernel"], 3e38)
    assert "output of layer second" in first_bad_layer(state.replace(params=params), data(), KEY, **parts)
    params["head"]["bias"] = params["head"]["bias"] + jnp.nan
    assert "in the parameters of head, by the update before" in first_bad_layer(
        state.replace(params=params), data(), KEY, **parts
    )
    state, _ = pieces(model)
    parts["loss"] = lambda logits, labels: logits[:, 0] / 0
    assert "loss itself" in first_bad_layer(state, data(), KEY, **parts)


@pytest.mark.parametrize("norm", [BatchNorm, GroupNorm, partial(GroupNorm, num_groups=1), NoNorm])
def test_the_first_bad_layer_is_found_with_any_norm(norm):
    model = TinyNet(num_classes=10, norm=norm)
    state, _ = pieces(model)
    params = jax.tree.map(lambda x: x, state.params)
    params["head"]["kernel"] = jnp.full_like(params["head"]["kernel"], 3e38)
    told = first_bad_layer(
        state.replace(params=params), data(), KEY, model=model, loss=make_loss(LossConfig()),
        prepare=preparing(),
    )  # fmt: skip
    assert "output of layer head" in told


def test_evaluation_is_pure_and_masked():
    model = TinyNet(num_classes=10)
    state, _ = pieces(model)
    step = partial(eval_step, model=model, loss=make_loss(LossConfig()), prepare=preparing(), metrics=METRICS)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    batch = {**data(8), "mask": jnp.arange(8) < 5}
    masked = step(variables, batch)
    alone = step(variables, {name: array[:5] for name, array in batch.items()})
    assert int(masked.loss.count) == 5
    assert_close(masked.compute(), alone.compute(), 1e-5)


def test_top_5_counts_the_five_largest():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(64, 25)), generator.integers(0, 25, 64)
    values = Metrics(metrics_for(25)).of_examples(jnp.asarray(logits), jnp.asarray(labels), jnp.zeros(64))
    expected = [label in np.argsort(row)[-5:] for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_array_equal(values["top5_accuracy"], expected)
    assert TOP5_ACCURACY in metrics_for(25)
    assert TOP5_ACCURACY not in metrics_for(10)
    soft = jax.nn.one_hot(labels, 25) * 0.6
    np.testing.assert_array_equal(ACCURACY.of_examples(jnp.asarray(logits), soft, jnp.zeros(64)), values["accuracy"])
