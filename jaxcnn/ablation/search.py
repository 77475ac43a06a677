"""A search: trials that Optuna suggests, each an ordinary run, of whose validation it learns what to suggest next.

Any number of processes share one folder: its journal is Optuna's, and whose a trial is, files say that are locked while
a process lives. A trial whose process has died goes on in the next that asks for one. Test data are never measured.
"""

import contextlib
import hashlib
import io
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from etils import epath

from jaxcnn.ablation.space import Dimension, Range, Space
from jaxcnn.config import Config, changed_fields, from_dict, to_dict
from jaxcnn.errors import RunError, UserError, WriteError
from jaxcnn.files import append, is_remote, locked, open_regular, read_json, to_json, write_atomically
from jaxcnn.plain_data import Number
from jaxcnn.plain_data import check as check_schema
from jaxcnn.run.workdir import OWN_LINES
from jaxcnn.terminal import PatientConsole, one_line
from jaxcnn.train import Order, train

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "halving", "hyperband")
PLAN, JOURNAL, TRIAL_FOLDERS = "search.json", "journal.log", "trials"
PRUNED = "pruned"  # how the reason begins for which a run has stopped
ALL_FAILED = 10  # trials, and none that has not: the search ends
POLL_SECONDS = 0.5  # between two looks at whether the others' trials have ended
_LOCK = ".search.lock"  # while a trial is taken
_PLAN = {
    "experiment": str,
    "config": {},
    "space": [str],
    "sampler": str,
    "pruner": str,
    "seed": Number(0, 2**31 - 1, integer=True),
    "metric": str,
    "higher_is_better": bool,
    "evaluations": Number(1, 2**53, integer=True),
}
Summary = dict[str, Any]
RunTrial = Callable[[Order, Callable[[int, float], str | None]], Summary]


@dataclass(frozen=True)
class Goal:
    """What trials are compared by: a metric of validation."""

    metric: str  # of the weights that it has chosen
    higher_is_better: bool
    evaluations: int  # of a whole run of the base config


@dataclass(frozen=True)
class Search:
    """What is searched, and how."""

    experiment: str
    space: Space  # its config is the base: without a test
    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 0

    @property
    def config(self) -> Config:
        """The base config."""
        return self.space.config


def find_goal(space: Space, *, progress: Any = None) -> Goal:
    """What runs of the space are chosen by, as the base config's says.

    Raises:
      UserError: the base config cannot be built, or has no validation; a model has no such name, or no config that the
        space gives one can be made.
    """
    from jaxcnn.training.build import build  # imports JAX

    config = space.config
    run, feed = build(config, progress=progress)
    with contextlib.closing(feed):
        _check_models(space, run)
        learning = run.learning
        every = min(config.eval_every_epochs * learning.steps_per_epoch, learning.total_steps)
        metric = learning.selections.best.metric
        return Goal(metric.name, metric.higher_is_better, math.ceil(learning.total_steps / every - 1e-9))


def _check_models(space: Space, run: Any) -> None:
    from jaxcnn.models.make import check_name, make_model

    for each in space.dimensions:
        if each.field == "model.name":
            for parameter in each.kind.points() or ():
                check_name(replace(space.config.model, name=space.fields_of({each.field: parameter})[each.field]))
    wrong = None
    for point, message in space.draws():
        try:
            if message is None:
                make_model(space.config_of(point).model, **run.task.model, axis_name=run.parallel.axis_name)
                return
        except UserError as error:
            wrong = wrong or error
    raise UserError(f"no config of the space is possible: {wrong}")


def check_pruner(search: Search, goal: Goal) -> None:
    """Raises UserError where there is nothing to prune."""
    if search.pruner != "none" and goal.evaluations < 2:
        raise UserError(
            f"--pruner={search.pruner} ends runs between two evaluations, and a run of this config has one; lower "
            "eval_every_epochs"
        )


# ---- the folder


