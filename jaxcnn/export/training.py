"""A run's train step as StableHLO: from a state and a batch to the next state, in a process that has JAX alone.

States go as flat lists of arrays, since optax's classes cannot be part of a program that is kept.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxcnn.config import from_dict
from jaxcnn.errors import RunError, UserError
from jaxcnn.export.stablehlo import pack, unpack
from jaxcnn.layers.conv import by
from jaxcnn.layers.norm import without_axis
from jaxcnn.machine import versions
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.checkpoint import Checkpoints, flatten
from jaxcnn.training.build import Run, build
from jaxcnn.training.feed import Feed, Progress

TOLERANCE = 1e-3  # of the largest change of a parameter in a step; rounding leaves some 1e-6


@dataclass(frozen=True)
class TrainStep:
    """A step as a program over flat lists, and what it begins with."""

    function: Callable[..., Any]  # ([state arrays], [batch arrays], key data) -> ([state arrays], [metrics])
    arrays: dict[str, np.ndarray]  # the state's, in the list's order
    batch: dict[str, np.ndarray]  # the next step's, in the list's order
    key: np.ndarray  # uint32, of the run
    facts: dict[str, Any]

    def run(self, function: Callable[..., Any]) -> list[np.ndarray]:
        """The state's arrays after the next step."""
        state, _ = function(list(self.arrays.values()), list(self.batch.values()), self.key)
        return [np.asarray(each) for each in state]


def to_train_step(
    workdir: str, *, step: str = "last", data_dir: str | None = None, progress: Progress | None = None
) -> tuple[bytes, list[str]]:
    """(the content of a file, lines for people). The program is compared with the run's own next step.

    Args:
      workdir: the run's folder.
      step: of the checkpoint that it goes on from, `last` or its number.
      data_dir: where data lie, if not where they did.
      progress: told while data are read.

    Raises:
      UserError: there is no such run or checkpoint, or its data are not at hand.
      RunError: the program's next state is not the run's.
    """
    folder = workdir_lib.resolve(workdir)
    saved = workdir_lib.read_config(folder)
    config = from_dict(saved["config"])
    config.platform, config.num_devices, config.parallel = None, 1, "jit"
    config.init_from = config.data.exclude = None  # the weights and the splits are the run's
    config.data.dir = data_dir or config.data.dir
    run, feed = build(config, facts=saved["data"], kept_splits=workdir_lib.read_splits(folder), progress=progress)
    with contextlib.closing(feed):
        facts = {"fingerprint": run.source.fingerprint, "splits": run.source.splits_digest}
        workdir_lib.check_data(folder, saved["data"], facts)
        made = _step_of(run, feed, _state(run, folder, saved, step), folder)
    inputs = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in made.batch.values()]
    key = jax.ShapeDtypeStruct(made.key.shape, made.key.dtype)
    content = pack(made.function, made.arrays, [inputs, key], made.facts)
    difference, largest = _compare(made, content)
    return content, [
        f"the step of {config.model.name} with {config.optimizer.name}, from {folder}, step {made.facts['step']:,} on",
        f"{len(made.arrays):,} arrays of the state; a batch is {', '.join(made.facts['batch'])}",
        f"jax.export against the run's own next step: largest difference {difference:.1e}, "
        f"of changes up to {largest:.1e}",
    ]


def _state(run: Run, folder: Any, saved: dict[str, Any], step: str) -> Any:
    checkpoints = Checkpoints(folder / "checkpoints", **workdir_lib.rank_by(saved), read_only=True)
    try:
        steps = checkpoints.steps()
        chosen = next((each for each in reversed(steps) if step in ("last", str(each))), None)
        if chosen is None:
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"--step={step}: a step goes on from the last checkpoint, or from one of {known}")
        like = {"state": run.abstract_state(), "totals": run.learning.metrics.empty()}
        return checkpoints.restore(chosen, like, loose="totals")[0]["state"]
    finally:
        checkpoints.close()


def _step_of(run: Run, feed: Feed, state: Any, folder: Any) -> TrainStep:
    number = int(state.step)
    batch = {name: np.asarray(array) for name, array in sorted(feed.batch(number).items())}
    structure, names = jax.tree.structure(state), list(batch)
    step = by("xla", partial(run.calls.step, model=without_axis(run.learning.model), axis_name=None))
    metrics = ["loss", *(name for name in run.learning.metrics.by_name if name != "loss")]

    def function(leaves: Any, arrays: Any, key: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        given = dict(zip(names, arrays, strict=True))
        new, totals = step(jax.tree.unflatten(structure, leaves), given, jax.random.wrap_key_data(key))
        values = totals.compute()
        return jax.tree.leaves(new), [values[name] for name in metrics]

    key = np.asarray(jax.random.key_data(jax.random.key(run.config.seed)))
    shapes = {name: f"{name} {array.dtype}{list(array.shape)}" for name, array in batch.items()}
    facts = {
        "model": run.config.model.name,
        "optimizer": run.config.optimizer.name,
        "source": f"{folder.name}, step {number}",
        "step": number,
        "state": list(flatten(state)),
        "batch": list(shapes.values()),
        "key": key.tolist(),
        "metrics": metrics,
        "versions": versions(),
    }
    return TrainStep(function, {name: np.asarray(each) for name, each in flatten(state).items()}, batch, key, facts)


def _compare(made: TrainStep, content: bytes) -> tuple[float, float]:
    """(the largest difference of the states after a step, the largest change of it). Raises RunError if too large."""
    program, _, arrays = unpack(content)
    ours, theirs = made.run(jax.jit(made.function)), made.run(program.call)
    floats = [number for number, each in enumerate(ours) if each.dtype.kind == "f" and each.size]
    before = list(arrays.values())
    difference = max(float(np.abs(ours[number] - theirs[number]).max()) for number in floats)
    largest = max(float(np.abs(ours[number] - before[number]).max()) for number in floats)
    if not difference <= TOLERANCE * largest:
        raise RunError(
            f"the exported step is not the run's, and was not written: its next state differs by {difference:.1e}, "
            f"where a step changes it by {largest:.1e}"
        )
    return difference, largest
