"""What `--dry_run` shows: the resolved config, the model's table, the schedule, the compiled step's cost.

And what a model will see of its training images.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from etils import epath
from rich.console import Console

from jaxcnn import data as data_lib
from jaxcnn.config import Config, flatten
from jaxcnn.layers.onednn.call import flops as onednn_flops
from jaxcnn.layers.onednn.call import why_not
from jaxcnn.layers.onednn.library import NotForThisMachineError
from jaxcnn.run.workdir import has_checkpoints
from jaxcnn.tasks.task import CONSTANTS
from jaxcnn.training.build import Run, normalised_over


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

    steps, each = run.learning.total_steps, f"{run.config.batch_size} {run.task.examples}"
    say(f"\n{steps:,} steps of {each}, {run.learning.steps_per_epoch:,.2f} an epoch")
    follows = run.config.schedule.name == "plateau"
    say(f"learning rate by step{', while validation becomes better' if follows else ''}:")
    for step in sorted({round(share * (run.learning.total_steps - 1)) for share in (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1)}):
        say(f"  {step:>9,}  epoch {step / run.learning.steps_per_epoch:7.2f}  {float(run.learning.schedule(step)):.6g}")
    if run.learning.finetuning.layers:
        console.print(run.learning.finetuning.table(run.learning.steps_per_epoch))
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


def describe(run: Run, experiment: str, num_params: int) -> str:
    """The first lines a person sees: backend, data, model, and over what batch norm normalises."""
    parallel, source, config, learning = run.parallel, run.source, run.config, run.learning
    device = parallel.devices[0]
    backend = device.platform if device.device_kind == device.platform else f"{device.platform} ({device.device_kind})"
    sizes = " / ".join(f"{len(split):,} {name}" for name, split in source.splits.items())
    lines = [
        f"{experiment}: {backend}, {_count(parallel.num_devices, 'device')} "
        f"by {parallel.mode}, {_count(jax.process_count(), 'process')}",
        f"data {source.name}: {sizes}; {source.words()}, "
        + (f"{source.num_excluded:,} records excluded, " if source.num_excluded else "")
        + ("on the device" if run.resident else f"streamed by {_decoders(run)}"),
        f"model {config.model.name}: {num_params:,} parameters, {config.model.dtype}; "
        f"{learning.total_steps:,} steps of {config.batch_size} {run.task.examples}, {run.calls.steps_per_call} a call",
    ]
    if run.convolutions is not None:
        lines.append(f"convolutions by {run.convolutions}{_faster(config)}")
    if run.task.constants is not None:
        lines.append(run.task.constants.words())
    validation, test = source.splits.get("validation"), source.splits["test"]
    if validation is not None and (shared := data_lib.num_shared(validation, test)):
        lines.append(
            f"validation and test share {shared:,} examples: test is no measure apart from what chose the weights"
        )
    normalised = normalised_over(learning.model, config, parallel)
    if normalised is not None:
        lines.append(f"batch norm normalises over {normalised} {run.task.examples} ({config.model.batch_norm})")
    return "\n".join(lines)


def _faster(config: Config) -> str:
    """How convolutions would be faster, where they could be."""
    reason = why_not()
    helps = config.model.convolution == "auto" and reason and not isinstance(reason, NotForThisMachineError)
    return f"; {reason}" if helps else ""


def _decoders(run: Run) -> str:
    num_workers = data_lib.choose_workers(
        run.config.data.num_workers, batch_size=run.config.batch_size // jax.process_count(), **run.source.fit
    )
    return _count(num_workers, "process") if num_workers else "threads"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('ss') else 's'}"


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
    parallel, source, size = run.parallel, run.source, run.config.batch_size
    struct, example = jax.ShapeDtypeStruct, source.example
    other_splits = 0
    if run.resident:
        count = len(source.splits["train"])
        data: Any = {name: struct((count, *spec.shape), spec.dtype) for name, spec in example.items()}
        data["valid"] = struct((count,), bool)
        inputs: Any = {}
        others = sum(len(split) for name, split in source.splits.items() if name != "train")
        other_splits = others * data_lib.example_bytes(source)
    else:
        data, inputs = {}, {name: struct((1, size, *spec.shape), spec.dtype) for name, spec in example.items()}
    if run.task.constants is not None:
        of_train = partial(run.task.constants.arrays, run.facts)
        data[CONSTANTS] = jax.eval_shape(of_train, data if run.resident else None)
    inputs |= {"index": struct((1, size), jnp.int32), "epoch": struct((1, size), jnp.int32)}
    totals = jax.eval_shape(run.learning.metrics.empty)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = parallel.abstract((run.abstract_state(), totals, data)), parallel.abstract(inputs, axis=1)
    train_call: Any = run.calls.train_call
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
    flops = max(0.0, cost.get("flops", 0.0)) + onednn_flops(compiled.as_text())
    return flops * parallel.num_devices, memory


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
