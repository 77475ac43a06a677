"""What happens inside a step, at a cadence: norms of weights, gradients and updates, activations, histograms.

`telemetry_step` repeats the forward and backward pass of the step that comes next and applies nothing, so that the
train step is the same program with it and without. `Telemetry` calls it and writes telemetry.jsonl and TensorBoard.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.run.log import RunLog
from jaxcnn.training.parallel import Parallel
from jaxcnn.training.step import Batch, TrainState, gradients

# Histograms have four bins an octave of |x| and side, the two first bits of the mantissa: no logarithm, no pass for the
# range, and counts of micro-batches and devices add up. What is smaller counts as zero, what is larger as the largest.
LOWEST_OCTAVE, NUM_OCTAVES = -40, 56
_SIDE = 4 * NUM_OCTAVES
NUM_BINS = 2 * _SIDE + 1


def telemetry_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    histograms: bool,
    axis_name: str | None = None,
    **learning: Any,
) -> dict[str, Any]:
    """Statistics of the step that `train_step` would take from the same arguments; `learning` as of step.gradients.

    Returns:
      Float32 arrays, of L layers, K kernels and bins B: `gradient_norm` []; `norms` [3, L] of weights, gradients and
      updates; `activations`, by tap, `mean`, `std` and `dead` []; and where `histograms`, `weights` and `gradients`
      [K, B], and of each tap `counts` [B].
    """
    observe = partial(_observe, histograms=histograms)
    grads, _, _, _, observed = gradients(state, batch, key, axis_name=axis_name, observe=observe, **learning)
    updates, _ = optimizer.update(grads, state.opt_state, state.params)
    found: dict[str, Any] = {
        "gradient_norm": optax.global_norm(grads),
        "norms": jnp.stack(
            [jnp.stack([*map(optax.global_norm, layers(tree).values())]) for tree in (state.params, grads, updates)]
        ),
        "activations": {name: _merge(each, axis_name) for name, each in observed.items()},
    }
    if histograms and kernels(state.params):
        for name, tree in (("weights", state.params), ("gradients", grads)):
            found[name] = jnp.stack([count(kernel).astype(jnp.float32) for kernel in kernels(tree).values()])
    return found


def layers(params: Any) -> dict[str, list[Any]]:
    """Arrays by the module that they belong to, `stage1_block1/conv1`; one of no module by its own name."""
    found: dict[str, list[Any]] = {}
    for name, leaf in _named(params):
        found.setdefault(layer_name(name), []).append(leaf)
    return found


def layer_name(path: str) -> str:
    """The layer of a parameter: `stage1_block1/conv1` of `stage1_block1/conv1/kernel`."""
    return path.rpartition("/")[0] or path


def kernels(params: Any) -> dict[str, Any]:
    """Arrays of more than one dimension, by path."""
    return {name: leaf for name, leaf in _named(params) if leaf.ndim > 1}


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def count(x: jax.Array) -> jax.Array:
    """Int32 [bins]: how many of x lie in each bin of `edges`; what is not finite in none."""
    x = x.astype(jnp.float32).ravel()
    finite = jnp.isfinite(x)
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> 21  # exponent, and two bits of mantissa
    place = jnp.minimum(bits - 4 * (127 + LOWEST_OCTAVE), _SIDE - 1) + 1  # 1 … _SIDE from zero outwards
    counted = finite & (place > 0)
    place = jnp.where(counted, _SIDE + jnp.where(x < 0, -place, place), NUM_BINS)  # zeros, often half, are not added
    counts = jnp.zeros(NUM_BINS, jnp.int32).at[place].add(1, mode="drop")
    return counts.at[_SIDE].set(finite.sum() - counted.sum())


def edges() -> np.ndarray:
    """The bins' upper ends, float64 [bins]; a bin's lower end is the upper end before it."""
    octaves = 2.0 ** np.arange(LOWEST_OCTAVE, LOWEST_OCTAVE + NUM_OCTAVES)
    ends = np.append(np.outer(octaves, (1, 1.25, 1.5, 1.75)).ravel(), 2 * octaves[-1])
    return np.concatenate([-ends[-2::-1], ends])


def _observe(features: dict[str, jax.Array], *, histograms: bool) -> dict[str, dict[str, jax.Array]]:
    """Of a micro-batch's features [batch, ..., channels], what can be merged with other parts of the batch."""

    def one(x: jax.Array) -> dict[str, jax.Array]:
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        found = {"mean": x.mean(), "variance": x.var(), "highest": x.max(axis=tuple(range(x.ndim - 1)))}
        return found | ({"counts": count(x).astype(jnp.float32)} if histograms else {})

    return {name: one(x) for name, x in features.items()}


