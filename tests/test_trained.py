"""jaxcnn.load: a trained network from its run's folder alone, and what it makes of images however they are given."""

import io
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxcnn
from jaxcnn.config import ModelConfig
from jaxcnn.data.given import each_image, prepared
from jaxcnn.errors import RunError, UserError
from jaxcnn.layers.conv import conv_xla
from jaxcnn.models.make import make_model
from jaxcnn.results.trained import fitted
from jaxcnn.run.checkpoint import Checkpoints, flatten
from jaxcnn.training import loop
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed, StreamingFeed
from tests.nasty_images import damaged_images, nasty_images, write_classes
from tests.runs import begin, small_config, train


def measured(config, folder):
    """(the run, its feed, metrics of test), as the run's own evaluation has them."""
    run, feed = build(config)
    checkpoints = Checkpoints(folder / "checkpoints", **run.learning.selections.best.facts(), read_only=True)
    like = {"state": run.abstract_state(), "totals": run.learning.metrics.empty()}
    state = checkpoints.restore(checkpoints.best_step() or 1, like)[0]["state"]
    (metrics,) = loop.evaluate_split(run, feed, "test", run.parallel.replicate(loop.result_variables(state)))
    return run, feed, metrics


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("jaxcnn.layers.conv._conv", lambda x, kernel, window, *_: conv_xla(x, kernel, window))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = small_config()
    train(config, folder)
    return config, folder


@pytest.fixture(scope="module")
def of_files(tmp_path_factory):
    """A run on image files of all kinds and sizes, on which it looks at two views of each image."""
    root = tmp_path_factory.mktemp("files")
    for split in ("train", "test"):
        write_classes(root / "set" / split, {"bar": 12, "füße": 12}, size=(20, 17))
        for number, (kind, nasty) in enumerate(nasty_images().items()):
            name = f"{kind} [{number}].JPG".replace("/", " ")
            (root / "set" / split / ("bar", "füße")[number % 2] / name).write_bytes(nasty.encoded)
    config = small_config(
        model__name="cnn", data__name=f"folder:{root / 'set'}", data__image_size=12, data__cache=False, batch_size=16,
        num_devices=1, eval_tta="flip",
    )  # fmt: skip
    begin(config, root / "run")
    return config, root / "run", jaxcnn.load(str(root / "run"))


