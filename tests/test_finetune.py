"""Frozen layers, gradual unfreezing, rates by layer: bit for bit, by hand, on one device and eight, resumed; probes."""

import contextlib
import io
import itertools
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from rich.console import Console

import jaxcnn
from jaxcnn.augment import make_normalise
from jaxcnn.config import FinetuneConfig, OptimizerConfig, validate
from jaxcnn.config.choices import OPTIMIZERS
from jaxcnn.errors import Preempted, UserError
from jaxcnn.layers.features import feature_pyramid
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.models import MODELS
from jaxcnn.models.make import params_in_order
from jaxcnn.models.resnet import CifarResNet
from jaxcnn.results.probe import features_of, linear_probe
from jaxcnn.run.workdir import read_config
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed
from jaxcnn.training.finetune import Layer, layers_of, make_finetuning
from jaxcnn.training.loop import result_variables
from jaxcnn.training.optim import make_optimizer
from jaxcnn.training.preview import step_cost
from tests.runs import arrays, assert_same_arrays, rows, small_config, train
from tests.test_loop import stop_at  # noqa: F401

LOWER = ("conv*", "norm*")
STEPS_PER_EPOCH = 1293 / 48  # of small_config


def config_of(**changes):
    """TinyNet (conv1 + norm1, conv2 + norm2, head) with weight decay, which moves whatever is not held."""
    return small_config(
        **{"optimizer__weight_decay": 0.1, "model__dropout_rate": 0.0, "num_devices": 1, "steps_per_call": 1, **changes}
    )


def states(config, num_steps):
    """The state before the first step and after each, in host memory."""
    run, feed = build(config)
    put = run.parallel.replicate
    state, totals, key = put(run.init()), put(run.learning.metrics.empty()), put(jax.random.key(0))
    found = [run.parallel.unreplicate(state)]
    for step in range(num_steps):
        state, totals, _ = run.calls.train_call(state, totals, feed.data(), feed.inputs(step, 1), key)
        found.append(run.parallel.unreplicate(state))
    feed.close()
    return found


def moved(before, after):
    """Paths below params, batch_stats and ema of what is not the same bit for bit."""
    pick = lambda state: {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
    left, right = (jax.tree_util.tree_flatten_with_path(pick(state))[0] for state in (before, after))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, old), (_, new) in zip(left, right, strict=True)
        if old.tobytes() != new.tobytes()
    }


@pytest.fixture(scope="module")
def plain():
    """A run in which everything trains."""
    run, _ = build(config_of())
    assert run.learning.steps_per_epoch == STEPS_PER_EPOCH
    return states(config_of(), 3)


def of_layer(paths, number):
    return {path for path in paths if f"conv{number}" in path or f"norm{number}" in path}


# ---- which parameters


def test_frozen_layers_stay_bit_for_bit(plain):
    """Weights, batch statistics and their averages; no momentum is kept of them. The head moves."""
    before, *_, after = states(config_of(finetune__frozen=LOWER), 3)
    assert moved(before, after) == {f"{kind}params/head/{leaf}" for kind in ("", "ema/") for leaf in ("kernel", "bias")}
    momenta = jax.tree.leaves(after.opt_state)
    assert {leaf.shape for leaf in momenta if leaf.ndim} == {(64, 10), (10,)}

    assert len(moved(plain[0], plain[-1])) == 2 * (8 + 4)


def test_a_norm_holds_its_statistics_where_none_of_its_parameters_train():
    before, after = states(config_of(finetune__frozen=("*/kernel", "norm1", "!head")), 1)
    assert moved(before, after) & {path for path in moved(before, after) if "norm1" in path} == set()
    assert {"batch_stats/norm2/mean", "params/norm2/scale", "params/head/kernel"} <= moved(before, after)
    assert "params/conv2/kernel" not in moved(before, after)


