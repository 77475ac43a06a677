"""A study's results in words: a sentence for each variant that one may publish, and notes on what stands behind it."""

import math
from collections.abc import Callable, Iterator, Sequence

from jaxcnn.ablation.results import Results, RunResult, VariantResult
from jaxcnn.ablation.statistics import DRAWS, Comparison, Interval, pairs_to_decide

# Metrics that are shares of 1, shown in percent; their differences in points.
SHARES = {
    "accuracy", "top5_accuracy", "macro_f1", "balanced_accuracy", "exact_match", "micro_f1",
    "mean_average_precision",
}  # fmt: skip
NAMED = 3  # runs that a note names
MOST_DECIMALS = 6


def in_units(value: float, metric: str) -> float:
    """A score as it is shown: a share in percent."""
    return 100 * value if metric in SHARES else value


def decimals_of(uncertainty: float | None) -> int:
    """Decimals that show two digits of an uncertainty; where there is none, two."""
    if uncertainty is None or not math.isfinite(uncertainty) or uncertainty <= 0:
        return 2
    return min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(uncertainty))))


def mean_in_words(results: Results, name: str) -> str:
    """`99.54 ± 0.16`, the mean and the standard deviation; of one score the score alone."""
    summary = results.variants[name].summary
    if summary.mean is None:
        return "none"
    mean = in_units(summary.mean, results.metric)
    if summary.std is None:
        return f"{mean:.{2 if results.metric in SHARES else 4}f}"
    std = in_units(summary.std, results.metric)
    decimals = decimals_of(std)
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"


def difference_in_words(results: Results, of: Comparison) -> str:
    """`-1.20 (-1.60 to -0.80)`, the difference and its interval."""
    decimals = decimals_of(_half(results, of.interval))
    between = "" if of.interval is None else f" ({interval_in_words(results, of.interval)})"
    return f"{in_units(of.difference, results.metric):+.{decimals}f}{between}"


