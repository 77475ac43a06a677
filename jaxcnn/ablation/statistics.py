"""What may be said of scores: intervals, paired differences, tests, corrections. Numbers in, numbers out.

A unit is a seed, or a fold where there is one seed. What differs is compared within units, so that what a seed does to
both sides cancels. docs/ablations.md says what the words mean.
"""

import warnings
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

Verdict = Literal["better", "worse", "no difference shown", "cannot decide"]
ALPHA = 0.05  # p-values below it decide; intervals cover the rest
MOST_EXACT = 16  # pairs whose sign flips are all counted, 2^16
DRAWS = (1 << 16) - 1  # sign flips that are drawn of more pairs
RESAMPLES = 9_999  # of the bootstrap
ROUNDING = 2.0**-22  # scores are float32: what differs by less, as a share of them, is equal
_BLOCK = 1 << 22  # numbers that are drawn at once


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float
    method: str  # t, corrected t, BCa, percentile

    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Summary:
    """One variant's scores. What is not defined is None: of one unit the spread, of none all."""

    n: int
    mean: float | None
    std: float | None  # with n - 1
    interval: Interval | None
    bootstrap: Interval | None


@dataclass(frozen=True)
class Comparison:
    """A variant less the base, unit by unit. What is not defined is None."""

    pairs: int
    difference: float
    interval: Interval | None  # of one pair there is none
    bca: Interval | None
    p_sign_flip: float
    exact: bool  # whether all sign flips were counted, not some drawn
    p_t: float | None
    p_holm: float  # p_sign_flip, for all variants together
    p_least: float  # what p_holm could not have gone below, with so many pairs and variants
    cohen_d: float | None  # d_z: the mean of the differences by their standard deviation
    pairs_for_80: int | None  # that find a d_z of this size with 80 % power
    verdict: Verdict


def units_of(
    scores: Mapping[tuple[int, int | None], float], *, seeds: Collection[int], folds: int | None
) -> dict[int, float]:
    """The scores of independent units, by (seed, fold): of each seed, its mean where all its folds are there.

    With one seed the units are its folds, which share training data: `shared_of`.
    """
    if folds is None:
        return {seed: score for (seed, _), score in scores.items()}
    if len(seeds) == 1:
        return {fold: score for (_, fold), score in scores.items() if fold is not None}
    whole = range(1, folds + 1)
    return {
        seed: float(np.mean([scores[seed, fold] for fold in whole]))
        for seed in seeds
        if all((seed, fold) in scores for fold in whole)
    }


def shared_of(*, seeds: Collection[int], folds: int | None) -> float:
    """What `summarise` and `compare` add to the variance for training data that units share: n_test / n_train."""
    return 0.0 if folds is None or len(seeds) > 1 else 1 / (folds - 1)


def summarise(scores: Mapping[str, Collection[float]], *, shared: float = 0.0) -> dict[str, Summary]:
    """Mean, standard deviation and intervals of the scores of units, by variant."""
    rows = {name: np.asarray(list(values), np.float64) for name, values in scores.items()}
    found = {}
    for (name, row), interval in zip(rows.items(), bootstrap(list(rows.values())), strict=True):
        spread = float(row.std(ddof=1)) if len(row) > 1 else None
        mean = float(row.mean()) if len(row) else None
        between = None if spread is None else t_interval(row, shared=shared)
        found[name] = Summary(len(row), mean, spread, between, interval)
    return found


