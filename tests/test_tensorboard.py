"""TensorBoard shows all of a run: read back by its own reader, and asked of its own server over HTTP."""

import io
import json
import shutil
import time
import urllib.parse
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jaxcnn.errors import RunError, UserError
from jaxcnn.layers.graph import module_graph
from jaxcnn.models import MODELS
from jaxcnn.results.looks import predict_with_features
from jaxcnn.results.media import confusion_image, training_inputs
from jaxcnn.run.tensorboard import TensorBoard, profiling
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed
from tests.runs import rows, small_config, train

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

CONFIG = dict(tensorboard=True, tensorboard_media=True, telemetry__every_steps=4, profile__steps="2:3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything, and its result."""
    folder = tmp_path_factory.mktemp("board") / "run"
    return folder, train(small_config(**CONFIG), folder)


@pytest.fixture(scope="module")
def ask(whole):
    """A real server, over HTTP: ask("plugin/scalars/tags"), with a body for a POST."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(whole[0].parent), "--port", "0", "--load_fast", "false"])
    url = board.launch()

    def request(path, body=None, **query):
        full = f"{url}data/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(full, data, {"Content-Type": "application/json"} if data else {})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.read()

    deadline = time.monotonic() + 60
    while len(json.loads(request("plugin/scalars/tags"))) < 2 or len(json.loads(request("runs"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return lambda *arguments, **query: json.loads(request(*arguments, **query)), request


def read(folder, run):
    accumulator = event_accumulator.EventAccumulator(str(folder / "tensorboard" / run), size_guidance={"histograms": 0})
    accumulator.Reload()
    return accumulator


def test_the_server_shows_scalars_and_histograms(whole, ask):
    as_json, _ = ask
    runs = as_json("runs")
    assert runs == ["run/tensorboard", "run/tensorboard/train", "run/tensorboard/validation"]
    for split in ("train", "validation"):  # one chart: the same name in both
        points = as_json("plugin/scalars/scalars", run=f"run/tensorboard/{split}", tag="loss")
        assert [(step, pytest.approx(value)) for _, step, value in points] == [
            (each["step"], each["loss"]) for each in rows(whole[0], split)
        ]
    tags = as_json("plugin/scalars/tags")["run/tensorboard/train"]
    assert tags.keys() >= {
        "learning_rate", "images_per_second", "telemetry/gradient_norm", "layers_update_ratio/conv1",
        "layers_gradient_norm/head", "activations_dead/stage1",
    }  # fmt: skip
    assert "layers_update_ratio/norm1" not in tags  # telemetry.jsonl has those
    told = [json.loads(line) for line in (whole[0] / "telemetry.jsonl").read_text().splitlines()]
    points = as_json("plugin/scalars/scalars", run="run/tensorboard/train", tag="layers_update_ratio/conv2")
    assert [(step, value) for _, step, value in points] == [
        (each["step"], pytest.approx(each["layers"]["conv2"]["update_ratio"])) for each in told
    ]
    shown = as_json("plugin/histograms/histograms", run="run/tensorboard/train", tag="weights/conv2/kernel")
    assert [step for _, step, _ in shown] == [4, 8]
    assert sum(count for *_, count in shown[0][2]) == 3 * 3 * 8 * 16
    assert shown[0][2][0][0] < 0 < shown[0][2][-1][1]
    tags = as_json("plugin/histograms/tags")["run/tensorboard/train"]
    assert tags.keys() >= {"gradients/head/kernel", "activations/pooled", "update_ratio_log10"}


def test_the_server_shows_the_graph(ask):
    as_json, request = ask
    assert as_json("plugin/graphs/info")["run/tensorboard"]["run_graph"]
    text = request("plugin/graphs/graph", run="run/tensorboard").decode()
    assert text.count("node {") == 8
    assert 'name: "conv1"\n  op: "Conv"\n  input: "images"' in text


def test_the_server_shows_hyperparameters(whole, ask):
    as_json, _ = ask
    experiment = as_json("plugin/hparams/experiment", {"experimentName": "", "hparamsLimit": 1000})
    known = {each["name"] for each in experiment["hparamInfos"]}
    assert "log_every_steps" not in known  # changes nothing of the result
    asked = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"],
             "colParams": [{"metric": {"group": "validation", "tag": "ema_accuracy"}, "includeInResult": True},
                           *({"hparam": name, "includeInResult": True} for name in known)],
             "startIndex": 0, "sliceSize": 10}  # fmt: skip
    (group,) = as_json("plugin/hparams/session_groups", asked)["sessionGroups"]
    assert group["name"] == "run/tensorboard"  # not a folder named by the clock
    assert group["hparams"]["optimizer.learning_rate"] == 0.05
    assert group["hparams"]["model.name"] == "tiny"
    values = {each["name"]["tag"]: each["value"] for each in group["metricValues"]}
    assert values["ema_accuracy"] == pytest.approx(rows(whole[0], "validation")[-1]["ema_accuracy"])


def test_the_server_shows_pictures_curves_and_points(whole, ask):
    from PIL import Image

    as_json, request = ask
    tags = as_json("plugin/images/tags")
    assert tags["run/tensorboard/train"].keys() == {"inputs", "filters"}
    assert tags["run/tensorboard/validation"].keys() == {"confusion", "mistakes"}
    (blob,) = as_json("plugin/images/images", run="run/tensorboard/validation", tag="confusion", sample=0)
    image = request(f"plugin/images/individualImage?{blob['query']}")
    assert Image.open(io.BytesIO(image)).size[0] > 480

    curves = as_json("plugin/pr_curves/tags")["run/tensorboard/validation"]
    assert len(curves) == 11  # of all classes together, and of each of ten
    (curve,) = as_json(
        "plugin/pr_curves/pr_curves", run="run/tensorboard/validation", tag="precision_recall/all"
    )["run/tensorboard/validation"]  # fmt: skip
    assert curve["true_positives"][0] + curve["false_negatives"][0] == 144
    assert curve["recall"][0] == 1

    (config,) = as_json("plugin/projector/info", run="run/tensorboard")["embeddings"]
    assert config["tensorShape"] == [144, 64]
    metadata = request("plugin/projector/metadata", run="run/tensorboard", name=config["tensorName"]).decode()
    assert metadata.splitlines()[0] == "class\tpredicted\tright"
    right = [line.split("\t")[2] for line in metadata.splitlines()[1:]]
    assert right.count("yes") / 144 == pytest.approx(whole[1]["splits"]["validation"]["accuracy"])
    sprite = Image.open(io.BytesIO(
        request("plugin/projector/sprite_image", run="run/tensorboard", name=config["tensorName"])
    ))  # fmt: skip
    assert sprite.size == (96, 96)  # 12 x 12 digits of 8 x 8


def test_the_profile_is_where_the_plugin_looks(whole):
    (trace,) = (whole[0] / "tensorboard" / "plugins" / "profile").iterdir()
    assert [file.suffix for file in sorted(trace.glob("*.pb"))] == [".pb"]


def test_resumed_it_shows_everything_once(tmp_path, whole):
    """From step 5 on, after a kill without warning: no point twice, the files of the projector once."""
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    for step in (6, 8):
        shutil.rmtree(folder / "checkpoints" / str(step))
    train(small_config(**CONFIG), folder)
    shown = read(folder, "train")
    assert [event.step for event in shown.Histograms("weights/conv1/kernel")] == [4, 8]
    assert [event.step for event in shown.Scalars("telemetry/gradient_norm")] == [4, 8]
    assert (folder / "tensorboard" / "projector_config.pbtxt").read_text().count("embeddings {") == 1
    assert read(folder, "").Graph().node


@pytest.mark.parametrize(
    ("steps", "words"),
    [("20", "write 10:20"), ("20:10", "write 10:20"), ("5:5", "write 10:20"), ("6:9", "goes beyond the 8 steps")],
)
def test_profile_steps_are_checked(steps, words):
    with pytest.raises(UserError, match=words):
        build(small_config(tensorboard=True, profile__steps=steps))


def test_media_and_profiles_need_tensorboard():
    for change in (dict(tensorboard_media=True), dict(profile__steps="1:2")):
        with pytest.raises(UserError, match="tensorboard=true"):
            small_config(**change)


def test_a_profile_that_is_past_says_so(tmp_path):
    lines: list[str] = []
    board = TensorBoard(tmp_path, 30)
    with profiling((10, 20), board, 30, lines.append) as profile:
        profile.before(30, 1)
        profile.after(31, jnp.zeros(()))
    assert lines == ["profile.steps=10:20: the run goes on from step 30, so nothing is recorded"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resnet20", "seresnet18"])
def test_a_graph_is_whole(name):
    """Every parameter is in it once, every input is a node before, and it ends in the head."""
    model = MODELS[name](num_classes=10)
    init = lambda key: model.init({"params": key, "dropout": key}, jnp.zeros((1, 32, 32, 3)), train=True)
    variables = jax.eval_shape(init, jax.random.key(0))
    nodes = module_graph(model, variables, jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    assert sum(node.num_params for node in nodes) == sum(x.size for x in jax.tree.leaves(variables["params"]))
    seen: set[str] = set()
    for node in nodes:
        assert node.name not in seen
        assert set(node.inputs) <= seen
        assert bool(node.inputs) == (node.name != "images")
        seen.add(node.name)
    assert nodes[-1].name == "head"
    assert nodes[-1].shape == (1, 10)
    read_by = [name for node in nodes for name in node.inputs]
    assert {node.name for node in nodes} - set(read_by) == {"head"}  # nothing leads nowhere
    if name == "resnet20":
        shortcut = next(node for node in nodes if node.name == "stage1_block1/add")
        assert len(shortcut.inputs) == 2
        assert "stage1_block1/norm2" in shortcut.inputs


def test_what_is_shown_is_what_the_model_sees_and_says(whole, monkeypatch):
    config = small_config(**CONFIG, num_devices=1)
    run, feed = build(config)
    assert isinstance(feed, ResidentFeed)
    images, labels = training_inputs(run, feed, count=5)
    batch = feed.batch(0)
    np.testing.assert_array_equal(images, batch["image"][:5])  # this run augments nothing
    np.testing.assert_array_equal(labels, batch["label"][:5])
    state = run.init()
    found = predict_with_features(run, feed, "validation", {"params": state.params, "batch_stats": state.batch_stats})
    np.testing.assert_array_equal(found.places, np.arange(144))
    np.testing.assert_array_equal(found.labels, feed.arrays("validation")[0]["label"])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    monkeypatch.setattr(feed, "num_counted", lambda split: 143)
    with pytest.raises(RunError, match="met 144 examples of a split of 143"):
        predict_with_features(run, feed, "validation", {"params": state.params, "batch_stats": state.batch_stats})

    counts = np.zeros((25, 25), int)
    counts[:2, 0] = 2, 1
    drawn = confusion_image(counts, [str(i) for i in range(25)])
    assert drawn.shape == (1200, 1200, 3)
    assert (drawn[10, 10] == drawn[60, 10]).all()  # all of class 0 and all of class 1 are called 0
    assert tuple(drawn[10, 10]) == (8, 48, 107)
    assert tuple(drawn[60, 60]) == (255, 255, 255)


def test_a_full_disk_is_one_error_and_none_at_the_end(tmp_path, monkeypatch, capfd):
    board = TensorBoard(epath.Path(tmp_path), 0)
    board.scalars("train", 1, {"loss": 1.0})
    board.flush()

    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.flush", fill)
    with pytest.raises(OSError, match="No space left"):
        board.flush()
    board.close()
    assert "Traceback" not in capfd.readouterr().err
