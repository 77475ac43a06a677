"""Pruning: a pruned model is the whole one with zeros in place of what went, for every family; and the command."""

import json
import math
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxcnn.compression.channels import Channels, find_channels
from jaxcnn.compression.pruning import (
    LEAST_KEPT,
    Arrays,
    choose,
    contributions,
    importances,
    masked,
    widths_of,
    with_zeros,
    without,
)
from jaxcnn.config import Config, ModelConfig, parse_channels, validate
from jaxcnn.errors import UserError
from jaxcnn.layers.conv import by
from jaxcnn.layers.norm import GroupNorm
from jaxcnn.layers.widths import narrowed
from jaxcnn.models import MODELS
from jaxcnn.report.layers import layers
from tests.commands import run_here
from tests.runs import small_config, train
from tests.test_families import FAMILIES

QUICK = ("lenet5", "resnet20")
# Families whose layers see all channels together, so that only what stands within their blocks can go exactly.
WITHIN_BLOCKS = ("cbam_resnet18", "convnext_tiny", "vit_ti_16", "mixer_s32")


def drawn(model: Any, size: int) -> tuple[Arrays, Any]:
    """Arrays of a model, drawn by their names so that no norm, bias or gate is trivial; and its example."""
    example = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jax.ShapeDtypeStruct((2, *example.shape), jnp.float32)
    shapes = jax.eval_shape(by("xla", partial(model.init, train=True)), keys, images)
    arrays = {}
    for path, leaf in traverse_util.flatten_dict(dict(shapes)).items():
        rng, name = np.random.default_rng(zlib.crc32("/".join(path).encode())), path[-1]
        if name in ("scale", "var"):
            array = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) if name == "kernel" else 0.1
            array = scale * rng.standard_normal(leaf.shape)
        arrays[path] = array.astype(np.float32)
    return arrays, example


def pruned(model: Any, arrays: Arrays, example: Any, **options: Any) -> tuple[Any, Arrays, Arrays, Channels]:
    """(the pruned model, its arrays, those of the whole model with zeros, the channels)."""
    channels = find_channels(model, traverse_util.unflatten_dict(arrays), example)
    kept = choose(channels, importances("l1", channels, arrays), **{"keep": 0.5, **options})
    left = without(arrays, kept)
    widths = widths_of(partial(narrowed, model), {}, left, channels, example)
    return narrowed(model, widths), left, masked(arrays, kept), channels


def logits(model: Any, arrays: Arrays, images: Any) -> np.ndarray:
    call = jax.jit(by("xla", partial(model.apply, train=False)))
    return np.asarray(call(traverse_util.unflatten_dict(arrays), images))


