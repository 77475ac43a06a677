"""A run's folder that holds another network of the same data: where it goes on, and as what, is the config's."""

import copy
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxcnn.config import Config, validate
from jaxcnn.errors import UserError
from jaxcnn.files import to_json, write_atomically
from jaxcnn.machine import versions
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.training.build import Run
from jaxcnn.training.step import TrainState

_EXPERIMENT = '''"""{title}

    python -m jaxcnn.main --config THIS_FILE

trains on from the weights beside it, by the settings that the first run had; any of them may be overridden.
"""

import json
from pathlib import Path

from jaxcnn.config import Config, from_dict


def get_config() -> Config:
    return from_dict(json.loads(Path(__file__).with_name("config.json").read_text())["config"])
'''


def new_folder(out: str) -> epath.Path:
    """A local folder that holds nothing yet, but perhaps rounds of pruning before. Raises UserError."""
    path = workdir_lib.resolve(out)
    if "://" in str(path) or "\\" in str(path):
        raise UserError(
            f"--out={out}: an experiment's file is written there too, so it must be a folder of this machine"
        )
    found = [each.name for each in path.iterdir()] if path.is_dir() else []
    if path.is_file() or any(not re.fullmatch(r"\.lock|round[0-9]+", name) for name in found):
        raise UserError(f"--out={out} is there already, and holds something; name a new folder")
    return path


def name_of(experiment: str, suffix: str) -> str:
    """The experiment's name with a suffix, once; as a file may be called."""
    return re.sub(r"[^\w.-]+", "-", experiment.removesuffix(suffix), flags=re.ASCII).strip(".-")[:100] + suffix


def training_on(config: Config, out: epath.Path, change: Callable[[Config], None]) -> Config:
    """The config of a run that begins with what is in a folder. `change` sets what is other than in the first run."""
    config = copy.deepcopy(config)
    config.init_from, config.init_head, config.init_adapt, config.init_allow = str(out), "keep", False, ()
    config.model.initializer = None
    change(config)
    validate(config, unread=False)
    return config


def write_run(
    out: epath.Path, name: str, title: str, config: Config, run: Run, saved: dict[str, Any], variables: Any, facts: Any
) -> epath.Path:
    """Makes a folder a run's that has not taken a step; returns the experiment's file, in it.

    Args:
      out: the folder.
      name: of the experiment.
      title: the first line of its file, of plain words.
      config: with which it trains on.
      run: built from it, but for its model, on the data that it trains on.
      saved: config.json of the run that it comes from, whose data it keeps.
      variables: `params` and `batch_stats` of its model.
      facts: what became of the network, as JSON, for `compression.json`.
    """
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(run.learning.optimizer.init)(variables["params"]),
        ema={"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
        if run.learning.average is not None
        else None,
    )
    best = run.learning.selections.best.facts()
    file = out / f"{name}.py"
    with workdir_lib.claimed(out):
        workdir_lib.write_config(out, name, config, saved["data"], versions(), best=best, convolutions=run.convolutions)
        workdir_lib.write_splits(out, run.source.record_numbers)
        checkpoints = Checkpoints(
            out / "checkpoints", keep_best=config.checkpoint.keep_best, **best, asynchronous=False
        )
        extra: dict[str, Any] = {"best": None, "seconds": {}, "steps_timed": 0}
        checkpoints.save(0, jax.device_get({"state": state, "totals": run.learning.metrics.empty()}), extra)
        checkpoints.close()
        write_atomically(out / "compression.json", to_json(facts, indent=2) + "\n")
        write_atomically(file, _EXPERIMENT.format(title=title))
    return file
