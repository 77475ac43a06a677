"""Schedules in numbers, optimizers against steps worked out by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.config import OptimizerConfig, ScheduleConfig
from jaxcnn.config.choices import OPTIMIZERS
from jaxcnn.errors import UserError
from jaxcnn.models import MODELS
from jaxcnn.run.checkpoint import flatten
from jaxcnn.training.optim import kernel_mask, make_optimizer, make_schedule

NAMES = [name for name in OPTIMIZERS if not name.startswith("airbench_")]  # those have a test of their own
W, B = np.array([[1.0, -2.0], [3.0, 0.5]]), np.array([4.0, -5.0])  # a kernel and a bias
GW, GB = np.array([[0.5, 0.1], [-0.2, 0.4]]), np.array([0.3, -0.6])  # their gradients


def schedule_of(*, total_steps: int = 100, steps_per_epoch: float = 10, **fields: Any) -> optax.Schedule:
    return make_schedule(ScheduleConfig(**fields), peak=0.4, total_steps=total_steps, steps_per_epoch=steps_per_epoch)


def assert_rates(schedule: optax.Schedule, rates: dict[int, float]) -> None:
    seen = {step: float(schedule(jnp.asarray(step))) for step in rates}
    assert seen == pytest.approx(rates, rel=1e-5, abs=1e-8)


def updated(
    optimizer: OptimizerConfig, *, rate: float = 0.1, steps: int = 1, kernel: np.ndarray = GW, bias: np.ndarray = GB
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias after steps with the same gradients."""
    chain = make_optimizer(optimizer, optax.constant_schedule(rate))
    params: Any = {"dense1": {"kernel": jnp.asarray(W, jnp.float32), "bias": jnp.asarray(B, jnp.float32)}}
    gradients = {"dense1": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
    state = chain.init(params)
    for _ in range(steps):
        updates, state = chain.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["dense1"]["kernel"]), np.asarray(params["dense1"]["bias"])


def assert_close(seen: tuple[np.ndarray, np.ndarray], kernel: np.ndarray, bias: np.ndarray) -> None:
    np.testing.assert_allclose(seen[0], kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen[1], bias, rtol=1e-5, atol=1e-7)


def test_cosine_after_warm_up() -> None:
    rates = {0: 0.0, 5: 0.1, 10: 0.2, 20: 0.4, 40: 0.34142136, 60: 0.2, 100: 0.0}  # 0.2 * (1 + cos(pi / 4)) at 40
    assert_rates(schedule_of(name="cosine", warmup_epochs=2.0), rates)
    assert_rates(schedule_of(name="cosine", final_fraction=0.1), {0: 0.4, 50: 0.22, 100: 0.04})


def test_linear_after_warm_up() -> None:
    assert_rates(schedule_of(name="linear", warmup_epochs=2.0), {0: 0.0, 10: 0.2, 20: 0.4, 60: 0.2, 100: 0.0})
    assert_rates(schedule_of(name="linear", final_fraction=0.5), {0: 0.4, 50: 0.3, 100: 0.2})


def test_step_counts_epochs_from_the_start_of_the_run() -> None:
    schedule = schedule_of(name="step", step_epochs=(3.0, 6.5), step_factor=0.1, warmup_epochs=1.0)
    assert_rates(schedule, {0: 0.0, 5: 0.2, 10: 0.4, 29: 0.4, 30: 0.04, 64: 0.04, 65: 0.004, 99: 0.004})


def test_steps_longer_than_epochs_take_several_drops_at_once() -> None:
    schedule = make_schedule(
        ScheduleConfig(name="step", step_epochs=(5.0, 8.0), warmup_epochs=1.0), peak=0.4, total_steps=2,
        steps_per_epoch=24 / 512,
    )  # fmt: skip
    assert_rates(schedule, {0: 0.4, 1: 0.004})


@pytest.mark.parametrize(("total_steps", "peak_fraction"), [(1, 0.3), (2, 0.3), (19, 0.05), (10, 0.99)])
def test_one_cycle_rises_in_a_step_where_it_has_no_more(total_steps: int, peak_fraction: float) -> None:
    schedule = make_schedule(
        ScheduleConfig(name="one_cycle", peak_fraction=peak_fraction), peak=0.4, total_steps=total_steps,
        steps_per_epoch=1.0,
    )  # fmt: skip
    rates = np.array([schedule(step) for step in range(total_steps)])
    assert np.isfinite(rates).all()
    assert rates.max() == pytest.approx(0.4)