def test_frozen_norms_normalise_as_in_evaluation():
    """Also where blocks are rematerialised; the gradient of what trains is that of the model in evaluation mode."""
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    model = CifarResNet(num_classes=5, num_blocks=1, width=0.25, remat=True)
    variables = jax.jit(partial(model.init, train=True))(jax.random.key(0), images)
    finetune = FinetuneConfig(frozen=("*", "!head"))
    finetuning = make_finetuning(finetune, variables["params"], steps_per_epoch=1)

    @jax.jit
    def apply(variables):
        evaluated = model.apply(variables, images, train=False)
        trained, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        with finetuning.norms_held(jnp.zeros((), jnp.int32)):
            held, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return evaluated, trained, held, updated["batch_stats"]

    evaluated, trained, held, updated = apply(variables)
    np.testing.assert_allclose(held, evaluated, rtol=1e-6, atol=1e-6)
    assert not np.allclose(held, trained, rtol=1e-2)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (updated, variables["batch_stats"]))))


def test_no_gradient_is_computed_of_frozen_layers():
    """By XLA's count: of a step of three passes little more than the forward one is left."""
    whole, some, least = (
        step_cost(build(config_of(finetune__frozen=frozen, optimizer__clip_norm=1.0))[0])[0]
        for frozen in ((), LOWER[:1], ("*", "!head"))
    )
    assert least < 0.4 * whole
    assert least < some < 0.75 * whole


def test_patterns():
    params = {"stem": {"kernel": 1}, "stage1_block1": {"conv": {"kernel": 1, "bias": 1}}, "head": {"kernel": 1}}
    params = jax.tree.map(lambda _: jax.ShapeDtypeStruct((2, 2), jnp.float32), params)

    def frozen(*patterns):
        found = make_finetuning(FinetuneConfig(frozen=patterns), params, steps_per_epoch=1)
        return {path for path, start in found.starts.items() if start is None}

    conv = {"stage1_block1/conv/kernel", "stage1_block1/conv/bias"}
    assert frozen("stage1_*") == frozen("stage1_block1") == frozen("*/conv") == conv
    assert frozen("*", "!head") == {"stem/kernel"} | conv
    assert frozen("*", "!stage1_*", "stage1_block1/conv/bias") == {"stem/kernel", "head/kernel", *conv} - {
        "stage1_block1/conv/kernel"
    }
    for patterns, says in (
        (("stage1_blok1",), r"'stage1_blok1' matches no parameter; did you mean 'stage1_block1'\?"),
        (("stem", "!heads"), r"'!heads' matches no parameter; did you mean 'head'\?"),
        (("stage1_block1/conf",), r"did you mean 'stage1_block1/conv'\?"),
        (("*",), "leaves nothing to train"),
    ):
        with pytest.raises(UserError, match=says):
            frozen(*patterns)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet20", 32, [("stem_conv", "stem_norm"), ("stage1_block1",), ..., ("stage3_block3",), ("head",)]),
        ("vgg11_bn", 32, [("stage1_conv1", "stage1_norm1"), ("stage2_conv1", "stage2_norm1"), ..., ("head",)]),
        ("convnext_tiny", 32, [("stem_conv", "stem_norm"), ..., ("head_norm", "head")]),
        ("vit_ti_16", 224, [("patch_embedding", "class_token", "position_embedding"), ("layer1",), ..., ("layer12",),
                            ("head_norm", "head")]),
        ("preact_resnet18", 32, [("stem_conv",), ("stage1_block1",), ..., ("final_norm", "head")]),
        ("googlenet", 64, [("conv1",), ("conv2",), ..., ("inception5b",), ("auxiliary1", "auxiliary2", "head")]),
    ],
)  # fmt: skip
def test_layers_are_in_forward_order(name, size, expected):
    params = params_in_order(MODELS[name](num_classes=3), jax.ShapeDtypeStruct((size, size, 3), jnp.float32))
    found = layers_of(params)
    gap = expected.index(...)
    assert found[:gap] == expected[:gap]
    assert found[len(found) - len(expected) + gap + 1 :] == expected[gap + 1 :]
    assert sorted(itertools.chain(*found)) == sorted(params)


# ---- from when


