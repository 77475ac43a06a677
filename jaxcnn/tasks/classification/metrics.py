"""What is counted: clu collections of sums and counts over per-example values and a mask.

Sums are merged on the device and divided once, at the end: never a mean of means.
"""

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

TOP5_FROM_CLASSES = 20  # with fewer classes a top-5 accuracy says little


@flax.struct.dataclass
class Metrics(clu_metrics.Collection):
    """Loss and top-1 accuracy of a split, each example counted once."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("accuracy")  # type: ignore[valid-type]


@flax.struct.dataclass
class Top5Metrics(clu_metrics.Collection):  # clu does not see inherited fields
    """The same with top-5 accuracy, for sets of many classes."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("accuracy")  # type: ignore[valid-type]
    top5_accuracy: clu_metrics.Average.from_output("top5_accuracy")  # type: ignore[valid-type]


def metrics_for(num_classes: int) -> type[Metrics] | type[Top5Metrics]:
    """The collection that makes sense for so many classes."""
    return Top5Metrics if num_classes >= TOP5_FROM_CLASSES else Metrics


def example_values(logits: jax.Array, labels: jax.Array, losses: jax.Array) -> dict[str, jax.Array]:
    """Per-example values [batch] for a collection; labels are classes [batch] or soft targets [batch, classes]."""
    classes = labels.argmax(axis=-1) if labels.ndim == 2 else labels
    values = {"loss": losses, "accuracy": (logits.argmax(axis=-1) == classes).astype(jnp.float32)}
    if logits.shape[-1] >= TOP5_FROM_CLASSES:
        _, top5 = jax.lax.top_k(logits, 5)  # of equals the first, as argmax has it
        values["top5_accuracy"] = (top5 == classes[:, None]).any(axis=-1).astype(jnp.float32)
    return values


def collect(
    metrics: type[Metrics], values: dict[str, jax.Array], mask: jax.Array, *, axis_name: str | None = None
) -> Metrics:
    """One batch's sums and counts, over all devices when there is an axis. `mask` is [batch], True where real."""
    if axis_name is None:
        return metrics.single_from_model_output(mask=mask, **values)
    return metrics.gather_from_model_output(axis_name=axis_name, mask=mask, **values)
