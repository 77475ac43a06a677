"""The pure core: the state of training, and one step of it.

Arrays are positional, what is static is keyword-only and bound once. Nothing here knows the config, the disk, the
clock, or how many devices there are.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxcnn.augment import Augment, alternating_mirror, average_views
from jaxcnn.layers.dropout import drawn_by_example
from jaxcnn.layers.features import AUXILIARY, FEATURES
from jaxcnn.layers.initializers import draw_kernels
from jaxcnn.tasks.classification.losses import Loss
from jaxcnn.tasks.classification.metrics import Metrics, collect, example_values
from jaxcnn.training.averaging import Average
from jaxcnn.training.finetune import EVERYTHING, Finetuning

# What is random in a run comes from its one key, folded with one of these, so that each can be held still while
# another varies. The order of the data and its augmentation at decode have theirs in data/order.py.
INIT_STREAM, AUGMENT_STREAM, DROPOUT_STREAM, FLIP_STREAM = 10, 11, 12, 13

# image uint8 [batch, height, width, channels], label [batch] or [batch, classes]; in evaluation mask; in training index
# and epoch, where they are known: which example of the train split each is, and the epoch in which it is seen
Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes: arrays only."""

    step: jax.Array  # int32 [], updates applied
    params: Any  # float32
    batch_stats: Any  # float32; empty for models without batch norm
    opt_state: Any
    ema: Any  # {"params", "batch_stats"} averaged over steps, or None: averaging.py


def init_state(
    key: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    initializer: str | None = None,
    ema: bool = False,
    examples: jax.Array | None = None,
) -> TrainState:
    """Initial state of a model for images [height, width, channels]; a function of the run's key alone.

    Of `examples`, too, normalised training images, for a model whose parameters begin `from_data`. With `initializer`,
    a name, all kernels are drawn by it instead of as the model would.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    init_key = jax.random.fold_in(key, INIT_STREAM)
    # As in training, where auxiliary heads have parameters too.
    variables = model.init({"params": init_key, "dropout": init_key}, images, train=True)
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
    )


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    augment: Augment,
    metrics: type[Metrics],
    accumulate: int = 1,
    average: Average | None = None,
    finetuning: Finetuning = EVERYTHING,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update from one batch, and the sums of its metrics.

    Args:
      state: before the step.
      batch: this device's part of the global batch, at [axis_index * size, (axis_index + 1) * size) of it.
      key: the run's constant key.
      accumulate: micro-batches whose gradients are averaged; must divide the device's part.
      average: of params and batch statistics, after the update; None when the state holds none.
      finetuning: which parameters train, and from which step on; no gradient is computed of those that never do.
      axis_name: mapped axis over the devices that share the global batch; None on one device.
    """
    grads, batch_stats, values, _ = gradients(
        state,
        batch,
        key,
        model=model,
        loss=loss,
        augment=augment,
        accumulate=accumulate,
        finetuning=finetuning,
        axis_name=axis_name,
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema, now = state.ema, {"params": params, "batch_stats": batch_stats}
    if average is not None:
        ema, now = average(ema, now, state.step + 1)
    new_state = TrainState(state.step + 1, **now, opt_state=opt_state, ema=ema)
    size = batch["label"].shape[0]
    values = {name: value.swapaxes(0, 1).reshape(size) for name, value in values.items()}
    return new_state, collect(metrics, values, jnp.ones(size, bool), axis_name=axis_name)


def gradients(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    loss: Loss,
    augment: Augment,
    accumulate: int = 1,
    finetuning: Finetuning = EVERYTHING,
    axis_name: str | None = None,
    observe: Callable[[dict[str, jax.Array]], Any] | None = None,
) -> tuple[Any, Any, dict[str, jax.Array], Any]:
    """What a step learns from its batch, before the optimizer makes an update of it; arguments as of `train_step`.

    Args:
      observe: what is kept of the features that the model shows, layers/features.py; none: nothing of them is computed.

    Returns:
      Gradients of all parameters, over all devices; the new batch statistics; per-example values [accumulate, size /
      accumulate] of this device's part; and what `observe` returned, with a leading axis of micro-batches.
    """
    size = batch["label"].shape[0]
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    positions = device * size + jnp.arange(size)
    keys = augment_keys(key, state.step, positions)
    images, labels = augment(keys, batch["image"], batch["label"], mirrored(key, batch))
    shown = [] if observe is None else [FEATURES]

    def mean_loss(trained, batch_stats, images, labels, positions):
        with finetuning.norms_held(state.step), drawn_by_example(positions):
            logits, updated = model.apply(
                {"params": finetuning.whole(trained, state.params), "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats", AUXILIARY, *shown],
                rngs={"dropout": dropout_key(key, state.step)},
            )
        losses = loss(logits, labels)
        total = losses.mean()
        for auxiliary_logits in jax.tree.leaves(updated.get(AUXILIARY, {})):
            total += model.auxiliary_weight * loss(auxiliary_logits, labels).mean()  # type: ignore[attr-defined]
        observed = None if observe is None else observe(updated.get(FEATURES, {}))
        return total, (updated.get("batch_stats", {}), example_values(logits, labels, losses), observed)

    def micro_step(carry, micro_batch):
        batch_stats, total = carry
        grads, (batch_stats, *found) = jax.grad(mean_loss, has_aux=True)(trained, batch_stats, *micro_batch)
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), found

    # Every accumulate-th example: micro-batch i holds the same examples of the global batch on any number of devices.
    micro_batches = tuple(x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1) for x in (images, labels, positions))
    trained = finetuning.trained(state.params)
    zeros = jax.tree.map(jnp.zeros_like, trained)
    (batch_stats, grads), (values, observed) = scan(micro_step, (state.batch_stats, zeros), micro_batches)
    grads = jax.tree.map(lambda g: g / accumulate, grads)
    if axis_name is not None:
        grads = jax.lax.pmean(grads, axis_name)
    return finetuning.gradients(grads, state.params, state.step), batch_stats, values, observed


