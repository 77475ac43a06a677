"""What a study is: a base config, its variants, seeds and folds; its plan in a folder, and where each run lies.

Reads and writes plain data alone: it runs nothing, and imports no JAX.
"""

import copy
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from jaxcnn.config import Config, changed_fields, from_dict, parse_fold, to_dict, types_of, validate
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import read_json, to_json, write_atomically
from jaxcnn.plain_data import Number
from jaxcnn.plain_data import check as check_schema
from jaxcnn.terminal import one_line

PLAN = "plan.json"
LONGEST_NAME = 80  # letters of a run's folder that are a variant's own
_COUNT = Number(0, 2**31 - 1, integer=True)
_PLAN = {
    "study": str,
    "experiment": str,
    "config": {},
    "variants": {str: {}},
    "seeds": [_COUNT],
    "folds": (Number(2, 10**6, integer=True), None),
    "metric": (str, None),
    "split": str,
}


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    variant: str
    seed: int
    fold: int | None = None  # from 1

    @property
    def folder(self) -> str:
        """Where it lies below the study's folder."""
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        return f"runs/{_file_name(self.variant)}/seed-{self.seed}{fold}"


@dataclass(frozen=True)
class Study:
    """A base config and named variants of it, each with the same seeds.

    The first variant is what the others are compared with. Values in `variants` are as the config's fields have them:
    `{"base": {}, "no flip": {"augment.flip": False}}`.
    """

    config: Config
    variants: Mapping[str, Mapping[str, Any]]  # name -> the fields that differ from `config`, by path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # enough for one comparison: statistics.py:pairs_to_decide
    folds: int | None = None  # each seed in each of so many folds of train; none: the config's own splits
    metric: str | None = None  # what is compared: a metric of the task; none: the one that chooses the weights
    split: str = "test"  # what it is measured on; test or validation

    @property
    def base(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))

    def runs(self) -> Iterator[StudyRun]:
        """All runs, seed by seed, so that a study that is stopped early has some of each variant."""
        for seed in self.seeds:
            for fold in (None,) if self.folds is None else range(1, self.folds + 1):
                for variant in self.variants:
                    yield StudyRun(variant, seed, fold)

    def fields_of(self, run: StudyRun) -> dict[str, Any]:
        """The fields of a run's config that the study sets, by path."""
        fields = {**self.variants[run.variant], "seed": run.seed}
        if run.fold is not None:
            fields |= {"data.fold": f"{run.fold}/{self.folds}", "data.validation_split": None}
        return fields

    def config_of(self, run: StudyRun) -> Config:
        """The config of a run, validated. Raises UserError, naming the variant."""
        try:
            config = overridden(self.config, self.fields_of(run))
            validate(config)
        except UserError as error:
            raise UserError(f"variant {run.variant!r}: {error}") from None
        return config


def overridden(config: Config, fields: Mapping[str, Any]) -> Config:
    """A copy of a config with other values of some fields, which are named by their paths. Raises UserError."""
    config = copy.deepcopy(config)
    for path, value in fields.items():
        node: Any = config
        *groups, leaf = path.split(".")
        for depth, name in enumerate([*groups, leaf]):
            hints = types_of(type(node)) if dataclasses.is_dataclass(node) else {}
            if name not in hints:
                where = ".".join(["config", *groups[:depth]])
                raise UserError(f"{where} has no field {name!r}; {nearest(name, hints)}")
            if depth < len(groups):
                node = getattr(node, name)
        if dataclasses.is_dataclass(getattr(node, leaf)):
            raise UserError(f"{path} is a group of fields; name one of them: {path}.{next(iter(_fields(node, leaf)))}")
        setattr(node, leaf, tuple(value) if isinstance(value, list) else value)
    return config


def _fields(node: Any, name: str) -> list[str]:
    return [each.name for each in dataclasses.fields(getattr(node, name))]


