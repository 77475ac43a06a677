"""Int8 files: arithmetic by hand, what they are calibrated on, the command and what it refuses."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.compression import int8, int8_of_run
from jaxcnn.errors import UserError
from jaxcnn.layers.plain import plain
from jaxcnn.models import MODELS
from tests.commands import run_here
from tests.runs import begin, small_config, train

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'jaxcnn[quantize]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'jaxcnn[quantize]'")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    train(
        small_config(
            model__name="cnn", num_steps=40, checkpoint__every_steps=40, eval_every_epochs=9.0, num_devices=1,
            optimizer__name="adam", optimizer__learning_rate=0.003, optimizer__ema_decay=None,
        ),
        folder,
    )  # fmt: skip
    return folder


def dense(file, weights, *, relu=False):
    """A file of one product with [inputs, outputs], rectified or not."""
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["h" if relu else "y"])]
    nodes += [onnx.helper.make_node("Relu", ["h"], ["y"])] if relu else []
    value = lambda name, size: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
    constants = [onnx.numpy_helper.from_array(weights, "w")]
    graph = onnx.helper.make_graph(
        nodes, "one", [value("x", len(weights))], [value("y", weights.shape[1])], constants
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    int8.write_float(model, file, ["dense"])
    return file


def constants_of(file):
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer}


# ---- quantising


@pytest.mark.parametrize(("bits", "largest"), [(7, 64), (8, 127)])
def test_the_arithmetic_by_hand(tmp_path, bits, largest):
    """Weights: a scale for each output, symmetric; inputs: a scale and a zero, over what was shown."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(4, 3)).astype(np.float32) * [[0.01, 1, 100]]
    inputs = np.abs(generator.normal(size=(50, 4))).astype(np.float32)
    before = dense(tmp_path / "float.onnx", weights.astype(np.float32))
    ranges = int8.calibrate(before, [inputs[:25], inputs[25:]], tmp_path / "ranges.json", method="minmax")
    int8.quantise(before, tmp_path / "int8.onnx", ranges, weight_bits=bits)
    constants = constants_of(tmp_path / "int8.onnx")
    (whole,) = (each for each in constants.values() if each.dtype == np.int8 and each.ndim == 2)
    scales = np.abs(weights).max(axis=0) / largest
    np.testing.assert_allclose(whole * scales, weights, atol=1.01 * scales.max() / 2, rtol=0)
    assert (np.abs(whole).max(axis=0) == largest).all()  # each output uses all its bits
    scale = inputs.max() / 255
    expected = (np.rint(inputs / scale) * scale) @ (np.rint(weights / scales) * scales)
    found = int8.run(int8.open_session(tmp_path / "int8.onnx"), inputs)
    steps = np.ptp(expected) / 255  # the output is uint8 as well
    np.testing.assert_allclose(found, expected, atol=2 * steps)
    error = np.abs(found - inputs @ weights).max(axis=0) / np.abs(inputs @ weights).max()
    assert 0 < error.max() < 0.02


def test_what_lies_far_out_is_cut_off(tmp_path):
    """By percentile and entropy; and what is rectified has no range below zero."""
    from onnxruntime.quantization.calibrate import load_tensors_data

    generator = np.random.default_rng(0)
    before = dense(tmp_path / "float.onnx", np.eye(4, dtype=np.float32), relu=True)
    batches = [generator.normal(size=(5000, 4)).astype(np.float32) for _ in range(8)]
    batches[0][0, 0] = 100
    found = {}
    for method in int8.METHODS:
        ranges = int8.calibrate(before, batches, tmp_path / method, method=method)
        kept = load_tensors_data(ranges.file).data
        found[method] = {name: [float(np.ravel(end)[0]) for end in each.range_value] for name, each in kept.items()}
    smallest = min(batch.min() for batch in batches)
    np.testing.assert_allclose(found["minmax"]["x"], [smallest, 100])
    assert found["minmax"]["y"] == [0, 100]
    for method in ("percentile", "entropy"):
        assert 3 < found[method]["x"][1] < 60
        assert found[method]["y"][0] == 0
        assert 3 < found[method]["y"][1] < 60


def test_layers_are_named_and_may_stay_float(tmp_path):
    before = dense(tmp_path / "float.onnx", np.eye(4, dtype=np.float32))
    (layer,) = int8.layers(before)
    assert layer == int8.Layer("dense", "MatMul", 16)
    assert int8.excluded([layer], ["d*"]) == ["dense"]
    with pytest.raises(UserError, match=r"--exclude=head matches no layer; the first is dense"):
        int8.excluded([layer], ["head"])
    inputs = np.eye(4, dtype=np.float32)
    ranges = int8.calibrate(before, [inputs], tmp_path / "ranges.json", method="minmax")
    int8.quantise(before, tmp_path / "int8.onnx", ranges, exclude=["dense"])
    assert constants_of(tmp_path / "int8.onnx")["w"].dtype == np.float32


