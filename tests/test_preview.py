"""What `--dry_run` predicts of memory; the rest of it is seen through the command, in test_command.py."""

import dataclasses
import io
import math
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from etils import epath
from rich.console import Console

from jaxcnn.training import preview as preview_module
from jaxcnn.training.build import build
from jaxcnn.training.preview import Memory, preview, step_cost
from tests.runs import small_config


@pytest.mark.parametrize(("mode", "num_devices"), [("jit", 1), ("pmap", 4)])
def test_prediction_counts_what_a_device_holds(mode, num_devices):
    """The state and every split on each device, beside the step's own."""
    run, feed = build(small_config(parallel=mode, num_devices=num_devices))
    _, memory = step_cost(run)
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(run.init()))
    images = sum(len(split) for split in run.source.splits.values()) * (math.prod(run.source.image_shape) + 4)
    assert memory.peak == memory.arguments + memory.temporaries + memory.results - memory.aliased + memory.other_splits
    assert state + images <= memory.arguments + memory.other_splits < 1.2 * (state + images)
    assert memory.temporaries > 0
    feed.close()


@pytest.mark.parametrize(("limit", "warned"), [(None, False), (2**40, False), (2**20, True)])
def test_a_device_too_small_is_said(monkeypatch, limit, warned):
    run, _ = build(small_config(num_devices=1))
    device = SimpleNamespace(platform="gpu", device_kind="small", memory_stats=lambda: {"bytes_limit": limit})
    memory = Memory(arguments=2**21, temporaries=0, results=0, aliased=0, other_splits=0)
    monkeypatch.setattr(preview_module, "step_cost", lambda run: (1.0, memory))
    devices: Any = (device,)
    small = dataclasses.replace(run, parallel=dataclasses.replace(run.parallel, devices=devices))
    text = io.StringIO()
    preview(small, Console(file=text, width=400), experiment="x", workdir=epath.Path("runs/x"))
    assert "predicted peak a device: 2.0 MiB" in text.getvalue()
    assert ("that is more than the 1.0 MiB of a device; lower batch_size" in text.getvalue()) == warned