def read_goal(folder: epath.Path, search: Search) -> Goal | None:
    """The goal of the search that the folder holds; None where it holds nothing yet.

    Raises:
      UserError: it holds another search, or strangers' files.
    """
    if is_remote(folder):
        raise UserError(f"--workdir={folder}: a search's journal is locked, which takes a local folder")
    file = folder / PLAN
    if not file.exists():
        if folder.exists() and (
            not folder.is_dir() or {each.name for each in folder.iterdir()} - {_LOCK, TRIAL_FOLDERS}
        ):
            raise UserError(f"{folder} holds no search, but other files; pass another --workdir")
        return None
    try:
        saved = read_json(file)
        check_schema(saved, _PLAN, "it")
        config = from_dict(saved["config"])
    except Exception as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}); is {folder} a search's folder?") from None
    now = _plan(search)
    others = [f"{name} ({saved[name]} -> {now[name]})" for name in now if name != "config" and saved[name] != now[name]]
    if others := others + changed_fields(config, search.config):
        raise UserError(f"{folder} holds a search with other settings: {', '.join(others)}; pass another --workdir")
    return Goal(saved["metric"], saved["higher_is_better"], saved["evaluations"])


def _plan(search: Search) -> dict[str, Any]:
    return {
        "experiment": search.experiment,
        "config": to_dict(search.config),
        "space": [each.text for each in search.space.dimensions],
        "sampler": search.sampler,
        "pruner": search.pruner,
        "seed": search.seed,
    }


