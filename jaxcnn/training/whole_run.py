"""The whole run as one program, for runs too short to wait for a host, and for many of them at once (`jax.vmap`).

Pure, and made of the loop's own pieces: only the order of the data is made in the program here, and evaluation too.
Nothing is logged or saved: `train_in_chunks` hands the state out between programs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.order import permutation
from jaxcnn.errors import UserError
from jaxcnn.tasks.metric import AVERAGED, Metrics
from jaxcnn.training.build import Run
from jaxcnn.training.feed import ResidentFeed, evaluation_inputs
from jaxcnn.training.optim import make_optimizer
from jaxcnn.training.step import TrainState, batch_size, examples_of, gather, guarded_step, scan

Data = dict[str, dict[str, jax.Array]]  # split -> what ResidentFeed.data has of it, arrays [n, ...]
Curves = dict[str, dict[str, jax.Array]]  # train [steps], other splits [evaluations]: named as in metrics.jsonl


@flax.struct.dataclass
class Hyperparameters:
    """Traced scalars, which may vary without compiling again. Where one is None, the config's holds."""

    learning_rate: Any = None  # a factor on the schedule
    weight_decay: Any = None
    label_smoothing: Any = None


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What is static of a whole run."""

    init: Callable[[jax.Array, Any], TrainState]  # (key, examples of train or None) -> state
    from_data: bool  # whether the init needs examples
    steps: Callable[[Hyperparameters], tuple[Callable, Callable]]  # the train step and the evaluation step with these
    metrics: Metrics
    total_steps: int
    batch_size: int  # global
    eval_batch_size: int  # global
    eval_every_steps: int
    axis_name: str | None  # over the devices that share the batches


def pieces_of(run: Run, *, eval_every_steps: int | None = None) -> Pieces:
    """A run's pieces; by default it evaluates every `eval_every_epochs`, in whole steps."""
    config = run.config
    if not run.resident:
        raise UserError("a whole run in one program needs data that live on the device: set data.resident=true")
    if config.init_from is not None:
        raise UserError(f"init_from={config.init_from} is not for a whole run in one program; use jaxcnn.main")
    if config.data.sampling != "uniform":
        raise UserError(
            f"data.sampling={config.data.sampling} is not for a whole run in one program; set it to uniform"
        )
    for name, watches in (
        ("early_stop.patience_evaluations", config.early_stop.patience_evaluations is not None),
        ("schedule.name=plateau", config.schedule.name == "plateau"),
    ):
        if watches:
            raise UserError(f"{name} lets evaluations decide, which one program of a whole run does not; turn it off")
    if run.learning.stream_steps is not None:
        raise UserError(f"model.name={config.model.name} reads streams, which a whole run in one program does not")
    if run.learning.total_steps * config.batch_size >= 2**31:
        raise UserError(
            f"{run.learning.total_steps} steps of {config.batch_size} {run.task.examples} are too many for one "
            "program: 2**31"
        )
    return Pieces(
        init=run.init_from,
        from_data=hasattr(run.learning.model, "from_data"),
        steps=partial(_steps_with, run=run),
        metrics=run.learning.metrics,
        total_steps=run.learning.total_steps,
        batch_size=config.batch_size,
        eval_batch_size=run.calls.eval_batch_size,
        eval_every_steps=eval_every_steps or max(1, round(config.eval_every_epochs * run.learning.steps_per_epoch)),
        axis_name=run.parallel.axis_name,
    )


def train_run(
    seed: jax.Array, data: Data, hyperparameters: Hyperparameters, *, pieces: Pieces
) -> tuple[TrainState, Curves]:
    """Trains from the init to the last step. `seed` is the config's: the run's key and the order come from it."""
    state = pieces.init(jax.random.key(seed), examples_of(data["train"]) if pieces.from_data else None)
    return train_chunk(state, data, seed, hyperparameters, num_steps=pieces.total_steps, pieces=pieces)