def check_study(study: Study) -> None:
    """Raises UserError where a study is none: no variants, a seed twice, two variants that are the same runs."""
    if not study.variants:
        raise UserError("the study has no variants; give it one at least, the base: {'base': {}}")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise UserError(f"the study's seeds are {study.seeds}; name each once, and one at least")
    if study.split not in ("test", "validation"):
        raise UserError(f"the study's split is {study.split!r}; {nearest(study.split, ('test', 'validation'))}")
    if study.folds is not None:
        parse_fold(f"1/{study.folds}")
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name, fields in study.variants.items():
        if taken := {"seed", "data.fold"} & set(fields):
            raise UserError(f"variant {name!r} sets {min(taken)}, which the study sets for each run; use its seeds")
        content = to_json(to_dict(study.config_of(StudyRun(name, study.seeds[0], study.folds and 1))), sort_keys=True)
        if content in seen:
            raise UserError(f"variants {seen[content]!r} and {name!r} are the same config; leave one of them out")
        folder = _file_name(name).casefold()
        if folder in folders:
            raise UserError(f"variants {folders[folder]!r} and {name!r} would share a folder; rename one of them")
        seen[content], folders[folder] = name, name


def _file_name(name: str) -> str:
    """A variant's name as a folder's: safe on any file system, and another for another name."""
    safe = re.sub(r"[^\w.,=+-]+", "_", name, flags=re.ASCII)[:LONGEST_NAME].strip(".") or "_"
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# ---- the plan in the study's folder


def write_plan(folder: epath.Path, study: Study, *, experiment: str) -> None:
    """Makes the folder this study's, or adds seeds and variants to the study that is there.

    Raises:
      UserError: it holds another study, a run, or strangers' files, or cannot be written.
    """
    content: dict[str, Any] = {
        "study": folder.name,
        "experiment": experiment,
        "config": to_dict(study.config),
        "variants": {name: dict(fields) for name, fields in study.variants.items()},
        "seeds": list(study.seeds),
        "folds": study.folds,
        "metric": study.metric,
        "split": study.split,
    }
    content = {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}
    file = folder / PLAN
    if file.exists():
        saved = _read(folder)
        _check_same(folder, saved, content)
        content["seeds"] = [*saved["seeds"], *(seed for seed in study.seeds if seed not in saved["seeds"])]
        content["variants"] = saved["variants"] | content["variants"]
    elif folder.exists() and any(not each.name.startswith(".") for each in folder.iterdir()):
        raise UserError(f"{folder} holds no study, but other files; pass another --workdir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, to_json(content, indent=1) + "\n")
    except Exception as error:  # a bucket's own errors are no OSError
        raise UserError(f"{folder} cannot be written ({one_line(error)}); pass another --workdir") from None


def _check_same(folder: epath.Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError where a study would change, not grow."""
    # an older version's config may lack a field
    fields = changed_fields(from_dict(saved["config"]), from_dict(now["config"]))
    if fields:
        raise UserError(f"{folder} holds a study with another config: {', '.join(fields[:3])}; pass another --workdir")
    for name in ("experiment", "folds", "metric", "split"):
        if to_json(saved[name]) != to_json(now[name]):
            raise UserError(f"{folder} holds a study with another {name}; pass another --workdir")
    variants = now["variants"]
    changed = [
        name for name, fields in saved["variants"].items() if to_json(variants.get(name, fields)) != to_json(fields)
    ]
    if changed:
        raise UserError(f"{folder} holds a study whose variant {changed[0]!r} has other fields; pass another --workdir")


def read_plan(folder: epath.Path) -> tuple[Study, str]:
    """The study that a folder holds, and the experiment's name. Raises UserError."""
    saved = _read(folder)
    try:
        study = Study(
            config=from_dict(saved["config"]),
            variants=saved["variants"],
            seeds=tuple(saved["seeds"]),
            folds=saved["folds"],
            metric=saved["metric"],
            split=saved["split"],
        )
        validate(study.config, unread=False)
        check_study(study)
    except UserError as error:
        raise UserError(f"{folder / PLAN}: {error}") from None
    return study, saved["experiment"]


def _read(folder: epath.Path) -> dict[str, Any]:
    try:
        saved = read_json(folder / PLAN)
        check_schema(saved, _PLAN, "it")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no study: there is no {PLAN} in it") from None
    except Exception as error:
        raise UserError(f"{folder / PLAN} cannot be read ({one_line(error)}); is {folder} a study's folder?") from None
    return saved
