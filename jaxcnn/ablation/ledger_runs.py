"""How finished runs become a row of the ledger: what must be alike in them, and what is read from their folders.

A score comes from a run's summary, never from a hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from jaxcnn.ablation.ledger import APART, Row, command_of, config_of, digest_of, plain, statistics_of
from jaxcnn.ablation.study import PLAN, read_plan
from jaxcnn.config import Config, changed_fields, flatten, from_dict
from jaxcnn.errors import UserError, nearest
from jaxcnn.fingerprints import same_data
from jaxcnn.run import workdir as workdir_lib


@dataclass(frozen=True)
class _Finished:
    workdir: epath.Path
    saved: dict[str, Any]  # config.json
    summary: dict[str, Any]

    @property
    def config(self) -> Config:
        return from_dict(self.saved["config"])


def row_of(
    name: str,
    runs: Sequence[str],
    *,
    root: epath.Path,
    experiment: str | None = None,
    metric: str | None = None,
    split: str | None = None,
) -> Row:
    """A row without its words, commit and date.

    Args:
      name: the row's.
      runs: folders of finished runs that differ in their seed alone; STUDY:VARIANT is all those of a study's variant.
      root: the project's folder.
      experiment: which one the row's command begins from, by name; none: the runs' own.
      metric: what is told of them; none: the study's, or what chose the weights.
      split: on which data; none: the study's, or test.

    Raises:
      UserError: a run has not finished, or they are not of one kind.
    """
    folders: list[epath.Path] = []
    for each in runs:
        more, of_study = _folders(each)
        folders += more
        metric, split = metric or of_study[0], split or of_study[1]
    finished = [_read(folder) for folder in folders]
    first = finished[0]
    for run in finished[1:]:
        _check_alike(first, run)
    seeds = [run.config.seed for run in finished]
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UserError(f"seed {twice[0]} is there twice, and counts once; leave one of its runs out")
    metric, split = metric or _chosen_by(first), split or "test"
    finished.sort(key=lambda run: run.config.seed)
    experiment = experiment or first.saved["experiment"]
    overrides = _overrides(root, experiment, first.config)
    return {
        "name": name,
        "experiment": experiment,
        "overrides": overrides,
        "command": command_of(experiment, overrides),
        "config_digest": digest_of(first.config),
        "data": {key: first.saved["data"][key] for key in ("name", "fingerprint")},
        "metric": metric,
        "split": split,
        "seeds": sorted(seeds),
        **statistics_of([score_of(run.workdir, run.summary, metric, split) for run in finished]),
        "train_seconds": [round(run.summary["seconds"]["train"], 1) for run in finished],
        "versions": first.summary["versions"],
    }


def _folders(run: str) -> tuple[list[epath.Path], tuple[str | None, str | None]]:
    """The folders of a run or of STUDY:VARIANT, and the metric and the split that a study compares."""
    study, _, variant = run.rpartition(":")
    if not study or (workdir_lib.resolve(run) / "config.json").exists():
        return [workdir_lib.resolve(run)], (None, None)
    folder = workdir_lib.resolve(study)
    if not (folder / PLAN).exists():
        return [workdir_lib.resolve(run)], (None, None)
    plan, _ = read_plan(folder)
    if variant not in plan.variants:
        raise UserError(f"{study} has no variant {variant!r}; {nearest(variant, plan.variants)}")
    if plan.folds is not None:
        raise UserError(f"{study} has {plan.folds} folds; a row is of runs on the same splits")
    return [folder / each.folder for each in plan.runs() if each.variant == variant], (plan.metric, plan.split)


def _read(folder: epath.Path) -> _Finished:
    saved = workdir_lib.read_config(folder)
    summary = workdir_lib.read_summary(folder)
    if summary is None:
        raise UserError(f"the run in {folder} has not finished; the command that began it goes on with it")
    return _Finished(folder, saved, summary)


def _check_alike(first: _Finished, run: _Finished) -> None:
    """Raises UserError unless two runs differ in nothing but their seed."""
    config = run.config
    config.seed = first.config.seed
    differing = changed_fields(first.config, config)
    if not same_data(first.saved["data"]["fingerprint"], run.saved["data"]["fingerprint"]):
        differing.append("the data")
    if first.saved["data"].get("excluded") != run.saved["data"].get("excluded"):
        differing.append("what data.exclude says")
    if first.saved["experiment"] != run.saved["experiment"]:
        differing.append("the experiment")
    for weights, words in (("pretrained", "the weights they begin with"), ("teacher", "the teacher")):
        if first.saved.get(weights, {}).get("sha256") != run.saved.get(weights, {}).get("sha256"):
            differing.append(words)
    if first.summary["versions"] != run.summary["versions"]:
        differing.append("the versions")
    if differing:
        raise UserError(
            f"{first.workdir} and {run.workdir} differ in more than their seed: {', '.join(differing)}; a row is of "
            "runs that are alike"
        )


def _chosen_by(run: _Finished) -> str:
    return workdir_lib.rank_by(run.saved)["best_metric"].removeprefix("ema_")


def score_of(workdir: epath.Path, summary: dict[str, Any], metric: str, split: str) -> float:
    """What a summary says of a metric on a split. Raises UserError where it says nothing, or nothing finite."""
    splits = summary["splits"]
    if split not in splits:
        raise UserError(f"the run in {workdir} was not measured on {split!r}; {nearest(split, splits)}")
    names = [name for name in splits[split] if name != "num_examples"]
    if metric not in names:
        raise UserError(f"the run in {workdir} has no {metric!r} on {split}; {nearest(metric, names)}")
    if splits[split][metric] is None:
        raise UserError(f"the {metric} of the run in {workdir} is not finite; it makes no row")
    return float(splits[split][metric])


def _overrides(root: epath.Path, experiment: str, config: Config) -> dict[str, Any]:
    """The fields in which a config differs from its experiment's. Raises UserError where no command says them."""
    base = flatten(config_of(root, command_of(experiment, {})))
    differing = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(config).items()
        if name not in APART and plain(value) != plain(base[name])
    }
    if digest_of(config_of(root, command_of(experiment, differing))) != digest_of(config):
        raise UserError(f"no command says how the run differs from {experiment}: {', '.join(differing)}")
    return differing
