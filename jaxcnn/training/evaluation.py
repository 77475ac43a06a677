"""Evaluation: every example exactly once, at any batch size and device count: summed up, or one by one."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxcnn.errors import RunError
from jaxcnn.tasks.metric import Metrics, Totals
from jaxcnn.training.parallel import Parallel

CALLS_IN_FLIGHT = 16  # the host waits for the devices this often, so that streamed batches do not pile up there


def evaluate(
    eval_call: Callable[[Any, Totals, Any, Any], Totals],
    variables: Sequence[dict[str, Any]],
    batches: Iterable[tuple[Any, Any]],
    *,
    metrics: Metrics,
    parallel: Parallel,
    num_examples: Callable[[], int],
) -> list[dict[str, float]]:
    """Means over a whole split, for each of several sets of weights in one pass over the data.

    Args:
      eval_call: compiled (variables, totals, data, inputs) -> totals.
      variables: each replicated `params` and `batch_stats`.
      batches: (data, inputs) for `eval_call`, padded to one shape; padding is masked.
      num_examples: asked at the end: size of the split, less what is damaged; that each was counted once is checked.

    Returns:
      For each, its metrics by name, `{"loss": …, …}`.
    """
    totals = [parallel.replicate(metrics.empty()) for _ in variables]
    for number, (data, inputs) in enumerate(batches, start=1):
        totals = [eval_call(each, sums, data, inputs) for each, sums in zip(variables, totals, strict=True)]
        if number % CALLS_IN_FLIGHT == 0:
            jax.block_until_ready(totals)
    results = [parallel.unreplicate(sums) for sums in totals]
    for sums in results:
        if int(sums.loss.count) != num_examples():
            raise RunError(f"evaluation counted {int(sums.loss.count)} examples of a split of {num_examples()}")
    return [{name: float(value) for name, value in sums.compute().items()} for sums in results]


def collect(
    functions: Sequence[tuple[Callable[[Any, Any], Any], dict[str, Any]]],
    batches: Iterable[tuple[Any, Any]],
    *,
    targets: Callable[[Any], Any],
    fetch: Callable[[Any, Any], dict[str, jax.Array]],
    parallel: Parallel,
    num_examples: Callable[[], int],
) -> tuple[list[Any], Any, np.ndarray]:
    """What pure functions make of every example of a split, in its order, in one pass over the data.

    Args:
      functions: each a pure (variables, batch) -> a tree of arrays [batch, ...], and its variables, on the host. A
        function that is there again, with other variables, is compiled once.
      batches: (data, inputs), from the split's first example on, padded to one shape; padding is masked.
      targets: of a batch, a tree of arrays [batch, ...].
      fetch: (data, inputs) -> a batch, with its `mask`.
      parallel: where it runs.
      num_examples: as for `evaluate`.

    Returns:
      (of each function its tree, arrays [n, ...]; the targets, [n, ...]; int [n] which of the split's examples these
      are: all that are valid).
    """
    calls: dict[Any, Any] = {}
    for function, _ in functions:
        if function not in calls:
            of_batch = partial(_of_batch, function=function, targets=targets, fetch=fetch, axis_name=parallel.axis_name)
            calls[function] = parallel.compile(of_batch, sharded={2: 0})
    members = [(calls[function], parallel.replicate(variables)) for function, variables in functions]
    pending: deque[Any] = deque()  # on their way, so that the host never waits for the newest
    done = []
    for data, inputs in batches:
        pending.append([call(variables, data, inputs) for call, variables in members])
        if len(pending) > CALLS_IN_FLIGHT:
            done.append(parallel.unreplicate(pending.popleft()))
    done += [parallel.unreplicate(each) for each in pending]
    mask = np.concatenate([results[0]["mask"] for results in done])
    if mask.sum() != num_examples():
        raise RunError(f"evaluation met {mask.sum()} examples of a split of {num_examples()}")

    def joined(member: int, part: str) -> Any:
        return jax.tree.map(lambda *x: np.concatenate(x)[mask], *(results[member][part] for results in done))

    return [joined(number, "output") for number in range(len(members))], joined(0, "target"), np.flatnonzero(mask)


def _of_batch(
    variables: Any, data: Any, inputs: Any, *, function: Callable, targets: Callable, fetch: Callable, axis_name: Any
) -> dict[str, Any]:
    batch = fetch(data, inputs)
    result = {"output": function(variables, batch), "target": targets(batch), "mask": batch["mask"]}
    return result if axis_name is None else jax.lax.all_gather(result, axis_name, tiled=True)
