"""A run's network and data, each opened when a section first needs it."""

from dataclasses import dataclass
from functools import cached_property

from jaxcnn.config import Config, from_dict
from jaxcnn.data import Source, Split, open_source
from jaxcnn.errors import RunError, UserError
from jaxcnn.report.files import RunFiles, shown_name
from jaxcnn.results.measure import Evaluation, evaluate_run
from jaxcnn.results.members import step_of
from jaxcnn.results.trained import TrainedModel, load
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.facts import SavedPredictions
from jaxcnn.training.feed import Progress


@dataclass(frozen=True)
class Opened:
    """A run's network and data, each opened when it is first needed."""

    run: RunFiles
    step: str  # best, last, or a number
    split: str
    image: int  # place in the split of the example whose feature maps are shown
    data_dir: str | None
    progress: Progress

    @cached_property
    def model(self) -> TrainedModel:
        """The weights that are looked at."""
        return load(str(self.run.workdir), self.step)

    @cached_property
    def _measured(self) -> Evaluation | UserError | RunError:
        """The evaluation, or why there is none; what cannot be measured is not tried again for each section."""
        try:
            return evaluate_run(
                [self.run.workdir], steps=[self.step], split=self.split, data_dir=self.data_dir, progress=self.progress
            )
        except (UserError, RunError) as error:
            return error

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of the split. Raises UserError or RunError where it cannot be measured."""
        if isinstance(self._measured, Evaluation):
            return self._measured
        raise self._measured

    @cached_property
    def config(self) -> Config:
        """The run's, for this machine."""
        config: Config = from_dict(self.run.saved["config"])
        config.data.dir = self.data_dir or config.data.dir
        config.data.exclude = None  # what is left of it stands in the run's splits
        config.platform = None
        config.num_devices = 1
        return config

    @cached_property
    def source(self) -> Source:
        """The run's data. Sections ask for the evaluation first, which checks that they are the same."""
        return open_source(self.config.data, progress=self.progress, kept=workdir_lib.read_splits(self.run.workdir))

    @property
    def examples(self) -> Split:
        """The examples of the split."""
        return self.source.splits[self.split]

    @property
    def names(self) -> list[str]:
        """Names of the classes, as they can be printed."""
        return [shown_name(name) for name in self.run.saved["data"]["class_names"]]

    @property
    def predictions(self) -> SavedPredictions | None:
        """Predictions of the split, for diagnosis; none where it cannot be measured."""
        if not isinstance(self._measured, Evaluation):
            return None
        evaluation, names = self._measured, self.model.class_names
        return SavedPredictions(
            identifiers=evaluation.identifiers,
            labels=[names[label] for label in evaluation.labels],
            predictions=[names[prediction] for prediction in evaluation.predicted],
            confidences=evaluation.probabilities.max(axis=1).tolist(),
        )

    @property
    def of_what(self) -> str:
        """A sentence: which split, how many, which weights."""
        optimizer = self.model.config.optimizer
        averaged = optimizer.ema_decay is not None or optimizer.lookahead_every_steps is not None
        weights = "the weights' average of" if averaged else "the weights of"
        why = {"last": " (last)", "best": " (best on validation)"}.get(self.step, "")
        if not self.model.config.checkpoint.keep_best:
            why = why.replace("best on validation", "last")
        split = f"{self.split.capitalize()} split, n = {len(self.evaluation.labels):,}"
        return f"{split}; {weights} step {step_of(self.model):,}{why}."
