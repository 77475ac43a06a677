"""The whole run as one program, for runs too short to wait for a host, and for many of them at once (`jax.vmap`).

Pure, and made of the loop's own pieces: only the order of the data is made in the program here, and evaluation too.
Nothing is logged or saved: `train_in_chunks` hands the state out between programs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.order import permutation
from jaxcnn.errors import UserError
from jaxcnn.tasks.metric import AVERAGED, Metrics, Selection, Totals
from jaxcnn.training.build import Run
from jaxcnn.training.feed import ResidentFeed, evaluation_inputs
from jaxcnn.training.loop import has_row, is_evaluated
from jaxcnn.training.optim import make_optimizer
from jaxcnn.training.step import TrainState, batch_size, examples_of, gather, guarded_step, scan

Data = dict[str, dict[str, jax.Array]]  # split -> what ResidentFeed.data has of it, arrays [n, ...]
Places = dict[str, jax.Array]  # split -> which of its arrays' examples these are, int32 [m]; none: all of them
Curves = dict[str, dict[str, jax.Array]]  # train [steps], other splits [evaluations]: named as in metrics.jsonl


@flax.struct.dataclass
class Hyperparameters:
    """Traced scalars, which may vary without compiling again. Where one is None, the config's holds."""

    learning_rate: Any = None  # a factor on the schedule
    weight_decay: Any = None
    label_smoothing: Any = None
    facts: Any = None  # that the task has measured on train, arrays by name