def test_predicts_what_evaluation_measured(trained):
    config, folder = trained
    model = jaxcnn.load(str(folder))
    _, feed, metrics = measured(config, folder)
    assert isinstance(feed, ResidentFeed)
    arrays, _ = feed.arrays("test")
    images, labels = arrays["image"], arrays["label"]
    probabilities = model.predict(images)
    assert probabilities.shape == (360, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(metrics["accuracy"])
    losses = -np.log(probabilities[np.arange(360), labels])
    assert losses.mean() == pytest.approx(metrics["loss"], rel=1e-4)
    last = jaxcnn.load(str(folder), step="2")
    assert last.source.endswith("step 2")
    assert not np.array_equal(last.predict(images[:3]), probabilities[:3])
    assert repr(last) == f"TrainedModel(tiny of {folder}, step 2; 8x8x1 -> 10: 0, 1, 2, …)"
    with pytest.raises(UserError, match="tiny has no such features"):
        last.features(images[:3], layer="stage7")


def test_weights_that_do_not_fit_what_the_folder_says_are_an_error(trained, tmp_path):
    _, folder = trained
    (tmp_path / "checkpoints").symlink_to(folder / "checkpoints")
    saved = json.loads((folder / "config.json").read_text())
    saved["data"]["class_names"] = ["a", "b"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(RunError, match=r"does not hold the weights of the model that config.json names: params/head"):
        jaxcnn.load(tmp_path)


def test_weights_of_auxiliary_heads_are_there_to_be_loaded():
    """Training has them; what uses the run does not."""
    module = make_model(ModelConfig(name="googlenet"), num_classes=10, image_size=32)
    keys, images = {"params": jax.random.key(0), "dropout": jax.random.key(0)}, np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(partial(module.init, train=True), keys, images)
    arrays = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in flatten(shapes).items()}
    assert "auxiliary1" in fitted(module, arrays, jax.ShapeDtypeStruct((32, 32, 3), jnp.float32), "here")["params"]


def test_an_answer_that_is_not_finite_is_an_error(trained):
    model = jaxcnn.load(trained[1])
    model.variables["params"]["head"]["bias"] = np.full(10, np.nan, np.float32)
    with pytest.raises(RunError, match=r"image 0: the network's output is not finite"):
        model.predict(np.zeros((1, 8, 8, 1), np.uint8))
    (answer,) = model.answers(model.probabilities_call(), [("x", np.zeros((8, 8, 1), np.uint8))])
    assert answer.values is None
    assert "not finite" in str(answer.fault)


@pytest.mark.parametrize("resident", [True, False])
def test_files_are_prepared_bit_for_bit_as_in_the_runs_evaluation(of_files, resident):
    config, folder, model = of_files
    config.data.resident = resident
    run, feed, metrics = measured(config, folder) if resident else (*build(config), None)
    config.data.resident = None
    records = run.source.splits["test"].records
    assert len(records) > 60
    found = model.prepare(records.files)
    labels = records.labels()
    assert isinstance(feed, ResidentFeed if resident else StreamingFeed)
    if isinstance(feed, ResidentFeed):
        expected = feed.arrays("test")[0]["image"]
    else:
        batches = [inputs for _, inputs in feed.evaluation("test", 16)]
        expected = np.concatenate([np.asarray(each["image"])[np.asarray(each["mask"])] for each in batches])
    np.testing.assert_array_equal(found, expected)
    if metrics is None:
        return
    probabilities = model.predict(records.files)
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    assert losses.mean() == pytest.approx(metrics["loss"], rel=1e-5), "the run's two views, too"
    assert not np.allclose(model.predict(records.files, tta="none"), probabilities, atol=1e-6)


def test_an_image_is_the_same_however_it_is_given(of_files):
    _, _, model = of_files
    root = Path(model.config.data.name.removeprefix("folder:")) / "test" / "bar"
    files = sorted(root.glob("0*.png"))[:5]
    arrays = [np.asarray(Image.open(file)) for file in files]
    expected = model.predict(arrays)
    assert expected.shape == (5, 2)
    for images in (
        files, [str(file) for file in files], (file for file in files), np.array([str(file) for file in files]),
        [file.read_bytes() for file in files], [Image.open(file) for file in files], np.stack(arrays),
        [*map(str, files[:2]), files[2].read_bytes(), Image.open(files[3]), arrays[4]],
        np.stack(arrays).astype(np.uint16) * 257, np.stack(arrays) / 255.0, [each / np.float32(255) for each in arrays],
    ):  # fmt: skip
        np.testing.assert_array_equal(model.predict(images), expected)
    for one in (files[0], str(files[0]), files[0].read_bytes(), Image.open(files[0]), arrays[0]):
        np.testing.assert_allclose(model.predict(one), expected[:1], rtol=1e-5)
    np.testing.assert_allclose(model.predict(files, batch_size=2), expected, rtol=1e-5)
    opaque = np.dstack([arrays[0], np.full_like(arrays[0][:, :, :1], 255)])
    np.testing.assert_array_equal(model.prepare(opaque), model.prepare(arrays[0]))
    grey = arrays[0][:, :, 0]
    np.testing.assert_array_equal(model.prepare(grey), model.prepare(np.dstack([grey] * 3)))
    assert model.predict([]).shape == (0, 2)
    assert model.explain([]).shape == (0, 12, 12)
    assert model.features([]).shape == (0, 256)


def test_images_that_pillow_has_opened_are_as_their_files():
    shape = 30, 42, 3
    for kind, nasty in nasty_images().items():
        try:
            image = Image.open(io.BytesIO(nasty.encoded))
        except OSError:
            continue
        ((_, of_file), (_, of_pillow)) = prepared([("", nasty.encoded), ("", image)], image_shape=shape, ahead=1)
        assert isinstance(of_file, np.ndarray)
        assert isinstance(of_pillow, np.ndarray)
        tolerance = 1 if "16 bits RGB" in kind else 0  # of which Pillow keeps the upper half
        assert np.abs(of_file.astype(int) - of_pillow).max() <= tolerance, kind


def test_classes_features_and_explanations(of_files):
    _, _, model = of_files
    images = np.random.default_rng(0).integers(0, 256, (5, 14, 13, 3)).astype(np.uint8)
    probabilities = model.predict(images)
    assert model.classify(images) == [("bar", "füße")[number] for number in probabilities.argmax(axis=1)]
    top = model.classify(images, top_k=9)
    for row, ranked in zip(probabilities, top, strict=True):
        assert [share for _, share in ranked] == sorted(map(float, row), reverse=True)
        assert dict(ranked) == dict(zip(("bar", "füße"), map(float, row), strict=True))
    pooled = model.features(images, batch_size=2)
    head = model.variables["params"]["head"]
    logits = pooled @ head["kernel"] + head["bias"]
    plain = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(images, tta="none"), plain, rtol=1e-4)
    assert model.features(images, layer="stage1").shape == (5, 12, 12, 32)
    heat = model.explain(images)
    assert heat.shape == (5, 12, 12)
    chosen = {name: model.explain(images, target=name) for name in model.class_names}
    predicted = model.class_names[int(logits[0].argmax())]
    np.testing.assert_allclose(heat[0], chosen[predicted][0], rtol=1e-5)
    assert not np.allclose(chosen["bar"], chosen["füße"])
    with pytest.raises(UserError, match="there is no class 'baar'; did you mean 'bar'"):
        model.explain(images, target="baar")
    with pytest.raises(UserError, match="layer='stage9' is no map of CNN"):
        model.explain(images, layer="stage9")
    with pytest.raises(UserError, match=r"layer='pool': cnn has no such features; did you mean 'pooled'"):
        model.features(images, layer="pool")


