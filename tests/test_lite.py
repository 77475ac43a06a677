"""Weights of ImageNet without a run: EfficientNet-Lite's names and logits, the classes, preprocessing, the command."""

import ast
import csv
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from jaxcnn import of_weights, predict
from jaxcnn.config import Config, DataConfig, to_dict
from jaxcnn.data.decoding import fit_image
from jaxcnn.errors import UserError
from jaxcnn.export.network import of_weights as of_network
from jaxcnn.layers.conv import conv_xla
from jaxcnn.models import MODELS
from jaxcnn.models.efficientnet_lite import ROWS, EfficientNetLite
from jaxcnn.results.members import _with_classes_of
from jaxcnn.tasks.classification import CLASSIFICATION
from jaxcnn.transfer import efficientnet_pytorch, imagenet, timm
from jaxcnn.transfer.pretrained import fit
from jaxcnn.transfer.state_dicts import Tensors, write_safetensors
from jaxcnn.transfer.torchvision import export_state_dict, their_name
from tests.commands import run_here
from tests.test_goldens import fill
from tests.test_goldens import images as images_of

GOLDENS = Path(__file__).parent / "goldens" / "efficientnet_pytorch"
# `python -m benchmarks.lite --fetch` fetches it; the suite has a cache of its own
WEIGHTS = Path(
    os.environ.get("JAXCNN_TEST_LITE_WEIGHTS") or "~/.cache/jaxcnn/weights/efficientnet-lite0-57934424.pth"
).expanduser()


# ---- the network under others' names


@pytest.mark.parametrize("name", ["efficientnet_lite0", pytest.param("efficientnet_lite4", marks=pytest.mark.slow)])
def test_logits_are_those_of_the_packages_code(name):
    """Under drawn weights; sides that are even and odd where convolutions stride."""
    golden = np.load(GOLDENS / f"{name}.npz")
    seed, size = int(golden["seed"]), int(golden["image_size"])
    shapes = [ast.literal_eval(str(shape)) for shape in golden["shapes"]]
    arrays = {str(n): fill(seed, str(n), shape) for n, shape in zip(golden["names"], shapes, strict=True)}
    model = MODELS[name](num_classes=1000)
    inputs = jnp.asarray(images_of(seed, size).transpose(0, 2, 3, 1))
    like = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(like["params"])) == int(golden["num_params"])
    found = fit(Tensors(arrays, "a.pth", "0"), None, like, model=name, channels=3)
    assert len(found.loaded) == len(jax.tree.leaves(like))
    logits = np.asarray(jax.jit(partial(model.apply, train=False))(found.variables, inputs))
    assert np.abs(logits - golden["logits"]).max() <= 1e-4 * np.abs(golden["logits"]).max()


@pytest.mark.parametrize(
    ("model", "ours", "theirs", "timms"),
    [
        ("efficientnet_lite0", "stem/norm/mean", "_bn0.running_mean", "bn1.running_mean"),
        ("efficientnet_lite0", "stage1_block1/depthwise/conv/kernel", "_blocks.0._depthwise_conv.weight",
         "blocks.0.0.conv_dw.weight"),
        ("efficientnet_lite0", "stage1_block1/project/norm/scale", "_blocks.0._bn2.weight", "blocks.0.0.bn2.weight"),
        ("efficientnet_lite0", "stage7_block1/expand/norm/bias", "_blocks.15._bn0.bias", "blocks.6.0.bn1.bias"),
        ("efficientnet_lite4", "stage7_block1/project/conv/kernel", "_blocks.29._project_conv.weight",
         "blocks.6.0.conv_pwl.weight"),
        ("efficientnet_lite1", "last/norm/var", "_bn1.running_var", "bn2.running_var"),
        ("efficientnet_lite1", "head/bias", "_fc.bias", "classifier.bias"),
    ],
)  # fmt: skip
def test_names_are_the_packages_and_timms(model, ours, theirs, timms):
    path = tuple(ours.split("/"))
    assert their_name(path, efficientnet_pytorch.NAMINGS[model]) == theirs
    assert their_name(path, timm.NAMINGS[model]) == timms


# ---- ImageNet


def test_classes_are_in_the_order_of_published_logits():
    names, synsets = imagenet.class_names(), imagenet.synsets()
    assert len(set(names)) == len(set(synsets)) == 1000
    assert synsets == tuple(sorted(synsets))
    # torchvision's and Keras's places of them
    assert {place: names[place] for place in (0, 281, 639, 967, 985, 999)} == {
        0: "tench", 281: "tabby", 639: "tank suit", 967: "espresso", 985: "daisy", 999: "toilet tissue",
    }  # fmt: skip
    assert synsets[281] == "n02123045"


