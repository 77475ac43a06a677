"""The whole run as one program equals the loop, in chunks, over devices, over seeds, and with traced scalars."""

import contextlib
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from jaxcnn.data import batch_indices
from jaxcnn.errors import UserError
from jaxcnn.models import MODELS
from jaxcnn.models.mlp import MLP
from jaxcnn.run.checkpoint import Checkpoints, flatten
from jaxcnn.training.build import build
from jaxcnn.training.whole_run import Hyperparameters, batches_from, pieces_of, train_in_chunks, train_run
from tests import runs
from tests.runs import small_config

EVERY = 2  # steps between evaluations
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def config_of(**changes):
    """Evaluations after steps 2, 4 and 5; crossing an epoch's end, with everything that is random."""
    return small_config(
        **{
            "num_devices": 1,
            "num_steps": 5,
            "batch_size": 480,
            "eval_batch_size": 52,
            "eval_every_epochs": EVERY * 480 / 1293,
            "log_every_steps": 1,
            "augment__crop_padding": 1,
            "optimizer__weight_decay": 1e-3,
            "loss__label_smoothing": 0.1,
            **changes,
        }
    )


def cheap_config(**changes):
    """The same without what takes long to compile."""
    return config_of(**{"model__name": "mlp", "model__dropout_rate": 0.0, "augment__crop_padding": 0, **changes})


def pieces_and_data(config):
    run, feed = build(config)
    return run, feed, pieces_of(run), {split: feed.data(split) for split in ("train", "validation")}


def assert_close(left, right):
    left, right = flatten(jax.device_get(left)), flatten(jax.device_get(right))
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], **TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def whole():
    """State and curves of one whole run."""
    run, _, pieces, data = pieces_and_data(config_of())
    return jax.jit(partial(train_run, pieces=pieces))(np.uint32(run.config.seed), data, Hyperparameters())


