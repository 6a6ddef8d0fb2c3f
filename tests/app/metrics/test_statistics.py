import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from app.metrics.statistics import (
    ClusterSums,
    Estimate,
    clopper_pearson,
    difference_over_seeds,
    holm,
    level,
    level_over_seeds,
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


def bootstrap_difference(
    a: ClusterSums,
    b: ClusterSums,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Return a − b with the percentile interval of a paired bootstrap over clusters."""
    groups = a.sums.size
    weights = np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1.0 / groups), size=resamples
    )
    draws = weights @ a.sums / (weights @ a.counts) - weights @ b.sums / (weights @ b.counts)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Estimate(
        a.sums.sum() / a.counts.sum() - b.sums.sum() / b.counts.sum(), float(low), float(high)
    )


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


def discordant(wins: int, losses: int, n: int) -> tuple[ClusterSums, ClusterSums]:
    """Two evaluations of n single conversations that differ in wins + losses of them."""
    a, b = np.zeros(n), np.zeros(n)
    a[:wins], b[wins : wins + losses] = 1, 1
    return ClusterSums(a, np.ones(n), n), ClusterSums(b, np.ones(n), n)


def test_few_discordant_pairs_by_hand() -> None:
    none = paired_difference(*discordant(0, 0, 150), proportion=True)
    # No pair differs: the two pseudo-observations alone, t(149) √2 / 150.
    assert none.high == pytest.approx(1.9760131776 * math.sqrt(2) / 150, abs=1e-9)
    assert (none.value, none.low, none.p) == (0, -none.high, 1)
    one = paired_difference(*discordant(0, 1, 100), proportion=True)
    # Σ(d − mean)² = 1 − 1/100 = .99, times 100/99 is 1: error √(1 + 2) / 100, t(99) = 1.98422.
    assert one.low == pytest.approx(-0.01 - 1.9842169516 * math.sqrt(3) / 100, abs=1e-9)
    assert one.p == pytest.approx(stats.t.sf(1 / math.sqrt(3), 99) * 2, abs=1e-9)


def test_pseudo_observations_are_as_large_as_clusters() -> None:
    hits = np.full(30, 4.0)
    counts = np.full(30, 5.0)
    same = ClusterSums(hits, counts, 150)
    # Five conversations a cluster: a pseudo-observation turns one whole cluster, 1/30.
    found = paired_difference(same, same, proportion=True)
    assert found.high == pytest.approx(t_quantile(0.95, 29) * math.sqrt(2) / 30, abs=1e-9)
    # Five tokens of one conversation: one token, 1/150, until a cluster is seen to differ by more.
    tokens = ClusterSums(hits, counts, 30)
    assert paired_difference(tokens, tokens, proportion=True).high == pytest.approx(
        t_quantile(0.95, 29) * math.sqrt(2) / 150, abs=1e-9
    )
    other = ClusterSums(np.r_[hits[:29], 1.0], counts, 30)
    seen = paired_difference(other, tokens, proportion=True)
    # One cluster loses three tokens: 9 − 9/30 = 8.7, times 30/29 is 9; two more of 3² make 27.
    assert seen.value == pytest.approx(-3 / 150)
    assert seen.high - seen.value == pytest.approx(t_quantile(0.95, 29) * math.sqrt(27) / 150)


@pytest.mark.parametrize("n", [40, 150, 400])
def test_one_more_loss_never_raises_the_low_end(n: int) -> None:
    lows = [paired_difference(*discordant(2, k, n), proportion=True).low for k in range(n - 1)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(lows))


def tango(wins: int, losses: int, n: int) -> tuple[float, float]:
    """Return the score interval of Tango (1998): where |score| stays within the quantile."""

    def score(d: float) -> float:
        b = -wins - losses + (2 * n - wins + losses) * d
        q = (math.sqrt(b * b + 8 * n * losses * d * (1 - d)) - b) / (4 * n)
        return float((wins - losses - n * d) / math.sqrt(n * (2 * q + d * (1 - d))))

    z, value = stats.norm.ppf(0.975), (wins - losses) / n
    return (
        optimize.brentq(lambda d: score(d) - z, -1 + 1e-9, value - 1e-9),
        optimize.brentq(lambda d: score(d) + z, value + 1e-9, 1 - 1e-9),
    )


@pytest.mark.parametrize("n", [50, 200, 500])
def test_few_discordant_pairs_are_covered_exactly_and_shorter_than_by_tangos_interval(
    n: int,
) -> None:
    pairs = [(wins, losses) for wins in range(12) for losses in range(18)]
    found = [paired_difference(*discordant(*pair, n), proportion=True) for pair in pairs]
    ours = np.array([(e.low, e.high) for e in found])
    theirs = np.array([tango(*pair, n) for pair in pairs])
    wins, losses = np.array(pairs).T
    widths = []
    for expected in np.arange(0.25, 5.01, 0.25):
        for share in (0, 0.25, 0.5):
            win, loss = expected * share / n, expected * (1 - share) / n
            weights = stats.multinomial.pmf(
                np.stack([wins, losses, n - wins - losses], 1), n, [win, loss, 1 - win - loss]
            )
            assert weights.sum() > 0.9999
            low, high = ours.T
            assert weights @ ((low <= win - loss) & (win - loss <= high)) >= 0.936
            widths.append([weights @ (high - low), weights @ (theirs[:, 1] - theirs[:, 0])])
    mean = np.mean(widths, axis=0)
    assert mean[0] < 0.96 * mean[1]
    assert found[0].high <= -math.log(0.05) / n


@pytest.mark.parametrize(
    ("groups", "size", "loss", "win"),
    [(120, 1, 0.03, 0.0), (120, 1, 0.05, 0.01), (200, 1, 0.02, 0.005), (120, 4, 0.03, 0.0)],
)
def test_few_discordant_pairs_still_cover(groups: int, size: int, loss: float, win: float) -> None:
    """Whole clusters of 1 to `size` conversations turn together, a handful of them."""
    rng, rounds, inside = np.random.default_rng(12), 2000, 0
    for _ in range(rounds):
        counts = rng.integers(1, size + 1, groups) * 1.0
        draw = rng.random(groups)
        a = ClusterSums(counts * (draw >= loss), counts, int(counts.sum()))
        b = ClusterSums(counts * ((draw < loss) | (draw >= loss + win)), counts, a.n)
        e = paired_difference(a, b, proportion=True)
        inside += e.low <= win - loss <= e.high
    assert 0.93 <= inside / rounds <= 0.98


def crossed(
    rng: np.random.Generator, seeds: int, items: int, spread: tuple[float, float]
) -> list[ClusterSums]:
    """Answers of a recipe: seeds and items each have an effect, and both meet in one answer."""
    of_seed, of_item = rng.normal(0, spread[0], (seeds, 1)), rng.normal(0, spread[1], items)
    noise = rng.normal(0, 0.3, (seeds, items))
    ones = np.ones(items)
    return [ClusterSums(0.5 + row, ones, items) for row in of_seed + of_item + noise]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [(0.2, 0.1), (0.02, 0.4), (0.0, 0.0)])
def test_the_interval_over_seeds_covers(seeds: int, spread: tuple[float, float]) -> None:
    """Of what another draw of seeds and conversations would give; one seed's covers far less."""
    rng = np.random.default_rng(5)
    covered, alone, draws = 0, 0, 600
    for _ in range(draws):
        found = crossed(rng, seeds, 80, spread)
        whole = level_over_seeds(found, proportion=False)
        first = level(found[0], proportion=False)
        covered += whole.low <= 0.5 <= whole.high
        alone += first.low <= 0.5 <= first.high
    assert 0.93 <= covered / draws <= 1.0
    if spread[0] > spread[1]:
        assert alone / draws < 0.6


def test_one_seed_each_is_the_paired_difference_and_equal_seeds_add_nothing() -> None:
    rng = np.random.default_rng(6)
    [a], [b] = crossed(rng, 1, 50, (0, 0.3)), crossed(rng, 1, 50, (0, 0.3))
    pair = paired_difference(a, b, proportion=False)
    assert difference_over_seeds((a,), (b,), proportion=False) == pair
    repeated = difference_over_seeds((a, a, a), (b,), proportion=False)
    assert (repeated.value, repeated.low) == pytest.approx((pair.value, pair.low))


def test_the_difference_over_seeds_by_hand() -> None:
    """Variance over conversations of the means, plus s²/k of each recipe; Satterthwaite's df."""
    ones = np.ones(4)
    a = [ClusterSums(np.array(v, float), ones, 4) for v in ([1, 2, 3, 4], [2, 3, 4, 7])]
    b = ClusterSums(np.array([1.0, 1.0, 2.0, 2.0]), ones, 4)
    difference = np.array([0.5, 1.5, 1.5, 3.5])  # of the means
    over_items = difference.var(ddof=1) / 4
    over_seeds = np.var([2.5, 4.0], ddof=1) / 2
    total = over_items + over_seeds
    df = total**2 / (over_items**2 / 3 + over_seeds**2 / 1)
    half = stats.t.ppf(0.975, df) * np.sqrt(total)
    found = difference_over_seeds(a, [b], proportion=False)
    assert found.value == pytest.approx(1.75)
    assert (found.low, found.high) == pytest.approx((1.75 - half, 1.75 + half), rel=1e-9)


def test_over_seeds_asks_for_the_same_clusters() -> None:
    ones = np.ones(3)
    with pytest.raises(ValueError, match="the same clusters"):
        difference_over_seeds(
            [ClusterSums(ones, ones, 3)], [ClusterSums(np.ones(2), np.ones(2), 2)], proportion=True
        )