def test_names_of_layers_are_the_modules():
    for name, expected in (
        ("cnn", ["conv1", "conv2", "dense1", "head"]),
        ("resnet20", None),
    ):
        model = MODELS[name](num_classes=10)
        example = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
        variables = jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x, train=False),
                                   jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))  # fmt: skip
        variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)
        function = plain(lambda variables, images, model=model: model.apply(variables, images, train=False))
        names = int8_of_run.layer_names(function, variables, example)
        kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim in (2, 4)]
        assert names == expected if expected else len(names) == len(kernels)
        assert len(set(names)) == len(names)


# ---- of a run


def test_the_command(digits, tmp_path, monkeypatch):
    shown = []
    batches_of = int8_of_run.batches_of

    def recording(measured, split, **options):
        shown.append((split, options.get("limit")))
        return batches_of(measured, split, **options)

    monkeypatch.setattr(int8_of_run, "batches_of", recording)
    monkeypatch.setattr(int8_of_run, "LATENCY", {"rounds": 2, "seconds": 0.002})
    file, facts = tmp_path / "int8.onnx", tmp_path / "facts.json"
    arguments = [f"--workdir={digits}", file, "--images=100", "--sensitivity", f"--json={facts}"]
    code, output, errors = run_here(*arguments, module="quantize")
    assert (code, errors) == (0, "")
    for expected in ("360 images of test", "each layer quantised alone", "conv1", "head", "on 100 images of train"):
        assert expected in output
    assert shown[0] == ("train", 100)  # what it is calibrated on
    assert {split for split, _ in shown[1:]} == {"test", "validation"}
    told = json.loads(facts.read_text())
    assert told["accuracy"]["int8"] > told["accuracy"]["float"] - 0.03 > 0.6
    assert told["lost_interval"][0] <= told["lost"] <= told["lost_interval"][1]
    assert told["bytes"]["int8"] < told["bytes"]["float"] / 3
    assert {each["threads"] for each in told["latency"]} >= {1}
    noise = [each["signal_to_noise"] for each in told["sensitivity"]]
    assert noise == sorted(noise)
    assert noise[0] > 15
    assert {each["layer"]["name"] for each in told["sensitivity"]} == {"conv1", "conv2", "dense1", "head"}
    model = onnx.load(file)
    assert json.loads({each.key: each.value for each in model.metadata_props}["class_names"]) == [*"0123456789"]
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= 3
    code, _, errors = run_here(*arguments, module="quantize")
    assert code == 2
    assert "int8.onnx exists; choose another name, or --force" in errors


def test_what_cannot_be_is_one_line(digits, tmp_path, monkeypatch):
    mlp = tmp_path / "iris"
    begin(
        small_config(
            task="tabular", data__name="iris", model__name="mlp", model__dropout_rate=None, eval_every_epochs=1.0
        ),
        mlp,
    )
    out = tmp_path / "out.onnx"
    for words, says in (
        ([out], "no run given; pass --workdir"),
        ([f"--workdir={digits}"], "one file is written; give its name"),
        ([f"--workdir={digits}", out, out], "one file is written"),
        ([f"--workdir={digits}", out, "--calibrate_on=photos"], "a run is calibrated on its train"),
        ([f"--workdir={digits}", out, "--model=lenet5"], "--model=lenet5 is for --init_from"),
        ([f"--workdir={digits}", out, "--calibration=maxmin"], "=maxmin is not known; did you mean 'minmax'"),
        ([f"--workdir={digits}", out, "--step=first"], "--step=first is neither best, last"),
        ([f"--workdir={digits}", out, "--weight_bits=4"], "weight_bits"),
        ([f"--workdir={digits}", tmp_path / "no" / "out.onnx"], "out.onnx cannot be written"),
        ([f"--workdir={tmp_path}", out], "holds no run"),
        ([f"--workdir={mlp}", out], "holds a run of task=tabular; int8 files are made of classification's"),
        ([f"--workdir={digits}", out, "--exclude=stem*"], "--exclude=stem* matches no layer; the first is conv1"),
    ):  # fmt: skip
        code, _, errors = run_here(*words, module="quantize")
        assert (code, len(errors.splitlines())) == (2, 1), errors
        assert says in errors
    assert not out.exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, errors = run_here(f"--workdir={digits}", out, module="quantize")
    assert code == 2
    assert "onnx is not installed; install it: pip install 'jaxcnn[quantize]'" in errors
