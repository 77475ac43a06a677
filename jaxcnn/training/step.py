"""The pure core: the state of training, and one step of it.

Arrays are positional, what is static is keyword-only and bound once. Nothing here knows the config, the disk, the
clock, or how many devices there are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxcnn.layers.dropout import drawn_by_example
from jaxcnn.layers.features import AUXILIARY, FEATURES
from jaxcnn.layers.initializers import draw_kernels
from jaxcnn.tasks.metric import Metrics, Totals
from jaxcnn.tasks.task import CONSTANTS, Batch, Loss, Prepare
from jaxcnn.training.averaging import Average
from jaxcnn.training.finetune import EVERYTHING, Finetuning

# What is random in a run comes from its one key, folded with one of these, so that each can be held still while
# another varies. Augmentation's coins for alternating flips have theirs in augment/geometry.py; the order of the data
# and its augmentation at decode in data/order.py.
INIT_STREAM, PREPARE_STREAM, DROPOUT_STREAM = 10, 11, 12


@flax.struct.dataclass
class TrainState:
    """Everything that training changes: arrays only."""

    step: jax.Array  # int32 [], updates applied
    params: Any  # float32
    batch_stats: Any  # float32; empty for models without batch norm
    opt_state: Any
    ema: Any  # {"params", "batch_stats"} averaged over steps, or None: averaging.py
    # What a model that reads streams carries from batch to batch, [global batch, ...], whole on every device; or None
    carried: Any = None


def init_state(
    key: jax.Array,
    example: Any,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    initializer: str | None = None,
    ema: bool = False,
    examples: Any = None,
    carries: int | None = None,
) -> TrainState:
    """Initial state of a model; a function of the run's key alone.

    Args:
      key: the run's.
      example: shapes and dtypes of the inputs of one example, as `Task.example`.
      initializer: a name; all kernels are drawn by it instead of as the model would.
      ema: whether the state holds an average of the weights.
      examples: inputs of training examples, for a model whose parameters begin `from_data`.
      carries: rows of the global batch, of a model that carries something from batch to batch.
    """
    inputs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), example)
    init_key = jax.random.fold_in(key, INIT_STREAM)
    # As in training, where auxiliary heads have parameters too.
    variables = model.init({"params": init_key, "dropout": init_key}, inputs, train=True)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if initializer is not None:
        params = draw_kernels(params, init_key, initializer=initializer)
    if examples is not None:
        params = model.from_data(params, examples)  # type: ignore[attr-defined]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Copies: two donated arguments may not share a buffer.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None,
        carried=None if carries is None else _begun(model, carries),
    )


def _begun(model: nn.Module, batch_size: int) -> Any:
    """What a model carries before the first batch of its streams; each leaf a buffer of its own, to be donated."""
    return jax.tree.map(jnp.copy, model.begin(batch_size))  # type: ignore[attr-defined]


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    prepare: Prepare,
    metrics: Metrics,
    accumulate: int = 1,
    average: Average | None = None,
    finetuning: Finetuning = EVERYTHING,
    stream_steps: int | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, Totals]:
    """One update from one batch, and the sums of its metrics.

    Args:
      state: before the step.
      batch: this device's part of the global batch, at [axis_index * size, (axis_index + 1) * size) of it.
      key: the run's constant key.
      accumulate: micro-batches whose gradients are averaged; must divide the device's part.
      average: of params and batch statistics, after the update; None when the state holds none.
      finetuning: which parameters train, and from which step on; no gradient is computed of those that never do.
      stream_steps: after so many steps streams are at their end, and what is carried begins anew; None: none is.
      axis_name: mapped axis over the devices that share the global batch; None on one device.
    """
    grads, batch_stats, carried, values, _ = gradients(
        state,
        batch,
        key,
        model=model,
        loss=loss,
        prepare=prepare,
        metrics=metrics,
        accumulate=accumulate,
        finetuning=finetuning,
        axis_name=axis_name,
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema, now = state.ema, {"params": params, "batch_stats": batch_stats}
    if average is not None:
        ema, now = average(ema, now, state.step + 1)
    if stream_steps is not None:
        carried = _carried_on(model, carried, (state.step + 1) % stream_steps == 0)
    new_state = TrainState(state.step + 1, **now, opt_state=opt_state, ema=ema, carried=carried)
    values = _whole(values)
    return new_state, metrics.sums(values, jnp.ones(batch_size(batch), bool), axis_name=axis_name)


def gradients(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    loss: Loss,
    prepare: Prepare,
    metrics: Metrics,
    accumulate: int = 1,
    finetuning: Finetuning = EVERYTHING,
    axis_name: str | None = None,
    observe: Callable[[dict[str, jax.Array]], Any] | None = None,
) -> tuple[Any, Any, Any, dict[str, jax.Array], Any]:
    """What a step learns from its batch, before the optimizer makes an update of it; arguments as of `train_step`.

    Args:
      observe: what is kept of the features that the model shows, layers/features.py; none: nothing of them is computed.

    Returns:
      Gradients of all parameters, over all devices; the new batch statistics; what is carried to the next batch, of all
      devices; what the metrics average [accumulate, size / accumulate, ...] of this device's part; and what `observe`
      returned, with a leading axis of micro-batches.
    """
    size = batch_size(batch)
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    positions = device * size + jnp.arange(size)
    keys = example_keys(key, state.step, positions)
    inputs, targets = prepare(key, keys, batch)
    shown = [] if observe is None else [FEATURES]

    def mean_loss(trained, batch_stats, inputs, targets, positions, carried):
        goes_on = {} if carried is None else {"carry": carried}
        with finetuning.norms_held(state.step), drawn_by_example(positions):
            outputs, updated = model.apply(
                {"params": finetuning.whole(trained, state.params), "batch_stats": batch_stats},
                inputs,
                train=True,
                mutable=["batch_stats", AUXILIARY, *shown],
                rngs={"dropout": dropout_key(key, state.step)},
                **goes_on,
            )
        outputs, carried = outputs if goes_on else (outputs, None)
        losses = loss(outputs, targets)
        total = losses.mean()
        for auxiliary_outputs in jax.tree.leaves(updated.get(AUXILIARY, {})):
            total += model.auxiliary_weight * loss(auxiliary_outputs, targets).mean()  # type: ignore[attr-defined]
        observed = None if observe is None else observe(updated.get(FEATURES, {}))
        values = metrics.of_examples(outputs, targets, losses)
        return total, (updated.get("batch_stats", {}), (carried, values), observed)

    def micro_step(carry, micro_batch):
        batch_stats, total = carry
        grads, (batch_stats, *found) = jax.grad(mean_loss, has_aux=True)(trained, batch_stats, *micro_batch)
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), found

    # Every accumulate-th example: micro-batch i holds the same examples of the global batch on any number of devices.
    micro_batches = jax.tree.map(
        lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1),
        (inputs, targets, positions, _own_rows(state.carried, positions)),
    )
    trained = finetuning.trained(state.params)
    zeros = jax.tree.map(jnp.zeros_like, trained)
    (batch_stats, grads), ((carried, values), observed) = scan(micro_step, (state.batch_stats, zeros), micro_batches)
    grads = jax.tree.map(lambda g: g / accumulate, grads)
    carried = _whole(carried)
    if axis_name is not None:
        grads = jax.lax.pmean(grads, axis_name)
        carried = jax.lax.all_gather(carried, axis_name, tiled=True)
    return finetuning.gradients(grads, state.params, state.step), batch_stats, carried, values, observed


def _whole(micro_batches: Any) -> Any:
    """Arrays [accumulate, size / accumulate, ...] in the batch's order, [size, ...]."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), micro_batches)


