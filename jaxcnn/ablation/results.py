"""What the runs of a study came to, read from their folders, and what may be said of their scores.

Nothing is measured here: a run's summary has its scores. A run counts only if its config is the one that the plan has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from etils import epath

from jaxcnn.ablation.running import failure_of
from jaxcnn.ablation.statistics import Comparison, Summary, compare, shared_of, summarise, units_of
from jaxcnn.ablation.study import Study, StudyRun, read_plan
from jaxcnn.config import RESUMABLE_FIELDS, Config, changed_fields, flatten, from_dict, parse_fold, to_dict
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import read_json, to_json
from jaxcnn.fingerprints import same_data
from jaxcnn.plain_data import check
from jaxcnn.run.workdir import rank_by, read_config, read_summary
from jaxcnn.terminal import short_line

Status = Literal["finished", "failed", "unfinished", "missing", "refused"]
LARGEST_SCORE = 3.5e38  # beyond float32, in which scores are measured
VARYING = 4  # fields, at most, that name a group of runs; of more, its first folder does
_CONFIG = {"config": {"seed": object, "data": {"name": str}}, "data": {"fingerprint": str}}


@dataclass(frozen=True)
class RunResult:
    """One run, and what it came to."""

    run: StudyRun
    folder: str  # below the study's; of runs without a study as it was given
    path: epath.Path
    status: Status
    reason: str | None = None  # why there is no score
    splits: Mapping[str, Mapping[str, Any]] | None = None  # summary.json's, of a finished run
    score: float | None = None


@dataclass(frozen=True)
class VariantResult:
    """A variant, its runs, and its scores."""

    overrides: Mapping[str, Any]
    runs: Sequence[RunResult]
    summary: Summary
    versus_base: Comparison | None  # of the base, and of a variant that has no unit in common with it, none


@dataclass(frozen=True)
class Asked:
    """What is compared, where it is not what the study says."""

    metric: str | None = None
    split: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Results:
    """A study's results."""

    study: str
    experiment: str
    metric: str
    higher_is_better: bool
    split: str
    base: str
    seeds: tuple[int, ...]
    folds: int | None
    explored: tuple[str, ...]  # what was asked for instead of what the study says: metric, split, base
    variants: Mapping[str, VariantResult]

    @property
    def runs(self) -> list[RunResult]:
        """All runs, by variant."""
        return [each for variant in self.variants.values() for each in variant.runs]

    @property
    def units(self) -> str:
        """What the scores are of: seeds, or folds of one seed."""
        return "folds" if self.folds is not None and len(self.seeds) == 1 else "seeds"


def read_study(folder: epath.Path, asked: Asked) -> Results:
    """The results of a study, from its folder. Raises UserError: it is none, no run has finished, `asked` is wrong."""
    study, experiment = read_plan(folder)
    plan = _Plan(study)
    runs = [_read_run(run, run.folder, folder / run.folder, plan) for run in study.runs()]
    return _results(study, runs, asked, name=folder.name, experiment=experiment)


def read_runs(folders: Mapping[str, epath.Path], asked: Asked) -> Results:
    """The results of runs that are no study's, by their names: those of one config but for the seed are a variant.

    Raises UserError: one is no run's folder, their folds differ, none has finished, or `asked` is wrong.
    """
    saved = {name: read_config(folder) for name, folder in folders.items()}
    configs: dict[str, Config] = {name: from_dict(each["config"]) for name, each in saved.items()}
    variants, variant_of = _grouped(configs)
    folds = {None if config.data.fold is None else parse_fold(config.data.fold)[1] for config in configs.values()}
    if len(folds) > 1:
        raise UserError("some of the runs are of folds, and some of others or of none; compare those of the same folds")
    plan, runs = _Plan(None), []
    taken: dict[StudyRun, str] = {}
    for name, config in configs.items():
        fold = None if config.data.fold is None else parse_fold(config.data.fold)[0]
        run = StudyRun(variant_of[name], config.seed, fold)
        if run in taken:
            again = f"it has the config and the seed of {taken[run]}, which counts once"
            runs.append(RunResult(run, name, folders[name], "refused", again))
        else:
            taken[run] = name
            runs.append(_read_run(run, name, folders[name], plan))
    study = Study(next(iter(configs.values())), variants, tuple(sorted({run.seed for run in taken})), folds.pop())
    return _results(study, runs, asked, name="runs", experiment=next(iter(saved.values()))["experiment"])