def _merge(parts: dict[str, jax.Array], axis_name: str | None) -> dict[str, jax.Array]:
    """Of equal parts of a batch, with a leading axis of micro-batches, to the whole over all devices."""
    if axis_name is not None:
        parts = jax.lax.all_gather(parts, axis_name)
        parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
    mean = parts["mean"].mean()
    found = {
        "mean": mean,
        "std": jnp.sqrt(parts["variance"].mean() + jnp.square(parts["mean"] - mean).mean()),
        "dead": (parts["highest"].max(axis=0) <= 0).mean(),
    }
    return found | ({"counts": parts["counts"].sum(axis=0)} if "counts" in parts else {})


class Telemetry:
    """Takes a run's telemetry, and writes it once the devices have come so far: the loop never waits for it.

    A row of telemetry.jsonl is of the step that makes update `step`: the weights before it, its gradients as they are
    before clipping, what the optimizer adds to the weights. With several steps a call it is the first of a call.

        {"step": 200, "gradient_norm": 0.81,
         "layers": {"stage1_block1/conv1": {"weight_norm": 3.1, "gradient_norm": 0.2, "update_ratio": 0.0011}, …},
         "activations": {"stage1": {"mean": 0.3, "std": 0.5, "dead": 0.0}, …}}

    `update_ratio` is the update's norm / the weights', null where these are 0; `dead` the share of channels with no
    positive value in the batch. What is not finite is null too, and then named in a list `not_finite`. Six digits, and
    nothing of the clock.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        every_steps: int,
        *,
        params: Any,
        parallel: Parallel,
        log: RunLog,
        compiling: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        """`call` is compiled: (state, data, inputs, key) -> statistics; every 0 steps is never.

        `params` may be abstract. The first call, which compiles, is made within `compiling()`.
        """
        self._call, self._every_steps, self._parallel, self._log = call, every_steps, parallel, log
        self._compiling: Callable[[], AbstractContextManager[Any]] = compiling
        self._layers, self._kernels = list(layers(params)), list(kernels(params))
        self._pending: deque[tuple[int, Any]] = deque()

    def observe(self, step: int, num_steps: int, state: Any, data: Any, inputs: Any, key: Any) -> None:
        """Before a call of `num_steps` steps from `step` on: takes it, where a multiple of the cadence lies in it."""
        if not self._every_steps or (step + num_steps) // self._every_steps == step // self._every_steps:
            return
        with self._compiling():
            self._pending.append((step + 1, self._call(state, data, inputs, key)))
        self._compiling = nullcontext

    def fetch(self, *, wait: bool = False) -> None:
        """Writes what the devices are done with, or all of it."""
        while self._pending and (wait or self._pending[0][1]["gradient_norm"].is_ready()):
            step, found = self._pending.popleft()
            found = self._parallel.unreplicate(found)
            self._log.telemetry(
                step,
                row(self._layers, found),
                histograms(self._kernels, found),
                shown={layer_name(name) for name in self._kernels},
            )


def row(names: Sequence[str], found: dict[str, Any]) -> dict[str, Any]:
    """What telemetry.jsonl says of host arrays that `telemetry_step` has returned; `names` are the layers'."""
    not_finite: list[str] = []

    def number(name: str, value: Any) -> float | None:
        if math.isfinite(value):
            return float(f"{value:.6g}")
        not_finite.append(name)
        return None

    told: dict[str, Any] = {"gradient_norm": number("gradient_norm", found["gradient_norm"]), "layers": {}}
    for name, (weight, gradient, update) in zip(names, found["norms"].T.tolist(), strict=True):
        told["layers"][name] = {
            "weight_norm": number(f"{name}: weight_norm", weight),
            "gradient_norm": number(f"{name}: gradient_norm", gradient),
            "update_ratio": number(f"{name}: update_ratio", update / weight) if weight else None,
        }
    told["activations"] = {
        tap: {name: number(f"{tap}: {name}", values[name]) for name in ("mean", "std", "dead")}
        for tap, values in found["activations"].items()
    }
    return told | ({"not_finite": not_finite} if not_finite else {})


def histograms(names: Sequence[str], found: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(upper ends, counts) of what TensorBoard shows, by tag; `names` are the kernels'."""
    counts = {f"{what}/{name}": each for what in ("weights", "gradients") if what in found
              for name, each in zip(names, found[what], strict=True)}  # fmt: skip
    counts |= {f"activations/{tap}": each["counts"] for tap, each in found["activations"].items() if "counts" in each}
    ends = edges()
    shown = {tag: _without_empty(ends, each) for tag, each in counts.items() if each.any()}
    if counts:
        weight, _, update = found["norms"]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.log10(update / weight)
        ratios = ratios[np.isfinite(ratios)]
        if len(ratios):
            number, at = np.histogram(ratios.clip(-8, 2), bins=np.arange(-8, 2.25, 0.25))
            shown["update_ratio_log10"] = _without_empty(at[1:], number)
    return shown


def _without_empty(ends: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring bins of nothing as one: nothing is lost, and of hundreds of bins some dozens stay."""
    kept = (counts > 0) | np.append(counts[1:] > 0, False)
    return ends[kept], counts[kept]