def _own_rows(carried: Any, positions: jax.Array) -> Any:
    """What is carried [global batch, ...] by this device's part of the batch, which lies at `positions`."""
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, positions[0], len(positions))
    return jax.tree.map(take, carried)


def _carried_on(model: nn.Module, carried: Any, is_over: jax.Array) -> Any:
    """What is carried to the next batch; at the end of the streams, what they begin with."""
    begun = _begun(model, jax.tree.leaves(carried)[0].shape[0])
    return jax.tree.map(lambda begin, x: jnp.where(is_over, begin, x), begun, carried)


def batch_size(batch: Mapping[str, Any]) -> int:
    """Examples in a batch."""
    return jax.tree.leaves(examples_of(batch))[0].shape[0]


def examples_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch, or a set, without what is no example's."""
    return {name: array for name, array in batch.items() if name != CONSTANTS}


def example_keys(key: jax.Array, step: Any, positions: jax.Array) -> jax.Array:
    """A key for each example, by its position in the step's global batch: one device and eight draw alike.

    `key` is the run's.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, PREPARE_STREAM), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, positions)


def dropout_key(key: jax.Array, step: Any) -> jax.Array:
    """The key of a step's dropout, which layers/dropout.py folds the examples' positions into. `key` is the run's."""
    return jax.random.fold_in(jax.random.fold_in(key, DROPOUT_STREAM), step)


def scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` that over one entry is no loop: on CPUs flax's own convolutions, in loops, are ~30 x slower."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, xs)
    carry, output = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], output)


def guarded_step(
    state: TrainState, totals: Totals, batch: Batch, key: jax.Array, *, step: Callable
) -> tuple[TrainState, Totals, Totals]:
    """One step: (state, totals with its metrics, its metrics). Not applied once the summed loss is not finite."""
    stepped, metrics = step(state, batch, key)
    totals = totals.merge(metrics)
    finite = jnp.isfinite(totals.loss.total)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state), totals, metrics


def train_steps(
    state: TrainState,
    totals: Totals,
    data: Any,
    inputs: Any,
    key: jax.Array,
    *,
    step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Totals]],
    fetch: Callable[[Any, Any], Batch],
) -> tuple[TrainState, Totals, jax.Array]:
    """Several steps in one program: one for each leading entry of `inputs`, `fetch(data, input)` giving its batch.

    Once the summed loss is not finite no further step is applied: the state stays as it was before the step that
    failed, so that the host, which looks once an interval, can still say which step and which layer it was.

    Returns:
      The state, the totals with the steps' metrics added, and state.step again, a value to wait for.
    """

    def body(carry, inputs):
        state, totals = carry
        state, totals, _ = guarded_step(state, totals, fetch(data, inputs), key, step=step)
        return (state, totals), None

    (state, totals), _ = scan(body, (state, totals), inputs)
    return state, totals, jnp.copy(state.step)


def eval_step(
    variables: dict[str, Any],
    batch: Batch,
    *,
    model: nn.Module,
    loss: Loss,
    prepare: Prepare,
    metrics: Metrics,
    apply: Callable[[Callable[[Any], Any], Any], Any] = lambda model, inputs: model(inputs),
    axis_name: str | None = None,
) -> Totals:
    """Sums of one batch's metrics under fixed weights; examples whose mask is False do not count.

    `apply`: what is made of the model and the inputs, as `Task.apply`.
    """
    inputs, targets = prepare(None, None, batch)
    outputs = apply(lambda inputs: model.apply(variables, inputs, train=False), inputs)
    values = metrics.of_examples(outputs, targets, loss(outputs, targets))
    return metrics.sums(values, batch["mask"], axis_name=axis_name)


def gather(data: dict[str, jax.Array], inputs: jax.Array | dict[str, jax.Array]) -> Batch:
    """The batch at `index` [batch] of a data set that lives on the device: of `inputs`, or inputs itself.

    A `mask` loses the examples that are not `valid`, bool [n] of the set; `constants` stay whole.
    """
    if not isinstance(inputs, dict):
        inputs = {"index": inputs}
    batch = {name: array if name == CONSTANTS else array[inputs["index"]] for name, array in data.items()}
    valid = batch.pop("valid", None)
    if "mask" in inputs and valid is not None:
        inputs = {**inputs, "mask": inputs["mask"] & valid}
    return {**batch, **inputs}
