"""Evaluation: every example exactly once, at any batch size and device count."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxcnn.errors import RunError
from jaxcnn.metrics import Metrics
from jaxcnn.parallel import Parallel

CALLS_IN_FLIGHT = 16  # the host waits for the devices this often, so that streamed batches do not pile up there


def evaluate(
    eval_call: Callable[[Any, Metrics, Any, Any], Metrics],
    variables: Sequence[dict[str, Any]],
    batches: Iterable[tuple[Any, Any]],
    *,
    metrics: type[Metrics],
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
      For each, `{"loss": …, "accuracy": …, …}`.
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
