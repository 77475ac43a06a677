"""The learning-rate range test: one short run whose rate grows from step to step, and what its losses say.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3. It ends, and suggests the rate of the
steepest fall, as fast.ai's finder does (Gugger 2018, "How do you find a good learning rate"). That one's other rule, a
tenth of the rate with the least loss, makes up for a smoothing that lags behind; ours does not lag.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter1d

from jaxcnn.errors import RunError
from jaxcnn.training.build import Run
from jaxcnn.training.feed import Feed, Progress
from jaxcnn.training.optim import make_optimizer
from jaxcnn.training.step import train_steps

DIVERGED = 4.0  # smoothed loss / its least one, where the test ends: fast.ai's
SMOOTHED_DECADES = 0.2  # sigma of the smoothing, so that it does not depend on the number of steps; it has no lag
LEAST_FALL = 0.02  # of the loss; below it no rate has done anything


@dataclass(frozen=True)
class RateRange:
    """Losses by rate, as far as the test came, and the rates that stand out."""

    rates: np.ndarray  # float64 [n], of the steps that were made
    losses: np.ndarray  # float64 [n], of each step's batch before it
    smoothed: np.ndarray  # float64 [n]
    least: float  # rate with the least smoothed loss
    suggested: float  # rate at which the smoothed loss falls fastest, in the logarithm of the rate
    diverged: float | None  # rate at which the test ended; none: it came to the last
    still_falling: bool  # the least loss is at the end, and it did not diverge


def growing_rates(low: float, high: float, steps: int) -> np.ndarray:
    """float64 [steps], each the same multiple of the one before."""
    return np.geomspace(low, high, steps)


def range_test(run: Run, feed: Feed, rates: np.ndarray, *, progress: Progress = lambda *_: None) -> RateRange:
    """Trains a step with each rate, from the run's beginning, until the loss diverges.

    Args:
      run: whose schedule is not used; its optimizer, augmentation, accumulation and devices are.
      progress: told of each step.

    Raises:
      RunError: the loss falls at no rate.
    """
    config, parallel = run.config, run.parallel
    table = jnp.asarray(rates, jnp.float32)
    optimizer = make_optimizer(config.optimizer, lambda step: table[step], run.learning.finetuning)
    train_call = parallel.compile(
        partial(train_steps, step=partial(run.calls.step, optimizer=optimizer), fetch=feed.fetch),
        sharded={3: 1},
        donate=(0, 1),
    )
    state, data = parallel.replicate(run.init()), feed.data("train")
    key, empty = parallel.replicate(jax.random.key(config.seed)), jax.device_get(run.learning.metrics.empty())
    losses: list[float] = []
    for step in range(len(rates)):
        state, totals, _ = train_call(state, parallel.replicate(empty), data, feed.inputs(step, 1), key)
        losses.append(float(parallel.unreplicate(totals).compute()["loss"]))
        progress("learning rates", step + 1, len(rates))
        if _has_diverged(rates, losses):
            progress("learning rates", len(rates), len(rates))
            break
    return read_range(rates, losses)


def read_range(rates: np.ndarray, losses: list[float]) -> RateRange:
    """What the losses of the first rates say. Raises RunError: they fall at none."""
    made = rates[: len(losses)]
    finite = np.array(losses) if math.isfinite(losses[-1]) else np.array(losses[:-1])
    if len(finite) < 2:
        raise RunError(f"the loss is not finite at the lowest learning rate, {made[0]:.3g}; lower --min")
    smoothed = smooth(finite, rates)
    least = int(smoothed.argmin())
    if smoothed[least] > (1 - LEAST_FALL) * smoothed[0]:
        raise RunError(
            f"the loss falls at no learning rate from {made[0]:.3g} to {made[-1]:.3g} (from {smoothed[0]:.4g}, at best "
            f"to {smoothed[least]:.4g}); give it more --steps, or another --min and --max"
        )
    slopes = np.gradient(smoothed, np.log(made[: len(smoothed)]))
    return RateRange(
        rates=made,
        losses=np.array(losses),
        smoothed=np.append(smoothed, losses[len(smoothed) :]),
        least=float(made[least]),
        suggested=float(made[slopes[: least + 1].argmin()]),
        diverged=float(made[-1]) if _has_diverged(rates, losses) else None,
        still_falling=least >= len(rates) - 2,
    )


def smooth(losses: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Losses of the first rates, each a mean of its neighbours in decades of the rate, on both sides."""
    steps_a_decade = (len(rates) - 1) / math.log10(rates[-1] / rates[0])
    return gaussian_filter1d(losses, SMOOTHED_DECADES * steps_a_decade, mode="nearest")


def _has_diverged(rates: np.ndarray, losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smoothed = smooth(np.array(losses), rates)
    return bool(smoothed[-1] > DIVERGED * smoothed.min())


def sparkline(values: np.ndarray, *, width: int = 60) -> str:
    """Values as a line of blocks, the least the lowest; those above the first are as high as it."""
    shown = values[np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int)]
    shown = np.minimum(np.nan_to_num(shown, nan=np.inf), values[0])
    span = max(float(shown.max() - shown.min()), 1e-12)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * float(value - shown.min()) / span)] for value in shown)


def figure(found: RateRange, title: str) -> bytes:
    """A PNG of loss over rate."""
    import io

    from matplotlib.figure import Figure  # takes a moment, and is not often asked for

    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.subplots()
    axes.semilogx(found.rates, found.losses, ".", color="0.7", label="loss of each step")
    axes.semilogx(found.rates, found.smoothed, label="smoothed")
    for rate, word, style in (
        (found.suggested, "suggested: steepest", "-"),
        (found.least, "least", ":"),
    ):
        axes.axvline(rate, color="black", linestyle=style, linewidth=1, label=f"{word} {rate:.2g}")
    low, first = float(np.nanmin(found.losses)), float(found.smoothed[0])
    axes.set_ylim(low - 0.1 * (first - low), first + 0.5 * (first - low))
    axes.set(xlabel="learning rate", ylabel="training loss")
    axes.set_title(title, parse_math=False)
    axes.legend()
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
