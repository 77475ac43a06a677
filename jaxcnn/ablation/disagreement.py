"""Where the networks of two variants disagree, seed by seed, by predictions that `evaluate` left in their folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from jaxcnn.ablation.results import Results, RunResult
from jaxcnn.ablation.statistics import mcnemar
from jaxcnn.errors import UserError, nearest
from jaxcnn.run.facts import SavedPredictions, read_predictions


@dataclass(frozen=True)
class Disagreement:
    """Two networks of one seed on the same examples."""

    examples: int
    differ: int  # examples of which they predict other classes
    only_first: int  # that the first alone has right
    only_second: int

    @property
    def p(self) -> float:
        """McNemar's exact p, two-sided: of these two networks, not of their variants."""
        return mcnemar(self.only_first, self.only_second)


def disagreements(results: Results, first: str, second: str) -> list[Disagreement | None]:
    """Of each pair of one seed, None without predictions of the same examples.

    Raises UserError: there is no such variant, or no pair has them.
    """
    for name in (first, second):
        if name not in results.variants:
            raise UserError(f"--predictions: there is no variant {name!r}; {nearest(name, results.variants)}")
    file = "predictions.csv" if results.split == "test" else f"predictions-{results.split}.csv"
    ours, theirs = (
        {(each.run.seed, each.run.fold): each for each in results.variants[name].runs if each.status == "finished"}
        for name in (first, second)
    )
    found = [_compared(file, run, theirs[key]) for key, run in ours.items() if key in theirs]
    if not any(found):
        raise UserError(
            f"no seed has {file} of {first!r} and of {second!r} on the same examples; make them first: "
            f"python -m jaxcnn.evaluate --workdir RUN --split {results.split}"
        )
    return found


def _compared(file: str, run: RunResult, other: RunResult) -> Disagreement | None:
    one, two = (read_predictions(each.path / file) for each in (run, other))
    if one is None or two is None or not _same_examples(one, two):
        return None
    rows = list(zip(one.labels, one.predictions, two.predictions, strict=True))
    return Disagreement(
        examples=len(rows),
        differ=sum(ours != theirs for _, ours, theirs in rows),
        only_first=sum(ours == label != theirs for label, ours, theirs in rows),
        only_second=sum(theirs == label != ours for label, ours, theirs in rows),
    )


def _same_examples(one: SavedPredictions, two: SavedPredictions) -> bool:
    return list(one.identifiers) == list(two.identifiers) and list(one.labels) == list(two.labels)


def in_words(pairs: Sequence[Disagreement | None], first: str, second: str) -> list[str]:
    """Lines for people: medians and ranges over the pairs; one of them at least has predictions."""
    found = [each for each in pairs if each is not None]
    shares = [100 * each.differ / each.examples for each in found]
    only_first, only_second = [each.only_first for each in found], [each.only_second for each in found]
    return [
        f"{first!r} and {second!r}, {found[0].examples:,} examples; {len(found)} of {len(pairs)} pairs of one seed "
        "have predictions of the same ones; median (least to most):",
        f"- other predictions: {median(shares):.2f} % ({min(shares):.2f} to {max(shares):.2f})",
        f"- right alone: {first!r} {median(only_first):g} ({min(only_first)} to {max(only_first)}), "
        f"{second!r} {median(only_second):g} ({min(only_second)} to {max(only_second)})",
        f"- McNemar's exact p: {median(each.p for each in found):.2g} ({min(each.p for each in found):.2g} to "
        f"{max(each.p for each in found):.2g}), each of two networks on these examples; it says nothing of other seeds",
    ]
