"""What evaluations decide: when the learning rate falls, and when a run ends early.

Pure: the loop asks after each evaluation, does as it is told, and keeps the `Watch` in its checkpoints.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jaxcnn.config import Config


@dataclass(frozen=True)
class Best:
    """The best value of a validation metric so far."""

    value: float | None = None
    evaluations_since: int = 0  # that were no better

    def after(self, value: float, *, metric: str, min_delta: float) -> "Best":
        """With one more evaluation; one that is not finite is no better."""
        if math.isfinite(value) and (
            self.value is None or (self.value - value if metric == "loss" else value - self.value) > min_delta
        ):
            return Best(value)
        return Best(self.value, self.evaluations_since + 1)


@dataclass(frozen=True)
class Watch:
    """All that a run's evaluations so far come to."""

    stop: Best = Best()
    plateau: Best = Best()
    cooldown: int = 0  # evaluations that plateau still lets pass
    rate_factor: float = 1.0  # plateau: on the schedule's learning rate

    @staticmethod
    def of(saved: dict[str, Any] | None) -> "Watch":
        """From what `saved` made; the beginning, where a checkpoint of an older version has none."""
        if saved is None:
            return Watch()
        return Watch(**{**saved, "stop": Best(**saved["stop"]), "plateau": Best(**saved["plateau"])})

    def saved(self) -> dict[str, Any]:
        """As plain JSON data."""
        return dataclasses.asdict(self)

    def after(self, metrics: dict[str, float], config: Config, *, averaged: bool, warming_up: bool) -> "Watch":
        """With one more evaluation.

        Args:
          metrics: of validation.
          averaged: the weights have an average, whose metrics count, as for the best checkpoint.
          warming_up: the rate still rises, so plateau does not count this one.
        """
        prefix = "ema_" if averaged else ""
        watch = self
        if config.early_stop.patience_evaluations is not None:
            metric, min_delta = stop_metric(config), config.early_stop.min_delta
            watch = dataclasses.replace(
                watch, stop=watch.stop.after(metrics[prefix + metric], metric=metric, min_delta=min_delta)
            )
        if config.schedule.name == "plateau":
            watch = watch._after_plateau(metrics[prefix + plateau_metric(config)], config, warming_up=warming_up)
        return watch

    def _after_plateau(self, value: float, config: Config, *, warming_up: bool) -> "Watch":
        """As optax.contrib.reduce_on_plateau and PyTorch count the cooldown: its evaluations may be the best."""
        schedule = config.schedule
        plateau = self.plateau.after(value, metric=plateau_metric(config), min_delta=schedule.plateau_min_delta)
        if warming_up or self.cooldown:
            return dataclasses.replace(self, plateau=Best(plateau.value), cooldown=max(0, self.cooldown - 1))
        if plateau.evaluations_since < schedule.plateau_evaluations:
            return dataclasses.replace(self, plateau=plateau)
        return dataclasses.replace(
            self,
            plateau=Best(plateau.value),
            cooldown=schedule.plateau_cooldown_evaluations,
            rate_factor=max(self.rate_factor * schedule.plateau_factor, schedule.final_fraction),
        )

    def is_over(self, config: Config) -> bool:
        """Whether the run ends here."""
        patience = config.early_stop.patience_evaluations
        return patience is not None and self.stop.evaluations_since >= patience

    def why_over(self, config: Config, step: int) -> str:
        """Words for summary.json."""
        by = f" by more than {config.early_stop.min_delta:g}" if config.early_stop.min_delta else ""
        count = f"{self.stop.evaluations_since} evaluation{'' if self.stop.evaluations_since == 1 else 's'}"
        return f"no better validation {stop_metric(config)}{by} for {count}, at step {step}"


def stop_metric(config: Config) -> str:
    """The validation metric that early stopping watches."""
    return config.early_stop.metric or config.checkpoint.best_metric


def plateau_metric(config: Config) -> str:
    """The validation metric that schedule.name=plateau watches."""
    return config.schedule.plateau_metric or config.checkpoint.best_metric