def test_gradual_unfreezing_opens_a_stage_an_epoch_from_the_head_down():
    """And what is closed stays bit for bit until then, statistics and averages too; in one program."""
    config = config_of(finetune__unfreeze_epochs=(2 / STEPS_PER_EPOCH, 4 / STEPS_PER_EPOCH))
    found = states(config, 6)
    opened = [
        [bool(of_layer(moved(before, after), number)) for number in (1, 2)]
        for before, after in itertools.pairwise(found)
    ]
    assert opened == [[False, False]] * 2 + [[False, True]] * 2 + [[True, True]] * 2
    assert not of_layer(moved(found[0], found[4]), 1)
    assert all("params/head/kernel" in moved(a, b) for a, b in itertools.pairwise(found))
    assert len(of_layer(moved(found[4], found[5]), 1)) == 2 * (3 + 2)  # weights and statistics, and their averages


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("airbench_")])
def test_a_layer_that_opens_later_begins_as_if_the_run_began(name):
    """Its first step is an optimizer's very first: neither momentum nor the counts of Adam have gone on meanwhile."""
    config = OptimizerConfig(name=name, weight_decay=0.1)
    params = {"first": {"kernel": jnp.ones((2, 3)) / 3}, "head": {"kernel": -jnp.ones((3, 2)) / 2}}
    grads = [jax.tree.map(lambda p, k=k: jax.random.normal(jax.random.key(k), p.shape), params) for k in range(4)]
    finetuning = make_finetuning(FinetuneConfig(unfreeze_epochs=(2.0,)), params, steps_per_epoch=1)
    gradual = make_optimizer(config, optax.constant_schedule(0.1), finetuning)
    plain = make_optimizer(config, optax.constant_schedule(0.1))

    def steps(chain, first, params):
        @jax.jit
        def step(state, params, grad, number):
            grad = finetuning.gradients(grad, params, number) if chain is gradual else grad
            updates, state = chain.update(grad, state, params)
            return state, optax.apply_updates(params, updates)

        state, every = chain.init(params), []
        for number in range(first, 4):
            state, params = step(state, params, grads[number], jnp.asarray(number))
            every.append(params)
        return every

    found = steps(gradual, 0, params)
    np.testing.assert_array_equal(found[1]["first"]["kernel"], params["first"]["kernel"])
    alone = steps(plain, 2, params)
    for late, early in zip(found[2:], alone, strict=True):
        np.testing.assert_allclose(late["first"]["kernel"], early["first"]["kernel"], rtol=1e-6, atol=1e-7)
    assert not np.array_equal(found[3]["first"]["kernel"], params["first"]["kernel"])


