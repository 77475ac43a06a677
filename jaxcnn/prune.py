"""Makes a trained network smaller: python -m jaxcnn.prune --workdir DIR --out DIR2 [--keep 0.5] [--by l1|norm|taylor]

Channels are removed for real; DIR2 becomes a run's folder, which evaluates and predicts, and holds an experiment that
trains on from there. --unstructured 0.9 makes single weights zero instead, which is no faster. docs/compression.md.
"""

import contextlib
import dataclasses
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from absl import flags
from etils import epath
from rich.table import Table

from jaxcnn.command import (
    HELP_FLAGS,
    check_outputs,
    check_step,
    flags_help,
    parse_flags,
    run_command,
    show_help,
)
from jaxcnn.config import Config, from_dict
from jaxcnn.config.choices import TASKS
from jaxcnn.errors import UserError, nearest
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog

BY, RANKED = ("l1", "norm", "taylor"), ("layer", "network")
REPEATS = 9  # timed calls of either network, in turn


def main(argv: list[str], start: float) -> int:
    """Parses, measures channels, removes some, writes, prints; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
    flags.DEFINE_string("out", None, "a new folder for the smaller network", flag_values=values)
    flags.DEFINE_string("step", "best", "checkpoint: best (on validation), last, or a step", flag_values=values)
    flags.DEFINE_float("keep", None, "part of the channels that stays; default 0.5", flag_values=values)
    flags.DEFINE_string("by", None, f"what a channel's worth is: {', '.join(BY)}; default l1", flag_values=values)
    flags.DEFINE_string(
        "ranked", None, "among what: layer, network; default as the method's authors do", flag_values=values
    )
    flags.DEFINE_integer(
        "rounds", 1, "prune and train on so many times, in --out/round1, …", 1, 100, flag_values=values
    )
    flags.DEFINE_integer("multiple", 1, "layers keep multiples of this, 8 for speed", 1, 1024, flag_values=values)
    flags.DEFINE_integer("images", 1024, "of train, for --by=taylor", 1, 10**9, flag_values=values)
    flags.DEFINE_float("unstructured", None, "instead: part of the weights that becomes zero", flag_values=values)
    flags.DEFINE_float("epochs", None, "of the experiment that trains on; default the run's", flag_values=values)
    flags.DEFINE_float("learning_rate", None, "the same", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "images that are timed; default the run's", 1, 10**6, flag_values=values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    parse_flags(values, argv, takes_arguments=False)
    workdir, saved = _check(values)
    if values.rounds > 1:
        return _in_rounds(values, workdir)
    return _prune(values, workdir, saved, RunLog(epath.Path("."), tensorboard=False, start=start))


def _check(values: flags.FlagValues) -> tuple[epath.Path, dict[str, Any]]:
    """(the run's folder, its config.json). Raises UserError; JAX is not imported."""
    if not values.workdir:
        raise UserError("no run given; pass --workdir, e.g. --workdir runs/digits")
    if not values.out:
        raise UserError("no folder given for the smaller network; pass --out, e.g. --out runs/digits_half")
    given: dict[str, Any] = {name: values[name].value for name in values if values[name].value is not None}
    for name in given.keys() & {"keep", "unstructured"}:
        if not 0 < given[name] < 1:
            raise UserError(f"--{name}={given[name]:g} is no part of a whole; give a number between 0 and 1")
    for name in given.keys() & {"epochs", "learning_rate"}:
        if not 0 < given[name] < math.inf:
            raise UserError(f"--{name}={given[name]:g} must be above 0")
    for name, choices in (("by", BY), ("ranked", RANKED)):
        if given.get(name, choices[0]) not in choices:
            raise UserError(f"--{name}={given[name]} is not known; {nearest(given[name], choices)}")
    about_channels = [f"--{name}" for name in ("keep", "by", "ranked") if name in given]
    about_channels += ["--rounds"] if values.rounds > 1 else []
    if "unstructured" in given and about_channels:
        raise UserError(
            f"{about_channels[0]} is about channels, and --unstructured about single weights; give one of them"
        )
    check_step(values.step)
    check_outputs(values, "out", folder=True)
    workdir = workdir_lib.resolve(values.workdir)
    saved = workdir_lib.read_config(workdir)
    if not TASKS[saved["config"]["task"]].looks_inside:
        raise UserError(
            f"{workdir} holds a run of task={saved['config']['task']}; only networks of task=classification are pruned"
        )
    return workdir, saved


def _in_rounds(values: flags.FlagValues, workdir: epath.Path) -> int:
    """The same part of the channels in each round, and training between them, each a command; returns the exit code.

    What an earlier call of the same command has done is not done again.
    """
    from jaxcnn.compression.folder import new_folder  # imports JAX, but takes no device

    out, keep = new_folder(values.out), (values.keep or 0.5) ** (1 / values.rounds)
    names = ("by", "ranked", "multiple", "images", "epochs", "learning_rate", "batch_size")
    given = [f"--{name}={values[name].value}" for name in names if values[name].value is not None]
    folders = [*(out / f"round{number}" for number in range(1, values.rounds)), out]
    for before, folder in pairwise([workdir, *folders]):
        if not (folder / "compression.json").exists():
            step = values.step if before == workdir else "best"
            code = _command(
                "prune", f"--workdir={before}", f"--out={folder}", f"--keep={keep}", f"--step={step}", *given
            )
            if code or folder == out:
                return code
        (experiment,) = folder.glob("*_pruned.py")
        if code := _command("main", f"--config={experiment}", f"--workdir={folder}"):
            return code
    return 0


def _command(module: str, *arguments: str) -> int:
    """Runs a command to its end; returns its exit code."""
    return subprocess.run([sys.executable, "-m", f"jaxcnn.{module}", *arguments]).returncode


def _prune(values: flags.FlagValues, workdir: epath.Path, saved: dict[str, Any], log: RunLog) -> int:
    import jax

    from jaxcnn.compression.folder import name_of, new_folder, training_on, write_run
    from jaxcnn.results.trained import load
    from jaxcnn.training.build import build
    from jaxcnn.training.parallel import set_up

    out = new_folder(values.out)
    first = from_dict(saved["config"])
    set_up(None, compilation_cache=first.compilation_cache)
    trained = load(str(workdir), values.step)
    config = training_on(first, out, partial(_settings, values))
    here = training_on(config, out, _here)
    run, feed = build(here, progress=log.work, facts=saved["data"], kept_splits=workdir_lib.read_splits(workdir))
    with contextlib.closing(feed):
        data = {"fingerprint": run.source.fingerprint, "splits": run.source.splits_digest}
        workdir_lib.check_data(workdir, saved["data"], data)
        if values.unstructured is not None:
            module, variables, facts = _with_zeros(values.unstructured, trained)
        else:
            module, variables, facts = _smaller(values, trained, run, feed, config)
        facts |= _measured(trained, module, variables, values.batch_size or first.eval_batch_size or first.batch_size)
        name = name_of(saved["experiment"], "_pruned")
        title = f"{first.model.name}, pruned by `python -m jaxcnn.prune`."
        file = write_run(out, name, title, config, run, saved, jax.device_get(variables), facts)
    _show(facts, trained, log)
    log.say(f"{out} evaluates and predicts as any run; it trains on by")
    log.say(f"  python -m jaxcnn.main --config {file} --workdir {out}")
    return 0


def _settings(values: flags.FlagValues, config: Config) -> None:
    if values.epochs is not None:
        config.num_epochs, config.num_steps = values.epochs, None
    if values.learning_rate is not None:
        config.optimizer.learning_rate = values.learning_rate


def _here(config: Config) -> None:
    """Wherever it was trained, it is pruned here; weights and splits are the run's."""
    config.platform, config.num_devices = None, 1
    config.init_from = config.data.exclude = None


# ---- the two ways


def _smaller(
    values: flags.FlagValues, trained: Any, run: Any, feed: Any, config: Config
) -> tuple[Any, Any, dict[str, Any]]:
    """(a narrower model, its variables, what became of the channels); `config` is told the widths. Raises UserError."""
    import jax
    from flax import traverse_util

    from jaxcnn.compression import pruning
    from jaxcnn.compression.channels import find_channels
    from jaxcnn.config import parse_channels
    from jaxcnn.models.make import make_model

    example = jax.ShapeDtypeStruct(trained.image_shape, "float32")
    channels = find_channels(trained.module, trained.variables, example)
    arrays, by = pruning.flat(trained.variables), values.by or "l1"
    keep, ranked = values.keep or 0.5, values.ranked or pruning.IMPORTANCES[by]
    contributions = _contributions(values.images, trained, run, feed) if by == "taylor" else ()
    scores = pruning.importances(by, channels, arrays, contributions)
    kept = pruning.choose(channels, scores, keep=keep, ranked=ranked, multiple=values.multiple)
    if not kept:
        raise UserError(_why_none(trained, channels.num_fixed, channels.groups, scores, by))

    def make(widths: Any) -> Any:
        options = dataclasses.replace(config.model, channels=tuple(f"{name}={n}" for name, n in sorted(widths.items())))
        return make_model(options, num_classes=len(trained.class_names), image_size=min(trained.image_shape[:2]))

    left = pruning.without(arrays, kept)
    widths = pruning.widths_of(make, parse_channels(config.model.channels), left, channels, example)
    config.model.channels = tuple(f"{name}={n}" for name, n in sorted(widths.items()))
    facts = {
        "by": by,
        "keep": keep,
        "ranked": ranked,
        "multiple": values.multiple,
        "channels": {
            "that may go": sum(map(len, channels.groups)),
            "gone": sum(int((~each.stays).sum()) for each in kept),
            "fixed": channels.num_fixed,
        },
    }
    return make(widths), traverse_util.unflatten_dict(left), facts


def _contributions(count: int, trained: Any, run: Any, feed: Any) -> Any:
    """Of training images, as evaluation sees them, what `pruning.contributions` gives."""
    from jaxcnn.compression import pruning

    learning = run.learning
    steps = range(-(-count // run.config.batch_size))
    batches = (learning.prepare(None, None, feed.batch(step)) for step in steps)
    return pruning.contributions(trained.module, trained.variables, learning.losses.evaluate, batches)


def _why_none(trained: Any, num_fixed: int, groups: Sequence[Any], scores: Sequence[Any], by: str) -> str:
    name = trained.config.model.name
    if groups and not any(score is not None for score in scores):
        return f"--by={by}: {name} has no batch norms with a scale; use --by=l1 or --by=taylor"
    if groups:
        return "no layer has so many channels that any would go; lower --keep or --multiple"
    return (
        f"{name} cannot be pruned: each of its {num_fixed:,} channels is normalised or averaged together with others, "
        "which would notice; --unstructured makes weights zero"
    )


def _with_zeros(fraction: float, trained: Any) -> tuple[Any, Any, dict[str, Any]]:
    """(the model, its variables with zeros, what became of them)."""
    from flax import traverse_util

    from jaxcnn.compression import pruning

    left = pruning.with_zeros(pruning.flat(trained.variables), fraction)
    zeros = sum(int((array == 0).sum()) for path, array in left.items() if path[-1] == "kernel")
    return trained.module, traverse_util.unflatten_dict(left), {"unstructured": fraction, "zeros": zeros}


# ---- what it is worth


def _measured(trained: Any, module: Any, variables: Any, batch_size: int) -> dict[str, Any]:
    """Sizes and times of the network before and after, in turn on the default device."""
    import jax
    import numpy as np

    from jaxcnn.layers.conv import AUTO, by
    from jaxcnn.report.layers import multiply_adds

    shape = (batch_size, *trained.image_shape)
    images = jax.device_put(np.random.default_rng(0).standard_normal(shape, np.float32))
    found: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for when, model, weights in (("before", trained.module, trained.variables), ("after", module, variables)):
        apply = partial(model.apply, train=False)
        traced = jax.make_jaxpr(by("xla", apply))(weights, jax.ShapeDtypeStruct((1, *shape[1:]), "float32"))
        found[when] = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights["params"])),
            "multiply_adds": multiply_adds(traced.jaxpr),
        }
        compiled = jax.jit(by(AUTO, apply, platform=jax.default_backend()))
        calls[when] = partial(compiled, jax.device_put(weights), images)
        jax.block_until_ready(calls[when]())
    seconds: dict[str, list[float]] = {when: [] for when in calls}
    for _ in range(REPEATS):
        for when, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[when].append(time.perf_counter() - start)
    for when, times in seconds.items():
        found[when]["seconds"] = statistics.median(times)
    return {**found, "batch_size": batch_size, "platform": jax.default_backend(), "of": trained.source}