def test_compiles_once_and_holds_few_images(of_files):
    _, folder, _ = of_files
    model = jaxcnn.load(folder)
    images = np.zeros((23, 12, 12, 3), np.uint8)
    assert model.predict(images, batch_size=4).shape == (23, 2)
    assert model.predict(images[:3], batch_size=4).shape == (3, 2), "padded to 4 again"
    assert model._probabilities._cache_size() == 1
    model.predict(images[0], batch_size=4)
    assert model._probabilities._cache_size() == 2, "one image is not padded to four"
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield "zeros", images[0]

    answers = model.answers(model.probabilities_call(), endless(), batch_size=4)
    for _ in range(9):
        assert next(answers).name == "zeros"
    assert taken <= 9 + 4 * 4
    answers.close()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((9, 9, 3)) + 200.0, "floats from 200 to 200, where 0 to 1 is meant"),
        (np.full((9, 9, 3), np.nan), "floats from nan to nan"),
        ([np.zeros((9, 9, 3)), np.zeros((9, 9, 3)) - 0.5], "image 1 cannot be read: floats from -0.5"),
        (np.zeros((9, 9, 3), np.int64), "int64 levels have no agreed scale"),
        (np.zeros((3, 9, 9), np.uint8), "3x9x9 is no image; move its channels to the end"),
        (np.zeros((0, 9, 3), np.uint8), "0x9x3 is no image"),
        (b"a cat sat on the mat", "the image cannot be read: no image of a known type"),
    ],
)
def test_says_which_image_cannot_be_read(of_files, images, message):
    with pytest.raises(RunError, match=message):
        of_files[2].predict(images)


def test_says_what_is_no_image(of_files, trained, tmp_path):
    model = of_files[2]
    for images, message in (
        (7, "int is no image: give paths, bytes"),
        ([b"", 7], "image 1 is no image but int"),
        (np.zeros((2, 2, 9, 9, 3), np.uint8), r"ndarray of shape \(2, 2, 9, 9, 3\) is no image"),
        ([np.zeros((1, 2, 9, 9), np.uint8)], r"image 0 is no image but ndarray of shape \(1, 2, 9, 9\)"),
        ("nowhere/x.jpg", "there is no file or folder 'nowhere/x.jpg'"),
        (tmp_path, "there are no images in the folder"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict(images)
    with pytest.raises(UserError, match="eval_tta is 'flap'"):
        model.predict(np.zeros((9, 9, 3), np.uint8), tta="flap")
    with pytest.raises(UserError, match=r"checkpoints of steps 2, .*or best, last"):
        jaxcnn.load(str(trained[1]), step="3")
    with pytest.raises(UserError, match="holds no run"):
        jaxcnn.load(str(tmp_path))


def test_what_is_damaged_keeps_its_place(tmp_path):
    sound = np.full((9, 9, 3), 77, np.uint8)
    faults = damaged_images()
    given = [("sound", sound)]
    for name, (encoded, _, _) in faults.items():
        (tmp_path / f"{name}.jpg").write_bytes(encoded)
        given += [*each_image(tmp_path / f"{name}.jpg"), ("sound", sound)]
    found = list(prepared(given, image_shape=(9, 9, 3), ahead=3))
    assert len(found) == 2 * len(faults) + 1
    for number, (name, image) in enumerate(found):
        if number % 2 == 0:
            np.testing.assert_array_equal(image, sound)
        else:
            assert isinstance(image, ValueError), name
            assert re.search(faults[Path(name).stem][1], str(image)), (name, image)


def test_of_other_channels_than_files_have_only_arrays_serve():
    arrays = {"array": (9, 9, 2), "grey": (9, 9), "colours": (9, 9, 3)}
    given = [(name, np.zeros(shape, np.uint8)) for name, shape in arrays.items()] + [("file", b"")]
    (_, image), *others = prepared(given, image_shape=(9, 9, 2), ahead=9)
    assert isinstance(image, np.ndarray)
    assert image.shape == (9, 9, 2)
    for name, fault in others:
        assert isinstance(fault, ValueError), name
        assert ("9x9x3 is no image" if name == "colours" else "2 channels") in str(fault), name