def compare(
    scores: Mapping[str, Mapping[int, float]], base: str, *, higher_is_better: bool, shared: float = 0.0
) -> dict[str, Comparison]:
    """Each variant that has a unit in common with the base, against it.

    Args:
      scores: by variant and unit.
      base: the variant that the others are compared with.
      higher_is_better: of the metric.
      shared: as `shared_of` has it; where it is not 0, a verdict needs the corrected interval, too.
    """
    paired = {name: _differences(of, scores[base]) for name, of in scores.items() if name != base}
    paired = {name: pairs for name, pairs in paired.items() if len(pairs[0])}
    intervals = bootstrap([differences for differences, _ in paired.values()])
    found = {
        name: _compare(*pairs, bca=interval, shared=shared)
        for (name, pairs), interval in zip(paired.items(), intervals, strict=True)
    }
    corrected = holm([each.p_sign_flip for each in found.values()])
    # Holm's p falls where any p does: the least of one is where each is as small as its pairs allow
    least = holm([2 / 2.0**each.pairs for each in found.values()])
    for (name, each), p_holm, p_least in zip(found.items(), corrected, least, strict=True):
        whole = replace(each, p_holm=p_holm, p_least=p_least)
        found[name] = replace(whole, verdict=_verdict(whole, higher_is_better, needs_t=shared > 0))
    return found


def _differences(of: Mapping[int, float], base: Mapping[int, float]) -> tuple[np.ndarray, float]:
    """(differences of units that are in both, by how much a mean of them may be off for rounding)."""
    both = sorted(of.keys() & base.keys())
    ours, theirs = (np.array([scores[unit] for unit in both], np.float64) for scores in (of, base))
    scale = ROUNDING * np.maximum(np.abs(ours), np.abs(theirs))
    differences = ours - theirs
    return np.where(np.abs(differences) <= scale, 0.0, differences), float(scale.max(initial=0.0))


def _compare(differences: np.ndarray, rounding: float, *, bca: Interval | None, shared: float) -> Comparison:
    """A comparison on its own, before it is corrected for the others."""
    pairs, mean = len(differences), float(differences.mean())
    p_sign_flip, exact = sign_flip(differences, rounding=rounding)
    spread = float(differences.std(ddof=1)) if pairs > 1 else None
    if spread is not None and np.ptp(differences) <= rounding:
        spread = 0.0
    d = None if spread is None else mean / spread if spread else 0.0 if mean == 0 else None
    return Comparison(
        pairs=pairs,
        difference=mean,
        interval=None if spread is None else t_interval(differences, shared=shared),
        bca=bca,
        p_sign_flip=p_sign_flip,
        exact=exact,
        p_t=None if spread is None else t_test(differences, shared=shared),
        p_holm=1.0,
        p_least=1.0,
        cohen_d=d,
        pairs_for_80=None if d is None else pairs_needed(d),
        verdict="cannot decide",
    )


def _verdict(of: Comparison, higher_is_better: bool, *, needs_t: bool) -> Verdict:
    """Better or worse only where the corrected test and the interval agree."""
    if of.p_least >= ALPHA:
        return "cannot decide"
    intervals = [of.bca, of.interval] if needs_t else [of.bca]
    if of.p_holm < ALPHA and all(each is not None and each.excludes_zero() for each in intervals):
        return "better" if (of.difference > 0) == higher_is_better else "worse"
    return "no difference shown"


# ---- the pieces


def t_interval(values: np.ndarray, *, shared: float = 0.0) -> Interval:
    """Student's interval of the mean of n >= 2 values; with `shared`, Nadeau & Bengio's (2003) corrected one."""
    half = student(len(values)) * _error(values, shared)
    mean = float(values.mean())
    return Interval(mean - half, mean + half, "corrected t" if shared else "t")