def test_constant() -> None:
    assert_rates(schedule_of(name="constant", warmup_epochs=0.5), {0: 0.0, 1: 0.08, 5: 0.4, 99: 0.4})


def test_a_run_cut_short_ends_within_its_warm_up() -> None:
    assert_rates(schedule_of(name="cosine", warmup_epochs=20.0), {0: 0.0, 50: 0.1, 99: 0.4 * 99 / 200})


def test_one_cycle() -> None:
    schedule = schedule_of(name="one_cycle", peak_fraction=0.25)
    assert_rates(schedule, {0: 0.4 / 25, 25: 0.4, 100: 0.4 / 25 / 1e4})
    assert 0.4 / 25 < float(schedule(10)) < 0.4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "one_cycle", "warmup_epochs": 1.0}, "not for one_cycle"),
        ({"name": "step", "step_epochs": (3.0, 10.0)}, "the run ends after 10 epochs, before epoch 10"),
        ({"name": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_impossible_schedules_are_the_users_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        schedule_of(**fields)
    assert "\n" not in str(caught.value)


def test_the_rate_follows_the_schedule_step_by_step() -> None:
    chain = make_optimizer(OptimizerConfig(name="sgd"), schedule_of(name="constant", warmup_epochs=0.4))
    params = {"kernel": jnp.zeros(())}
    state = chain.init(params)
    for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.4):
        updates, state = chain.update({"kernel": jnp.ones(())}, state, params)
        assert float(updates["kernel"]) == pytest.approx(-rate)


@pytest.mark.parametrize("mode", ["l2", "decoupled"])
def test_sgd_one_step_with_decay(mode: str) -> None:
    seen = updated(OptimizerConfig(name="sgd", weight_decay=0.01, weight_decay_mode=mode))
    assert_close(seen, W - 0.1 * (GW + 0.01 * W), B - 0.1 * GB)


def test_momentum_two_steps_with_l2() -> None:
    w1 = W - 0.1 * (GW + 0.01 * W)
    w2 = w1 - 0.1 * (0.9 * (GW + 0.01 * W) + (GW + 0.01 * w1))  # what decays is remembered
    seen = updated(OptimizerConfig(name="momentum", weight_decay=0.01), steps=2)
    assert_close(seen, w2, B - 0.1 * GB - 0.1 * 1.9 * GB)


def test_momentum_two_steps_with_decoupled_decay() -> None:
    w1 = W - 0.1 * (GW + 0.01 * W)
    w2 = w1 - 0.1 * (1.9 * GW + 0.01 * w1)
    seen = updated(OptimizerConfig(name="momentum", weight_decay=0.01, weight_decay_mode="decoupled"), steps=2)
    assert_close(seen, w2, B - 0.1 * GB - 0.1 * 1.9 * GB)


def test_nesterov_two_steps() -> None:
    # PyTorch's: buffer = 0.9 * buffer + g; step = g + 0.9 * buffer. So 1.9 g, then g + 0.9 * 1.9 g.
    seen = updated(OptimizerConfig(name="nesterov"), steps=2)
    assert_close(seen, W - 0.1 * (1.9 + 2.71) * GW, B - 0.1 * (1.9 + 2.71) * GB)


def test_adamw_one_step() -> None:
    # After one step the corrected moments are g and g^2, so Adam's direction is the gradient's sign.
    seen = updated(OptimizerConfig(name="adamw", weight_decay=0.01))
    assert_close(seen, W - 0.1 * (np.sign(GW) + 0.01 * W), B - 0.1 * np.sign(GB))


def test_adam_takes_decay_through_its_moments() -> None:
    seen = updated(OptimizerConfig(name="adam", weight_decay=1.0))
    assert_close(seen, W - 0.1 * np.sign(GW + W), B - 0.1 * np.sign(GB))
    assert not np.array_equal(np.sign(GW + W), np.sign(GW))


def test_lion_one_step_decays_apart() -> None:
    seen = updated(OptimizerConfig(name="lion", weight_decay=0.01))
    assert_close(seen, W - 0.1 * (np.sign(GW) + 0.01 * W), B - 0.1 * np.sign(GB))


def test_lamb_takes_its_ratio_of_the_step_with_decay() -> None:
    step = np.sign(GW) + 0.5 * W
    seen = updated(OptimizerConfig(name="lamb", weight_decay=0.5))
    kernel = W - 0.1 * np.linalg.norm(W) / np.linalg.norm(step) * step
    assert_close(seen, kernel, B - 0.1 * np.linalg.norm(B) / np.sqrt(2) * np.sign(GB))


def test_adagrad_and_rmsprop_one_step() -> None:
    seen = updated(OptimizerConfig(name="adagrad"))
    assert_close(seen, W - 0.1 * GW / np.sqrt(0.1 + GW**2), B - 0.1 * GB / np.sqrt(0.1 + GB**2))
    seen = updated(OptimizerConfig(name="rmsprop", beta2=0.75, momentum=0.0))
    assert_close(seen, W - 0.1 * np.sign(GW) / 0.5, B - 0.1 * np.sign(GB) / 0.5)


def test_rmsprop_has_momentum() -> None:
    first, second = 1 / np.sqrt(0.25), 1 / np.sqrt(0.4375)  # the mean square is 1/4, then 7/16, of g^2
    seen = updated(OptimizerConfig(name="rmsprop", beta2=0.75, momentum=0.9), steps=2)
    assert_close(seen, W - 0.1 * (1.9 * first + second) * np.sign(GW), B - 0.1 * (1.9 * first + second) * np.sign(GB))


def test_betas_and_epsilon_reach_adam() -> None:
    # With beta1 = 0 two steps of gradient g go by g / (|g| + epsilon) each.
    seen = updated(OptimizerConfig(name="adam", beta1=0.0, beta2=0.5, epsilon=0.1), steps=2)
    assert_close(seen, W - 0.2 * GW / (np.abs(GW) + 0.1), B - 0.2 * GB / (np.abs(GB) + 0.1))


def test_l1_pulls_kernels_to_zero() -> None:
    seen = updated(OptimizerConfig(name="sgd", l1=0.05))
    assert_close(seen, W - 0.1 * (GW + 0.05 * np.sign(W)), B - 0.1 * GB)


def test_clip_value_bounds_each_entry() -> None:
    seen = updated(OptimizerConfig(name="sgd", clip_value=0.25))
    assert_close(seen, W - 0.1 * np.clip(GW, -0.25, 0.25), B - 0.1 * np.clip(GB, -0.25, 0.25))


def test_clip_norm_is_global_and_spares_the_decay() -> None:
    norm = np.sqrt((GW**2).sum() + (GB**2).sum())
    seen = updated(OptimizerConfig(name="sgd", clip_norm=0.01, weight_decay=0.5))
    assert_close(seen, W - 0.1 * (0.01 * GW / norm + 0.5 * W), B - 0.1 * 0.01 * GB / norm)
    assert_close(updated(OptimizerConfig(name="sgd", clip_norm=10.0)), W - 0.1 * GW, B - 0.1 * GB)


def test_kernel_mask_goes_by_path_not_by_rank() -> None:
    params = {"kernel": {"bias": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}, "layer": {"kernel": jnp.ones(3)}}
    assert kernel_mask(params) == {"kernel": {"bias": False}, "norm": {"scale": False}, "layer": {"kernel": True}}


@pytest.mark.parametrize(
    "name", ["mlp", "lenet5", "resnet20", "airbench94", "vgg11_bn", "mobilenet_v3_small", "vit_ti_16"]
)
def test_kernel_mask_of_models(name: str) -> None:
    model = MODELS[name](num_classes=10, **({"stem": "small"} if name.startswith(("vgg", "mobile", "vit")) else {}))
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    # In these models the same, independently found.
    by_rank = jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
    by_rank |= dict.fromkeys({"class_token", "position_embedding"} & set(by_rank), False)
    assert kernel_mask(params) == by_rank
    assert set(jax.tree.leaves(by_rank)) == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_decay_and_l1_leave_biases_and_scales_alone(name: str) -> None:
    chain = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1, l1=0.1), optax.constant_schedule(0.1))
    params = {
        "conv1": {"kernel": jnp.full((3, 3, 2, 4), 0.5)},
        "norm1": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "head": {"kernel": jnp.full((4, 3), 0.5), "bias": jnp.ones(3)},
    }
    updates, _ = chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)
    moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
    assert moved == kernel_mask(params)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_descends(name: str) -> None:
    rate = 0.2 if name == "adagrad" else 0.02  # its steps shrink as they add up
    chain = make_optimizer(OptimizerConfig(name=name), optax.constant_schedule(rate))
    rng = np.random.default_rng(0)
    shapes = {"conv1": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "head": {"kernel": (4, 3), "bias": (3,)}}
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32)),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )

    def loss(params: Any) -> jax.Array:
        return sum((jnp.sum(jnp.square(leaf - 0.3)) for leaf in jax.tree.leaves(params)), start=jnp.zeros(()))

    @jax.jit
    def descend(params: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = chain.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, chain.init(params)), None, length=100)[0][0]

    assert float(loss(descend(params))) < 0.5 * float(loss(params))


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam() -> None:
    chain = make_optimizer(OptimizerConfig(name="muon"), optax.constant_schedule(1.0))
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((3, 3, 4, 8)) * np.logspace(0, -2, 8)  # output channels of very unlike gradients
    gradients = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32),
        {"conv1": {"kernel": conv, "bias": rng.standard_normal(8)}, "head": {"kernel": rng.standard_normal((8, 5))}},
    )
    params = jax.tree.map(jnp.ones_like, gradients)
    updates, _ = chain.update(gradients, chain.init(params), params)

    before = np.linalg.svd(conv.reshape(36, 8), compute_uv=False)
    after = np.linalg.svd(np.asarray(updates["conv1"]["kernel"]).reshape(36, 8), compute_uv=False)
    assert before.max() / before.min() > 50
    np.testing.assert_allclose(after / (0.2 * 6), 0.95, atol=0.35)  # 6 = sqrt(36): entries of root mean square 0.2
    assert float(jnp.vdot(updates["conv1"]["kernel"], gradients["conv1"]["kernel"])) < 0  # downhill
    for layer, name in (("conv1", "bias"), ("head", "kernel")):
        np.testing.assert_allclose(updates[layer][name], -np.sign(gradients[layer][name]), rtol=1e-4)


