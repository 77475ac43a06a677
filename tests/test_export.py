"""Exports of a run's network: each format, loaded by the runtime that others have, computes what the run does."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from benchmarks.exports import logits_of, random_network
from benchmarks.zoo import FAMILIES
from jaxcnn.errors import RunError, UserError
from jaxcnn.export import network as networks
from jaxcnn.export.onnx import run_onnx, to_onnx
from jaxcnn.export.parity import compare
from jaxcnn.export.safetensors import run_safetensors, to_safetensors
from jaxcnn.export.stablehlo import run_stablehlo, to_stablehlo
from jaxcnn.layers.blocks import ACTIVATIONS
from jaxcnn.transfer.state_dicts import read_safetensors
from tests.commands import run_here
from tests.runs import begin, small_config, train
from tests.test_plain import noise

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")


# ---- operations


def converted(function, *shape, dtype=jnp.float32):
    """(the kinds of its nodes; what onnxruntime makes of two batches) of a function of one array."""
    example = jax.ShapeDtypeStruct(shape, dtype)
    model = to_onnx(lambda _, x: function(x), {}, example)
    return [node.op_type for node in model.graph.node], model.SerializeToString()


def assert_same(function, *shape, nodes=None, scale=1.0):
    kinds, content = converted(function, *shape)
    for batch in (1, 3):
        x = scale * noise(batch, *shape)
        np.testing.assert_allclose(run_onnx(content, x), np.asarray(function(x)), rtol=2e-5, atol=2e-5)
    if nodes is not None:
        assert kinds == nodes


ACTIVATION_NODES = {
    "relu": ["Relu"], "relu6": ["Clip"], "leaky_relu": ["LeakyRelu"], "tanh": ["Tanh"], "sigmoid": ["Sigmoid"],
    "silu": ["Sigmoid", "Mul"], "hard_swish": ["HardSwish"],
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    assert_same(ACTIVATIONS[name], 5, scale=4.0, nodes=ACTIVATION_NODES.get(name))


def test_gelu_is_as_onnxruntime_knows_it():
    kinds, _ = converted(ACTIVATIONS["gelu"], 5)
    assert sorted(kinds) == ["Add", "Div", "Erf", "Mul", "Mul"]


OPERATIONS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "softmax": (nn.softmax, (4, 5), ["Softmax"]),
    "softmax over another axis": (partial(nn.softmax, axis=1), (4, 5), ["Softmax"]),
    "mean": (lambda x: jnp.mean(x, axis=(1, 2)), (4, 5, 3), ["ReduceMean"]),
    "mean that is kept": (lambda x: x - jnp.mean(x, axis=1, keepdims=True), (4, 5), ["ReduceMean", "Sub"]),
    "largest, and a number": (lambda x: jnp.max(x, axis=-1) * 2 + 1, (4, 5), None),
    "least": (lambda x: jnp.min(x, axis=1), (4, 5), ["ReduceMin"]),
    "first token": (lambda x: x[:, 0], (4, 5), ["Gather"]),
    "every other pixel": (lambda x: x[:, ::2, 1::2], (6, 6, 2), ["Slice"]),
    "last row, backwards": (lambda x: x[:, ::-1], (6, 2), None),
    "columns that are named": (lambda x: x[:, :, jnp.array([2, 0, 2])], (3, 4), ["Gather"]),
    "halves": (lambda x: jnp.concatenate(jnp.split(x, 2, axis=-1)[::-1], axis=-1), (3, 4), None),
    "zeros around": (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3))), (3, 4), ["Pad"]),
    "a token for each example": (
        lambda x: jnp.concatenate([jnp.broadcast_to(noise(1, 1, 4), (x.shape[0], 1, 4)), x], axis=1), (3, 4), None,
    ),
    "powers": (lambda x: x**2 + jnp.abs(x) ** 1.5 + lax.rsqrt(1 + x * x) + jnp.square(x), (4,), None),
    "logarithms": (lambda x: jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.expm1(x) + jnp.exp2(x), (4,), None),
    "a choice": (lambda x: jnp.where(x > 0.5, x, -2 * x), (4,), None),
    "clipped": (lambda x: jnp.clip(x, -0.5, 0.5), (4,), None),
    "running sum": (lambda x: jnp.cumsum(x, axis=1), (4, 3), ["CumSum"]),
    "place of the largest": (lambda x: jnp.argmax(x, axis=1).astype(jnp.float32), (4, 3), None),
    "shuffled channels": (lambda x: x.reshape(*x.shape[:-1], 2, 3).swapaxes(-1, -2).reshape(x.shape), (4, 6), None),
    "dense": (lambda x: x @ noise(4, 3) + noise(3), (4,), ["Gemm"]),
    "dense of tokens": (lambda x: x @ noise(4, 3), (5, 4), ["MatMul"]),
    "what is known comes first": (lambda x: jnp.einsum("ih,bhwc->biwc", noise(2, 5), x), (5, 4, 3), None),
    "patches": (
        lambda x: jnp.einsum("brpcqi,pqio->brco", x.reshape(x.shape[0], 2, 2, 3, 2, 3), noise(2, 2, 3, 4)),
        (4, 6, 3), None,
    ),
    "products of two": (lambda x: jnp.einsum("btnh,bsnh->bnts", x, x + 1), (5, 2, 3), None),
    "averages of windows": (
        lambda x: nn.avg_pool(x, (2, 2), (2, 2)), (4, 6, 3), ["Transpose", "AveragePool", "Transpose"],
    ),
    "averages with a border": (
        lambda x: nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False), (4, 6, 3), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations(case):
    function, shape, nodes = OPERATIONS[case]
    assert_same(function, *shape, nodes=nodes)


def test_what_has_no_rule_is_named_at_once():
    def odd(x):
        return jnp.linalg.cholesky(x) + lax.digamma(x) + lax.cummax(x, axis=1)

    with pytest.raises(UserError, match=r"no rule here for cholesky.*digamma, cummax.*--to stablehlo"):
        converted(odd, 3, 3)


# ---- the zoo

TINY: dict[str, dict[str, Any]] = {  # all others are slower to compile: test_every_family
    "mlp": {}, "lenet5": {}, "resnet20": {"depth": 0.3}, "airbench93": {}, "densenet_bc_100_12": {"depth": 0.2},
    "cbam_resnet18": {"image_size": 16, "stem": "small", "depth": 0.5},
    "squeezenet1_1": {"image_size": 32, "stem": "small"},
    "mixer_s16": {"image_size": 32, "depth": 0.25}, "vit_ti_16": {"image_size": 32, "depth": 0.25},
    "shufflenet_v2_x0_5": {"image_size": 32, "stem": "small", "depth": 0.25},
    "convnext_tiny": {"image_size": 32, "stem": "small", "width": 0.25, "depth": 0.2},
}  # fmt: skip


def exported(name: str, options: dict[str, Any]):
    """(the network; its ONNX model; two batches of images; its logits)."""
    network = random_network(name, **options)
    images = np.random.default_rng(1).integers(0, 256, (3, *network.image_shape), np.uint8)
    return network, to_onnx(network.function, network.variables, network.example), images


def assert_exports(name: str, options: dict[str, Any]) -> None:
    network, model, images = exported(name, options)
    ours = logits_of(network, images)
    theirs = run_onnx(model.SerializeToString(), images, batch_size=2)
    np.testing.assert_allclose(theirs, ours, atol=3e-5 * np.abs(ours).max())
    assert ours.std(axis=0).max() > 1e-3 * np.abs(ours).max()  # the logits depend on the image


@pytest.mark.parametrize("name", TINY)
def test_small_models(name):
    assert_exports(name, TINY[name])


def test_batch_norm_costs_nothing():
    _, model, _ = exported("resnet20", {})
    kinds = [node.op_type for node in model.graph.node]
    assert set(kinds) == {"Cast", "Mul", "Add", "Transpose", "Conv", "Relu", "Slice", "Pad", "ReduceMean", "Gemm"}
    assert kinds.count("Conv") == 19
    assert kinds.count("Add") == 1 + 9  # of the normalisation, and the shortcuts
    assert len(kinds) <= 60


def test_transformers_have_few_nodes():
    _, model, _ = exported("vit_ti_16", {"image_size": 32, "depth": 0.25})  # 3 layers
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LayerNormalization") == 7
    assert kinds.count("Softmax") == 3
    assert kinds.count("MatMul") + kinds.count("Gemm") == 3 * 6 + 2
    assert len(kinds) <= 120


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    assert_exports(name, {})
    network = random_network(name)
    images = np.random.default_rng(1).integers(0, 256, (3, *network.image_shape), np.uint8)
    ours = logits_of(network, images)
    content = to_stablehlo(network.function, network.variables, network.example, network.facts)
    np.testing.assert_allclose(run_stablehlo(content, images, batch_size=2), ours, atol=3e-5 * np.abs(ours).max())


@pytest.mark.parametrize(
    "options", [{"norm": "group"}, {"norm": "none", "remat": True}, {"activation": "elu"}], ids=str
)
def test_options(options):
    assert_exports("resnet20", {"depth": 0.3, **options})


def test_stablehlo_takes_any_batch():
    network = random_network("resnet20", depth=0.3)
    images = np.random.default_rng(1).integers(0, 256, (5, *network.image_shape), np.uint8)
    content = to_stablehlo(network.function, network.variables, network.example, network.facts)
    for batch_size in (1, 2, 5):
        theirs = run_stablehlo(content, images, batch_size=batch_size)
        np.testing.assert_allclose(theirs, logits_of(network, images), rtol=1e-4, atol=1e-4)


def test_safetensors_are_read_back():
    network = random_network("resnet20", depth=0.3)
    images = np.random.default_rng(1).integers(0, 256, (2, *network.image_shape), np.uint8)
    content = to_safetensors(network)
    assert "params/head/kernel" in read_safetensors(content, "it")
    np.testing.assert_array_equal(run_safetensors(content, images, network), network.logits(images))


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    train(small_config(), folder)
    return folder


def metadata(file: Path) -> dict[str, str]:
    return {each.key: each.value for each in onnx.load(file).metadata_props}


@pytest.mark.parametrize("raw", [False, True])
def test_onnx_of_a_run(trained, tmp_path, raw):
    file = tmp_path / "model.onnx"
    code, output, errors = run_here(
        "--workdir", trained, "--to", "onnx", file, *(["--raw"] if raw else []), module="export.__main__"
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "onnxruntime against the run: largest difference" in output
    assert "100.00 % same predictions, on 128 test images of the run" in output
    facts = metadata(file)
    assert json.loads(facts["class_names"]) == [str(digit) for digit in range(10)]
    assert facts["input"].startswith("float32" if raw else "uint8")
    assert facts["weights"] == "average"
    assert json.loads(facts["image_shape"]) == [8, 8, 1]
    network = networks.load(str(trained), raw=raw)
    images = network.given(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
    np.testing.assert_allclose(run_onnx(file.read_bytes(), images), network.logits(images), rtol=1e-4, atol=1e-4)


def test_weights_and_steps(trained, tmp_path):
    found = {}
    for name, options in {
        "average": ["--weights=average"], "raw": ["--weights=raw"], "default": [], "last": ["--step=last"],
        "2": ["--step=2"],
    }.items():  # fmt: skip
        file = tmp_path / f"{name}.safetensors"
        code, _, errors = run_here(
            "--workdir", trained, "--to=safetensors", file, *options, module="export.__main__"
        )  # fmt: skip
        assert (code, errors) == (0, "")
        found[name] = read_safetensors(file.read_bytes(), name)["params/head/kernel"].tobytes()
    assert found["default"] == found["average"] != found["raw"]
    assert found["2"] != found["last"]


def test_what_differs_is_not_written(trained, tmp_path, monkeypatch):
    file = tmp_path / "model.onnx"
    shifted = lambda content, images: run_onnx(content, images) + 0.1
    monkeypatch.setattr("jaxcnn.export.onnx.run_onnx", shifted)
    code, _, errors = run_here("--workdir", trained, "--to=onnx", file, module="export.__main__")
    assert code == 1
    assert "is not the run's network, and was not written" in errors
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to=onx", "OUT"], "did you mean 'onnx'"),
        (["OUT"], "no format given"),
        (["--to=onnx"], "give its name"),
        (["--to=onnx", "OUT", "--weights=ema"], "--weights=ema is not known"),
        (["--to=onnx", "OUT", "--step=first"], "neither best, last"),
        (["--to=onnx", "OUT", "--images=10"], "images"),
        (["--to=onnx", "nowhere/model.onnx"], "cannot be written"),
        (["--to=onnx", "."], "cannot be written"),
        (["--to=onnx", "OUT", "--step=77"], "there are checkpoints of steps"),
        (["--to=train_step", "OUT", "--step=77"], "goes on from the last checkpoint, or from one of"),
        (["--to=train_step", "OUT", "--raw"], "--raw has no meaning with --to=train_step"),
    ],
)
def test_wrong_commands(trained, tmp_path, options, said):
    options = [str(tmp_path / "model") if each == "OUT" else each for each in options]
    code, _, errors = run_here("--workdir", trained, *options, module="export.__main__")
    assert code == 2
    assert said in errors
    assert len(errors.splitlines()) == 1


def test_a_file_that_is_there_stays(trained, tmp_path):
    (tmp_path / "model").write_text("mine")
    command = ["--workdir", trained, "--to=safetensors", tmp_path / "model"]
    code, _, errors = run_here(*command, module="export.__main__")
    assert (code, "--force" in errors) == (2, True)
    assert (tmp_path / "model").read_text() == "mine"
    assert run_here(*command, "--force", module="export.__main__")[0] == 0


def test_without_the_package(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, errors = run_here("--workdir", trained, "--to=onnx", tmp_path / "model", module="export.__main__")
    assert (code, errors) == (2, "jaxcnn: onnx is not installed; install it: pip install 'jaxcnn[export]'\n")


def test_with_the_data_and_without(tmp_path):
    """Of a set that is streamed, of which all test images are taken."""
    from tests.nasty_images import write_classes

    write_classes(tmp_path / "set", {"a": 12, "b": 12}, size=(20, 17))
    config = small_config(
        data__name=f"folder:{tmp_path / 'set'}", data__image_size=12, data__cache=False, batch_size=8, num_devices=1,
        data__resident=False,
    )  # fmt: skip
    begin(config, tmp_path / "run")
    tests = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["num_examples"]["test"]
    code, output, errors = run_here(
        "--workdir", tmp_path / "run", "--to=onnx", tmp_path / "first", module="export.__main__"
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert f"on {tests} test images of the run" in output
    (tmp_path / "set").rename(tmp_path / "gone")
    code, output, errors = run_here(
        "--workdir", tmp_path / "run", "--to=onnx", tmp_path / "model", module="export.__main__"
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "on 128 random images (the run's are not at hand" in output


def test_a_run_of_another_task_is_refused(trained, tmp_path):
    copied = tmp_path / "run"
    copied.mkdir()
    saved = json.loads((trained / "config.json").read_text())
    saved["config"]["task"] = "tabular"
    (copied / "config.json").write_text(json.dumps(saved))
    code, _, errors = run_here("--workdir", copied, "--to=onnx", tmp_path / "model", module="export.__main__")
    assert code == 2
    assert "task=tabular; networks of images are exported" in errors


def test_compare_sees_what_is_wrong():
    logits = noise(4, 3)
    assert compare(logits, logits + 1e-6, task="classification", what="images").holds
    assert not compare(logits, logits + 0.1, task="classification", what="images").holds
    assert compare(logits, -logits, task="multilabel", what="images").same == 0
    with pytest.raises(RunError, match="answers with"):
        compare(logits, logits[:, :2], task="classification", what="images")
    with pytest.raises(RunError, match="export's outputs are not finite"):
        compare(logits, logits * np.nan, task="classification", what="images")


# ---- in another process, with JAX alone

ALONE = """
import sys
for name in ("jaxcnn", "flax", "optax", "orbax", "etils", "clu", "grain", "ml_collections", "tensorflow_datasets"):
    sys.modules[name] = None  # importing it fails