@pytest.mark.parametrize(
    ("model", "resized", "size"),
    [
        # tensorflow/tpu's preprocessing.py: size + round(size * (1 / 0.875 - 1))
        *((f"efficientnet_lite{n}", side + round(side / 7), side) for n, side in enumerate((224, 240, 260, 280, 300))),
        ("resnet50", 256, 224), ("inception_v3", 342, 299), ("efficientnet_b7", 600, 600),
    ],
)  # fmt: skip
def test_preprocessing_is_that_of_the_published_weights(model, resized, size):
    wanted = imagenet.preprocessing(model)
    assert (wanted.resized, wanted.size) == (resized, size)
    black, white = ((level - wanted.mean[0]) / wanted.std[0] for level in (0, 1))
    expected = {"e": (-127 / 128, 1), "r": (-2.1179, 2.2489), "i": (-1, 1)}[model[0] if model[-2] != "b" else "r"]
    np.testing.assert_allclose((black, white), expected, atol=1e-4)


def test_a_centre_is_cropped_of_the_resized_image():
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    whole = fit_image(image, (40, 40, 3))
    np.testing.assert_array_equal(fit_image(image, (30, 30, 3), resized=40), whole[5:35, 5:35])
    np.testing.assert_array_equal(fit_image(whole, (40, 40, 3), resized=40), whole)
    assert (fit_image(whole, (40, 40, 3), resized=48) != whole).any()  # of the crop's size, and enlarged all the same


def source_of(tmp_path: Path, names: list[str] | None, **changes: Any) -> Any:
    arrays: dict[str, Any] = {"images": np.zeros((4000, 2, 2, 3), np.uint8), "labels": np.repeat(np.arange(1000), 4)}
    if names is not None:
        arrays["class_names"] = np.array(names)
    np.savez(tmp_path / "a.npz", **arrays)
    config = Config(data=DataConfig(name=f"npz:{tmp_path / 'a.npz'}", cache=False), **changes)
    return CLASSIFICATION.open_source(config, progress=None, kept=None)


@pytest.mark.parametrize("named", ["synsets", "numbers"])
def test_a_kept_head_of_imagenet_keeps_its_names(tmp_path, named):
    synsets = list(imagenet.synsets()) if named == "synsets" else None
    source = source_of(tmp_path, synsets, init_from="a.pth")
    assert source.class_names == imagenet.class_names()
    assert next(iter(source.class_counts["train"])) == "tench"
    for changes in ({"init_from": "a.pth", "init_head": "new"}, {"init_from": "runs/other"}, {}):
        assert source_of(tmp_path, synsets, **changes).class_names != imagenet.class_names()


def test_a_head_of_imagenet_is_not_put_on_classes_in_another_order(tmp_path):
    names = sorted(imagenet.class_names())
    with pytest.raises(UserError, match=r"another order .* number 0 is .*, not 'tench'; set init_head=new"):
        source_of(tmp_path, names, init_from="torchvision:resnet18")
    others = [f"class {number}" for number in range(1000)]
    assert source_of(tmp_path, others, init_from="a.pth").class_names == tuple(others)


def test_folders_of_synsets_are_measured_by_a_run_that_has_the_names():
    assert imagenet.translated(["n02123045", "n01440764"]) == ("tabby", "tench")
    assert imagenet.translated(["n02123045", "tench"]) == ("n02123045", "tench")

    class Records:
        label_shape = ()

    class Examples:
        records, indices = Records(), np.arange(1)

    model: Any = type("Model", (), {"class_names": imagenet.class_names()})
    with pytest.raises(UserError, match="n00000000"):
        _with_classes_of(model, Examples(), ("n00000000", "n02123045"), "folder:x")  # type: ignore[arg-type]


# ---- weights without a run


ONE_STAGE = partial(EfficientNetLite, rows=ROWS[:1])  # quick to compile


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Any:
    """Drawn weights of one stage of Lite0: (file, module, variables)."""
    module = ONE_STAGE(num_classes=1000)
    like = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), like)
    variables["params"]["head"]["kernel"] /= 100
    variables["params"]["head"]["bias"][985] = 3
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    write_safetensors(
        epath.Path(file), export_state_dict(variables, efficientnet_pytorch.NAMINGS["efficientnet_lite0"]), {}
    )
    return file, module, variables