def p_in_words(p: float) -> str:
    """A p-value with two digits."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def interval_in_words(results: Results, of: Interval | None) -> str:
    """`99.37 to 99.71`."""
    if of is None:
        return ""
    decimals = decimals_of(_half(results, of))
    return f"{in_units(of.low, results.metric):.{decimals}f} to {in_units(of.high, results.metric):.{decimals}f}"


def _half(results: Results, of: Interval | None) -> float | None:
    return None if of is None else in_units((of.high - of.low) / 2, results.metric)


def sentence(results: Results, name: str, shown: Callable[[str], str] = str) -> str:
    """What may be said of a variant; `shown` writes its name."""
    variant = results.variants[name]
    summary, of = variant.summary, variant.versus_base
    if name == results.base or of is None:
        unit = " %" if results.metric in SHARES else ""
        spread = f"{results.split} {results.metric} {mean_in_words(results, name)}{unit}"
        if summary.n < 2:
            return f"{shown(name)}: {spread} (n = {summary.n}, no interval)."
        between = f"95 % {interval_in_words(results, summary.interval)}"
        return f"{shown(name)}: {spread} (standard deviation; {between}, n = {summary.n} {results.units})."
    facts = [f"n = {of.pairs} paired {results.units}", f"p = {p_in_words(of.p_holm)} sign-flip, Holm"]
    if of.interval is not None:
        facts.insert(0, f"95 % {_amounts(results, of)}")
    if failed := sum(each.status == "failed" for each in (*variant.runs, *results.variants[results.base].runs)):
        facts.append(f"{failed} of both sides' runs failed")
    if results.explored:
        facts.append("exploration")
    verdict = "" if of.verdict in ("better", "worse") else f": {of.verdict}"
    return f"{shown(name)}: {_change(results, of)} ({', '.join(facts)}){verdict}."


def _change(results: Results, of: Comparison) -> str:
    """`accuracy lower by 1.2 points`."""
    if of.difference == 0:
        return f"{results.split} {results.metric} the same"
    amount = abs(in_units(of.difference, results.metric))
    points = " points" if results.metric in SHARES else ""
    side = "higher" if of.difference > 0 else "lower"
    return f"{results.split} {results.metric} {side} by {amount:.{decimals_of(_half(results, of.interval))}f}{points}"


def _amounts(results: Results, of: Comparison) -> str:
    """The interval as amounts of the change: `0.8 to 1.6`, or `0.2 lower to 0.9 higher` where it holds 0."""
    assert of.interval is not None
    decimals = decimals_of(_half(results, of.interval))
    low, high = (in_units(each, results.metric) for each in (of.interval.low, of.interval.high))
    if low < 0 < high:
        return f"{-low:.{decimals}f} lower to {high:.{decimals}f} higher"
    small, large = sorted((abs(low), abs(high)))
    return f"{small:.{decimals}f} to {large:.{decimals}f}"


# ---- notes


def notes(results: Results) -> list[str]:
    """What a reader must know: what is not there, what was chosen after looking, what cannot be decided, what was."""
    return [*_runs(results), *_choices(results), *_methods(results), *_power(results), *_claim(results)]


def _runs(results: Results) -> Iterator[str]:
    runs = results.runs
    by_status = {
        status: [each for each in runs if each.status == status]
        for status in ("failed", "refused", "unfinished", "missing")
    }
    if some := by_status["failed"]:
        yield f"{_count(some, runs)} failed, and their variants' scores are of the others: {_named(some)}."
    if some := by_status["refused"]:
        yield f"{_count(some, runs)} {_are(some)} not counted: {_named(some)}."
    unfinished, missing = by_status["unfinished"], by_status["missing"]
    if some := [*unfinished, *missing]:
        yield (
            f"{len(unfinished):,} of {len(runs):,} runs are not finished and {len(missing):,} not begun. Whoever stops "
            f"when the table pleases finds differences where none are: {_named(some)}."
        )
    if some := [each for each in runs if each.status == "finished" and each.score is None]:
        yield f"{_count(some, runs)} {_are(some)} finished without a score: {_named(some)}."
    if lost := _lost_pairs(results):
        yield f"Pairs are {results.units} that both sides have; left out: {'; '.join(lost)}."


def _lost_pairs(results: Results) -> list[str]:
    """By variant, how many units of the base or of it have no partner."""
    units = results.folds if results.units == "folds" else len(results.seeds)
    lost = []
    for name, variant in results.variants.items():
        pairs = 0 if variant.versus_base is None else variant.versus_base.pairs
        if name != results.base and units and pairs < units:
            lost.append(f"{units - pairs} of {units} of {name!r}")
    return lost if len(lost) <= NAMED else [*lost[:NAMED], f"and of {len(lost) - NAMED:,} variants more"]


def _choices(results: Results) -> Iterator[str]:
    if results.explored:
        yield (
            f"Another {' and another '.join(results.explored)} than the study's own: choosing after looking is "
            "exploration, and its p-values are no test."
        )
    other = [
        name for name, each in results.variants.items() if any(path.startswith("loss.") for path in each.overrides)
    ]
    if results.metric == "loss" and other:
        yield f"{_variants(other)} another loss, whose numbers are not those of the others': choose another metric."
    if results.split == "validation":
        yield "Validation has chosen each run's weights, so its scores are too good, of all variants alike."


def _methods(results: Results) -> Iterator[str]:
    if results.units == "folds":
        yield (
            "Folds share training data, so their scores are not independent: bootstrap intervals are too narrow. Those "
            "of t are corrected (Nadeau & Bengio 2003), and a verdict needs them, too."
        )
    if single := [name for name, each in results.variants.items() if each.summary.n == 1]:
        yield f"{_variants(single)} one score alone: no interval."
    compared = {name: each.versus_base for name, each in results.variants.items() if each.versus_base}
    if drawn := [name for name, each in compared.items() if not each.exact]:
        yield f"{_variants(drawn)} too many pairs to count all sign flips: {DRAWS:,} were drawn, and the one seen."
    flat = [
        name
        for name, each in results.variants.items()
        if any(interval is not None and interval.method == "percentile" for interval in _bootstraps(each))
    ]
    if flat:
        yield f"{_variants(flat)} a bootstrap interval of percentiles, as where all values are equal: BCa has none."


def _bootstraps(variant: VariantResult) -> list[Interval | None]:
    return [variant.summary.bootstrap, None if variant.versus_base is None else variant.versus_base.bca]


def _power(results: Results) -> Iterator[str]:
    compared = [each.versus_base for each in results.variants.values() if each.versus_base]
    unable = [each for each in compared if each.verdict == "cannot decide"]
    if unable:
        pairs = sorted({each.pairs for each in unable})
        has = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
        yield (
            f"Sign flips of {has} pairs cannot go below p = {p_in_words(min(each.p_least for each in unable))} with "
            f"{len(compared)} compared, after Holm's correction: {pairs_to_decide(len(compared))} pairs can decide."
        )


def _claim(results: Results) -> Iterator[str]:
    verdicts = [each.versus_base.verdict for each in results.variants.values() if each.versus_base]
    if not verdicts:
        yield f"Nothing is compared with {results.base!r}."
        return
    better, worse = verdicts.count("better"), verdicts.count("worse")
    undecided = len(verdicts) - better - worse
    less = f" and {undecided} of which no difference is shown, which does not show that there is none"
    yield f"Against {results.base!r}: {better} better, {worse} worse{less if undecided else ''}."


def _count(some: Sequence[RunResult], runs: Sequence[RunResult]) -> str:
    return f"{len(some):,} of {len(runs):,} runs"


def _are(some: Sequence[RunResult]) -> str:
    return "is" if len(some) == 1 else "are"


def _variants(names: Sequence[str]) -> str:
    named = ", ".join(map(repr, names[:NAMED]))
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{named}{more} {'has' if len(names) == 1 else 'have'}"


def _named(some: Sequence[RunResult]) -> str:
    named = [each.folder + (f" ({each.reason})" if each.reason else "") for each in some[:NAMED]]
    return ", ".join(named) + (f", and {len(some) - NAMED:,} more" if len(some) > NAMED else "")
