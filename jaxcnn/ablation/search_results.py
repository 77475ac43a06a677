"""What a search has found: its trials as rows, the best config as an experiment's file, which fields mattered.

Everything is worked out from the journal anew, so that it does not matter which process writes it, or how often.
"""

import csv
import dataclasses
import io
from dataclasses import dataclass
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table

from jaxcnn.ablation.search import Goal, Search, Searching, shown, trial_folder
from jaxcnn.ablation.study import overridden
from jaxcnn.config import Config, flatten
from jaxcnn.files import to_json, write_atomically
from jaxcnn.machine import versions

BEST, TRIALS, RESULT = "best.py", "trials.csv", "search_result.json"
NUM_SHOWN = 10  # trials, the best ones
FEWEST_FOR_IMPORTANCES = 10


@dataclass(frozen=True)
class TrialRow:
    """A trial, and what became of it."""

    number: int
    status: str  # finished, pruned, failed or running
    value: float | None  # of the goal's metric; of a pruned trial the last one
    fields: dict[str, Any]  # that were chosen for it, as the config has them
    evaluations: dict[int, float]  # the metric at each, by its number
    error: str | None


@dataclass(frozen=True)
class Found:
    """All that a search has found so far."""

    rows: list[TrialRow]
    best: TrialRow | None
    importances: dict[str, float] | None  # None: too few trials, or all of one value


def found_by(searching: Searching) -> Found:
    """From the journal."""
    space, sign = searching.search.space, -1 if searching.goal.higher_is_better else 1
    rows = [
        TrialRow(
            trial.number,
            _status(trial),
            trial.value,
            space.fields_of(trial.params),
            dict(trial.intermediate_values),
            trial.user_attrs.get("error"),
        )
        for trial in searching.trials()
    ]
    finished = [row for row in rows if row.status == "finished"]
    best = min(finished, key=lambda row: (sign * (row.value or 0.0), row.number), default=None)
    return Found(rows, best, _importances(searching, finished))


def _status(trial: Any) -> str:
    if not trial.state.is_finished():
        return "running"
    if trial.user_attrs.get("error"):
        return "failed"
    return "finished" if trial.state.name == "COMPLETE" else "pruned"


def _importances(searching: Searching, finished: list[TrialRow]) -> dict[str, float] | None:
    """How much of the value's variance each field explains by itself, by fANOVA (Hutter et al. 2014): shares of 1.

    Of the fields that all finished trials have: conditional ones are left out.
    """
    if len(finished) < FEWEST_FOR_IMPORTANCES or len({row.value for row in finished}) < 2:
        return None
    common = set.intersection(*(set(row.fields) for row in finished))
    varied = [name for name in common if len({repr(row.fields[name]) for row in finished}) > 1]
    if not varied:
        return None
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # imports scikit-learn

    return dict(
        get_param_importances(searching.study, evaluator=FanovaImportanceEvaluator(seed=0), params=sorted(varied))
    )


# ---- the best config


def best_config(search: Search, best: TrialRow) -> Config:
    """The config of a trial, to be measured on test as the base config was before the search."""
    return overridden(search.config, {**best.fields, "measure_test": True})


def experiment_text(config: Config, words: str) -> str:
    """An experiment's file that gives this config; `words` are its docstring."""
    groups: set[str] = set()
    call = _call(config, groups, "    ")
    names = sorted({"Config", *groups}, key=str.lower)
    return (
        f'"""{words}"""\n\nfrom jaxcnn.config import (\n'
        + "".join(f"    {name},\n" for name in names)
        + f")\n\n\ndef get_config() -> Config:\n    return {call}\n"
    )