@pytest.fixture
def weights(written, monkeypatch) -> Any:
    """The same, where Lite0 has one stage alone."""
    monkeypatch.setitem(MODELS, "efficientnet_lite0", ONE_STAGE)
    monkeypatch.setattr("jaxcnn.layers.conv._conv", lambda x, kernel, window, *_: conv_xla(x, kernel, window))
    monkeypatch.setattr("jaxcnn.training.parallel.set_up", lambda *arguments, **keywords: None)
    return written


def photograph(folder: Path) -> str:
    path = folder / "photograph.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 400, 3)).astype(np.uint8)).save(path)
    return str(path)


def test_weights_answer_without_a_run(weights, tmp_path):
    file, module, variables = weights
    model = of_weights(str(file), "efficientnet_lite0")
    assert (model.image_shape, model.resized, len(model.class_names)) == ((224, 224, 3), 256, 1000)
    path = photograph(tmp_path)
    seen = model.prepare(path)
    whole = fit_image(np.asarray(Image.open(path)), (256, 256, 3))
    np.testing.assert_array_equal(seen[0], whole[16:240, 16:240])
    logits = module.apply(variables, (seen.astype(np.float32) - 127) / 128, train=False)
    np.testing.assert_allclose(model.predict(path), jax.nn.softmax(logits), rtol=1e-3, atol=1e-7)
    assert model.classify(path) == ["daisy"]
    assert model.explain(path).shape == (1, 224, 224)
    to_dict(model.config)


def test_the_command_takes_weights(weights, tmp_path, capsys):
    found = tmp_path / "found.csv"
    of = [f"--init_from={weights[0]}", "--model=efficientnet_lite0"]
    assert predict.main(["predict", *of, photograph(tmp_path), "--top_k=5", f"--csv={found}"], 0.0) == 0
    assert f"1 classified by {weights[0]}" in capsys.readouterr().out.replace("\n", " ")
    (row,) = csv.DictReader(found.open())
    assert row["class"] == "daisy"
    assert len({row[name] for name in row if name.startswith("class")}) == 5