def _show(facts: dict[str, Any], trained: Any, log: RunLog) -> None:
    table = Table(title=f"{trained.config.model.name} of {facts['of']}", title_justify="left")
    for column in ("", "before", "after", "after / before"):
        table.add_column(column, justify="right" if column else "left")
    before, after = facts["before"], facts["after"]
    for name, words, unit in (
        ("parameters", "parameters", 1),
        ("multiply_adds", "multiply-adds an image", 1),
        ("seconds", f"ms for {facts['batch_size']} images on {facts['platform']}", 1e3),
    ):
        numbers = [f"{unit * each[name]:,.2f}" if unit > 1 else f"{each[name]:,}" for each in (before, after)]
        table.add_row(words, *numbers, f"{after[name] / before[name]:.3f}")
    log.console.print(table)
    if "unstructured" in facts:
        log.say(
            f"{facts['zeros']:,} weights are zero. They are multiplied with like any other: this is no faster, and the "
            "files are no smaller until they are compressed; training on does not keep them zero"
        )
        return
    counts = facts["channels"]
    log.say(f"{counts['gone']:,} of {counts['that may go']:,} channels are gone")
    if counts["fixed"]:
        log.say(
            f"{counts['fixed']:,} others stay: they are normalised or averaged together (layer norm, group norm, "
            "attention), or cut into parts, and the rest would notice that one is missing"
        )


if __name__ == "__main__":
    run_command(main, less_memory="lower --batch_size or --images")