def _grouped(configs: Mapping[str, Config]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(variants: name -> the fields that vary, the variant of each run)."""
    kept = {
        name: {
            path: value
            for path, value in flatten(config).items()
            if path not in (*RESUMABLE_FIELDS, "seed", "data.fold")
        }
        for name, config in configs.items()
    }
    first = next(iter(kept.values()))
    varying = [path for path in first if any(each[path] != first[path] for each in kept.values())]
    variants: dict[str, dict[str, Any]] = {}
    named: dict[str, str] = {}
    variant_of = {}
    for name, fields in kept.items():
        own = {path: fields[path] for path in varying}
        words = ", ".join(f"{path}={value}" for path, value in own.items()) or "all"
        variant = named.setdefault(to_json(own), words if len(varying) <= VARYING else name)
        variants[variant] = own
        variant_of[name] = variant
    return variants, variant_of


# ---- a run's folder


class _Plan:
    """Whether runs are those of a plan; of none, they are what they are."""

    def __init__(self, study: Study | None):
        self._study = study
        self._base = {} if study is None else to_dict(study.config)
        self._compared: dict[tuple[Any, ...], list[str]] = {}
        self._data: dict[str, str] = {}

    def fault(self, run: StudyRun, saved: dict[str, Any]) -> str | None:
        """Why a run with this config.json does not count."""
        config = saved["config"]
        fields = [] if self._study is None else self._changed(run, config)
        if fields:
            return f"its config is not the plan's: {', '.join(fields[:3])}"
        name, data = config["data"]["name"], saved["data"]["fingerprint"]
        if not same_data(self._data.setdefault(name, data), data):
            return "its data are not those of the runs before it"
        return None

    def _changed(self, run: StudyRun, config: dict[str, Any]) -> list[str]:
        """Names of the fields in which it trains differently. What is not simply equal is compared once."""
        assert self._study is not None
        if _with(self._base, self._study.fields_of(run)) == config:
            return []
        key = run.variant, run.fold, to_json({**config, "seed": None}, sort_keys=True)
        if key not in self._compared:
            changed = changed_fields(from_dict({**config, "seed": run.seed}), self._study.config_of(run))
            self._compared[key] = [each.partition(" ")[0] for each in changed]
        return [*([] if config["seed"] == run.seed else ["seed"]), *self._compared[key]]


def _with(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data with other values of some fields; what is not changed is shared."""
    changed = dict(config)
    for path, value in fields.items():
        group, dot, rest = path.partition(".")
        changed[group] = _with(changed[group], {rest: value}) if dot else value
    return changed


def _read_run(run: StudyRun, folder: str, path: epath.Path, plan: _Plan) -> RunResult:
    result = partial(RunResult, run, folder, path)
    try:
        saved = read_json(path / "config.json")
        check(saved, _CONFIG, "it")
        fault = plan.fault(run, saved)
    except (FileNotFoundError, NotADirectoryError):
        reason = _failure(path)
        return result("missing" if reason is None else "failed", reason)
    except Exception as error:  # whatever strangers wrote; a bucket's own errors are no OSError
        fault = f"its config.json cannot be read: {short_line(error)}"
    if fault is not None:
        return result("refused", fault)
    summary = read_summary(path)
    if summary is not None:
        return result("finished", splits=summary["splits"])
    reason = _failure(path)
    if reason is not None:
        return result("failed", reason)
    damaged = (path / "summary.json").exists()
    return result("unfinished", "its summary.json is damaged" if damaged else None)


def _failure(path: epath.Path) -> str | None:
    """Why a run has failed, as its folder says; None where it does not."""
    failure = failure_of(path)
    return None if failure is None else short_line(failure.line)


# ---- all of them


def _results(study: Study, runs: Sequence[RunResult], asked: Asked, *, name: str, experiment: str) -> Results:
    base = asked.base or study.base
    if base not in study.variants:
        raise UserError(f"--base={base}: the study has no such variant; {nearest(base, study.variants)}")
    finished = [each for each in runs if each.status == "finished"]
    if not finished:
        raise UserError(_nothing(name, runs))
    reference = next((each for each in finished if each.run.variant == base), finished[0])
    saved = read_config(reference.path)
    own_metric = study.metric or rank_by(saved)["best_metric"].removeprefix("ema_")
    metric, split = asked.metric or own_metric, asked.split or study.split
    _check_measured(reference, metric, split)
    higher_is_better = _higher_is_better(metric, saved)
    by_variant: dict[str, list[RunResult]] = {variant: [] for variant in study.variants}
    for each in runs:
        by_variant[each.run.variant].append(_scored(each, metric, split))
    units = {variant: units_of(_scores(of), seeds=study.seeds, folds=study.folds) for variant, of in by_variant.items()}
    shared = shared_of(seeds=study.seeds, folds=study.folds)
    summaries = summarise({variant: of.values() for variant, of in units.items()}, shared=shared)
    versus = compare(units, base, higher_is_better=higher_is_better, shared=shared)
    return Results(
        study=name,
        experiment=experiment,
        metric=metric,
        higher_is_better=higher_is_better,
        split=split,
        base=base,
        seeds=study.seeds,
        folds=study.folds,
        explored=tuple(_explored(study, own_metric, metric, split, base)),
        variants={
            variant: VariantResult(study.variants[variant], of, summaries[variant], versus.get(variant))
            for variant, of in by_variant.items()
        },
    )


def _scores(runs: Sequence[RunResult]) -> dict[tuple[int, int | None], float]:
    """By (seed, fold), of those that have one."""
    return {(each.run.seed, each.run.fold): each.score for each in runs if each.score is not None}


def _explored(study: Study, own_metric: str, metric: str, split: str, base: str) -> Iterator[str]:
    for what, own, now in (
        ("metric", own_metric, metric),
        ("split", study.split, split),
        ("base", study.base, base),
    ):
        if own != now:
            yield what


def _nothing(name: str, runs: Sequence[RunResult]) -> str:
    """The message where no run has finished."""
    why = next((f"; {each.folder}: {each.reason}" for each in runs if each.reason), "")
    return f"none of the {len(runs):,} runs of {name} that count has finished{why}; run them to their ends first"


def _check_measured(reference: RunResult, metric: str, split: str) -> None:
    """Raises UserError where a finished run has no such score."""
    splits = reference.splits or {}
    if split not in splits:
        raise UserError(f"the runs have no {split} split; choose --split among: {', '.join(sorted(splits))}")
    names = splits[split].keys() - {"num_examples"}
    if metric not in names:
        raise UserError(f"the runs have not measured {metric!r}; {nearest(metric, names)}")


def _scored(result: RunResult, metric: str, split: str) -> RunResult:
    """The same with its score, or why it has none."""
    if result.splits is None:
        return result
    score = result.splits.get(split, {}).get(metric)
    if score is not None and abs(score) <= LARGEST_SCORE:
        return replace(result, score=float(score))
    measured = metric in result.splits.get(split, {})
    return replace(result, reason=f"its {split} {metric} is {'not finite' if measured else 'not measured'}")


def _higher_is_better(metric: str, saved: dict[str, Any]) -> bool:
    """Which way is better: by what ranked the run's checkpoints, else by the task. Raises UserError for neither way."""
    if metric == "loss":
        return False
    ranked = rank_by(saved)
    if ranked["best_metric"].removeprefix("ema_") == metric:
        return bool(ranked["higher_is_better"])
    found = {each.name: each for each in _metrics_of(saved)}
    if metric not in found or not found[metric].chooses:
        choosing = [name for name, each in found.items() if each.chooses]
        raise UserError(f"{metric!r} is not better in one direction; {nearest(metric, [*choosing, 'loss'])}")
    return bool(found[metric].higher_is_better)


def _metrics_of(saved: dict[str, Any]) -> Sequence[Any]:
    """The metrics of a run's task; imports JAX."""
    config: Config = from_dict(saved["config"])
    if config.task == "classification":
        from jaxcnn.tasks.classification.metrics import metrics_for

        return metrics_for(len(saved["data"]["class_names"]))
    from jaxcnn.config.choices import choose

    kind: Any = choose("task", config.task).load()
    return kind.finish(config, saved["data"]).task.metrics
