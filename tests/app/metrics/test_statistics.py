import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from app.metrics.statistics import (
    ClusterSums,
    bootstrap_difference,
    clopper_pearson,
    difference_table,
    holm,
    level,
    more_needed,
    paired_difference,
    t_quantile,
    unpaired_difference,
)


def made(values: list[float]) -> ClusterSums:
    return ClusterSums(np.array(values), np.ones(len(values)), len(values))


@pytest.mark.parametrize("df", [1, 2, 5, 29, 99.5, 2059])
def test_t_quantile_is_scipys(df: float) -> None:
    assert t_quantile(0.95, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(0, 40), (40, 40), (1, 7), (1914, 2060)])
def test_clopper_pearson_is_scipys(hits: int, n: int) -> None:
    want = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(hits, n) == pytest.approx((want.low, want.high), abs=1e-9)


def test_equal_counts_are_the_t_tests_of_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=50), rng.normal(0.3, 2, size=50)
    one = level(made(list(a)), proportion=False)
    want = stats.ttest_1samp(a, 0).confidence_interval()
    assert (one.low, one.high) == pytest.approx((want.low, want.high), abs=1e-9)
    for found, test in (
        (paired_difference(made(list(a)), made(list(b)), proportion=False), stats.ttest_rel(a, b)),
        (unpaired_difference(made(list(a)), made(list(b))), stats.ttest_ind(a, b, equal_var=False)),
    ):
        want = test.confidence_interval()
        assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-9)
        assert found.p == pytest.approx(test.pvalue, abs=1e-9)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_a_proportion_is_never_certain(hit: float) -> None:
    e = level(made([hit] * 40), proportion=True)
    assert (e.low, e.high) == pytest.approx(clopper_pearson(40 * hit, 40))
    d = paired_difference(made([hit] * 40), made([hit] * 40), proportion=True)
    assert d.low < 0 < d.high
    assert d.p == 1


def test_interval_covers_in_95_percent() -> None:
    rng, hits, rounds, groups = np.random.default_rng(3), 0, 3000, 120
    for _ in range(rounds):
        counts = rng.integers(1, 5, groups)
        chance = rng.beta(7, 3, groups)
        e = level(
            ClusterSums(rng.binomial(counts, chance) * 1.0, counts * 1.0, int(counts.sum())),
            proportion=True,
        )
        hits += e.low <= 0.7 <= e.high
    assert 0.93 <= hits / rounds <= 0.97


def test_paired_difference_covers_in_95_percent() -> None:
    rng, hits, rounds, groups = np.random.default_rng(4), 0, 2000, 120
    for _ in range(rounds):
        counts, chance = rng.integers(1, 5, groups), rng.beta(7, 3, groups)
        a, b = rng.binomial(counts, chance), rng.binomial(counts, chance * 0.9)
        d = paired_difference(
            ClusterSums(a * 1.0, counts * 1.0, groups),
            ClusterSums(b * 1.0, counts * 1.0, groups),
            proportion=True,
        )
        hits += d.low <= 0.07 <= d.high
    assert 0.93 <= hits / rounds <= 0.97


def test_the_table_is_the_single_difference() -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 5, (4, 60)).astype(float)
    sums = rng.random((4, 60)) * counts
    value, low, high = difference_table(sums, counts, 1)
    for i in (0, 2, 3):
        a, b = (ClusterSums(sums[j], counts[j], 60) for j in (i, 1))
        d = paired_difference(a, b, proportion=False)
        assert (value[i], low[i], high[i]) == pytest.approx((d.value, d.low, d.high), abs=1e-12)
    assert value[1] == low[1] == high[1] == 0


def test_bootstrap_agrees_and_repeats() -> None:
    rng = np.random.default_rng(6)
    a, b = made(list(rng.random(200))), made(list(rng.random(200)))
    boot, line = bootstrap_difference(a, b, seed=1), paired_difference(a, b, proportion=False)
    again = bootstrap_difference(a, b, seed=1)
    assert (boot.value, boot.low, boot.high) == (again.value, again.low, again.high)
    assert (boot.low, boot.high) == pytest.approx((line.low, line.high), abs=0.01)


def test_holm_is_statsmodels() -> None:
    p = list(np.random.default_rng(7).random(20) ** 3)
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]), abs=1e-12)


def test_more_needed_only_where_the_interval_holds_zero() -> None:
    clear = paired_difference(made([1.0] * 39 + [0.9]), made([0.0] * 40), proportion=False)
    assert more_needed(clear, 40) is None
    vague = paired_difference(made([0.0, 2.0] * 20), made([0.9] * 40), proportion=False)
    assert more_needed(vague, 40) > 40


lists = st.lists(st.floats(0, 1), min_size=3, max_size=40)


@given(lists, st.integers(1, 2))
def test_interval_holds_the_value_and_swapping_negates(values: list[float], turn: int) -> None:
    other = values[turn:] + values[:turn]
    a, b = made(values), made(other)
    e = level(a, proportion=True)
    assert e.low <= e.value + 1e-12
    assert e.value <= e.high + 1e-12
    one, two = (paired_difference(x, y, proportion=True) for x, y in ((a, b), (b, a)))
    assert (one.value, one.low, one.high) == pytest.approx(
        (-two.value, -two.high, -two.low), abs=1e-12
    )


@pytest.mark.parametrize(("p", "n"), [(0.95, 100), (0.97, 120), (0.05, 100), (0.7, 100)])
def test_a_level_near_0_or_1_still_covers(p: float, n: int) -> None:
    rng = np.random.default_rng(11)
    rounds, inside = 2000, 0
    for hits in rng.random((rounds, n)) < p:
        sums = ClusterSums(hits.astype(float), np.ones(n), n)
        estimate = level(sums, proportion=True)
        inside += estimate.low <= p <= estimate.high
    assert 0.93 <= inside / rounds <= 0.985


def test_a_level_is_the_score_interval_of_statsmodels_for_many_single_conversations() -> None:
    n, hits = 200_000, 150_000
    sums = ClusterSums(np.r_[np.ones(hits), np.zeros(n - hits)], np.ones(n), n)
    estimate = level(sums, proportion=True)
    low, high = proportion_confint(hits, n, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-7)
