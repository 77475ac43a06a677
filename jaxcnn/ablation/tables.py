"""A study's results as a terminal shows them, and as study.json, CSV, Markdown and LaTeX; names are strangers' text."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from etils import epath
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxcnn.ablation.results import Results, RunResult
from jaxcnn.ablation.statistics import Comparison, Interval
from jaxcnn.ablation.words import (
    SHARES,
    difference_in_words,
    interval_in_words,
    mean_in_words,
    notes,
    p_in_words,
    sentence,
)
from jaxcnn.errors import RunError
from jaxcnn.files import to_json, write_atomically
from jaxcnn.terminal import named, one_line

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$",
}  # fmt: skip
_COLUMNS = (
    "variant", "n", "mean", "std", "low", "high", "bootstrap_low", "bootstrap_high", "pairs", "difference",
    "difference_low", "difference_high", "bca_low", "bca_high", "p_sign_flip", "p_t", "p_holm", "cohen_d",
    "pairs_for_80", "verdict",
)  # fmt: skip


def order(results: Results, *, by_mean: bool) -> list[str]:
    """The variants as the study has them, or the base and then the best first."""
    names = list(results.variants)
    if not by_mean:
        return names
    sign = -1 if results.higher_is_better else 1

    def rank(name: str) -> tuple[bool, bool, float]:
        mean = results.variants[name].summary.mean
        return name != results.base, mean is None, 0.0 if mean is None else sign * mean

    return sorted(names, key=rank)


def show(results: Results, names: list[str], console: Console) -> None:
    """A row a variant, then the notes."""
    table = Table(
        title=f"{results.study}: {_metric(results)} of {results.split}, against {results.base}",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("variant", overflow="fold")
    for column in ("n", "mean ± std", "difference (95 %)", "p Holm"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for name in names:
        table.add_row(*_row(results, name))
    console.print(table)
    for each in notes(results):
        console.print(f"- {each}")


def write(results: Results, names: list[str], folder: epath.Path) -> None:
    """Writes study.csv, study.md, study.tex, and study.json last. Raises RunError."""
    files = {
        "study.csv": csv_of(results, names),
        "study.md": markdown_of(results, names),
        "study.tex": latex_of(results, names),
        "study.json": json_of(results),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except Exception as error:  # a bucket's own errors are no OSError
        raise RunError(
            f"{folder} cannot be written ({one_line(error)}); python -m jaxcnn.compare takes another --output"
        ) from None


def _row(results: Results, name: str) -> tuple[str, ...]:
    variant = results.variants[name]
    of = variant.versus_base
    first = (named(name), str(variant.summary.n), mean_in_words(results, name))
    if of is None:
        return (*first, "", "", "base" if name == results.base else "")
    return (*first, difference_in_words(results, of), p_in_words(of.p_holm), of.verdict)


def _metric(results: Results) -> str:
    return f"{results.metric} (%)" if results.metric in SHARES else results.metric


# ---- study.json


def json_of(results: Results) -> str:
    """All of study.json: of equal runs equal bytes."""
    content = {
        "study": results.study,
        "experiment": results.experiment,
        "metric": results.metric,
        "higher_is_better": results.higher_is_better,
        "split": results.split,
        "base": results.base,
        "seeds": list(results.seeds),
        "folds": results.folds,
        "notes": notes(results),
        "variants": {
            name: {
                "overrides": dict(variant.overrides),
                "runs": [_run(each) for each in variant.runs],
                "n": variant.summary.n,
                "mean": variant.summary.mean,
                "std": variant.summary.std,
                "interval": _pair(variant.summary.interval),
                "bootstrap": _pair(variant.summary.bootstrap),
                "versus_base": variant.versus_base and _versus(variant.versus_base),
            }
            for name, variant in results.variants.items()
        },
    }
    return to_json(content, indent=1) + "\n"


def _run(result: RunResult) -> dict[str, Any]:
    run = result.run
    facts = {"seed": run.seed, "fold": run.fold, "folder": result.folder}
    why = {} if result.reason is None else {"reason": result.reason}
    return {**facts, "status": result.status, "score": result.score, **why}


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _versus(of: Comparison) -> dict[str, Any]:
    return {
        "pairs": of.pairs,
        "difference": of.difference,
        "interval": _pair(of.interval),
        "bca": _pair(of.bca),
        "p_sign_flip": of.p_sign_flip,
        "p_t": of.p_t,
        "p_holm": of.p_holm,
        "cohen_d": of.cohen_d,
        "pairs_for_80": of.pairs_for_80,
        "verdict": of.verdict,
    }


# ---- tables in files


def csv_of(results: Results, names: list[str]) -> str:
    """A row a variant, with numbers as they are: shares of 1, not percent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for name in names:
        summary, of = results.variants[name].summary, results.variants[name].versus_base
        row: list[Any] = [_cell(name), summary.n, summary.mean, summary.std]
        row += [*_ends(summary.interval), *_ends(summary.bootstrap)]
        if of is not None:
            row += [of.pairs, of.difference, *_ends(of.interval), *_ends(of.bca)]
            row += [of.p_sign_flip, of.p_t, of.p_holm, of.cohen_d, of.pairs_for_80, of.verdict]
        writer.writerow([*row, *[None] * (len(_COLUMNS) - len(row))])
    return text.getvalue()


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval.low, interval.high)


