"""Evaluation: every example exactly once, at any batch size and device count."""

from collections.abc import Callable, Iterable
from typing import Any

from jaxcnn.errors import RunError
from jaxcnn.metrics import Metrics
from jaxcnn.parallel import Parallel


def evaluate(
    eval_call: Callable[[Any, Metrics, Any, Any], Metrics],
    variables: dict[str, Any],
    batches: Iterable[tuple[Any, Any]],
    *,
    metrics: type[Metrics],
    parallel: Parallel,
    num_examples: int,
) -> dict[str, float]:
    """Means over a whole split.

    Args:
      eval_call: compiled (variables, totals, data, inputs) -> totals.
      variables: replicated `params` and `batch_stats`.
      batches: (data, inputs) for `eval_call`, padded to one shape; padding is masked.
      num_examples: size of the split; that each was counted once is checked.

    Returns:
      `{"loss": …, "accuracy": …, …}`.
    """
    totals = parallel.replicate(metrics.empty())
    for data, inputs in batches:
        totals = eval_call(variables, totals, data, inputs)
    totals = parallel.unreplicate(totals)
    counted = int(totals.loss.count)
    if counted != num_examples:
        raise RunError(f"evaluation counted {counted} examples of a split of {num_examples}")
    return {name: float(value) for name, value in totals.compute().items()}