def student(n: int) -> float:
    """What |t| with n - 1 degrees of freedom stays below in 95 % of cases."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 1 - ALPHA / 2))


def t_test(differences: np.ndarray, *, shared: float = 0.0) -> float:
    """Two-sided p of the paired t-test, of n >= 2 differences; `shared` as of `t_interval`."""
    from scipy.special import stdtr

    mean, error = abs(float(differences.mean())), _error(differences, shared)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(len(differences) - 1, -mean / error))


def _error(values: np.ndarray, shared: float) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1) * np.sqrt(1 / len(values) + shared))


def bootstrap(rows: Sequence[np.ndarray]) -> list[Interval | None]:
    """BCa intervals (Efron 1987) of the mean of each row, by draws of seed 0; of fewer than two values none.

    Where BCa has none, as of values that are all equal, it is the percentiles'. Rows of one length share their draws.
    """
    found: list[Interval | None] = [None] * len(rows)
    for n in {len(row) for row in rows} - {0, 1}:
        places = [place for place, row in enumerate(rows) if len(row) == n]
        step = max(1, _BLOCK // (RESAMPLES * n))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            values = np.stack([rows[place] for place in some])
            corrected, percentile = _bootstrap(values, "BCa"), None
            for number, place in enumerate(some):
                between, method = corrected[number], "BCa"
                if not np.isfinite(between).all():
                    percentile = _bootstrap(values, "percentile") if percentile is None else percentile
                    between, method = percentile[number], "percentile"
                found[place] = Interval(float(between[0]), float(between[1]), method)
    return found


def _bootstrap(values: np.ndarray, method: str) -> np.ndarray:
    """(low, high) of the mean of each row [rows, n], float64 [rows, 2]."""
    from scipy.stats import bootstrap as scipy_bootstrap

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # that there is no BCa interval, which the caller sees
        found = scipy_bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, _BLOCK // values.shape[1]),
            axis=-1,
            confidence_level=1 - ALPHA,
            method=method,
            random_state=np.random.default_rng(0),
        )
    return np.stack(found.confidence_interval, axis=-1)


def sign_flip(differences: np.ndarray, *, rounding: float = 0.0) -> tuple[float, bool]:
    """(two-sided p of the mean when each sign is as likely as the other, whether all flips were counted).

    Of more than MOST_EXACT pairs DRAWS flips are drawn, of seed 0, and the one that was seen counts among them (Phipson
    & Smyth 2010). Means that differ by `rounding` are equal.
    """
    pairs = len(differences)
    seen = abs(float(differences.mean())) - rounding - 1e-12 * float(np.abs(differences).mean())
    if pairs <= MOST_EXACT:
        return float(np.mean(np.abs(_all_signs(pairs) @ differences) / pairs >= seen)), True
    generator = np.random.default_rng(0)
    hits, left = 1, DRAWS
    while left:
        count = min(left, max(1, _BLOCK // pairs))
        signs = generator.integers(0, 2, (count, pairs), np.int8) * 2 - 1
        hits += int(np.sum(np.abs(signs @ differences) / pairs >= seen))
        left -= count
    return hits / (DRAWS + 1), False


@cache
def _all_signs(pairs: int) -> np.ndarray:
    """Every way to give so many numbers a sign, float64 [2^pairs, pairs]."""
    return (np.arange(1 << pairs)[:, None] >> np.arange(pairs) & 1) * 2.0 - 1


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction for as many tests as there are."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values, np.float64)[order] * factors))
    return corrected.tolist()


def pairs_needed(d: float, *, power: float = 0.8) -> int | None:
    """Pairs with which a two-sided paired t-test at ALPHA finds an effect of d_z; None where no number does."""
    if d == 0:
        return None
    high = 2
    while power_of(d, high) < power:
        if high > 1 << 40:
            return None
        high *= 2
    return 2 + bisect_left(range(2, high + 1), True, key=lambda pairs: power_of(d, pairs) >= power)


def power_of(d: float, pairs: int) -> float:
    """Power of a two-sided paired t-test at ALPHA, by the noncentral t."""
    from scipy.special import nctdtr, stdtrit

    least, noncentral = stdtrit(pairs - 1, 1 - ALPHA / 2), abs(d) * np.sqrt(pairs)
    return float(1 - nctdtr(pairs - 1, noncentral, least) + nctdtr(pairs - 1, noncentral, -least))


def pairs_to_decide(comparisons: int) -> int:
    """The fewest pairs by which sign flips can tell so many variants from the base, after Holm's correction."""
    return next(pairs for pairs in range(1, 64) if comparisons * 2 / 2.0**pairs < ALPHA)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that two networks err alike: of the examples that one alone has right, by the binomial."""
    from scipy.stats import binomtest

    return float(binomtest(only_first, total).pvalue) if (total := only_first + only_second) else 1.0
