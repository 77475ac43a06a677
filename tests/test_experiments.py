"""Every file in experiments/ loads, traces abstractly and survives an override."""

import ast
import functools
import re
from pathlib import Path

import jax
import pytest
from absl import flags

from jaxcnn.config import Config
from jaxcnn.config.command_line import load_config
from jaxcnn.errors import UserError
from jaxcnn.training.build import build
from tests import fake_tfds
from tests.nasty_images import write_classes
from tests.runs import rows, small_config, train

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = [
    "digits.py", "mnist.py", "mnist.py:cnn", "mnist.py:mlp", "cifar10.py", "cifar10.py:resnet18",
    "cifar10.py:resnet110", "cifar10_speedrun.py:93", "distill_digits.py", "distill_digits.py:alone",
    "cifar10_speedrun.py:94", "cifar10_speedrun.py", "cifar10_speedrun.py:95", "cifar10_speedrun.py:96",
    "imagenet_resnet50.py", "imagenet_resnet50.py:resnet18", "folder.py", "folder.py:small",
    "transfer_cifar10.py:pretrain", "transfer_cifar10.py:scratch", "transfer_cifar10.py", "transfer_cifar10.py:gradual",
    "transfer_vgg16.py", "transfer_mobilenet.py", "iris.py", "table.py", "table.py:regression",
    "multilabel.py", "multilabel.py:small", "segmentation.py", "text_generation.py", "text_generation.py:transformer",
    "sentiment.py", "sentiment.py:text_bag", "sentiment.py:text_lstm", "sentiment.py:text_transformer",
    *(f"forecasting.py{model}" for model in ("", ":rnn", ":lstm", ":gru", ":tcn", ":nbeats")),
]  # fmt: skip
ALIKE = ("cifar10.py:resnet110", "imagenet_resnet50.py:resnet18")  # but for their depth
SHAPES = {"tfds:mnist": (28, 28, 1), "tfds:cifar10": (32, 32, 3)}


def load(variant: str, *overrides: str) -> Config:
    argv = ["main", f"--config={ROOT}/experiments/{variant}", *overrides]
    return load_config(argv, flag_values=flags.FlagValues())[0]


def test_none_is_forgotten():
    files = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert files == {variant.split(":")[0] for variant in VARIANTS}


@pytest.mark.parametrize(
    "variant", [pytest.param(each, marks=[pytest.mark.slow] * (each in ALIKE)) for each in VARIANTS]
)
def test_it_builds_and_traces(variant, tmp_path):
    config = load(variant, "--config.batch_size=16", "--config.seed=3")
    assert (config.batch_size, config.seed) == (16, 3)
    if config.data.name in SHAPES:
        name = config.data.name.removeprefix("tfds:")
        shape = SHAPES[config.data.name]
        fake_tfds.write_set(tmp_path, name, splits={"train": 60, "test": 10}, image_shape=shape, num_classes=10)
        config.data.dir = str(tmp_path)
        if config.data.examples_per_class is not None:
            config.data.examples_per_class = 1
    if config.data.name == "folder:":  # which it is must be said
        with pytest.raises(UserError, match=r"names no folder; pass --config\.data\.name=folder:PATH"):
            build(config)
        write_classes(tmp_path, {"cat": 20, "dog": 20}, size=(32, 48))
        config.data.name = f"folder:{tmp_path}"
    if config.data.name == "csv:":
        with pytest.raises(UserError, match=r"names no csv; pass --config\.data\.name=csv:PATH"):
            build(config)
        (tmp_path / "table.csv").write_text("a,b,y\n" + "".join(f"{n},{n * n},{n % 2}\n" for n in range(30)))
        config.data.name = f"csv:{tmp_path / 'table.csv'}"
        if config.task == "text":
            (tmp_path / "table.csv").write_text("text,label\n" + "so so,bad\nso good,good\n" * 20)
        if config.task == "multilabel":
            write_classes(tmp_path / "sets", {"cat": 20, "cat|dog": 20}, size=(32, 48))
            config.data.name = f"folder:{tmp_path / 'sets'}"
            config.data.image_size = 32
    if config.data.name == "text:":
        with pytest.raises(UserError, match=r"names no text; pass --config\.data\.name=text:FILE"):
            build(config)
        (tmp_path / "text.txt").write_text("a text of some length. " * 200)
        config.data.name = f"text:{tmp_path / 'text.txt'}"
    run, feed = build(config, stand_in=True)
    state = run.abstract_state()
    batch = {
        **{name: jax.ShapeDtypeStruct((16, *spec.shape), spec.dtype) for name, spec in run.source.example.items()},
        **dict.fromkeys(("index", "epoch"), jax.ShapeDtypeStruct((16,), "int32")),
    }
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 16))
    inputs, targets = jax.eval_shape(run.learning.prepare, jax.eval_shape(lambda: jax.random.key(0)), keys, batch)
    assert inputs.shape == (16, *run.task.example.shape)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = functools.partial(run.learning.model.apply, train=False)
    shape = jax.eval_shape(apply, variables, inputs).shape
    assert (shape[0], shape[-1]) == (16, run.task.model["num_classes"])
    assert {leaf.shape[0] for leaf in jax.tree.leaves(targets)} == {16}
    feed.close()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_it_says_what_it_reaches(path):
    """The docstring names the command and the accuracy reached, or that it was not run."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.search(r"\d\d\.\d+ ?(±|%)|[Nn]ot run by us", doc), f"{path.name} does not say what it reaches"
    assert f"--config experiments/{path.name}" in doc


@pytest.mark.slow
def test_imagenet_trains_two_steps_on_a_set_of_its_shape(tmp_path):
    """JPEGs of many sizes, 1,000 classes, streamed by processes; a smaller model and image, the same path."""
    fake_tfds.write_set(
        tmp_path / "tfds", "imagenet2012", splits={"train": 40, "validation": 9}, image_shape=(None, None, 3),
        num_classes=1000, encoding="jpeg", num_shards=2,
    )  # fmt: skip
    config = load(
        "imagenet_resnet50.py:resnet18", "--config.batch_size=8", "--config.num_steps=2", "--config.log_every_steps=1",
        "--config.data.image_size=32", "--config.data.expected_examples=none", "--config.model.dtype=float32",
        f"--config.data.dir={tmp_path / 'tfds'}", "--config.data.num_workers=1", "--config.num_devices=2",
        "--config.tensorboard=false",
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
    assert result["splits"]["test"].keys() == {"loss", "accuracy", "top5_accuracy", "num_examples"}
    assert result["splits"]["test"]["num_examples"] == 9


def test_small_config_is_valid():
    assert small_config().model.name == "tiny"
