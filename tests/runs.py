"""Small runs for the tests: configs that train in a second or two, and a train() without the command around it."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxcnn.config import (
    CheckpointConfig,
    Config,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    validate,
)
from jaxcnn.layers.features import tap
from jaxcnn.layers.norm import BatchNorm
from jaxcnn.machine import versions
from jaxcnn.models import MODELS
from jaxcnn.results.media import Media
from jaxcnn.run import workdir
from jaxcnn.run.checkpoint import Checkpoints, flatten
from jaxcnn.run.log import RunLog
from jaxcnn.terminal import PatientConsole
from jaxcnn.training import loop
from jaxcnn.training.build import Run, build
from jaxcnn.training.feed import Feed


class TinyNet(nn.Module):
    """Two convolutions, batch norm and dropout: what a CNN has, compiled in a second."""

    num_classes: int
    norm: Any = BatchNorm
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        x = images
        for number, features in enumerate((8, 16), start=1):
            x = nn.Conv(features, (3, 3), strides=2, use_bias=False, dtype=self.dtype, name=f"conv{number}")(x)
            x = self.norm(use_running_average=not train, dtype=self.dtype, name=f"norm{number}")(x)
            x = nn.relu(x)
            x = tap(self, f"stage{number}", x)
        x = tap(self, "pooled", x.reshape(x.shape[0], -1))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


def small_config(**changes: Any) -> Config:
    """A tiny CNN on the digits, 8 steps of 48 images, with an average of the weights; a key `a__b` sets config.a.b."""
    config = Config(
        num_steps=8,
        batch_size=48,
        log_every_steps=3,
        model=ModelConfig(name="tiny", dropout_rate=0.1),
        optimizer=OptimizerConfig(name="nesterov", learning_rate=0.05, ema_decay=0.9),
        schedule=ScheduleConfig(name="cosine"),
        checkpoint=CheckpointConfig(every_steps=2, keep_last=8),
        eval_every_epochs=0.15,
        tensorboard=False,
    )
    for path, value in changes.items():
        *groups, leaf = path.split("__")
        node: Any = config
        for group in groups:
            node = getattr(node, group)
        assert leaf in {each.name for each in dataclasses.fields(node)}
        setattr(node, leaf, value)
    validate(config)
    return config


_built: dict[Any, tuple[Run, Feed]] = {}


def built(config: Config) -> tuple[Run, Feed]:
    """`build(config)`; of the digits once in a file, so that what they compile is traced once.

    A run holds no state: one that resumes with the pieces of the first is one that builds them anew, as subprocesses do
    in test_command.py.
    """
    if config.data.name != "digits" or config.data.resident is False or config.init_from is not None:
        return build(config)
    key = repr(config), MODELS[config.model.name]
    if key not in _built:
        _built[key] = build(config)
    return _built[key]


def forget_built() -> None:
    """Lets go of them, and of their programs, after a file."""
    _built.clear()


def train(config: Config, folder: Path, *, report: Any = None) -> dict[str, Any]:
    """Trains in a folder, quietly; returns the loop's result."""
    path = epath.Path(folder)
    workdir.check(path, "test", config)
    run, feed = built(config)
    path.mkdir(parents=True, exist_ok=True)
    workdir.write_config(
        path,
        "test",
        config,
        run.data_facts(),
        versions(),
        teacher=None if run.task.constants is None else run.task.constants.facts(),
        best=run.learning.selections.best.facts(),
    )
    log = RunLog(path, tensorboard=config.tensorboard, console=PatientConsole(file=io.StringIO(), width=200))
    checkpoints = Checkpoints(
        path / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        **run.learning.selections.best.facts(),
        asynchronous=config.checkpoint.asynchronous,
        report=report or (lambda line: None),
    )
    with contextlib.closing(feed), contextlib.closing(checkpoints), contextlib.closing(log):
        media = Media(run, feed, log)
        return loop.train(run, feed, log, checkpoints, begin=media.begin, end=media.end)


def begin(config: Config, folder: Path) -> None:
    """A run's folder with a checkpoint of the weights it begins with, for tests that need no better ones."""
    path = epath.Path(folder)
    run, feed = built(config)
    path.mkdir(parents=True)
    workdir.write_config(path, "test", config, run.data_facts(), versions(), best=run.learning.selections.best.facts())
    checkpoints = Checkpoints(path / "checkpoints", **run.learning.selections.best.facts(), asynchronous=False)
    checkpoints.save(1, jax.device_get({"state": run.init(), "totals": run.learning.metrics.empty()}), {})
    checkpoints.close()
    feed.close()


def rows(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def arrays(folder: Path, config: Config, step: int | None = None) -> dict[str, np.ndarray]:
    """A checkpoint's arrays by name; the newest unless a step is given."""
    run, feed = built(config)
    checkpoints = Checkpoints(folder / "checkpoints", **run.learning.selections.best.facts(), read_only=True)
    like = {"state": run.abstract_state(), "totals": run.learning.metrics.empty()}
    tree, _ = checkpoints.restore(checkpoints.steps()[-1] if step is None else step, like)
    checkpoints.close()
    feed.close()
    return flatten(tree)


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if left[name].tobytes() != right[name].tobytes()]
    assert not different, different