import json, jax, numpy as np
file = np.load(sys.argv[1])
program = jax.export.deserialize(bytearray(file["program"].tobytes()))
facts = json.loads(str(file["facts"]))
arrays = [file[name] for name in file.files if name not in ("program", "facts")]
given = np.load(sys.argv[2])
"""
LOGITS = "np.save(sys.argv[3], program.call(arrays, given['images']))"
STEPS = """
for number in range(int(given["count"])):
    batch = [given[f"{number}/{name.split()[0]}"] for name in facts["batch"]]
    arrays, metrics = program.call(arrays, batch, np.array(facts["key"], np.uint32))
np.savez(sys.argv[3], loss=metrics[0], **dict(zip(facts["state"], arrays)))
"""


def in_another_process(code: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE + code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_stablehlo_runs_with_jax_alone(trained, tmp_path):
    file = tmp_path / "model.stablehlo"
    code, output, errors = run_here("--workdir", trained, "--to=stablehlo", file, module="export.__main__")
    assert (code, errors) == (0, "")
    assert "for cpu, cuda, tpu" in output
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "given.npz", images=images)
    in_another_process(LOGITS, file, tmp_path / "given.npz", tmp_path / "logits.npy")
    ours = networks.load(str(trained)).logits(images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), ours, rtol=1e-4, atol=1e-4)
    assert json.loads(str(np.load(file)["facts"]))["class_names"] == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_training_goes_on_with_jax_alone(tmp_path):
    """Two steps of a run that was stopped after four, with dropout and an average: as the run itself goes on."""
    from etils import epath

    from jaxcnn.run.checkpoint import Checkpoints, flatten
    from jaxcnn.run.workdir import rank_by, read_config
    from tests.runs import built

    config = small_config(num_devices=1, model__convolution="xla")
    train(config, tmp_path / "run")
    file = tmp_path / "step.stablehlo"
    code, output, errors = run_here(
        "--workdir", tmp_path / "run", "--to=train_step", file, "--step=4", module="export.__main__"
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "against the run's own next step" in output
    run, feed = built(config)
    given: dict[str, Any] = {"count": 2}
    for number in range(2):
        given |= {f"{number}/{name}": array for name, array in feed.batch(4 + number).items()}
    np.savez(tmp_path / "given.npz", **given)
    in_another_process(STEPS, file, tmp_path / "given.npz", tmp_path / "after.npz")
    folder = epath.Path(tmp_path / "run")
    checkpoints = Checkpoints(folder / "checkpoints", **rank_by(read_config(folder)), read_only=True)
    like = {"state": run.abstract_state(), "totals": run.learning.metrics.empty()}
    ours = flatten(checkpoints.restore(6, like)[0]["state"])
    checkpoints.close()
    theirs = np.load(tmp_path / "after.npz")
    assert int(theirs["step"]) == 6
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
