"""What is said of scores: against scipy and statsmodels, in cases with known answers, and with errors counted."""

import gc
import warnings

import numpy as np
import pytest
from scipy import stats

from jaxcnn.ablation import statistics
from jaxcnn.ablation.statistics import compare, holm, mcnemar, pairs_needed, summarise, units_of

SETS = 200  # random data sets


def scores_of(values) -> dict[int, float]:
    return dict(enumerate(np.asarray(values, float).tolist()))


def against(differences, base=0.0, *, higher_is_better=True, shared=0.0) -> statistics.Comparison:
    """One variant that differs from the base by so much, seed by seed."""
    of, other = scores_of(np.asarray(differences) + base), scores_of(np.full(len(differences), base))
    return compare({"base": other, "v": of}, "base", higher_is_better=higher_is_better, shared=shared)["v"]


# ---- against other libraries


def test_intervals_tests_and_sizes_are_scipys(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    generator = np.random.default_rng(1)
    for _ in range(SETS):
        n = int(generator.integers(3, 10))
        base, of = generator.normal(90, 2, n), generator.normal(91, 2, n)
        found = compare({"base": scores_of(base), "v": scores_of(of)}, "base", higher_is_better=True)["v"]
        test = stats.ttest_rel(of, base)
        assert found.p_t == pytest.approx(test.pvalue, rel=1e-9)
        assert found.interval is not None
        assert (found.interval.low, found.interval.high) == pytest.approx(test.confidence_interval(0.95), rel=1e-9)
        assert found.cohen_d == pytest.approx(test.statistic / np.sqrt(n), rel=1e-9)
        flips = stats.permutation_test((of - base,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert statistics.sign_flip(of - base) == (pytest.approx(flips.pvalue, abs=1e-12), True)
        assert 0 <= found.p_sign_flip - flips.pvalue < 0.01  # flips that differ by float32's rounding are equal
        summary = summarise({"v": of})["v"]
        for values, interval in ((of, summary.bootstrap), (of - base, found.bca)):
            own = stats.bootstrap((values,), np.mean, n_resamples=499, random_state=np.random.default_rng(0))
            assert interval is not None
            assert interval.method == "BCa"
            assert (interval.low, interval.high) == pytest.approx(own.confidence_interval, rel=1e-9)
        assert summary.interval is not None
        assert (summary.interval.low, summary.interval.high) == pytest.approx(
            stats.t.interval(0.95, n - 1, of.mean(), stats.sem(of)), rel=1e-9
        )
        assert (summary.mean, summary.std) == pytest.approx((of.mean(), of.std(ddof=1)), rel=1e-12)


def test_holm_and_power_are_statsmodels(monkeypatch):
    pytest.importorskip("statsmodels")
    monkeypatch.setattr(gc, "collect", lambda: 0)  # multipletests calls it each time, 0.4 s
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.power import TTestPower

    generator = np.random.default_rng(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(SETS):
            p_values = generator.uniform(0, 0.2, generator.integers(1, 9)).round(generator.integers(1, 5))  # ties, too
            assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)
            d = float(generator.uniform(0.1, 2))
            needed = pairs_needed(d)
            assert needed is not None
            for pairs in {2, needed, max(2, needed - 1)}:
                power = float(np.nan_to_num(TTestPower().power(d, pairs, 0.05), nan=1))
                assert statistics.power_of(d, pairs) == pytest.approx(power, abs=1e-9)
                assert (power >= 0.8) == (pairs >= needed)


def test_mcnemar_is_the_binomial():
    for one, other in np.random.default_rng(3).integers(0, 40, (SETS, 2)).tolist():
        assert mcnemar(one, other) == pytest.approx(min(1, 2 * stats.binom.cdf(min(one, other), one + other, 0.5)))
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 6) == 2 / 64


# ---- cases with known answers


def test_six_equal_signs_are_the_fewest_that_decide():
    found = against([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (found.p_sign_flip, found.exact, found.verdict) == (2 / 64, True, "better")
    assert against([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], higher_is_better=False).verdict == "worse"
    assert against([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]).verdict == "worse"
    five = against([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (five.p_sign_flip, five.verdict) == (2 / 32, "cannot decide")
    assert against([0.1, 0.2, 0.3, 0.4, 0.5, -0.6]).verdict == "no difference shown"


@pytest.mark.parametrize(("variants", "needed"), [(1, 6), (2, 7), (3, 7), (4, 8), (6, 8), (7, 9)])
def test_more_variants_need_more_pairs(variants, needed):
    """Holm's correction multiplies the least p of six pairs, too."""
    assert statistics.pairs_to_decide(variants) == needed
    for pairs, verdict in ((needed - 1, "cannot decide"), (needed, "better")):
        scores = {f"v{number}": scores_of(np.arange(1, pairs + 1)) for number in range(variants)}
        found = compare({"base": scores_of(np.zeros(pairs)), **scores}, "base", higher_is_better=True)
        assert {each.verdict for each in found.values()} == {verdict}
        assert found["v0"].p_holm == found["v0"].p_least == variants * 2 / 2**pairs


def test_a_few_pairs_beside_many_are_decided_by_what_they_can_reach():
    """Of two variants the one with more pairs is rejected first: then six of the other may be, too."""
    base = scores_of(np.zeros(10))
    scores = {"base": base, "many": scores_of(np.arange(1, 11)), "few": scores_of(np.arange(1, 7))}
    found = compare(scores, "base", higher_is_better=True)
    assert [found[name].verdict for name in ("many", "few")] == ["better", "better"]
    assert found["few"].p_holm == 2 / 64


def test_the_interval_must_agree_with_the_test(monkeypatch):
    assert against([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).verdict == "better"
    monkeypatch.setattr(statistics, "bootstrap", lambda rows: [statistics.Interval(-0.1, 1.0, "BCa") for _ in rows])
    assert against([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).verdict == "no difference shown"


def test_differences_that_are_all_alike():
    none = against([0.0] * 8)
    assert (none.p_sign_flip, none.p_t, none.cohen_d, none.pairs_for_80) == (1, 1, 0, None)
    assert none.verdict == "no difference shown"
    assert none.bca is not None
    assert none.bca.method == "percentile"  # BCa has none
    constant = against([0.25] * 8, base=0.5)
    assert (constant.p_sign_flip, constant.p_t, constant.cohen_d) == (2 / 256, 0, None)
    assert constant.bca == statistics.Interval(0.25, 0.25, "percentile")
    assert constant.verdict == "better"


def test_one_score_has_no_interval_and_one_pair_decides_nothing():
    assert summarise({"one": [0.9], "none": []}) == {
        "one": statistics.Summary(1, 0.9, None, None, None),
        "none": statistics.Summary(0, None, None, None, None),
    }
    found = against([0.1])
    assert (found.interval, found.bca, found.p_t, found.cohen_d, found.p_sign_flip) == (None, None, None, None, 1)
    assert found.verdict == "cannot decide"


def test_an_interval_does_not_depend_on_what_else_is_compared():
    values = np.random.default_rng(4).normal(size=(50, 6))
    rows = [*values, np.ones(6), values[0, :4], values[0, :1]]
    found = statistics.bootstrap(rows)
    assert [found[0], found[49], found[51]] == [statistics.bootstrap([rows[place]])[0] for place in (0, 49, 51)]
    assert found[50:53:2] == [statistics.Interval(1, 1, "percentile"), None]


def test_only_seeds_of_both_are_pairs():
    scores = {"base": {0: 1.0, 1: 2.0, 5: 9.0}, "v": {1: 2.5, 2: 9.0, 0: 1.5}, "alone": {7: 1.0}}
    found = compare(scores, "base", higher_is_better=True)
    assert list(found) == ["v"]
    assert (found["v"].pairs, found["v"].difference) == (2, 0.5)


def test_accuracies_in_float32_tie_as_their_counts_do():
    """355/360 - 354/360 and 350/360 - 349/360 differ in float32, and every flip of the same sum is as extreme."""
    generator = np.random.default_rng(5)
    for _ in range(50):
        right = generator.integers(300, 360, (2, 9))
        of, base = (np.float32(each) / np.float32(360) for each in right)
        found = compare({"base": scores_of(base), "v": scores_of(of)}, "base", higher_is_better=True)["v"]
        counts = statistics.sign_flip((right[0] - right[1]).astype(float))
        assert found.p_sign_flip == counts[0]


def test_differences_of_rounding_are_none():
    base = np.linspace(0.8, 0.9, 8).astype(np.float32)
    of = np.where(np.arange(8) % 3, np.nextafter(base, np.float32(1)), base)
    found = compare({"base": scores_of(base), "v": scores_of(of)}, "base", higher_is_better=True)["v"]
    assert (found.difference, found.cohen_d, found.p_sign_flip, found.p_t) == (0, 0, 1, 1)


def test_many_pairs_are_drawn_with_a_seed_and_what_was_seen_counts():
    values = np.random.default_rng(6).normal(0.3, 1, 40)
    found = against(values)
    assert not found.exact
    assert found.p_sign_flip == against(values).p_sign_flip
    assert found.p_sign_flip == pytest.approx(found.p_t, abs=0.01)
    assert against(np.ones(30)).p_sign_flip == 1 / (statistics.DRAWS + 1)  # never 0
    exact, drawn = values[:16], np.concatenate([values[:16], [0.0]])  # a zero changes no mean but by its count
    assert statistics.sign_flip(drawn)[0] == pytest.approx(statistics.sign_flip(exact)[0], abs=0.01)


def test_folds_of_several_seeds_are_means_and_of_one_seed_units():
    scores: dict[tuple[int, int | None], float] = {(0, 1): 1.0, (0, 2): 3.0, (1, 1): 5.0}
    assert units_of(scores, seeds=(0, 1), folds=2) == {0: 2.0}  # seed 1 lacks a fold
    assert units_of({(4, 1): 1.0, (4, 2): 3.0}, seeds=(4,), folds=2) == {1: 1.0, 2: 3.0}
    assert units_of({(0, None): 1.0}, seeds=(0,), folds=None) == {0: 1.0}
    assert statistics.shared_of(seeds=(0,), folds=5) == 0.25
    assert statistics.shared_of(seeds=(0, 1), folds=5) == statistics.shared_of(seeds=(0,), folds=None) == 0


def test_folds_share_training_data_so_their_interval_is_wider():
    """Nadeau & Bengio: the variance is (1/k + 1/(k - 1)) s^2."""
    values = np.random.default_rng(7).normal(1, 1, 10)
    found = against(values, shared=1 / 9)
    assert found.interval is not None
    half = stats.t.ppf(0.975, 9) * values.std(ddof=1) * np.sqrt(1 / 10 + 1 / 9)
    assert (found.interval.low, found.interval.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert found.interval.method == "corrected t"
    assert found.p_t == pytest.approx(2 * stats.t.sf(abs(values.mean()) / (half / stats.t.ppf(0.975, 9)), 9))
    near = values - values.mean() + 0.85 * half
    narrow, shared = against(near), against(near, shared=1 / 9)
    assert (narrow.verdict, shared.verdict) == ("better", "no difference shown")  # the corrected interval holds 0


def test_the_pairs_that_an_effect_needs():
    assert [pairs_needed(d) for d in (0.0, 0.2, 0.5, -0.8, 1.0)] == [None, 199, 34, 15, 10]  # Cohen's tables
    assert pairs_needed(100.0) == 2
    assert pairs_needed(1e-12) is None


# ---- errors, counted


def test_false_claims_are_no_more_than_promised(monkeypatch):
    """Under the null of three variants: any verdict but none in at most 5 % of studies, and noise."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    generator, claims, studies = np.random.default_rng(8), 0, 200
    for _ in range(studies):
        seeds = generator.normal(0, 1, 8)
        scores = {name: scores_of(seeds + generator.normal(0, 1, 8)) for name in ("base", "a", "b", "c")}
        verdicts = {each.verdict for each in compare(scores, "base", higher_is_better=True).values()}
        assert "cannot decide" not in verdicts
        claims += bool(verdicts & {"better", "worse"})
    assert claims <= 0.05 * studies + 2 * np.sqrt(0.05 * 0.95 * studies)


def test_intervals_cover_as_often_as_promised():
    generator, held, count = np.random.default_rng(9), 0, 1000
    for _ in range(count):
        found = statistics.t_interval(generator.normal(3, 1, 6))
        held += found.low <= 3 <= found.high
    assert abs(held / count - 0.95) < 3 * np.sqrt(0.05 * 0.95 / count)