def _cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    name = named(name)
    return f"'{name}" if name.lstrip()[:1] in ("=", "+", "-", "@") else name


def markdown_of(results: Results, names: list[str]) -> str:
    """The table, a sentence for each variant, and the notes."""
    lines = [f"# {markdown(results.study)}: {markdown(_metric(results))} of {results.split}", ""]
    heads = ("variant", "n", "mean ± std", "95 %", "difference (95 %)", "BCa", "p", "p Holm", "d", "pairs for 80 %", "")
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(map(markdown, row))} |" for row in _long_rows(results, names)]
    lines += ["", *(f"- {sentence(results, name, markdown)}" for name in names)]
    lines += ["", "Notes:", "", *(f"- {markdown(each)}" for each in notes(results)), ""]
    return "\n".join(lines)


def _long_rows(results: Results, names: list[str]) -> Iterator[tuple[str, ...]]:
    for name in names:
        summary, of = results.variants[name].summary, results.variants[name].versus_base
        n, mean, difference, p_holm, verdict = _row(results, name)[1:]
        between = interval_in_words(results, summary.interval)
        if of is None:
            yield name, n, mean, between, "", "", "", "", "", "", verdict
            continue
        d = "" if of.cohen_d is None else f"{of.cohen_d:+.2f}"
        needed = "" if of.pairs_for_80 is None else f"{of.pairs_for_80:,}"
        bca = interval_in_words(results, of.bca)
        yield name, n, mean, between, difference, bca, p_in_words(of.p_sign_flip), p_holm, d, needed, verdict


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~&$#!])", r"\\\1", named(text))


def latex_of(results: Results, names: list[str]) -> str:
    r"""A tabular for \usepackage{booktabs}."""
    heads = ("variant", "$n$", r"mean $\pm$ std", r"difference (95\,\%)", r"$p$ (Holm)", "verdict")
    lines = [
        f"% {latex(_metric(results))} of {results.split}; needs \\usepackage{{booktabs}}",
        r"\begin{tabular}{lrrrrl}",
        r"\toprule",
        f"{' & '.join(heads)} \\\\",
        r"\midrule",
        *(f"{' & '.join(_latex_row(results, name))} \\\\" for name in names),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    return "\n".join(lines)


def _latex_row(results: Results, name: str) -> Iterator[str]:
    variant, *numbers, verdict = map(latex, _row(results, name))
    yield variant
    yield from (re.sub(r"-(?=[0-9])", "$-$", number) for number in numbers)
    yield verdict


def latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(_LATEX.get(letter, letter) for letter in named(text))