def test_clipping_by_norm_is_over_what_trains_now():
    params = {"first": {"kernel": jnp.ones((1, 2))}, "head": {"kernel": jnp.ones((1, 2))}}
    finetuning = make_finetuning(FinetuneConfig(unfreeze_epochs=(1.0,)), params, steps_per_epoch=1)
    chain = make_optimizer(OptimizerConfig(name="sgd", clip_norm=1.0), optax.constant_schedule(1.0), finetuning)
    grads = {"first": {"kernel": jnp.full((1, 2), 100.0)}, "head": {"kernel": jnp.array([[3.0, 4.0]])}}
    state = chain.init(params)
    closed = finetuning.gradients(grads, params, jnp.asarray(0))
    updates, _ = chain.update(closed, state, params)
    np.testing.assert_allclose(updates["head"]["kernel"], [[-0.6, -0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finetune__unfreeze_epochs": (1.0, 2.0, 3.0)}, "3 epochs, and below the head 2 stages train: conv2, conv1"),
        ({"finetune__unfreeze_epochs": (1.0, 2.0), "finetune__frozen": ("conv1", "norm1")}, "1 stages train: conv2"),
        ({"finetune__unfreeze_epochs": (0.01,)}, "must each be a later step"),
        ({"finetune__frozen": ("stem*",)}, "'stem\\*' matches no parameter; .*conv1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(changes, says):
    with pytest.raises(UserError, match=says):
        build(config_of(**changes))


def test_what_cannot_be_is_said_before_anything_is_built():
    for changes, says in (
        ({"unfreeze_epochs": (2.0, 1.0)}, "must increase"),
        ({"layer_decay": 1.5}, "out of range"),
        ({"head_rate": 0.0}, "out of range"),
    ):
        config = small_config()
        config.finetune = FinetuneConfig(**changes)
        with pytest.raises(UserError, match=says):
            validate(config)
    config = small_config(optimizer__name="airbench_sgd")
    config.finetune = FinetuneConfig(head_rate=2.0)
    with pytest.raises(UserError, match=r"for finetune\.\* choose another"):
        validate(config)


# ---- how fast


def test_rates_by_a_hand_computed_step():
    """Decoupled decay goes with a layer's rate: w - rate * (sign + 0.1 w), by Lion, whose step is the sign."""
    params = {"first": {"kernel": jnp.full((1, 1), 2.0)}, "second": {"kernel": jnp.full((1, 1), 3.0)}}
    params["head"] = {"kernel": jnp.full((1, 1), 4.0)}
    finetune = FinetuneConfig(layer_decay=0.5, head_rate=10.0)
    finetuning = make_finetuning(finetune, params, steps_per_epoch=1)
    assert [(layer.modules, layer.rate) for layer in finetuning.layers] == [
        (("first",), 0.25), (("second",), 0.5), (("head",), 10.0),
    ]  # fmt: skip
    config = OptimizerConfig(name="lion", weight_decay=0.1)
    chain = make_optimizer(config, optax.constant_schedule(0.01), finetuning)
    updates, _ = chain.update(jax.tree.map(jnp.ones_like, params), chain.init(params), params)
    moved = optax.apply_updates(params, updates)
    for name, weight, rate in (("first", 2, 0.25), ("second", 3, 0.5), ("head", 4, 10)):
        np.testing.assert_allclose(moved[name]["kernel"], weight - 0.01 * rate * (1 + 0.1 * weight), rtol=1e-6)


def test_at_rates_of_one_it_is_the_plain_optimizer(plain):
    other = states(config_of(finetune__head_rate=1 + 1e-7), 3)  # another program, so not bit for bit
    for left, right in zip(jax.tree.leaves(plain[-1].params), jax.tree.leaves(other[-1].params), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


# ---- everywhere


GRADUAL = {
    "finetune__unfreeze_epochs": (3 / STEPS_PER_EPOCH, 6 / STEPS_PER_EPOCH),
    "finetune__layer_decay": 0.8,
    "finetune__head_rate": 2.0,
}


@pytest.fixture(scope="module")
def on_one_device():
    return states(config_of(**GRADUAL), 8)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_one_device_and_eight_agree(mode, on_one_device):
    one = on_one_device[-1]
    eight = states(config_of(**GRADUAL, num_devices=8, parallel=mode), 8)
    for left, right in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight[-1].params), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)
    assert not of_layer(moved(eight[0], eight[6]), 1)
    assert of_layer(moved(eight[6], eight[7]), 1)


def test_killed_while_unfreezing_and_resumed_is_never_killed(tmp_path, stop_at):  # noqa: F811
    config = config_of(**GRADUAL, model__dropout_rate=0.1, log_every_steps=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, whole)
    stop_at(4)
    with pytest.raises(Preempted):
        train(config, killed)
    train(config, killed)
    assert_same_arrays(arrays(killed, config), arrays(whole, config))
    assert rows(killed) == rows(whole)
    config.finetune.layer_decay = 0.7
    with pytest.raises(UserError, match=r"finetune\.layer_decay \(0\.8 -> 0\.7\)"):
        train(config, killed)


def test_the_table_says_what_trains():
    run, _ = build(config_of(finetune__frozen=("conv1", "norm1/scale"), finetune__layer_decay=0.5))
    first, _, head = run.learning.finetuning.layers
    assert first == Layer(("conv1", "norm1"), rate=0.25, start=0, num_params=72 + 16, num_trained=8)
    assert head.start == 0
    console = Console(file=io.StringIO(), width=120)
    console.print(run.learning.finetuning.table(run.learning.steps_per_epoch))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in text for word in ("conv1, norm1", "0.25", "head"))
    total = sum(layer.num_params for layer in run.learning.finetuning.layers)
    assert f"{total - 72 - 8:,} of {total:,} parameters train" in text
    assert math.isclose(sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params)), total)