def augment_keys(key: jax.Array, step: Any, positions: jax.Array) -> jax.Array:
    """One key an example, by its position in the step's global batch: one device and eight augment alike.

    `key` is the run's.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, AUGMENT_STREAM), step)
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


def mirrored(key: jax.Array, batch: Batch) -> jax.Array | None:
    """Which examples alternating flip mirrors; None where the batch does not say which they are. `key` is the run's."""
    if "epoch" not in batch:
        return None
    return alternating_mirror(jax.random.fold_in(key, FLIP_STREAM), batch["index"], batch["epoch"])


def guarded_step(
    state: TrainState, totals: Metrics, batch: Batch, key: jax.Array, *, step: Callable
) -> tuple[TrainState, Metrics, Metrics]:
    """One step: (state, totals with its metrics, its metrics). Not applied once the summed loss is not finite."""
    stepped, metrics = step(state, batch, key)
    totals = totals.merge(metrics)
    finite = jnp.isfinite(totals.loss.total)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state), totals, metrics


def train_steps(
    state: TrainState,
    totals: Metrics,
    data: Any,
    inputs: Any,
    key: jax.Array,
    *,
    step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]],
    fetch: Callable[[Any, Any], Batch],
) -> tuple[TrainState, Metrics, jax.Array]:
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
    normalise: Callable[[jax.Array], jax.Array],
    metrics: type[Metrics],
    views: str = "none",
    axis_name: str | None = None,
) -> Metrics:
    """Sums and counts of one batch under fixed weights; examples whose mask is False do not count.

    `views`: of each image over which its logits are averaged, see augment.average_views.
    """

    def predict(images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    logits = average_views(predict, normalise(batch["image"]), views=views)
    values = example_values(logits, batch["label"], loss(logits, batch["label"]))
    return collect(metrics, values, batch["mask"], axis_name=axis_name)


def is_sound(labels: Any) -> Any:
    """Bool [n]: which of labels [n], or [n, classes], are not negative, as those of damaged examples are."""
    return (labels >= 0).reshape(len(labels), -1).all(axis=1)


def gather(data: dict[str, jax.Array], inputs: jax.Array | dict[str, jax.Array]) -> Batch:
    """The batch at `index` [batch] of a data set that lives on the device: of `inputs`, or inputs itself.

    A `mask` loses the damaged examples, whose label is negative.
    """
    if not isinstance(inputs, dict):
        inputs = {"index": inputs}
    image, label = (data[name][inputs["index"]] for name in ("image", "label"))
    if "mask" in inputs:
        inputs = {**inputs, "mask": inputs["mask"] & is_sound(label)}
    return {"image": image, "label": label, **inputs}