def claim(folder: epath.Path, search: Search, goal: Goal) -> None:
    """Makes the folder this search's, unless it is. Raises UserError where it is another's, or cannot be written."""
    content = _plan(search) | {
        "metric": goal.metric, "higher_is_better": goal.higher_is_better, "evaluations": goal.evaluations,
    }  # fmt: skip
    try:
        (folder / TRIAL_FOLDERS).mkdir(parents=True, exist_ok=True)
        with waiting_for(folder / _LOCK):
            if read_goal(folder, search) is None:
                write_atomically(folder / PLAN, to_json(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({one_line(error)}); pass another --workdir") from None


def trial_folder(folder: epath.Path, number: int) -> epath.Path:
    """Where a trial's run lies."""
    return folder / TRIAL_FOLDERS / f"{number:04}"


# ---- Optuna's study in it


def open_study(folder: epath.Path, search: Search, goal: Goal) -> Any:
    """The optuna.Study of a folder that is claimed. Raises UserError where its journal is not this search's."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = os.fspath(folder / JOURNAL)
    lock: Any = _JournalLock(journal)  # it has what Optuna asks of one
    try:
        with contextlib.suppress(FileNotFoundError):
            open_regular(journal).close()
        storage = JournalStorage(JournalFileBackend(journal, lock))
        with waiting_for(folder / _LOCK):
            study = optuna.create_study(
                study_name="search",
                storage=storage,
                direction="maximize" if goal.higher_is_better else "minimize",
                load_if_exists=True,
                pruner=_pruner(search.pruner, goal),
            )
        _check_trials(study, search.space)
    except Exception as error:  # whatever a damaged line makes Optuna raise
        raise UserError(f"{journal} cannot be read ({one_line(error)[:200]}); pass another --workdir") from None
    return study


def _check_trials(study: Any, space: Space) -> None:
    """Raises ValueError where a trial has parameters that the space has not."""
    known = {each.field: _distribution(each) for each in space.dimensions}
    for trial in study.get_trials(deepcopy=False):
        for name, distribution in trial.distributions.items():
            if known.get(name) != distribution:
                raise ValueError(f"trial {trial.number} is of another space: {name}")


class _JournalLock:
    """A lock that ends with its process: Optuna's own keep all others waiting for 30 s once a process was killed."""

    def __init__(self, journal: str):
        self._journal, self._held = journal, contextlib.ExitStack()

    def acquire(self) -> bool:
        """Called by Optuna before it writes."""
        self._held.enter_context(waiting_for(f"{self._journal}.lock"))
        _cut_to_lines(self._journal)
        return True

    def release(self) -> None:
        """Called by Optuna once it has written."""
        self._held.close()


def _cut_to_lines(journal: str) -> None:
    """Cuts off the line that a process has left half written, on a full disk or killed: others would be added to it."""
    with open_regular(journal) as file:
        size = file.seek(0, os.SEEK_END)
        whole = _end_of_lines(file, size)
    if whole < size:
        os.truncate(journal, whole)


def _end_of_lines(file: Any, size: int) -> int:
    """The number of bytes up to the last end of a line."""
    while size:
        start = max(0, size - 4096)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        size = start
    return 0


@contextlib.contextmanager
def waiting_for(path: epath.PathLike) -> Iterator[None]:
    """A local file that one process at a time has, once the others have let go of it. Raises OSError."""
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(path))
                break
            except BlockingIOError:
                time.sleep(0.005)
        yield


def _pruner(name: str, goal: Goal) -> Any:
    from optuna import pruners

    make: dict[str, Callable[[], Any]] = {
        "none": pruners.NopPruner,
        "median": pruners.MedianPruner,
        "halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=1),
        "hyperband": lambda: pruners.HyperbandPruner(min_resource=1, max_resource=goal.evaluations),
    }
    return make[name]()


def _sampler(search: Search, number: int) -> Any:
    """Seeded by trial, so that a process that goes on suggests what one that was never stopped would have."""
    from optuna import samplers

    digest = hashlib.sha256(f"{search.seed} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    return samplers.TPESampler(seed=seed) if search.sampler == "tpe" else samplers.RandomSampler(seed=seed)


def _distribution(dimension: Dimension) -> Any:
    from optuna import distributions

    kind = dimension.kind
    if not isinstance(kind, Range):
        return distributions.CategoricalDistribution(list(kind.by_text))
    if kind.integer:
        return distributions.IntDistribution(int(kind.low), int(kind.high), log=kind.log, step=int(kind.step or 1))
    return distributions.FloatDistribution(kind.low, kind.high, log=kind.log, step=kind.step)


# ---- trials


@dataclass
class Searching:
    """A search that goes on in this process."""

    folder: epath.Path
    search: Search
    goal: Goal
    total: int  # trials, of all processes
    study: Any
    say: Callable[[str], None] = field(default=lambda line: None)
    run: RunTrial = field(default_factory=lambda: run_quietly)

    def trials(self) -> list[Any]:
        """All so far, as Optuna has them."""
        found: list[Any] = self.study.get_trials(deepcopy=False)
        return found

    def num_ended(self) -> int:
        """How many have come to their end, whatever it was."""
        return sum(trial.state.is_finished() for trial in self.trials())

    def go_on(self) -> None:
        """Runs trials until all have ended, here or elsewhere.

        Raises:
          RunError: what runs write cannot be written, or all trials fail.
        """
        while True:
            with self._taken() as trial:
                if trial is not None:
                    self._run_trial(trial)
                    self._check_failures()
                    continue
            if all(each.state.is_finished() for each in self.trials()):
                return
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _taken(self) -> Iterator[Any]:
        """A trial that is this process's within the block: one whose process has died, else a new one, else None."""
        with contextlib.ExitStack() as held:
            with waiting_for(self.folder / _LOCK):
                trial = self._abandoned(held) or self._new(held)
            try:
                yield trial
            finally:
                if trial is not None:
                    Path(self._lock_of(trial.number)).unlink(missing_ok=True)

    def _lock_of(self, number: int) -> epath.Path:
        return self.folder / TRIAL_FOLDERS / f"{number:04}.lock"

    def _abandoned(self, held: contextlib.ExitStack) -> Any:
        import optuna

        for each in self.trials():
            if each.state == optuna.trial.TrialState.RUNNING:
                try:
                    held.enter_context(locked(self._lock_of(each.number)))
                except BlockingIOError:
                    continue
                self.study.sampler = _sampler(self.search, each.number)
                trial = optuna.trial.Trial(self.study, each._trial_id)  # what it has been given stays
                self._suggest(trial)
                return trial
        return None

    def _new(self, held: contextlib.ExitStack) -> Any:
        import optuna

        trials = self.trials()
        waiting = sum(each.state == optuna.trial.TrialState.WAITING for each in trials)  # of a grid, one at most
        number = len(trials) - waiting
        if number >= self.total:
            return None
        if self.search.sampler == "grid" and not waiting:
            point = next(islice(self.search.space.points(), number, None))
            self.study.enqueue_trial(point)
        held.enter_context(locked(self._lock_of(number)))
        self.study.sampler = _sampler(self.search, number)
        trial = self.study.ask()
        self._suggest(trial)
        return trial

    def _suggest(self, trial: Any) -> None:
        # One by one, as conditions are met; all at once it would be study.ask's own.
        self.search.space.choose(lambda dimension: trial._suggest(dimension.field, _distribution(dimension)))

    def _run_trial(self, trial: Any) -> None:
        """Runs it to its end, and tells the study how that was."""
        import optuna

        since = time.perf_counter()
        workdir = trial_folder(self.folder, trial.number)
        known = set(self.trials()[trial.number].intermediate_values)
        workdir.mkdir(parents=True, exist_ok=True)

        def after_evaluation(number: int, value: float) -> str | None:
            if number not in known:  # a run that was killed may repeat one
                trial.report(value, number)
            return f"{PRUNED} by {self.search.pruner} at evaluation {number}" if trial.should_prune() else None

        summary, wrong = None, None
        try:
            config = self.search.space.config_of(trial.params)
            order = Order(config, self.search.experiment, workdir, study=self.folder.name)
            summary = self.run(order, after_evaluation)
        except (OSError, WriteError):  # the machine's fault, and so any other trial's: it goes on when that is mended
            raise
        except (UserError, RunError) as error:
            wrong = one_line(error)
        except Exception as error:
            wrong = f"{type(error).__name__}: {one_line(error)[:300]}"
            append(_log_of(workdir), traceback.format_exc())
        value = None if summary is None else summary["splits"]["validation"][self.goal.metric]
        if summary is not None and (value is None or not math.isfinite(value)):
            wrong = f"validation {self.goal.metric} is not finite"
        seconds = time.perf_counter() - since
        if wrong is None and not str(summary and summary.get("stopped", "")).startswith(PRUNED):
            self.study.tell(trial, value)
            self._say(trial, f"{self.goal.metric} {value:.4f}{self._standing(trial.number)}", seconds)
            return
        if wrong is not None:
            append(_log_of(workdir), f"{wrong}\n")
        # Failed or pruned, Optuna calls both pruned: its TPE learns nothing of what has failed, and would try it again.
        trial.set_user_attr("error", wrong)
        self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        self._say(trial, f"failed: {wrong}" if wrong else str((summary or {})["stopped"]), seconds)

    def _standing(self, number: int) -> str:
        best = self.study.best_trial
        return ", the best so far" if best.number == number else f" (best {best.value:.4f}, trial {best.number})"

    def _say(self, trial: Any, outcome: str, seconds: float) -> None:
        fields = self.search.space.fields_of(trial.params)
        chosen = "  ".join(f"{name}={shown(value)}" for name, value in fields.items())
        self.say(f"trial {trial.number}: {outcome}, {seconds:.1f} s | {chosen}")

    def _check_failures(self) -> None:
        ended = [each for each in self.trials() if each.state.is_finished()]
        errors = [each.user_attrs.get("error") for each in ended]
        if len(errors) >= ALL_FAILED and all(errors):
            raise RunError(f"all {len(errors)} trials have failed, the last one so: {errors[-1]}")


def run_quietly(order: Order, after_evaluation: Callable[[int, float], str | None]) -> Summary:
    """The summary of a run, whose lines go to run.log in its folder. Raises as `train` does."""
    console = PatientConsole(file=_Appended(_log_of(order.workdir)), soft_wrap=True, width=120)
    return train(order, start=time.perf_counter(), console=console, after_evaluation=after_evaluation)


def _log_of(workdir: epath.Path) -> epath.Path:
    return workdir / OWN_LINES


class _Appended(io.TextIOBase):
    """A text file that whatever is written is added to."""

    def __init__(self, path: epath.Path):
        self._path = path

    def write(self, text: str) -> int:
        append(self._path, text)
        return len(text)


def shown(value: Any) -> str:
    """A field's value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
