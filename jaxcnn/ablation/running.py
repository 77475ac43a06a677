"""Running a study: what has become of each run, one run in its folder, and a process's part in what is left.

The folder is the only coordinator: any number of processes, on hosts that share it, work at once, each by itself.
"""

import contextlib
import errno
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from jaxcnn.ablation.claims import Claim, Claims
from jaxcnn.ablation.study import Study, StudyRun
from jaxcnn.command import TRAINING_MEMORY, is_out_of_memory
from jaxcnn.errors import Preempted, RunError, UserError, nearest
from jaxcnn.files import appending, read_json, to_json, write_atomically
from jaxcnn.plain_data import Number
from jaxcnn.plain_data import check as check_schema
from jaxcnn.run.workdir import FAILED, OWN_LINES, TakenError, is_taken, newest_step, read_summary
from jaxcnn.terminal import PatientConsole, one_line
from jaxcnn.train import Order, train

# Of processes in a row that died in a run without a new checkpoint. What dies of itself (no memory, a crash) dies every
# time; a person or a cluster that kills does not hit one run's start so often.
MOST_KILLS = 12
POLL_SECONDS = 2.0  # between two looks at runs that others have
CLAIMS = "claims"
_FAILURE = {"line": str, "exit_code": Number(1, 255, integer=True)}


@dataclass(frozen=True)
class Failure:
    """How a run ended other than well: the line that its own command would have ended with."""

    line: str
    exit_code: int


@dataclass
class Standing:
    """What has become of a study's runs."""

    finished: dict[StudyRun, float] = field(default_factory=dict)  # seconds that each took
    failed: dict[StudyRun, str] = field(default_factory=dict)  # why
    left: list[StudyRun] = field(default_factory=list)


def stand(runs: Iterable[StudyRun], folder: Path) -> Standing:
    """What has become of runs of the study in a folder."""
    standing = Standing()
    for run in runs:
        outcome = outcome_of(folder / run.folder)
        if outcome is None:
            standing.left.append(run)
        elif isinstance(outcome, Failure):
            standing.failed[run] = outcome.line
        else:
            standing.finished[run] = seconds_of(outcome)
    return standing


def outcome_of(workdir: Path) -> dict[str, Any] | Failure | None:
    """The summary of the run in a folder, or its failure; None while it has neither."""
    summary = read_summary(epath.Path(workdir))
    return failure_of(workdir) if summary is None else summary


def failure_of(workdir: epath.PathLike) -> Failure | None:
    """How the run in a folder failed, as `failed.json` tells; None where it does not."""
    file = epath.Path(workdir) / FAILED
    try:
        saved = read_json(file)
        check_schema(saved, _FAILURE, "it")
        return Failure(**{name: saved[name] for name in _FAILURE})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return Failure(f"{file} cannot be read ({one_line(error)})", RunError.exit_code)


def write_failure(workdir: Path, failure: Failure) -> None:
    """Tells in a run's folder how it failed. Raises OSError."""
    write_atomically(workdir / FAILED, to_json(vars(failure), indent=1) + "\n")


def seconds_of(summary: dict[str, Any]) -> float:
    """What a run took in all."""
    return float(sum(summary["seconds"].values()))


# ---- one run