def train_chunk(
    state: TrainState,
    data: Data,
    seed: jax.Array,
    hyperparameters: Hyperparameters,
    *,
    num_steps: int,
    pieces: Pieces,
) -> tuple[TrainState, Curves]:
    """`num_steps` steps on from a state; after every `eval_every_steps` of them, and after the last, it evaluates.

    All splits in `data` but train are evaluated. As in the loop, nothing is applied once a loss is not finite.
    """
    key = jax.random.key(seed)
    train_step, eval_step = pieces.steps(hyperparameters)
    count = batch_size(data["train"])
    inputs = batches_from(seed, state.step, num_steps, num_examples=count, batch_size=pieces.batch_size)
    inputs = _own_columns(inputs, pieces.axis_name)

    def train(carry, inputs):
        state, totals = carry
        state, totals, metrics = guarded_step(state, totals, gather(data["train"], inputs), key, step=train_step)
        return (state, totals), metrics.compute()

    def train_and_evaluate(carry, inputs):
        carry, curve = scan(train, carry, inputs)
        evaluate = partial(_evaluate, carry[0], eval_step=eval_step, pieces=pieces)
        return carry, {"train": curve} | {split: evaluate(data[split]) for split in data if split != "train"}

    carry: Any = (state, pieces.metrics.empty())
    num_blocks, rest = divmod(num_steps, pieces.eval_every_steps)
    whole, parts = num_steps - rest, []
    for start, blocks, length in ((0, num_blocks, pieces.eval_every_steps), (whole, min(rest, 1), rest)):
        if blocks:
            cut = partial(jax.lax.slice_in_dim, start_index=start, limit_index=start + blocks * length)
            xs = jax.tree.map(lambda x, n=blocks, cut=cut: cut(x).reshape(n, -1, x.shape[-1]), inputs)
            carry, curves = scan(train_and_evaluate, carry, xs)
            parts.append(jax.tree.map(lambda x: x.reshape(-1), curves))
    return carry[0], jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def batches_from(
    seed: jax.Array, step: jax.Array, num_steps: int, *, num_examples: int, batch_size: int
) -> dict[str, jax.Array]:
    """Batches from `step` on as the feed's: `index` and `epoch` of each example, int32 [num_steps, batch]."""
    length = num_steps * batch_size
    epoch, start = jnp.divmod(step * batch_size, num_examples)
    epochs = epoch + jnp.arange((length - 2) // num_examples + 2)  # as many as it may touch; each is sorted once
    orders = jax.vmap(lambda epoch: permutation(seed, epoch, num_examples, xp=jnp))(epochs)
    of = {"index": orders.astype(jnp.int32), "epoch": jnp.broadcast_to(epochs[:, None], orders.shape)}
    cut = partial(jax.lax.dynamic_slice, start_indices=(start,), slice_sizes=(length,))
    return {name: cut(x.reshape(-1)).reshape(num_steps, batch_size) for name, x in of.items()}


def train_in_chunks(
    run: Run,
    feed: ResidentFeed,
    hyperparameters: Hyperparameters,
    *,
    num_steps: int,
    pieces: Pieces,
    state: TrainState | None = None,
    splits: Sequence[str] = ("train", "validation"),
) -> Iterator[tuple[TrainState, Curves]]:
    """Trains to the end, `num_steps` a program; after each, the state and the curves of that chunk, in host memory.

    Args:
      state: to go on from, as a checkpoint gives it back; none: from the init.
      splits: train, and those to be evaluated.
    """
    parallel = run.parallel
    state = run.init() if state is None else state
    data: Data = {split: feed.data(split) for split in splits}
    arguments = parallel.replicate(np.uint32(run.config.seed)), parallel.replicate(hyperparameters)
    compiled: dict[int, Callable] = {}  # the last chunk may be shorter
    step, state = int(state.step), parallel.replicate(state)
    while step < pieces.total_steps:
        length = min(num_steps, pieces.total_steps - step)
        if length not in compiled:
            chunk = partial(train_chunk, num_steps=length, pieces=pieces)
            compiled[length] = parallel.compile(chunk, sharded={}, donate=(0,))
        state, curves = compiled[length](state, data, *arguments)
        step += length
        yield parallel.unreplicate(state), parallel.unreplicate(curves)


def _steps_with(hyperparameters: Hyperparameters, *, run: Run) -> tuple[Callable, Callable]:
    """The run's steps, with an optimizer and a loss made anew where they depend on a traced scalar."""
    config, optimizer, step, eval_step = (
        run.config.optimizer,
        run.learning.optimizer,
        run.calls.step,
        run.calls.eval_step,
    )
    factor, weight_decay = hyperparameters.learning_rate, hyperparameters.weight_decay
    if weight_decay is not None:
        if not config.weight_decay:  # the state of the optimizer would lack the link
            raise UserError("weight_decay can vary only where the config has some: set optimizer.weight_decay above 0")
        config = dataclasses.replace(config, weight_decay=weight_decay)
    if factor is not None or weight_decay is not None:
        schedule = run.learning.schedule if factor is None else lambda step: factor * run.learning.schedule(step)
        optimizer = make_optimizer(config, schedule, run.learning.finetuning)
    if hyperparameters.label_smoothing is not None:
        smoothed = dataclasses.replace(run.config.loss, label_smoothing=hyperparameters.label_smoothing)
        losses = run.task.losses(smoothed)
        step, eval_step = partial(step, loss=losses.train), partial(eval_step, loss=losses.evaluate)
    return partial(step, optimizer=optimizer), eval_step


def _evaluate(
    state: TrainState, data: dict[str, jax.Array], *, eval_step: Callable, pieces: Pieces
) -> dict[str, jax.Array]:
    """Means over a split under the weights, and with AVERAGED before the name under their average."""
    variables = {"": {"params": state.params, "batch_stats": state.batch_stats}}
    if state.ema is not None:
        variables[AVERAGED] = state.ema

    def add(totals, inputs):
        batch = gather(data, inputs)
        return {kind: totals[kind].merge(eval_step(variables[kind], batch)) for kind in variables}, None

    inputs = evaluation_inputs(batch_size(data), pieces.eval_batch_size)
    inputs = _own_columns(jax.tree.map(jnp.asarray, inputs), pieces.axis_name)
    totals, _ = scan(add, {kind: pieces.metrics.empty() for kind in variables}, inputs)
    return {kind + name: value for kind, sums in totals.items() for name, value in sums.compute().items()}


def _own_columns(tree: Any, axis_name: str | None) -> Any:
    """Of arrays [calls, batch], the part of the batch that is this device's."""
    if axis_name is None:
        return tree
    size = jax.tree.leaves(tree)[0].shape[1] // jax.lax.axis_size(axis_name)
    start = jax.lax.axis_index(axis_name) * size
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), tree)
