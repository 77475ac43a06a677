"""The CIFAR-10 speed records, piece by piece, against the recipes' arithmetic in numpy, PyTorch's form of it."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from flax import linen as nn

from jaxcnn.augment import AugmentConfig, alternating_mirror, average_views, make_augment, make_normalise, mirrored
from jaxcnn.config import Config
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.models import MODELS
from jaxcnn.models.airbench import Airbench, dirac, uniform, unit_std, whiten_bias, whitening_kernel
from jaxcnn.training.airbench_optim import orthogonalise, parameter_groups
from jaxcnn.training.averaging import lookahead, make_average
from jaxcnn.training.build import build, peak_rate
from jaxcnn.training.optim import make_optimizer, make_schedule
from tests import fake_tfds
from tests.runs import arrays, rows, small_config, train

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ("93", "94", "94_muon", "95", "96")


def recipe(name: str, *overrides: str) -> Config:
    argv = ["main", f"--config={ROOT}/experiments/cifar10_speedrun.py:{name}", *overrides]
    return load_config(argv, flag_values=flags.FlagValues())[0]


def smooth_images(count: int, *, side: int = 32) -> np.ndarray:
    """Images whose neighbouring pixels are alike, as in photographs; [count, side, side, 3], normalised."""
    noise = np.random.default_rng(0).standard_normal((count, side + 2, side + 2, 3))
    blurred = sum(noise[:, i : i + side, j : j + side] for i in range(3) for j in range(3)) / 3
    return (blurred @ np.array([[1, 0.9, 0.8], [0, 0.3, 0.2], [0, 0, 0.3]])).astype(np.float32)


# ---- the networks


def multiplications(name: str) -> int:
    """Of one image's way through convolutions and the head, with the padding's zeros."""
    model = MODELS[name](num_classes=10)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    total = 0

    def count(call, args, kwargs, context):
        nonlocal total
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__" and "kernel" in context.module.variables.get("params", {}):
            kernel = context.module.variables["params"]["kernel"]
            total += math.prod(outputs.shape) * math.prod(kernel.shape[:-1])
        return outputs

    with nn.intercept_methods(count):
        jax.eval_shape(partial(model.apply, train=False), variables, images)
    return total


@pytest.mark.parametrize(
    ("name", "millions"), [("93", 54.2), ("94", 118.15), ("94_muon", 118.15), ("95", 301.6), ("96", 452.0)]
)
def test_multiplications_are_the_published_ones(name: str, millions: float) -> None:
    assert multiplications(f"airbench{name}") / 1e6 == pytest.approx(millions, abs=0.06)


def test_whitening_leaves_no_correlation() -> None:
    images = smooth_images(500)
    kernel = whitening_kernel(jnp.asarray(images))
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    patches = np.stack([images[:, i : i + 31, j : j + 31] for i in (0, 1) for j in (0, 1)], axis=-2).astype(np.float64)
    patches = patches.reshape(-1, 12)  # row, column, channel, as the kernel's
    eigenvalues = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    convolution = jax.lax.conv_general_dilated(
        jnp.asarray(images), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    outputs = np.asarray(convolution, np.float64).reshape(-1, 24)[:, :12]
    expected = np.diag(eigenvalues / (eigenvalues + 5e-4))  # 1 where there is something to see
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), expected, atol=2e-3)
    assert (eigenvalues > 0.05).sum() == 6
    assert not np.allclose(patches.T @ patches / len(patches), np.eye(12), atol=0.3)


def test_dirac_passes_its_inputs_on() -> None:
    kernel = dirac(jax.random.key(0), (3, 3, 4, 6))
    images = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    outputs = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(outputs[..., :4], images, atol=1e-6)
    rest = np.asarray(kernel[..., 4:])
    assert np.abs(rest).max() <= 1 / 6  # fan-in 36
    assert np.abs(rest).max() > 0.95 / 6


def test_heads_and_biases_begin_as_pytorchs() -> None:
    head = np.asarray(uniform(jax.random.key(0), (256, 10)))
    assert 0.98 / 16 < np.abs(head).max() <= 1 / 16
    assert np.asarray(unit_std(jax.random.key(0), (256, 10))).std(ddof=1) == pytest.approx(1, rel=1e-5)
    bias = np.asarray(whiten_bias(jax.random.key(0), (24,)))
    assert 0.8 / math.sqrt(12) < np.abs(bias).max() <= 1 / math.sqrt(12)
    images = jnp.zeros((1, 32, 32, 3))
    for name, std, moved in (("94", 1 / 16 / math.sqrt(3), False), ("94_muon", 1.0, True)):
        model = MODELS[f"airbench{name}"](num_classes=10)
        params = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)["params"]
        assert float(params["head"]["kernel"].std()) == pytest.approx(std, rel=0.03)
        assert bool(jnp.any(params["whiten"]["bias"] != 0)) is moved


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def pooled(x: np.ndarray, size: int) -> np.ndarray:
    rows, columns = x.shape[1] // size, x.shape[2] // size
    x = x[:, : rows * size, : columns * size].reshape(len(x), rows, size, columns, size, -1)
    return x.max(axis=(2, 4))


@pytest.mark.parametrize("num_convs", [2, 3])
def test_the_order_of_the_layers(num_convs: int) -> None:
    """Pool, then norm, then the exact GELU; running variances by n - 1; the shortcut from the first GELU."""
    model = Airbench(
        num_classes=10, widths=(24, 24, 24), num_convs=num_convs, logit_scale=1 / 256,
        norm=partial(BatchNorm, momentum=0.0),
    )  # fmt: skip
    images = jnp.asarray(smooth_images(4, side=27))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    params = {**variables["params"]}
    params["group1"] = {**params["group1"], "norm1": {"bias": jnp.full(24, 0.5)}}
    apply = partial(model.apply, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True)
    logits, state = jax.jit(apply)({**variables, "params": params}, images)
    seen = jax.tree.map(np.float64, state["intermediates"])
    seen = jax.tree.map(lambda outputs: outputs[0], seen, is_leaf=lambda x: isinstance(x, tuple))
    group, stats = seen["group1"], state["batch_stats"]["group1"]["norm1"]
    after_pool = pooled(group["conv1"]["__call__"], 2)
    flat = after_pool.reshape(-1, 24)
    np.testing.assert_allclose(stats["mean"], flat.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], flat.var(0, ddof=1), rtol=1e-4)
    assert not np.allclose(stats["var"], flat.var(0), rtol=1e-4)
    normalised = (after_pool - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-12) + 0.5
    np.testing.assert_allclose(group["norm1"]["__call__"], normalised, atol=1e-4)
    last = group[f"norm{num_convs}"]["__call__"]
    out = erf_gelu(last if num_convs == 2 else last + erf_gelu(normalised))
    np.testing.assert_allclose(group["__call__"], out, atol=1e-4)
    end = pooled(seen["group3"]["__call__"], 3).reshape(4, -1)
    np.testing.assert_allclose(logits, end @ np.asarray(params["head"]["kernel"]) / 256, atol=1e-5)


def test_unbiased_running_variance_counts_all_devices() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 2, 4)).astype(np.float32)
    norm = BatchNorm(use_running_average=False, momentum=0.0, unbiased=True, use_scale=False, axis_name="device")
    variables = {
        "params": {"bias": jnp.zeros(4)},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    }
    apply = partial(norm.apply, variables, mutable=["batch_stats"])
    _, state = jax.vmap(apply, axis_name="device")(jnp.asarray(x))
    np.testing.assert_allclose(state["batch_stats"]["var"][0], x.reshape(-1, 4).var(0, ddof=1), rtol=1e-5)
    alone = partial(norm.clone(synchronise=False).apply, variables, mutable=["batch_stats"])
    _, state = jax.vmap(alone, axis_name="device")(jnp.asarray(x))
    each = x.reshape(2, -1, 4).var(1, ddof=1).mean(0)
    np.testing.assert_allclose(state["batch_stats"]["var"][0], each, rtol=1e-5)


# ---- the optimizers

SHAPES = {
    "whiten": {"conv": {"kernel": (2, 2, 3, 24)}, "bias": (24,)},
    "group1": {"conv1": {"kernel": (3, 3, 4, 6)}, "norm1": {"bias": (6,)}},
    "head": {"kernel": (6, 5)},
}
NAMES = ("whiten_kernel", "whiten_bias", "kernel", "norm_bias", "head")


def trees(seed: int) -> Any:
    generator = np.random.default_rng(seed)
    make = lambda shape: generator.standard_normal(shape)
    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def by_name(tree: Any) -> dict[str, np.ndarray]:
    group = tree["group1"]
    leaves = (tree["whiten"]["conv"]["kernel"], tree["whiten"]["bias"], group["conv1"]["kernel"],
              group["norm1"]["bias"], tree["head"]["kernel"])  # fmt: skip
    return dict(zip(NAMES, (np.asarray(leaf, np.float64) for leaf in leaves), strict=True))


def steps_of(config: Config, schedule: optax.Schedule, *, num_steps: int) -> dict[str, np.ndarray]:
    """Parameters after steps of our chain, on the gradients of the mean that go with sums of trees(1), trees(2), …"""
    chain = make_optimizer(config.optimizer, schedule)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), trees(0))
    state = chain.init(params)
    for step in range(num_steps):
        grads = jax.tree.map(lambda x: jnp.asarray(x / config.batch_size, jnp.float32), trees(1 + step))
        updates, state = chain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return by_name(params)


def torch_sgd(w, gradients, *, rates, decay, momentum=0.85):
    """torch.optim.SGD(nesterov=True) with a gradient and a rate a step; decay is the argument of that name."""
    buffer = None
    for g, rate in zip(gradients, rates, strict=True):
        g = g + decay * w
        buffer = g if buffer is None else momentum * buffer + g
        w = w - rate * (g + momentum * buffer)
    return w


@pytest.mark.parametrize(("name", "label", "w"), [("94", 11.5, 0.0153), ("95", 10.0, 0.0153), ("96", 9.0, 0.012)])
def test_sgd_is_pytorchs_on_the_summed_loss(name: str, label: float, w: float) -> None:
    config = recipe(name)
    config.optimizer.groups.whiten_bias_steps = 3
    schedule = make_schedule(config.schedule, peak=peak_rate(config), total_steps=40, steps_per_epoch=5)
    found = steps_of(config, schedule, num_steps=6)
    kilostep = 1024 * (1 + 1 / (1 - 0.85))  # the recipe's own numbers from here on
    rate, decay = label / kilostep, w * 1024 / kilostep
    peak, start, end = (int(0.1 * 40), 0.2, 0.0) if name == "96" else (int(0.23 * 40), 0.2, 0.07)
    factors = np.interp(np.arange(6), [0, peak, 40], [start, 1, end])
    before, gradients = by_name(trees(0)), [by_name(trees(1 + step)) for step in range(6)]
    for each, scale, steps in (("kernel", 1, 6), ("head", 1, 6), ("norm_bias", 64, 6), ("whiten_bias", 1, 3)):
        expected = torch_sgd(
            before[each], [g[each] for g in gradients[:steps]],
            rates=factors[:steps] * rate * scale, decay=decay / (rate * scale),
        )  # fmt: skip
        np.testing.assert_allclose(found[each] - before[each], expected - before[each], rtol=2e-4, atol=1e-6)
        assert np.abs(expected - before[each]).max() > 1e-3
    np.testing.assert_array_equal(found["whiten_kernel"], before["whiten_kernel"].astype(np.float32))


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_and_its_groups() -> None:
    config = recipe("94_muon")
    config.optimizer.groups.whiten_bias_steps = 3
    schedule = make_schedule(config.schedule, peak=peak_rate(config), total_steps=8, steps_per_epoch=1)
    found = steps_of(config, schedule, num_steps=5)
    before, gradients = by_name(trees(0)), [by_name(trees(1 + step)) for step in range(5)]
    factors = 1 - np.arange(5) / 8
    whiten = np.maximum(0, 1 - np.arange(5) / 3)
    wd = 2e-6 * 2000
    for each, rate, falls in (
        ("head", 0.67, factors),
        ("norm_bias", 0.053, factors),
        ("whiten_bias", 0.053, whiten),
    ):
        expected = torch_sgd(before[each], [g[each] for g in gradients], rates=falls * rate, decay=wd / rate)
        np.testing.assert_allclose(found[each], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(found["whiten_kernel"], before["whiten_kernel"].astype(np.float32))

    # PyTorch's filters, [out, in, height, width]
    filters = before["kernel"].transpose(3, 2, 0, 1)
    buffer = np.zeros_like(filters)
    for g, factor in zip(gradients, factors, strict=True):
        gradient = g["kernel"].transpose(3, 2, 0, 1)
        buffer = 0.6 * buffer + gradient
        direction = newton_schulz((gradient + 0.6 * buffer).reshape(6, -1)).reshape(filters.shape)
        filters = filters * math.sqrt(6) / np.linalg.norm(filters)
        filters = filters - 0.24 * factor * direction
    # the steps of Newton and Schulz are bfloat16's
    np.testing.assert_allclose(found["kernel"], filters.transpose(2, 3, 1, 0), atol=0.01)


def test_orthogonalised_singular_values() -> None:
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 24, 16))
    values = np.linalg.svd(np.asarray(orthogonalise(kernel)).reshape(-1, 16), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    wide = np.asarray(orthogonalise(jnp.ones((2, 6)) + jnp.eye(2, 6)), np.float64)  # more outputs than inputs
    expected = newton_schulz(np.ones((2, 6)) + np.eye(2, 6))
    np.testing.assert_allclose(wide, expected, atol=0.05)


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_is_in_its_group(name: str) -> None:
    model = MODELS[f"airbench{name}"](num_classes=10)
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    groups = jax.tree.leaves(parameter_groups(params))
    convs = 3 if name == "96" else 2
    counts = {group: groups.count(group) for group in set(groups)}
    expected = {"kernels": 3 * convs, "norm_biases": 3 * convs, "head": 1, "whiten_kernel": 1, "whiten_bias": 1}
    assert counts == expected


@pytest.mark.parametrize(
    ("name", "total", "factors"),
    [
        ("93", 528, {0: 0.2, 121: 1.0, 60: 0.2 + 0.8 * 60 / 121, 528: 0.07}),
        ("94", 476, {0: 0.2, 109: 1.0, 110: 1 - 0.93 / 367, 475: 0.07 + 0.93 / 367}),
        ("94_muon", 200, {0: 1.0, 50: 0.75, 199: 0.005}),
        ("95", 720, {165: 1.0, 166: 1 - 0.93 / 555}),
        ("96", 1776, {0: 0.2, 177: 1.0, 1775: 1 / 1599}),
    ],
)
def test_schedules(name: str, total: int, factors: dict[int, float]) -> None:
    config = recipe(name)
    steps = config.num_steps or round(config.num_epochs * 50_000 / config.batch_size)
    assert steps == total
    schedule = make_schedule(config.schedule, peak=1.0, total_steps=steps, steps_per_epoch=50_000 / config.batch_size)
    assert {s: float(schedule(s)) for s in factors} == pytest.approx(factors, rel=1e-5, abs=1e-6)


def test_lookahead_over_seven_steps() -> None:
    average = lookahead(3, decay=0.8, total_steps=7)
    net = ema = np.array([1.0, -2.0])
    ours: Any = ({"w": jnp.asarray(ema)}, {"w": jnp.asarray(net)})
    for step in range(1, 8):
        moved = np.array([0.5, 0.1 * step])
        net = net + moved
        ours = average(ours[0], {"w": ours[1]["w"] + moved}, jnp.asarray(step))
        if step % 3 == 0:
            d = 0.8 * (step / 7) ** 3
            ema = d * ema + (1 - d) * net
            net = ema
        np.testing.assert_allclose(ours[0]["w"], ema, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours[1]["w"], net, rtol=1e-5, atol=1e-6)
    assert not np.allclose(net, ema)


def test_recipes_keep_lookahead_as_published() -> None:
    assert make_average(recipe("94_muon").optimizer, total_steps=10) is None
    for name in ("93", "94", "95", "96"):
        average = make_average(recipe(name).optimizer, total_steps=10)
        assert average is not None
        for step, decay in ((5, 0.95**5 / 8), (10, 0.95**5)):
            found, _ = average(jnp.ones(()), jnp.zeros(()), jnp.asarray(step))
            assert float(found) == pytest.approx(decay, rel=1e-5)
        kept, now = average(jnp.ones(()), jnp.zeros(()), jnp.asarray(4))
        assert (float(kept), float(now)) == (1, 0)


# ---- data and views


def test_alternating_flip_shows_both_sides_in_turn() -> None:
    """Through the feed, whose batches cross the epochs' ends: every image is seen as A, its mirror, A."""
    config = small_config(augment__alternating_flip=True, batch_size=512, num_steps=9, model__name="mlp")
    _, feed = build(config)
    images = feed.examples(10_000)["image"]
    key = jax.random.key(3)
    augment = make_augment(config.augment, mean=(0.0,), std=(1 / 255,), image_shape=(8, 8, 1))
    seen: dict[int, list[int]] = {}
    for step in range(9):
        batch = feed.batch(step)
        inputs = jax.tree.map(lambda x: x[0], feed.inputs(step, 1))
        np.testing.assert_array_equal(inputs["index"], batch["index"])
        result, _ = augment(
            jax.random.split(key, 512), batch["image"], batch["label"], mirrored(key, jax.tree.map(jnp.asarray, batch))
        )
        for index, image in zip(batch["index"].tolist(), np.rint(np.asarray(result)), strict=True):
            assert (image == images[index]).all() or (image == images[index][:, ::-1]).all()
            seen.setdefault(index, []).append(int(not (image == images[index]).all()))
    assert len(seen) == len(images)
    for flips in seen.values():
        assert all(a != b for a, b in pairwise(flips))
        assert len(flips) >= 3
    firsts = np.array([flips[0] for flips in seen.values()])
    assert abs(firsts.mean() - 0.5) < 5 * 0.5 / math.sqrt(len(firsts))
    other = np.asarray(alternating_mirror(jax.random.key(4), jnp.arange(100), jnp.zeros(100, int)))
    assert 20 < (other == np.asarray(alternating_mirror(key, jnp.arange(100), jnp.zeros(100, int)))).sum() < 80
    feed.close()