def run_one(order: Order, *, build: Callable[..., Any] | None = None) -> Failure | None:
    """Trains a run to its end, from wherever its folder stands; returns its failure, which `failed.json` then tells.

    What a terminal would have shown is added to `run.log`. `build` is as `jaxcnn.train.train` has it.

    Raises:
      Preempted: a signal came, and everything is saved.
      TakenError: another process is training in the folder.
      RunError: the disk is full.
    """
    workdir = Path(order.workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with appending(workdir / OWN_LINES) as lines, contextlib.redirect_stderr(lines):
            failure = _train(order, PatientConsole(file=lines, width=120), build)
        if failure is not None:
            write_failure(workdir, failure)
        return failure
    except OSError as error:  # of run.log and failed.json
        raise RunError(f"{order.workdir} cannot be written ({one_line(error)}); make room, then run it again") from None


def _train(order: Order, console: PatientConsole, build: Callable[..., Any] | None) -> Failure | None:
    try:
        train(order, start=time.perf_counter(), console=console, build=build)
        return None
    except TakenError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise RunError(f"no space left below {order.workdir}; make room, then run the same command again") from None
        if isinstance(error, UserError | RunError):
            failure = Failure(one_line(error), error.exit_code)
        elif is_out_of_memory(error):
            failure = Failure(f"out of memory ({one_line(error)[:120]}); {TRAINING_MEMORY}", RunError.exit_code)
        else:
            console.print(traceback.format_exc())
            failure = Failure(f"{type(error).__name__}: {one_line(error)[:300]}", RunError.exit_code)
        console.print(failure.line)
        return failure


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is of a disk without space: no run's own fault."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))):
            return True  # as Orbax's libraries say it
        error = error.__cause__ or error.__context__
    return False


# ---- a process's part


@dataclass(frozen=True)
class Job:
    """What is to be run: plain data, which workers are handed."""

    study: Study
    experiment: str
    folder: Path
    wait: bool  # at the end for runs of others, to take over what they leave
    fresh: bool  # no run has finished: what is wrong with the first is wrong with the study

    def order(self, run: StudyRun) -> Order:
        """What `jaxcnn.main` would be asked for. Raises UserError."""
        workdir = epath.Path(self.folder / run.folder)
        return Order(self.study.config_of(run), self.experiment, workdir, study=self.folder.name)


def work(job: Job, left: list[StudyRun], *, tell: Callable[[], None] = lambda: None) -> None:
    """Runs what is left, and nobody else has, one after the other; `tell` is called after each.

    Raises:
      UserError: the study cannot run here.
      RunError: the disk is full.
      Preempted: a signal came, and everything is saved.
    """
    from jaxcnn.training.kept import Kept  # imports JAX
    from jaxcnn.training.parallel import set_up

    config, kept = job.study.config, Kept()
    set_up(config.platform, compilation_cache=config.compilation_cache)
    check_first(job, kept)
    try:
        claims = Claims(job.folder / CLAIMS)
    except OSError as error:
        raise UserError(f"{job.folder} cannot be written ({one_line(error)}); pass another --workdir") from None
    while left:
        before = len(left)
        for run in left:
            if _attempt(job, run, claims, kept.build):
                tell()
        left = [run for run in left if outcome_of(job.folder / run.folder) is None]
        if len(left) == before:
            if not job.wait:
                return
            time.sleep(POLL_SECONDS)
            tell()


def check_first(job: Job, kept: Any) -> None:
    """Raises UserError where a model is not known, the metric is not recorded, or the first run cannot begin."""
    from jaxcnn.models.make import check_name

    study = job.study
    if not job.fresh:
        return
    first = next(study.runs())
    for variant in study.variants:
        try:
            check_name(study.config_of(StudyRun(variant, first.seed, first.fold)).model)
        except UserError as error:
            raise UserError(f"variant {variant!r}: {error}") from None
    run, _ = kept.build(study.config_of(first))
    names = run.learning.metrics.by_name
    if study.metric is not None and study.metric not in names:
        known = {each.name for each in run.task.metrics}
        if study.metric in known:
            raise UserError(f"--metric={study.metric} is not recorded; add --config.metrics=\"('{study.metric}',)\"")
        raise UserError(
            f"--metric={study.metric} is not measured with {run.task.learns}; {nearest(study.metric, known)}"
        )
    if study.split not in run.source.splits:
        raise UserError(f"--split={study.split}: there is no such split; one of: {', '.join(run.source.splits)}")


def _attempt(job: Job, run: StudyRun, claims: Claims, build: Callable[..., Any]) -> bool:
    """Runs a run unless it is over or another process has it; whether it is over now."""
    workdir = job.folder / run.folder
    if outcome_of(workdir) is not None:
        return True
    name = claim_name(run)
    if not claims.is_free(name) or is_taken(epath.Path(workdir)):  # by a command of its own, which has no claim
        return False
    try:
        claim = claims.take(name, step=newest_step(epath.Path(workdir)) or 0)
    except OSError as error:
        raise RunError(f"{job.folder} cannot be written ({one_line(error)}); make room, then run it again") from None
    if claim is None:
        return False
    try:
        with claims.held(claim, overtaken=lambda: leave(run)):
            if outcome_of(workdir) is None:  # whoever had it before may just have ended it
                _run_or_give_up(job, run, claim, build)
        return True
    except TakenError:  # since
        return False
    finally:
        with contextlib.suppress(OSError):  # others then find out once this process is gone
            claims.release(claim)


def _run_or_give_up(job: Job, run: StudyRun, claim: Claim, build: Callable[..., Any]) -> None:
    if claim.kills < MOST_KILLS:
        run_one(job.order(run), build=build)
        return
    failure = Failure(
        f"{claim.kills} processes in a row died in it without a new checkpoint after step {claim.step:,}, maybe for "
        f"want of memory; {TRAINING_MEMORY}",
        RunError.exit_code,
    )
    workdir = job.folder / run.folder
    workdir.mkdir(parents=True, exist_ok=True)
    write_failure(workdir, failure)


def leave(run: StudyRun) -> None:
    """Ends the process, at once: nothing that it would write belongs there."""
    words = f"{run.folder}: another process took the run over while this one stood still; the same command goes on"
    os.write(2, f"jaxcnn: {words}\n".encode())
    os._exit(Preempted.exit_code)


def claim_name(run: StudyRun) -> str:
    """A run's name as a file's, in the folder of claims."""
    return "@".join(run.folder.split("/")[1:])


def forget_failures(runs: Iterable[StudyRun], folder: Path) -> None:
    """Has runs that failed run again. Raises OSError."""
    for run in runs:
        (folder / run.folder / FAILED).unlink(missing_ok=True)