ARRAYS = {  # of an optimizer's state, in the order and by the names that checkpoints have had so far
    "sgd": "7/count",
    "momentum": "4/trace/conv1/kernel 4/trace/whiten/bias 7/count",
    "nesterov": "4/trace/conv1/kernel 4/trace/whiten/bias 7/count",
    "adagrad": "4/sum_of_squares/conv1/kernel 4/sum_of_squares/whiten/bias 7/count",
    "rmsprop": "4/0/nu/conv1/kernel 4/0/nu/whiten/bias 4/1/trace/conv1/kernel 4/1/trace/whiten/bias 7/count",
    **dict.fromkeys(
        ("adam", "adamw", "lamb"),
        "4/count 4/mu/conv1/kernel 4/mu/whiten/bias 4/nu/conv1/kernel 4/nu/whiten/bias 7/count",
    ),
    "lion": "4/count 4/mu/conv1/kernel 4/mu/whiten/bias 7/count",
    "muon": (
        "4/inner_states/adam/inner_state/count 4/inner_states/adam/inner_state/mu/whiten/bias "
        "4/inner_states/adam/inner_state/nu/whiten/bias 4/inner_states/muon/inner_state/0/count "
        "4/inner_states/muon/inner_state/0/mu/conv1/kernel 4/inner_states/muon/inner_state/0/ns_coeffs 7/count"
    ),
    **{
        name: (
            f"2/inner_states/head/inner_state/2/count 2/inner_states/kernels/inner_state/{link}/trace/conv1/kernel "
            "2/inner_states/kernels/inner_state/2/count 2/inner_states/norm_biases/inner_state/2/count "
            "2/inner_states/whiten_bias/inner_state/1/trace/whiten/bias 2/inner_states/whiten_bias/inner_state/2/count"
        )
        for name, link in (("airbench_sgd", 1), ("airbench_muon", 0))
    },
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fields", [{}, {"weight_decay": 0.1, "clip_norm": 1.0, "clip_value": 1.0}])
def test_checkpoints_of_before_have_the_same_arrays(name: str, fields: dict[str, float]) -> None:
    """A link's place in the chain is in the names, so a link that is off keeps its place."""
    params = {"conv1": {"kernel": jnp.ones((3, 3, 2, 4))}, "whiten": {"bias": jnp.ones(4)}}
    optimizer, rate = OptimizerConfig(name=name, **fields), optax.constant_schedule(0.1)  # type: ignore[arg-type]
    assert " ".join(flatten(make_optimizer(optimizer, rate).init(params))) == ARRAYS[name]
    if not name.startswith("airbench_"):
        state = make_optimizer(optimizer, rate, plateau=True).init(params)
        assert " ".join(flatten(state)) == f"{ARRAYS[name]} 8/rate_factor"


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        make_optimizer(OptimizerConfig(name="adamww"), optax.constant_schedule(0.1))