def test_streams_say_which_examples_they_hold() -> None:
    resident, streaming = (
        build(small_config(model__name="mlp", batch_size=512, data__resident=kept, data__num_workers=0))[1]
        for kept in (True, False)
    )
    for step in (0, 2, 3):
        one, other = resident.batch(step), streaming.batch(step)
        assert one.keys() == other.keys() == {"image", "label", "index", "epoch"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert set(resident.batch(2)["epoch"].tolist()) == {0, 1}
    inputs = jax.tree.map(lambda x: np.asarray(x[0]), streaming.inputs(2, 1))
    for name in ("index", "epoch"):
        np.testing.assert_array_equal(inputs[name], resident.batch(2)[name])
    for name, array in resident.examples(50).items():
        np.testing.assert_array_equal(array, streaming.examples(50)[name])
    resident.close()
    streaming.close()


def test_alternating_flip_wants_to_know_the_examples() -> None:
    augment = make_augment(AugmentConfig(alternating_flip=True), mean=(0.0,), std=(1.0,), image_shape=(8, 8, 1))
    with pytest.raises(UserError, match="which examples"):
        augment(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 8, 8, 1), jnp.uint8), jnp.zeros(2))


def test_views_are_six_and_their_weights_sum_to_one() -> None:
    images = np.random.default_rng(0).standard_normal((3, 5, 5, 2)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    predict = lambda x: (jnp.tanh(x).reshape(len(x), -1)) @ weights

    def by_hand(image: np.ndarray) -> np.ndarray:
        return np.tanh(image.reshape(-1)) @ weights

    for image, found in zip(images, average_views(predict, jnp.asarray(images), views="flip_translate"), strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
        total = np.zeros(4)
        for view, weight in ((image, 0.5), (padded[:5, :5], 0.25), (padded[2:, 2:], 0.25)):
            total += weight * (by_hand(view) + by_hand(view[:, ::-1])) / 2
        np.testing.assert_allclose(found, total, rtol=1e-4, atol=1e-5)
    ones = average_views(lambda x: jnp.ones((len(x), 4)), jnp.asarray(images), views="flip_translate")
    np.testing.assert_allclose(ones, 1.0)
    flipped = average_views(predict, jnp.asarray(images), views="flip")
    np.testing.assert_allclose(flipped, (predict(images) + predict(images[:, :, ::-1])) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(average_views(predict, jnp.asarray(images), views="none"), predict(images))


# ---- whole runs


@pytest.mark.slow
def test_a_recipe_trains_whitened_and_frozen(tmp_path: Path) -> None:
    """On two devices; whitening is the data's, in the average too, and six steps leave it alone."""
    fake_tfds.write_set(tmp_path / "tfds", "cifar10", splits={"train": 40, "test": 10}, image_shape=(32, 32, 3))
    config = recipe(
        "93", f"--config.data.dir={tmp_path / 'tfds'}", "--config.batch_size=16", "--config.num_steps=6",
        "--config.model.dtype=float32", "--config.num_devices=2", "--config.tensorboard=false",
        "--config.eval_tta=flip", "--config.optimizer.groups.whiten_bias_steps=2", "--config.log_every_steps=1",
        "--config.checkpoint.every_steps=1", "--config.checkpoint.keep_last=6",
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    assert (result["weights"], set(result["splits"])) == ("last, ema", {"test"})
    run, feed = build(config)
    kernel = whitening_kernel(
        make_normalise(run.facts["mean"], run.facts["std"])(jnp.asarray(feed.examples(40)["image"]))
    )
    feed.close()
    product = lambda kernel: np.asarray(kernel).reshape(12, 24) @ np.asarray(kernel).reshape(12, 24).T  # has no signs
    saved = {step: arrays(tmp_path / "run", config, step) for step in (1, 2, 4, 5, 6)}
    for of in ("params", "ema/params"):
        for step in (1, 6):
            found = saved[step][f"state/{of}/whiten/conv/kernel"]
            wanted = product(
                kernel
            )  # of forty images: some eigenvalues are small, and rounding is of the largest entry
            assert np.abs(product(found) - wanted).max() <= 1e-2 * np.abs(wanted).max()
            np.testing.assert_array_equal(found, saved[1]["state/params/whiten/conv/kernel"])
    bias = {step: saved[step]["state/params/whiten/bias"] for step in saved}
    assert (bias[1] != bias[2]).any()
    np.testing.assert_array_equal(bias[2], bias[4])  # frozen after two steps
    names = {name: name.replace("ema/", "", 1) for name in saved[5] if name.startswith("state/ema/")}
    apart = {s: sum((saved[s][of] != saved[s][name]).any() for of, name in names.items()) for s in saved}
    assert apart[5] == 0  # the weights went to the average, statistics too
    assert apart[4] > 20
    assert apart[6] > 20


def test_without_validation_the_last_weights_are_the_result(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data__validation_fraction": 0, "model__name": "mlp", "model__dropout_rate": 0.0}
    with pytest.raises(UserError, match=r"checkpoint.keep_best=1 needs a validation split.*set checkpoint.keep_best=0"):
        build(small_config(**changes))
    config = small_config(**changes, checkpoint__keep_best=0)
    result = train(config, tmp_path)
    assert result["weights"] == "last, ema"
    assert set(result["splits"]) == {"test"}
    assert result["splits"]["test"]["num_examples"] == 360
    assert rows(tmp_path, "train")
    assert not rows(tmp_path, "validation")
    run, feed = build(config)
    assert len(run.source.splits["train"]) == 1797 - 360
    feed.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment__flip": True, "augment__alternating_flip": True}, "both mirror"),
        ({"optimizer__lookahead_every_steps": 5}, "both average"),
        ({"optimizer__name": "airbench_sgd", "optimizer__l1": 0.1}, "decay of its own"),
        ({"optimizer__name": "airbench_muon", "optimizer__reference_batch_size": 8}, "does not go with the batch"),
        ({"optimizer__groups__head_rate": 2.0}, "airbench_sgd, airbench_muon only"),
        ({"schedule__name": "triangle", "schedule__warmup_epochs": 1.0}, "triangle warms up by itself"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        small_config(**changes)
    assert "\n" not in str(error.value)


def test_unknown_recipes_are_the_users_error() -> None:
    with pytest.raises(UserError, match="no recipe '97'"):
        recipe("97")