def size_of(arrays: Arrays) -> int:
    return sum(array.size for path, array in arrays.items() if path[0] == "params")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_pruned_is_masked(name: str) -> None:
    model: Any = MODELS[name](num_classes=10, **({} if name in ("mlp", "lenet5", "cnn") else _small(name)))
    arrays, example = drawn(model, FAMILIES[name])
    smaller, left, zeros, channels = pruned(model, arrays, example)
    images = np.random.default_rng(0).standard_normal((2, *example.shape)).astype(np.float32)
    expected, found = logits(model, zeros, images), logits(smaller, left, images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(logits(model, arrays, images) - expected).max() > 1e-3 * np.abs(expected).max()  # it is another
    most = 0.9 if name in WITHIN_BLOCKS else 0.62  # of parameters; the last layers of some have nothing before them
    assert size_of(left) <= most * size_of(arrays), (size_of(left), size_of(arrays), channels.num_fixed)
    if name not in WITHIN_BLOCKS:
        assert not channels.unknown


def _small(name: str) -> dict[str, Any]:
    takes = MODELS[name](num_classes=10).__dataclass_fields__
    return {"stem": "small"} if "stem" in takes and name != "mixer_s32" else {}


@pytest.mark.parametrize("name", ["resnet20", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_a_pruned_model_is_pruned_again(name: str) -> None:
    model: Any = MODELS[name](num_classes=10)
    arrays, example = drawn(model, 32)
    once, left, _, _ = pruned(model, arrays, example)
    channels = find_channels(once, traverse_util.unflatten_dict(left), example)
    kept = choose(channels, importances("l1", channels, left), keep=0.5)
    twice_left = without(left, kept)
    widths = widths_of(partial(narrowed, model), once.widths, twice_left, channels, example)
    images = np.random.default_rng(0).standard_normal((2, *example.shape)).astype(np.float32)
    expected = logits(once, masked(left, kept), images)
    found = logits(narrowed(model, widths), twice_left, images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_layers_keep_multiples() -> None:
    model: Any = MODELS["resnet20"](num_classes=10)
    arrays, example = drawn(model, 32)
    smaller, left, _, _ = pruned(model, arrays, example, keep=0.3, multiple=8)
    assert {width % 8 for width in smaller.widths.values()} == {0}
    kernel = "params", "stage3_block3", "conv1", "kernel"
    assert left[kernel].shape[-1] == 16  # 0.3 * 64 = 19.2


def test_what_is_normalised_together_stays() -> None:
    model: Any = MODELS["resnet20"](num_classes=10, norm=GroupNorm)
    arrays, example = drawn(model, 16)
    channels = find_channels(model, traverse_util.unflatten_dict(arrays), example)
    assert not channels.groups
    assert channels.num_fixed


def test_channels_of_a_residual_stage_go_together() -> None:
    model: Any = MODELS["resnet20"](num_classes=10)
    arrays, example = drawn(model, 16)
    channels = find_channels(model, traverse_util.unflatten_dict(arrays), example)
    (stream,) = (group for group in channels.groups if (("params", "stem_conv", "kernel"), 3) in group.places)
    assert len(stream) == 16  # the shortcuts of the other stages append zeros behind them
    for stage in (1, 2, 3):
        np.testing.assert_array_equal(
            stream.places[("params", f"stage{stage}_block3", "conv2", "kernel"), 3][:, 0], range(16)
        )
    assert sorted(map(len, channels.groups)) == sorted([16, 16, 32, *[16] * 3, *[32] * 3, *[64] * 3])


# ---- how much a channel matters, and which go


def test_importances_by_hand() -> None:
    model: Any = MODELS["resnet20"](num_classes=10)
    arrays, example = drawn(model, 16)
    channels = find_channels(model, traverse_util.unflatten_dict(arrays), example)
    conv, norm = ("params", "stage1_block1", "conv1", "kernel"), ("params", "stage1_block1", "norm1", "scale")
    number = next(number for number, group in enumerate(channels.groups) if (conv, 3) in group.places)
    for by_what, expected in (("l1", np.abs(arrays[conv]).mean(axis=(0, 1, 2))), ("norm", np.abs(arrays[norm]))):
        np.testing.assert_allclose(importances(by_what, channels, arrays)[number], expected, rtol=1e-6)


def test_taylor_is_what_the_loss_loses_to_first_order() -> None:
    model: Any = MODELS["resnet20"](num_classes=10)
    arrays, example = drawn(model, 16)
    channels = find_channels(model, traverse_util.unflatten_dict(arrays), example)
    images = np.random.default_rng(1).standard_normal((4, *example.shape)).astype(np.float32)
    targets = np.arange(4)

    def loss(outputs: Any, targets: Any) -> Any:
        return -jax.nn.log_softmax(outputs)[jnp.arange(4), targets]

    variables = traverse_util.unflatten_dict(arrays)
    found = importances("taylor", channels, arrays, contributions(model, variables, loss, [(images, targets)]))
    norm = "params", "stage2_block2", "norm1"
    number = next(number for number, group in enumerate(channels.groups) if ((*norm, "scale"), 0) in group.places)
    step, change = 1e-2, []
    for sign in (1, -1):  # channel 5 times 1 +- step: the derivative is the sum of gradient times weight
        scaled = dict(arrays)
        for name in ("scale", "bias"):
            scaled[(*norm, name)] = arrays[(*norm, name)].copy()
            scaled[(*norm, name)][5] *= 1 + sign * step
        change.append(float(np.mean(loss(jnp.asarray(logits(model, scaled, images)), targets))))
    slope = (change[0] - change[1]) / (2 * step)
    np.testing.assert_allclose(found[number][5], slope**2, rtol=2e-2)


def test_the_least_go_within_a_layer_or_of_the_network() -> None:
    model: Any = MODELS["lenet5"](num_classes=10)
    arrays, example = drawn(model, 28)
    channels = find_channels(model, traverse_util.unflatten_dict(arrays), example)
    scores = [np.arange(len(group)) + 1000.0 * number for number, group in enumerate(channels.groups)]
    kept = choose(channels, scores, keep=0.25)
    assert [each.stays.sum() for each in kept] == [round(0.25 * len(group)) for group in channels.groups]
    assert all(each.stays[-1] and not each.stays[0] for each in kept)
    kept = choose(channels, scores, keep=0.4, ranked="network")
    assert kept[0].stays.sum() == max(1, round(LEAST_KEPT * len(channels.groups[0])))
    total = sum(map(len, channels.groups))
    left = total - sum(int((~each.stays).sum()) for each in kept)
    assert 0.4 * total <= left <= 0.4 * total + LEAST_KEPT * total + len(kept)


def test_zeros_are_the_smallest_weights() -> None:
    arrays, _ = drawn(MODELS["lenet5"](num_classes=10), 28)
    zeroed = with_zeros(arrays, 0.9)
    kernels = [path for path in arrays if path[-1] == "kernel"]
    zeros = sum((zeroed[path] == 0).sum() for path in kernels)
    assert zeros == round(0.9 * sum(arrays[path].size for path in kernels))
    largest_gone = max(np.abs(arrays[path][zeroed[path] == 0]).max(initial=0) for path in kernels)
    assert largest_gone <= min(np.abs(zeroed[path][zeroed[path] != 0]).min(initial=9) for path in kernels)


# ---- widths in the config


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (("stem_conv",), "write each layer once"),
        (("stem_conv=0",), "write each layer once"),
        (("stem_conv=8", "stem_conv=9"), "write each layer once"),
        (("stem conv=8",), "write each layer once"),
    ],
)
def test_widths_that_are_none(channels: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        validate(Config(model=ModelConfig(channels=channels)))


def test_widths_of_layers_that_are_not_there_or_do_not_fit() -> None:
    keys, images = {"params": jax.random.key(0), "dropout": jax.random.key(0)}, jnp.zeros((2, 16, 16, 3))
    model: Any = MODELS["resnet20"](num_classes=10)
    for widths, words in (
        ({"stem_cnv": 8}, "no layer 'stem_cnv'; did you mean 'stem_conv'"),
        ({"stem_conv": 8}, "do not fit together"),
        ({"stage1_block1/norm1": 8}, "no layer 'stage1_block1/norm1'"),
    ):
        with pytest.raises(UserError, match=words):
            jax.eval_shape(partial(narrowed(model, widths).init, train=True), keys, images)
    with pytest.raises(UserError, match="head is as wide as there are classes"):
        narrowed(model, {"head": 5})
    assert parse_channels(("stem_conv=8", "a/b=3")) == {"stem_conv": 8, "a/b": 3}


def test_a_narrow_model_is_as_before_in_all_else() -> None:
    model: Any = MODELS["airbench93"](num_classes=10)
    narrow = narrowed(model, {"group1/conv1": 40, "group2/conv1": 8})
    assert narrowed(model, {"group1/conv1": 40, "group2/conv1": 8}) == narrow != model
    assert type(narrow).__name__ == "Airbench"
    assert narrow.from_data.__func__ is model.from_data.__func__
    assert narrowed(model, {}) is model


def test_layers_of_a_pruned_model_cost_less() -> None:
    model: Any = MODELS["resnet20"](num_classes=10)
    arrays, example = drawn(model, 16)
    smaller, left, _, _ = pruned(model, arrays, example)
    each, whole = layers(smaller, traverse_util.unflatten_dict(left), example.shape, batch_size=1)
    assert whole.num_params == size_of(left)
    assert sum(layer.num_params for layer in each) == sum(
        array.size for path, array in left.items() if path[0] == "params"
    )
    assert sum(layer.multiply_adds for layer in each) == whole.multiply_adds


# ---- the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruning") / "run"
    train(small_config(), folder)
    return folder


def prune(*arguments: object) -> tuple[int, str, str]:
    return run_here(*arguments, module="prune")


@pytest.mark.parametrize("by_what", ["l1", "norm", "taylor"])
def test_the_command(finished: Path, tmp_path: Path, by_what: str) -> None:
    out = tmp_path / "half"
    code, output, errors = prune(
        f"--workdir={finished}", f"--out={out}", f"--by={by_what}", "--ranked=layer", "--images=96", "--epochs=0.2"
    )
    assert (code, errors) == (0, "")
    assert "12 of 24 channels are gone" in output
    facts = json.loads((out / "compression.json").read_text())
    assert facts["after"]["parameters"] < 0.6 * facts["before"]["parameters"]
    assert facts["after"]["multiply_adds"] < 0.6 * facts["before"]["multiply_adds"]
    assert json.loads((out / "config.json").read_text())["config"]["model"]["channels"] == ["conv1=4", "conv2=8"]
    if by_what != "l1":
        return
    code, output, errors = run_here(f"--workdir={out}", "--resamples=0", "--nocalibrate", module="evaluate")
    assert (code, errors) == (0, "")
    (experiment,) = out.glob("*.py")
    code, output, errors = run_here(f"--config={experiment}", f"--workdir={out}")  # goes on in the same folder
    assert (code, errors) == (0, "")
    assert "resuming at step 0" in output
    assert json.loads((out / "summary.json").read_text())["num_params"] == facts["after"]["parameters"]
    elsewhere = tmp_path / "elsewhere"  # or begins with its weights in another, by other settings
    code, output, errors = run_here(
        f"--config={experiment}", f"--workdir={elsewhere}", "--config.num_steps=2", "--config.optimizer.momentum=0.5"
    )
    assert (code, errors) == (0, "")
    code, output, errors = prune(f"--workdir={elsewhere}", f"--out={tmp_path / 'quarter'}")
    assert (code, errors) == (0, "")
    saved = json.loads((tmp_path / "quarter" / "config.json").read_text())
    assert saved["config"]["model"]["channels"] == ["conv1=2", "conv2=4"]
    assert saved["experiment"] == "test_pruned"


def test_rounds(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []

    def command(module: str, *arguments: str) -> int:
        given.append((module, *arguments))
        return run_here(*arguments, module=module)[0]

    monkeypatch.setattr("jaxcnn.prune._command", command)
    arguments = f"--workdir={finished}", f"--out={tmp_path / 'new'}", "--keep=0.25", "--rounds=2", "--epochs=0.1"
    assert prune(*arguments)[0] == 0
    assert [each[0] for each in given] == ["prune", "main", "prune"]
    for folder, channels in (("new/round1", ["conv1=4", "conv2=8"]), ("new", ["conv1=2", "conv2=4"])):
        assert json.loads((tmp_path / folder / "config.json").read_text())["config"]["model"]["channels"] == channels
    assert json.loads((tmp_path / "new/round1/summary.json").read_text())["status"] == "finished"
    given.clear()
    assert prune(*arguments)[0] == 2  # it is there


def test_the_command_says_that_zeros_are_no_faster(finished: Path, tmp_path: Path) -> None:
    code, output, errors = prune(f"--workdir={finished}", f"--out={tmp_path / 'sparse'}", "--unstructured=0.9")
    assert (code, errors) == (0, "")
    assert "no faster" in output


HOSTILE = {
    "no run": ([], "no run given; pass --workdir"),
    "no out": (["--workdir={run}"], "pass --out"),
    "all of it": (["--workdir={run}", "--out={new}", "--keep=1"], "--keep=1 is no part of a whole"),
    "more than all": (["--workdir={run}", "--out={new}", "--keep=1.5"], "between 0 and 1"),
    "not a number": (["--workdir={run}", "--out={new}", "--keep=nan"], "between 0 and 1"),
    "nothing left": (["--workdir={run}", "--out={new}", "--unstructured=1"], "between 0 and 1"),
    "unknown measure": (["--workdir={run}", "--out={new}", "--by=l2"], "did you mean 'l1'"),
    "unknown ranking": (["--workdir={run}", "--out={new}", "--ranked=net"], "did you mean 'network'"),
    "both": (["--workdir={run}", "--out={new}", "--by=l1", "--unstructured=0.5"], "give one of them"),
    "a folder that is not empty": (["--workdir={run}", "--out={run}"], "holds something; name a new folder"),
    "a file": (["--workdir={run}", "--out={run}/config.json"], "--out={run}/config.json"),
    "no such run": (["--workdir={new}", "--out={new}"], "holds no run"),
    "no such step": (["--workdir={run}", "--out={new}", "--step=77"], "there are checkpoints of steps"),
    "too coarse": (["--workdir={run}", "--out={new}", "--multiple=512"], "lower --keep or --multiple"),
    "a rate of nothing": (["--workdir={run}", "--out={new}", "--learning_rate=0"], "must be above 0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_is_said_in_a_line(case: str, finished: Path, tmp_path: Path) -> None:
    arguments, words = HOSTILE[case]
    places = {"run": finished, "new": tmp_path / "new"}
    code, _, errors = prune(*(each.format(**places) for each in arguments))
    assert code == 2
    assert words.format(**places) in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_other_tasks_are_not_pruned(finished: Path, tmp_path: Path) -> None:
    saved = json.loads((finished / "config.json").read_text())
    saved["config"]["task"] = "multilabel"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    code, _, errors = prune(f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'new'}")
    assert (code, errors.count("\n")) == (2, 1)
    assert "task=multilabel" in errors