@flax.struct.dataclass
class Best:
    """The weights that validation has chosen so far."""

    value: jax.Array  # of the metric that chooses; NaN before the first that is finite
    state: TrainState


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What is static of a whole run."""

    init: Callable[[jax.Array, Any], TrainState]  # (key, examples of train or None) -> state
    from_data: bool  # whether the init needs examples
    steps: Callable[[Hyperparameters], tuple[Callable, Callable]]  # the train step and the evaluation step with these
    metrics: Metrics
    selection: Selection  # of the weights
    total_steps: int
    batch_size: int  # global
    eval_batch_size: int  # global
    eval_every_steps: int
    eval_steps: tuple[int, ...]  # those after which the loop evaluates
    row_steps: tuple[int, ...]  # those after which it writes a row of train
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
    total_steps = run.learning.total_steps
    if total_steps * config.batch_size >= 2**31:
        raise UserError(
            f"{total_steps} steps of {config.batch_size} {run.task.examples} are too many for one program: 2**31"
        )
    ends = [*range(run.calls.steps_per_call, total_steps, run.calls.steps_per_call), total_steps]
    calls = list(pairwise([0, *ends]))
    return Pieces(
        init=run.init_from,
        from_data=hasattr(run.learning.model, "from_data"),
        steps=partial(_steps_with, run=run),
        metrics=run.learning.metrics,
        selection=run.learning.selections.best,
        total_steps=total_steps,
        batch_size=config.batch_size,
        eval_batch_size=run.calls.eval_batch_size,
        eval_every_steps=eval_every_steps or max(1, round(config.eval_every_epochs * run.learning.steps_per_epoch)),
        eval_steps=tuple(end for start, end in calls if is_evaluated(run, start, end)),
        row_steps=tuple(end for start, end in calls if has_row(run, start, end)),
        axis_name=run.parallel.axis_name,
    )


def train_run(
    seed: jax.Array, data: Data, hyperparameters: Hyperparameters, places: Places | None = None, *, pieces: Pieces
) -> tuple[TrainState, Curves]:
    """Trains from the init to the last step. `seed` is the config's: the run's key and the order come from it."""
    state = _begin(seed, data, places or {}, pieces)
    length = pieces.total_steps
    return train_chunk(state, data, seed, hyperparameters, places, num_steps=length, pieces=pieces)


def _begin(seed: jax.Array, data: Data, places: Places, pieces: Pieces) -> TrainState:
    examples = examples_of(data["train"]) if pieces.from_data else None
    if "train" in places:
        examples = jax.tree.map(lambda x: x[places["train"]], examples)
    return pieces.init(jax.random.key(seed), examples)


def train_and_choose(
    seed: jax.Array, data: Data, hyperparameters: Hyperparameters, places: Places, *, pieces: Pieces, keep_best: bool
) -> tuple[TrainState, TrainState, Any, dict[str, Totals]]:
    """`train_run`, and what the loop makes of it: its result is measured on test, where there is one.

    Returns:
      The last state; the state that is the result: the best of validation's, or with `keep_best` off the last; the
      metrics' sums of train [steps] and of validation [evaluations]; and those of test. `means` divides them.
    """
    state = _begin(seed, data, places, pieces)
    seen = {split: data[split] for split in data if split != "test"}
    nothing = Best(jnp.float32(jnp.nan), state) if keep_best and "validation" in data else None
    state, best, curves = _train_chunk(
        state, seen, seed, hyperparameters, places, nothing, evaluated=pieces.eval_steps, pieces=pieces
    )
    result = state
    if best is not None:  # the last again where validation was never finite
        result = jax.tree.map(lambda chosen, last: jnp.where(jnp.isnan(best.value), last, chosen), best.state, state)
    if "test" not in data:
        return state, result, curves, {}
    _, eval_step = pieces.steps(hyperparameters)
    test = _evaluate(result, data["test"], places.get("test"), eval_step=eval_step, pieces=pieces)
    return state, result, curves, test


def train_chunk(
    state: TrainState,
    data: Data,
    seed: jax.Array,
    hyperparameters: Hyperparameters,
    places: Places | None = None,
    *,
    num_steps: int,
    pieces: Pieces,
) -> tuple[TrainState, Curves]:
    """`num_steps` steps on from a state; after every `eval_every_steps` of them, and after the last, it evaluates.

    All splits in `data` but train are evaluated. As in the loop, nothing is applied once a loss is not finite.
    """
    evaluated = (*range(pieces.eval_every_steps, num_steps, pieces.eval_every_steps), num_steps)
    state, _, curves = _train_chunk(
        state, data, seed, hyperparameters, places or {}, None, evaluated=evaluated, pieces=pieces
    )
    of_others = {split: jax.vmap(means)(curves[split]) for split in curves if split != "train"}
    return state, {"train": jax.vmap(lambda sums: sums.compute())(curves["train"]), **of_others}


def _train_chunk(
    state: TrainState,
    data: Data,
    seed: jax.Array,
    hyperparameters: Hyperparameters,
    places: Places,
    best: Best | None,
    *,
    evaluated: Sequence[int],
    pieces: Pieces,
) -> tuple[TrainState, Best | None, Any]:
    """(state, the best so far where there is one to begin with, the metrics' sums by split).

    `evaluated` are the steps on from here after which it evaluates, the last of all among them.
    """
    key = jax.random.key(seed)
    train_step, eval_step = pieces.steps(hyperparameters)
    count = _count(data["train"], places.get("train"))
    inputs = batches_from(seed, state.step, evaluated[-1], num_examples=count, batch_size=pieces.batch_size)
    inputs = _own_columns(inputs, pieces.axis_name)

    def train(carry, xs):
        inputs, active = xs
        state, totals = carry
        batch = gather(data["train"], _at(inputs, places.get("train")))
        stepped, totals, metrics = guarded_step(state, totals, batch, key, step=train_step)
        if active is not None:
            stepped = jax.tree.map(lambda new, old: jnp.where(active, new, old), stepped, state)
        return (stepped, totals), metrics

    def train_and_evaluate(carry, inputs):
        (state, totals), curve = scan(train, carry[:2], inputs)
        evaluate = partial(_evaluate, state, eval_step=eval_step, pieces=pieces)
        sums = {split: evaluate(data[split], places.get(split)) for split in data if split != "train"}
        best = carry[2]
        if best is not None:
            best = _better(best, state, means(sums["validation"])[pieces.selection.name], pieces.selection)
        return (state, totals, best), {"train": curve} | sums

    carry: Any = (state, pieces.metrics.empty(), best)
    parts = []
    for steps, active in _blocks(evaluated):
        xs = jax.tree.map(lambda x, steps=steps: x[steps], inputs), None if active.all() else active
        carry, curves = scan(train_and_evaluate, carry, xs)
        own = partial(_flat, places=np.flatnonzero(active))
        parts.append({**curves, "train": jax.tree.map(own, curves["train"])})
    return carry[0], carry[2], jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def _flat(x: jax.Array, *, places: np.ndarray) -> jax.Array:
    """Of an array [blocks, length, ...] some entries, [n, ...]."""
    return x.reshape(-1, *x.shape[2:])[places]


def _blocks(evaluated: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps between evaluations in rows of one length, int [blocks, length], and which of them are to be applied.

    Where epochs are no whole number of steps, their blocks differ by one, and shorter ones repeat their last step for
    nothing. A last block that is far shorter is an array of its own, and so a loop of its own in the program.
    """
    ends = np.asarray(evaluated)
    starts = np.append(0, ends[:-1])
    lengths = ends - starts
    alone = len(ends) - 1 if lengths[-1] < lengths.max() - 1 else len(ends)
    found = []
    for block in (slice(0, alone), slice(alone, None)):
        if len(ends[block]):
            places = np.arange(lengths[block].max())
            active = places < lengths[block, None]
            found.append((np.minimum(starts[block, None] + places, ends[block, None] - 1), active))
    return found


def _better(best: Best, state: TrainState, value: jax.Array, selection: Selection) -> Best:
    """The better of two, the later of equals; one that is not finite is never the best."""
    first = jnp.isnan(best.value)
    wins = jnp.isfinite(value) & (first | (selection.gain(value, best.value) >= 0))
    return jax.tree.map(lambda new, old: jnp.where(wins, new, old), Best(value, state), best)


def _count(data: dict[str, jax.Array], places: jax.Array | None) -> int:
    return batch_size(data) if places is None else places.shape[0]


def _at(inputs: dict[str, jax.Array], places: jax.Array | None) -> dict[str, jax.Array]:
    """A batch's `index` among all examples of its arrays."""
    return inputs if places is None else {**inputs, "index": places[inputs["index"]]}


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
    if hyperparameters.facts is not None:
        prepare = run.task.prepare(hyperparameters.facts)
        step, eval_step = partial(step, prepare=prepare), partial(eval_step, prepare=prepare)
    return partial(step, optimizer=optimizer), eval_step


def _evaluate(
    state: TrainState, data: dict[str, jax.Array], places: jax.Array | None, *, eval_step: Callable, pieces: Pieces
) -> dict[str, Totals]:
    """Sums over a split under the weights, by "", and under their average, by AVERAGED."""
    variables = {"": {"params": state.params, "batch_stats": state.batch_stats}}
    if state.ema is not None:
        variables[AVERAGED] = state.ema

    def add(totals, inputs):
        batch = gather(data, _at(inputs, places))
        return {kind: totals[kind].merge(eval_step(variables[kind], batch)) for kind in variables}, None

    inputs = evaluation_inputs(_count(data, places), pieces.eval_batch_size)
    inputs = _own_columns(jax.tree.map(jnp.asarray, inputs), pieces.axis_name)
    totals, _ = scan(add, {kind: pieces.metrics.empty() for kind in variables}, inputs)
    return totals


def means(sums: dict[str, Totals]) -> dict[str, Any]:
    """Of what an evaluation has summed: with AVERAGED before the name those under the weights' average."""
    return {kind + name: value for kind, each in sums.items() for name, value in each.compute().items()}


def _own_columns(tree: Any, axis_name: str | None) -> Any:
    """Of arrays [calls, batch], the part of the batch that is this device's."""
    if axis_name is None:
        return tree
    size = jax.tree.leaves(tree)[0].shape[1] // jax.lax.axis_size(axis_name)
    start = jax.lax.axis_index(axis_name) * size
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), tree)
