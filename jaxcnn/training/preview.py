"""What `--dry_run` shows: the resolved config, the model's table, the schedule, the compiled step's cost.

And what a model will see of its training images.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from etils import epath
from rich.console import Console

from jaxcnn.config import flatten
from jaxcnn.data.decoding import fit_image
from jaxcnn.data.records import Split
from jaxcnn.run.workdir import has_checkpoints
from jaxcnn.training.build import Run, describe
from jaxcnn.training.feed import Feed
from jaxcnn.training.step import augment_keys, mirrored


def preview(run: Run, console: Console, *, experiment: str, workdir: epath.Path) -> None:
    """Prints it all. Compiles the train step, runs nothing."""
    state = run.abstract_state()
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say = lambda line="": console.print(line)
    say(f"{describe(run, experiment, num_params)}\nworkdir: {workdir}\n")
    for name, value in flatten(run.config).items():
        say(f"  {name} = {value!r}")
    say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    if state.batch_stats:
        say(f"and {sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats)):,} running batch statistics")

    if not has_checkpoints(workdir) and run.pretrained is not None:
        console.print(run.pretrained.table())

    say(f"\n{run.total_steps:,} steps of {run.config.batch_size} images, {run.steps_per_epoch:,.2f} an epoch")
    follows = run.config.schedule.name == "plateau"
    say(f"learning rate by step{', while validation becomes better' if follows else ''}:")
    for step in sorted({round(share * (run.total_steps - 1)) for share in (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1)}):
        say(f"  {step:>9,}  epoch {step / run.steps_per_epoch:7.2f}  {float(run.schedule(step)):.6g}")
    if run.finetuning.layers:
        console.print(run.finetuning.table(run.steps_per_epoch))
    say("\ncompiling the train step …")
    cost, memory = step_cost(run)
    per_image = cost / run.config.batch_size
    say(f"FLOPs a step, on all devices: {cost:.4g} ({per_image:.4g} an image, as XLA counts them)")
    say(f"predicted peak a device: {memory}")
    limit = (run.parallel.devices[0].memory_stats() or {}).get("bytes_limit")  # none on CPUs
    if limit and memory.peak > limit:
        say(too_much(limit))


def too_much(limit: int) -> str:
    """What to do where a device has only so many bytes."""
    return (
        f"that is more than the {_mib(limit)} MiB of a device; lower batch_size, raise optimizer.accumulate, or set "
        "model.dtype=bfloat16, data.resident=false or, for a model with blocks, model.remat=true"
    )


@dataclass(frozen=True)
class Memory:
    """What a device holds while it trains, in bytes."""

    arguments: int  # of the train call: the state, the inputs, and the train split where it lives on the device
    temporaries: int
    results: int
    aliased: int  # results that take an argument's place
    other_splits: int  # those on the device that the train call does not see

    @property
    def peak(self) -> int:
        """As if all were there at once."""
        return self.arguments + self.temporaries + self.results - self.aliased + self.other_splits

    def __str__(self) -> str:
        return (
            f"{_mib(self.peak)} MiB = {_mib(self.arguments)} arguments (state, data) + {_mib(self.temporaries)} "
            f"temporaries + {_mib(self.results)} results - {_mib(self.aliased)} in their arguments' place"
            + (f" + {_mib(self.other_splits)} other splits" if self.other_splits else "")
        )


def step_cost(run: Run) -> tuple[float, Memory]:
    """(FLOPs of one step over all devices, memory of a device) of the compiled train step."""
    parallel, source = run.parallel, run.source
    size, shape = run.config.batch_size, source.image_shape
    struct = jax.ShapeDtypeStruct
    label_shape = source.label_shape
    label_dtype = jnp.float32 if label_shape else jnp.int32
    other_splits = 0
    if run.resident:
        count = len(source.splits["train"])
        data: Any = {"image": struct((count, *shape), jnp.uint8), "label": struct((count, *label_shape), label_dtype)}
        inputs: Any = {}
        others = sum(len(split) for name, split in source.splits.items() if name != "train")
        other_splits = others * (math.prod(shape) + 4 * math.prod(label_shape))
    else:
        label = struct((1, size, *label_shape), label_dtype)
        data, inputs = {}, {"image": struct((1, size, *shape), jnp.uint8), "label": label}
    inputs |= {"index": struct((1, size), jnp.int32), "epoch": struct((1, size), jnp.int32)}
    totals = jax.eval_shape(run.metrics.empty)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = parallel.abstract((run.abstract_state(), totals, data)), parallel.abstract(inputs, axis=1)
    train_call: Any = run.train_call
    compiled = train_call.lower(*arguments[0], arguments[1], parallel.abstract(key)).compile()
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    analysis = compiled.memory_analysis()
    memory = Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        results=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        other_splits=other_splits,
    )
    return cost.get("flops", float("nan")) * parallel.num_devices, memory


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


@dataclass(frozen=True)
class AugmentedImages:
    """Training images, and what augmentation makes of them, with normalising undone."""

    originals: np.ndarray  # uint8 [N, H, W, C], of the run's size
    versions: np.ndarray  # uint8 [N, versions, H, W, C]
    labels: np.ndarray  # int32 [N]


def augmented_images(run: Run, feed: Feed, *, num_images: int, num_versions: int) -> AugmentedImages:
    """The first images of the first batch. Version 0 is what step 0 trains on, the same draws; version k the same
    images as the k-th epoch of a run on that batch alone would draw them.
    """
    train, size = run.source.splits["train"], run.config.batch_size
    first = feed.batch(0)
    alone = Split(train.records, train.indices[first["index"]])
    source = dataclasses.replace(run.source, splits={**run.source.splits, "train": alone})
    feed_alone = type(feed)(run.config, source, run.parallel, lambda *_: None)
    key, augment = jax.random.key(run.config.seed), jax.jit(run.augment)
    mean, std = np.array(run.mean, np.float32), np.array(run.std, np.float32)
    versions = []
    batch: Any
    for version in range(num_versions):
        if version == 0:
            batch, order = first, np.arange(size)
        else:
            batch = feed_alone.batch(version)
            order = np.argsort(batch["index"])  # back to the order of the first batch
            batch = {**batch, "index": first["index"][batch["index"]]}
        keys = augment_keys(key, version, jnp.arange(size))
        images, _ = augment(keys, batch["image"], batch["label"], mirrored(key, batch))
        pixels = (np.asarray(images)[order[:num_images]] * std + mean) * 255
        versions.append(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    originals = [
        fit_image(example.pop("image"), source.image_shape)
        for example in alone.records.read(alone.indices[:num_images])
    ]
    return AugmentedImages(np.stack(originals), np.stack(versions, axis=1), np.asarray(first["label"][:num_images]))