def test_a_held_batch_norm_follows_a_traced_flag():
    x = jax.random.normal(jax.random.key(0), (8, 4)) * 3 + 1
    norm = BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)

    @jax.jit
    def apply(held):
        return norm.apply(variables, x, held, mutable=["batch_stats"])

    plain = norm.apply(variables, x, mutable=["batch_stats"])
    for flag, expected in ((False, plain), (True, norm.apply(variables, x, True, mutable=["batch_stats"]))):
        for left, right in zip(*map(jax.tree.leaves, (apply(flag), expected)), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    assert not np.allclose(plain[0], apply(True)[0])


# ---- transfer: classes, few images, weights of another run, a probe


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run on five of the digits."""
    folder = tmp_path_factory.mktemp("pretrained")
    train(small_config(data__classes=(0, 1, 2, 3, 4), num_steps=16, checkpoint__every_steps=8), folder)
    return folder


def test_frozen_layers_begin_and_end_as_the_weights_they_came_with(pretrained, tmp_path):
    config = small_config(
        data__classes=("9", "8", "7", "6", "5"), data__examples_per_class=20, init_from=str(pretrained),
        init_head="new", finetune__frozen=LOWER,
    )  # fmt: skip
    train(config, tmp_path)
    run, _ = build(config)
    start, end = run.init(), arrays(tmp_path, config)
    frozen = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(start.params)[0]
    ]
    for name, leaf in frozen:
        same = [end[f"state/{kind}params/{name}"].tobytes() == leaf.tobytes() for kind in ("", "ema/")]
        assert same == [not name.startswith("head")] * 2, name


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_probe_is_of_the_models_own_features(num_devices):
    config = small_config(
        data__classes=(5, 6, 7, 8, 9), data__examples_per_class=40, model__name="cnn", num_devices=num_devices
    )
    run, feed = build(config)
    variables = result_variables(run.init())
    assert isinstance(feed, ResidentFeed)
    images, labels = feed.arrays("validation")[0].values()
    features, found = features_of(run, feed, "validation", variables)
    np.testing.assert_array_equal(found, labels)
    normalised = make_normalise(run.facts["mean"], run.facts["std"])(jnp.asarray(images))
    expected = feature_pyramid(run.learning.model, variables, normalised)["pooled"]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    if num_devices > 1:
        return
    for classifier in ("logistic", "svm"):
        result = linear_probe(run, feed, classifier=classifier)
        assert result["splits"]["test"]["accuracy"] > 0.9  # even of a network that has learned nothing
        sizes = {split: each["num_examples"] for split, each in result["splits"].items()}
        assert sizes == {split: len(each) for split, each in run.source.splits.items()}
    with pytest.raises(UserError, match=r"--layer=pooling: cnn has no such features; did you mean 'pooled'"):
        linear_probe(run, feed, layer="pooling")
    feed.close()


def test_the_probes_command(tmp_path, capsys):
    from jaxcnn.transfer.__main__ import main

    config = ["probe", "--config=experiments/digits.py", "--config.data.examples_per_class=20"]
    for argv, says in (
        ([], "no weights given; pass --config.init_from"),
        (["--classifier=logistics"], "did you mean 'logistic'"),
        (["--config.init_from=nowhere"], "init_from=nowhere: there is no such file"),
    ):
        with pytest.raises(UserError, match=says):
            main(["transfer", *config, *argv], 0.0)
    weights = tmp_path / "weights"
    changes = {"model__name": "cnn", "model__dropout_rate": 0.3, "num_steps": 2, "batch_size": 48}
    train(small_config(**changes), weights)
    file = tmp_path / "probe.json"
    code = main(["transfer", *config, f"--config.init_from={weights}", "--config.num_devices=1", f"--json={file}"], 0.0)
    assert code == 0
    result = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["splits"]["test"]["accuracy"] > 0.8


@pytest.mark.slow
def test_a_probe_of_a_runs_folder(tmp_path, capsys):
    """Of its best weights, on its splits, by its statistics."""
    from jaxcnn.transfer.__main__ import main

    config = small_config(model__name="cnn", num_steps=8, data__examples_per_class=20)
    train(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"--config\.seed=1: --workdir takes the run's own config; give one of the two"):
        main(["transfer", "probe", "--workdir", str(tmp_path / "run"), "--config.seed=1"], 0.0)
    with pytest.raises(UserError, match="holds no run"):
        main(["transfer", "probe", f"--workdir={tmp_path}"], 0.0)
    capsys.readouterr()
    assert main(["transfer", "probe", "--workdir", str(tmp_path / "run")], 0.0) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result.pop("workdir") == str(tmp_path / "run")
    assert result.pop("experiment")
    saved = read_config(epath.Path(tmp_path / "run"))["data"]
    run, feed = build(config, facts=saved)
    with contextlib.closing(feed):
        assert result == linear_probe(run, feed, variables=jaxcnn.load(str(tmp_path / "run")).variables)
        assert result != linear_probe(run, feed)