def test_weights_are_exported_without_a_run(weights, tmp_path):
    """The file tells how images are prepared, and computes what predict does."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    from jaxcnn.export.onnx import run_onnx

    file, _, _ = weights
    of = ["--init_from", file, "--model=efficientnet_lite0"]
    out, photo = tmp_path / "model.onnx", photograph(tmp_path)
    code, output, errors = run_here(*of, "--to=onnx", out, "--on", photo, module="export.__main__")
    assert (code, errors) == (0, "")
    assert "on 1 images of photograph.png" in output
    model = of_weights(str(file), "efficientnet_lite0")
    probabilities = jax.nn.softmax(run_onnx(out.read_bytes(), model.prepare(photo)))
    np.testing.assert_allclose(probabilities, model.predict(photo), rtol=1e-3, atol=1e-7)
    network = of_network(str(file), "efficientnet_lite0")
    assert (network.facts["resized"], network.facts["source"], network.facts["data"]) == (256, file.name, "ImageNet")
    for options, message in (
        (["--to=train_step", tmp_path / "x"], "is of a run"),
        (["--to=onnx", tmp_path / "x", "--weights=raw"], "--weights=raw is of a run"),
        (["--to=onnx", tmp_path / "x", "--on=nowhere"], "nowhere"),
    ):
        code, _, errors = run_here(*of, *options, module="export.__main__")
        assert code == 2
        assert message in errors
        assert len(errors.splitlines()) == 1


def test_weights_are_quantised_without_a_run(weights, tmp_path, monkeypatch):
    """Calibrated on images that are named, of a folder or of a set; a page runs the file in the weights' stead."""
    pytest.importorskip("onnxruntime", reason="needs the extra `quantize`")
    from jaxcnn.compression import int8_of_run
    from jaxcnn.export import runtime
    from jaxcnn.export.onnx import run_onnx

    monkeypatch.setattr(int8_of_run, "LATENCY", {"rounds": 2, "seconds": 0.002})
    monkeypatch.setattr(runtime, "runtime_files", lambda *_, **__: dict.fromkeys(runtime.FILES, b""))
    file, _, _ = weights
    of = ["--init_from", file, "--model=efficientnet_lite0"]
    out, facts, photo = tmp_path / "int8.onnx", tmp_path / "facts.json", photograph(tmp_path)
    arguments = [*of, out, f"--calibrate_on={photo}", f"--json={facts}", "--images=20"]
    code, output, errors = run_here(*arguments, module="quantize")
    assert (code, errors) == (0, "")
    assert "compared on images of photograph.png, which it is calibrated on" in output
    assert "calibrated by minmax on 1 images of photograph.png" in output
    told = json.loads(facts.read_text())
    assert (told["num_images"], told["same"], told["source"]) == (1, 1.0, file.name)
    network = of_network(str(file), "efficientnet_lite0")
    images = of_weights(str(file), "efficientnet_lite0").prepare(photo)
    theirs = run_onnx(out.read_bytes(), images)
    np.testing.assert_allclose(np.abs(theirs - network.logits(images)).max(), told["difference"], rtol=1e-3)
    assert 0 < told["difference"] < 0.05 * told["largest"]
    assert told["bytes"]["int8"] < told["bytes"]["float"] / 3

    page = ["--to=page", tmp_path / "page.html", "--onnx", out, "--on", photo]
    code, output, errors = run_here(*of, *page, module="export.__main__")
    assert (code, errors) == (0, "")
    assert "onnxruntime, of that file, against the run: largest difference" in output

    arguments = [*of, out, "--calibrate_on=digits", f"--on={photo}", f"--json={facts}", "--images=4", "--force"]
    code, output, errors = run_here(*arguments, module="quantize")
    assert (code, errors) == (0, "")
    assert "calibrated by minmax on 4 images of digits, train" in output.replace("\n", " ")
    assert "compared on images of photograph.png\n" in output
    assert json.loads(facts.read_text())["num_images"] == 1
    for options, message in (
        ([], "weights do not say what images they are for; pass --calibrate_on"),
        ([f"--calibrate_on={photo}", "--sensitivity"], "--sensitivity is of a run"),
        (["--calibrate_on=nowhere"], "there is no file or folder 'nowhere'"),
        (["--calibrate_on=folder:nowhere"], "there is no 'nowhere'"),
        ([f"--calibrate_on={photo}", "--step=last"], "--init_from has none"),
    ):
        code, _, errors = run_here(*of, tmp_path / "x.onnx", *options, module="quantize")
        assert (code, len(errors.splitlines())) == (2, 1), errors
        assert message in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init_from=FILE"], "say whose weights they are, e.g. --model efficientnet_lite0"),
        (["--init_from=FILE", "--model=efficientnet_lit0"], "did you mean 'efficientnet_lite0'"),
        (["--init_from=FILE", "--model=efficientnet_lite0", "--workdir=x"], "are both weights; give one of them"),
        (["--init_from=FILE", "--model=efficientnet_lite0", "--step=last"], "--step=last is of a run's checkpoints"),
        (["--init_from=nowhere.pth", "--model=efficientnet_lite0"], "there is no such file or folder"),
        (["--init_from=FILE", "--model=resnet18"], "0 of .* arrays of resnet18 fit; without a run they are taken"),
        (["--init_from=FILE", "--model=efficientnet_lite0", "--explain=x", "--target=dasiy"], "did you mean 'daisy'"),
        (["--workdir=x", "--model=efficientnet_lite0"], "--model=efficientnet_lite0 is for --init_from"),
    ],
)
def test_wrong_commands_are_answered_in_a_line(weights, tmp_path, arguments, message):
    words = [each.replace("FILE", str(weights[0])) for each in arguments]
    with pytest.raises(UserError, match=message) as raised:
        predict.main(["predict", *words, photograph(tmp_path)], 0.0)
    assert "\n" not in str(raised.value)


def test_weights_of_other_classes_want_their_names(weights, tmp_path):
    _, _, variables = weights
    head = variables["params"]["head"]
    few = {"kernel": head["kernel"][:, :3], "bias": head["bias"][:3]}
    arrays = export_state_dict(
        {**variables, "params": {**variables["params"], "head": few}},
        efficientnet_pytorch.NAMINGS["efficientnet_lite0"],
    )
    other = tmp_path / "few.safetensors"
    write_safetensors(epath.Path(other), arrays, {})
    with pytest.raises(UserError, match=r"is 3 where head/bias is 1000 .* here of 1,000 classes"):
        of_weights(str(other), "efficientnet_lite0")
    model = of_weights(str(other), "efficientnet_lite0", class_names=("a", "b", "c"))
    assert model.class_names == ("a", "b", "c")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run"):
        of_weights(str(tmp_path / "run"), "efficientnet_lite0")


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}: python -m benchmarks.lite --fetch --variants 0")
def test_published_weights_take_a_dahlia_for_a_daisy():
    """ImageNet has no dahlias."""
    import sklearn.datasets

    model = of_weights(str(WEIGHTS), "efficientnet_lite0")
    image = sklearn.datasets.load_sample_image("flower.jpg")
    ((first, *_),) = model.classify(image, top_k=5)
    assert first[0] == "daisy"
    assert first[1] > 0.3
