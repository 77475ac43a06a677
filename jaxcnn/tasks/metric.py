"""What is counted of a split, each metric in one place: its sums, how they are finished, which way is better.

A metric is a function of means over examples, so sums of batches, micro-batches and devices add up, and are divided
once, at the end: never a mean of means. The bootstrap resamples the same means.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

Totals: TypeAlias = Any  # clu's collection, of each metric its sums: `totals.loss.total`, `totals.loss.count`, …

AVERAGED = "ema_"  # stands before the name of a metric of the weights' average


def _itself(means: Any) -> Any:
    return means


@dataclass(frozen=True)
class Metric:
    """A number that a split has.

    `of_examples` takes outputs and targets of a batch [B, ...] and losses [B], and gives float32 [B], or [B, size]:
    what is averaged over examples. `finish` makes the metric of the means [] or [size]; it works on numpy's arrays
    too, also with leading axes, [..., size].
    """

    name: str
    of_examples: Callable[[Any, Any, jax.Array], jax.Array]
    higher_is_better: bool
    unit: str = ""  # none: a share from 0 to 1, or a bare number
    size: int | None = None  # of what is averaged; none: one number an example
    finish: Callable[[Any], Any] = _itself
    chooses: bool = True  # may choose weights, end a run, lower a rate: it is better in one direction, and the model's


LOSS = Metric("loss", lambda outputs, targets, losses: losses, higher_is_better=False)


@cache
def _sums(size: int | None, finish: Callable[[Any], Any]) -> type[clu_metrics.Metric]:
    shape = () if size is None else (size,)

    @flax.struct.dataclass
    class Sums(clu_metrics.Metric):
        """Sums over examples, float32 [] or [size], and how many there were, int32 []."""

        total: jax.Array
        count: jax.Array

        @classmethod
        def empty(cls) -> "Sums":
            return cls(total=jnp.zeros(shape, jnp.float32), count=jnp.zeros((), jnp.int32))

        @classmethod
        def from_model_output(cls, values: jax.Array, mask: jax.Array, **_: Any) -> "Sums":
            real = mask.reshape(-1, *[1] * len(shape))
            return cls(
                total=jnp.where(real, values, jnp.zeros_like(values)).sum(axis=0), count=mask.astype(jnp.int32).sum()
            )

        def merge(self, other: Any) -> "Sums":
            return type(self)(total=self.total + other.total, count=self.count + other.count)

        def compute(self) -> Any:
            return finish(self.total / self.count)

    return Sums


@cache
def _collection(metrics: tuple[Metric, ...]) -> Any:
    return clu_metrics.Collection.create(
        **{each.name: _sums(each.size, each.finish).from_output(each.name) for each in metrics}
    )


class Metrics:
    """The metrics that a run records; the loss is always one of them, the first."""

    def __init__(self, metrics: Iterable[Metric] = ()):
        self.by_name = {each.name: each for each in (LOSS, *metrics)}
        self._totals = _collection(tuple(self.by_name.values()))

    def empty(self) -> Totals:
        """The sums of no example."""
        return self._totals.empty()

    def of_examples(self, outputs: Any, targets: Any, losses: jax.Array) -> dict[str, jax.Array]:
        """What each metric averages: of outputs and targets [B, ...] and losses [B], arrays [B] or [B, size]."""
        return {name: each.of_examples(outputs, targets, losses) for name, each in self.by_name.items()}

    def sums(self, values: dict[str, jax.Array], mask: jax.Array, *, axis_name: str | None = None) -> Totals:
        """Sums of what `of_examples` gave, over all devices where there is an axis. `mask` bool [B]: what counts."""
        if axis_name is None:
            return self._totals.single_from_model_output(mask=mask, **values)
        return self._totals.gather_from_model_output(axis_name=axis_name, mask=mask, **values)


@dataclass(frozen=True)
class Selection:
    """A metric that decides: the weights', or that of their average where one is kept."""

    metric: Metric
    averaged: bool

    @property
    def name(self) -> str:
        """Of its column in a row of evaluation."""
        return f"{AVERAGED}{self.metric.name}" if self.averaged else self.metric.name

    def facts(self) -> dict[str, Any]:
        """How checkpoints are ranked by it, plain data."""
        return {"best_metric": self.name, "higher_is_better": self.metric.higher_is_better}

    def gain(self, value: Any, best: Any) -> Any:
        """By how much `value` is better than `best`, numbers or arrays; negative where it is worse."""
        return value - best if self.metric.higher_is_better else best - value
