"""One variant of every family, whole, on small images: it learns one batch, and the real command trains it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from jaxcnn.models import MODELS
from jaxcnn.training.build import build
from tests.test_command import DIGITS, run

# The smallest variant of each, and the pixels of its images.
FAMILIES = {
    "mlp": 32, "lenet5": 32, "cnn": 32, "airbench93": 32, "resnet20": 32, "resnet18": 32, "preact_resnet18": 32,
    "wrn_16_4": 32, "resnext50_32x4d": 32, "seresnet18": 32, "cbam_resnet18": 32, "alexnet": 32, "vgg11_bn": 32,
    "squeezenet1_1": 32, "googlenet": 32, "inception_v3": 32, "densenet_bc_100_12": 32, "mixer_s32": 64,
    "mobilenet_v1": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32, "efficientnet_b0": 32,
    "efficientnet_lite0": 32, "regnet_x_400mf": 32, "regnet_y_400mf": 32, "convnext_tiny": 32, "vit_ti_16": 32,
}  # fmt: skip
# By Adam's rate a model learns a batch in a few steps; those without norms, or deep, want a lower one.
RATES = {
    "alexnet": 1e-4,
    "squeezenet1_1": 3e-4,
    "mixer_s32": 3e-4,
    "vit_ti_16": 3e-4,
    "convnext_tiny": 3e-4,
    "cbam_resnet18": 1e-4,
}
BATCH, STEPS = 16, 40


def config_of(name: str, dtype: str) -> Config:
    return Config(
        batch_size=BATCH,
        num_steps=STEPS,
        data=DataConfig(name="digits", image_size=FAMILIES[name], channels=3),
        model=ModelConfig(name=name, dtype=dtype, dropout_rate=0.0, stochastic_depth=0.0),
        optimizer=OptimizerConfig(name="adam", learning_rate=RATES.get(name, 1e-3)),
        schedule=ScheduleConfig(name="constant"),
        num_devices=1,
        compilation_cache=False,
    )


def test_every_family_is_here():
    def file_of(name: str) -> str:
        model = MODELS[name]
        return (getattr(model, "func", model)).__module__

    assert {file_of(name) for name in FAMILIES} == {file_of(name) for name in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_learns_one_batch_and_evaluates_purely(name: str, dtype: str) -> None:
    built, feed = build(config_of(name, dtype))
    state, batch = built.init(), {k: v for k, v in feed.batch(0).items() if k in ("image", "label")}
    step = jax.jit(built.calls.step, donate_argnums=0)
    losses: list[float] = []
    while len(losses) < STEPS and (not losses or losses[-1] > 0.7 * losses[0]):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics.loss.total / metrics.loss.count))
    assert losses[-1] <= 0.7 * losses[0], losses  # a NaN is not
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    evaluate = jax.jit(built.calls.eval_step)
    masked = {**batch, "mask": jnp.arange(BATCH) < BATCH // 2}
    halved = {**masked, "image": np.where(np.arange(BATCH)[:, None, None, None] < BATCH // 2, batch["image"], 0)}
    once, among_others = evaluate(variables, masked), evaluate(variables, halved)
    assert float(once.loss.count) == BATCH // 2
    np.testing.assert_allclose(once.loss.total, among_others.loss.total, rtol=1e-4 if dtype == "float32" else 2e-2)
    feed.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_real_command_takes_two_steps(name: str, tmp_path) -> None:
    code, output, errors = run(
        DIGITS, "--config.num_steps=2", f"--config.batch_size={BATCH}", f"--config.model.name={name}",
        f"--config.data.image_size={FAMILIES[name]}", "--config.data.channels=3", "--config.optimizer.name=adam",
        "--config.optimizer.learning_rate=1e-4", "--config.tensorboard=false", "--config.compilation_cache=false",
        "--config.model.dropout_rate=None", f"--workdir={tmp_path / 'run'}",
        XLA_FLAGS="--xla_backend_optimization_level=0",
    )  # fmt: skip
    assert (code, errors) == (0, ""), output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["step"] == 2
    assert np.isfinite(summary["splits"]["test"]["loss"])
    assert summary["splits"]["test"]["num_examples"] == 360