def _call(node: Any, groups: set[str], indent: str) -> str:
    """A dataclass as it is written, without what is its default."""
    default, lines = type(node)(), []
    groups.add(type(node).__name__)
    for each in dataclasses.fields(node):
        value = getattr(node, each.name)
        if value != getattr(default, each.name):
            text = _call(value, groups, indent + "    ") if dataclasses.is_dataclass(value) else repr(value)
            lines.append(f"{indent}    {each.name}={text},\n")
    return f"{type(node).__name__}(\n{''.join(lines)}{indent})" if lines else f"{type(node).__name__}()"


def _best_words(found: Found, best: TrialRow, goal: Goal) -> str:
    return (
        f"The best of {len(found.rows)} trials of a search: validation {goal.metric} {best.value:.4f} in trial "
        f"{best.number}.\n\n    python -m jaxcnn.main --config best.py\n\n"
        "It was chosen for that value, which is optimistic for it: measure it on test, over several seeds.\n"
    )


# ---- what is written and shown


def write_found(folder: epath.Path, search: Search, goal: Goal, found: Found) -> None:
    """Writes trials.csv, search_result.json and, where a trial has finished, best.py. Raises OSError."""
    write_atomically(folder / TRIALS, _csv(search, goal, found))
    best = found.best
    content = {
        "experiment": search.experiment,
        "metric": goal.metric,
        "higher_is_better": goal.higher_is_better,
        "sampler": search.sampler,
        "pruner": search.pruner,
        "seed": search.seed,
        "space": [each.text for each in search.space.dimensions],
        "trials": [
            {
                "trial": row.number, "status": row.status, "value": row.value, "fields": row.fields,
                "evaluations": {str(number): value for number, value in row.evaluations.items()}, "error": row.error,
                "folder": str(trial_folder(folder, row.number).relative_to(folder)),
            }
            for row in found.rows
        ],
        "best": None if best is None else {"trial": best.number, "value": best.value, "fields": best.fields},
        "importances": found.importances,
        "versions": versions(),
    }  # fmt: skip
    write_atomically(folder / RESULT, to_json(content, indent=1) + "\n")
    if best is not None:
        text = experiment_text(best_config(search, best), _best_words(found, best, goal))
        write_atomically(folder / BEST, text)


def _csv(search: Search, goal: Goal, found: Found) -> str:
    text, fields = io.StringIO(), [each.field for each in search.space.dimensions]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "status", goal.metric, *fields, "error"])
    for row in found.rows:
        writer.writerow([row.number, row.status, row.value, *(row.fields.get(name) for name in fields), row.error])
    return text.getvalue()


def show_found(console: Console, folder: epath.Path, search: Search, goal: Goal, found: Found) -> None:
    """The closing table, what mattered, and how to measure honestly."""
    counts = {
        status: sum(row.status == status for row in found.rows)
        for status in ("finished", "pruned", "failed", "running")
    }
    words = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
    sign = -1 if goal.higher_is_better else 1
    finished = sorted(
        (row for row in found.rows if row.status == "finished"), key=lambda row: (sign * (row.value or 0.0), row.number)
    )
    fields = [each.field for each in search.space.dimensions]
    table = Table(title=f"{search.experiment}, {search.sampler}: {words}", title_justify="left")
    for column in ("trial", f"validation {goal.metric}", *fields):
        table.add_column(column, justify="right")
    base = flatten(search.config)
    for row in finished[:NUM_SHOWN]:
        values = (shown(row.fields[name]) if name in row.fields else f"({shown(base[name])})" for name in fields)
        table.add_row(str(row.number), f"{row.value:.4f}", *values)
    console.print(table)
    if found.importances is not None:
        shares = "  ".join(f"{name} {share:.2f}" for name, share in found.importances.items())
        console.print(f"importances (fANOVA, of {len(finished)} finished trials): {shares}")
    console.print(
        f"The best of {len(finished)} values is optimistic: it was chosen for being the best. {folder / BEST} is its "
        f"config; measured honestly, on test and over seeds:\n"
        f"  python -m jaxcnn.sweep --config {folder / BEST} --seeds 6"
    )
