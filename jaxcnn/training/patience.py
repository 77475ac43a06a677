"""What evaluations decide: when the learning rate falls, and when a run ends early.

Pure: the loop asks after each evaluation, does as it is told, and keeps the `Watch` in its checkpoints.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jaxcnn.config import Config
from jaxcnn.errors import UserError, nearest
from jaxcnn.tasks.metric import LOSS, Selection
from jaxcnn.tasks.task import Task


@dataclass(frozen=True)
class Best:
    """The best value of a validation metric so far."""

    value: float | None = None
    evaluations_since: int = 0  # that were no better

    def after(self, value: float, *, selection: Selection, min_delta: float) -> "Best":
        """With one more evaluation; one that is not finite is no better."""
        if math.isfinite(value) and (self.value is None or selection.gain(value, self.value) > min_delta):
            return Best(value)
        return Best(self.value, self.evaluations_since + 1)


@dataclass(frozen=True)
class Watch:
    """All that a run's evaluations so far come to."""

    stop: Best = Best()
    plateau: Best = Best()
    cooldown: int = 0  # evaluations that plateau still lets pass
    rate_factor: float = 1.0  # plateau: on the schedule's learning rate
    evaluations: int = 0  # so far
    ended: str | None = None  # why who was told of an evaluation has ended the run there

    @staticmethod
    def of(saved: dict[str, Any] | None) -> "Watch":
        """From what `saved` made; the beginning, where a checkpoint of an older version has none."""
        if saved is None:
            return Watch()
        return Watch(**{**saved, "stop": Best(**saved["stop"]), "plateau": Best(**saved["plateau"])})

    def saved(self) -> dict[str, Any]:
        """As plain JSON data."""
        return dataclasses.asdict(self)

    def after(
        self, metrics: dict[str, float], config: Config, selections: "Selections", *, warming_up: bool
    ) -> "Watch":
        """With one more evaluation.

        Args:
          metrics: of validation.
          config: the run's.
          selections: the metrics that decide.
          warming_up: the rate still rises, so plateau does not count this one.
        """
        watch, stop = dataclasses.replace(self, evaluations=self.evaluations + 1), selections.stop
        if config.early_stop.patience_evaluations is not None:
            least = config.early_stop.min_delta
            watch = dataclasses.replace(
                watch, stop=watch.stop.after(metrics[stop.name], selection=stop, min_delta=least)
            )
        if config.schedule.name == "plateau":
            watch = watch._after_plateau(metrics, config, selections.plateau, warming_up=warming_up)
        return watch

    def _after_plateau(
        self, metrics: dict[str, float], config: Config, selection: Selection, *, warming_up: bool
    ) -> "Watch":
        """As optax.contrib.reduce_on_plateau and PyTorch count the cooldown: its evaluations may be the best."""
        schedule, value = config.schedule, metrics[selection.name]
        plateau = self.plateau.after(value, selection=selection, min_delta=schedule.plateau_min_delta)
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
        return self.ended is not None or (patience is not None and self.stop.evaluations_since >= patience)

    def why_over(self, config: Config, selections: "Selections", step: int) -> str:
        """Words for summary.json."""
        if self.ended is not None:
            return f"{self.ended}, at step {step}"
        by = f" by more than {config.early_stop.min_delta:g}" if config.early_stop.min_delta else ""
        count = f"{self.stop.evaluations_since} evaluation{'' if self.stop.evaluations_since == 1 else 's'}"
        return f"no better validation {selections.stop.metric.name}{by} for {count}, at step {step}"


@dataclass(frozen=True)
class Selections:
    """The validation metrics that decide: which weights are the best, when the run ends, when the rate falls."""

    best: Selection
    stop: Selection
    plateau: Selection

    def watched(self, config: Config) -> list[Selection]:
        """Those that decide something in a run of this config."""
        return [
            self.best,
            *([self.stop] if config.early_stop.patience_evaluations is not None else []),
            *([self.plateau] if config.schedule.name == "plateau" else []),
        ]


def make_selections(config: Config, task: Task, *, averaged: bool) -> Selections:
    """As the config names them; one that it does not name is `best`, which is the task's own.

    Args:
      config: validated.
      task: whose metrics there are.
      averaged: the weights have an average, whose metrics count.

    Raises:
      UserError: the task has no such metric.
    """
    known = {each.name: each for each in (LOSS, *task.metrics)}
    best = config.checkpoint.best_metric or task.best_metric

    def selection(field: str, name: str) -> Selection:
        if name not in known:
            raise UserError(f"{field}={name} is not measured with {task.learns}; {nearest(name, known)}")
        if not known[name].chooses:
            raise UserError(
                f"{field}={name} says of no weights that they are better; choose another, e.g. {task.best_metric}"
            )
        return Selection(known[name], averaged)

    return Selections(
        best=selection("checkpoint.best_metric", best),
        stop=selection("early_stop.metric", config.early_stop.metric or best),
        plateau=selection("schedule.plateau_metric", config.schedule.plateau_metric or best),
    )
