"""Checks of the network's inside: telemetry.jsonl's gradients, updates and activations.

Every threshold stands above the check that uses it, with its reason.
"""

from collections.abc import Callable, Iterator

import numpy as np

from jaxcnn.results.diagnosis.finding import Finding, find_rate, lower_rate, times_rate, unset
from jaxcnn.run.facts import Facts, is_finite

EXPLODING, EXPLODING_ROWS = 100.0, 5  # a gradient norm / the run's median, of more than so many records; ours


def _exploding(facts: Facts) -> Iterator[Finding]:
    """Gradients that are not finite, or whose norm stands out."""
    rows = facts.telemetry or ()
    norms = np.array([row["gradient_norm"] for row in rows], float)  # None becomes NaN
    remedies = (*unset(facts, "optimizer.clip_norm=1"), lower_rate(facts))
    if not np.isfinite(norms).all():
        step = rows[int(np.flatnonzero(~np.isfinite(norms))[0])]["step"]
        yield Finding("exploding gradients", "error", f"the gradient is not finite at step {step:,}", remedies)
    elif len(norms) > EXPLODING_ROWS and norms.max() >= EXPLODING * np.median(norms) > 0:
        step, times = rows[int(norms.argmax())]["step"], norms.max() / np.median(norms)
        yield Finding(
            "exploding gradients",
            "warning",
            f"the gradient's norm is {norms.max():.3g} at step {step:,}, {times:,.0f} times its median",
            remedies,
        )


VANISHING = 1e-4  # a layer's gradient norm / that of the layer where it is largest, in the median; ours


def _vanishing(facts: Facts) -> Iterator[Finding]:
    """Layers whose gradient is next to nothing beside the largest layer's."""
    shares: dict[str, list[float]] = {}
    for row in facts.telemetry or ():
        layers = {name: layer["gradient_norm"] for name, layer in row["layers"].items()}
        largest = max(layers.values(), default=0) if all(map(is_finite, layers.values())) else 0
        if largest > 0:
            for name, norm in layers.items():
                shares.setdefault(name, []).append(norm / largest)
    # exactly 0 in every record: frozen, finetune.py's
    faint = {name: float(np.median(values)) for name, values in shares.items() if max(values) > 0}
    faint = {name: share for name, share in faint.items() if share < VANISHING}
    if faint:
        least = min(faint, key=lambda name: faint[name])
        yield Finding(
            "vanishing gradients",
            "warning",
            f"in {len(faint)} of {len(shares)} layers the gradient's norm is below {VANISHING:g} of the largest "
            f"layer's, in the median; the least is {faint[least]:.1g}, in {least}",
            (
                *unset(facts, "model.norm=batch"),
                "--config.model.initializer=he_normal",
                "--config.model.activation=relu",
            ),
        )


# ||update|| / ||weights|| a layer. About 1e-3 is usual (Karpathy, CS231n, "ratio of weights:updates"); ours: a hundred
# times from that.
UPDATE_RATIO_HIGH, UPDATE_RATIO_LOW = 1e-1, 1e-5


def _updates(facts: Facts) -> Iterator[Finding]:
    """Updates too large or too small for the weights that they change."""
    rates = [row["learning_rate"] for row in facts.train]
    steps = [row["step"] for row in facts.train]
    fast = [
        row
        for row in facts.telemetry or ()
        if rates[min(int(np.searchsorted(steps, row["step"])), len(rates) - 1)] >= max(rates) / 2
    ]
    ratios = [layer["update_ratio"] for row in fast for layer in row["layers"].values()]
    ratios = [ratio for ratio in ratios if is_finite(ratio) and ratio > 0]  # null too where weights are 0
    if not ratios:
        return
    ratio = float(np.median(ratios))
    words = (
        f"where the learning rate is high, a step changes a layer's weights by {ratio:.1g} of their norm, in the median"
    )
    if ratio > UPDATE_RATIO_HIGH:
        yield Finding("learning rate at the edge", "warning", words, (lower_rate(facts), find_rate()))
    elif ratio < UPDATE_RATIO_LOW:
        yield Finding("learning rate too small", "warning", words, (times_rate(facts, 10), find_rate()))


DEAD = 0.4  # channels without a positive value; "as much as 40 %" die of too high a rate (CS231n, "ReLU")


def _dead(facts: Facts) -> Iterator[Finding]:
    """Channels without a positive value."""
    if not facts.telemetry:
        return
    row = facts.telemetry[-1]
    dead = {name: each["dead"] for name, each in row.get("activations", {}).items() if is_finite(each["dead"])}
    dead = {name: share for name, share in dead.items() if share >= DEAD}
    if dead:
        worst = max(dead, key=lambda name: dead[name])
        yield Finding(
            "dead channels",
            "warning",
            f"at step {row['step']:,} {dead[worst]:.0%} of the channels of {worst} have no positive value in a batch"
            + (f", and at least {DEAD:.0%} in {len(dead) - 1} others" if len(dead) > 1 else ""),
            (lower_rate(facts), "--config.model.activation=leaky_relu", *unset(facts, "schedule.warmup_epochs=1")),
        )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (_exploding, _vanishing, _updates, _dead)
