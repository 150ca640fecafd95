"""Statistics of populations against closed forms, NumPy and simulation."""

import numpy as np
import pytest
from scipy import special, stats

from hwtrain.evaluate import Population


def of(values, **options):
    return Population(values=values, seeds=tuple(range(len(values))), **options)


def test_quantiles_are_those_of_numpy_for_every_setting_and_time():
    values = np.random.default_rng(0).normal(size=(101, 2, 3))
    for share in (0.0, 0.05, 0.5, 1.0):
        expected = np.sort(values, axis=0)[round(100 * share)]
        np.testing.assert_allclose(of(values).quantile(share), expected)
    assert isinstance(of(values[:, 0, 0]).quantile(0.05), float)


@pytest.mark.parametrize("better, good", [("higher", 3), ("lower", 3)])
def test_the_yield_counts_chips_that_are_just_good_enough(better, good):
    chips = of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert chips.chip_yield(3.0, better) == good / 5
    assert chips.chip_yield(3.1, better) == (2 if better == "higher" else 3) / 5
    with pytest.raises(ValueError, match="got 'more'"):
        chips.chip_yield(3.0, "more")


@pytest.mark.parametrize("good", [0, 1, 7, 19, 20])
def test_the_yields_interval_is_clopper_and_pearsons(good):
    """The bounds are quantiles of beta distributions."""
    values = (np.arange(20) < good).astype(float)
    low, high = of(values).yield_interval(0.5)
    lower = special.betaincinv(good, 21 - good, 0.025) if good else 0.0
    upper = special.betaincinv(good + 1, 20 - good, 0.975) if good < 20 else 1.0
    np.testing.assert_allclose((low, high), (lower, upper), atol=1e-9)
    both = of(np.stack([values, values], axis=1)).yield_interval(0.5)
    np.testing.assert_allclose(both, [[low, low], [high, high]])


def test_the_bootstrap_of_the_mean_is_the_normal_interval():
    values = np.random.default_rng(1).normal(size=(400, 2, 3))
    low, high = of(values).bootstrap(np.mean)
    half = 1.96 * values.std(axis=0) / 20
    assert low.shape == (2, 3)
    np.testing.assert_allclose(low, values.mean(axis=0) - half, atol=0.15 * half.max())
    np.testing.assert_allclose(high, values.mean(axis=0) + half, atol=0.15 * half.max())
    again = of(values).bootstrap(np.mean)
    np.testing.assert_array_equal(again, (low, high))
    wide = of(values).bootstrap(np.mean, level=0.99)
    assert np.all(wide[0] < low) and np.all(wide[1] > high)


def test_the_bootstrap_of_a_quantile_holds_it_as_often_as_it_says():
    random, hits, trials = np.random.default_rng(2), 0, 200
    for _ in range(trials):
        chips = of(random.normal(size=80))
        low, high = chips.bootstrap(
            lambda x, axis: np.quantile(x, 0.25, axis), resamples=499
        )
        hits += low <= stats.norm.ppf(0.25) <= high
    # Of a quantile of 80 values, the bootstrap's own error is some percent.
    assert abs(hits / trials - 0.95) < 0.03 + 3 * np.sqrt(0.95 * 0.05 / trials)


def test_equal_chips_have_an_interval_of_no_width_and_one_chip_has_none():
    assert of(np.ones(5)).bootstrap(np.mean) == (1.0, 1.0)
    with pytest.raises(ValueError, match="two chips, got 1"):
        of(np.ones(1)).bootstrap(np.mean)


def test_the_table_shows_the_worse_tail_and_the_yield():
    chips = of(np.arange(101.0))
    assert "5th percentile" in str(chips)
    lower = chips.table(required=20.0, better="lower")
    names = [column.header for column in lower.columns]
    assert "95th percentile" in names and "yield at 20" in names
    cells = {c.header: next(iter(c.cells)) for c in lower.columns}
    assert cells["95th percentile"] == "95"
    low, high = stats.binomtest(21, 101).proportion_ci()
    expected = f"20.8 % ({100 * low:.1f} to {100 * high:.1f})"
    assert cells["yield at 20"] == expected
    few = of(np.arange(5.0)).table(required=2.0)
    assert "5th percentile" not in [column.header for column in few.columns]


def test_a_setting_alone():
    values = np.random.default_rng(0).normal(size=(4, 2, 3))
    found = of(values, constants={"forward.out_noise": (0.1, 0.2)}, times_s=(0, 1, 2))
    np.testing.assert_array_equal(found.at(1).values, values[:, 1])
    assert found.at(1).times_s == (0, 1, 2)
    with pytest.raises(ValueError, match="without constants"):
        of(values).at(0)


@pytest.mark.parametrize(
    "statistic",
    [
        lambda x, axis: np.median(x, axis),
        lambda x, axis: np.mean(x >= 0.9, axis),
        lambda x, axis: np.min(x, axis),
    ],
)
def test_the_bootstrap_of_discrete_values_is_finite(statistic):
    """No single chip changes these, so that the acceleration is undefined."""
    chips = of(np.array([0.97] * 30 + [0.96] * 2))
    low, high = chips.bootstrap(statistic)
    value = statistic(chips.values, axis=0)
    assert np.isfinite([low, high]).all() and low <= value <= high


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_that_is_no_share_is_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        of(np.arange(5.0)).bootstrap(np.mean, level=level)


def test_a_chip_that_is_nan_is_not_hidden():
    chips = of(np.array([1.0, np.nan, 1.0]))
    assert np.isnan(chips.mean) and np.isnan(chips.std)


def test_a_direction_that_is_none_is_refused():
    with pytest.raises(ValueError, match="got 'lowr'"):
        of(np.arange(30.0)).table(better="lowr")