@pytest.mark.parametrize(("start", "num_steps"), [(0, 1), (0, 6), (5, 1), (3, 14), (1_000_000, 3)])
@pytest.mark.parametrize("batch_size", [7, 10, 25])
def test_batches_are_the_loops(start, num_steps, batch_size):
    shape = {"num_examples": 10, "batch_size": batch_size}
    found = jax.jit(partial(batches_from, num_steps=num_steps, **shape))(np.uint32(5), np.int32(start))
    np.testing.assert_array_equal(found["index"], [batch_indices(5, start + i, **shape) for i in range(num_steps)])
    positions = np.arange(start * batch_size, (start + num_steps) * batch_size)
    np.testing.assert_array_equal(found["epoch"].ravel(), positions // 10)


def test_the_loop_gets_the_same(whole, tmp_path):
    """State and curves: EMA, dropout, augmentation, schedule and all."""
    config = config_of(checkpoint__every_steps=5)
    runs.train(config, tmp_path)
    state, curves = whole
    saved = runs.arrays(tmp_path, config)
    for name, array in flatten({"state": jax.device_get(state)}).items():
        np.testing.assert_allclose(array, saved[name], **TOLERANCE, err_msg=name)
    train, validation = runs.rows(tmp_path), runs.rows(tmp_path, "validation")
    assert [row["step"] for row in validation] == [2, 4, 5]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(curves["train"][name], [row[name] for row in train], rtol=1e-5)
    assert curves["validation"].keys() == {"loss", "accuracy", "ema_loss", "ema_accuracy"}
    for name, values in curves["validation"].items():
        np.testing.assert_allclose(values, [row[name] for row in validation], rtol=1e-5)


def test_in_chunks_through_checkpoints(tmp_path):
    """3, a checkpoint, and 2 from it = 5 at once."""
    run, feed, pieces, data = pieces_and_data(cheap_config())
    whole = jax.jit(partial(train_run, pieces=pieces))(np.uint32(0), data, Hyperparameters())
    train = partial(train_in_chunks, run, feed, Hyperparameters(), num_steps=3, pieces=pieces)
    with contextlib.closing(Checkpoints(tmp_path, best_metric="accuracy", asynchronous=False)) as checkpoints:
        first, curves = next(train())
        assert int(first.step) == 3
        checkpoints.save(3, {"state": first}, {}, None)
        tree, _ = checkpoints.restore(3, {"state": run.abstract_state()})
    ((last, rest),) = train(state=tree["state"])
    assert_close(last, whole[0])
    for name in ("loss", "accuracy"):
        joined = np.concatenate([curves["train"][name], rest["train"][name]])
        np.testing.assert_allclose(joined, whole[1]["train"][name], rtol=1e-5)


@pytest.mark.parametrize("mode", ["pmap", pytest.param("jit", marks=pytest.mark.slow)])
def test_over_devices(mode):
    """Each device sees its part of every batch, in evaluation too."""
    results = []
    for changes in ({"num_devices": 1}, {"num_devices": 4, "parallel": mode}):
        run, feed, pieces, _ = pieces_and_data(config_of(model__dropout_rate=0.0, num_steps=4, **changes))
        results.append(list(train_in_chunks(run, feed, Hyperparameters(), num_steps=4, pieces=pieces))[-1])
    (one, one_curves), (several, several_curves) = results
    assert_close(several_curves, one_curves)
    for a, b in zip(jax.tree.leaves(several.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_two_seeds_at_once_are_two_runs(whole):
    """Whose convolutions XLA makes one grouped convolution of."""
    _, _, pieces, data = pieces_and_data(config_of())
    train = partial(train_run, pieces=pieces)
    both = jax.jit(jax.vmap(train, in_axes=(0, None, None)))(np.array([7, 0], np.uint32), data, Hyperparameters())
    assert_close(jax.tree.map(lambda x: x[1], both), whole)
    assert not np.allclose(both[1]["train"]["loss"][0], both[1]["train"]["loss"][1], rtol=1e-3)


def test_what_is_traced_is_what_a_config_says():
    """One program, several hyperparameters: each as if the config had named them."""
    run, _, pieces, data = pieces_and_data(cheap_config())
    train: Any = jax.jit(partial(train_run, pieces=pieces))
    factor = run.config.optimizer.learning_rate
    train(np.uint32(0), data, Hyperparameters(np.float32(1), np.float32(1e-3), np.float32(0.1)))
    other = train(np.uint32(0), data, Hyperparameters(np.float32(0.5), np.float32(0.05), np.float32(0.3)))
    assert train._cache_size() == 1
    optimizer = {"optimizer__learning_rate": 0.5 * factor, "optimizer__weight_decay": 0.05}
    config = cheap_config(**optimizer, loss__label_smoothing=0.3)
    _, _, theirs, _ = pieces_and_data(config)
    assert_close(other, jax.jit(partial(train_run, pieces=theirs))(np.uint32(0), data, Hyperparameters()))


def test_nothing_is_applied_after_a_loss_that_is_not_finite():
    """As in the loop."""
    run, feed, pieces, _ = pieces_and_data(cheap_config(num_steps=4))
    hyperparameters = Hyperparameters(learning_rate=np.float32(1e30))
    ((state, curves),) = train_in_chunks(run, feed, hyperparameters, num_steps=4, pieces=pieces)
    bad = np.flatnonzero(~np.isfinite(curves["train"]["loss"]))
    assert len(bad)
    assert int(state.step) == bad[0]


@pytest.mark.slow
def test_a_model_that_begins_from_data_does_here_too(monkeypatch):
    """Like the loop's; any split can be evaluated."""

    class FromData(MLP):
        def from_data(self, params, images):
            return jax.tree.map(lambda x: x + 0.01 * images[:, 3:5].std(), params)

    monkeypatch.setitem(MODELS, "from_data", FromData)
    run, feed, pieces, data = pieces_and_data(cheap_config(num_steps=2, model__name="from_data"))
    data["test"] = feed.data("test")
    state, curves = jax.jit(partial(train_run, pieces=pieces))(np.uint32(0), data, Hyperparameters())
    split = ("train", "test")
    ((expected, others),) = train_in_chunks(run, feed, Hyperparameters(), num_steps=2, pieces=pieces, splits=split)
    assert_close(state, expected)
    assert curves.keys() == {"train", "validation", "test"}
    assert_close(curves["test"], others["test"])
    plain = MLP(num_classes=10).init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False)
    assert float(run.init().params["head"]["bias"][0]) != float(plain["params"]["head"]["bias"][0])


def test_what_cannot_be_is_refused():
    run, feed, pieces, _ = pieces_and_data(config_of(optimizer__weight_decay=0.0))
    with pytest.raises(UserError, match="can vary only where the config has some"):
        next(train_in_chunks(run, feed, Hyperparameters(weight_decay=0.1), num_steps=1, pieces=pieces))
    with pytest.raises(UserError, match="data that live on the device"):
        pieces_of(build(config_of(data__resident=False))[0])
    with pytest.raises(UserError, match="too many for one program"):
        pieces_of(build(config_of(num_steps=10**7))[0])
